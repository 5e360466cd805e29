// SPDX-License-Identifier: MIT
// expect: only masks can be joined by \|: scale, softcap, bias, alibi, score_mod, sinks and dropout
//
// What changes a score cannot hold for some pairs only.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto rule = mha::causal() | (mha::lengths(1) & mha::alibi(0.5F));
#else
  const auto rule = (mha::causal() | mha::lengths(1)) & mha::alibi(0.5F);
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, rule);
  return static_cast<int>(output.rows());
}
