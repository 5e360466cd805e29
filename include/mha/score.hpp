// SPDX-License-Identifier: MIT
//
// Score modifiers: rules that change scores before the softmax. They combine with each other and
// with masks by `&`. The order is fixed for the first two, written for the rest:
//     s = scale * (q . k)                scale(factor), else 1 / sqrt(head_dim)
//     s = cap * tanh(s / cap)            softcap(cap)
//     s = s + bias, s - slope * |...|    bias(m), alibi(), score_mod(f), in the order written
//     masks, then the softmax            and sinks(logits) in its denominator
// (ONNX since its 2026 erratum, FlashAttention, Gemma 2.)
#pragma once

#include "mha/language.hpp"

#include <cmath>

#include "mha/dual.hpp"
#include "mha/floating.hpp"
#include "mha/mask.hpp"

namespace mha {

template <class T>
struct Scale : Rule {
  T scale_value;
};

/// Multiplies query * key^T in place of 1 / sqrt(head_dim). 0 and negative factors are fine.
template <class T>
[[nodiscard]] Scale<T> scale(T factor) {
  return {{}, std::move(factor)};
}

template <class T>
struct Softcap : Rule {
  T softcap_value;
};

/// Soft cap of the scores: cap * tanh(score / cap), before biases and masks; 0 = none.
/// @throws std::invalid_argument if cap is negative
template <class T>
[[nodiscard]] Softcap<T> softcap(T cap) {
  detail::require(!(cap < T(0)), "softcap: the cap must not be negative");
  return {{}, std::move(cap)};
}

/// bias(m).
template <class T>
class Bias : public Rule {
 public:
  static constexpr bool kModifiesScore = true;
  static constexpr bool kAdditiveScore = true;

  explicit Bias(detail::Grid<T> grid) : grid_(std::move(grid)) {}
  void check(const CallExtent& call) const { grid_.check(call, "bias(m)"); }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return !detail::is_minus_infinity(grid_(b, h, i, j));
  }
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& /*extent*/, Index b, Index h, Index i,
               Index j) const {
    return s + finite_as<Scalar>(grid_(b, h, i, j));
  }

 private:
  /// The bias as a Scalar. A number too large for it, as a double's lowest() is for float, stays
  /// finite: it would mask without having been counted as a mask.
  template <class Scalar>
  static Scalar finite_as(const T& x) {
    if constexpr (std::is_same_v<T, Scalar> || !std::is_floating_point_v<T> ||
                  !std::is_floating_point_v<Scalar>) {
      return detail::convert<Scalar>(x);
    } else {
      constexpr T most = static_cast<T>((std::numeric_limits<Scalar>::max)());
      if (sizeof(T) <= sizeof(Scalar) || !detail::is_finite(x)) return static_cast<Scalar>(x);
      return static_cast<Scalar>(std::clamp(x, -most, most));
    }
  }

  detail::Grid<T> grid_;
};

namespace detail {

template <class M>
auto make_bias(M&& m) {
  using T = grid_scalar_t<M>;
  static_assert(
      !std::is_integral_v<T>,
      "mha::bias: numbers to be added must be floating-point; a boolean mask goes through "
      "keep() or ignore()");
  return Bias<T>(make_grid(std::forward<M>(m)));
}

}  // namespace detail

/// Adds m to the scores; an entry of -inf masks (a large negative number such as -1e9 does not).
/// @param m  query_len x kv_len Eigen matrix or expression of floating-point numbers; a vector of
///           kv_len, the same for every query; or a TensorView [batch, head, query, key], where an
///           axis of size 1 serves all. A named matrix or tensor is read where it lies: while the
///           rule is used it must live, and be neither resized nor assigned; an expression or a
///           temporary matrix is kept.
template <class M>
[[nodiscard]] auto bias(M&& m) {
  return detail::make_bias(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto bias(M&& m MHA_LIFETIMEBOUND) {
  return detail::make_bias(m);
}

namespace detail {

/// Where the gradient of a grid's numbers is summed up: the axes as Grid has them.
template <class G>
auto gradient_view(G& gradient) {
  auto view = tensor_view(gradient);
  static_assert(!std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                "mha: a gradient must not be const");
  if constexpr (EigenDense<G>) {
    if (G::IsVectorAtCompileTime && G::ColsAtCompileTime == 1) {
      std::swap(view.sizes[2], view.sizes[3]);
      std::swap(view.strides[2], view.strides[3]);
    }
  }
  for (std::size_t axis = 0; axis < 4; ++axis) {
    if (view.sizes[axis] == 1) view.strides[axis] = 0;
  }
  return view;
}

/// The entry of head h of a list with one for all, or one per head.
template <class G>
struct PerHead {
  G* sums;
  Index size;

  template <class Scalar>
  void add(Index h, const Scalar& grad) const {
    G& sum = sums[size == 1 ? 0 : h];
    sum = convert<G>(Scalar(convert<Scalar>(sum) + grad));
  }
};

template <class G>
PerHead<typename G::Scalar> per_head(const char* rule, G& gradient, Index size) {
  static_assert(G::IsVectorAtCompileTime, "mha: the gradient must be a vector");
  require(gradient.size() == size, rule, ": the gradient must have ", size, " entries, got ",
          gradient.size());
  return {gradient.data(), size};
}

}  // namespace detail

/// bias(m, gradient).
template <class T, class G>
class LearnedBias : public Bias<T> {
 public:
  using Plain = Bias<T>;
  static constexpr bool kAdditiveScore = false;
  static constexpr bool kHasScoreGradient = true;
  static constexpr bool kCollectsGradient = true;

  LearnedBias(detail::Grid<T> grid, const TensorView<G>& gradient)
      : Bias<T>(std::move(grid)), gradient_(gradient) {}
  template <class Scalar>
  Scalar score_gradient(const Scalar& /*s*/, const Scalar& grad, const Extent& /*extent*/, Index b,
                        Index h, Index i, Index j) const {
    G& sum = gradient_(b, h, i, j);
    sum = detail::convert<G>(Scalar(detail::convert<Scalar>(sum) + grad));
    return grad;
  }

 private:
  TensorView<G> gradient_;
};

namespace detail {

template <class M, class G>
auto make_learned_bias(M&& m, G& gradient) {
  using T = grid_scalar_t<M>;
  auto grid = make_grid(std::forward<M>(m));
  const auto sums = gradient_view(gradient);
  require(grid.sizes() == sums.sizes, "bias: the gradient must have the bias's shape, got ",
          list_text(sums.sizes), " and ", list_text(grid.sizes()));
  return LearnedBias<T, std::remove_pointer_t<decltype(sums.data)>>(std::move(grid), sums);
}

}  // namespace detail

/// bias(m), learned: attention_backward() adds the gradient of m to `gradient`. An axis of size 1
/// collects the sum of all that it serves. Calls that collect gradients of rules are computed by the
/// calling thread.
/// @param gradient  of m's shape, in memory that outlives the rule; set it to zero beforehand
/// @throws std::invalid_argument if the two differ in shape
template <class M, class G>
[[nodiscard]] auto bias(M&& m, G& gradient) {
  return detail::make_learned_bias(std::forward<M>(m), gradient);
}
template <detail::NamedMemory M, class G>
[[nodiscard]] auto bias(M&& m MHA_LIFETIMEBOUND, G& gradient) {
  return detail::make_learned_bias(m, gradient);
}
template <class M, class G>
requires detail::NamedMemory<G&>
[[nodiscard]] auto bias(M&& m, G& gradient MHA_LIFETIMEBOUND) {
  return detail::make_learned_bias(std::forward<M>(m), gradient);
}
template <detail::NamedMemory M, class G>
requires detail::NamedMemory<G&>
[[nodiscard]] auto bias(M&& m MHA_LIFETIMEBOUND, G& gradient MHA_LIFETIMEBOUND) {
  return detail::make_learned_bias(m, gradient);
}

/// The slope of head h of num_heads by the rule of ALiBi: with n the largest power of two <=
/// num_heads, the first n heads have 2^(-8 (h + 1) / n), the rest every other slope of 2n heads.
/// Source: Press, Smith, Lewis 2022, arXiv:2108.12409, section 3 and the authors' code.
inline double alibi_slope(Index h, Index num_heads) {
  Index n = 1;
  while (2 * n <= num_heads) n *= 2;
  const Index eighths = h < n ? 2 * (h + 1) : 2 * (h - n) + 1;  // of 4 / n
  return std::exp2(-4.0 * static_cast<double>(eighths) / static_cast<double>(n));
}

/// The slopes of all heads, see alibi_slope().
template <class Scalar = float>
[[nodiscard]] Vector<Scalar> alibi_slopes(Index num_heads) {
  detail::require(num_heads >= 0, "alibi_slopes: num_heads must not be negative, got ", num_heads);
  Vector<Scalar> slopes(num_heads);
  for (Index h = 0; h < num_heads; ++h)
    slopes(h) = detail::convert<Scalar>(alibi_slope(h, num_heads));
  return slopes;
}

/// alibi(), alibi(slope), alibi(slopes).
template <class T>
class Alibi : public Rule {
 public:
  static constexpr bool kModifiesScore = true;
  static constexpr bool kAdditiveScore = true;

  /// No slopes: those of alibi_slope() for the head count of the call.
  explicit Alibi(Vector<T> slopes) : slopes_(std::move(slopes)) {}

  void check(const CallExtent& call) const {
    detail::require(slopes_.size() <= 1 || slopes_.size() == call.num_heads, call.where,
                    ": alibi must have one slope, or one per query head, got ", slopes_.size(),
                    " for num_heads ", call.num_heads);
  }
  void place(Extent& extent, Index /*b*/, Index h) const {
    if (slopes_.size() == 0) extent.alibi_slope = alibi_slope(h, extent.num_heads);
  }
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& extent, Index /*b*/, Index h, Index i,
               Index j) const {
    return s - Scalar(slope<Scalar>(extent, h) * distance<Scalar>(extent, i, j));
  }
  template <class Scalar>
  static constexpr bool kTakesLanes = true;
  template <class Scalar>
  Lanes<Scalar> score_lanes(const Lanes<Scalar>& s, const Extent& extent, Index /*b*/, Index h,
                            const Lanes<int>& i, const Lanes<int>& j) const {
    const int shift = static_cast<int>(extent.kv_len - extent.query_len);
    return s - slope<Scalar>(extent, h) * abs(i + shift - j);
  }

 protected:
  template <class Scalar>
  static Scalar distance(const Extent& extent, Index i, Index j) {
    const Index ahead = i + extent.kv_len - extent.query_len - j;
    return detail::convert<Scalar>(static_cast<double>(ahead < 0 ? -ahead : ahead));
  }

 private:
  template <class Scalar>
  Scalar slope(const Extent& extent, Index h) const {
    if (slopes_.size() == 0) return detail::convert<Scalar>(extent.alibi_slope);
    return detail::convert<Scalar>(slopes_(slopes_.size() == 1 ? 0 : h));
  }

  Vector<T> slopes_;
};

/// Attention with linear biases: subtracts slope_h * |i + kv_len - query_len - j|, the distance
/// when the last query stands at the last key. Slopes by alibi_slope() for the head count of the
/// call.
[[nodiscard]] inline auto alibi() { return Alibi<double>(Vector<double>(0)); }

/// The same with your slopes: one number for every head, or an Eigen vector with one per query
/// head.
template <class T>
[[nodiscard]] auto alibi(const T& slopes) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "mha::alibi: the slopes must be a vector");
    detail::require(slopes.size() >= 1, "alibi: there must be at least one slope, got ",
                    slopes.size());
    using Scalar = typename T::Scalar;
    Vector<Scalar> all(slopes.size());
    for (Index h = 0; h < all.size(); ++h) all(h) = slopes.coeff(h);
    return Alibi<Scalar>(std::move(all));
  } else {
    static_assert(AttentionScalar<T> || std::is_integral_v<T>,
                  "mha::alibi: the slopes must be a number or an Eigen vector");
    return Alibi<T>(Vector<T>::Constant(1, slopes));
  }
}

/// alibi(slopes, gradient).
template <class T, class G>
class LearnedAlibi : public Alibi<T> {
 public:
  using Plain = Alibi<T>;
  static constexpr bool kAdditiveScore = false;
  static constexpr bool kHasScoreGradient = true;
  static constexpr bool kCollectsGradient = true;

  LearnedAlibi(Vector<T> slopes, const detail::PerHead<G>& gradient)
      : Alibi<T>(std::move(slopes)), gradient_(gradient) {}
  template <class Scalar>
  Scalar score_gradient(const Scalar& /*s*/, const Scalar& grad, const Extent& extent, Index /*b*/,
                        Index h, Index i, Index j) const {
    gradient_.add(h, Scalar(-Scalar(grad * this->template distance<Scalar>(extent, i, j))));
    return grad;
  }

 private:
  detail::PerHead<G> gradient_;
};

namespace detail {

template <EigenDense S, EigenDense G>
auto make_learned_alibi(const S& slopes, G& gradient) {
  static_assert(S::IsVectorAtCompileTime, "mha::alibi: the slopes must be a vector");
  require(slopes.size() >= 1, "alibi: there must be at least one slope, got ", slopes.size());
  using T = typename S::Scalar;
  Vector<T> all(slopes.size());
  for (Index h = 0; h < all.size(); ++h) all(h) = slopes.coeff(h);
  return LearnedAlibi<T, typename G::Scalar>(std::move(all),
                                             per_head("alibi", gradient, slopes.size()));
}

}  // namespace detail

/// alibi(slopes), learned: attention_backward() adds the slopes' gradient to `gradient`, as with
/// bias(m, gradient).
template <EigenDense S, EigenDense G>
[[nodiscard]] auto alibi(const S& slopes, G& gradient) {
  return detail::make_learned_alibi(slopes, gradient);
}
template <EigenDense S, EigenDense G>
requires detail::NamedMemory<G&>
[[nodiscard]] auto alibi(const S& slopes, G& gradient MHA_LIFETIMEBOUND) {
  return detail::make_learned_alibi(slopes, gradient);
}

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

  explicit ScoreFunction(F f) : f_(std::move(f)) {}
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
/// the scaled (and capped) one in the accumulator type. A result of -inf masks the key. Called for
/// every allowed pair, in any order, perhaps more than once, from several threads if an executor is
/// given. A function over Lanes (lanes.hpp) is called with sixteen queries or keys at once, among
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
  DifferentiableScoreFunction(F f, DF df) : ScoreFunction<F>(std::move(f)), df_(std::move(df)) {}
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

/// sinks(logits).
template <class T>
class Sinks : public Rule {
 public:
  explicit Sinks(Vector<T> logits) : logits_(std::move(logits)) {}
  void check(const CallExtent& call) const {
    detail::require(logits_.size() == 1 || logits_.size() == call.num_heads, call.where,
                    ": sinks must have one logit, or one per query head, got ", logits_.size(),
                    " for num_heads ", call.num_heads);
  }
  template <class Scalar>
  Scalar sink(Index h) const {
    return detail::convert<Scalar>(logits_(logits_.size() == 1 ? 0 : h));
  }

 private:
  Vector<T> logits_;
};

/// A logit per head that joins the softmax's denominator and has no value: weights sum to less than
/// 1, lse counts it, and a row with no allowed key still gives 0. One number, or an Eigen vector
/// with one per head. Neither scaled nor capped. When parts are
/// merged, give it to one of them. Source: Xiao et al. 2023, arXiv:2309.17453, as
/// learned logits (gpt-oss).
template <class T>
[[nodiscard]] auto sinks(const T& logits) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "mha::sinks: the logits must be a vector");
    using Scalar = typename T::Scalar;
    Vector<Scalar> all(logits.size());
    for (Index h = 0; h < all.size(); ++h) all(h) = logits.coeff(h);
    return Sinks<Scalar>(std::move(all));
  } else {
    return Sinks<T>(Vector<T>::Constant(1, logits));
  }
}

/// sinks(logits, gradient).
template <class T, class G>
class LearnedSinks : public Sinks<T> {
 public:
  using Plain = Sinks<T>;
  static constexpr bool kCollectsGradient = true;

  LearnedSinks(Vector<T> logits, const detail::PerHead<G>& gradient)
      : Sinks<T>(std::move(logits)), gradient_(gradient) {}
  template <class Scalar>
  void collect(Index h, const Scalar& grad) const {
    gradient_.add(h, grad);
  }

 private:
  detail::PerHead<G> gradient_;
};

namespace detail {

template <EigenDense S, EigenDense G>
auto make_learned_sinks(const S& logits, G& gradient) {
  static_assert(S::IsVectorAtCompileTime, "mha::sinks: the logits must be a vector");
  using T = typename S::Scalar;
  Vector<T> all(logits.size());
  for (Index h = 0; h < all.size(); ++h) all(h) = logits.coeff(h);
  return LearnedSinks<T, typename G::Scalar>(std::move(all),
                                             per_head("sinks", gradient, logits.size()));
}

}  // namespace detail

/// sinks(logits), learned: attention_backward() adds the logits' gradient to `gradient`, as with
/// bias(m, gradient).
template <EigenDense S, EigenDense G>
[[nodiscard]] auto sinks(const S& logits, G& gradient) {
  return detail::make_learned_sinks(logits, gradient);
}
template <EigenDense S, EigenDense G>
requires detail::NamedMemory<G&>
[[nodiscard]] auto sinks(const S& logits, G& gradient MHA_LIFETIMEBOUND) {
  return detail::make_learned_sinks(logits, gradient);
}

}  // namespace mha
