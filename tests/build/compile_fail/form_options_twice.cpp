// SPDX-License-Identifier: MIT
// expect: followed by nothing, by a rule, by options, or by a rule and then options
//
// Which of the two would count?
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(2, 4);
#ifdef MHA_SHOULD_FAIL
  const auto output =
      layer.forward(x, mha::MultiHeadOptions{.batch = 2}, mha::MultiHeadOptions{.need_lse = true})
          .output;
#else
  const auto output = layer.forward(x, mha::MultiHeadOptions{.batch = 2, .need_lse = true}).output;
#endif
  return static_cast<int>(output.rows());
}
