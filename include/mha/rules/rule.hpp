// SPDX-License-Identifier: MIT
//
// What a mask or score modifier is: a "rule", a small value that is passed down by reference and
// inlined at the bottom. combine.hpp makes several of them one, by `&`; either.hpp joins masks by `|`.
// The rules themselves are in mask.hpp (who may attend to whom) and score.hpp (what happens to a
// score).
//
// A rule derives from mha::Rule and has any of these members. b, h, i, j are sequence, query head,
// query row and key row; Extent is the size of the sequence at hand:
//   KeyRange keys(extent, b, h, i)               no key outside of [begin, end) is allowed
//   bool     allowed(extent, b, h, i, j)         may i attend to j? asked inside the range only
//   Scalar   score(score, extent, b, h, i, j)    the modified score; needs also
//            static constexpr bool kModifiesScore = true;    and, if -inf is to mask,
//            static constexpr bool kScoreMayMask = true;
//            and, to be called with whole vectors where scores are of type T (lanes.hpp):
//   Lanes<T> score_lanes(Lanes<T> score, extent, b, h, Lanes<int> i, Lanes<int> j)
//            with  template <class T> static constexpr bool kTakesLanes = true;
//            in the backward pass (attention_gradient.hpp), unless it only adds to the score
//            (static constexpr bool kAdditiveScore = true;):
//   Scalar   score_gradient(score, grad, extent, b, h, i, j)   grad times d score() / d score
//            with  static constexpr bool kHasScoreGradient = true;
//            one that adds up a gradient of its own numbers there has
//            static constexpr bool kCollectsGradient = true;    and, unless all is done by one thread,
//   GradientSharing gradient_sharing()           which parts of the call add to the same number; the keys of
//                                                a head are shared out only with a base class Plain that does
//                                                the same but collect
//   Index    offset(extent, b)                   query row 0 stands at this key position
//   void     place(extent&, b, h)                notes in the extent what one head needs
//   void     check(call_extent)                  throws if its data do not fit the call
//   void     add_to(digest)                      what it consists of (digest.hpp)
//   using Plain = ...;                           what its type counts as where a backward pass must
//                                                have its forward pass's rule; itself if not given
//   TileMask tile(extent, b, h, PairTile)        what keys() and allowed() come to for a whole tile:
//                                                no pair, some or all may attend; some is never wrong
//   static constexpr bool kKeysFromZero = true;  every range of keys() begins at 0
//   static constexpr bool kKeysRise = true;      neither end of keys() falls from a query to the next
// Whole tiles are judged from `keys` and `tile`: a tile that no row's range touches, or of which some
// rule says none, is skipped; where the ranges cover it, and every rule with `allowed` says all, no
// pair is asked about. Neither changes a bit of any result.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <concepts>
#include <limits>
#include <tuple>
#include <type_traits>

#include "mha/internal/support/digest.hpp"
#include "mha/internal/support/floating.hpp"
#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

/// Where the tensors of a call lie in a larger problem of which they are a part (a shard): some of its
/// sequences, heads, queries or keys. Rules, ALiBi and dropout then count as the whole does, masks, biases and
/// slopes have its sizes, and the sums keep its order.
struct Box {
  Index first_batch = 0;
  Index first_head = 0;  ///< of the query's
  Index first_query = 0;
  Index first_key = 0;  ///< a multiple of 1024
  // Of the whole; 0 = it ends where the part does.
  Index batch = 0;
  Index num_heads = 0;
  Index query_len = 0;
  Index kv_len = 0;
};

/// The size of one sequence, and where its queries stand among its keys. What is at hand may be a part of it.
struct Extent {
  Index num_heads = 1;
  Index query_len = 0;
  Index kv_len = 0;
  Index past_len = 0;     ///< leading keys that come from a cache
  Index first_query = 0;  ///< of the part at hand, see Box; rules are asked about rows of the whole
  Index first_key = 0;
  // Filled in by Rules::placed:
  Index offset = 0;        ///< query row i stands at key position i + offset
  double alibi_slope = 0;  ///< of the head at hand, by the paper's rule
};

/// The size of a whole call, for check().
struct CallExtent {
  const char* where = "";  ///< the public function, for messages
  Index batch = 1;
  Index num_heads = 1;
  Index query_len = 0;  ///< the longest
  Index kv_len = 0;     ///< the longest
  bool ragged = false;  ///< lengths differ: per-row data must suffice for the longest
};

/// Keys begin, begin + 1, ..., end - 1.
struct KeyRange {
  Index begin = 0;
  Index end = 0;
};

inline KeyRange intersect(const KeyRange& a, const KeyRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

/// Query rows first_query, first_query + 1, ... against key rows first_key, ...; at least one of each.
struct PairTile {
  Index first_query = 0;
  Index queries = 0;
  Index first_key = 0;
  Index keys = 0;
};

/// What a mask says about a whole tile: no pair of it may attend, all may; some: neither, or unknown.
enum class TileMask { none, some, all };

/// Of a rule that collects a gradient of its own numbers: what adds to the same of them, and is therefore
/// taken by one thread, in order.
struct GradientSharing {
  bool sequences = true;
  bool heads = true;  ///< of the query's
  bool keys = true;   ///< those of one head
};

/// What every mask and score modifier derives from.
struct Rule {};

template <class T>
concept IsRule = std::is_base_of_v<Rule, std::remove_cvref_t<T>>;

namespace detail {

template <class R>
concept HasKeys = requires(const R& r, const Extent& e) {
  r.keys(e, Index{}, Index{}, Index{});
};
/// Those whose ranges all begin at key 0: the union of two of them is a range.
template <class R>
concept HasKeysFromZero = requires {
  requires std::remove_cvref_t<R>::kKeysFromZero;
};
/// Those whose ranges move up with the query, if they move: the first and the last row of a tile tell.
template <class R>
concept HasRisingKeys = requires {
  requires std::remove_cvref_t<R>::kKeysRise;
};
template <class R>
concept HasAllowed = requires(const R& r, const Extent& e) {
  r.allowed(e, Index{}, Index{}, Index{}, Index{});
};
template <class R>
concept HasTile = requires(const R& r, const Extent& e) {
  { r.tile(e, Index{}, Index{}, PairTile{}) } -> std::same_as<TileMask>;
};
/// Rules with a score() say so by a member, since score() may be a template over a user's lambda.
template <class R>
concept HasScore = requires {
  requires std::remove_cvref_t<R>::kModifiesScore;
};
/// Those of them that may return -inf, which masks.
template <class R>
concept HasMaskingScore = HasScore<R> && requires {
  requires std::remove_cvref_t<R>::kScoreMayMask;
};
/// Those with a score() over whole vectors, for scores of type T: score_lanes(Lanes<T>, extent, b,
/// h, Lanes<int> i, Lanes<int> j).
template <class R, class T>
concept HasLanesScore = HasScore<R> && requires {
  requires std::remove_cvref_t<R>::template kTakesLanes<T>;
};
/// Those of them that the backward pass leaves alone: the derivative by the score is 1.
template <class R>
concept HasAdditiveScore = HasScore<R> && requires {
  requires std::remove_cvref_t<R>::kAdditiveScore;
};
/// Those with a score_gradient().
template <class R>
concept HasScoreGradient = HasScore<R> && requires {
  requires std::remove_cvref_t<R>::kHasScoreGradient;
};
/// Those that collect a gradient of their own numbers there.
template <class R>
concept CollectsGradient = requires {
  requires std::remove_cvref_t<R>::kCollectsGradient;
};
template <class R>
concept HasGradientSharing = CollectsGradient<R> && requires(const R& r) {
  { r.gradient_sharing() } -> std::same_as<GradientSharing>;
};
template <class R>
concept HasOffset = requires(const R& r, const Extent& e) {
  r.offset(e, Index{});
};
template <class R>
concept HasPlace = requires(const R& r, Extent& e) {
  r.place(e, Index{}, Index{});
};
template <class R>
concept HasCheck = requires(const R& r, const CallExtent& e) {
  r.check(e);
};
template <class R>
concept HasScale = requires(const R& r) {
  r.scale_value;
};
template <class R>
concept HasSoftcap = requires(const R& r) {
  r.softcap_value;
};
template <class R>
concept HasSink = requires(const R& r) {
  r.template sink<double>(Index{});
};
template <class R>
concept HasDropout = requires(const R& r) {
  r.dropout_scale();
};
/// Those that say what they consist of, see digest.hpp.
template <class R>
concept HasDigest = requires(const R& r, Digest& d) {
  r.add_to(d);
};
/// Those that join two masks by `|`, see either.hpp.
template <class R>
concept HasSides = requires {
  requires std::remove_cvref_t<R>::kHasSides;
};
/// Those that do more than mask, and therefore cannot be joined by `|`.
template <class R>
concept DoesMoreThanMask =
    HasScore<R> || HasScale<R> || HasSoftcap<R> || HasSink<R> || HasDropout<R>;
/// How many rules of R say where the queries stand.
template <class R>
constexpr int places_of() {
  if constexpr (HasSides<R>) {
    return std::remove_cvref_t<R>::kPlaces;
  } else {
    return HasOffset<R> || HasPlace<R> ? 1 : 0;
  }
}
/// A rule with no member that is ever called is a mistake, not a rule that does nothing.
template <class R>
concept IsKnownRule = HasKeys<R> || HasAllowed<R> || HasScore<R> || HasOffset<R> || HasPlace<R> ||
    HasCheck<R> || HasScale<R> || HasSoftcap<R> || HasSink<R> || HasDropout<R>;

/// What the ranges of a rule say about a tile.
template <class R>
TileMask tile_of_ranges(const R& rule, const Extent& extent, Index b, Index h,
                        const PairTile& tile) {
  const Index end_key = tile.first_key + tile.keys;
  const Index last_query = tile.first_query + tile.queries - 1;
  if constexpr (HasRisingKeys<R>) {
    const KeyRange first = rule.keys(extent, b, h, tile.first_query);
    const KeyRange last = rule.keys(extent, b, h, last_query);
    if (first.begin >= end_key || last.end <= tile.first_key) return TileMask::none;
    const bool cover = last.begin <= tile.first_key && first.end >= end_key;
    return cover ? TileMask::all : TileMask::some;
  } else {
    bool touch = false;
    bool cover = true;
    for (Index i = tile.first_query; i <= last_query; ++i) {
      const KeyRange range = rule.keys(extent, b, h, i);
      touch =
          touch || (range.begin < range.end && range.begin < end_key && range.end > tile.first_key);
      cover = cover && range.begin <= tile.first_key && range.end >= end_key;
    }
    return !touch ? TileMask::none : cover ? TileMask::all : TileMask::some;
  }
}

/// What a rule, as a mask, says about a tile; all, if it masks nothing.
template <class R>
TileMask tile_of(const R& rule, const Extent& extent, Index b, Index h, const PairTile& tile) {
  if constexpr (HasTile<R>) {
    return rule.tile(extent, b, h, tile);
  } else {
    TileMask answer = TileMask::all;
    if constexpr (HasKeys<R>) answer = tile_of_ranges(rule, extent, b, h, tile);
    if (HasAllowed<R> && answer == TileMask::all) answer = TileMask::some;
    return answer;
  }
}

/// A cap of scores as a Scalar, 0 = none: too large for it is none, too small the smallest there is.
template <class Scalar, class T>
Scalar cap_as(const T& cap) {
  if (!is_finite_number(cap)) return Scalar(0);
  Scalar own = convert<Scalar>(cap);
  if (!is_finite_number(own)) return Scalar(0);
  if constexpr (std::is_floating_point_v<Scalar>) {
    constexpr Scalar kSmallest = std::numeric_limits<Scalar>::min();
    if (cap > T(0) && own < kSmallest) own = kSmallest;
  }
  return own;
}

/// A pointer to the part that has a dropout_scale().
template <std::size_t kPart = 0, class... Parts>
auto dropout_of(const std::tuple<Parts...>& parts) {
  if constexpr (HasDropout<std::remove_cvref_t<decltype(std::get<kPart>(parts))>>) {
    return &std::get<kPart>(parts);
  } else {
    return dropout_of<kPart + 1>(parts);
  }
}

}  // namespace detail

}  // namespace mha
