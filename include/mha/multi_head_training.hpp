// SPDX-License-Identifier: MIT
//
// What training a MultiHead layer takes beside the layer: the gradients of its parameters and inputs, and what
// the forward pass leaves for the backward pass.
#pragma once

#include "mha/internal/support/language.hpp"

#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/memory.hpp"
#include "mha/projection.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// What a forward pass leaves behind.
template <class Scalar>
struct LayerRecord {
  using Acc = accumulator_t<Scalar>;

  PassOrigin origin;
  LayerInputs<Scalar> inputs;
  SequenceBatch batch;
  std::optional<LayerMemory<Acc>> memory;   ///< nothing if there are no rows at all
  Workspace block;                          ///< that it lies in,
  std::unique_ptr<OwnedMatrices<Acc>> own;  ///< or this
  Workspace scratch;
};

/// And memory for the way back.
template <class Scalar>
struct LayerTape : LayerRecord<Scalar> {
  using Acc = accumulator_t<Scalar>;

  Matrix<Acc> grad_output, grad_concat, grad_q, grad_k, grad_v;
  Matrix<Acc> grad_bias_k, grad_bias_v;  ///< of each sequence
};

}  // namespace detail

/// A named list of numbers: a parameter of a layer, or its gradient.
template <class Scalar>
struct Parameter {
  std::string_view name;  ///< "q_proj.weight", ...
  std::span<Scalar> values;
};

namespace detail {

template <class Holder>
auto parameters_of(Holder& holder) {
  using Scalar = std::remove_reference_t<decltype(*holder.bias_k.data())>;
  std::vector<Parameter<Scalar>> all;
  for_each_parameter(holder, [&](std::string_view name, auto& values) {
    if (values.size() == 0) return;
    all.push_back({name, {values.data(), static_cast<std::size_t>(values.size())}});
  });
  return all;
}

}  // namespace detail

/// The gradients of a layer's parameters and inputs, from MultiHead::backward().
template <class Layer>
struct MultiHeadGradients {
  using Scalar = typename Layer::Scalar;
  using Acc = typename Layer::Acc;
  using Linear = Projection<Acc, Layer::kWidth, Layer::kWidth>;

  Linear q_proj;  ///< like the layer's; added to by each backward pass
  Linear k_proj;
  Linear v_proj;
  Linear out_proj;
  RowVector<Acc> bias_k;
  RowVector<Acc> bias_v;

  // Of the last pass's inputs. What was one matrix has one gradient: of x in layer.forward(x) it is
  // `query`, of the context in forward(x, context) it is `key`.
  Matrix<Acc> query;
  Matrix<Acc> key;
  Matrix<Acc> value;

  MultiHeadGradients() = default;
  explicit MultiHeadGradients(const Layer& layer) {
    const auto like = [](Linear& gradient, const auto& linear) {
      gradient.resize(linear.weight.rows(), linear.weight.cols(), linear.has_bias());
    };
    like(q_proj, layer.q_proj);
    like(k_proj, layer.k_proj);
    like(v_proj, layer.v_proj);
    like(out_proj, layer.out_proj);
    bias_k.setZero(layer.bias_k.size());
    bias_v.setZero(layer.bias_v.size());
  }

  /// Before the next step of training.
  void set_zero() {
    detail::for_each_parameter(*this, [](std::string_view, auto& values) { values.setZero(); });
  }
  /// As layer.parameters(): the same names and sizes, in the same order.
  [[nodiscard]] std::vector<Parameter<Acc>> parameters() { return detail::parameters_of(*this); }

  /// What the passes see of it.
  friend detail::LayerGradientView<Acc> gradient_view(MultiHeadGradients& g) {
    using detail::memory_of;
    using detail::parameters_view;
    return {parameters_view(g.q_proj),   parameters_view(g.k_proj), parameters_view(g.v_proj),
            parameters_view(g.out_proj), memory_of(g.bias_k),       memory_of(g.bias_v),
            memory_of(g.query),          memory_of(g.key),          memory_of(g.value)};
  }
};

/// What MultiHead::forward_training() leaves for backward(). Use it again for the next step: calls of
/// the same sizes then allocate nothing of size. It refers to the inputs, which must live until then.
template <class Layer>
class TrainingPass {
 public:
  Matrix<typename Layer::Scalar> output;  ///< rows of query x out_dim

 private:
  friend Layer;
  detail::LayerTape<typename Layer::Scalar> tape_;
};

}  // namespace mha
