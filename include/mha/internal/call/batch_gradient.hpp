// SPDX-License-Identifier: MIT
//
// The backward pass of a whole call: how it is cut into heads and computed, by the kernels (float,
// double, 16-bit types) or by reference/backward.hpp (every other scalar). What attention_gradient.hpp and
// layer/backward.hpp share, as batch.hpp is for the forward pass.
#pragma once

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/gradient_walk.hpp"
#include "mha/reference/backward.hpp"

namespace mha::inline MHA_ABI::detail {

/// A whole backward pass, checked.
template <class In, class Acc = accumulator_t<In>>
struct BatchGradient {
  BatchTask<In> forward;  ///< its output and lse are read
  TensorView<const In> grad_output;
  TensorView<In> grad_query;
  TensorView<In> grad_key;
  TensorView<In> grad_value;
  /// Of the extra key: [sequence][key head][channel]; null without one.
  Acc* grad_extra_key = nullptr;
  Acc* grad_extra_value = nullptr;

  Acc* extra_key_of(Index b, Index kv_head) const {
    return grad_extra_key + (b * forward.key.size(1) + kv_head) * forward.key.size(3);
  }
  Acc* extra_value_of(Index b, Index kv_head) const {
    return grad_extra_value + (b * forward.key.size(1) + kv_head) * forward.value.size(3);
  }
  Index group_size() const { return forward.query.size(1) / forward.key.size(1); }
  /// Query head h of sequence b, which adds to the gradients given.
  HeadGradientTask<In, Acc> head(Index b, Index h, const MatrixView<Acc>& key,
                                 const MatrixView<Acc>& value) const {
    const Segment s = forward.segment(b);
    const Index entry = forward.segments == nullptr ? b : 0;
    const HeadTask<In, In, Acc> own = forward.head(b, h);
    const bool has_extra = own.extra.key != nullptr;
    const Index kv_head = h / group_size();
    return {own.query,
            own.key,
            own.value,
            own.output,
            own.lse,
            grad_output.matrix(entry, h).middle_rows(s.query_row, s.query_len),
            grad_query.matrix(entry, h).middle_rows(s.query_row, s.query_len),
            key,
            value,
            own.extra,
            has_extra ? extra_key_of(b, kv_head) : nullptr,
            has_extra ? extra_value_of(b, kv_head) : nullptr};
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
  if (call.forward.extra.key != nullptr) {
    std::fill_n(call.extra_key_of(b, kv_head), key.cols, Acc(0));
    std::fill_n(call.extra_value_of(b, kv_head), value.cols, Acc(0));
  }
  for (Index g = 0; g < call.group_size(); ++g) {
    const Index h = kv_head * call.group_size() + g;
    reference::backward<Acc>(rules, call.forward.extent(b), call.forward.box.first_batch + b,
                             call.forward.box.first_head + h,
                             call.head(b, h, key_view, value_view));
  }
  for (Index j = 0; j < key.rows; ++j) {
    for (Index d = 0; d < key.cols; ++d) key(j, d) = convert<In>(key_sum(j, d));
    for (Index c = 0; c < value.cols; ++c) value(j, c) = convert<In>(value_sum(j, c));
  }
}

/// to = factor * sums, whose rows are `wide` numbers apart. Sums begin at +0 and so are never -0.
template <class In, class Acc>
void write_scaled(const MatrixView<In>& to, const Acc* sums, Index wide, Acc factor) {
  for (Index j = 0; j < to.rows; ++j, sums += wide) {
    if constexpr (std::is_same_v<In, Acc>) {
      if (to.col_stride == 1) {
        using Row = Eigen::Array<Acc, 1, Eigen::Dynamic>;
        Eigen::Map<Row>(to.middle_rows(j, 1).data, to.cols) =
            Eigen::Map<const Row>(sums, to.cols) * factor;
        continue;
      }
    }
    for (Index c = 0; c < to.cols; ++c) to(j, c) = convert<In>(Acc(sums[c] * factor));
  }
}

/// The same by the kernels, in `memory`.
template <class In, class Acc>
void backward_by_kernels(const BatchGradient<In, Acc>& call, const kernels::RuleCalls<Acc>& calls,
                         const kernels::GradientCalls<Acc>& gradient_calls,
                         const kernels::Kernels<Acc>& kernels, kernels::GradientMemory<Acc>& memory,
                         Index b, Index kv_head) {
  const MatrixView<In> key = call.keys_of(call.grad_key, b, kv_head);
  const MatrixView<In> value = call.keys_of(call.grad_value, b, kv_head);
  using Sums = kernels::KeySums<Acc>;
  const bool has_extra = call.forward.extra.key != nullptr;
  const auto join = [&](const Sums& a, const Sums& b_sums) {
    memory.tile.add(kernels, a, b_sums, key.rows + (has_extra ? 1 : 0));
  };
  for (Index g = 0; g < call.group_size(); ++g) {
    const Index h = kv_head * call.group_size() + g;
    const auto head = kernels::make_head<In, In>(kernels, calls, call.forward, b, h);
    const HeadGradientTask<In, Acc> task = call.head(b, h, {}, {});
    memory.heads.start(g, memory.sums, join);
    kernels::GradientWalk<In, Acc>(head, task, gradient_calls, memory).run(memory.sums);
  }
  memory.heads.finish(memory.sums, join);
  write_scaled(key, memory.sums.key, memory.tile.wide_head, calls.scale);
  write_scaled(value, memory.sums.value, memory.tile.wide_value, calls.dropout_scale);
  if (!has_extra) return;
  const Sums extra = memory.tile.row(memory.sums, key.rows);
  const MatrixView<Acc> extra_key{call.extra_key_of(b, kv_head), 1, key.cols, key.cols, 1};
  const MatrixView<Acc> extra_value{call.extra_value_of(b, kv_head), 1, value.cols, value.cols, 1};
  write_scaled(extra_key, extra.key, memory.tile.wide_head, calls.scale);
  write_scaled(extra_value, extra.value, memory.tile.wide_value, calls.dropout_scale);
}

/// Every head of every sequence, its rules known by their functions alone: compiled once per scalar.
template <class In, class Acc>
void compute_gradient(const BatchGradient<In, Acc>& call, const kernels::RuleCalls<Acc>& calls,
                      const kernels::GradientCalls<Acc>& gradient_calls, kernels::Target which,
                      const Executor& executor, Workspace* workspace) {
  const Index kv_heads = call.forward.key.size(1);
  const Index tasks = call.forward.batch() * kv_heads;
  if (tasks == 0) return;
  const Index head_dim = call.forward.query.size(3);
  const Index value_dim = call.forward.value.size(3);
  const kernels::TileSizes sizes{head_dim, value_dim, call.forward.kv_len(),
                                 call.forward.extra.key != nullptr, !std::is_same_v<In, Acc>};
  const bool keeps_capped = gradient_calls.score_gradient != nullptr || calls.softcap > Acc(0);
  const auto memory_of_worker = [&](kernels::Arena& arena) {
    return kernels::GradientMemory<Acc>(sizes, call.forward.query_len(), call.group_size(),
                                        keeps_capped, arena);
  };
  kernels::Arena counter;
  memory_of_worker(counter);
  const double work =
      2.5 * static_cast<double>(call.forward.query_len()) * static_cast<double>(sizes.kv_len) *
      static_cast<double>(call.forward.batch()) * static_cast<double>(call.forward.query.size(1)) *
      static_cast<double>(head_dim + value_dim);
  const Index workers = kernels::workers_for(tasks, work, executor);
  const CallMemory memory(workspace, static_cast<std::size_t>(workers) * counter.used());
  kernels::share(tasks, workers, executor, [&](Index k, Index worker) {
    kernels::Arena arena(
        kernels::MemoryBlock{memory.data(), memory.size()}.of_worker(worker, counter.used()));
    kernels::GradientMemory<Acc> parts = memory_of_worker(arena);
    backward_by_kernels(call, calls, gradient_calls, kernels::table<Acc>(which), parts,
                        k / kv_heads, k % kv_heads);
  });
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_GRADIENT(T)                                                                  \
  MHA_COMPILED_TEMPLATE void compute_gradient(                                                    \
      const BatchGradient<T, T>&, const kernels::RuleCalls<T>&, const kernels::GradientCalls<T>&, \
      kernels::Target, const Executor&, Workspace*);
MHA_COMPILED_GRADIENT(float)
MHA_COMPILED_GRADIENT(double)
#undef MHA_COMPILED_GRADIENT
#endif

/// Every head of every sequence. A key head's gradients are the work of one task: the same bits for
/// any number of threads. Where rules collect gradients, which heads share, one thread does all.
template <class In, class Acc, class RuleSet>
void backward(const BatchGradient<In, Acc>& call, const RuleSet& rules, const Executor& executor,
              [[maybe_unused]] Workspace* workspace) {
  const Executor& own = RuleSet::kCollectsGradient ? Executor() : executor;
  if constexpr (has_kernels<Acc>) {
    const kernels::Target which = kernels::target();
    const auto calls = kernels::rule_calls<Acc>(rules, call.forward.query.size(3), which);
    compute_gradient(call, calls, kernels::gradient_calls<Acc, RuleSet>(), which, own, workspace);
  } else {
    const Index kv_heads = call.forward.key.size(1);
    own.parallel_for(call.forward.batch() * kv_heads,
                     [&](Index k) { backward_plainly(call, rules, k / kv_heads, k % kv_heads); });
  }
}

}  // namespace mha::detail
