// SPDX-License-Identifier: MIT
//
// What add_bias_kv and add_zero_attn mean to a rule: a key beyond the caller's, which every query
// may attend to and no modifier but softcap touches, and a logit 0 in the softmax's denominator.
// Wraps the caller's rules, so that these go on speaking of the caller's keys alone. A range of
// keys and one more at the end is no range: with add_bias_kv pairs are asked about, but in tiles that
// the caller's masks allow or exclude as a whole.
#pragma once

#include "mha/rules/combine.hpp"
#include "mha/softmax.hpp"

namespace mha::detail {

template <class RuleSet>
class ExtraKeys {
 public:
  static constexpr bool kModifiesScore = RuleSet::kModifiesScore;
  static constexpr bool kScoreMayMask = RuleSet::kScoreMayMask;
  static constexpr bool kHasKeys = true;
  static constexpr bool kHasAllowed = true;
  static constexpr bool kMayMask = true;
  static constexpr bool kAnswersTiles = true;
  template <class T>
  static constexpr bool kTakesLanes = false;
  static constexpr bool kHasDropout = RuleSet::kHasDropout;
  static constexpr bool kHasSoftcap = RuleSet::kHasSoftcap;
  static constexpr bool kAdditiveScore = RuleSet::kAdditiveScore;
  static constexpr bool kCollectsGradient = RuleSet::kCollectsGradient;

  /// @param bias_key   the last key of each sequence is bias_k: always allowed
  /// @param zero_sink  a key of zeros and value of zeros follows: a sink with logit 0
  ExtraKeys(const RuleSet& rules, bool bias_key, bool zero_sink)
      : rules_(rules), bias_key_(bias_key), zero_sink_(zero_sink) {}

  auto dropout() const { return rules_.dropout(); }
  bool only_ranges() const { return !bias_key_ && rules_.only_ranges(); }

  Extent placed(const Extent& extent, Index b, Index h) const {
    Extent result = rules_.placed(callers(extent), b, h);
    result.kv_len = extent.kv_len;
    return result;
  }
  KeyRange keys(const Extent& extent, Index b, Index h, Index i) const {
    return bias_key_ ? KeyRange{0, extent.kv_len} : rules_.keys(extent, b, h, i);
  }
  bool allowed(const Extent& extent, Index b, Index h, Index i, Index j) const {
    if (!bias_key_) return rules_.allowed(extent, b, h, i, j);
    const Extent inner = callers(extent);
    if (j == inner.kv_len) return true;
    const KeyRange range = rules_.keys(inner, b, h, i);
    return j >= range.begin && j < range.end && rules_.allowed(inner, b, h, i, j);
  }
  TileMask tile_of_pairs(const Extent& extent, Index b, Index h, PairTile tile) const {
    if (!bias_key_) return rules_.tile_of_pairs(extent, b, h, tile);
    const Extent inner = callers(extent);
    const bool with_bias_key = tile.first_key + tile.keys > inner.kv_len;
    if (with_bias_key) tile.keys = inner.kv_len - tile.first_key;
    if (tile.keys == 0) return TileMask::all;
    const TileMask callers_keys = rules_.tile(inner, b, h, tile);
    return with_bias_key && callers_keys == TileMask::none ? TileMask::some : callers_keys;
  }
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& extent, Index b, Index h, Index i, Index j) const {
    const Extent inner = callers(extent);
    return j == inner.kv_len ? s : rules_.score(s, inner, b, h, i, j);
  }
  template <class Scalar>
  Scalar score_gradient(const Scalar& s, const Scalar& grad, const Extent& extent, Index b, Index h,
                        Index i, Index j) const {
    const Extent inner = callers(extent);
    return j == inner.kv_len ? grad : rules_.score_gradient(s, grad, inner, b, h, i, j);
  }
  /// The caller's share of the sink that is both.
  template <class Scalar>
  void collect_sink_gradient(Index h, const Scalar& grad) const {
    using std::exp;
    const std::optional<Scalar> logit = rules_.template sink<Scalar>(h);
    if (!logit || is_minus_infinity(*logit)) return;
    const Scalar share = zero_sink_ ? Scalar(exp(Scalar(*logit - *sink<Scalar>(h)))) : Scalar(1);
    rules_.collect_sink_gradient(h, Scalar(grad * share));
  }
  template <class Scalar>
  Scalar scale(Index head_dim) const {
    return rules_.template scale<Scalar>(head_dim);
  }
  template <class Scalar>
  Scalar softcap() const {
    return rules_.template softcap<Scalar>();
  }
  /// The caller's sink and the zero key as one: ln(exp(sink) + exp(0)).
  template <class Scalar>
  std::optional<Scalar> sink(Index h) const {
    using std::exp;
    using std::log;
    std::optional<Scalar> logit = rules_.template sink<Scalar>(h);
    if (!zero_sink_) return logit;
    if (!logit || is_minus_infinity(*logit)) return Scalar(0);
    const Scalar top = larger(*logit, Scalar(0));
    const Scalar sum = Scalar(exp(Scalar(*logit - top))) + Scalar(exp(Scalar(-top)));
    return Scalar(top + Scalar(log(sum)));
  }

 private:
  Extent callers(Extent extent) const {
    if (bias_key_) extent.kv_len -= 1;
    return extent;
  }

  const RuleSet& rules_;
  bool bias_key_;
  bool zero_sink_;
};

}  // namespace mha::detail
