// SPDX-License-Identifier: MIT
//
// The backward pass of a whole call: how it is cut into heads and computed, by the kernels (float,
// double, 16-bit types) or by reference/backward.hpp (every other scalar). What attention_gradient.hpp and
// layer/backward.hpp share, as batch.hpp is for the forward pass.
#pragma once

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/gradient_parts.hpp"
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

/// A backward pass by the kernels: its rules known by their functions alone, compiled once per scalar.
template <class In, class Acc>
class GradientByKernels {
 public:
  GradientByKernels(const BatchGradient<In, Acc>& call, const kernels::RuleCalls<Acc>& calls,
                    const kernels::GradientCalls<Acc>& gradient_calls, kernels::Target which,
                    const Executor& executor)
      : call_(call),
        calls_(calls),
        gradient_calls_(gradient_calls),
        kernels_(kernels::table<Acc>(which)),
        sizes_{call.forward.query.size(3), call.forward.value.size(3), call.forward.kv_len(),
               call.forward.extra.key != nullptr, !std::is_same_v<In, Acc>},
        keeps_capped_(gradient_calls.score_gradient != nullptr || calls.softcap > Acc(0)),
        executor_(executor),
        plan_({call.forward.batch(), call.forward.key.size(1), gradient_calls.sharing},
              call.group_size(), call.forward.query_len(), sizes_, kBlock, executor) {}

  void run(Workspace* workspace) const {
    const std::size_t each = bytes_per_worker();
    const CallMemory memory(workspace, static_cast<std::size_t>(plan_.workers) * each);
    const kernels::MemoryBlock block{memory.data(), memory.size()};
    const auto share = [&](Index tasks, const auto& run_task) {
      kernels::share(tasks, std::min(plan_.workers, tasks), executor_,
                     [&](Index task, Index worker) {
                       kernels::Arena arena(block.of_worker(worker, each));
                       run_task(task, arena);
                     });
    };
    const Index units = plan_.units.count();
    if (plan_.keys == 0) {
      share(units, [&](Index n, kernels::Arena& arena) {
        Walk at = walk_memory(arena);
        plan_.units.each(n, [&](Index b, Index kv_head) { run_head(b, kv_head, at); });
      });
      return;
    }
    const Index key_parts = plan_.key_parts + (sizes_.extra_key ? 1 : 0);
    share(units * key_parts, [&](Index n, kernels::Arena& arena) {
      KeyPart at = key_memory(arena);
      plan_.units.each(n / key_parts,
                       [&](Index b, Index kv_head) { run_keys(b, kv_head, n % key_parts, at); });
    });
    const Index heads = call_.forward.query.size(1);
    share(call_.forward.batch() * heads * plan_.query_parts, [&](Index n, kernels::Arena& arena) {
      QueryPart at = query_memory(arena);
      const Index head = n / plan_.query_parts;
      run_queries(head / heads, head % heads, n % plan_.query_parts, at);
    });
  }

 private:
  static constexpr Index kBlock = kernels::GradientMemory<Acc>::kBlock;
  using Sums = kernels::KeySums<Acc>;
  using Walk = kernels::GradientMemory<Acc>;
  using KeyPart = kernels::KeyPartMemory<Acc>;
  using QueryPart = kernels::QueryPartMemory<Acc>;

  Walk walk_memory(kernels::Arena& arena) const {
    return Walk(sizes_, call_.forward.query_len(), call_.group_size(), keeps_capped_, arena);
  }
  KeyPart key_memory(kernels::Arena& arena) const {
    return KeyPart(sizes_, call_.forward.query_len(), call_.group_size(), keeps_capped_,
                   std::min(plan_.keys, sizes_.kv_len), arena);
  }
  QueryPart query_memory(kernels::Arena& arena) const {
    return QueryPart(sizes_, keeps_capped_, arena);
  }
  std::size_t bytes_per_worker() const {
    kernels::Arena first;
    kernels::Arena second;
    if (plan_.keys == 0) {
      walk_memory(first);
    } else {
      key_memory(first);
      query_memory(second);
    }
    return std::max(first.used(), second.used());
  }

  /// f(head, its task) for the query heads that read a head of keys, whose shares of dK and dV, in memory.sums after
  /// f, are added up there.
  template <class Memory, class F>
  void sum_over_heads(Index b, Index kv_head, Index keys, Memory& memory, const F& f) const {
    const auto join = [&](const Sums& a, const Sums& other) {
      memory.tile.add(kernels_, a, other, keys);
    };
    for (Index g = 0; g < call_.group_size(); ++g) {
      const Index h = kv_head * call_.group_size() + g;
      memory.heads.start(g, memory.sums, join);
      f(kernels::make_head<In, In>(kernels_, calls_, call_.forward, b, h),
        call_.head(b, h, {}, {}));
    }
    memory.heads.finish(memory.sums, join);
  }

  /// All gradients of a head of keys and of the query heads that read it.
  void run_head(Index b, Index kv_head, Walk& at) const {
    const MatrixView<In> key = call_.keys_of(call_.grad_key, b, kv_head);
    sum_over_heads(b, kv_head, key.rows + (sizes_.extra_key ? 1 : 0), at,
                   [&](const auto& head, const auto& task) {
                     kernels::GradientWalk<In, Acc>(head, task, gradient_calls_, at).run(at.sums);
                   });
    write_keys(b, kv_head, {0, key.rows}, at.tile, at.sums);
    if (sizes_.extra_key) write_extra_key(b, kv_head, at.tile, at.tile.row(at.sums, key.rows));
  }
  /// dK and dV of a part of the keys; the last part is the extra key.
  void run_keys(Index b, Index kv_head, Index part, KeyPart& at) const {
    const Index kv_len = call_.keys_of(call_.grad_key, b, kv_head).rows;
    const bool extra = part == plan_.key_parts;
    const Index first = part * plan_.keys;
    const KeyRange keys = extra ? KeyRange{kv_len, kv_len + 1}
                                : KeyRange{first, std::min(kv_len, first + plan_.keys)};
    if (keys.begin >= keys.end) return;
    sum_over_heads(b, kv_head, keys.end - keys.begin, at, [&](const auto& head, const auto& task) {
      kernels::sum_over_queries(head, task, gradient_calls_, keys, at);
    });
    if (extra) {
      write_extra_key(b, kv_head, at.tile, at.sums);
    } else {
      write_keys(b, kv_head, keys, at.tile, at.sums);
    }
  }
  /// dQ of a part of the queries.
  void run_queries(Index b, Index h, Index part, QueryPart& at) const {
    const auto head = kernels::make_head<In, In>(kernels_, calls_, call_.forward, b, h);
    const HeadGradientTask<In, Acc> task = call_.head(b, h, {}, {});
    const Index first = part * plan_.blocks * kBlock;
    const Index end = std::min(task.query.rows, first + plan_.blocks * kBlock);
    for (Index row = first; row < end; row += kBlock) {
      kernels::sum_over_keys(head, task, gradient_calls_, row, std::min(kBlock, end - row), at);
    }
  }

  void write_keys(Index b, Index kv_head, const KeyRange& keys,
                  const kernels::GradientTileMemory<Acc>& tile, const Sums& sums) const {
    const Index count = keys.end - keys.begin;
    write_scaled(call_.keys_of(call_.grad_key, b, kv_head).middle_rows(keys.begin, count), sums.key,
                 tile.wide_head, calls_.scale);
    write_scaled(call_.keys_of(call_.grad_value, b, kv_head).middle_rows(keys.begin, count),
                 sums.value, tile.wide_value, calls_.dropout_scale);
  }
  void write_extra_key(Index b, Index kv_head, const kernels::GradientTileMemory<Acc>& tile,
                       const Sums& sums) const {
    const auto row = [](Acc* data, Index cols) { return MatrixView<Acc>{data, 1, cols, cols, 1}; };
    write_scaled(row(call_.extra_key_of(b, kv_head), sizes_.head_dim), sums.key, tile.wide_head,
                 calls_.scale);
    write_scaled(row(call_.extra_value_of(b, kv_head), sizes_.value_dim), sums.value,
                 tile.wide_value, calls_.dropout_scale);
  }

  const BatchGradient<In, Acc>& call_;
  const kernels::RuleCalls<Acc>& calls_;
  const kernels::GradientCalls<Acc>& gradient_calls_;
  const kernels::Kernels<Acc>& kernels_;
  const kernels::TileSizes sizes_;
  const bool keeps_capped_;  ///< scores, for rules that are asked about their gradient
  const Executor& executor_;
  const kernels::GradientPlan plan_;
};

/// Every head of every sequence.
template <class In, class Acc>
void compute_gradient(const BatchGradient<In, Acc>& call, const kernels::RuleCalls<Acc>& calls,
                      const kernels::GradientCalls<Acc>& gradient_calls, kernels::Target which,
                      const Executor& executor, Workspace* workspace) {
  if (call.forward.batch() * call.forward.key.size(1) == 0) return;
  GradientByKernels<In, Acc>(call, calls, gradient_calls, which, executor).run(workspace);
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

/// Every head of every sequence: the same bits for any number of threads.
template <class In, class Acc, class RuleSet>
void backward(const BatchGradient<In, Acc>& call, const RuleSet& rules, const Executor& executor,
              [[maybe_unused]] Workspace* workspace) {
  if constexpr (has_kernels<Acc>) {
    const kernels::Target which = kernels::target();
    const auto calls = kernels::rule_calls<Acc>(rules, call.forward.query.size(3), which);
    compute_gradient(call, calls, kernels::gradient_calls<Acc>(rules), which, executor, workspace);
  } else {
    const kernels::HeadUnits units{call.forward.batch(), call.forward.key.size(1),
                                   gradient_sharing(rules)};
    executor.parallel_for(units.count(), [&](Index n) {
      units.each(n, [&](Index b, Index kv_head) { backward_plainly(call, rules, b, kv_head); });
    });
  }
}

/// Rules without their type, for a backward pass over tensors of type In.
template <class In>
struct CallGradientRules : ErasedRules<accumulator_t<In>> {
  void (*backward_of)(const void*, const BatchGradient<In>&, const Executor&, Workspace*) = nullptr;

  void backward(const BatchGradient<In>& call, const Executor& executor,
                Workspace* workspace) const {
    backward_of(this->rules, call, executor, workspace);
  }
};

/// Refers to `rules`.
template <class In, class RuleSet>
CallGradientRules<In> call_gradient_rules(const RuleSet& rules MHA_LIFETIMEBOUND) {
  return {erased<accumulator_t<In>>(rules), [](const void* p, const BatchGradient<In>& call,
                                               const Executor& executor, Workspace* workspace) {
            mha::detail::backward(call, rules_at<RuleSet>(p), executor, workspace);
          }};
}

}  // namespace mha::detail
