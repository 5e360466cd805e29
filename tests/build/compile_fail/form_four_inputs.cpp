// SPDX-License-Identifier: MIT
// expect: the argument after value must be a mask or score modifier made by one of the factories
//
// A layer reads at most a query, a key and a value.
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output = layer(x, x, x, x);
#else
  const auto output = layer(x, x, x);
#endif
  return static_cast<int>(output.rows());
}
