// SPDX-License-Identifier: MIT
//
// The score of a query row and a key row, as the formula says it: scale, soft cap, rules, masks, in this
// order. Every product and sum is made an Acc at once: the operators of some number types return
// expressions, which do not nest.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>

#include "mha/internal/support/floating.hpp"
#include "mha/rules/derivative.hpp"

namespace mha::inline MHA_ABI::reference {

/// Of one head of one sequence. Rows are counted from the first at hand.
template <class Acc, class In, class RuleSet>
class Score {
 public:
  Score(const RuleSet& rules, const Extent& placed, Index b, Index h,
        const MatrixView<const In>& query, const MatrixView<const In>& key)
      : rules_(rules),
        extent_(placed),
        b_(b),
        h_(h),
        query_(query),
        key_(key),
        scale_(rules.template scale<Acc>(query.cols)),
        softcap_(rules.template softcap<Acc>()) {}

  const Acc& scale() const { return scale_; }
  /// Keys at hand that row i may attend to lie in this range.
  KeyRange keys(Index i) const {
    const KeyRange whole = rules_.keys(extent_, b_, h_, whole_query(i));
    return intersect({whole.begin - extent_.first_key, whole.end - extent_.first_key},
                     {0, key_.rows});
  }
  /// As rules count them.
  Index whole_query(Index i) const { return extent_.first_query + i; }
  Index whole_key(Index j) const { return extent_.first_key + j; }

  /// scale * q_i . k_j
  Acc scaled(Index i, Index j) const {
    Acc sum(0);
    for (Index d = 0; d < query_.cols; ++d) {
      sum += Acc(detail::convert<Acc>(query_(i, d)) * detail::convert<Acc>(key_(j, d)));
    }
    return Acc(scale_ * sum);
  }
  /// The same with a key from elsewhere.
  Acc scaled(Index i, const Acc* key) const {
    Acc sum(0);
    for (Index d = 0; d < query_.cols; ++d) {
      sum += Acc(detail::convert<Acc>(query_(i, d)) * key[d]);
    }
    return Acc(scale_ * sum);
  }
  /// cap * tanh(s / cap)
  Acc capped(const Acc& s) const {
    using std::tanh;
    return has_cap() ? Acc(softcap_ * Acc(tanh(Acc(s / softcap_)))) : s;
  }
  /// What biases and modifiers make of a capped score. False: the pair is masked.
  bool modified(Index i, Index j, const Acc& s, Acc& score) const {
    if (!rules_.allowed(extent_, b_, h_, whole_query(i), whole_key(j))) return false;
    score = rules_.score(s, extent_, b_, h_, whole_query(i), whole_key(j));
    return !rules_.kScoreMayMask || !detail::is_minus_infinity(score);
  }

  /// The gradient of a capped score, given that of the modified one.
  Acc modified_gradient(Index i, Index j, const Acc& s, const Acc& grad) const {
    return detail::score_gradient<true>(rules_, s, grad, extent_, b_, h_, whole_query(i),
                                        whole_key(j));
  }
  /// The gradient of scale * q_i . k_j, given that of the capped score s.
  Acc capped_gradient(const Acc& s, const Acc& grad) const {
    if (!has_cap()) return grad;
    const Acc ratio(s / softcap_);
    return Acc(grad * Acc(Acc(1) - Acc(ratio * ratio)));
  }

 private:
  bool has_cap() const { return RuleSet::kHasSoftcap && softcap_ > Acc(0); }

  const RuleSet& rules_;
  const Extent extent_;
  const Index b_, h_;
  const MatrixView<const In> query_, key_;
  const Acc scale_, softcap_;
};

}  // namespace mha::reference
