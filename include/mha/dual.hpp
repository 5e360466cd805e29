// SPDX-License-Identifier: MIT
//
// Dual numbers, x + x' e with e^2 = 0: a number and its derivative along one direction, carried
// through any formula. The layer, and attention with any rule, take them as their Scalar (forward-
// mode differentiation); score functions are differentiated with them in the backward pass
// (attention_gradient.hpp).
//     Dual<double> x(2, 1);  auto y = exp(x) * x;    // y.slope = d/dx (e^x x) at 2
// Source: Clifford 1873, Preliminary sketch of biquaternions; Griewank, Walther 2008, Evaluating
// derivatives, section 3.1.
#pragma once

#include "mha/internal/support/language.hpp"

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

namespace mha::inline MHA_ABI {

template <class T>
struct Dual {
  T real{};   ///< the number
  T slope{};  ///< its derivative

  Dual() = default;
  template <class N>
  requires(std::is_arithmetic_v<N> || std::is_same_v<N, T>)
      Dual(N number)  // NOLINT: numbers are constants
      : real(static_cast<T>(number)), slope(T(0)) {}
  Dual(T number, T derivative) : real(number), slope(derivative) {}

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
    const T ratio = a.real / b.real;
    return {ratio, (a.slope - ratio * b.slope) / b.real};
  }
  Dual& operator+=(const Dual& other) { return *this = *this + other; }
  Dual& operator-=(const Dual& other) { return *this = *this - other; }
  Dual& operator*=(const Dual& other) { return *this = *this * other; }
  Dual& operator/=(const Dual& other) { return *this = *this / other; }

  friend bool operator<(const Dual& a, const Dual& b) { return a.real < b.real; }
  friend bool operator>(const Dual& a, const Dual& b) { return a.real > b.real; }
  friend bool operator<=(const Dual& a, const Dual& b) { return a.real <= b.real; }
  friend bool operator>=(const Dual& a, const Dual& b) { return a.real >= b.real; }
  friend bool operator==(const Dual& a, const Dual& b) { return a.real == b.real; }
  friend bool operator!=(const Dual& a, const Dual& b) { return a.real != b.real; }

  friend Dual exp(const Dual& a) {
    using std::exp;
    const T e = exp(a.real);
    return {e, e * a.slope};
  }
  friend Dual log(const Dual& a) {
    using std::log;
    return {log(a.real), a.slope / a.real};
  }
  friend Dual sqrt(const Dual& a) {
    using std::sqrt;
    const T root = sqrt(a.real);
    return {root, a.slope / (T(2) * root)};
  }
  friend Dual tanh(const Dual& a) {
    using std::tanh;
    const T t = tanh(a.real);
    return {t, (T(1) - t * t) * a.slope};
  }
  friend Dual sin(const Dual& a) {
    using std::cos;
    using std::sin;
    return {sin(a.real), cos(a.real) * a.slope};
  }
  friend Dual cos(const Dual& a) {
    using std::cos;
    using std::sin;
    return {cos(a.real), -(sin(a.real) * a.slope)};
  }
  friend Dual abs(const Dual& a) { return a.real < T(0) ? -a : a; }
};

}  // namespace mha

/// Eigen's defaults for numbers of one's own.
template <class T>
struct Eigen::NumTraits<mha::Dual<T>> : Eigen::GenericNumTraits<mha::Dual<T>> {
  enum { RequireInitialization = 1, ReadCost = 2, AddCost = 2, MulCost = 4 };
};
