// SPDX-License-Identifier: MIT
//
// Attention without the layer's projections:
//     scaled_dot_product_attention(query, key, value, rule)      one head, Eigen matrices
//     attention(query, key, value, rule)                         [batch, head, token, channel]
// each with a `_forward` that returns weights and lse too, `attention_into`, which writes to memory
// of yours, and `attention_scores`, which shows what the softmax sees. The checks are here; the
// arithmetic is in tiled.hpp (float, double, 16-bit types) and reference.hpp (every other scalar).
#pragma once

#include "mha/executor.hpp"
#include "mha/score.hpp"
#include "mha/tiled.hpp"

namespace mha {

/// What a call of attention may be told besides its rule.
struct AttentionOptions {
  Index past_len = 0;  ///< leading keys that come from a cache: query row 0 follows them
  bool need_weights =
      false;  ///< return the weights; changes no other number; query_len x kv_len memory
  bool need_lse = false;  ///< return the log of each row's softmax denominator
  Executor executor{};    ///< who computes; the calling thread if not given
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

/// Where one sequence lies among the rows.
struct Segment {
  Index query_row = 0;
  Index query_len = 0;
  Index key_row = 0;
  Index kv_len = 0;
};

/// A whole call, checked: its tensors, and how one head of one sequence is cut out of them.
template <class In, class Out = In, class Acc = accumulator_t<In>>
struct BatchTask {
  TensorView<const In> query;
  TensorView<const In> key;
  TensorView<const In> value;
  TensorView<Out> output;
  TensorView<Acc> weights;
  TensorView<Acc> lse;
  Index past_len = 0;
  /// Empty: sequence b is batch entry b. Else the tensors have one batch entry, with all rows of
  /// all sequences; weights has one per sequence.
  std::vector<Segment> segments{};

  Index batch() const {
    return segments.empty() ? query.size(0) : static_cast<Index>(segments.size());
  }
  Segment segment(Index b) const {
    if (segments.empty()) return {0, query.size(2), 0, key.size(2)};
    return segments[static_cast<std::size_t>(b)];
  }
  Extent extent(Index b) const {
    const Segment s = segment(b);
    return {query.size(1), s.query_len, s.kv_len, past_len};
  }
  HeadTask<In, Out, Acc> head(Index b, Index h) const {
    const Segment s = segment(b);
    const Index entry = segments.empty() ? b : 0;
    const Index kv_head = h / (query.size(1) / key.size(1));
    HeadTask<In, Out, Acc> task;
    task.query = query.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    task.key = key.matrix(entry, kv_head).middle_rows(s.key_row, s.kv_len);
    task.value = value.matrix(entry, kv_head).middle_rows(s.key_row, s.kv_len);
    task.output = output.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    if (weights.data != nullptr) {
      task.weights = weights.matrix(b, h).block(0, 0, s.query_len, s.kv_len);
    }
    if (lse.data != nullptr) task.lse = lse.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    return task;
  }
};

/// Every head of every sequence. Task k is head k % num_heads of sequence k / num_heads.
template <class In, class Out, class Acc, class RuleSet>
void attend(const BatchTask<In, Out, Acc>& call, const RuleSet& rules, const Executor& executor) {
  const Index num_heads = call.query.size(1);
  const Index tasks = call.batch() * num_heads;
  if constexpr (is_tiled<Acc>) {
    // Consecutive heads share their tiles' memory. With an executor there are as many groups as
    // keep it busy; how heads are grouped changes no result.
    constexpr Index kMaxGroups = 64;
    const Index groups = executor.is_serial() ? 1 : std::min(tasks, kMaxGroups);
    executor.parallel_for(groups, [&](Index g) {
      TileScratch<Acc> scratch;
      for (Index k = g * tasks / groups; k < (g + 1) * tasks / groups; ++k) {
        const Index b = k / num_heads;
        const Index h = k % num_heads;
        const HeadTask<In, Out, Acc> task = call.head(b, h);
        TiledHead(rules, call.extent(b), b, h, task, scratch).run();
      }
    });
  } else {
    executor.parallel_for(tasks, [&](Index k) {
      const Index b = k / num_heads;
      const Index h = k % num_heads;
      reference::attend(rules, call.extent(b), b, h, call.head(b, h));
    });
  }
}

/// The checks of every entry over tensors. Nothing has been written when they throw.
template <class Scalar, class RuleSet>
CallExtent check_attention(const char* where, const TensorView<const Scalar>& query,
                           const TensorView<const Scalar>& key,
                           const TensorView<const Scalar>& value, const RuleSet& rules,
                           Index past_len) {
  require(key.size(0) == query.size(0), where, ": key must have query's batch, got ", key.size(0),
          " and ", query.size(0));
  require(value.size(0) == query.size(0), where, ": value must have query's batch, got ",
          value.size(0), " and ", query.size(0));
  require(value.size(1) == key.size(1), where, ": value must have as many heads as key, got ",
          value.size(1), " and ", key.size(1));
  const bool heads_fit = key.size(1) == 0 ? query.size(1) == 0 : query.size(1) % key.size(1) == 0;
  require(heads_fit, where, ": the heads of key must divide those of query, got ", key.size(1),
          " and ", query.size(1));
  require(key.size(3) == query.size(3), where,
          ": key.cols() must equal query.cols() (head_dim), got ", key.size(3), " and ",
          query.size(3));
  require(value.size(2) == key.size(2), where,
          ": value.rows() must equal key.rows() (kv_len), got ", value.size(2), " and ",
          key.size(2));
  require(past_len >= 0 && past_len <= key.size(2), where,
          ": past_len must lie between 0 and kv_len, got ", past_len, " and ", key.size(2));
  const CallExtent call{where, query.size(0), query.size(1), query.size(2), key.size(2), false};
  rules.check(call);
  return call;
}

template <class Scalar>
void check_result(const char* where, const char* name, const TensorView<Scalar>& result,
                  const std::array<Index, 4>& sizes) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    require(result.size(axis) == sizes[axis], where, ": ", name, " must have size ", sizes[axis],
            " along axis ", static_cast<Index>(axis), ", got ", result.size(axis));
  }
}

template <class T>
using element_t =
    std::remove_const_t<std::remove_pointer_t<decltype(tensor_view(std::declval<T&>()).data)>>;

template <class Q, class K, class V, class RuleType>
constexpr void check_types() {
  static_assert(IsRule<RuleType>,
                "mha: the argument after value must be a mask or score modifier made by one of the "
                "factories: causal(), lengths(n), keep(boolean matrix), bias(matrix), ...");
  static_assert(std::is_same_v<Q, K> && std::is_same_v<Q, V>,
                "mha: query, key and value must share one Scalar");
  static_assert(AttentionScalar<Q>,
                "mha: the Scalar of attention must be a real floating-point type: float, double, "
                "Eigen::half, Eigen::bfloat16, or a number with Eigen NumTraits");
}

}  // namespace detail

/// Attention over tensors, written to memory of yours.
/// @param outputs  views of [batch, num_heads, query_len, value_dim] and, where `data` is not null,
///                 of the weights [batch, num_heads, query_len, kv_len] and lse [batch, num_heads,
///                 query_len, 1]; they must not overlap the inputs
/// The other parameters, errors and cost are those of attention().
template <class Scalar, TensorLike Q, TensorLike K, TensorLike V, class RuleType = All>
void attention_into(const AttentionOutputs<Scalar>& outputs, const Q& query, const K& key,
                    const V& value, const RuleType& rule = {},
                    const AttentionOptions& options = {}) {
  detail::check_types<detail::element_t<const Q>, detail::element_t<const K>,
                      detail::element_t<const V>, RuleType>();
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>>,
                "mha: query and output must share one Scalar");
  decltype(auto) rules = detail::as_rules(rule);
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const TensorView<const Scalar> v = tensor_view(value);
  const CallExtent call =
      detail::check_attention<Scalar>("attention_into", q, k, v, rules, options.past_len);
  detail::check_result(call.where, "output", outputs.output,
                       {call.batch, call.num_heads, call.query_len, v.size(3)});
  if (outputs.weights.data != nullptr) {
    detail::check_result(call.where, "weights", outputs.weights,
                         {call.batch, call.num_heads, call.query_len, call.kv_len});
  }
  if (outputs.lse.data != nullptr) {
    detail::check_result(call.where, "lse", outputs.lse,
                         {call.batch, call.num_heads, call.query_len, 1});
  }
  detail::attend(detail::BatchTask<Scalar>{q, k, v, outputs.output, outputs.weights, outputs.lse,
                                           options.past_len},
                 rules, options.executor);
}

/// attention() with its weights and lse, as the options ask.
template <TensorLike Q, TensorLike K, TensorLike V, class RuleType = All>
[[nodiscard]] auto attention_forward(const Q& query, const K& key, const V& value,
                                     const RuleType& rule = {},
                                     const AttentionOptions& options = {}) {
  using Scalar = detail::element_t<const Q>;
  detail::check_types<Scalar, detail::element_t<const K>, detail::element_t<const V>, RuleType>();
  decltype(auto) rules = detail::as_rules(rule);
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const TensorView<const Scalar> v = tensor_view(value);
  const CallExtent call =
      detail::check_attention<Scalar>("attention", q, k, v, rules, options.past_len);
  const auto sized = [&](Index channels) {
    return std::array<Index, 4>{call.batch, call.num_heads, call.query_len, channels};
  };
  AttentionResult<Scalar> result;
  result.output = Tensor<Scalar>(sized(v.size(3)));
  if (options.need_weights) result.weights = Tensor<accumulator_t<Scalar>>(sized(call.kv_len));
  if (options.need_lse) result.lse = Tensor<accumulator_t<Scalar>>(sized(1));
  detail::attend(detail::BatchTask<Scalar>{q, k, v, result.output.view(), result.weights.view(),
                                           result.lse.view(), options.past_len},
                 rules, options.executor);
  return result;
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
/// @param rule        masks and score modifiers joined by `&`, see mask.hpp and score.hpp; default:
///                    every query may attend to every key, scale 1 / sqrt(head_dim)
/// @return            a Tensor; a row that may attend to nothing is exactly 0
/// @throws std::invalid_argument if shapes disagree; nothing has been computed then
/// Cost: 2 batch num_heads query_len kv_len (head_dim + value_dim) flops; tiles of at most 128 x
/// 512 scores.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. (1).
template <TensorLike Q, TensorLike K, TensorLike V, class RuleType = All>
[[nodiscard]] auto attention(const Q& query, const K& key, const V& value,
                             const RuleType& rule = {}, const AttentionOptions& options = {}) {
  return attention_forward(query, key, value, rule, options).output;
}

/// scaled_dot_product_attention() with its weights and lse, as the options ask.
template <EigenDense Q, EigenDense K, EigenDense V, class RuleType = All>
[[nodiscard]] auto scaled_dot_product_attention_forward(const Q& query, const K& key,
                                                        const V& value, const RuleType& rule = {},
                                                        const AttentionOptions& options = {}) {
  using Scalar = typename Q::Scalar;
  detail::check_types<Scalar, typename K::Scalar, typename V::Scalar, RuleType>();
  decltype(auto) rules = detail::as_rules(rule);
  const detail::Argument<Q> q_argument(query);
  const detail::Argument<K> k_argument(key);
  const detail::Argument<V> v_argument(value);
  const auto q = detail::as_tensor(q_argument.view());
  const auto k = detail::as_tensor(k_argument.view());
  const auto v = detail::as_tensor(v_argument.view());
  const CallExtent call = detail::check_attention<Scalar>("scaled_dot_product_attention", q, k, v,
                                                          rules, options.past_len);
  HeadResult<Scalar> result;
  result.output.resize(call.query_len, v.size(3));
  if (options.need_weights) result.weights.resize(call.query_len, call.kv_len);
  if (options.need_lse) result.lse.resize(call.query_len);
  detail::attend(
      detail::BatchTask<Scalar>{q, k, v, detail::as_tensor(matrix_view(result.output)),
                                detail::as_tensor(matrix_view(result.weights)),
                                detail::as_tensor(matrix_view(result.lse)), options.past_len},
      rules, options.executor);
  return result;
}

/// Softmax-weighted average of `value` rows, for one head.
///     scores  = rule(scale * query * key^T)       query_len x kv_len
///     weights = softmax of each row of scores     over the keys that the rule allows
///     output  = weights * value                   query_len x value_dim
/// @param query       query_len x head_dim, one token per row: any Eigen expression of either
///                    storage order; what lies in memory is read there, whatever its strides
/// @param key, value  kv_len x head_dim and kv_len x value_dim
/// @param rule        masks and score modifiers joined by `&`, see mask.hpp and score.hpp; default:
///                    every query may attend to every key, scale 1 / sqrt(head_dim)
/// @return            query_len x value_dim; a row that may attend to nothing is exactly 0
/// @throws std::invalid_argument if shapes disagree; nothing has been computed then
/// Cost: 2 query_len kv_len (head_dim + value_dim) flops; tiles of at most 128 x 512 scores.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. (1).
template <EigenDense Q, EigenDense K, EigenDense V, class RuleType = All>
[[nodiscard]] auto scaled_dot_product_attention(const Q& query, const K& key, const V& value,
                                                const RuleType& rule = {},
                                                const AttentionOptions& options = {}) {
  return scaled_dot_product_attention_forward(query, key, value, rule, options).output;
}

}  // namespace mha
