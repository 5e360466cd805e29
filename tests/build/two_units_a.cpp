// SPDX-License-Identifier: MIT
//
// With two_units_b.cpp: two translation units that include everything make one program.
#include <mha/mha.hpp>
#if __has_include(<nlohmann/json.hpp>)
#include <mha/io/safetensors.hpp>
#include <mha/io/torch.hpp>
#endif

#include <cstdio>

float from_b(const Eigen::MatrixXf& x);

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(3, 8);
  const mha::MultiHead<float, 2> layer(8);
  const auto y = layer(x, mha::causal() & mha::window(1, 0));
  const float a = mha::scaled_dot_product_attention(x, x, x, mha::causal()).sum();
  const float b = from_b(x);
  std::printf("%g %g %ld\n", static_cast<double>(a), static_cast<double>(b),
              static_cast<long>(y.rows()));
  return a == b ? 0 : 1;
}
