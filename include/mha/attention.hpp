// SPDX-License-Identifier: MIT
//
// Attention without the layer's projections:
//     scaled_dot_product_attention(query, key, value, rule)      one head, Eigen matrices
//     attention(query, key, value, rule)                         [batch, head, token, channel]
// each with a `_forward` that returns weights and lse too, and attention_into, which writes to
// memory of yours. attention_scores (attention_scores.hpp) shows what the softmax sees. Each of them takes,
// after what it reads, nothing, a rule, options, or a rule and options (call_form.hpp):
//     attention(q, k, v)                        attention(q, k, v, causal())
//     attention(q, k, v, {.past_len = 3})       attention(q, k, v, causal(), {.past_len = 3})
// The checks are in batch.hpp.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/call/batch.hpp"
#include "mha/internal/call/call_form.hpp"
#include "mha/internal/support/argument.hpp"
#include "mha/score.hpp"

namespace mha::inline MHA_ABI {

/// What a call of attention may be told besides its rule.
struct AttentionOptions {
  IndexList past_len{};  ///< leading keys that come from a cache: query row 0 follows them. One
                         ///< number, or one per sequence; 0 if not given
  bool need_weights =
      false;  ///< return the weights; changes no other number; query_len x kv_len memory
  bool need_lse = false;           ///< return the log of each row's softmax denominator
  Executor executor{};             ///< who computes; the calling thread if not given
  Workspace* workspace = nullptr;  ///< memory of yours to work in; else the call's own
  Box box{};  ///< where the tensors lie in a larger problem of which they are a part
};

/// What attention_forward() returns.
template <class Scalar>
struct AttentionResult {
  Tensor<Scalar> output;                  ///< [batch, num_heads, query_len, value_dim]
  Tensor<accumulator_t<Scalar>> weights;  ///< [batch, num_heads, query_len, kv_len], if asked for
  Tensor<accumulator_t<Scalar>> lse;      ///< [batch, num_heads, query_len, 1], if asked for
};

/// What scaled_dot_product_attention_forward() returns.
template <class Scalar>
struct HeadResult {
  Matrix<Scalar> output;                  ///< query_len x value_dim
  Matrix<accumulator_t<Scalar>> weights;  ///< query_len x kv_len, if asked for
  Vector<accumulator_t<Scalar>> lse;      ///< query_len, if asked for
};

/// Memory for the further results of attention_into(); a null `data` means not wanted.
template <class Scalar>
struct AttentionOutputs {
  TensorView<Scalar> output;                    ///< [batch, num_heads, query_len, value_dim]
  TensorView<accumulator_t<Scalar>> weights{};  ///< [batch, num_heads, query_len, kv_len]
  TensorView<accumulator_t<Scalar>> lse{};      ///< [batch, num_heads, query_len, 1]
};

namespace detail {

/// What attention_into() writes: shapes, and that nothing is written where something is still read.
/// The output may be the query itself: every engine has read a row's query before it writes the row,
/// and no other row reads it.
template <class Scalar>
void check_outputs(const CallExtent& call, const InputRanges& ranges,
                   const AttentionOutputs<Scalar>& outputs, const TensorView<const Scalar>& query,
                   const TensorView<const Scalar>& key, const TensorView<const Scalar>& value) {
  const char* const where = call.where;
  const Placed<const Scalar> q{kQuery, query, ranges.query};
  const Placed<const Scalar> k{kKey, key, ranges.key};
  const Placed<const Scalar> v{kValue, value, ranges.value};
  const auto sized = [&](Index channels) {
    return std::array<Index, 4>{call.batch, call.num_heads, call.query_len, channels};
  };
  const Placed<Scalar> output{kOutput, outputs.output,
                              check_sizes(where, kOutput, outputs.output, sized(value.size(3)))};
  check_own_places(where, output);
  if (!is_same_view(output.view, query)) check_apart(where, output, q);
  check_apart(where, output, k);
  check_apart(where, output, v);
  const auto check_further = [&](const auto& further) {
    check_own_places(where, further);
    check_apart(where, further, output);
    check_apart(where, further, q);
    check_apart(where, further, k);
    check_apart(where, further, v);
  };
  using Further = Placed<accumulator_t<Scalar>>;
  Further weights{kWeights, outputs.weights, {}};
  if (outputs.weights.data != nullptr) {
    weights.range = check_sizes(where, kWeights, outputs.weights, sized(call.kv_len));
    check_further(weights);
  }
  if (outputs.lse.data != nullptr) {
    const Further lse{kLse, outputs.lse, check_sizes(where, kLse, outputs.lse, sized(1))};
    check_further(lse);
    if (outputs.weights.data != nullptr) check_apart(where, lse, weights);
  }
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_OUTPUTS(T)                                          \
  MHA_COMPILED_TEMPLATE void check_outputs(                              \
      const CallExtent&, const InputRanges&, const AttentionOutputs<T>&, \
      const TensorView<const T>&, const TensorView<const T>&, const TensorView<const T>&);
MHA_COMPILED_OUTPUTS(float)
MHA_COMPILED_OUTPUTS(double)
#undef MHA_COMPILED_OUTPUTS
#endif

/// Tensors for what the options ask for.
template <class Scalar>
AttentionResult<Scalar> allocate_result(const CallExtent& call, Index value_dim,
                                        const AttentionOptions& options) {
  using Acc = accumulator_t<Scalar>;
  const auto sized = [&](const char* name, Index channels, std::size_t bytes) {
    const std::array<Index, 4> sizes{call.batch, call.num_heads, call.query_len, channels};
    check_count(call.where, name, sizes, bytes);
    return sizes;
  };
  const auto output = sized("output", value_dim, sizeof(Scalar));
  AttentionResult<Scalar> result;
  if (options.need_weights) {
    result.weights = Tensor<Acc>(sized("weights", call.kv_len, sizeof(Acc)));
  }
  if (options.need_lse) result.lse = Tensor<Acc>(sized("lse", 1, sizeof(Acc)));
  result.output = Tensor<Scalar>(output);
  return result;
}

/// A whole call over tensors, with results of its own.
template <class Scalar>
AttentionResult<Scalar> attend_to_tensors(const char* where, const TensorView<const Scalar>& q,
                                          const TensorView<const Scalar>& k,
                                          const TensorView<const Scalar>& v,
                                          const CallRules<Scalar>& rules,
                                          const AttentionOptions& options) {
  const CallExtent call =
      check_attention<Scalar>(where, q, k, v, rules, options.past_len, options.box).first;
  AttentionResult<Scalar> result = allocate_result<Scalar>(call, v.size(3), options);
  rules.attend({q, k, v, result.output.view(), result.weights.view(), result.lse.view(),
                &options.past_len, options.box},
               options.executor, options.workspace);
  return result;
}

/// And over one head's matrices.
template <class Scalar>
HeadResult<Scalar> attend_to_matrices(const char* where, const TensorView<const Scalar>& q,
                                      const TensorView<const Scalar>& k,
                                      const TensorView<const Scalar>& v,
                                      const CallRules<Scalar>& rules,
                                      const AttentionOptions& options) {
  using Acc = accumulator_t<Scalar>;
  const CallExtent call =
      check_attention<Scalar>(where, q, k, v, rules, options.past_len, options.box).first;
  check_count(where, "output", {1, 1, call.query_len, v.size(3)}, sizeof(Scalar));
  if (options.need_weights) {
    check_count(where, "weights", {1, 1, call.query_len, call.kv_len}, sizeof(Acc));
  }
  HeadResult<Scalar> result;
  result.output.resize(call.query_len, v.size(3));
  if (options.need_weights) result.weights.resize(call.query_len, call.kv_len);
  if (options.need_lse) result.lse.resize(call.query_len);
  rules.attend(
      {q, k, v, as_tensor(matrix_view(result.output)), as_tensor(matrix_view(result.weights)),
       as_tensor(matrix_view(result.lse)), &options.past_len, options.box},
      options.executor, options.workspace);
  return result;
}

/// attention_forward() under the name of the function that was called.
template <TensorLike Q, TensorLike K, TensorLike V, class Given>
auto attention_result(const char* where, const Q& query, const K& key, const V& value,
                      const Given& given) {
  using Scalar = element_t<const Q>;
  static_assert(TypesFit<Scalar, element_t<const K>, element_t<const V>, rule_t<Given>>::kChecked);
  return attend_to_tensors<Scalar>(where, tensor_view(query), tensor_view(key), tensor_view(value),
                                   call_rules<Scalar>(as_rules(given.rule())), given.options());
}

/// scaled_dot_product_attention_forward() likewise.
template <EigenDense Q, EigenDense K, EigenDense V, class Given>
auto head_result(const char* where, const Q& query, const K& key, const V& value,
                 const Given& given) {
  using Scalar = typename Q::Scalar;
  static_assert(TypesFit<Scalar, typename K::Scalar, typename V::Scalar, rule_t<Given>>::kChecked);
  const Argument<Q> q(query);
  const Argument<K> k(key);
  const Argument<V> v(value);
  return attend_to_matrices<Scalar>(where, as_tensor(q.view()), as_tensor(k.view()),
                                    as_tensor(v.view()), call_rules<Scalar>(as_rules(given.rule())),
                                    given.options());
}

/// attention_into() but for the types.
template <class Scalar>
void attend_into(const AttentionOutputs<Scalar>& outputs, const TensorView<const Scalar>& q,
                 const TensorView<const Scalar>& k, const TensorView<const Scalar>& v,
                 const CallRules<Scalar>& rules, const AttentionOptions& options) {
  const auto [call, ranges] =
      check_attention<Scalar>("attention_into", q, k, v, rules, options.past_len, options.box);
  check_outputs(call, ranges, outputs, q, k, v);
  rules.attend(
      {q, k, v, outputs.output, outputs.weights, outputs.lse, &options.past_len, options.box},
      options.executor, options.workspace);
}

}  // namespace detail

/// Bytes of Workspace that a call with these arguments needs, whatever its rule; 0 for scalars that
/// the kernels do not compute in. Only sizes count: the data may be null.
/// @throws std::invalid_argument if the sizes do not fit each other
template <TensorLike Q, TensorLike K, TensorLike V>
[[nodiscard]] std::size_t attention_workspace_bytes(const Q& query, const K& key, const V& value,
                                                    const AttentionOptions& options = {}) {
  using Scalar = detail::element_t<const Q>;
  static_assert(detail::TypesFit<Scalar, detail::element_t<const K>, detail::element_t<const V>,
                                 All>::kChecked);
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const TensorView<const Scalar> v = tensor_view(value);
  (void)detail::check_attention<Scalar>("attention_workspace_bytes", q, k, v,
                                        detail::erased<accumulator_t<Scalar>>(All{}),
                                        options.past_len, options.box, detail::Memory::unused);
  using Acc = accumulator_t<Scalar>;
  if constexpr (detail::has_kernels<Acc>) {
    const detail::BatchTask<Scalar> call{q, k, v, {}, {}, {}, nullptr, options.box};
    return kernels::plan_of<Scalar, Acc>(call, options.executor).bytes();
  }
  return 0;
}

/// Attention over tensors, written to memory of yours.
/// @param outputs  views of [batch, num_heads, query_len, value_dim] and, where `data` is not null,
///                 of the weights [batch, num_heads, query_len, kv_len] and lse [batch, num_heads,
///                 query_len, 1]. They must not overlap the inputs, each other or themselves; but
///                 the output may be the query, the very same view, which it then replaces. (What a
///                 rule refers to must not overlap them either: that is not checked.)
/// The other parameters, errors and cost are those of attention().
template <class Scalar, TensorLike Q, TensorLike K, TensorLike V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
void attention_into(const AttentionOutputs<Scalar>& outputs, const Q& query, const K& key,
                    const V& value, const R& rule = R{}, const O& options = O{}) {
  const auto given = detail::rule_and_options<AttentionOptions>(rule, options);
  static_assert(
      detail::TypesFit<detail::element_t<const Q>, detail::element_t<const K>,
                       detail::element_t<const V>, detail::rule_t<decltype(given)>>::kChecked);
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>>,
                "mha: query and output must share one Scalar");
  detail::attend_into<Scalar>(outputs, tensor_view(query), tensor_view(key), tensor_view(value),
                              detail::call_rules<Scalar>(detail::as_rules(given.rule())),
                              given.options());
}

/// The same for the output alone: a TensorView, Tensor, Eigen::Tensor or matrix of the right size.
template <TensorLike Output, TensorLike Q, TensorLike K, TensorLike V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
void attention_into(Output&& output, const Q& query, const K& key, const V& value,
                    const R& rule = R{}, const O& options = O{}) {
  const auto view = tensor_view(output);
  using Element = std::remove_pointer_t<decltype(view.data)>;
  static_assert(!std::is_const_v<Element>, "mha::attention_into: the output must not be const");
  attention_into(AttentionOutputs<Element>{.output = view}, query, key, value, rule, options);
}

/// attention() with its weights and lse, as the options ask.
template <TensorLike Q, TensorLike K, TensorLike V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] auto attention_forward(const Q& query, const K& key, const V& value,
                                     const R& rule = R{}, const O& options = O{}) {
  return detail::attention_result("attention_forward", query, key, value,
                                  detail::rule_and_options<AttentionOptions>(rule, options));
}

/// Softmax-weighted averages of `value` rows, for every head of every sequence.
///     scores  = rule(scale * query * key^T)       [batch, num_heads, query_len, kv_len]
///     weights = softmax of each row of scores     over the keys that the rule allows
///     output  = weights * value                   [batch, num_heads, query_len, value_dim]
/// @param query       [batch, num_heads, query_len, head_dim]: a TensorView (with any strides), a
///                    Tensor, an Eigen::Tensor of rank 4, or a matrix, which is one head of one
///                    sequence
/// @param key, value  [batch, kv_heads, kv_len, head_dim] and [batch, kv_heads, kv_len, value_dim];
///                    kv_heads divides num_heads, and query head h reads head h / (num_heads /
///                    kv_heads)
/// @param rule        masks and score modifiers, see mask.hpp and score.hpp; default:
///                    every query may attend to every key, scale 1 / sqrt(head_dim)
/// @return            a Tensor; a row that may attend to nothing is exactly 0
/// @throws std::invalid_argument if shapes disagree; nothing has been computed then
/// Cost: 2 batch num_heads query_len kv_len (head_dim + value_dim) flops; causal and
/// windowed queries pay for the keys that they may see. Memory: tiles of 128 keys x 64 queries (32
/// doubles) per worker, see attention_workspace_bytes().
/// Accuracy: within a few eps (1 + largest |score|) of long double (test_kernel_attention.cpp).
/// Range: a row's scores, query * key before a scale below 1 too, must be representable in the
/// accumulator, and so must 256 kv_len max|value|, since values are weighed and summed up before the
/// division by the sum of the weights; else the row may be infinite or NaN, and no other.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. (1).
template <TensorLike Q, TensorLike K, TensorLike V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] auto attention(const Q& query, const K& key, const V& value, const R& rule = R{},
                             const O& options = O{}) {
  return detail::attention_result("attention", query, key, value,
                                  detail::rule_and_options<AttentionOptions>(rule, options))
      .output;
}

/// scaled_dot_product_attention() with its weights and lse, as the options ask.
template <EigenDense Q, EigenDense K, EigenDense V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] auto scaled_dot_product_attention_forward(const Q& query, const K& key,
                                                        const V& value, const R& rule = R{},
                                                        const O& options = O{}) {
  return detail::head_result("scaled_dot_product_attention_forward", query, key, value,
                             detail::rule_and_options<AttentionOptions>(rule, options));
}

/// Softmax-weighted average of `value` rows, for one head.
///     scores  = rule(scale * query * key^T)       query_len x kv_len
///     weights = softmax of each row of scores     over the keys that the rule allows
///     output  = weights * value                   query_len x value_dim
/// @param query       query_len x head_dim, one token per row: any Eigen expression of either
///                    storage order; what lies in memory is read there, whatever its strides
/// @param key, value  kv_len x head_dim and kv_len x value_dim
/// @param rule        masks and score modifiers, see mask.hpp and score.hpp; default:
///                    every query may attend to every key, scale 1 / sqrt(head_dim)
/// @return            query_len x value_dim; a row that may attend to nothing is exactly 0
/// @throws std::invalid_argument if shapes disagree; nothing has been computed then
/// Cost: 2 query_len kv_len (head_dim + value_dim) flops; causal and windowed queries pay for the
/// keys that they may see.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. (1).
template <EigenDense Q, EigenDense K, EigenDense V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] auto scaled_dot_product_attention(const Q& query, const K& key, const V& value,
                                                const R& rule = R{}, const O& options = O{}) {
  return detail::head_result("scaled_dot_product_attention", query, key, value,
                             detail::rule_and_options<AttentionOptions>(rule, options))
      .output;
}

/// merge() (softmax.hpp) for whole tensors: attention over all keys from two attention_forward()
/// results, with lse, over disjoint sets of them.
/// @throws std::invalid_argument if their shapes disagree or lse is missing
template <class Scalar>
[[nodiscard]] AttentionResult<Scalar> merge(const AttentionResult<Scalar>& part1,
                                            const AttentionResult<Scalar>& part2) {
  const std::array<Index, 4>& sizes = part1.output.sizes();
  const auto view = [](const auto& tensor) { return tensor.view(); };
  (void)detail::check_view("merge", detail::called("part1.output", detail::kOutput),
                           view(part1.output));
  (void)detail::check_sizes("merge", detail::called("part2.output", detail::kOutput),
                            view(part2.output), sizes);
  const std::array<Index, 4> lse_sizes{sizes[0], sizes[1], sizes[2], 1};
  detail::check_lse("merge", "part1.lse", view(part1.lse), lse_sizes);
  detail::check_lse("merge", "part2.lse", view(part2.lse), lse_sizes);
  AttentionResult<Scalar> result;
  result.output = Tensor<Scalar>(sizes);
  result.lse = Tensor<accumulator_t<Scalar>>(lse_sizes);
  for (Index b = 0; b < sizes[0]; ++b) {
    for (Index h = 0; h < sizes[1]; ++h) {
      for (Index i = 0; i < sizes[2]; ++i) {
        detail::merge_row<accumulator_t<Scalar>, Scalar>(
            view(part1.output).matrix(b, h).middle_rows(i, 1), part1.lse(b, h, i, 0),
            view(part2.output).matrix(b, h).middle_rows(i, 1), part2.lse(b, h, i, 0),
            result.output.view().matrix(b, h).middle_rows(i, 1), result.lse(b, h, i, 0));
      }
    }
  }
  return result;
}

}  // namespace mha
