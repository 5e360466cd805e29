// SPDX-License-Identifier: MIT
//
// A bound that scores approach smoothly.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/internal/support/floating.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

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

}  // namespace mha
