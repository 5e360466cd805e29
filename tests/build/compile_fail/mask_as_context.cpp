// SPDX-License-Identifier: MIT
// expect: the arguments of MultiHead must have its Scalar
//
// After one matrix comes the context of cross-attention: a boolean matrix is none.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
  const Eigen::Matrix<bool, 2, 2> mask = Eigen::Matrix<bool, 2, 2>::Constant(true);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, mask);
#else
  const auto output = layer(x, mha::keep(mask));
#endif
  return static_cast<int>(output.rows());
}
