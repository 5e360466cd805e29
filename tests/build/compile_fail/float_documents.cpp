// SPDX-License-Identifier: MIT
// expect: mha::documents: ids must be whole numbers, one per token
//
// A document is named by a whole number: equal or not.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Ids = Eigen::RowVectorXf;
#else
using Ids = Eigen::RowVectorXi;
#endif

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
  const Ids ids = Ids::Ones(2);
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::documents(ids));
  return static_cast<int>(output.rows());
}
