// SPDX-License-Identifier: MIT
// expect: mha::mask_mod: the function must take \(b, h, i, j\) and return bool
//
// A mask function is asked about sequence, head, query and key.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto allowed = [](mha::Index i, mha::Index j) { return j <= i; };
#else
  const auto allowed = [](mha::Index, mha::Index, mha::Index i, mha::Index j) { return j <= i; };
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::mask_mod(allowed));
  return static_cast<int>(output.rows());
}
