// SPDX-License-Identifier: MIT
//
// scores (ln 3, 0) -> exp (3, 1) -> weights (3/4, 1/4); values 4, 8 -> 3 + 2 = 5
#include <cmath>
#include <cstdio>
#include <mha/mha.hpp>

int main() {
  Eigen::MatrixXd query(1, 1), key(2, 1), value(2, 1);
  query << std::log(3.0);
  key << 1, 0;
  value << 4, 8;
  const Eigen::MatrixXd output = mha::scaled_dot_product_attention(query, key, value);
  std::printf("mha %d.%d.%d: %.3f\n", mha::kVersionMajor, mha::kVersionMinor, mha::kVersionPatch,
              output(0, 0));
}
