// SPDX-License-Identifier: MIT
//
// Optional: parameters of PyTorch's nn.MultiheadAttention, from and to safetensors files, under the
// names of its state_dict (after a prefix such as "encoder.layers.0.self_attn."):
//     in_proj_weight                                 [3E, E], Wq over Wk over Wv ("packed")
//     q_proj_weight, k_proj_weight, v_proj_weight    or [E, E], [E, kdim], [E, vdim] ("separate")
//     in_proj_bias                                   [3E], in both cases
//     out_proj.weight, out_proj.bias                 [E, E], [E]
//     bias_k, bias_v                                 [1, 1, E]
// PyTorch stores outputs x inputs (y = x W^T + b); here a weight is inputs x outputs, so all are
// transposed. Grouped heads and other widths, which PyTorch's layer lacks, are stored by the same
// rules with the layer's own widths. In Python: safetensors.torch.save_file(layer.state_dict(),
// "layer.safetensors").
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/io/safetensors.hpp>
#include <mha/multi_head.hpp>

#include <string>
#include <vector>

namespace mha::inline MHA_ABI::io {

/// How the three input projections are stored.
enum class TorchWeights {
  automatic,  ///< packed where PyTorch packs: key and value are embed_dim wide; else separate
  packed,     ///< one in_proj_weight
  separate,   ///< q_proj_weight, k_proj_weight, v_proj_weight
};

namespace detail {

[[noreturn]] inline void fail_torch(const Safetensors& file, const std::string& problem) {
  mha::detail::fail<std::runtime_error>("mha::io::load_torch: " + file.path() + ": " + problem);
}

/// Fails unless the file has `name` with this shape.
inline void check_torch(const Safetensors& file, const std::string& name,
                        const std::vector<Index>& shape) {
  if (!file.contains(name)) fail_torch(file, "expected a tensor " + name + ", got none");
  const std::vector<Index>& got = file.tensor(name).shape;
  if (got != shape) {
    fail_torch(file,
               name + " must have the shape " + shape_text(shape) + ", got " + shape_text(got));
  }
}

/// Fails if the file has `name`, for which the layer has no place.
inline void check_absent(const Safetensors& file, const std::string& name, const char* option) {
  if (file.contains(name)) {
    fail_torch(file, name + " is in the file, but the layer was made without " + option);
  }
}

/// The widths of the stored rows: outputs of q, k and v.
template <class Layer>
std::vector<Index> input_outputs(const Layer& layer) {
  return {layer.q_proj.outputs(), layer.k_proj.outputs(), layer.v_proj.outputs()};
}

}  // namespace detail

/// The configuration of the layer whose parameters `file` holds under `prefix`. The number of heads
/// and add_zero_attn leave no trace in the parameters: give the first, set the second yourself.
/// @throws std::runtime_error if the parameters are not there
inline MultiHeadConfig torch_config(const Safetensors& file, Index num_heads,
                                    const std::string& prefix = "") {
  const auto width = [&](const std::string& name, std::size_t axis) {
    if (!file.contains(prefix + name)) {
      detail::fail_torch(file, "expected a tensor " + prefix + name + ", got none");
    }
    const std::vector<Index>& shape = file.tensor(prefix + name).shape;
    if (shape.size() != 2) {
      detail::fail_torch(
          file, prefix + name + " must have two axes, got the shape " + detail::shape_text(shape));
    }
    return shape[axis];
  };
  MultiHeadConfig config;
  config.num_heads = num_heads;
  const bool packed = file.contains(prefix + "in_proj_weight");
  config.embed_dim = width(packed ? "in_proj_weight" : "q_proj_weight", 1);
  if (!packed) {
    config.kdim = width("k_proj_weight", 1);
    config.vdim = width("v_proj_weight", 1);
  }
  config.out_dim = width("out_proj.weight", 0);
  config.bias = file.contains(prefix + "in_proj_bias");
  config.add_bias_kv = file.contains(prefix + "bias_k");
  return config;
}

/// Copies parameters from `file` into `layer`, converted to its Scalar, packed or separate as the
/// file has them. Other tensors of the file are left alone.
/// @throws std::runtime_error naming file, tensor and both shapes if one is missing, misshapen, or
/// has no
///         place in the layer (a bias for a layer made without); the layer is unchanged then
template <class Scalar, int Heads, int HeadDim>
void load_torch(MultiHead<Scalar, Heads, HeadDim>& layer, const Safetensors& file,
                const std::string& prefix = "") {
  const MultiHeadConfig& c = layer.config();
  const auto outputs = detail::input_outputs(layer);
  const Index all = outputs[0] + outputs[1] + outputs[2];
  const bool packed = file.contains(prefix + "in_proj_weight");

  // Check everything, then write.
  if (packed) {
    if (c.kdim != c.embed_dim || c.vdim != c.embed_dim) {
      detail::fail_torch(file, prefix +
                                   "in_proj_weight is packed, but the layer's kdim and vdim (" +
                                   std::to_string(c.kdim) + ", " + std::to_string(c.vdim) +
                                   ") are not its embed_dim (" + std::to_string(c.embed_dim) + ")");
    }
    detail::check_torch(file, prefix + "in_proj_weight", {all, c.embed_dim});
  } else {
    detail::check_torch(file, prefix + "q_proj_weight", {outputs[0], c.embed_dim});
    detail::check_torch(file, prefix + "k_proj_weight", {outputs[1], c.kdim});
    detail::check_torch(file, prefix + "v_proj_weight", {outputs[2], c.vdim});
  }
  detail::check_torch(file, prefix + "out_proj.weight", {c.out_dim, layer.out_proj.inputs()});
  if (c.bias) {
    detail::check_torch(file, prefix + "in_proj_bias", {all});
    detail::check_torch(file, prefix + "out_proj.bias", {c.out_dim});
  } else {
    detail::check_absent(file, prefix + "in_proj_bias", "bias");
    detail::check_absent(file, prefix + "out_proj.bias", "bias");
  }
  if (c.add_bias_kv) {
    detail::check_torch(file, prefix + "bias_k", {1, 1, outputs[1]});
    detail::check_torch(file, prefix + "bias_v", {1, 1, outputs[2]});
  } else {
    detail::check_absent(file, prefix + "bias_k", "add_bias_kv");
    detail::check_absent(file, prefix + "bias_v", "add_bias_kv");
  }

  if (packed) {
    const Matrix<Scalar> weights = file.template matrix<Scalar>(prefix + "in_proj_weight");
    layer.q_proj.weight = weights.topRows(outputs[0]).transpose();
    layer.k_proj.weight = weights.middleRows(outputs[0], outputs[1]).transpose();
    layer.v_proj.weight = weights.bottomRows(outputs[2]).transpose();
  } else {
    layer.q_proj.weight = file.template matrix<Scalar>(prefix + "q_proj_weight").transpose();
    layer.k_proj.weight = file.template matrix<Scalar>(prefix + "k_proj_weight").transpose();
    layer.v_proj.weight = file.template matrix<Scalar>(prefix + "v_proj_weight").transpose();
  }
  layer.out_proj.weight = file.template matrix<Scalar>(prefix + "out_proj.weight").transpose();
  if (c.bias) {
    const Vector<Scalar> bias = file.template vector<Scalar>(prefix + "in_proj_bias");
    layer.q_proj.bias = bias.head(outputs[0]).transpose();
    layer.k_proj.bias = bias.segment(outputs[0], outputs[1]).transpose();
    layer.v_proj.bias = bias.tail(outputs[2]).transpose();
    layer.out_proj.bias = file.template vector<Scalar>(prefix + "out_proj.bias").transpose();
  }
  if (c.add_bias_kv) {
    layer.bias_k = file.template vector<Scalar>(prefix + "bias_k").transpose();
    layer.bias_v = file.template vector<Scalar>(prefix + "bias_v").transpose();
  }
}

/// Adds the parameters of `layer` to a file to be written, as PyTorch's load_state_dict expects
/// them.
/// @throws std::invalid_argument if packed weights are asked of a layer whose kdim or vdim is not
/// embed_dim
template <class Scalar, int Heads, int HeadDim>
void save_torch(const MultiHead<Scalar, Heads, HeadDim>& layer, SafetensorsWriter& writer,
                const std::string& prefix = "", TorchWeights form = TorchWeights::automatic) {
  const MultiHeadConfig& c = layer.config();
  const auto outputs = detail::input_outputs(layer);
  const Index all = outputs[0] + outputs[1] + outputs[2];
  const bool one_width = c.kdim == c.embed_dim && c.vdim == c.embed_dim;
  mha::detail::require(form != TorchWeights::packed || one_width,
                       "io::save_torch: packed weights need kdim and vdim equal to embed_dim, got ",
                       c.kdim, ", ", c.vdim, " and ", c.embed_dim);
  if (form == TorchWeights::packed || (form == TorchWeights::automatic && one_width)) {
    Matrix<Scalar> weights(all, c.embed_dim);
    weights << layer.q_proj.weight.transpose(), layer.k_proj.weight.transpose(),
        layer.v_proj.weight.transpose();
    writer.add(prefix + "in_proj_weight", weights);
  } else {
    writer.add(prefix + "q_proj_weight", Matrix<Scalar>(layer.q_proj.weight.transpose()));
    writer.add(prefix + "k_proj_weight", Matrix<Scalar>(layer.k_proj.weight.transpose()));
    writer.add(prefix + "v_proj_weight", Matrix<Scalar>(layer.v_proj.weight.transpose()));
  }
  writer.add(prefix + "out_proj.weight", Matrix<Scalar>(layer.out_proj.weight.transpose()));
  if (c.bias) {
    Vector<Scalar> bias(all);
    bias << layer.q_proj.bias.transpose(), layer.k_proj.bias.transpose(),
        layer.v_proj.bias.transpose();
    writer.add(prefix + "in_proj_bias", bias);
    writer.add(prefix + "out_proj.bias", Vector<Scalar>(layer.out_proj.bias.transpose()));
  }
  if (c.add_bias_kv) {
    writer.add(prefix + "bias_k", layer.bias_k, {1, 1, outputs[1]});
    writer.add(prefix + "bias_v", layer.bias_v, {1, 1, outputs[2]});
  }
}

}  // namespace mha::io
