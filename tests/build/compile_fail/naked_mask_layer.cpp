// SPDX-License-Identifier: MIT
// expect: the argument after value must be a mask or score modifier made by one of the factories
//
// The layer takes no boolean matrix either.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
  const Eigen::Matrix<bool, 2, 2> mask = Eigen::Matrix<bool, 2, 2>::Constant(true);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, x, x, mask);
#else
  const auto output = layer(x, x, x, mha::keep(mask));
#endif
  return static_cast<int>(output.rows());
}
