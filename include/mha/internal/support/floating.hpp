// SPDX-License-Identifier: MIT
//
// Questions about single numbers that must be answered right under -ffast-math, which lets a
// compiler assume that neither NaN nor infinity exists and delete `x == -inf` or `x != x`. For the
// built-in and the 16-bit types the answers are therefore read from the bits. Used for masks (an
// additive -inf means "not allowed") and for values behind masks; never to decide whether a row is
// empty: that is counted.
#pragma once

#include "mha/internal/support/language.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

template <class Scalar>
inline constexpr bool is_16_bit =
    std::is_same_v<Scalar, Eigen::half> || std::is_same_v<Scalar, Eigen::bfloat16>;

/// x = -infinity. The bits of built-in types are stored as integers: under -ffast-math clang drops
/// a select or a return value that is a literal infinity.
template <class Scalar>
void set_minus_infinity(Scalar& x) {
  if constexpr (std::is_same_v<Scalar, float>) {
    const std::uint32_t bits = 0xFF800000u;
    std::memcpy(&x, &bits, sizeof(x));
  } else if constexpr (std::is_same_v<Scalar, double>) {
    const std::uint64_t bits = 0xFFF0000000000000u;
    std::memcpy(&x, &bits, sizeof(x));
  } else {
    // Not NumTraits' infinity: it is 0 for numbers without std::numeric_limits.
    double infinity = 0;
    set_minus_infinity(infinity);
    x = Scalar(infinity);
  }
}

/// Numbers that carry another inside (AutoDiffScalar and most dual numbers) offer it as value().
template <class Scalar>
concept HasValue = requires(const Scalar& x) {
  x.value();
};

/// The bits of the sign and exponent, and of the fraction, of a built-in floating-point number.
struct FloatBits {
  bool negative;
  bool exponent_all_ones;  ///< infinity or NaN
  bool fraction_zero;
};

template <class Scalar>
FloatBits float_bits(const Scalar& x) {
  if constexpr (sizeof(Scalar) == 8) {
    const auto bits = std::bit_cast<std::uint64_t>(x);
    return {(bits >> 63) != 0, (bits >> 52 & 0x7FF) == 0x7FF, (bits << 12) == 0};
  } else if constexpr (sizeof(Scalar) == 4) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return {(bits >> 31) != 0, (bits >> 23 & 0xFF) == 0xFF, (bits << 9) == 0};
  } else if constexpr (std::is_same_v<Scalar, Eigen::half>) {
    const auto bits = Eigen::numext::bit_cast<std::uint16_t>(x);
    return {(bits >> 15) != 0, (bits >> 10 & 0x1F) == 0x1F, (bits & 0x3FF) == 0};
  } else if constexpr (std::is_same_v<Scalar, Eigen::bfloat16>) {
    const auto bits = Eigen::numext::bit_cast<std::uint16_t>(x);
    return {(bits >> 15) != 0, (bits >> 7 & 0xFF) == 0xFF, (bits & 0x7F) == 0};
  } else {  // long double: x87 extended (64-bit fraction, its top bit explicit) or IEEE quadruple
    static_assert(std::is_same_v<Scalar, long double>);
    constexpr int digits = std::numeric_limits<long double>::digits;
    static_assert(digits == 64 || digits == 113, "mha: this platform's long double is unknown");
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    const auto* const bytes = reinterpret_cast<const char*>(&x);
    constexpr bool big = std::endian::native == std::endian::big;
    std::memcpy(&low, bytes + (big ? 8 : 0), 8);
    std::memcpy(&high, bytes + (big ? 0 : 8), sizeof(x) < 16 ? 2 : 8);
    if constexpr (std::numeric_limits<long double>::digits == 64) {
      return {(high >> 15 & 1) != 0, (high & 0x7FFF) == 0x7FFF, (low << 1) == 0};
    } else {
      return {(high >> 63) != 0, (high >> 48 & 0x7FFF) == 0x7FFF, (high << 16) == 0 && low == 0};
    }
  }
}

template <class Scalar>
inline constexpr bool has_float_bits = std::is_floating_point_v<Scalar> || is_16_bit<Scalar>;

/// Is x -infinity? NaN and every finite number, however low, are not.
template <class Scalar>
bool is_minus_infinity(const Scalar& x) {
  if constexpr (has_float_bits<Scalar>) {
    const FloatBits bits = float_bits(x);
    return bits.negative && bits.exponent_all_ones && bits.fraction_zero;
  } else if constexpr (HasValue<Scalar>) {
    return is_minus_infinity<std::remove_cvref_t<decltype(x.value())>>(x.value());
  } else {
    return x < Scalar(-std::numeric_limits<double>::max());
  }
}

/// x, or +0 if x is -0. Not by adding 0, which -march may fuse with the product that x is.
template <class Scalar>
Scalar without_sign_of_zero(const Scalar& x) {
  if constexpr (std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>) {
    using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;
    const Bits bits = std::bit_cast<Bits>(x);
    return std::bit_cast<Scalar>(Bits(bits << 1) == 0 ? Bits(0) : bits);
  } else {
    return x == Scalar(0) ? Scalar(0) : x;
  }
}

/// Neither NaN nor infinite. For built-in and 16-bit types only.
template <class Scalar>
bool is_finite(const Scalar& x) {
  return !float_bits(x).exponent_all_ones;
}

/// The same for any number.
template <class Number>
bool is_finite_number(const Number& x) {
  if constexpr (has_float_bits<Number>) {
    return is_finite(x);
  } else if constexpr (std::is_integral_v<Number>) {
    return true;
  } else if constexpr (HasValue<Number>) {
    return is_finite_number<std::remove_cvref_t<decltype(x.value())>>(x.value());
  } else {
    const Number difference(x - x);  // NaN unless x is finite
    return difference == difference;
  }
}

}  // namespace mha::detail
