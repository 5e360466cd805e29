// SPDX-License-Identifier: MIT
//
// Numbers added to the scores, given or learned.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/internal/support/saturate.hpp"
#include "mha/rules/combine.hpp"
#include "mha/rules/grid.hpp"

namespace mha::inline MHA_ABI {

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
  GradientSharing gradient_sharing() const {
    // As of relative positions: a number belongs to several pairs, and who shares it is not told.
    if (detail::overlaps_itself(gradient_)) return {};
    return {gradient_.sizes[0] == 1, gradient_.sizes[1] == 1, gradient_.sizes[3] == 1};
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
/// collects the sum of all that it serves, in the order of sequences and heads, the same for any number of
/// threads: what adds to the same numbers is computed by one of them.
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

}  // namespace mha
