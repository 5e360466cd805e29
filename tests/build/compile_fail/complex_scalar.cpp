// SPDX-License-Identifier: MIT
// expect: the Scalar of attention must be a real floating-point type
//
// Complex scores have no maximum.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Tokens = Eigen::MatrixXcf;
#else
using Tokens = Eigen::MatrixXf;
#endif

int main() {
  const Tokens x = Tokens::Ones(2, 3);
  const auto output = mha::scaled_dot_product_attention(x, x, x);
  return static_cast<int>(output.rows());
}
