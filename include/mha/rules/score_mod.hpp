// SPDX-License-Identifier: MIT
//
// Scores changed by a function of yours.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/dual.hpp"
#include "mha/internal/support/checks.hpp"
#include "mha/rules/combine.hpp"
#include "mha/rules/lanes.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// Is F a function over Lanes<T>? Asked by its signature alone: a generic lambda is not one, since
/// asking it would compile its body.
template <class F, class T>
concept TakesLanes = requires {
  &F::operator();
}
&&std::is_invocable_r_v<Lanes<T>, const F&, const Lanes<T>&, Index, Index, const Lanes<int>&,
                        const Lanes<int>&>;

}  // namespace detail

/// score_mod(f).
template <class F>
class ScoreFunction : public Rule {
 public:
  static constexpr bool kModifiesScore = true;
  static constexpr bool kScoreMayMask = true;
  static constexpr bool kHasScoreGradient = true;

  explicit ScoreFunction(F f) : f_(std::move(f)) {
    detail::require_function("score_mod: the function", f_);
  }
  /// By a dual number through f.
  template <class Scalar>
  Scalar score_gradient(const Scalar& s, const Scalar& grad, const Extent& /*extent*/, Index b,
                        Index h, Index i, Index j) const {
    static_assert(std::is_invocable_v<const F&, Dual<Scalar>, Index, Index, Index, Index>,
                  "mha::score_mod: to be differentiated the function must take any number as its "
                  "score, [](auto score, ...), or come with its derivative: score_mod(f, df)");
    const Dual<Scalar> score(f_(Dual<Scalar>(s, Scalar(1)), b, h, i, j));
    return Scalar(grad * score.slope);
  }
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& extent, Index b, Index h, Index i, Index j) const {
    if constexpr (detail::TakesLanes<F, Scalar>) {
      return score_lanes<Scalar>(s, extent, b, h, static_cast<int>(i), static_cast<int>(j))[0];
    } else {
      static_assert(std::is_invocable_v<const F&, Scalar, Index, Index, Index, Index>,
                    "mha::score_mod: the function must take (score, b, h, i, j)");
      return static_cast<Scalar>(f_(s, b, h, i, j));
    }
  }
  template <class Scalar>
  static constexpr bool kTakesLanes = detail::TakesLanes<F, Scalar>;
  template <class Scalar>
  Lanes<Scalar> score_lanes(const Lanes<Scalar>& s, const Extent& /*extent*/, Index b, Index h,
                            const Lanes<int>& i, const Lanes<int>& j) const {
    return f_(s, b, h, i, j);
  }

 private:
  F f_;
};

/// f(score, b, h, i, j): the new score of query row i and key row j in head h of sequence b, given
/// the scaled (and capped) one in the accumulator type. A result of -inf masks the key; one of NaN
/// or +inf makes NaN of its row, and of no other. Called for
/// every allowed pair, in any order, perhaps more than once, from several threads if an executor is
/// given. A function over Lanes (rules/lanes.hpp) is called with sixteen queries or keys at once, among
/// them pairs that a mask beside it excludes.
template <class F>
[[nodiscard]] auto score_mod(F f) {
  return ScoreFunction<F>(std::move(f));
}

/// score_mod(f, df).
template <class F, class DF>
class DifferentiableScoreFunction : public ScoreFunction<F> {
 public:
  using Plain = ScoreFunction<F>;
  DifferentiableScoreFunction(F f, DF df) : ScoreFunction<F>(std::move(f)), df_(std::move(df)) {
    detail::require_function("score_mod: the derivative", df_);
  }
  template <class Scalar>
  Scalar score_gradient(const Scalar& s, const Scalar& grad, const Extent& /*extent*/, Index b,
                        Index h, Index i, Index j) const {
    return Scalar(grad * static_cast<Scalar>(df_(s, b, h, i, j)));
  }

 private:
  DF df_;
};

/// The same with its derivative for the backward pass: df(score, b, h, i, j) = d f / d score. Without
/// it, a generic function, [](auto score, ...), is differentiated by a dual number.
template <class F, class DF>
[[nodiscard]] auto score_mod(F f, DF df) {
  return DifferentiableScoreFunction<F, DF>(std::move(f), std::move(df));
}

}  // namespace mha
