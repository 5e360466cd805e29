// SPDX-License-Identifier: MIT
//
// The backward pass of attention: the gradients of query, key and value, and of what rules have
// learned, from that of the output.
//     auto forward = mha::attention_forward(q, k, v, rule, {.need_lse = true});
//     auto grads = mha::attention_backward(grad_output, q, k, v, forward, rule);   // grads.query, ...
// After what they read, backward passes too take nothing, a rule, options, or a rule and options.
// The forward pass leaves output and lse behind, nothing of query_len x kv_len: weights are computed
// once more, tile by tile. The formulas are in reference/backward.hpp.
// Rules are differentiated where they can be: additive biases and ALiBi pass gradients on, and
// collect their own if given a place for it, bias(m, gradient), alibi(slopes, gradient),
// sinks(logits, gradient); softcap is undone; a score function is differentiated by dual numbers, or
// brings its derivative, score_mod(f, df). Masks hide what they hid.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/attention.hpp"
#include "mha/internal/call/batch_gradient.hpp"
#include "mha/internal/support/argument.hpp"

namespace mha::inline MHA_ABI {

/// What attention_backward() returns: gradients, each of the shape of what it belongs to.
template <class Scalar>
struct AttentionGradients {
  Tensor<Scalar> query;
  Tensor<Scalar> key;
  Tensor<Scalar> value;
};

/// Memory for them.
template <class Scalar>
struct AttentionGradientOutputs {
  TensorView<Scalar> query;
  TensorView<Scalar> key;
  TensorView<Scalar> value;
};

/// What scaled_dot_product_attention_backward() returns.
template <class Scalar>
struct HeadGradients {
  Matrix<Scalar> query;  ///< query_len x head_dim
  Matrix<Scalar> key;    ///< kv_len x head_dim
  Matrix<Scalar> value;  ///< kv_len x value_dim
};

namespace detail {

/// A view of what is only read, as AttentionOutputs has it.
template <class T>
auto writable(const T& result) {
  const auto view = tensor_view(result);
  TensorView<typename T::Scalar> same;
  same.data = const_cast<typename T::Scalar*>(view.data);
  same.sizes = view.sizes;
  same.strides = view.strides;
  return same;
}

/// The arguments of a backward pass but for the rule: views, whatever they came as.
template <class Scalar>
struct BackwardViews {
  TensorView<const Scalar> grad_output, query, key, value;
  AttentionOutputs<Scalar> forward;  ///< only read
};

inline constexpr Named kGradOutput = called("grad_output", kOutput);
inline constexpr Named kForwardOutput = called("forward.output", kOutput);
inline constexpr Named kForwardLse = called("forward.lse", kLse);
inline constexpr Named kGradQuery = called("gradients.query", kQuery);
inline constexpr Named kGradKey = called("gradients.key", kKey);
inline constexpr Named kGradValue = called("gradients.value", kValue);

/// Where the inputs of a backward pass lie.
struct BackwardRanges {
  InputRanges inputs;
  AddressRange grad_output, output, lse;
};

/// The checks of every backward entry over what is read.
template <class Scalar>
BackwardRanges check_backward(const char* where, const BackwardViews<Scalar>& x,
                              const ErasedRules<accumulator_t<Scalar>>& rules,
                              const AttentionOptions& options) {
  const auto [call, inputs] = check_attention<Scalar>(
      where, x.query, x.key, x.value, rules, options.past_len, options.box, Memory::needed, true);
  const std::array<Index, 4> out{call.batch, call.num_heads, call.query_len, x.value.size(3)};
  BackwardRanges ranges;
  ranges.inputs = inputs;
  ranges.grad_output = check_sizes(where, kGradOutput, x.grad_output, out);
  ranges.output = check_sizes(where, kForwardOutput, x.forward.output, out);
  ranges.lse = check_lse(where, kForwardLse.name, x.forward.lse,
                         {call.batch, call.num_heads, call.query_len, 1});
  // Each worker sums up the gradients of a head's keys and values, in a few places of this size.
  const double sums = (static_cast<double>(x.key.size(3)) + static_cast<double>(x.value.size(3))) *
                      static_cast<double>(call.kv_len) *
                      static_cast<double>(options.executor.concurrency());
  require(sums < 0x1p50, where,
          ": the sums of gradients, kv_len * (head_dim + value_dim) for each worker, must fit in "
          "memory, got ",
          call.kv_len, ", ", x.key.size(3), ", ", x.value.size(3), " and ",
          options.executor.concurrency(), " workers");
  return ranges;
}

/// The checks of what attention_backward_into() writes.
template <class Scalar>
void check_gradients(const char* where, const AttentionGradientOutputs<Scalar>& gradients,
                     const BackwardViews<Scalar>& x, const BackwardRanges& ranges) {
  const Placed<const Scalar> inputs[] = {{kQuery, x.query, ranges.inputs.query},
                                         {kKey, x.key, ranges.inputs.key},
                                         {kValue, x.value, ranges.inputs.value},
                                         {kGradOutput, x.grad_output, ranges.grad_output}};
  const Placed<Scalar> output{kForwardOutput, x.forward.output, ranges.output};
  const Placed<accumulator_t<Scalar>> lse{kForwardLse, x.forward.lse, ranges.lse};
  const Placed<Scalar> results[] = {
      {kGradQuery, gradients.query, check_sizes(where, kGradQuery, gradients.query, x.query.sizes)},
      {kGradKey, gradients.key, check_sizes(where, kGradKey, gradients.key, x.key.sizes)},
      {kGradValue, gradients.value,
       check_sizes(where, kGradValue, gradients.value, x.value.sizes)}};
  for (const Placed<Scalar>& result : results) {
    check_own_places(where, result);
    for (const Placed<const Scalar>& input : inputs) check_apart(where, result, input);
    check_apart(where, result, output);
    check_apart(where, result, lse);
    for (const Placed<Scalar>* other = results; other != &result; ++other) {
      check_apart(where, result, *other);
    }
  }
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_GRADIENTS(T)                                                             \
  MHA_COMPILED_TEMPLATE BackwardRanges check_backward(                                        \
      const char*, const BackwardViews<T>&, const ErasedRules<T>&, const AttentionOptions&);  \
  MHA_COMPILED_TEMPLATE void check_gradients(const char*, const AttentionGradientOutputs<T>&, \
                                             const BackwardViews<T>&, const BackwardRanges&);
MHA_COMPILED_GRADIENTS(float)
MHA_COMPILED_GRADIENTS(double)
#undef MHA_COMPILED_GRADIENTS
#endif

/// A backward pass whose arguments have been checked.
template <class Scalar>
void run_backward(const AttentionGradientOutputs<Scalar>& gradients, const BackwardViews<Scalar>& x,
                  const CallGradientRules<Scalar>& rules, const AttentionOptions& options) {
  const BatchTask<Scalar> task{x.query, x.key,         x.value,           x.forward.output,
                               {},      x.forward.lse, &options.past_len, options.box};
  rules.backward({task, x.grad_output, gradients.query, gradients.key, gradients.value},
                 options.executor, options.workspace);
}

/// attention_backward_into() but for the types.
template <class Scalar>
void backward_into(const AttentionGradientOutputs<Scalar>& gradients,
                   const BackwardViews<Scalar>& x, const CallGradientRules<Scalar>& rules,
                   const AttentionOptions& options) {
  constexpr const char* kWhere = "attention_backward_into";
  check_gradients(kWhere, gradients, x, check_backward(kWhere, x, rules, options));
  run_backward(gradients, x, rules, options);
}

/// With gradients of its own: make() gives their views, when all has been checked.
template <class Scalar, class Make>
void backward_with(const char* where, const BackwardViews<Scalar>& x,
                   const CallGradientRules<Scalar>& rules, const AttentionOptions& options,
                   const Make& make) {
  (void)check_backward(where, x, rules, options);
  check_count(where, "the gradient of query", x.query.sizes, sizeof(Scalar));
  check_count(where, "the gradient of key", x.key.sizes, sizeof(Scalar));
  check_count(where, "the gradient of value", x.value.sizes, sizeof(Scalar));
  run_backward<Scalar>(make(), x, rules, options);
}

}  // namespace detail

/// Gradients of attention over tensors, written to memory of yours.
/// @param gradients    views of the shapes of query, key and value, which are overwritten; they must
///                     overlap neither what is read, nor each other, nor themselves
/// @param grad_output  the gradient of the output, [batch, num_heads, query_len, value_dim]
/// @param query, key, value, rule, options  those of the forward pass
/// @param forward      its output and lse
/// @throws std::invalid_argument if shapes disagree; nothing has been written then
/// Range: as in the forward pass; sums over keys of |dS key| and over queries of |dS query|, without
/// the scale, must be representable too.
/// Cost: 10 batch num_heads query_len kv_len head_dim flops, 2.5 times those of the forward pass.
/// Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, algorithm 2.
template <class Scalar, TensorLike G, TensorLike Q, TensorLike K, TensorLike V,
          class R = AttentionOptions, class O = detail::Following<AttentionOptions, R>>
void attention_backward_into(const AttentionGradientOutputs<Scalar>& gradients,
                             const G& grad_output, const Q& query, const K& key, const V& value,
                             const AttentionOutputs<Scalar>& forward, const R& rule = R{},
                             const O& options = O{}) {
  const auto given = detail::rule_and_options<AttentionOptions>(rule, options);
  static_assert(
      detail::TypesFit<detail::element_t<const Q>, detail::element_t<const K>,
                       detail::element_t<const V>, detail::rule_t<decltype(given)>>::kChecked);
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>> &&
                    std::is_same_v<Scalar, detail::element_t<const G>>,
                "mha: query, grad_output and the gradients must share one Scalar");
  detail::backward_into<Scalar>(
      gradients,
      {tensor_view(grad_output), tensor_view(query), tensor_view(key), tensor_view(value), forward},
      detail::call_gradient_rules<Scalar>(detail::as_rules(given.rule())), given.options());
}

/// Gradients of attention_forward(): of the loss L by query, key and value, from grad_output =
/// dL / d output.
/// @param forward  what attention_forward() returned with need_lse, for the same query, key, value,
///                 rule and past_len
/// The other parameters, errors and cost are those of attention_backward_into().
template <TensorLike G, TensorLike Q, TensorLike K, TensorLike V, class Scalar,
          class R = AttentionOptions, class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] AttentionGradients<Scalar> attention_backward(const G& grad_output, const Q& query,
                                                            const K& key, const V& value,
                                                            const AttentionResult<Scalar>& forward,
                                                            const R& rule = R{},
                                                            const O& options = O{}) {
  const auto given = detail::rule_and_options<AttentionOptions>(rule, options);
  static_assert(
      detail::TypesFit<detail::element_t<const Q>, detail::element_t<const K>,
                       detail::element_t<const V>, detail::rule_t<decltype(given)>>::kChecked);
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>> &&
                    std::is_same_v<Scalar, detail::element_t<const G>>,
                "mha: query, grad_output and forward must share one Scalar");
  const detail::BackwardViews<Scalar> views{
      tensor_view(grad_output),
      tensor_view(query),
      tensor_view(key),
      tensor_view(value),
      {.output = detail::writable(forward.output), .lse = detail::writable(forward.lse)}};
  AttentionGradients<Scalar> gradients;
  const auto make = [&] {
    gradients = {Tensor<Scalar>(views.query.sizes), Tensor<Scalar>(views.key.sizes),
                 Tensor<Scalar>(views.value.sizes)};
    return AttentionGradientOutputs<Scalar>{gradients.query, gradients.key, gradients.value};
  };
  detail::backward_with<Scalar>("attention_backward", views,
                                detail::call_gradient_rules<Scalar>(detail::as_rules(given.rule())),
                                given.options(), make);
  return gradients;
}

/// Gradients of scaled_dot_product_attention_forward(), for one head: see attention_backward().
template <EigenDense G, EigenDense Q, EigenDense K, EigenDense V, class Scalar,
          class R = AttentionOptions, class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] HeadGradients<Scalar> scaled_dot_product_attention_backward(
    const G& grad_output, const Q& query, const K& key, const V& value,
    const HeadResult<Scalar>& forward, const R& rule = R{}, const O& options = O{}) {
  const auto given = detail::rule_and_options<AttentionOptions>(rule, options);
  static_assert(detail::TypesFit<typename Q::Scalar, typename K::Scalar, typename V::Scalar,
                                 detail::rule_t<decltype(given)>>::kChecked);
  static_assert(
      std::is_same_v<Scalar, typename Q::Scalar> && std::is_same_v<Scalar, typename G::Scalar>,
      "mha: query, grad_output and forward must share one Scalar");
  const detail::Argument<G> g(grad_output);
  const detail::Argument<Q> q(query);
  const detail::Argument<K> k(key);
  const detail::Argument<V> v(value);
  const detail::BackwardViews<Scalar> views{
      detail::as_tensor(g.view()),
      detail::as_tensor(q.view()),
      detail::as_tensor(k.view()),
      detail::as_tensor(v.view()),
      {.output = detail::writable(forward.output), .lse = detail::writable(forward.lse)}};
  HeadGradients<Scalar> gradients;
  const auto make = [&] {
    const auto sized = [](Matrix<Scalar>& m, const TensorView<const Scalar>& like) {
      m.resize(like.size(2), like.size(3));
      return tensor_view(m);
    };
    return AttentionGradientOutputs<Scalar>{sized(gradients.query, views.query),
                                            sized(gradients.key, views.key),
                                            sized(gradients.value, views.value)};
  };
  detail::backward_with<Scalar>("scaled_dot_product_attention_backward", views,
                                detail::call_gradient_rules<Scalar>(detail::as_rules(given.rule())),
                                given.options(), make);
  return gradients;
}

}  // namespace mha
