// SPDX-License-Identifier: MIT
//
// Score modifiers and element-wise masks over a tile of scores: the one place where the kernels call
// a user's function. It is a template over the rules, inlined here, inside the target's region, so
// that a loop of fixed length over it becomes vectors of this target. A rule whose parts all take
// Lanes is called with whole vectors; any other number by number, for allowed pairs only.
// Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/kernels/targets.hpp"
#else
namespace mha::kernels::MHA_TARGET {

/// Sixteen neighbouring entries of a line of the tile. Along the line runs the query (kQueries) or
/// the key; the other index stands still.
template <class T, class RuleSet, bool kQueries>
MHA_INLINE void modify_sixteen(const RuleSet& rules, const ModifyTile<T>& tile, T* s, Index line,
                               Index first, Index count) {
  constexpr int kSixteen = 16;
  const Extent& extent = *tile.extent;
  [[maybe_unused]] const Index last_query = extent.query_len - 1;
  [[maybe_unused]] const Index last_key = extent.kv_len - 1;
  const auto query = [&](int l) __attribute__((always_inline)) {
    return kQueries ? tile.first_query + first + l : tile.first_query + line;
  };
  const auto key = [&](int l) __attribute__((always_inline)) {
    return kQueries ? tile.first_key + line : tile.first_key + first + l;
  };
  const auto in_range = [&](int l) __attribute__((always_inline)) {
    const Index row = kQueries ? first + l : line;
    return key(l) >= tile.begin[row] && key(l) < tile.end[row];
  };
  T in[kSixteen];
  T out[kSixteen];
  if constexpr (RuleSet::template kTakesLanes<T>) {
    const int n = count < kSixteen ? static_cast<int>(count) : kSixteen;
    if (n == kSixteen) {
      for (int l = 0; l < kSixteen; ++l) in[l] = s[l];
    } else {
      for (int l = 0; l < kSixteen; ++l) in[l] = l < n ? s[l] : T(0);
    }
    Lanes<T> scores;
    Lanes<int> queries;
    Lanes<int> keys;
    for (int l = 0; l < kSixteen; ++l) scores.v[l] = in[l];
    for (int l = 0; l < kSixteen; ++l) {
      const Index i = query(l);
      const Index j = key(l);
      queries.v[l] = static_cast<int>(i < last_query ? i : last_query);
      keys.v[l] = static_cast<int>(j < last_key ? j : last_key);
    }
    const Lanes<T> modified = rules.score_lanes(scores, extent, tile.b, tile.h, queries, keys);
    for (int l = 0; l < kSixteen; ++l) out[l] = modified.v[l];
    if constexpr (RuleSet::kScoreMayMask) {
      for (int l = 0; l < n; ++l) {
        if (!in_range(l) || mha::detail::is_minus_infinity(modified.v[l])) {
          mha::detail::set_minus_infinity(out[l]);
        } else {
          tile.allowed[kQueries ? first + l : line] = 1;
        }
      }
    }
    if (n == kSixteen) {
      for (int l = 0; l < kSixteen; ++l) s[l] = out[l];
    } else {
      for (int l = 0; l < n; ++l) s[l] = out[l];
    }
  } else if constexpr (!RuleSet::kMayMask) {
    bool whole = count >= kSixteen;
    for (int l = 0; l < kSixteen && whole; ++l) whole = in_range(l);
    if (whole) {
      // Through local arrays, which nothing that the function reads can overlap.
      for (int l = 0; l < kSixteen; ++l) in[l] = s[l];
      for (int l = 0; l < kSixteen; ++l) {
        out[l] = rules.score(in[l], extent, tile.b, tile.h, query(l), key(l));
      }
      for (int l = 0; l < kSixteen; ++l) s[l] = out[l];
    } else {
      for (int l = 0; l < kSixteen && l < count; ++l) {
        if (!in_range(l)) continue;
        s[l] = rules.score(s[l], extent, tile.b, tile.h, query(l), key(l));
      }
    }
  } else {
    for (int l = 0; l < kSixteen && l < count; ++l) {
      bool allowed = in_range(l) && rules.allowed(extent, tile.b, tile.h, query(l), key(l));
      if (allowed) {
        s[l] = rules.score(s[l], extent, tile.b, tile.h, query(l), key(l));
        allowed = !RuleSet::kScoreMayMask || !mha::detail::is_minus_infinity(s[l]);
      }
      if (allowed) {
        tile.allowed[kQueries ? first + l : line] = 1;
      } else {
        mha::detail::set_minus_infinity(s[l]);
      }
    }
  }
}

/// Every entry of the tile.
template <class T, class RuleSet>
void modify(const void* rule_set, const ModifyTile<T>& tile) {
  const RuleSet& rules = *static_cast<const RuleSet*>(rule_set);
  if (tile.lanes_are_queries) {
    for (Index j = 0; j < tile.keys; ++j) {
      T* const row = tile.s + j * tile.row_stride;
      for (Index i = 0; i < tile.queries; i += 16) {
        modify_sixteen<T, RuleSet, true>(rules, tile, row + i, j, i, tile.queries - i);
      }
    }
  } else {
    for (Index i = 0; i < tile.queries; ++i) {
      T* const row = tile.s + i * tile.row_stride;
      for (Index j = 0; j < tile.keys; j += 16) {
        modify_sixteen<T, RuleSet, false>(rules, tile, row + j, i, j, tile.keys - j);
      }
    }
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
