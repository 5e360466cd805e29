// SPDX-License-Identifier: MIT
//
// A dual number, x + x' e with e^2 = 0: the least that a user's own scalar type needs in order to
// go through attention and the layer.
#pragma once

#include <Eigen/Core>
#include <cmath>

namespace mha::test {

struct Dual {
  double real = 0;
  double slope = 0;  ///< the derivative along some direction

  Dual() = default;
  Dual(double number, double derivative = 0)  // NOLINT: numbers are constants
      : real(number), slope(derivative) {}

  friend Dual operator+(const Dual& a, const Dual& b) {
    return {a.real + b.real, a.slope + b.slope};
  }
  friend Dual operator-(const Dual& a, const Dual& b) {
    return {a.real - b.real, a.slope - b.slope};
  }
  friend Dual operator-(const Dual& a) { return {-a.real, -a.slope}; }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.real * b.real, a.slope * b.real + a.real * b.slope};
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    const double ratio = a.real / b.real;
    return {ratio, (a.slope - ratio * b.slope) / b.real};
  }
  Dual& operator+=(const Dual& other) { return *this = *this + other; }
  Dual& operator/=(const Dual& other) { return *this = *this / other; }
  friend bool operator<(const Dual& a, const Dual& b) { return a.real < b.real; }
  friend bool operator>(const Dual& a, const Dual& b) { return a.real > b.real; }
  friend bool operator==(const Dual& a, const Dual& b) { return a.real == b.real; }

  friend Dual exp(const Dual& a) { return {std::exp(a.real), std::exp(a.real) * a.slope}; }
  friend Dual log(const Dual& a) { return {std::log(a.real), a.slope / a.real}; }
  friend Dual sqrt(const Dual& a) {
    const double root = std::sqrt(a.real);
    return {root, a.slope / (2 * root)};
  }
  friend Dual tanh(const Dual& a) {
    const double t = std::tanh(a.real);
    return {t, (1 - t * t) * a.slope};
  }
};

}  // namespace mha::test

/// Eigen's defaults, which know neither infinity nor epsilon of such a type.
template <>
struct Eigen::NumTraits<mha::test::Dual> : Eigen::GenericNumTraits<mha::test::Dual> {
  enum { RequireInitialization = 1, ReadCost = 2, AddCost = 2, MulCost = 4 };
};
