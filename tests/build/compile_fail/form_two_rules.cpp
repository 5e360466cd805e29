// SPDX-License-Identifier: MIT
// expect: followed by nothing, by a rule, by options, or by a rule and then options.*several rules are joined by &
//
// Two rules are one only where & joins them.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, mha::causal(), mha::window(2, 0));
#else
  const auto output = layer(x, mha::causal() & mha::window(2, 0));
#endif
  return static_cast<int>(output.rows());
}
