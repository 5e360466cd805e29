// SPDX-License-Identifier: MIT
// expect: followed by nothing, by a rule, by options, or by a rule and then options
//
// The backward pass has the rule of its forward pass, once.
#include <mha/mha.hpp>

int main() {
  using Layer = mha::MultiHead<float, 2>;
  const Layer layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(3, 4);
  mha::TrainingPass<Layer> pass;
  mha::MultiHeadGradients<Layer> gradients(layer);
  layer.forward_training(pass, x, mha::causal());
#ifdef MHA_SHOULD_FAIL
  layer.backward(gradients, pass, x, mha::causal(), mha::causal());
#else
  layer.backward(gradients, pass, x, mha::causal());
#endif
}
