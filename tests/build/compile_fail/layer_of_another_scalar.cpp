// SPDX-License-Identifier: MIT
// expect: the arguments of MultiHead must have its Scalar
//
// A layer of float does not convert tokens of double silently.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Tokens = Eigen::MatrixXd;
#else
using Tokens = Eigen::MatrixXf;
#endif

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Tokens x = Tokens::Ones(2, 4);
  const auto output = layer(x);
  return static_cast<int>(output.rows());
}
