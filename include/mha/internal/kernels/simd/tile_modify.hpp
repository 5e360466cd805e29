// SPDX-License-Identifier: MIT
//
// Score modifiers and element-wise masks over a tile of scores: the one place where the kernels call
// a user's function. It is a template over the rules, inlined here, inside the target's region, so
// that a loop of fixed length over it becomes vectors of this target. A rule whose parts all take
// Lanes is called with whole vectors; any other number by number, for allowed pairs only.
// Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

inline constexpr int kSixteen = 16;
template <class Int>
alignas(64) inline constexpr Int kCounting[kSixteen] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                        8, 9, 10, 11, 12, 13, 14, 15};

/// first, first + 1, ..., but at most last; or sixteen times first.
MHA_INLINE Lanes<int> positions(Index first, bool counting, Index last) {
  Lanes<int> result;
  const IntVec<float> most = all_int<float>(static_cast<std::int32_t>(last));
  for (int l = 0; l < kSixteen; l += Simd<float>::kCount) {
    IntVec<float> p = all_int<float>(static_cast<std::int32_t>(first));
    if (counting) p += load_int<float>(kCounting<std::int32_t> + l);
    p = smaller_int<float>(p, most);
    store_int<float>(result.v + l, p);
  }
  return result;
}

/// Where sixteen neighbouring entries of a line of the tile stand. Along the line runs the query
/// (kQueries) or the key; the other index stands still. Lines are padded: all sixteen may be read and
/// written, whatever of them counts.
template <class T, bool kQueries>
struct Sixteen {
  const ModifyTile<T>& tile;
  T* s;
  Index line;
  Index first;
  Index count;       ///< of the tile, from first on
  bool to_be_noted;  ///< some query is not known yet to have an allowed key

  MHA_INLINE Index key(int l) const { return tile.first_key + (kQueries ? line : first + l); }
  /// As rules count them.
  MHA_INLINE Index whole_key(int l) const { return tile.extent->first_key + key(l); }
  MHA_INLINE Index whole_query(int l) const {
    return tile.extent->first_query + tile.first_query + (kQueries ? first + l : line);
  }
  MHA_INLINE bool in_range(int l) const {
    const Index row = kQueries ? first + l : line;
    return l < count && key(l) >= tile.begin[row] && key(l) < tile.end[row];
  }
  /// The same for the vector of lanes l, l + 1, ...
  MHA_INLINE IntVec<T> range_mask(int l) const {
    using Int = int_of<T>;
    if constexpr (kQueries) {
      const IntVec<T> j = all_int<T>(static_cast<Int>(key(0)));
      return (j >= load_int<T>(tile.begin + first + l)) & (j < load_int<T>(tile.end + first + l));
    } else {
      const IntVec<T> j = all_int<T>(static_cast<Int>(key(l))) + load_int<T>(kCounting<Int>);
      return (j >= all_int<T>(tile.begin[line])) & (j < all_int<T>(tile.end[line]));
    }
  }
  MHA_INLINE bool all_in_range() const {
    if (count < kSixteen) return false;
    IntVec<T> outside = {};
    for (int l = 0; l < kSixteen; l += Simd<T>::kCount) outside |= ~range_mask(l);
    return !any_bit<T>(outside);
  }
  /// Notes which queries have a score that is not -inf, among their keys.
  MHA_INLINE void note_allowed() const {
    if (!to_be_noted) return;
    IntVec<T> any = {};
    for (int l = 0; l < kSixteen; l += Simd<T>::kCount) {
      const auto bits = bits_as<IntVec<T> >(load(s + l));
      const IntVec<T> allowed = (bits != all_int<T>(kMinusInfinityBits<T>)) & range_mask(l);
      if constexpr (kQueries) {
        int_of<T>* const so_far = tile.allowed + first + l;
        store_int<T>(so_far, load_int<T>(so_far) | allowed);
      } else {
        const auto left = static_cast<int_of<T> >(count - l);
        any |= allowed & (load_int<T>(kCounting<int_of<T> >) < all_int<T>(left));
      }
    }
    if constexpr (!kQueries) {
      if (any_bit<T>(any)) tile.allowed[line] = -1;
    }
  }
};

// Local arrays are aligned for whole vectors, and no vector is a local variable whose address is
// taken: g++ 12's address sanitizer misaligns others where variables lie on its own stack
// (detect_stack_use_after_return; GCC bug 110027).
template <class T, class RuleSet, bool kQueries>
MHA_INLINE void modify_sixteen(const RuleSet& rules, const Sixteen<T, kQueries>& at) {
  const ModifyTile<T>& tile = at.tile;
  const Extent& extent = *tile.extent;
  if constexpr (RuleSet::template kTakesLanes<T>) {
    alignas(64) const Lanes<int> i = positions(at.whole_query(0), kQueries, extent.query_len - 1);
    alignas(64) const Lanes<int> j = positions(at.whole_key(0), !kQueries, extent.kv_len - 1);
    alignas(64) Lanes<T> scores;
    copy_bytes(scores.v, at.s, sizeof(scores.v));
    scores = rules.score_lanes(scores, extent, tile.b, tile.h, i, j);
    copy_bytes(at.s, scores.v, sizeof(scores.v));
    if constexpr (RuleSet::kScoreMayMask) at.note_allowed();
    return;
  }
  bool every_one = at.all_in_range();
  if constexpr (RuleSet::kHasAllowed) {
    if (every_one && !tile.all_allowed) {
      bool answers[kSixteen];
      for (int l = 0; l < kSixteen; ++l) {
        answers[l] = rules.allowed(extent, tile.b, tile.h, at.whole_query(l), at.whole_key(l));
      }
      alignas(64) T before[kSixteen];
      copy_bytes(before, at.s, sizeof(before));
      int yes = 0;
      for (const bool answer : answers) yes += answer ? 1 : 0;
      every_one = yes == kSixteen;
      if (!RuleSet::kModifiesScore || yes == 0) {
        for (int l = 0; l < kSixteen; ++l) {
          if (!answers[l]) mha::detail::set_minus_infinity(before[l]);
        }
        copy_bytes(at.s, before, sizeof(before));
        at.note_allowed();
        return;
      }
    }
  }
  if (every_one) {
    // Through local arrays, which nothing that the function reads can overlap.
    alignas(64) T in[kSixteen];
    alignas(64) T out[kSixteen];
    copy_bytes(in, at.s, sizeof(in));
    for (int l = 0; l < kSixteen; ++l) {
      out[l] = rules.score(in[l], extent, tile.b, tile.h, at.whole_query(l), at.whole_key(l));
    }
    copy_bytes(at.s, out, sizeof(out));
    if constexpr (RuleSet::kMayMask) at.note_allowed();
    return;
  }
  for (int l = 0; l < kSixteen && l < at.count; ++l) {
    bool allowed = at.in_range(l);
    if constexpr (RuleSet::kHasAllowed) {
      allowed = allowed && (tile.all_allowed || rules.allowed(extent, tile.b, tile.h,
                                                              at.whole_query(l), at.whole_key(l)));
    }
    if (allowed) {
      at.s[l] = rules.score(at.s[l], extent, tile.b, tile.h, at.whole_query(l), at.whole_key(l));
    } else {
      mha::detail::set_minus_infinity(at.s[l]);
    }
  }
  if constexpr (RuleSet::kMayMask) at.note_allowed();
}

/// Every entry of the tile.
template <class T, class RuleSet>
MHA_RUNS_USER_CODE void modify(const void* rule_set, const ModifyTile<T>& tile) {
  const RuleSet& rules = *static_cast<const RuleSet*>(rule_set);
  if (tile.lanes_are_queries) {
    for (Index i = 0; i < tile.queries; i += kSixteen) {
      bool to_be_noted = false;
      for (Index l = i; l < tile.queries && l < i + kSixteen; ++l) {
        to_be_noted = to_be_noted || tile.allowed[l] == 0;
      }
      T* column = tile.s + i;
      for (Index j = 0; j < tile.keys; ++j, column += tile.row_stride) {
        modify_sixteen<T, RuleSet, true>(rules,
                                         {tile, column, j, i, tile.queries - i, to_be_noted});
      }
    }
  } else {
    for (Index i = 0; i < tile.queries; ++i) {
      T* const row = tile.s + i * tile.row_stride;
      for (Index j = 0; j < tile.keys; j += kSixteen) {
        modify_sixteen<T, RuleSet, false>(
            rules, {tile, row + j, i, j, tile.keys - j, tile.allowed[i] == 0});
      }
    }
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
