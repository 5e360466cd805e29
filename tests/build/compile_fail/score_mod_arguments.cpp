// SPDX-License-Identifier: MIT
// expect: mha::score_mod: the function must take \(score, b, h, i, j\)
//
// A score function is given the score and where it stands.
#include <mha/mha.hpp>

int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 3);
#ifdef MHA_SHOULD_FAIL
  const auto modified = [](float score) { return 2 * score; };
#else
  const auto modified = [](float score, auto...) { return 2 * score; };
#endif
  const auto output = mha::scaled_dot_product_attention(x, x, x, mha::score_mod(modified));
  return static_cast<int>(output.rows());
}
