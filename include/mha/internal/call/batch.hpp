// SPDX-License-Identifier: MIT
//
// A whole call: many heads of many sequences. Its checks, and how it is cut into heads and
// computed: by the kernels (float, double, 16-bit types) or by reference/forward.hpp (every other scalar).
// What attention.hpp and multi_head.hpp share.
#pragma once

#include "mha/executor.hpp"
#include "mha/index_list.hpp"
#include "mha/internal/call/erased_rules.hpp"
#include "mha/internal/kernels/attend.hpp"
#include "mha/internal/support/checks.hpp"
#include "mha/reference/forward.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI::detail {

/// Where one sequence lies among the rows.
struct Segment {
  Index query_row = 0;
  Index query_len = 0;
  Index key_row = 0;
  Index kv_len = 0;
  Index past_len = 0;  ///< of its keys, those before its first query
};

/// The extent of the whole problem of which these sizes are a part.
inline Extent extent_of(const Box& box, Index num_heads, Index query_len, Index kv_len,
                        Index past_len) {
  return {std::max(box.num_heads, box.first_head + num_heads),
          std::max(box.query_len, box.first_query + query_len),
          std::max(box.kv_len, box.first_key + kv_len),
          past_len,
          box.first_query,
          box.first_key};
}

/// A whole call, checked: its tensors, and how one head of one sequence is cut out of them.
template <class In, class Out = In, class Acc = accumulator_t<In>>
struct BatchTask {
  TensorView<const In> query;
  TensorView<const In> key;
  TensorView<const In> value;
  TensorView<Out> output;
  TensorView<Acc> weights;
  TensorView<Acc> lse;
  const IndexList* past_len = nullptr;  ///< of the call's options; null = the segments'
  Box box{};                            ///< where the call lies in a larger problem
  /// Null: sequence b is batch entry b. Else the tensors have one batch entry, with all rows of all
  /// num_segments sequences; weights has one per sequence.
  const Segment* segments = nullptr;
  Index num_segments = 0;
  ExtraKeys<Acc> extra{};                     ///< of all key heads, one behind the other
  const kernels::PagedKeys* paged = nullptr;  ///< of each sequence, if keys and values lie in pages
  const kernels::Retention* retention = nullptr;  ///< of each sequence, if any may forget
  TensorView<Acc> state{};  ///< not null: rows are left as before their end, see HeadTask

  Index batch() const { return segments == nullptr ? query.size(0) : num_segments; }
  /// Of the longest sequence.
  Index query_len() const { return longest(query, &Segment::query_len); }
  Index kv_len() const { return longest(key, &Segment::kv_len); }
  Segment segment(Index b) const {
    if (segments == nullptr) return {0, query.size(2), 0, key.size(2), 0};
    return segments[b];
  }
  /// Of the whole problem.
  Extent extent(Index b) const {
    const Segment s = segment(b);
    return extent_of(box, query.size(1), s.query_len, s.kv_len,
                     past_len == nullptr ? s.past_len : (*past_len)[b]);
  }
  HeadTask<In, Out, Acc> head(Index b, Index h) const {
    const Segment s = segment(b);
    const Index entry = segments == nullptr ? b : 0;
    const Index kv_head = h / (query.size(1) / key.size(1));
    HeadTask<In, Out, Acc> task;
    task.query = query.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    if (paged != nullptr) {
      task.key = {nullptr, s.kv_len, key.size(3), 0, 1};
      task.value = {nullptr, s.kv_len, value.size(3), 0, 1};
    } else {
      task.key = key.matrix(entry, kv_head).middle_rows(s.key_row, s.kv_len);
      task.value = value.matrix(entry, kv_head).middle_rows(s.key_row, s.kv_len);
    }
    task.output = output.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    if (weights.data != nullptr) {
      const MatrixView<Acc> all = weights.matrix(b, h);
      task.weights = all.block(0, 0, s.query_len, s.kv_len);
      task.extra_weights = all.block(0, all.cols - extra.count(), s.query_len, extra.count());
    }
    task.extra = extra_of(kv_head);
    if (state.data != nullptr) task.state = state.matrix(entry, h);
    if (lse.data != nullptr) task.lse = lse.matrix(entry, h).middle_rows(s.query_row, s.query_len);
    return task;
  }

  /// Some sequence's pages hold another type than Acc.
  bool converts_pages() const {
    for (Index b = 0; paged != nullptr && b < batch(); ++b) {
      if (!keeps<Acc>(paged[b].storage)) return true;
    }
    return false;
  }

  ExtraKeys<Acc> extra_of(Index kv_head) const {
    if (extra.key == nullptr) return extra;
    return {extra.key + kv_head * key.size(3), extra.value + kv_head * value.size(3), extra.zero};
  }

 private:
  Index longest(const TensorView<const In>& tensor, Index Segment::*len) const {
    if (segments == nullptr) return tensor.size(2);
    Index most = 0;
    for (Index b = 0; b < num_segments; ++b) most = std::max(most, segments[b].*len);
    return most;
  }
};

/// Do the kernels compute in this type?
template <class Acc>
inline constexpr bool has_kernels = std::is_same_v<Acc, float> || std::is_same_v<Acc, double>;

/// How the kernels cut a call; nothing for other scalars.
struct NoPlan {};
template <class Acc>
using AttentionPlan = std::conditional_t<has_kernels<Acc>, kernels::Plan<Acc>, NoPlan>;

/// Every head of every sequence, head by head: for scalars that the kernels do not take.
template <class In, class Out, class Acc, class RuleSet>
void attend_plainly(const BatchTask<In, Out, Acc>& call, const RuleSet& rules,
                    const Executor& executor) {
  const Index num_heads = call.query.size(1);
  executor.parallel_for(call.batch() * num_heads, [&](Index k) {
    const Index b = k / num_heads;
    const Index h = k % num_heads;
    const HeadTask<In, Out, Acc> task = call.head(b, h);
    reference::attend(rules, call.extent(b), call.box.first_batch + b, call.box.first_head + h,
                      task);
  });
}

/// Every head of every sequence, as planned, in memory of plan.bytes().
template <class In, class Out, class Acc, class RuleSet>
void attend(const BatchTask<In, Out, Acc>& call, const RuleSet& rules,
            [[maybe_unused]] const AttentionPlan<Acc>& plan, const Executor& executor,
            [[maybe_unused]] const kernels::MemoryBlock& memory) {
  if constexpr (has_kernels<Acc>) {
    const kernels::Target which = kernels::target();
    kernels::compute<In, Out, Acc>(call, kernels::rule_calls<Acc>(rules, call.query.size(3), which),
                                   which, plan, executor, memory);
  } else {
    attend_plainly(call, rules, executor);
  }
}

/// The same for a call that is all there is.
template <class In, class Out, class Acc, class RuleSet>
void attend(const BatchTask<In, Out, Acc>& call, const RuleSet& rules, const Executor& executor,
            [[maybe_unused]] Workspace* workspace) {
  if constexpr (has_kernels<Acc>) {
    const kernels::Target which = kernels::target();
    kernels::compute<In, Out, Acc>(call, kernels::rule_calls<Acc>(rules, call.query.size(3), which),
                                   which, executor, workspace);
  } else {
    attend_plainly(call, rules, executor);
  }
}

/// Rules without their type, for a call over tensors of type In that is all there is.
template <class In>
struct CallRules : ErasedRules<accumulator_t<In>> {
  void (*attend_of)(const void*, const BatchTask<In>&, const Executor&, Workspace*) = nullptr;

  void attend(const BatchTask<In>& call, const Executor& executor, Workspace* workspace) const {
    attend_of(this->rules, call, executor, workspace);
  }
};

/// Refers to `rules`.
template <class In, class RuleSet>
CallRules<In> call_rules(const RuleSet& rules MHA_LIFETIMEBOUND) {
  return {erased<accumulator_t<In>>(rules), [](const void* p, const BatchTask<In>& call,
                                               const Executor& executor, Workspace* workspace) {
            mha::detail::attend(call, rules_at<RuleSet>(p), executor, workspace);
          }};
}

}  // namespace mha::detail

#if defined(MHA_COMPILED_TEMPLATE)
namespace mha::inline MHA_ABI::kernels {
#define MHA_COMPILED_COMPUTE(T)                                                            \
  MHA_COMPILED_TEMPLATE void compute<T, T, T>(const mha::detail::BatchTask<T>&,            \
                                              const RuleCalls<T>&, Target, const Plan<T>&, \
                                              const Executor&, const MemoryBlock&);        \
  MHA_COMPILED_TEMPLATE void compute<T, T, T>(                                             \
      const mha::detail::BatchTask<T>&, const RuleCalls<T>&, Target, const Executor&, Workspace*);
MHA_COMPILED_COMPUTE(float)
MHA_COMPILED_COMPUTE(double)
#undef MHA_COMPILED_COMPUTE
}  // namespace mha::kernels
#endif

namespace mha::inline MHA_ABI::detail {

/// Where the inputs of a call lie.
struct InputRanges {
  AddressRange query, key, value;
};

/// Says which sizes of query, key and value do not fit each other.
[[noreturn]] MHA_COLD inline void refuse_inputs(const char* where,
                                                const std::array<Index, 4>& query,
                                                const std::array<Index, 4>& key,
                                                const std::array<Index, 4>& value) {
  require(key[0] == query[0], where, ": key must have query's batch, got ", key[0], " and ",
          query[0]);
  require(value[0] == query[0], where, ": value must have query's batch, got ", value[0], " and ",
          query[0]);
  require(value[1] == key[1], where, ": value must have as many heads as key, got ", value[1],
          " and ", key[1]);
  require(key[1] == 0 ? query[1] == 0 : query[1] % key[1] == 0, where,
          ": the heads of key must divide those of query, got ", key[1], " and ", query[1]);
  require(key[3] == query[3], where, ": key.cols() must equal query.cols() (head_dim), got ",
          key[3], " and ", query[3]);
  require(value[2] == key[2], where, ": value.rows() must equal key.rows() (kv_len), got ",
          value[2], " and ", key[2]);
  fail<std::invalid_argument>(std::string("mha::") + where +
                              ": batch * num_heads * query_len must not overflow, got " +
                              text(query[0]) + ", " + text(query[1]) + " and " + text(query[2]));
}

/// past_len is none, one number, or one per sequence.
inline void check_past_count(const char* where, const IndexList& past_len, Index batch) {
  require(past_len.size() <= 1 || past_len.size() == batch, where,
          ": past_len must be one number, or one per sequence, got ", past_len.size(),
          " for a batch of ", batch);
}

inline void check_past_len(const char* where, Index past_len, Index kv_len) {
  require(past_len >= 0 && past_len <= kv_len, where,
          ": past_len must lie between 0 and kv_len, got ", past_len, " and ", kv_len);
}

/// The checks of query, key, value and past_len.
template <class Scalar>
std::pair<CallExtent, InputRanges> check_inputs(const char* where,
                                                const TensorView<const Scalar>& query,
                                                const TensorView<const Scalar>& key,
                                                const TensorView<const Scalar>& value,
                                                const IndexList& past_len, Memory memory) {
  const InputRanges ranges{check_view(where, kQuery, query, memory),
                           check_view(where, kKey, key, memory),
                           check_view(where, kValue, value, memory)};
  const bool heads_fit = key.size(1) == 0 ? query.size(1) == 0 : query.size(1) % key.size(1) == 0;
  const bool fits = ((key.size(0) ^ query.size(0)) | (value.size(0) ^ query.size(0)) |
                     (value.size(1) ^ key.size(1)) | (key.size(3) ^ query.size(3)) |
                     (value.size(2) ^ key.size(2))) == 0;
  Index rows = 0;
  if (!fits || !heads_fit || !multiplies(query.size(0) * query.size(1), query.size(2), rows)) {
    refuse_inputs(where, query.sizes, key.sizes, value.sizes);
  }
  check_past_count(where, past_len, query.size(0));
  return {{where, query.size(0), query.size(1), query.size(2), key.size(2), false}, ranges};
}

/// Something is said about a larger problem.
inline bool is_given(const Box& b) {
  return (b.first_batch | b.first_head | b.first_query | b.first_key | b.batch | b.num_heads |
          b.query_len | b.kv_len) != 0;
}

/// A call of these sizes fits where it is said to lie in a larger problem.
/// @param aligned_queries  its first query is one of a chunk too
MHA_COLD inline void check_box(const CallExtent& call, const Box& box, bool aligned_queries) {
  struct Axis {
    const char* name;
    const char* whole_name;
    Index first, size, whole, multiple;
  };
  const Index chunk = kernels::kKeyChunk;
  for (const Axis& axis :
       {Axis{"first_batch", "batch", box.first_batch, call.batch, box.batch, 1},
        Axis{"first_head", "num_heads", box.first_head, call.num_heads, box.num_heads, 1},
        Axis{"first_query", "query_len", box.first_query, call.query_len, box.query_len,
             aligned_queries ? chunk : 1},
        Axis{"first_key", "kv_len", box.first_key, call.kv_len, box.kv_len, chunk}}) {
    require(axis.first >= 0 && axis.first <= kMaxSize - axis.size, call.where, ": box.", axis.name,
            " must lie between 0 and ", kMaxSize - axis.size, ", got ", axis.first);
    require(axis.first % axis.multiple == 0, call.where, ": box.", axis.name,
            " must be a multiple of ", axis.multiple, ", got ", axis.first);
    require(axis.whole == 0 || (axis.whole >= axis.first + axis.size && axis.whole <= kMaxSize),
            call.where, ": box.", axis.whole_name, " must be 0 or lie between ",
            axis.first + axis.size, ", where the part ends, and ", kMaxSize, ", got ", axis.whole);
  }
}

/// The call of which `part` is one.
inline CallExtent whole_of(const CallExtent& part, const Box& box) {
  const Extent whole = extent_of(box, part.num_heads, part.query_len, part.kv_len, 0);
  return {part.where,      std::max(box.batch, box.first_batch + part.batch),
          whole.num_heads, whole.query_len,
          whole.kv_len,    part.ragged};
}

/// The checks of every entry over tensors. Nothing has been written when they throw.
/// @param memory  unused: only sizes count, data may be null
/// @return the sizes of the part at hand
template <class Scalar>
std::pair<CallExtent, InputRanges> check_attention(
    const char* where, const TensorView<const Scalar>& query, const TensorView<const Scalar>& key,
    const TensorView<const Scalar>& value, const ErasedRules<accumulator_t<Scalar>>& rules,
    const IndexList& past_len, const Box& box = {}, Memory memory = Memory::needed,
    bool aligned_queries = false) {
  const auto checked = check_inputs(where, query, key, value, past_len, memory);
  const CallExtent& call = checked.first;
  const bool is_part = is_given(box);
  if (is_part) check_box(call, box, aligned_queries);
  const CallExtent whole = is_part ? whole_of(call, box) : call;
  for (Index b = 0; b < past_len.size(); ++b) check_past_len(where, past_len[b], whole.kv_len);
  rules.check(whole);
  const bool has_said = !past_len.empty();
  if (rules.places + int{has_said} > 1) {
    for (Index b = 0; b < call.batch; ++b) {
      rules.check_place(where,
                        extent_of(box, call.num_heads, call.query_len, call.kv_len, past_len[b]),
                        box.first_batch + b, has_said);
    }
  }
  return checked;
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_CHECK(T)                                                                  \
  MHA_COMPILED_TEMPLATE std::pair<CallExtent, InputRanges> check_attention(                    \
      const char*, const TensorView<const T>&, const TensorView<const T>&,                     \
      const TensorView<const T>&, const ErasedRules<T>&, const IndexList&, const Box&, Memory, \
      bool);
MHA_COMPILED_CHECK(float)
MHA_COMPILED_CHECK(double)
#undef MHA_COMPILED_CHECK
#endif

template <class T>
using element_t =
    std::remove_const_t<std::remove_pointer_t<decltype(tensor_view(std::declval<T&>()).data)>>;

/// The checks of types at every public entry, each with a sentence. A class, so that a wrong call
/// meets them before anything else: `static_assert(TypesFit<...>::kChecked)`.
template <class Q, class K, class V, class RuleType>
struct TypesFit {
  static_assert(IsRule<RuleType>,
                "mha: the argument after value must be a mask or score modifier made by one of the "
                "factories: causal(), lengths(n), keep(boolean matrix), bias(matrix), ...");
  static_assert(std::is_same_v<Q, K> && std::is_same_v<Q, V>,
                "mha: query, key and value must share one Scalar");
  static_assert(AttentionScalar<Q>,
                "mha: the Scalar of attention must be a real floating-point type: float, double, "
                "Eigen::half, Eigen::bfloat16, or a number with Eigen NumTraits");
  static constexpr bool kChecked = true;
};

}  // namespace mha::detail
