// SPDX-License-Identifier: MIT
//
// A program compiled with -fno-exceptions and -fno-rtti: it prints what attention and the layer
// give; told to make a mistake (any argument), it must end by abort() with the message that would
// have been thrown.
#include <mha/mha.hpp>

#include <cmath>
#include <cstdio>

#if defined(__cpp_exceptions)
#error "this test is to be compiled with -fno-exceptions"
#endif

int main(int argc, char**) {
  // Scores (ln 3, 0) -> weights (3/4, 1/4); values 4, 8 -> 3 + 2 = 5.
  const mha::Matrix<double> query{{1}};
  const mha::Matrix<double> key{{std::log(3.0)}, {0}};
  const mha::Matrix<double> value{{4}, {8}};
  const double average =
      mha::scaled_dot_product_attention(query, key, value, mha::lengths(2))(0, 0);
  std::printf("attention: %.6f\n", average);

  // One token attends to itself alone: y = x W_V W_O = 3 * 2 * 5. The pool is another user of
  // exceptions.
  mha::ThreadPool pool(2);
  mha::MultiHead<float, 1> layer(1);
  layer.v_proj.weight << 2;
  layer.out_proj.weight << 5;
  const mha::Matrix<float> x{{3}, {3}};
  const mha::Matrix<float> y = layer(x, mha::causal(), {.batch = 2, .executor = pool});
  std::printf("layer: %.6f %.6f\n", static_cast<double>(y(0, 0)), static_cast<double>(y(1, 0)));

  if (argc > 1) {
    const mha::Matrix<double> wrong = mha::scaled_dot_product_attention(query, value, key.row(0));
    std::printf("not reached: %d\n", static_cast<int>(wrong.rows()));
  }
  const bool right = std::abs(average - 5) < 1e-14 && y(0, 0) == 30 && y(1, 0) == 30;
  return right ? 0 : 1;
}
