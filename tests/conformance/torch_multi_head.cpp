// SPDX-License-Identifier: MIT
//
// PyTorch's nn.MultiheadAttention: output and weights, averaged or per head.
#include "torch_layer.hpp"

namespace mha::conformance {
namespace {

template <class Scalar>
void run(Case& c) {
  if (c.real("dropout", 0) != 0) throw std::runtime_error("dropout must be 0");
  MultiHeadConfig config;
  config.embed_dim = c.integer("embed_dim");
  config.num_heads = c.integer("num_heads");
  config.kdim = c.integer("kdim", config.embed_dim);
  config.vdim = c.integer("vdim", config.embed_dim);
  config.bias = c.flag("bias", true);
  config.add_bias_kv = c.flag("add_bias_kv", false);
  config.add_zero_attn = c.flag("add_zero_attn", false);
  TorchLayer<Scalar> layer(config);
  read_parameters(c, "", layer);

  // Inputs as rows, sequence after sequence.
  const std::string layout_name = c.metadata("layout");
  const TokenLayout layout(layout_name);
  const bool batch_first = c.flag("batch_first", false);
  if (layout.has_batch() && batch_first != (layout_name == "BNE")) {
    throw std::runtime_error("batch_first contradicts the layout");
  }
  const std::string sharing = c.metadata("sharing", "none");
  if (sharing != "none" && sharing != "kv" && sharing != "qkv") {
    throw std::runtime_error("sharing must be none, kv or qkv, got \"" + sharing + "\"");
  }
  const Array<Scalar> query = c.read<Scalar>("query");
  const Array<Scalar> key = sharing != "qkv" ? c.read<Scalar>("key") : query;
  const Matrix<Scalar> q = layout.rows(query);
  const Matrix<Scalar> k = layout.rows(key);
  const Matrix<Scalar> v = sharing == "none" ? layout.rows(c.read<Scalar>("value")) : k;

  const TorchMasks<Scalar> masks(c, "attn_mask", "key_padding_mask", config.num_heads);
  MultiHeadOptions options;
  options.batch = layout.batch(query.shape);
  options.need_weights = c.flag("need_weights", true);
  options.average_weights = c.flag("average_attn_weights", true);

  const auto check_result = [&](const MultiHeadResult<Scalar>& result, const std::string& way) {
    c.check("output", layout.array(result.output, options.batch), way);
    if (!options.need_weights) return;
    Array<Scalar> weights = rounded<Scalar>(result.weights);  // [batch, head, query, key]
    if (options.average_weights) weights.shape.erase(weights.shape.begin() + 1);
    if (!layout.has_batch()) weights.shape.erase(weights.shape.begin());
    c.check("attn_weights", weights, way);
  };
  const Matrix<Scalar>* const own_key = sharing == "qkv" ? nullptr : &k;
  const Matrix<Scalar>* const own_value = sharing == "none" ? &v : nullptr;
  check_result(forward(layer, q, own_key, own_value, masks, options), "ignore(m) & bias(m)");
  if (const auto result = forward_short(layer, q, own_key, own_value, masks, options)) {
    check_result(*result, "no rule, causal() or lengths(n)");
  }
  if (!c.has("grad_output")) return;
  const Matrix<Scalar> grad_output = layout.rows(c.read<Scalar>("grad_output"));
  const auto check_gradients = [&](const TorchGradients<Scalar>& gradients,
                                   const std::string& way) {
    c.check("grad.query", layout.array(gradients.query, options.batch), way);
    if (own_key != nullptr) c.check("grad.key", layout.array(gradients.key, options.batch), way);
    if (own_value != nullptr) {
      c.check("grad.value", layout.array(gradients.value, options.batch), way);
    }
    check_parameter_gradients<Scalar>(c, "", gradients, way);
  };
  check_gradients(backward(layer, q, own_key, own_value, masks, options, grad_output),
                  "ignore(m) & bias(m)");
  if (const auto gradients =
          backward_short(layer, q, own_key, own_value, masks, options, grad_output)) {
    check_gradients(*gradients, "no rule, causal() or lengths(n)");
  }
}

}  // namespace

void run_torch_multihead_attention(Case& c) {
  with_scalar(c.dtype("query"), [&]<class Scalar>() { run<Scalar>(c); });
}

}  // namespace mha::conformance
