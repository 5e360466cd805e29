// SPDX-License-Identifier: MIT
//
// Single numbers in tests: special values of every scalar type, and comparisons that hold under
// -ffast-math too, because they look at bits.
#pragma once

#include <mha/internal/support/floating.hpp>

#include <cstring>
#include <limits>

namespace mha::test {

/// Distance from 1 to the next number. (Eigen 3.4 says 2^-13 for half.)
template <class Scalar>
constexpr double eps_of() {
  if constexpr (std::is_same_v<Scalar, Eigen::half>) return 0x1p-10;
  if constexpr (std::is_same_v<Scalar, Eigen::bfloat16>) return 0x1p-7;
  return static_cast<double>(std::numeric_limits<Scalar>::epsilon());
}

template <class Scalar>
Scalar infinity_of() {
  return Eigen::NumTraits<Scalar>::infinity();
}

template <class Scalar>
Scalar minus_infinity_of() {
  return Scalar(-infinity_of<Scalar>());
}

template <class Scalar>
Scalar nan_of() {
  return Eigen::NumTraits<Scalar>::quiet_NaN();
}

template <class Scalar>
bool is_nan(const Scalar& x) {
  const detail::FloatBits bits = detail::float_bits(x);
  return bits.exponent_all_ones && !bits.fraction_zero;
}

/// The same bits: 0 and -0 differ, a NaN equals itself.
template <class Scalar>
bool equal_bits(const Scalar& a, const Scalar& b) {
  // The extended format of x86 has 10 bytes; what follows them is padding.
  const bool x87 =
      std::is_same_v<Scalar, long double> && std::numeric_limits<long double>::digits == 64;
  return std::memcmp(&a, &b, x87 ? 10 : sizeof(Scalar)) == 0;
}

}  // namespace mha::test
