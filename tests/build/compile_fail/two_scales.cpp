// SPDX-License-Identifier: MIT
// expect: at most one scale\(\) may be combined into a rule
//
// Two scales: one of them would have to be dropped silently.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto rule = mha::scale(0.5F) & mha::causal() & mha::scale(2.0F);
#else
  const auto rule = mha::scale(0.5F) & mha::causal();
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, rule);
  return static_cast<int>(output.rows());
}
