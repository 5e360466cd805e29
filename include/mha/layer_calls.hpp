// SPDX-License-Identifier: MIT
//
// The calls that a layer of multi-head attention answers, whoever holds its weights: MultiHead, in which they
// can be read, written and learned, and Inference, in which they lie as they are read fastest. Read first:
// multi_head.hpp, multi_head_config.hpp.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/call/call_form.hpp"
#include "mha/internal/layer/cached_calls.hpp"
#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/forward.hpp"
#include "mha/internal/layer/result.hpp"
#include "mha/internal/layer/sequences.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI {

/// What a layer's forward() returns.
template <class Scalar_>
struct MultiHeadResult {
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;

  Matrix<Scalar> output;  ///< rows of query x out_dim
  /// [batch, num_heads (1 if averaged), query_len, kv_len], if asked for; rows sum to 1 (less with
  /// sinks), or are all 0. In a ragged batch query_len and kv_len are those of the longest, and
  /// shorter sequences are padded with 0. add_bias_kv and add_zero_attn each append a column, behind
  /// the padding: the weight of bias_k stands in column kv_len, that of the key of zeros in the last
  /// one, for every sequence alike.
  Tensor<Acc> weights;
  Matrix<Acc> lse;  ///< rows of query x num_heads, if asked for
};

/// The base of the layers.
/// @tparam Layer  the class derived from it: its config() and its maps
template <class Layer, class Scalar_>
class LayerCalls {
 public:
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;
  using Options = MultiHeadOptions;
  using Result = MultiHeadResult<Scalar>;
  /// The default types of a call's last arguments, see call_form.hpp.
  template <class T>
  using Following = detail::Following<Options, T>;

  Index embed_dim() const noexcept { return self().config().embed_dim; }
  Index num_heads() const noexcept { return self().config().num_heads; }
  Index kv_heads() const noexcept { return self().config().kv_heads; }
  Index head_dim() const noexcept { return self().config().head_dim; }
  Index value_dim() const noexcept { return self().config().value_dim; }
  Index out_dim() const noexcept { return self().config().out_dim; }

  /// The forms of a call, which operator(), forward_into() and MultiHead::forward_training() have too:
  ///     forward(x)                    self-attention
  ///     forward(x, context)           cross-attention: queries from x, keys and values from context
  ///     forward(query, key, value)    general attention
  /// each followed by nothing, a rule, options, or a rule and options:
  ///     forward(x, causal())    forward(x, {.batch = 2})    forward(x, causal(), {.batch = 2})
  /// Inputs: any Eigen expressions, one token per row, sequence after sequence. The query has rows x
  /// embed_dim, the key rows x kdim, the value as many rows as the key x vdim.
  /// Rule: masks and score modifiers, joined by `&`; b, h, i, j count within the call's sequences.
  /// Options: a MultiHeadOptions, how rows form sequences, what to return, who computes.
  /// @throws std::invalid_argument if shapes disagree; nothing has been computed then
  /// Cost: 2 rows (inputs * outputs) flops per projection, and attention()'s; rows x (q + k + v +
  /// concat) scalars.
  template <class A, class B = Options, class C = Following<B>, class D = Following<C>,
            class E = Following<D>>
  requires(!detail::IsCache<B>) [[nodiscard]] Result
      forward(const A& a, const B& b = B{}, const C& c = C{}, const D& d = D{},
              const E& e = E{}) const {
    const Call<A, B, C, D, E> call(a, b, c, d, e);
    return forward_views({call.query(), call.key(), call.value()},
                         detail::layer_rules<Acc>(detail::as_rules(call.rule())), call.options());
  }

  /// The output of forward(), in each of its forms.
  template <class A, class B = Options, class C = Following<B>, class D = Following<C>,
            class E = Following<D>>
  requires(!detail::IsCache<B>) [[nodiscard]] Matrix<Scalar> operator()(
      const A& a, const B& b = B{}, const C& c = C{}, const D& d = D{}, const E& e = E{}) const {
    return forward(a, b, c, d, e).output;
  }

  /// The output of forward(), in each of its forms, written to memory of yours: any Eigen matrix,
  /// block or map of query.rows() x out_dim that shares no memory with query, key or value. With
  /// options.workspace nothing is allocated after the first call of a shape.
  /// @throws std::invalid_argument if shapes disagree, output overlaps an input, or weights or lse are
  ///         asked for; nothing has been written then
  template <EigenInMemory O, class A, class B = Options, class C = Following<B>,
            class D = Following<C>, class E = Following<D>>
  requires(!detail::IsCache<B>) void forward_into(O&& output, const A& a, const B& b = B{},
                                                  const C& c = C{}, const D& d = D{},
                                                  const E& e = E{}) const {
    static_assert(std::is_same_v<typename std::remove_cvref_t<O>::Scalar, Scalar>,
                  "mha: the output of MultiHead must have its Scalar");
    const Call<A, B, C, D, E> call(a, b, c, d, e);
    forward_views_into(matrix_view(output), {call.query(), call.key(), call.value()},
                       detail::layer_rules<Acc>(detail::as_rules(call.rule())), call.options());
  }

  /// The layer with caches, one for each sequence of x's rows: adds x's projected keys and values to them, and
  /// attends to all that they have. A prompt, a part of one and a single token are one and the same call:
  ///     y = layer.forward(x, s.layer(0), causal());
  ///     y = layer.forward(x, {s.layer(0), t.layer(0)}, causal(), {.sequences = {7, 1}});
  /// @param caches  a KvCache, a KvLayer, or a list of them, each of another sequence
  /// @param rule    required: mha::all() if every query may attend to every key. Queries stand behind the keys
  ///                that were there, for causal() and rotary alike
  /// @param options as ever; past_len and what is said of keys is the caches' own. Without `sequences` all have
  ///                as many rows. `positions` may be given for rows that are a tree of guesses
  /// In functions of yours, masks and biases row 0 is the call's first (of each sequence); so it is for dropout.
  /// window() and alibi() go by the row too, and know nothing of guesses.
  /// @throws std::invalid_argument if anything does not fit, std::length_error if a cache is full; no cache has
  ///         changed then, nor if a function of yours throws (a page that was shared may have been copied)
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Result forward(const A& x, const KvLayers& caches, const R& rule = R{},
                               const O& options = O{}) const {
    return detail::cached_result(Layer::kNames.forward, self(), x, caches, rule, options, true);
  }
  /// The output of forward() with caches.
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Matrix<Scalar> operator()(const A& x, const KvLayers& caches, const R& rule = R{},
                                          const O& options = O{}) const {
    return forward(x, caches, rule, options).output;
  }
  /// The same in memory of yours.
  template <EigenInMemory Y, class A, class R = Options, class O = Options>
  void forward_into(Y&& output, const A& x, const KvLayers& caches, const R& rule = R{},
                    const O& options = O{}) const {
    detail::cached_into(Layer::kNames.forward_into, self(), matrix_view(output), x, caches, rule,
                        options);
  }
  /// The two halves of it: append() adds keys and values of a context, attend() attends to what is there. For
  /// cross-attention the context is projected once. The last query of attend() stands at the last key, or, of more
  /// queries than keys, the first at the first.
  template <EigenDense A>
  void append(const A& context, const KvLayers& caches, const Options& options = {}) const {
    detail::cached_append(Layer::kNames.append, self(), context, context, caches, options);
  }
  template <EigenDense K, EigenDense V>
  void append(const K& key, const V& value, const KvLayers& caches,
              const Options& options = {}) const {
    detail::cached_append(Layer::kNames.append, self(), key, value, caches, options);
  }
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Result attend(const A& x, const KvLayers& caches, const R& rule = R{},
                              const O& options = O{}) const {
    return detail::cached_result(Layer::kNames.attend, self(), x, caches, rule, options, false);
  }

  /// Bytes of Workspace that a call of forward() or forward_into() needs. 0 for scalars that the
  /// kernels do not compute in: those calls allocate.
  /// @param query_rows, key_rows  of all sequences of the call
  /// @throws std::invalid_argument if they do not fit the options
  [[nodiscard]] std::size_t workspace_bytes(Index query_rows, Index key_rows,
                                            const Options& options = {}) const {
    return detail::layer_bytes(Layer::kNames.workspace_bytes, detail::layer_view(self()),
                               query_rows, key_rows, options);
  }
  /// The same of forward() and forward_into() with caches, append() and attend(): with as many keys as the caches have
  /// now, and those that the rows become. It grows with the keys.
  [[nodiscard]] std::size_t workspace_bytes(Index rows, const KvLayers& caches,
                                            const Options& options = {}) const {
    return detail::cached_bytes(Layer::kNames.workspace_bytes, detail::layer_view(self()), rows,
                                caches, options);
  }

 protected:
  template <class A, class B, class C, class D, class E>
  using Call =
      detail::LayerCall<Layer, std::remove_cvref_t<A>, std::remove_cvref_t<B>,
                        std::remove_cvref_t<C>, std::remove_cvref_t<D>, std::remove_cvref_t<E>>;

 private:
  friend Layer;
  // A part of its layer: not to be made or copied by itself.
  LayerCalls() = default;
  LayerCalls(const LayerCalls&) = default;
  LayerCalls& operator=(const LayerCalls&) = default;
  ~LayerCalls() = default;
  const Layer& self() const { return static_cast<const Layer&>(*this); }

  using Inputs = detail::LayerInputs<Scalar>;
  using AnyRules = detail::LayerRules<Acc>;

  Result forward_views(const Inputs& inputs, const AnyRules& rules, const Options& options) const {
    const auto layer = detail::layer_view(self());
    const detail::SequenceBatch batch =
        detail::check_call(Layer::kNames.forward, layer, inputs, rules, options).batch;
    detail::LayerResult<Result> result(layer.config, inputs.query.rows, batch, options);
    detail::compute_layer(layer, inputs, rules, options, batch, result.outputs());
    return result.finish();
  }

  void forward_views_into(const MatrixView<Scalar>& output, const Inputs& inputs,
                          const AnyRules& rules, const Options& options) const {
    constexpr const char* kWhere = Layer::kNames.forward_into;
    const auto layer = detail::layer_view(self());
    const auto call = detail::check_call(kWhere, layer, inputs, rules, options);
    detail::check_output(kWhere, layer, output, call);
    detail::check_output_alone(kWhere, options);
    detail::compute_layer(layer, inputs, rules, options, call.batch, {output});
  }
};

}  // namespace mha
