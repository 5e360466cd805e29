// SPDX-License-Identifier: MIT
//
// Attention with linear biases: scores fall with the distance between query and key.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <utility>

#include "mha/internal/support/saturate.hpp"
#include "mha/rules/per_head.hpp"

namespace mha::inline MHA_ABI {

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
  detail::require(num_heads >= 0 && num_heads <= detail::kMaxSize,
                  "alibi_slopes: num_heads must lie between 0 and ", detail::kMaxSize, ", got ",
                  num_heads);
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
    using Scalar = typename T::Scalar;
    return Alibi<Scalar>(detail::copied("alibi: there must be at least one slope", slopes));
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
  GradientSharing gradient_sharing() const { return gradient_.sharing(); }

 private:
  detail::PerHead<G> gradient_;
};

namespace detail {

template <EigenDense S, EigenDense G>
auto make_learned_alibi(const S& slopes, G& gradient) {
  static_assert(S::IsVectorAtCompileTime, "mha::alibi: the slopes must be a vector");
  using T = typename S::Scalar;
  Vector<T> own = copied("alibi: there must be at least one slope", slopes);
  const auto sums = per_head("alibi", gradient, slopes.size());
  return LearnedAlibi<T, typename G::Scalar>(std::move(own), sums);
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

}  // namespace mha
