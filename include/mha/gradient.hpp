// SPDX-License-Identifier: MIT
//
// The backward pass of attention: the gradients of query, key and value, and of what rules have
// learned, from that of the output.
//     auto forward = mha::attention_forward(q, k, v, rule, {.need_lse = true});
//     auto grads = mha::attention_backward(grad_output, q, k, v, forward, rule);   // grads.query, ...
// The forward pass leaves output and lse behind, nothing of query_len x kv_len: weights are computed
// once more, tile by tile. The formulas are in reference_gradient.hpp.
// Rules are differentiated where they can be: additive biases and ALiBi pass gradients on, and
// collect their own if given a place for it, bias(m, gradient), alibi(slopes, gradient),
// sinks(logits, gradient); softcap is undone; a score function is differentiated by dual numbers, or
// brings its derivative, score_mod(f, df). Masks hide what they hid.
#pragma once

#include "mha/language.hpp"

#include "mha/attention.hpp"
#include "mha/kernels/gradient_tile.hpp"
#include "mha/reference_gradient.hpp"

namespace mha {

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

/// A whole backward pass, checked.
template <class In, class Acc = accumulator_t<In>>
struct BatchGradient {
  BatchTask<In> forward;  ///< its output and lse are read
  TensorView<const In> grad_output;
  TensorView<In> grad_query;
  TensorView<In> grad_key;
  TensorView<In> grad_value;

  Index group_size() const { return forward.query.size(1) / forward.key.size(1); }
  /// Query head h of sequence b, which adds to the gradients given.
  HeadGradientTask<In, Acc> head(Index b, Index h, const MatrixView<Acc>& key,
                                 const MatrixView<Acc>& value) const {
    const Segment s = forward.segment(b);
    const Index entry = forward.segments == nullptr ? b : 0;
    const HeadTask<In, In, Acc> own = forward.head(b, h);
    return {own.query,
            own.key,
            own.value,
            own.output,
            own.lse,
            grad_output.matrix(entry, h).middle_rows(s.query_row, s.query_len),
            grad_query.matrix(entry, h).middle_rows(s.query_row, s.query_len),
            key,
            value};
  }
  MatrixView<In> keys_of(const TensorView<In>& tensor, Index b, Index kv_head) const {
    const Segment s = forward.segment(b);
    return tensor.matrix(forward.segments == nullptr ? b : 0, kv_head)
        .middle_rows(s.key_row, s.kv_len);
  }
};

/// The gradients of one key head: those of all query heads that read it, in their order.
template <class In, class Acc, class RuleSet>
void backward_plainly(const BatchGradient<In, Acc>& call, const RuleSet& rules, Index b,
                      Index kv_head) {
  const MatrixView<In> key = call.keys_of(call.grad_key, b, kv_head);
  const MatrixView<In> value = call.keys_of(call.grad_value, b, kv_head);
  Matrix<Acc> key_sum = Matrix<Acc>::Constant(key.rows, key.cols, Acc(0));
  Matrix<Acc> value_sum = Matrix<Acc>::Constant(value.rows, value.cols, Acc(0));
  const MatrixView<Acc> key_view{key_sum.data(), key.rows, key.cols, key.cols, 1};
  const MatrixView<Acc> value_view{value_sum.data(), value.rows, value.cols, value.cols, 1};
  for (Index g = 0; g < call.group_size(); ++g) {
    const Index h = kv_head * call.group_size() + g;
    reference::backward<Acc>(rules, call.forward.extent(b), b, h,
                             call.head(b, h, key_view, value_view));
  }
  for (Index j = 0; j < key.rows; ++j) {
    for (Index d = 0; d < key.cols; ++d) key(j, d) = convert<In>(key_sum(j, d));
    for (Index c = 0; c < value.cols; ++c) value(j, c) = convert<In>(value_sum(j, c));
  }
}

#if MHA_KERNELS

/// The same by the kernels, in `memory`.
template <class In, class Acc, class RuleSet>
void backward_by_kernels(const BatchGradient<In, Acc>& call, const RuleSet& rules,
                         const kernels::RuleCalls<Acc>& calls,
                         const kernels::GradientCalls<Acc>& gradient_calls,
                         const kernels::Kernels<Acc>& kernels,
                         const kernels::GradientMemory<Acc>& memory, Index b, Index kv_head) {
  using Tiles = kernels::QueryTiles<Acc>;
  const MatrixView<In> key = call.keys_of(call.grad_key, b, kv_head);
  const MatrixView<In> value = call.keys_of(call.grad_value, b, kv_head);
  std::fill_n(memory.grad_key, key.rows * memory.wide_head, Acc(0));
  std::fill_n(memory.grad_value, value.rows * memory.wide_value, Acc(0));
  for (Index g = 0; g < call.group_size(); ++g) {
    const Index h = kv_head * call.group_size() + g;
    const Extent extent = call.forward.extent(b);
    const kernels::Head<In, In, Acc> head{kernels, calls, rules.placed(extent, b, h),
                                          b,       h,     call.forward.head(b, h)};
    const HeadGradientTask<In, Acc> task = call.head(b, h, {}, {});
    const Tiles tiles(extent.query_len);
    for (Index row = 0; row < extent.query_len; row += tiles.width) {
      kernels::GradientTile<In, Acc>(head, task, gradient_calls, memory)
          .run(row, std::min(tiles.width, extent.query_len - row));
    }
  }
  for (Index j = 0; j < key.rows; ++j) {
    const Acc* const key_sum = memory.grad_key + j * memory.wide_head;
    const Acc* const value_sum = memory.grad_value + j * memory.wide_value;
    if constexpr (std::is_same_v<In, Acc>) {
      if (key.col_stride == 1 && value.col_stride == 1) {
        using Row = Eigen::Map<Eigen::Array<Acc, 1, Eigen::Dynamic>>;
        using ConstRow = Eigen::Map<const Eigen::Array<Acc, 1, Eigen::Dynamic>>;
        Row(&key(j, 0), key.cols) = ConstRow(key_sum, key.cols) * calls.scale;
        Row(&value(j, 0), value.cols) = ConstRow(value_sum, value.cols) * calls.dropout_scale;
        continue;
      }
    }
    for (Index d = 0; d < key.cols; ++d) key(j, d) = convert<In>(Acc(key_sum[d] * calls.scale));
    for (Index c = 0; c < value.cols; ++c)
      value(j, c) = convert<In>(Acc(value_sum[c] * calls.dropout_scale));
  }
}

#endif

/// Every head of every sequence. A key head's gradients are the work of one task: the same bits for
/// any number of threads. Where rules collect gradients, which heads share, one thread does all.
template <class In, class Acc, class RuleSet>
void backward(const BatchGradient<In, Acc>& call, const RuleSet& rules, const Executor& executor,
              [[maybe_unused]] Workspace* workspace) {
  const Index kv_heads = call.forward.key.size(1);
  const Executor& own = RuleSet::kCollectsGradient ? Executor() : executor;
#if MHA_KERNELS
  if constexpr (has_kernels<Acc>) {
    const Index tasks = call.forward.batch() * kv_heads;
    const Index head_dim = call.forward.query.size(3);
    const Index value_dim = call.forward.value.size(3);
    const kernels::TileSizes sizes{head_dim, value_dim, call.forward.kv_len(),
                                   !std::is_same_v<In, Acc>};
    const kernels::Target which = kernels::target();
    const auto calls = kernels::rule_calls<Acc>(rules, head_dim, which);
    const auto gradient_calls = kernels::gradient_calls<Acc, RuleSet>();
    const bool keeps_capped = gradient_calls.score_gradient != nullptr || calls.softcap > Acc(0);
    kernels::Arena counter;
    const kernels::GradientMemory<Acc> parts(sizes, keeps_capped, counter);
    const double work =
        2.5 * static_cast<double>(call.forward.query_len()) * static_cast<double>(sizes.kv_len) *
        static_cast<double>(call.forward.batch()) *
        static_cast<double>(call.forward.query.size(1)) * static_cast<double>(head_dim + value_dim);
    const Index workers = kernels::workers_for(tasks, work, own);
    const CallMemory memory(workspace, static_cast<std::size_t>(workers) * counter.used());
    kernels::share(tasks, workers, own, [&](Index k, Index worker) {
      kernels::Arena arena(
          kernels::MemoryBlock{memory.data(), memory.size()}.of_worker(worker, counter.used()));
      backward_by_kernels(call, rules, calls, gradient_calls, kernels::table<Acc>(which),
                          kernels::GradientMemory<Acc>(sizes, keeps_capped, arena), k / kv_heads,
                          k % kv_heads);
    });
    return;
  }
#endif
  own.parallel_for(call.forward.batch() * kv_heads,
                   [&](Index k) { backward_plainly(call, rules, k / kv_heads, k % kv_heads); });
}

}  // namespace detail

/// Gradients of attention over tensors, written to memory of yours.
/// @param gradients    views of the shapes of query, key and value, which are overwritten; they must
///                     not overlap any input
/// @param grad_output  the gradient of the output, [batch, num_heads, query_len, value_dim]
/// @param query, key, value, rule, options  those of the forward pass
/// @param forward      its output and lse
/// @throws std::invalid_argument if shapes disagree; nothing has been written then
/// Cost: 10 batch num_heads query_len kv_len head_dim flops, 2.5 times those of the forward pass.
/// Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, algorithm 2.
template <class Scalar, TensorLike G, TensorLike Q, TensorLike K, TensorLike V,
          class RuleType = All>
void attention_backward_into(const AttentionGradientOutputs<Scalar>& gradients,
                             const G& grad_output, const Q& query, const K& key, const V& value,
                             const AttentionOutputs<Scalar>& forward, const RuleType& rule = {},
                             const AttentionOptions& options = {}) {
  static_assert(detail::TypesFit<detail::element_t<const Q>, detail::element_t<const K>,
                                 detail::element_t<const V>, RuleType>::kChecked);
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>> &&
                    std::is_same_v<Scalar, detail::element_t<const G>>,
                "mha: query, grad_output and the gradients must share one Scalar");
  decltype(auto) rules = detail::as_rules(rule);
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const TensorView<const Scalar> v = tensor_view(value);
  const TensorView<const Scalar> grad = tensor_view(grad_output);
  const CallExtent call =
      detail::check_attention<Scalar>("attention_backward", q, k, v, rules, options.past_len);
  const std::array<Index, 4> out{call.batch, call.num_heads, call.query_len, v.size(3)};
  detail::check_result(call.where, "grad_output", grad, out);
  detail::check_result(call.where, "the forward output", forward.output, out);
  detail::check_result(call.where, "the forward lse (need_lse)", forward.lse,
                       {call.batch, call.num_heads, call.query_len, 1});
  detail::check_result(call.where, "the gradient of query", gradients.query, q.sizes);
  detail::check_result(call.where, "the gradient of key", gradients.key, k.sizes);
  detail::check_result(call.where, "the gradient of value", gradients.value, v.sizes);
  detail::BatchTask<Scalar> task{q, k, v, forward.output, {}, forward.lse, options.past_len};
  detail::backward(
      detail::BatchGradient<Scalar>{task, grad, gradients.query, gradients.key, gradients.value},
      rules, options.executor, options.workspace);
}

/// Gradients of attention_forward(): of the loss L by query, key and value, from grad_output =
/// dL / d output.
/// @param forward  what attention_forward() returned with need_lse, for the same query, key, value,
///                 rule and past_len
/// The other parameters, errors and cost are those of attention_backward_into().
template <TensorLike G, TensorLike Q, TensorLike K, TensorLike V, class Scalar,
          class RuleType = All>
[[nodiscard]] AttentionGradients<Scalar> attention_backward(const G& grad_output, const Q& query,
                                                            const K& key, const V& value,
                                                            const AttentionResult<Scalar>& forward,
                                                            const RuleType& rule = {},
                                                            const AttentionOptions& options = {}) {
  AttentionGradients<Scalar> gradients{Tensor<Scalar>(tensor_view(query).sizes),
                                       Tensor<Scalar>(tensor_view(key).sizes),
                                       Tensor<Scalar>(tensor_view(value).sizes)};
  using Acc = accumulator_t<Scalar>;
  const AttentionOutputs<Scalar> outputs{
      .output = {const_cast<Scalar*>(forward.output.data()), forward.output.sizes()},
      .lse = {const_cast<Acc*>(forward.lse.data()), forward.lse.sizes()}};
  attention_backward_into(
      AttentionGradientOutputs<Scalar>{gradients.query.view(), gradients.key.view(),
                                       gradients.value.view()},
      grad_output, query, key, value, outputs, rule, options);
  return gradients;
}

/// Gradients of scaled_dot_product_attention_forward(), for one head: see attention_backward().
template <EigenDense G, EigenDense Q, EigenDense K, EigenDense V, class Scalar,
          class RuleType = All>
[[nodiscard]] HeadGradients<Scalar> scaled_dot_product_attention_backward(
    const G& grad_output, const Q& query, const K& key, const V& value,
    const HeadResult<Scalar>& forward, const RuleType& rule = {},
    const AttentionOptions& options = {}) {
  using Acc = accumulator_t<Scalar>;
  const detail::Argument<G> g(grad_output);
  const detail::Argument<Q> q(query);
  const detail::Argument<K> k(key);
  const detail::Argument<V> v(value);
  HeadGradients<Scalar> gradients{Matrix<Scalar>(query.rows(), query.cols()),
                                  Matrix<Scalar>(key.rows(), key.cols()),
                                  Matrix<Scalar>(value.rows(), value.cols())};
  const auto writable = [](const auto& m) {
    using T = typename std::remove_cvref_t<decltype(m)>::Scalar;
    return TensorView<T>(const_cast<T*>(m.data()), {1, 1, m.rows(), m.cols()});
  };
  static_assert(std::is_same_v<Acc, typename decltype(forward.lse)::Scalar>);
  attention_backward_into(
      AttentionGradientOutputs<Scalar>{writable(gradients.query), writable(gradients.key),
                                       writable(gradients.value)},
      detail::as_tensor(g.view()), detail::as_tensor(q.view()), detail::as_tensor(k.view()),
      detail::as_tensor(v.view()),
      AttentionOutputs<Scalar>{.output = writable(forward.output), .lse = writable(forward.lse)},
      rule, options);
  return gradients;
}

}  // namespace mha
