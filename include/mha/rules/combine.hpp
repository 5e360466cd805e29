// SPDX-License-Identifier: MIT
//
// Several rules as one, joined by `&`: every one must allow, and score modifiers apply one after the
// other. rule.hpp says what a rule is, either.hpp joins masks by `|`.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "mha/internal/support/digest.hpp"
#include "mha/internal/support/floating.hpp"
#include "mha/rules/lanes.hpp"
#include "mha/rules/rule.hpp"
#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

/// Several rules as one: every one must allow; score modifiers apply in the order written.
/// Made by `a & b`; `Rules<>` allows everything. Parts may be references.
template <class... Parts>
class Rules final : public Rule {
 public:
  static constexpr bool kHasKeys = (detail::HasKeys<Parts> || ...);
  static constexpr bool kHasAllowed = (detail::HasAllowed<Parts> || ...);
  static constexpr bool kModifiesScore = (detail::HasScore<Parts> || ...);
  static constexpr bool kScoreMayMask = (detail::HasMaskingScore<Parts> || ...);
  static constexpr bool kHasSoftcap = (detail::HasSoftcap<Parts> || ...);
  static constexpr bool kHasDropout = (detail::HasDropout<Parts> || ...);
  static constexpr bool kOnlyMasks = !(detail::DoesMoreThanMask<Parts> || ...);
  /// All key ranges begin at 0.
  static constexpr bool kKeysFromZero =
      ((!detail::HasKeys<Parts> || detail::HasKeysFromZero<Parts>)&&...);
  static constexpr bool kMasks = kHasKeys || kHasAllowed || kScoreMayMask;
  static constexpr bool kIsEmpty = sizeof...(Parts) == 0;
  /// Something beside key ranges may decide who may attend.
  static constexpr bool kMayMask = kHasAllowed || kScoreMayMask;
  /// Some element-wise mask knows of whole tiles.
  static constexpr bool kAnswersTiles =
      ((detail::HasAllowed<Parts> && detail::HasTile<Parts>) || ...);
  /// Scores of type T are modified by whole vectors.
  template <class T>
  static constexpr bool kTakesLanes =
      kModifiesScore && !kHasAllowed &&
      ((!detail::HasScore<Parts> || detail::HasLanesScore<Parts, T>)&&...);
  /// Nothing but key ranges decides who may attend.
  static constexpr bool only_ranges() { return !kHasAllowed && !kScoreMayMask; }

  static_assert(
      (detail::IsKnownRule<Parts> && ...),
      "mha: a rule must have keys, allowed, score (with kModifiesScore), offset, place or "
      "check, with the parameters that rule.hpp lists");
  static_assert((int{detail::HasScale<Parts>} + ... + 0) <= 1,
                "mha: at most one scale() may be combined into a rule");
  static_assert((int{detail::HasSoftcap<Parts>} + ... + 0) <= 1,
                "mha: at most one softcap() may be combined into a rule");
  static_assert((int{detail::HasSink<Parts>} + ... + 0) <= 1,
                "mha: at most one sinks() may be combined into a rule");

  static_assert((int{detail::HasDropout<Parts>} + ... + 0) <= 1,
                "mha: at most one dropout() may be combined into a rule");

  Rules() = default;
  explicit Rules(std::tuple<Parts...> parts) : parts_(std::move(parts)) {}

  const std::tuple<Parts...>& parts() const noexcept { return parts_; }

  /// f(rule) for every rule, those on either side of a `|` among them.
  template <class F>
  void each_rule(const F& f) const {
    each([&](const auto& part) {
      if constexpr (detail::HasSides<std::remove_cvref_t<decltype(part)>>) {
        part.each_rule(f);
      } else {
        f(part);
      }
    });
  }

  /// @tparam Acc  what the call's sums are kept in
  template <class Acc>
  void check(const CallExtent& call) const {
    each_rule([&](const auto& part) {
      using Part = std::remove_cvref_t<decltype(part)>;
      if constexpr (detail::HasCheck<Part>) part.check(call);
      if constexpr (detail::HasScale<Part>) {
        detail::require(detail::is_finite_number(detail::convert<Acc>(part.scale_value)),
                        call.where, ": scale must be finite in the accumulator's type, got ",
                        part.scale_value);
      }
    });
  }

  /// Some rule may say where the queries stand among the keys; several may.
  static constexpr int kPlaces = (detail::places_of<Parts>() + ... + 0);
  static constexpr bool kPlacesQueries = kPlaces > 0;

  /// Equal for rules of equal types, sizes and numbers (those that can be seen).
  std::uint64_t digest() const {
    detail::Digest digest;
    each_rule([&](const auto& part) {
      if constexpr (detail::HasDigest<std::remove_cvref_t<decltype(part)>>) part.add_to(digest);
    });
    return digest.value();
  }

  /// The queries of sequence b have one place among the keys: that of the call's past_len, if it has
  /// said one, else that of query_offset(); causal rules that say another are a mistake. (Of causal
  /// rules by themselves the tightest counts.) Rules on either side of a `|` take part like all.
  void check_place(const char* where, Extent extent, Index b, bool has_said) const {
    constexpr Index kFollows =
        std::numeric_limits<Index>::min() / 2;  // stands for "no other place"
    std::optional<Index> place;
    if (has_said) place = extent.past_len;
    const auto agree = [&](Index own) {
      if (own == kFollows) return;
      if (!place) place = own;
      detail::require(own == *place, where, ": ",
                      has_said ? "past_len and a rule" : "query_offset and other rules",
                      " must place the queries alike, got ", has_said ? "past_len " : "offset ",
                      *place, " and offset ", own, " for sequence ", b);
    };
    extent.past_len = kFollows;
    each_rule([&](const auto& part) {
      if constexpr (detail::HasPlace<std::remove_cvref_t<decltype(part)>>) {
        Extent placed = extent;
        part.place(placed, b, 0);
        agree(placed.past_len);
      }
    });
    if (!place) return;
    each_rule([&](const auto& part) {
      if constexpr (detail::HasOffset<std::remove_cvref_t<decltype(part)>>) {
        agree(part.offset(extent, b));
      }
    });
  }

  /// The extent for head h of sequence b, its queries placed among the keys: by the rules that
  /// align them (causal in its forms; of several, the tightest: the smallest offset), else after the
  /// cached keys.
  Extent placed(Extent extent, Index b, Index h) const {
    each_rule([&](const auto& part) {
      if constexpr (detail::HasPlace<std::remove_cvref_t<decltype(part)>>) {
        part.place(extent, b, h);
      }
    });
    std::optional<Index> offset;
    each_rule([&](const auto& part) {
      if constexpr (detail::HasOffset<std::remove_cvref_t<decltype(part)>>) {
        const Index own = part.offset(extent, b);
        offset = offset ? std::min(*offset, own) : own;
      }
    });
    extent.offset = offset.value_or(extent.past_len);
    return extent;
  }

  /// The keys that row i may attend to lie in this range, which lies in [0, kv_len).
  KeyRange keys(const Extent& extent, Index b, Index h, Index i) const {
    KeyRange range{0, extent.kv_len};
    each([&](const auto& part) {
      if constexpr (detail::HasKeys<std::remove_cvref_t<decltype(part)>>) {
        range = intersect(range, part.keys(extent, b, h, i));
      }
    });
    if (range.begin >= range.end) return {0, 0};
    return range;
  }

  bool allowed(const Extent& extent, Index b, Index h, Index i, Index j) const {
    bool all = true;
    each([&](const auto& part) {
      if constexpr (detail::HasAllowed<std::remove_cvref_t<decltype(part)>>) {
        all = all && part.allowed(extent, b, h, i, j);
      }
    });
    return all;
  }

  /// What all rules, as masks, say about a tile: key ranges too.
  TileMask tile(const Extent& extent, Index b, Index h, const PairTile& tile) const {
    TileMask answer = TileMask::all;
    each([&](const auto& part) {
      if (answer == TileMask::none) return;
      const TileMask own = detail::tile_of(part, extent, b, h, tile);
      if (own != TileMask::all) answer = own;
    });
    return answer;
  }
  /// What element-wise masks alone say: all, if allowed() is true for every pair that keys() leaves.
  TileMask tile_of_pairs(const Extent& extent, Index b, Index h, const PairTile& tile) const {
    TileMask answer = TileMask::all;
    each([&](const auto& part) {
      if constexpr (detail::HasAllowed<std::remove_cvref_t<decltype(part)>>) {
        if (answer == TileMask::none) return;
        const TileMask own = detail::tile_of(part, extent, b, h, tile);
        if (own != TileMask::all) answer = own;
      }
    });
    return answer;
  }

  template <class Scalar>
  Scalar score(Scalar s, const Extent& extent, Index b, Index h, Index i, Index j) const {
    each([&](const auto& part) {
      if constexpr (detail::HasScore<std::remove_cvref_t<decltype(part)>>) {
        s = part.score(s, extent, b, h, i, j);
      }
    });
    return s;
  }

  template <class T>
  Lanes<T> score_lanes(Lanes<T> s, const Extent& extent, Index b, Index h, const Lanes<int>& i,
                       const Lanes<int>& j) const {
    each([&](const auto& part) {
      if constexpr (detail::HasScore<std::remove_cvref_t<decltype(part)>>) {
        s = part.score_lanes(s, extent, b, h, i, j);
      }
    });
    return s;
  }

  /// Some rule collects the gradient of its own numbers.
  static constexpr bool kCollectsGradient = (detail::CollectsGradient<Parts> || ...);

  /// The factor of query * key^T: scale() if given, else 1 / sqrt(head_dim).
  template <class Scalar>
  Scalar scale(Index head_dim) const {
    using std::sqrt;
    // Without channels every score is an empty sum: any factor will do but infinity.
    const auto channels = static_cast<double>(std::max<Index>(head_dim, 1));
    Scalar factor;
    if constexpr (std::is_same_v<Scalar, float>) {
      factor = static_cast<float>(1 / sqrt(channels));  // rounded once
    } else {
      factor = Scalar(1) / sqrt(Scalar(channels));
    }
    each([&](const auto& part) {
      if constexpr (detail::HasScale<std::remove_cvref_t<decltype(part)>>) {
        factor = detail::convert<Scalar>(part.scale_value);
      }
    });
    return factor;
  }

  /// The cap of the scores, 0 = none.
  template <class Scalar>
  Scalar softcap() const {
    Scalar cap(0);
    each([&](const auto& part) {
      if constexpr (detail::HasSoftcap<std::remove_cvref_t<decltype(part)>>) {
        cap = detail::cap_as<Scalar>(part.softcap_value);
      }
    });
    return cap;
  }

  /// The dropout() among them, null if there is none.
  auto dropout() const {
    if constexpr (kHasDropout) {
      return detail::dropout_of(parts_);
    } else {
      return nullptr;
    }
  }

  /// The logit of head h that joins the denominator alone; nothing if there is none.
  template <class Scalar>
  std::optional<Scalar> sink(Index h) const {
    std::optional<Scalar> logit;
    each([&](const auto& part) {
      if constexpr (detail::HasSink<std::remove_cvref_t<decltype(part)>>) {
        logit = part.template sink<Scalar>(h);
      }
    });
    return logit;
  }

 private:
  template <class F>
  void each(F&& f) const {
    std::apply([&](const auto&... part) { (f(part), ...); }, parts_);
  }

  std::tuple<Parts...> parts_;
};

/// Allows everything and changes no score.
using All = Rules<>;

namespace detail {

template <class T>
inline constexpr bool is_rules = false;
template <class... Parts>
inline constexpr bool is_rules<Rules<Parts...>> = true;

/// Any rule as Rules<...>; one that is already is passed through by reference. A single rule that
/// has a name is referred to, not copied: it may own lists or slopes.
template <class R>
decltype(auto) as_rules(R&& rule) {
  using Plain = std::remove_cvref_t<R>;
  if constexpr (is_rules<Plain>) {
    return std::forward<R>(rule);
  } else if constexpr (std::is_lvalue_reference_v<R>) {
    return Rules<const Plain&>(std::tuple<const Plain&>(rule));
  } else {
    return Rules<Plain>(std::tuple<Plain>(std::forward<R>(rule)));
  }
}

template <class R>
auto parts_of(R&& rule) {
  using Plain = std::remove_cvref_t<R>;
  if constexpr (is_rules<Plain>) {
    return rule.parts();
  } else {
    return std::tuple<Plain>(std::forward<R>(rule));
  }
}

}  // namespace detail

/// Both rules at once: a key must be allowed by each, scores are modified by a, then by b.
template <IsRule A, IsRule B>
[[nodiscard]] auto operator&(A&& a, B&& b) {
  auto parts =
      std::tuple_cat(detail::parts_of(std::forward<A>(a)), detail::parts_of(std::forward<B>(b)));
  return [&]<class... Parts>(std::tuple<Parts...>& all) {
    return Rules<Parts...>(std::move(all));
  }(parts);
}

}  // namespace mha
