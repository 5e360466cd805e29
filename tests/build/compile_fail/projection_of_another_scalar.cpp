// SPDX-License-Identifier: MIT
// expect: the arguments of a Projection must have its Scalar, or the accumulator of it
//
// A projection of float does not convert tokens of double silently.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Tokens = Eigen::MatrixXd;
#else
using Tokens = Eigen::MatrixXf;
#endif

int main() {
  mha::Projection<float> linear;
  linear.resize(4, 3, true);
  const Tokens x = Tokens::Ones(2, 4);
  const auto output = linear(x);
  return static_cast<int>(output.rows());
}
