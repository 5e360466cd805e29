// SPDX-License-Identifier: MIT
// expect: each side of \| must be a mask
//
// A rule that masks nothing would let everything pass.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto rule = mha::window(1, 0) | mha::query_offset(1);
#else
  const auto rule = (mha::window(1, 0) | mha::lengths(1)) & mha::query_offset(1);
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, rule);
  return static_cast<int>(output.rows());
}
