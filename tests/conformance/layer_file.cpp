// SPDX-License-Identifier: MIT
//
// A trained layer with the activations that entered and left it: x, wq bq wk bk wv bv wo bo as
// [out, in] (y = x W^T + b), perhaps x_kv (keys and values come from it), perhaps key_keep_mask
// (1 = keep), y and attn [batch, head, query, key]. One sequence has no batch axis. A file with
// "for_file" in its metadata has grad_y and the gradients of that file's x, x_kv and parameters.
#include <cstdint>
#include <cstdlib>
#include <optional>

#include "case.hpp"
#include "mha/multi_head.hpp"

namespace mha::conformance {
namespace {

constexpr double kOutputTolerance = 2e-6;  // times the largest |y|
constexpr double kWeightTolerance = 1e-5;
// Of a gradient, times its largest entry; that of bk is 0 in theory, a sum of numbers of bq's size.
constexpr double kGradientTolerance = 2e-6;

struct LayerMask {
  Array<bool> keep{{1, 1, 1, 1}, true};
  std::optional<std::vector<Index>> lengths;  ///< if it keeps the first keys of each sequence
};

LayerMask read_mask(Case& c) {
  LayerMask mask;
  if (!c.has("key_keep_mask")) return mask;
  mask.keep = c.read<bool>("key_keep_mask");
  const Index keys = mask.keep.columns();
  mask.keep.shape = {mask.keep.rows().rows(), 1, 1, keys};
  mask.lengths.emplace();
  for (Index b = 0; b < mask.keep.size(0); ++b) {
    const auto row = mask.keep.rows().row(b);
    const Index n = row.count();
    if (!row.head(n).all()) {
      mask.lengths.reset();
      break;
    }
    mask.lengths->push_back(n);
  }
  return mask;
}

/// Weight and bias of one projection; without a bias tensor the layer has none there.
template <class Linear>
void read_projection(Case& c, const std::string& which, Linear& linear) {
  linear.weight = c.read<float>("w" + which).rows().transpose();
  linear.bias.resize(0);
  if (c.has("b" + which)) linear.bias = c.read<float>("b" + which).values.transpose();
}

double largest(const Array<float>& x) {
  return x.values.size() == 0 ? 0 : static_cast<double>(x.values.cwiseAbs().maxCoeff());
}

using Layer = MultiHead<float, Eigen::Dynamic>;

/// Where keys and values come from, if not from x.
std::optional<Array<float>> read_context(Case& c, const Array<float>& x) {
  if (x.rank() != 2 && x.rank() != 3) throw std::runtime_error("x must have rank 2 or 3");
  if (!c.has("x_kv")) return std::nullopt;
  Array<float> x_kv = c.read<float>("x_kv");
  if (x_kv.rank() != x.rank() || (x.rank() == 3 && x_kv.size(0) != x.size(0))) {
    throw std::runtime_error("x_kv must have the rank and the batch of x " + shape_text(x.shape) +
                             ", got " + shape_text(x_kv.shape));
  }
  return x_kv;
}

/// The layer with the widths and the parameters of the file.
Layer read_layer(Case& c, const Array<float>& x, const std::optional<Array<float>>& x_kv) {
  const auto number = [&](const std::string& key) {
    const std::string text = c.metadata(key, "0");
    const auto value = static_cast<Index>(std::strtoll(text.c_str(), nullptr, 10));
    if (value >= 1 && std::to_string(value) == text) return value;
    throw std::runtime_error(key + ": expected a number of at least 1, got \"" + text + "\"");
  };
  MultiHeadConfig config;
  config.embed_dim = x.columns();
  if (x_kv) config.kdim = config.vdim = x_kv->columns();
  config.num_heads = number("heads");
  config.head_dim = number("head_dim");
  config.kv_heads = c.shape("wk").at(0) / config.head_dim;
  if (config.kv_heads == 0) throw std::runtime_error("wk has fewer rows than head_dim");
  config.value_dim = c.shape("wv").at(0) / config.kv_heads;
  config.out_dim = c.shape("wo").at(0);
  Layer layer(config);
  read_projection(c, "q", layer.q_proj);
  read_projection(c, "k", layer.k_proj);
  read_projection(c, "v", layer.v_proj);
  read_projection(c, "o", layer.out_proj);
  const std::string scale = c.metadata("scale");
  if (!scale.empty() && scale != "1/sqrt(" + std::to_string(config.head_dim) + ")") {
    throw std::runtime_error("the scale " + scale + " is not known");
  }
  return layer;
}

void check_gradients(Case& c, Case& of) {
  const Array<float> x = of.read<float>("x");
  const std::optional<Array<float>> x_kv = read_context(of, x);
  const Layer layer = read_layer(of, x, x_kv);
  if (of.metadata("causal", "0") != "0" || of.has("key_keep_mask") || x.rank() != 2) {
    throw std::runtime_error("expected one sequence without a mask");
  }
  const Array<float> grad_y = c.read<float>("grad_y");
  const Matrix<float> rows = x.rows();
  const Matrix<float> context = x_kv ? Matrix<float>(x_kv->rows()) : Matrix<float>();
  TrainingPass<Layer> pass;
  if (x_kv) {
    layer.forward_training(pass, rows, context);
  } else {
    layer.forward_training(pass, rows);
  }
  MultiHeadGradients<Layer> gradients(layer);
  layer.backward(gradients, pass, Matrix<float>(grad_y.rows()));
  double biases = 0;
  const auto check = [&](const std::string& name, const Matrix<float>& gradient, double size) {
    Array<float> got(c.shape(name));
    if (got.values.size() != gradient.size()) throw std::runtime_error(name + ": another size");
    got.values = Eigen::Map<const Vector<float>>(gradient.data(), gradient.size());
    c.check(name, got, "no rule", kGradientTolerance * size);
  };
  const auto check_own = [&](const std::string& name, const Matrix<float>& gradient) {
    check(name, gradient, largest(c.read<float>(name)));
  };
  check_own("grad_x", gradients.query);
  if (x_kv) check_own("grad_x_kv", gradients.key);
  check_own("grad_wq", gradients.q_proj.weight.transpose());
  check_own("grad_wk", gradients.k_proj.weight.transpose());
  check_own("grad_wv", gradients.v_proj.weight.transpose());
  check_own("grad_wo", gradients.out_proj.weight.transpose());
  check_own("grad_bq", gradients.q_proj.bias);
  check_own("grad_bv", gradients.v_proj.bias);
  check_own("grad_bo", gradients.out_proj.bias);
  biases = std::max(largest(c.read<float>("grad_bq")), largest(c.read<float>("grad_bv")));
  check("grad_bk", gradients.k_proj.bias, biases);
}

}  // namespace

void run_layer_file(Case& c) {
  if (const std::string name = c.metadata("for_file"); !name.empty()) {
    const std::string folder = c.path().substr(0, c.path().find_last_of('/') + 1);
    Case of(folder + name);
    return check_gradients(c, of);
  }
  const Array<float> x = c.read<float>("x");
  const std::optional<Array<float>> x_kv = read_context(c, x);
  const Layer layer = read_layer(c, x, x_kv);
  const std::string causal_text = c.metadata("causal", "0");
  if (causal_text != "0" && causal_text != "1") throw std::runtime_error("causal must be 0 or 1");
  const bool is_causal = causal_text == "1";

  const LayerMask mask = read_mask(c);
  MultiHeadOptions options;
  options.batch = x.rank() == 3 ? x.size(0) : 1;
  options.need_weights = c.has("attn");
  const auto forward = [&](const auto& rule) {
    return x_kv ? layer.forward(x.rows(), x_kv->rows(), rule, options)
                : layer.forward(x.rows(), rule, options);
  };
  const auto check_by = [&](const std::string& way, const auto& rule) {
    const auto result = is_causal ? forward(causal() & rule) : forward(rule);
    Array<float> y(x.shape);
    y.shape.back() = layer.config().out_dim;
    y.values = Eigen::Map<const Vector<float>>(result.output.data(), result.output.size());
    for (const char* expected : {"y", "y_ort"}) {
      if (!c.has(expected)) continue;
      c.check(expected, y, way, kOutputTolerance * largest(c.read<float>(expected)));
    }
    if (!options.need_weights) return;
    Array<float> weights = rounded<float>(result.weights);
    if (x.rank() == 2) weights.shape.erase(weights.shape.begin());
    c.check("attn", weights, way, kWeightTolerance);
  };
  check_by("keep(mask)", keep(std::as_const(mask.keep).view()));
  if (mask.lengths) check_by("lengths(n)", lengths(*mask.lengths));
  if (!c.has("key_keep_mask")) check_by("no rule", All());
}

}  // namespace mha::conformance
