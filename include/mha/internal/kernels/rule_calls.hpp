// SPDX-License-Identifier: MIT
//
// The rules of a call as the kernels see them: a pointer and a few functions, so that everything
// below is compiled once per scalar and not once per combination of masks and modifiers. Below, queries and
// keys are numbered from the first at hand; rules count as the whole problem does (Box in rule.hpp).
#pragma once

#include <algorithm>
#include <cstdint>

#include "mha/internal/kernels/dispatch.hpp"

namespace mha::inline MHA_ABI::kernels {

template <class T>
struct RuleCalls {
  const void* rules = nullptr;
  /// The extent of head h of sequence b, its queries placed among the keys.
  Extent (*placed)(const void* rules, const Extent& extent, Index b, Index h) = nullptr;
  /// Keys that each of `count` queries may attend to lie in its range, which may reach beyond the keys at
  /// hand; null if in all.
  void (*ranges)(const void* rules, const Extent& extent, Index b, Index h, Index first,
                 Index count, KeyRange* ranges) = nullptr;
  /// Score modifiers and element-wise masks; null if there are none.
  Modify<T> modify = nullptr;
  /// What element-wise masks say about a tile; null if they know of no tiles.
  TileMask (*tile)(const void* rules, const Extent& extent, Index b, Index h,
                   const PairTile& tile) = nullptr;
  /// The sink of head h; false if there is none.
  bool (*sink)(const void* rules, Index h, T& logit) = nullptr;
  /// The two numbers that the dropout of a query starts from; null without dropout.
  void (*dropout_row)(const void* rules, Index b, Index h, Index i, std::uint32_t* row) = nullptr;
  std::uint64_t dropout_threshold = 0;
  T dropout_scale = T(1);
  bool may_mask = false;        ///< something beside ranges may mask
  bool changes_scores = false;  ///< `modify` does more than mask
  T softcap = T(0);             ///< 0 = none
  T scale = T(1);

  /// A scale of at most 1 is a factor of Q. A larger one is a factor of the scores, after the
  /// product: times it a query might overflow although its scores do not.
  bool scales_scores() const { return scale > T(1) || scale < T(-1); }
  T query_factor() const { return scales_scores() ? T(1) : scale; }
  /// Something happens to scores after the product, beside masks.
  bool changes_products() const { return changes_scores || softcap > T(0) || scales_scores(); }
};

namespace detail {

template <class RuleSet>
Extent placed(const void* rules, const Extent& extent, Index b, Index h) {
  return static_cast<const RuleSet*>(rules)->placed(extent, b, h);
}

template <class RuleSet>
void ranges(const void* rules, const Extent& extent, Index b, Index h, Index first, Index count,
            KeyRange* out) {
  for (Index i = 0; i < count; ++i) {
    const KeyRange whole =
        static_cast<const RuleSet*>(rules)->keys(extent, b, h, extent.first_query + first + i);
    out[i] = {whole.begin - extent.first_key, whole.end - extent.first_key};
  }
}

template <class RuleSet>
TileMask tile(const void* rules, const Extent& extent, Index b, Index h, const PairTile& tile) {
  return static_cast<const RuleSet*>(rules)->tile_of_pairs(
      extent, b, h,
      {extent.first_query + tile.first_query, tile.queries, extent.first_key + tile.first_key,
       tile.keys});
}

template <class T, class RuleSet>
bool sink(const void* rules, Index h, T& logit) {
  const std::optional<T> found = static_cast<const RuleSet*>(rules)->template sink<T>(h);
  if (!found || mha::detail::is_minus_infinity(*found)) return false;
  logit = *found;
  return true;
}

template <class RuleSet>
void dropout_row(const void* rules, Index b, Index h, Index i, std::uint32_t* row) {
  const auto own = static_cast<const RuleSet*>(rules)->dropout()->row(b, h, i);
  row[0] = own.start;
  row[1] = own.twist;
}

}  // namespace detail

template <class T, class RuleSet>
RuleCalls<T> rule_calls(const RuleSet& rules, Index head_dim, Target which) {
  RuleCalls<T> calls;
  calls.rules = &rules;
  calls.placed = detail::placed<RuleSet>;
  if constexpr (RuleSet::kHasKeys) calls.ranges = detail::ranges<RuleSet>;
  if constexpr (RuleSet::kAnswersTiles) calls.tile = detail::tile<RuleSet>;
  calls.sink = detail::sink<T, RuleSet>;
  if constexpr (RuleSet::kModifiesScore || RuleSet::kMayMask) {
    calls.modify = modify_of<T, RuleSet>(which);
  }
  if constexpr (RuleSet::kHasDropout) {
    calls.dropout_row = detail::dropout_row<RuleSet>;
    calls.dropout_threshold = rules.dropout()->threshold();
    calls.dropout_scale = rules.dropout()->template dropout_scale<T>();
  }
  calls.may_mask = RuleSet::kMayMask;
  calls.changes_scores = RuleSet::kModifiesScore;
  if constexpr (RuleSet::kHasSoftcap) calls.softcap = rules.template softcap<T>();
  calls.scale = rules.template scale<T>(head_dim);
  return calls;
}

}  // namespace mha::kernels
