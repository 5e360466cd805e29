// SPDX-License-Identifier: MIT
//
// Parameters of a PyTorch nn.MultiheadAttention, loaded from a safetensors file. The file also
// holds an input and what PyTorch answered to it (causal self-attention, two sequences), to compare
// with. In Python:
//     safetensors.torch.save_file(layer.state_dict(), "layer.safetensors")
//
// Output:
//   embed_dim 12, 3 heads of 4, biases: yes
//   the output equals PyTorch's to 1e-6: yes
//   the weights equal PyTorch's to 1e-6: yes
//   saved and loaded again, the layer answers the same: yes
#include <iostream>
#include <mha/io/torch.hpp>
#include <mha/mha.hpp>

int main(int argc, char** argv) {
  const std::string path =
      argc > 1 ? argv[1] : MHA_EXAMPLE_DATA_DIR "/torch_self_attention.safetensors";
  const auto file = mha::io::Safetensors::read(path);
  const auto yes = [](bool b) { return b ? "yes" : "no"; };

  // The number of heads is not in a state_dict; all other sizes are.
  mha::MultiHead<float, 3> layer(mha::io::torch_config(file, 3));
  mha::io::load_torch(layer, file);
  std::cout << "embed_dim " << layer.embed_dim() << ", " << layer.num_heads() << " heads of "
            << layer.head_dim() << ", biases: " << yes(layer.q_proj.has_bias()) << "\n";

  // PyTorch's [batch, token, channel] is a matrix with a token per row, sequence after sequence.
  const auto batch = file.tensor("query").shape[0];
  const Eigen::VectorXf tokens = file.vector<float>("query");
  const Eigen::Map<const mha::Matrix<float>> x(tokens.data(), tokens.size() / layer.embed_dim(),
                                               layer.embed_dim());
  const auto result = layer.forward(x, mha::causal(), {.batch = batch, .need_weights = true});

  const Eigen::VectorXf expected = file.vector<float>("output");
  const Eigen::VectorXf expected_weights = file.vector<float>("attn_weights");
  const Eigen::Map<const Eigen::VectorXf> output(result.output.data(), expected.size());
  const Eigen::Map<const Eigen::VectorXf> weights(result.weights.data(), expected_weights.size());
  std::cout << "the output equals PyTorch's to 1e-6: "
            << yes((output - expected).cwiseAbs().maxCoeff() < 1e-6f) << "\n"
            << "the weights equal PyTorch's to 1e-6: "
            << yes((weights - expected_weights).cwiseAbs().maxCoeff() < 1e-6f) << "\n";

  mha::io::SafetensorsWriter writer;
  mha::io::save_torch(layer, writer, "encoder.self_attn.");
  mha::MultiHead<float, 3> again(layer.config());
  mha::io::load_torch(again, mha::io::Safetensors::parse(writer.bytes()), "encoder.self_attn.");
  std::cout << "saved and loaded again, the layer answers the same: "
            << yes(again(x, mha::causal(), {.batch = batch}) == result.output) << "\n";
}
