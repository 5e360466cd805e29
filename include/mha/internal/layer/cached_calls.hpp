// SPDX-License-Identifier: MIT
//
// The layer's functions over caches, from their arguments to cached.hpp.
#pragma once

#include "mha/internal/call/call_form.hpp"
#include "mha/internal/layer/cached.hpp"
#include "mha/internal/layer/result.hpp"

namespace mha::inline MHA_ABI::detail {

/// What stands for a cache where a layer is called, but for a list.
template <class T>
concept IsCache = std::convertible_to<const T&, KvLayers>;

/// The types of a call over caches.
template <class Layer, class A, class R, class O>
void check_cached_types() {
  static_assert(EigenDense<A> && std::is_same_v<typename A::Scalar, typename Layer::Scalar>,
                "mha: with caches a layer takes x, an Eigen matrix of its Scalar, then the caches");
  static_assert(
      IsRule<R>,
      "mha: with caches the rule must be said: causal(), or all() if every query may attend "
      "to every key");
  static_assert(std::is_same_v<O, typename Layer::Options>,
                "mha: what follows the rule are options, or nothing");
}

/// x as the layer reads it, checked.
template <class Scalar>
CheckedMatrix<const Scalar> check_cached_input(const char* where, const char* name,
                                               const MatrixView<const Scalar>& x,
                                               const char* width_name, Index width) {
  require(x.cols == width, where, ": ", name, ".cols() must equal ", width_name, ", got ", x.cols,
          " and ", width);
  return checked(where, name, x);
}

/// The checks of self-attention, whose queries, keys and values come from x.
/// @param output  of yours; null if the result has its own
template <class Scalar>
SequenceBatch check_cached_call(const char* where, const LayerView<Scalar>& layer,
                                const MatrixView<const Scalar>& x, const KvLayers& caches,
                                const LayerRules<accumulator_t<Scalar>>& rules,
                                const MultiHeadOptions& options, bool appends,
                                const MatrixView<Scalar>* output) {
  const MultiHeadConfig& c = layer.config;
  require(!appends || (c.kdim == c.embed_dim && c.vdim == c.embed_dim), where,
          ": keys and values come from x, so kdim and vdim must equal embed_dim, got ", c.kdim,
          ", ", c.vdim, " and ", c.embed_dim);
  const auto placed = check_cached_input(where, "x", x, "embed_dim", c.embed_dim);
  check_parameters(where, layer);
  const CachedPass<Scalar> pass(where, layer, caches, options);
  const SequenceBatch batch = pass.check_sequences(x.rows, appends);
  pass.check_rule(rules, batch, x.rows, appends);
  if (output == nullptr) return batch;
  check_output(where, layer, *output, {batch, placed, placed, placed});
  check_output_alone(where, options);
  return batch;
}

/// Those of append().
template <class Scalar>
SequenceBatch check_cached_context(const char* where, const LayerView<Scalar>& layer,
                                   const LayerInputs<Scalar>& inputs, const KvLayers& caches,
                                   const MultiHeadOptions& options) {
  (void)check_cached_input(where, "key", inputs.key, "kdim", layer.config.kdim);
  (void)check_cached_input(where, "value", inputs.value, "vdim", layer.config.vdim);
  check_parameters(where, layer);
  require(inputs.value.rows == inputs.key.rows, where,
          ": value.rows() must equal key.rows() (kv_len), got ", inputs.value.rows, " and ",
          inputs.key.rows);
  const CachedPass<Scalar> pass(where, layer, caches, options);
  SequenceBatch batch = pass.check_sequences(inputs.key.rows, true);
  check_output_alone(where, options);
  batch.query_len = 0;  // nothing attends
  return batch;
}

/// CachedPass::compute(), and the memory that it takes.
template <class Scalar>
void compute_cached(const char* where, const LayerView<Scalar>& layer,
                    const LayerInputs<Scalar>& inputs, const KvLayers& caches,
                    const LayerRules<accumulator_t<Scalar>>& rules, const MultiHeadOptions& options,
                    const SequenceBatch& batch, const LayerOutputs<Scalar>& outputs) {
  CachedPass<Scalar>(where, layer, caches, options).compute(inputs, batch, rules, outputs);
}
template <class Scalar>
std::size_t cached_bytes(const char* where, const LayerView<Scalar>& layer, Index rows,
                         const KvLayers& caches, const MultiHeadOptions& options) {
  check_parameters(where, layer);
  return CachedPass<Scalar>(where, layer, caches, options).bytes(rows);
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_CACHED(T)                                                                     \
  MHA_COMPILED_TEMPLATE SequenceBatch check_cached_call(                                           \
      const char*, const LayerView<T>&, const MatrixView<const T>&, const KvLayers&,               \
      const LayerRules<T>&, const MultiHeadOptions&, bool, const MatrixView<T>*);                  \
  MHA_COMPILED_TEMPLATE SequenceBatch check_cached_context(const char*, const LayerView<T>&,       \
                                                           const LayerInputs<T>&, const KvLayers&, \
                                                           const MultiHeadOptions&);               \
  MHA_COMPILED_TEMPLATE void compute_cached(const char*, const LayerView<T>&,                      \
                                            const LayerInputs<T>&, const KvLayers&,                \
                                            const LayerRules<T>&, const MultiHeadOptions&,         \
                                            const SequenceBatch&, const LayerOutputs<T>&);         \
  MHA_COMPILED_TEMPLATE std::size_t cached_bytes(const char*, const LayerView<T>&, Index,          \
                                                 const KvLayers&, const MultiHeadOptions&);
MHA_COMPILED_CACHED(float)
MHA_COMPILED_CACHED(double)
#undef MHA_COMPILED_CACHED
#endif

template <class Layer, class A, class R, class O>
typename Layer::Result cached_result(const char* where, const Layer& self, const A& argument,
                                     const KvLayers& caches, const R& rule, const O& options,
                                     bool appends) {
  check_cached_types<Layer, A, R, O>();
  using View = MatrixView<const typename Layer::Scalar>;
  const Argument<A> x_argument(argument);
  const View x = x_argument.view();
  decltype(auto) rules = as_rules(rule);
  const auto any = layer_rules<typename Layer::Acc>(rules);
  const auto layer = layer_view(self);
  const SequenceBatch batch = check_cached_call(where, layer, x, caches, any, options, appends, {});
  LayerResult<typename Layer::Result> result(layer.config, x.rows, batch, options);
  const View key = appends ? x : View{nullptr, 0, layer.config.kdim};
  const View value = appends ? x : View{nullptr, 0, layer.config.vdim};
  compute_cached(where, layer, {x, key, value}, caches, any, options, batch, result.outputs());
  return result.finish();
}

template <class Layer, class A, class R, class O>
void cached_into(const char* where, const Layer& self,
                 const MatrixView<typename Layer::Scalar>& output, const A& argument,
                 const KvLayers& caches, const R& rule, const O& options) {
  check_cached_types<Layer, A, R, O>();
  const Argument<A> x_argument(argument);
  const MatrixView<const typename Layer::Scalar> x = x_argument.view();
  decltype(auto) rules = as_rules(rule);
  const auto any = layer_rules<typename Layer::Acc>(rules);
  const auto layer = layer_view(self);
  const SequenceBatch batch =
      check_cached_call(where, layer, x, caches, any, options, true, &output);
  compute_cached(where, layer, {x, x, x}, caches, any, options, batch, {output});
}

template <class Layer, class K, class V>
void cached_append(const char* where, const Layer& self, const K& key_argument,
                   const V& value_argument, const KvLayers& caches,
                   const typename Layer::Options& options) {
  using Scalar = typename Layer::Scalar;
  static_assert(
      std::is_same_v<typename K::Scalar, Scalar> && std::is_same_v<typename V::Scalar, Scalar>,
      "mha: the arguments of MultiHead must have its Scalar");
  const Argument<K> k_argument(key_argument);
  const Argument<V> v_argument(value_argument);
  const auto layer = layer_view(self);
  const LayerInputs<Scalar> inputs{
      {nullptr, 0, layer.config.embed_dim}, k_argument.view(), v_argument.view()};
  const SequenceBatch batch = check_cached_context(where, layer, inputs, caches, options);
  const All nothing{};
  compute_cached(where, layer, inputs, caches, layer_rules<typename Layer::Acc>(nothing), options,
                 batch, {});
}

}  // namespace mha::detail
