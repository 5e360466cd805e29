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

#include <array>
#include <string>
#include <utility>
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
inline std::array<Index, 3> input_outputs(const MultiHeadConfig& c) {
  return {c.num_heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.value_dim};
}

}  // namespace detail

/// The configuration of the layer whose parameters `file` holds under `prefix`. The number of heads
/// and add_zero_attn leave no trace in the parameters: give the first, set the second yourself.
/// @throws std::runtime_error if the parameters are not there
inline MultiHeadConfig torch_config(const Safetensors& file, Index num_heads,
                                    const std::string& prefix = "") {
  mha::detail::require(
      num_heads >= 0 && num_heads <= mha::detail::kMaxSize,
      "io::torch_config: num_heads must lie between 0 (the layer's class says it) and ",
      mha::detail::kMaxSize, ", got ", num_heads);
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
  const auto outputs = detail::input_outputs(c);
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
  detail::check_torch(file, prefix + "out_proj.weight", {c.out_dim, c.num_heads * c.value_dim});
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
/// them: biases of 0 where one of the layer's has been taken away.
/// @throws std::invalid_argument if packed weights are asked of a layer whose kdim or vdim is not
/// embed_dim, a parameter was replaced by one of another shape, or a name is taken; nothing has been
/// added then
template <class Scalar, int Heads, int HeadDim>
void save_torch(const MultiHead<Scalar, Heads, HeadDim>& layer, SafetensorsWriter& writer,
                const std::string& prefix = "", TorchWeights form = TorchWeights::automatic) {
  const MultiHeadConfig& c = layer.config();
  const auto outputs = detail::input_outputs(c);
  const Index all = outputs[0] + outputs[1] + outputs[2];
  mha::detail::check_parameters("io::save_torch", mha::detail::layer_view(layer));
  mha::detail::require(form == TorchWeights::automatic || form == TorchWeights::packed ||
                           form == TorchWeights::separate,
                       "io::save_torch: form must be one of TorchWeights's, got ",
                       static_cast<int>(form));
  const bool one_width = c.kdim == c.embed_dim && c.vdim == c.embed_dim;
  mha::detail::require(form != TorchWeights::packed || one_width,
                       "io::save_torch: packed weights need kdim and vdim equal to embed_dim, got ",
                       c.kdim, ", ", c.vdim, " and ", c.embed_dim);
  SafetensorsWriter file;
  if (form == TorchWeights::packed || (form == TorchWeights::automatic && one_width)) {
    Matrix<Scalar> weights(all, c.embed_dim);
    weights << layer.q_proj.weight.transpose(), layer.k_proj.weight.transpose(),
        layer.v_proj.weight.transpose();
    file.add(prefix + "in_proj_weight", weights);
  } else {
    file.add(prefix + "q_proj_weight", Matrix<Scalar>(layer.q_proj.weight.transpose()));
    file.add(prefix + "k_proj_weight", Matrix<Scalar>(layer.k_proj.weight.transpose()));
    file.add(prefix + "v_proj_weight", Matrix<Scalar>(layer.v_proj.weight.transpose()));
  }
  file.add(prefix + "out_proj.weight", Matrix<Scalar>(layer.out_proj.weight.transpose()));
  if (c.bias || layer.q_proj.has_bias() || layer.k_proj.has_bias() || layer.v_proj.has_bias() ||
      layer.out_proj.has_bias()) {
    Vector<Scalar> bias = Vector<Scalar>::Zero(all);
    Vector<Scalar> out_bias = Vector<Scalar>::Zero(c.out_dim);
    const auto copy = [](const auto& linear, auto&& to) {
      if (linear.has_bias()) to = linear.bias.transpose();
    };
    copy(layer.q_proj, bias.head(outputs[0]));
    copy(layer.k_proj, bias.segment(outputs[0], outputs[1]));
    copy(layer.v_proj, bias.tail(outputs[2]));
    copy(layer.out_proj, out_bias);
    file.add(prefix + "in_proj_bias", bias);
    file.add(prefix + "out_proj.bias", out_bias);
  }
  if (c.add_bias_kv) {
    file.add(prefix + "bias_k", layer.bias_k, {1, 1, outputs[1]});
    file.add(prefix + "bias_v", layer.bias_v, {1, 1, outputs[2]});
  }
  writer.add(std::move(file));
}

}  // namespace mha::io
