// SPDX-License-Identifier: MIT
//
// A pass refers to its inputs until backward(): an expression has no memory to refer to.
// expect: the pass refers to its inputs until backward
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  mha::TrainingPass<mha::MultiHead<float, 2>> pass;
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(3, 4);
  layer.forward_training(pass, x, x.transpose().transpose(), {.batch = 1});
#ifdef MHA_SHOULD_FAIL
  layer.forward_training(pass, x, 2 * x, {.batch = 1});
#endif
}
