// SPDX-License-Identifier: MIT
//
// Reads the parameters of the Universal Sentence Encoder lite from its safetensors files.
#pragma once

#include <mha/io/safetensors.hpp>
#include <mha/types.hpp>
#include <string>

namespace examples {

/// A vector of the file as a row, as biases and gains are used.
inline mha::RowVector<float> row(const mha::io::Safetensors& file, const std::string& name) {
  return file.vector<float>(name).transpose();
}

/// Fills an mha::MultiHead with the tensors prefix + "wq", "bq", ... of the file. Their matrices
/// are out x in, the layer's in x out.
template <class Layer>
void load_attention(Layer& layer, const mha::io::Safetensors& file, const std::string& prefix) {
  const auto load = [&](auto& projection, const std::string& name) {
    projection.weight = file.matrix<float>(prefix + "w" + name).transpose();
    projection.bias = row(file, prefix + "b" + name);
  };
  load(layer.q_proj, "q");
  load(layer.k_proj, "k");
  load(layer.v_proj, "v");
  load(layer.out_proj, "o");
}

}  // namespace examples
