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
template <class Layer, class View>
CheckedMatrix<const typename Layer::Scalar> check_cached_input(const char* where,
                                                               const Layer& layer, const char* name,
                                                               const View& x,
                                                               const char* width_name,
                                                               Index width) {
  require(x.cols == width, where, ": ", name, ".cols() must equal ", width_name, ", got ", x.cols,
          " and ", width);
  const auto placed = checked(where, name, x);
  check_parameters(where, layer);
  return placed;
}

/// Of self-attention: queries, keys and values come from x.
template <class Layer, class View>
CheckedMatrix<const typename Layer::Scalar> check_cached_x(const char* where, const Layer& layer,
                                                           const View& x, bool appends) {
  const MultiHeadConfig& c = layer.config();
  require(!appends || (c.kdim == c.embed_dim && c.vdim == c.embed_dim), where,
          ": keys and values come from x, so kdim and vdim must equal embed_dim, got ", c.kdim,
          ", ", c.vdim, " and ", c.embed_dim);
  return check_cached_input(where, layer, "x", x, "embed_dim", c.embed_dim);
}

template <class Layer, class A, class R, class O>
typename Layer::Result cached_result(const char* where, const Layer& layer, const A& argument,
                                     const KvLayers& caches, const R& rule, const O& options,
                                     bool appends) {
  check_cached_types<Layer, A, R, O>();
  const MultiHeadConfig& c = layer.config();
  const Argument<A> x_argument(argument);
  const MatrixView<const typename Layer::Scalar> x = x_argument.view();
  decltype(auto) rules = as_rules(rule);
  (void)check_cached_x(where, layer, x, appends);
  const CachedPass<Layer> pass(where, layer, caches, options);
  const SequenceBatch batch = pass.check_sequences(x.rows, appends);
  pass.check_rule(rules, batch, x.rows, appends);
  LayerResult<Layer> result(layer, x.rows, batch, options);
  const auto key = appends ? x : MatrixView<const typename Layer::Scalar>{nullptr, 0, c.kdim};
  const auto value = appends ? x : MatrixView<const typename Layer::Scalar>{nullptr, 0, c.vdim};
  pass.compute(x, key, value, batch, rules, result.output(), result.lse(), result.weights());
  return result.finish();
}

template <class Layer, class A, class R, class O>
void cached_into(const char* where, const Layer& layer,
                 const MatrixView<typename Layer::Scalar>& output, const A& argument,
                 const KvLayers& caches, const R& rule, const O& options) {
  check_cached_types<Layer, A, R, O>();
  const Argument<A> x_argument(argument);
  const MatrixView<const typename Layer::Scalar> x = x_argument.view();
  decltype(auto) rules = as_rules(rule);
  const auto placed = check_cached_x(where, layer, x, true);
  const CachedPass<Layer> pass(where, layer, caches, options);
  const SequenceBatch batch = pass.check_sequences(x.rows, true);
  pass.check_rule(rules, batch, x.rows, true);
  check_output(where, layer, output, {batch, placed, placed, placed});
  check_output_alone(where, options);
  Tensor<typename Layer::Acc> no_weights;
  pass.compute(x, x, x, batch, rules, output, {}, no_weights);
}

template <class Layer, class K, class V>
void cached_append(const char* where, const Layer& layer, const K& key_argument,
                   const V& value_argument, const KvLayers& caches,
                   const typename Layer::Options& options) {
  static_assert(std::is_same_v<typename K::Scalar, typename Layer::Scalar> &&
                    std::is_same_v<typename V::Scalar, typename Layer::Scalar>,
                "mha: the arguments of MultiHead must have its Scalar");
  using View = MatrixView<const typename Layer::Scalar>;
  const MultiHeadConfig& c = layer.config();
  const Argument<K> k_argument(key_argument);
  const Argument<V> v_argument(value_argument);
  const View key = k_argument.view();
  const View value = v_argument.view();
  (void)check_cached_input(where, layer, "key", key, "kdim", c.kdim);
  (void)check_cached_input(where, layer, "value", value, "vdim", c.vdim);
  require(value.rows == key.rows, where, ": value.rows() must equal key.rows() (kv_len), got ",
          value.rows, " and ", key.rows);
  const CachedPass<Layer> pass(where, layer, caches, options);
  SequenceBatch batch = pass.check_sequences(key.rows, true);
  check_output_alone(where, options);
  batch.query_len = 0;  // nothing attends
  Tensor<typename Layer::Acc> no_weights;
  pass.compute(View{nullptr, 0, c.embed_dim}, key, value, batch, All{}, {}, {}, no_weights);
}

}  // namespace mha::detail
