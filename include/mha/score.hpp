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
#include "mha/mask.hpp"
#include "mha/saturate.hpp"

namespace mha {

template <class T>
struct Scale : Rule {
  T scale_value;
  void add_to(detail::Digest& digest) const { digest.add_number(scale_value); }
};

/// Multiplies query * key^T in place of 1 / sqrt(head_dim). 0 and negative factors are fine.
/// @throws std::invalid_argument if factor is NaN or infinite; the call, if its accumulator cannot
/// hold it (1e300 in float)
template <class T>
[[nodiscard]] Scale<T> scale(T factor) {
  detail::require(detail::is_finite_number(factor), "scale: the factor must be finite, got ",
                  factor);
  return {{}, std::move(factor)};
}

template <class T>
struct Softcap : Rule {
  T softcap_value;
  void add_to(detail::Digest& digest) const { digest.add_number(softcap_value); }
};

namespace detail {

/// 0 or more, infinity among them; told apart from NaN by bits, where there are known ones.
template <class T>
bool is_cap(const T& cap) {
  if constexpr (has_float_bits<T>) {
    const FloatBits bits = float_bits(cap);
    if (bits.exponent_all_ones) return bits.fraction_zero && !bits.negative;
  }
  return cap >= T(0);
}

}  // namespace detail

/// Soft cap of the scores: cap * tanh(score / cap), before biases and masks. 0 = none, and so is
/// infinity, the limit, or what the accumulator cannot hold (1e300 in float); a cap too small for
/// it counts as its smallest normal number.
/// @throws std::invalid_argument if cap is negative or NaN
template <class T>
[[nodiscard]] Softcap<T> softcap(T cap) {
  detail::require(detail::is_cap(cap), "softcap: the cap must be 0 or more, got ", cap);
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
    return detail::saturated_sum(s, detail::convert_finite<Scalar>(grid_(b, h, i, j)));
  }
  void add_to(detail::Digest& digest) const { digest.add_sizes(grid_.sizes()); }

 private:
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
  return Bias<T>(make_grid("bias", std::forward<M>(m)));
}

}  // namespace detail

/// Adds m to the scores; an entry of -inf masks (a large negative number such as -1e9 does not). What
/// is finite stays so: entries and sums too large for the accumulator become its largest number, of
/// either sign. An entry of NaN or +inf makes NaN of the rows that add it, and of no other.
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

/// A vector of its own, from any Eigen vector or expression.
template <EigenDense S>
Vector<typename S::Scalar> copied(const S& list) {
  Vector<typename S::Scalar> all(list.size());
  for (Index h = 0; h < all.size(); ++h) all(h) = list.coeff(h);
  return all;
}

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

/// A list with one number for all heads, or one per head, has one at least.
inline void check_per_head(const char* sentence, Index size) {
  require(size >= 1, sentence, ", got ", size);
}

/// The entry of head h of a list with one for all, or one per head.
template <class G>
struct PerHead {
  G* sums;
  Index size;
  Index stride;  ///< from one head's to the next

  template <class Scalar>
  void add(Index h, const Scalar& grad) const {
    G& sum = sums[size == 1 ? 0 : h * stride];
    sum = convert<G>(Scalar(convert<Scalar>(sum) + grad));
  }
};

template <class G>
PerHead<typename G::Scalar> per_head(const char* rule, G& gradient, Index size) {
  static_assert(G::IsVectorAtCompileTime, "mha: the gradient must be a vector");
  require(gradient.size() == size && gradient.data() != nullptr, rule, ": the gradient must have ",
          size, " entries, got ", gradient.data() == nullptr ? 0 : gradient.size());
  return {gradient.data(), size, gradient.innerStride()};
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
  auto grid = make_grid("bias", std::forward<M>(m));
  const auto sums = gradient_view(gradient);
  require(grid.sizes() == sums.sizes, "bias: the gradient must have the bias's shape ",
          list_text(grid.sizes()), ", got ", list_text(sums.sizes));
  check_memory("bias: the gradient", sums);
  require(!overlaps(grid.view(), sums), "bias: the gradient must not overlap the bias, got sizes ",
          list_text(grid.sizes()), " in shared memory");
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

namespace detail {

/// alibi_slope() in the Scalar's own precision. The exponent is a fraction over a power of two, so
/// that it is exact; numbers without exp2 take square roots.
template <class Scalar>
Scalar alibi_slope_as(Index h, Index num_heads) {
  Index n = 1;
  while (n <= num_heads / 2) n *= 2;
  const Index steps = h < n ? h + 1 : 2 * (h - n) + 1;
  const Index in_octave = h < n ? 8 : 4;  // the exponent is -in_octave * steps / n
  const Index top = n < in_octave ? steps * (in_octave / n) : steps;
  const Index bottom = n < in_octave ? 1 : n / in_octave;
  if constexpr (std::is_floating_point_v<Scalar>) {
    return std::exp2(-static_cast<Scalar>(top) / static_cast<Scalar>(bottom));
  } else if constexpr (is_16_bit<Scalar>) {
    return convert<Scalar>(alibi_slope_as<double>(h, num_heads));
  } else {
    using std::sqrt;
    Scalar slope(1);
    for (Index k = 0; k < top / bottom; ++k) slope = Scalar(slope * Scalar(0.5));
    Scalar root(0.5);  // 2^(-bit / bottom)
    for (Index bit = bottom / 2; bit >= 1; bit /= 2) {
      root = Scalar(sqrt(root));
      if ((top % bottom & bit) != 0) slope = Scalar(slope * root);
    }
    return slope;
  }
}

}  // namespace detail

/// The slope of head h of num_heads by the rule of ALiBi: with n the largest power of two <=
/// num_heads, the first n heads have 2^(-8 (h + 1) / n), the rest every other slope of 2n heads.
/// @throws std::invalid_argument unless 0 <= h < num_heads
/// Source: Press, Smith, Lewis 2022, arXiv:2108.12409, section 3 and the authors' code.
inline double alibi_slope(Index h, Index num_heads) {
  detail::require(h >= 0 && h < num_heads,
                  "alibi_slope: h must lie between 0 and num_heads - 1, got ", h, " and ",
                  num_heads);
  return detail::alibi_slope_as<double>(h, num_heads);
}

/// The slopes of all heads, see alibi_slope(), in the Scalar's precision.
/// @throws std::invalid_argument if num_heads is negative
template <class Scalar = float>
[[nodiscard]] Vector<Scalar> alibi_slopes(Index num_heads) {
  detail::require(num_heads >= 0, "alibi_slopes: num_heads must not be negative, got ", num_heads);
  Vector<Scalar> slopes(num_heads);
  for (Index h = 0; h < num_heads; ++h) slopes(h) = detail::alibi_slope_as<Scalar>(h, num_heads);
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
    if (slopes_.size() == 0) {
      extent.alibi_slope = detail::alibi_slope_as<double>(h, extent.num_heads);
    }
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
  void add_to(detail::Digest& digest) const { digest.add_list(slopes_); }

 protected:
  template <class Scalar>
  static Scalar distance(const Extent& extent, Index i, Index j) {
    const Index ahead = i + extent.kv_len - extent.query_len - j;
    return detail::convert<Scalar>(static_cast<double>(ahead < 0 ? -ahead : ahead));
  }

 private:
  template <class Scalar>
  Scalar slope(const Extent& extent, Index h) const {
    if (slopes_.size() > 0) {
      return moderate(detail::convert_finite<Scalar>(slopes_(slopes_.size() == 1 ? 0 : h)));
    }
    if constexpr (std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>) {
      return static_cast<Scalar>(extent.alibi_slope);
    } else {
      return detail::alibi_slope_as<Scalar>(h, extent.num_heads);
    }
  }
  /// At most so large that no distance, all of which are below 2^31, makes a finite score overflow.
  template <class Scalar>
  static Scalar moderate(const Scalar& slope) {
    if constexpr (std::is_floating_point_v<Scalar>) {
      constexpr Scalar kMost = detail::kHarmless<Scalar> / Scalar(0x1p31);
      return slope > kMost ? kMost : slope < -kMost ? -kMost : slope;  // NaN stays
    } else {
      return slope;
    }
  }

  Vector<T> slopes_;
};

/// Attention with linear biases: subtracts slope_h * |i + kv_len - query_len - j|, the distance
/// when the last query stands at the last key. Slopes by alibi_slope() for the head count of the
/// call. A finite score stays finite, as with bias(m): slopes above 4e21 (double: 4e282) count as that
/// much. A slope of NaN makes NaN of the rows of its head.
[[nodiscard]] inline auto alibi() { return Alibi<double>(Vector<double>(0)); }

/// The same with your slopes: one number for every head, or an Eigen vector with one per query
/// head.
template <class T>
[[nodiscard]] auto alibi(const T& slopes) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "mha::alibi: the slopes must be a vector");
    detail::check_per_head("alibi: there must be at least one slope", slopes.size());
    using Scalar = typename T::Scalar;
    return Alibi<Scalar>(detail::copied(slopes));
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
  check_per_head("alibi: there must be at least one slope", slopes.size());
  using T = typename S::Scalar;
  return LearnedAlibi<T, typename G::Scalar>(copied(slopes),
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
    return detail::convert_finite<Scalar>(logits_(logits_.size() == 1 ? 0 : h));
  }
  void add_to(detail::Digest& digest) const { digest.add_list(logits_); }

 private:
  Vector<T> logits_;
};

/// A logit per head that joins the softmax's denominator and has no value: weights sum to less than
/// 1, and lse counts it. A row with no allowed key still gives 0, and its lse is the sink. One
/// number, or an Eigen vector with one per head. Neither scaled nor capped. -inf is no sink; +inf
/// takes all (output and weights 0, lse +inf); NaN makes NaN of its head's rows that have a key. When
/// parts are merged, give it to one of them. Source: Xiao et al. 2023, arXiv:2309.17453, as
/// learned logits (gpt-oss).
/// @throws std::invalid_argument for an empty vector
template <class T>
[[nodiscard]] auto sinks(const T& logits) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "mha::sinks: the logits must be a vector");
    detail::check_per_head("sinks: there must be at least one logit", logits.size());
    using Scalar = typename T::Scalar;
    return Sinks<Scalar>(detail::copied(logits));
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
  detail::check_per_head("sinks: there must be at least one logit", logits.size());
  using T = typename S::Scalar;
  return LearnedSinks<T, typename G::Scalar>(copied(logits),
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
