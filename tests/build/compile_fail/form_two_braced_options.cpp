// SPDX-License-Identifier: MIT
// expect: NoMore|no matching member function
//
// Which of the two would count? A braced list has no type that could be named.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, {.batch = 2}, {.need_lse = true});
#else
  const auto output = layer(x, {.batch = 2, .need_lse = true});
#endif
  return static_cast<int>(output.rows());
}
