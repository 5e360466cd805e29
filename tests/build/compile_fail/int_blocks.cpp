// SPDX-License-Identifier: MIT
// expect: mha::blocks: the matrix must be of bool, true = may attend
//
// As keep(): masks are of bool.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Mask = Eigen::MatrixXi;
#else
using Mask = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Mask mask = Mask::Constant(1, 2, 1);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::blocks(mask, 2, 1));
  return static_cast<int>(output.rows());
}
