// SPDX-License-Identifier: MIT
//
// Are these the gradients? For code of your own: compares a gradient with central differences.
//     auto loss = [&] { return layer(x).cwiseProduct(weights).sum(); };
//     auto check = mha::gradient_check(x, grad_x, loss);     // moves x by a little and back
//     assert(check.worst < 1e-6);
// Work in double: in float rounding leaves three digits.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mha/internal/support/checks.hpp"
#include "mha/internal/support/floating.hpp"

namespace mha::inline MHA_ABI {

/// What gradient_check() found.
struct GradientCheck {
  double worst = 0;  ///< the largest |gradient - difference| over the largest |gradient| (or 1)
  Index row = 0;     ///< where that is
  Index col = 0;
  double gradient = 0;    ///< what was given there
  double difference = 0;  ///< (loss(x + step) - loss(x - step)) / (2 step)
};

namespace detail {

/// loss() while an entry has another value.
template <class Scalar, class Loss>
double with_value(Scalar& entry, const Scalar& value, const Loss& loss) {
  struct Restore {
    Scalar& entry;
    const Scalar before;
    ~Restore() { entry = before; }
  } const restore{entry, entry};
  entry = value;
  return static_cast<double>(loss());
}

}  // namespace detail

/// Compares the gradient of `loss` by the entries of x with central differences.
///     d loss / d x(i, j) = (loss(x + h) - loss(x - h)) / (2 h) + O(h^2)
/// @param x         what the loss depends on: a parameter or an input; as it was when this returns or throws
/// @param gradient  of x's shape
/// @param loss      called without arguments, reads x where it lies and returns a number
/// @param step      h relative to max(1, |x(i, j)|); default eps^(1/3), where the error of the formula
///                  and that of rounding are about level
/// @throws std::invalid_argument if the shapes differ, entries of x share a place, or the step is
///         negative, not finite, or so small or large that some entry does not move to a number
/// Cost: two calls of the loss per entry.
template <EigenInMemory X, EigenDense G, class Loss>
[[nodiscard]] GradientCheck gradient_check(X&& x, const G& gradient, const Loss& loss,
                                           double step = 0) {
  using Scalar = typename std::remove_cvref_t<X>::Scalar;
  detail::require(x.rows() == gradient.rows() && x.cols() == gradient.cols(),
                  "gradient_check: the gradient must be ", x.rows(), " x ", x.cols(), ", got ",
                  gradient.rows(), " x ", gradient.cols());
  detail::require(step >= 0 && step <= std::numeric_limits<double>::max(),
                  "gradient_check: step must be positive and finite, or 0 for its default, got ",
                  step);
  detail::require_function("gradient_check: loss", loss);
  detail::check_matrix_result("gradient_check", "x", detail::view_of_matrix(x));
  if constexpr (EigenInMemory<G>) {
    const detail::Named what{"gradient", {"batch", "num_heads", "rows", "cols"}};
    (void)detail::check_view("gradient_check", what,
                             detail::as_tensor(detail::view_of_matrix(gradient)));
  }
  if (step == 0) step = std::cbrt(static_cast<double>(std::numeric_limits<Scalar>::epsilon()));
  double largest = 0;
  double worst = -1;
  GradientCheck result;
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index j = 0; j < x.cols(); ++j) {
      Scalar& entry = x.coeffRef(i, j);
      const Scalar before = entry;
      const auto h =
          static_cast<Scalar>(step * std::max(1.0, std::abs(static_cast<double>(before))));
      const auto above = static_cast<Scalar>(before + h);
      const auto below = static_cast<Scalar>(before - h);
      const double width = static_cast<double>(above) - static_cast<double>(below);
      // A NaN or infinity in x is no fault of the step.
      const bool moves = width > 0 && width <= std::numeric_limits<double>::max();
      detail::require(moves || !detail::is_finite_number(before),
                      "gradient_check: step must move x(", i, ", ", j, ") = ", before,
                      ", and not to infinity, got ", step);
      const double difference =
          (detail::with_value(entry, above, loss) - detail::with_value(entry, below, loss)) / width;
      const auto given = static_cast<double>(gradient(i, j));
      largest = std::max(largest, std::abs(given));
      const double error = std::abs(given - difference);
      if (error > worst || !(error == error)) {
        worst = error;
        result = {0, i, j, given, difference};
      }
    }
  }
  result.worst = std::max(worst, 0.0) / (largest > 0 ? largest : 1);
  if (!(worst == worst)) result.worst = worst;
  return result;
}

}  // namespace mha
