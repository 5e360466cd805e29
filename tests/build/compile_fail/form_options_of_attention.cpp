// SPDX-License-Identifier: MIT
// expect: followed by nothing, by a rule, by options, or by a rule and then options
//
// The options of attention without a layer know no sequences.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, mha::AttentionOptions{.need_lse = true});
#else
  const auto output = layer(x, mha::MultiHeadOptions{.need_lse = true});
#endif
  return static_cast<int>(output.rows());
}
