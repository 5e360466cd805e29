// SPDX-License-Identifier: MIT
// expect: mha::key_padding: the matrix must be of bool, true = the key may be attended to
//
// Padding of 0 and 1 means either, depending on the library: it is of bool.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Padding = Eigen::MatrixXi;
#else
using Padding = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Padding padding = Padding::Constant(1, 2, 1);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::key_padding(padding));
  return static_cast<int>(output.rows());
}
