// SPDX-License-Identifier: MIT
//
// A layer as its passes see it, whoever holds its parameters: MultiHead, of any number of heads known at compile
// time or not, or Inference. Below it nothing is compiled once more for each class of layers.
#pragma once

#include "mha/internal/projection/linear_view.hpp"
#include "mha/internal/support/matrix_check.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI::detail {

template <class Scalar>
struct LayerView {
  const MultiHeadConfig& config;
  LinearView<Scalar> q_proj, k_proj, v_proj, out_proj;
  MatrixView<const Scalar> bias_k, bias_v;  ///< 1 x entries
};

template <class Layer>
LayerView<typename Layer::Scalar> layer_view(const Layer& layer MHA_LIFETIMEBOUND) {
  return {layer.config(),
          linear_view(layer.q_proj),
          linear_view(layer.k_proj),
          linear_view(layer.v_proj),
          linear_view(layer.out_proj),
          memory_of(layer.bias_k),
          memory_of(layer.bias_v)};
}

/// What a call of the layer reads.
template <class Scalar>
struct LayerInputs {
  MatrixView<const Scalar> query, key, value;
};

/// What a call writes; lse and weights may have no data.
template <class Scalar>
struct LayerOutputs {
  MatrixView<Scalar> output;
  MatrixView<accumulator_t<Scalar>> lse{};
  TensorView<accumulator_t<Scalar>> weights{};
};

/// The gradients of a layer's parameters, which are added to, and of its inputs, which are written.
template <class Acc>
struct LayerGradientView {
  LinearParameters<Acc> q_proj, k_proj, v_proj, out_proj;
  MatrixView<Acc> bias_k, bias_v;
  MatrixView<Acc> query, key, value;
};

/// f(name, matrix or vector) for every parameter of a layer, or of its gradients, in one order.
template <class Holder, class F>
void for_each_parameter(Holder& holder, const F& f) {
  f("q_proj.weight", holder.q_proj.weight);
  f("q_proj.bias", holder.q_proj.bias);
  f("k_proj.weight", holder.k_proj.weight);
  f("k_proj.bias", holder.k_proj.bias);
  f("v_proj.weight", holder.v_proj.weight);
  f("v_proj.bias", holder.v_proj.bias);
  f("out_proj.weight", holder.out_proj.weight);
  f("out_proj.bias", holder.out_proj.bias);
  f("bias_k", holder.bias_k);
  f("bias_v", holder.bias_v);
}

}  // namespace mha::detail
