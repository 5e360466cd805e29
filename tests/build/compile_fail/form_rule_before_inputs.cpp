// SPDX-License-Identifier: MIT
// expect: followed by nothing, by a rule, by options, or by a rule and then options
//
// Inputs come first.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(mha::causal(), x);
#else
  const auto output = layer(x, mha::causal());
#endif
  return static_cast<int>(output.rows());
}
