// SPDX-License-Identifier: MIT
//
// Arithmetic of rules that does not run over: positions, which may be any integer, stop at the ends
// of their type, and scores that were finite stay finite, since only a number that *is* -infinity
// masks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "mha/internal/support/floating.hpp"

namespace mha::inline MHA_ABI::detail {

/// a + b, or the end of the type that it lies beyond.
inline Index saturated_sum(Index a, Index b) {
  constexpr Index kLeast = std::numeric_limits<Index>::min();
  constexpr Index kMost = std::numeric_limits<Index>::max();
  if (b >= 0) return a > kMost - b ? kMost : a + b;
  return a < kLeast - b ? kLeast : a + b;
}

/// a - b for b >= 0, likewise.
inline Index saturated_difference(Index a, Index b) {
  constexpr Index kLeast = std::numeric_limits<Index>::min();
  return a < kLeast + b ? kLeast : a - b;
}

/// `x` in another scalar type. A finite number too large for it becomes the largest one of its sign:
/// as an infinity it would mask, or mean no sink, without having been written as one.
template <class To, class From>
To convert_finite(const From& x) {
  if constexpr (std::is_floating_point_v<From> && std::is_floating_point_v<To> &&
                std::numeric_limits<From>::max_exponent > std::numeric_limits<To>::max_exponent) {
    constexpr auto kMost = static_cast<From>(std::numeric_limits<To>::max());
    return static_cast<To>(is_finite(x) ? std::clamp(x, -kMost, kMost) : x);
  } else {
    return convert<To>(x);
  }
}

/// What is added to a finite number without overflow, whatever that is: less than half a unit in the
/// last place of the largest number. Nearly all that rules add, so that they need not look further.
template <class T>
inline constexpr T kHarmless = std::numeric_limits<T>::max() * std::numeric_limits<T>::epsilon() /
                               T(4);

template <class T>
bool is_harmless(const T& x) {
  if constexpr (sizeof(T) == 4 && std::is_floating_point_v<T>) {  // by bits: one comparison
    return (std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu) <=
           std::bit_cast<std::uint32_t>(kHarmless<T>);
  } else if constexpr (sizeof(T) == 8 && std::is_floating_point_v<T>) {
    return (std::bit_cast<std::uint64_t>(x) & 0x7FFFFFFFFFFFFFFFu) <=
           std::bit_cast<std::uint64_t>(kHarmless<T>);
  } else {
    return x <= kHarmless<T> && x >= -kHarmless<T>;
  }
}

/// saturated_sum() where b is large. No step of it makes an infinity, which -ffast-math would take for
/// impossible.
template <class T>
MHA_COLD T saturated_large_sum(const T& a, const T& b) {
  constexpr T kMost = std::numeric_limits<T>::max();
  if (!is_finite(b)) return a + b;
  if (!is_finite(a)) return a;
  const T half = a / T(2) + b / T(2);
  if (half > kMost / T(2)) return kMost;
  if (half < -kMost / T(2)) return -kMost;
  return a + b;
}

/// a + b; of two finite numbers whose sum overflows, the largest number of its sign. Numbers without
/// known bits (dual numbers, say) are added as they are.
template <class T>
T saturated_sum(const T& a, const T& b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!is_harmless(b)) return saturated_large_sum(a, b);
  }
  return a + b;
}

}  // namespace mha::detail
