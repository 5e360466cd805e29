// SPDX-License-Identifier: MIT
// expect: query, key and value must share one Scalar
//
// A query of float and a key of double have no common precision to compute in.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Key = Eigen::MatrixXd;
#else
using Key = Eigen::MatrixXf;
#endif

int main() {
  const Eigen::MatrixXf query = Eigen::MatrixXf::Ones(2, 3);
  const Key key = Key::Ones(4, 3);
  const Eigen::MatrixXf value = Eigen::MatrixXf::Ones(4, 5);
  const auto output = mha::scaled_dot_product_attention(query, key, value);
  return static_cast<int>(output.rows());
}
