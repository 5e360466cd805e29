// SPDX-License-Identifier: MIT
//
// `a | b`: a pair may attend if either mask allows it. Sides are masks, and what `&` and `|` make of
// masks, in any nesting:
//     (causal() | lengths(prefix)) & window(256, 64)      a prefix that everybody sees
//     (window(64, 0) | keep(globals)) & causal()          local keys, and some for all
// `&` binds tighter than `|` in C++: a | b & c is a | (b & c).
// Where the queries stand is said once per call. Rules that say it (causal_offset(n), query_offset(n))
// count wherever they are written: those on either side of a `|` place the queries of the whole call,
// windows on the other side too, must agree with past_len, and of several causal rules the smallest
// offset counts. As masks they keep their own meaning, each on its side.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// a | b. A and B are Rules.
template <class A, class B>
class Either final : public Rule {
 public:
  static_assert(A::kOnlyMasks && B::kOnlyMasks,
                "mha: only masks can be joined by |: scale, softcap, bias, alibi, score_mod, sinks "
                "and dropout are joined with the whole by &");
  static_assert((A::kMasks || A::kIsEmpty) && (B::kMasks || B::kIsEmpty),
                "mha: each side of | must be a mask: query_offset() hides nothing, join it with "
                "the whole by &");

  static constexpr bool kHasSides = true;
  static constexpr int kPlaces = A::kPlaces + B::kPlaces;
  static constexpr bool kKeysFromZero = A::kKeysFromZero && B::kKeysFromZero;
  /// The keys of a row are a range whatever the numbers are.
  static constexpr bool kIsRange =
      A::only_ranges() && B::only_ranges() && A::kKeysFromZero && B::kKeysFromZero;

  Either(A a, B b) : a_(std::move(a)), b_(std::move(b)) {}

  /// The smallest range that holds the keys of both.
  KeyRange keys(const Extent& extent, Index b, Index h, Index i) const
      requires(kIsRange || (A::kHasKeys && B::kHasKeys)) {
    const KeyRange first = a_.keys(extent, b, h, i);
    const KeyRange second = b_.keys(extent, b, h, i);
    if (first.begin >= first.end) return second;
    if (second.begin >= second.end) return first;
    return {std::min(first.begin, second.begin), std::max(first.end, second.end)};
  }
  bool allowed(const Extent& extent, Index b, Index h, Index i, Index j) const requires(!kIsRange) {
    return sees(a_, extent, b, h, i, j) || sees(b_, extent, b, h, i, j);
  }

  TileMask tile(const Extent& extent, Index b, Index h, const PairTile& tile) const {
    const TileMask first = a_.tile(extent, b, h, tile);
    if (first == TileMask::all) return first;
    const TileMask second = b_.tile(extent, b, h, tile);
    return first == TileMask::none || second == TileMask::all ? second : TileMask::some;
  }

  /// f(rule) for every rule of both sides.
  template <class F>
  void each_rule(const F& f) const {
    a_.each_rule(f);
    b_.each_rule(f);
  }

 private:
  /// A side by itself: its functions are asked only inside its own ranges.
  template <class Side>
  static bool sees(const Side& side, const Extent& extent, Index b, Index h, Index i, Index j) {
    if constexpr (Side::kHasKeys) {
      const KeyRange range = side.keys(extent, b, h, i);
      if (j < range.begin || j >= range.end) return false;
    }
    return side.allowed(extent, b, h, i, j);
  }

  A a_;
  B b_;
};

namespace detail {

/// Any rule as Rules<...> of its own.
template <class R>
auto own_rules(R&& rule) {
  using Plain = std::remove_cvref_t<R>;
  if constexpr (is_rules<Plain>) {
    return Plain(std::forward<R>(rule));
  } else {
    return Rules<Plain>(std::tuple<Plain>(std::forward<R>(rule)));
  }
}

}  // namespace detail

/// Either mask: a key may be attended to if a or b allows it. Masks only.
template <IsRule A, IsRule B>
[[nodiscard]] auto operator|(A&& a, B&& b) {
  auto first = detail::own_rules(std::forward<A>(a));
  auto second = detail::own_rules(std::forward<B>(b));
  using Joined = Either<decltype(first), decltype(second)>;
  return Rules<Joined>(std::tuple<Joined>(Joined(std::move(first), std::move(second))));
}

}  // namespace mha
