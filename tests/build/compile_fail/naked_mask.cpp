// SPDX-License-Identifier: MIT
// expect: the argument after value must be a mask or score modifier made by one of the factories
//
// A boolean matrix alone does not say what true means.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Eigen::Matrix<bool, 2, 2> mask = Eigen::Matrix<bool, 2, 2>::Constant(true);
#ifdef MHA_SHOULD_FAIL
  const auto output = mha::scaled_dot_product_attention(x, x, x, mask);
#else
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::keep(mask));
#endif
  return static_cast<int>(output.rows());
}
