// SPDX-License-Identifier: MIT
// expect: mha::bias: numbers to be added must be floating-point
//
// A boolean mask added to scores would favour the masked keys by 1, or the others.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Bias = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;
#else
using Bias = Eigen::MatrixXf;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Bias bias = Bias::Zero(2, 2);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::bias(bias));
  return static_cast<int>(output.rows());
}
