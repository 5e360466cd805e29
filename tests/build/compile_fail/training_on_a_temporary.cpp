// SPDX-License-Identifier: MIT
//
// A pass refers to its inputs until backward(): a temporary matrix would be gone by then.
// expect: the pass refers to its inputs until backward
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> layer(4);
  mha::TrainingPass<mha::MultiHead<float, 2>> pass;
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(3, 4);
  layer.forward_training(pass, x.topRows(2));
#ifdef MHA_SHOULD_FAIL
  layer.forward_training(pass, Eigen::MatrixXf(x));
#endif
}
