// SPDX-License-Identifier: MIT
//
// What a sequence of keys remembers, as a mask: its newest keys, and the very first ones. A query at position p sees key
// j if j > p - window or j < first_keys. Joined to the call's rules where these have lost their types, so that
// nothing is compiled once more for it. It holds whether or not anything has been forgotten yet: otherwise results
// would depend on when pages are given back.
#pragma once

#include <algorithm>

#include "mha/internal/kernels/head.hpp"
#include "mha/internal/support/saturate.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Of one sequence. window = 0: it remembers everything.
struct Retention {
  Index window = 0;      ///< keys that a query sees, its own among them
  Index first_keys = 0;  ///< keys at the beginning that it sees too

  /// Keys that a query at `position` no longer sees.
  KeyRange forgotten(Index position) const {
    if (window == 0) return {0, 0};
    return {first_keys,
            std::max(first_keys, mha::detail::saturated_difference(position, window - 1))};
  }
};

/// Rules, and what each sequence remembers.
template <class T>
class RetainedRules {
 public:
  /// @param first_batch  the number of the first of `count` sequences, as rules count them
  RetainedRules(const RuleCalls<T>& inner, const Retention* sequences, Index count,
                Index first_batch)
      : inner_(inner), sequences_(sequences), first_batch_(first_batch) {
    for (Index b = 0; b < count; ++b) {
      pins_ = pins_ || (sequences[b].window > 0 && sequences[b].first_keys > 0);
    }
  }

  /// Refers to this object.
  RuleCalls<T> calls() const {
    RuleCalls<T> all = inner_;
    all.rules = this;
    all.placed = placed;
    all.ranges = ranges;
    all.sink = sink;
    if (inner_.dropout_row != nullptr) all.dropout_row = dropout_row;
    // Without first keys what is forgotten lies before all that is not: ranges say so.
    if (pins_ || inner_.modify != nullptr) all.modify = modify;
    if (pins_ || inner_.tile != nullptr) all.tile = tile;
    all.may_mask = pins_ || inner_.may_mask;
    return all;
  }

 private:
  static const RetainedRules& of(const void* rules) {
    return *static_cast<const RetainedRules*>(rules);
  }
  KeyRange forgotten(const Extent& extent, Index b, Index i) const {
    return sequences_[b - first_batch_].forgotten(mha::detail::saturated_sum(extent.offset, i));
  }

  static Extent placed(const void* rules, const Extent& extent, Index b, Index h) {
    return of(rules).inner_.placed(of(rules).inner_.rules, extent, b, h);
  }
  static void ranges(const void* rules, const Extent& extent, Index b, Index h, Index first,
                     Index count, KeyRange* out) {
    const RuleCalls<T>& inner = of(rules).inner_;
    if (inner.ranges != nullptr) {
      inner.ranges(inner.rules, extent, b, h, first, count, out);
    } else {
      std::fill_n(out, count, KeyRange{0, extent.kv_len});
    }
    for (Index i = 0; i < count; ++i) {
      const KeyRange hole = of(rules).forgotten(extent, b, first + i);
      if (hole.begin == 0) out[i].begin = std::max(out[i].begin, hole.end);
    }
  }
  static TileMask tile(const void* rules, const Extent& extent, Index b, Index h,
                       const PairTile& tile) {
    const RuleCalls<T>& inner = of(rules).inner_;
    TileMask answer = TileMask::all;
    if (inner.tile != nullptr) {
      answer = inner.tile(inner.rules, extent, b, h, tile);
    } else if (inner.may_mask) {
      answer = TileMask::some;
    }
    // Holes grow with the query: the first one's is the smallest.
    const KeyRange small = of(rules).forgotten(extent, b, tile.first_query);
    const KeyRange large = of(rules).forgotten(extent, b, tile.first_query + tile.queries - 1);
    const Index end = tile.first_key + tile.keys;
    if (small.begin <= tile.first_key && end <= small.end) return TileMask::none;
    const bool apart = end <= large.begin || large.end <= tile.first_key;
    return apart ? answer : answer == TileMask::none ? answer : TileMask::some;
  }
  static void modify(const void* rules, const ModifyTile<T>& tile) {
    const RuleCalls<T>& inner = of(rules).inner_;
    if (!of(rules).pins_) {
      inner.modify(inner.rules, tile);
      return;
    }
    if (inner.modify != nullptr) {
      // Whether a query has a key is known when the hole is cut out, too.
      std::array<int_of<T>, std::size_t{kLanes<T> + 16}> none{};
      ModifyTile<T> inside = tile;
      inside.allowed = none.data();
      inner.modify(inner.rules, inside);
    }
    for (Index i = 0; i < tile.queries; ++i) {
      const KeyRange hole = of(rules).forgotten(*tile.extent, tile.b, tile.first_query + i);
      const Index step = tile.lanes_are_queries ? tile.row_stride : 1;
      T* const scores = tile.s + (tile.lanes_are_queries ? i : i * tile.row_stride);
      const Index end = tile.first_key + tile.keys;
      for (Index j = std::max(hole.begin, tile.first_key); j < std::min(hole.end, end); ++j) {
        mha::detail::set_minus_infinity(scores[(j - tile.first_key) * step]);
      }
      note_allowed(tile.allowed[i], scores, step, tile.first_key,
                   keys_of_row(tile.begin, tile.end, i, tile.first_key, end));
    }
  }
  static bool sink(const void* rules, Index h, T& logit) {
    return of(rules).inner_.sink(of(rules).inner_.rules, h, logit);
  }
  static void dropout_row(const void* rules, Index b, Index h, Index i, std::uint32_t* row) {
    of(rules).inner_.dropout_row(of(rules).inner_.rules, b, h, i, row);
  }

  const RuleCalls<T>& inner_;
  const Retention* sequences_;
  const Index first_batch_;
  bool pins_ = false;  ///< some sequence remembers its first keys too
};

}  // namespace mha::kernels
