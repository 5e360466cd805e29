// SPDX-License-Identifier: MIT
//
// One head of one sequence as the kernels take it: its rows, converted where they are of another type,
// and what ends a row. What query_tile.hpp and few_rows.hpp share.
#pragma once

#include <cmath>

#include "mha/internal/kernels/key_tiles.hpp"
#include "mha/internal/kernels/rule_calls.hpp"
#include "mha/reference/forward.hpp"
#include "mha/rules/dropout.hpp"

namespace mha::inline MHA_ABI::kernels {

/// One head of one sequence, for the kernels.
template <class In, class Out, class T>
struct Head {
  const Kernels<T>& kernels;
  const RuleCalls<T>& calls;
  Extent extent;  ///< placed
  Index b = 0;    ///< as the whole counts
  Index h = 0;
  HeadTask<In, Out, T> task;
  const PagedKeys* paged = nullptr;  ///< where the sequence's keys lie, if in pages
  Index kv_head = 0;
  /// The task's key and value, which it refers to: a head is made where it stays.
  KeyTiles<In, T> tiles{kernels, task.key, task.value, paged, kv_head};

  /// The number of the chunk that key j at hand lies in.
  Index chunk_at(Index j) const { return (extent.first_key + j) / kKeyChunk; }
};

/// Head h of sequence b of a call: detail::BatchTask.
template <class In, class Out, class T, class Call>
Head<In, Out, T> make_head(const Kernels<T>& kernels, const RuleCalls<T>& calls, const Call& call,
                           Index b, Index h) {
  const Index whole_b = call.box.first_batch + b;
  const Index whole_h = call.box.first_head + h;
  return {kernels,
          calls,
          calls.placed(calls.rules, call.extent(b), whole_b, whole_h),
          whole_b,
          whole_h,
          call.head(b, h),
          call.paged == nullptr ? nullptr : call.paged + b,
          h / (call.query.size(1) / call.key.size(1))};
}

/// Of keys from, ..., to - 1 those in the range of a row.
template <class Int>
KeyRange keys_of_row(const Int* begin, const Int* end, Index row, Index from, Index to) {
  return intersect({static_cast<Index>(begin[row]), static_cast<Index>(end[row])}, {from, to});
}

/// What `modify` notes of a row where it need not be asked: mostly a look at the first score of one that
/// has not seen a key yet. The score of key j is scores[(j - first) * step].
template <class T>
void note_allowed(int_of<T>& allowed, const T* scores, Index step, Index first,
                  const KeyRange& keys) {
  for (Index j = keys.begin; allowed == 0 && j < keys.end; ++j) {
    if (!mha::detail::is_minus_infinity(scores[(j - first) * step])) allowed = -1;
  }
}

/// What ends a row: the factor of its weights and output, and its lse.
template <class T>
struct RowEnd {
  bool has_sink;  ///< a logit without a value
  T sink;

  /// The factor: 1 / row_sum, with the sink's share in the sum; 0 for a row that may attend to
  /// nothing.
  T operator()(bool seen, T row_max, T row_sum, T* lse) const {
    T top = row_max;
    T shrink(1);
    if (has_sink && seen) {
      if (top < sink) {
        shrink = std::exp(top - sink);
        row_sum = std::fma(row_sum, shrink, T(1));  // said, so that no flag decides it
        top = sink;
      } else {
        row_sum += std::exp(sink - top);
      }
    }
    if (lse != nullptr) {
      if (!seen && has_sink) {
        *lse = sink;
      } else if (!seen) {
        mha::detail::set_minus_infinity(*lse);
      } else if (mha::detail::is_minus_infinity(top)) {
        *lse = row_sum / row_sum;  // every allowed score is -inf, by overflow: 0 / 0, NaN
      } else {
        *lse = top + std::log(row_sum);
      }
    }
    return seen ? shrink / row_sum : T(0);
  }
};

}  // namespace mha::kernels
