// SPDX-License-Identifier: MIT
// expect: at most one sinks\(\) may be combined into a rule
//
// Likewise two sinks.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto rule = mha::sinks(0.5F) & mha::sinks(2.0F);
#else
  const auto rule = mha::sinks(0.5F);
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, rule);
  return static_cast<int>(output.rows());
}
