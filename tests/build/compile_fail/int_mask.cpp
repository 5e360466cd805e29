// SPDX-License-Identifier: MIT
// expect: mha::keep: the mask must be of bool, true = may attend
//
// Whether 1 means attend or padding differs between libraries: masks are of bool.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Mask = Eigen::MatrixXi;
#else
using Mask = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Mask mask = Mask::Constant(2, 2, 1);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::keep(mask));
  return static_cast<int>(output.rows());
}
