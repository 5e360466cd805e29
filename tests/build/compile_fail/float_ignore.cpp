// SPDX-License-Identifier: MIT
// expect: mha::ignore: the mask must be of bool, true = may not attend
//
// Numbers to be added to scores are no mask to ignore by.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Mask = Eigen::MatrixXf;
#else
using Mask = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Mask mask = Mask::Zero(2, 2);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::ignore(mask));
  return static_cast<int>(output.rows());
}
