// SPDX-License-Identifier: MIT
#include "torch_layer.hpp"

#include "mha/io/torch.hpp"

namespace mha::conformance {
namespace {

/// Calls forward() in the form that the sharing of query, key and value stands for.
template <class Scalar, class RuleType>
MultiHeadResult<Scalar> forward_shared(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                       const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                       const RuleType& rule, const MultiHeadOptions& options) {
  if (key == nullptr) return layer.forward(query, rule, options);
  if (value == nullptr) return layer.forward(query, *key, rule, options);
  return layer.forward(query, *key, *value, rule, options);
}

/// The backward pass in the same form.
template <class Scalar, class RuleType>
TorchGradients<Scalar> backward_shared(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                       const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                       const RuleType& rule, MultiHeadOptions options,
                                       const Matrix<Scalar>& grad_output) {
  options.need_weights = options.average_weights = false;
  TrainingPass<TorchLayer<Scalar>> pass;
  if (key == nullptr) {
    layer.forward_training(pass, query, rule, options);
  } else if (value == nullptr) {
    layer.forward_training(pass, query, *key, rule, options);
  } else {
    layer.forward_training(pass, query, *key, *value, rule, options);
  }
  TorchGradients<Scalar> gradients(layer);
  layer.backward(gradients, pass, grad_output, rule, options);
  return gradients;
}

/// Calls f with the masks in short, if there is a short way.
template <class Masks, class F>
void with_short_rule(const Masks& masks, const F& f) {
  const auto in_short = masks.in_short();
  if (!in_short) return;
  if (in_short->causal && !in_short->lengths.empty()) {
    f(causal() & lengths(in_short->lengths));
  } else if (in_short->causal) {
    f(causal());
  } else if (!in_short->lengths.empty()) {
    f(lengths(in_short->lengths));
  } else {
    f(All());
  }
}

/// PyTorch's order: outputs x inputs.
template <class Acc>
Array<Acc> transposed(const Matrix<Acc>& weight) {
  Array<Acc> result({weight.cols(), weight.rows()});
  result.rows() = weight.transpose();
  return result;
}

}  // namespace

TokenLayout::TokenLayout(const std::string& name) {
  if (name == "BNE") {
    batch_axis_ = 0;
    token_axis_ = 1;
  } else if (name == "NBE") {
    batch_axis_ = 1;
    token_axis_ = 0;
  } else if (name != "NE") {
    throw std::runtime_error("expected the layout BNE, NBE or NE, got \"" + name + "\"");
  }
}

template <class Scalar>
TorchMasks<Scalar>::TorchMasks(Case& c, const std::string& attn_mask,
                               const std::string& key_padding_mask, Index num_heads) {
  const auto read = [&](const std::string& name, Mask& mask, const auto& sizes) {
    mask.given = c.has(name);
    if (!mask.given) return;
    if (c.dtype(name) == "BOOL") {
      mask.blocked = c.read<bool>(name);
      mask.blocked.shape = sizes(mask.blocked.shape);
    } else {
      mask.added = c.read<Scalar>(name);
      mask.added.shape = sizes(mask.added.shape);
    }
  };
  read(attn_mask, pairs_, [&](const Shape& s) -> Shape {
    if (s.size() == 2) return {1, 1, s[0], s[1]};
    if (s.size() == 3 && s[0] % num_heads == 0) return {s[0] / num_heads, num_heads, s[1], s[2]};
    throw std::runtime_error("attn_mask: expected (Nq, Nk) or (N*H, Nq, Nk)");
  });
  read(key_padding_mask, keys_, [&](const Shape& s) -> Shape {
    if (s.size() == 1) return {1, 1, 1, s[0]};
    if (s.size() == 2) return {s[0], 1, 1, s[1]};
    throw std::runtime_error("key_padding_mask: expected (N, Nk) or (Nk)");
  });
}

template <class Scalar>
std::optional<bool> TorchMasks<Scalar>::Mask::allows(Index b, Index i, Index j) const {
  if (blocked.values.size() > 1) return !blocked.view()(b, 0, i, j);
  if (added.values.size() == 1) return std::nullopt;  // too small to tell which of the two it is
  const double number = to_double(added.view()(b, 0, i, j));
  if (number == -std::numeric_limits<double>::infinity()) return false;
  if (number == 0) return true;
  return std::nullopt;
}

template <class Scalar>
auto TorchMasks<Scalar>::in_short() const -> std::optional<Short> {
  Short result;
  const auto shape = [](const Mask& mask) {
    return mask.blocked.values.size() > 1 ? mask.blocked.shape : mask.added.shape;
  };
  if (pairs_.given) {
    const Shape s = shape(pairs_);
    if (s[0] != 1 || s[1] != 1) return std::nullopt;
    result.causal = true;
    for (Index i = 0; i < s[2]; ++i) {
      for (Index j = 0; j < s[3]; ++j) {
        if (pairs_.allows(0, i, j) != (j <= i)) return std::nullopt;
      }
    }
  }
  if (keys_.given) {
    const Shape s = shape(keys_);
    for (Index b = 0; b < s[0]; ++b) {
      Index n = 0;
      while (n < s[3] && keys_.allows(b, 0, n).value_or(false)) ++n;
      result.lengths.push_back(n);
      for (; n < s[3]; ++n) {
        if (keys_.allows(b, 0, n).value_or(true)) return std::nullopt;
      }
    }
  }
  return result;
}

template <class Scalar>
void read_parameters(Case& c, const std::string& prefix, TorchLayer<Scalar>& layer) {
  io::load_torch(layer, c.file(), prefix);
  std::vector<std::string> names{"in_proj_bias", "out_proj.weight", "out_proj.bias", "bias_k",
                                 "bias_v"};
  if (c.has(prefix + "in_proj_weight")) {
    names.emplace_back("in_proj_weight");
  } else {
    names.insert(names.end(), {"q_proj_weight", "k_proj_weight", "v_proj_weight"});
  }
  for (const std::string& name : names) c.mark_read(prefix + name);
}

template <class Scalar>
MultiHeadResult<Scalar> forward(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                const TorchMasks<Scalar>& masks, const MultiHeadOptions& options) {
  return forward_shared(layer, query, key, value, masks.rule(), options);
}

template <class Scalar>
std::optional<MultiHeadResult<Scalar>> forward_short(
    const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query, const Matrix<Scalar>* key,
    const Matrix<Scalar>* value, const TorchMasks<Scalar>& masks, const MultiHeadOptions& options) {
  std::optional<MultiHeadResult<Scalar>> result;
  with_short_rule(masks, [&](const auto& rule) {
    result = forward_shared(layer, query, key, value, rule, options);
  });
  return result;
}

template <class Scalar>
TorchGradients<Scalar> backward(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                const TorchMasks<Scalar>& masks, const MultiHeadOptions& options,
                                const Matrix<Scalar>& grad_output) {
  return backward_shared(layer, query, key, value, masks.rule(), options, grad_output);
}

template <class Scalar>
std::optional<TorchGradients<Scalar>> backward_short(
    const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query, const Matrix<Scalar>* key,
    const Matrix<Scalar>* value, const TorchMasks<Scalar>& masks, const MultiHeadOptions& options,
    const Matrix<Scalar>& grad_output) {
  std::optional<TorchGradients<Scalar>> result;
  with_short_rule(masks, [&](const auto& rule) {
    result = backward_shared(layer, query, key, value, rule, options, grad_output);
  });
  return result;
}

template <class Scalar>
void check_parameter_gradients(Case& c, const std::string& prefix,
                               const TorchGradients<Scalar>& gradients, const std::string& way) {
  using Acc = accumulator_t<Scalar>;
  const auto name = [&](const char* parameter) { return "grad." + prefix + parameter; };
  const auto inputs = {&gradients.q_proj, &gradients.k_proj, &gradients.v_proj};
  if (c.has(name("in_proj_weight"))) {
    Array<Acc> stacked({3 * gradients.q_proj.outputs(), gradients.q_proj.inputs()});
    Index row = 0;
    for (const auto* linear : inputs) {
      stacked.rows().middleRows(row, linear->outputs()) = linear->weight.transpose();
      row += linear->outputs();
    }
    c.check(name("in_proj_weight"), stacked, way);
  } else {
    c.check(name("q_proj_weight"), transposed<Acc>(gradients.q_proj.weight), way);
    c.check(name("k_proj_weight"), transposed<Acc>(gradients.k_proj.weight), way);
    c.check(name("v_proj_weight"), transposed<Acc>(gradients.v_proj.weight), way);
  }
  c.check(name("out_proj.weight"), transposed<Acc>(gradients.out_proj.weight), way);
  const auto vector = [](const RowVector<Acc>& v, Shape shape) {
    Array<Acc> result(std::move(shape));
    result.values = v.transpose();
    return result;
  };
  if (c.has(name("in_proj_bias"))) {
    RowVector<Acc> stacked(3 * gradients.q_proj.outputs());
    Index column = 0;
    for (const auto* linear : inputs) {
      stacked.segment(column, linear->outputs()) = linear->bias;
      column += linear->outputs();
    }
    c.check(name("in_proj_bias"), vector(stacked, {stacked.size()}), way);
    c.check(name("out_proj.bias"),
            vector(gradients.out_proj.bias, {gradients.out_proj.bias.size()}), way);
  }
  if (c.has(name("bias_k"))) {
    c.check(name("bias_k"), vector(gradients.bias_k, {1, 1, gradients.bias_k.size()}), way);
    c.check(name("bias_v"), vector(gradients.bias_v, {1, 1, gradients.bias_v.size()}), way);
  }
}

// NOLINTBEGIN(bugprone-macro-parentheses): a type stands without them
#define MHA_INSTANTIATE(Scalar)                                                                 \
  template class TorchMasks<Scalar>;                                                            \
  template void read_parameters(Case&, const std::string&, TorchLayer<Scalar>&);                \
  template MultiHeadResult<Scalar> forward(const TorchLayer<Scalar>&, const Matrix<Scalar>&,    \
                                           const Matrix<Scalar>*, const Matrix<Scalar>*,        \
                                           const TorchMasks<Scalar>&, const MultiHeadOptions&); \
  template std::optional<MultiHeadResult<Scalar>> forward_short(                                \
      const TorchLayer<Scalar>&, const Matrix<Scalar>&, const Matrix<Scalar>*,                  \
      const Matrix<Scalar>*, const TorchMasks<Scalar>&, const MultiHeadOptions&);               \
  template TorchGradients<Scalar> backward(const TorchLayer<Scalar>&, const Matrix<Scalar>&,    \
                                           const Matrix<Scalar>*, const Matrix<Scalar>*,        \
                                           const TorchMasks<Scalar>&, const MultiHeadOptions&,  \
                                           const Matrix<Scalar>&);                              \
  template std::optional<TorchGradients<Scalar>> backward_short(                                \
      const TorchLayer<Scalar>&, const Matrix<Scalar>&, const Matrix<Scalar>*,                  \
      const Matrix<Scalar>*, const TorchMasks<Scalar>&, const MultiHeadOptions&,                \
      const Matrix<Scalar>&);                                                                   \
  template void check_parameter_gradients(Case&, const std::string&,                            \
                                          const TorchGradients<Scalar>&, const std::string&);
// NOLINTEND(bugprone-macro-parentheses)

MHA_INSTANTIATE(double)
MHA_INSTANTIATE(float)
MHA_INSTANTIATE(Eigen::half)
MHA_INSTANTIATE(Eigen::bfloat16)

}  // namespace mha::conformance
