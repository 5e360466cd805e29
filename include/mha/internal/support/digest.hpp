// SPDX-License-Identifier: MIT
//
// A number that stands for what a rule consists of, as far as that can be seen cheaply: the sizes of
// what it refers to and the numbers that it owns. The backward pass of the layer compares that of its
// rule with that of the forward pass. The mixer is SplitMix64's (Steele et al. 2014).
#pragma once

#include "mha/internal/support/language.hpp"

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

class Digest {
 public:
  Digest& add(std::uint64_t bits) {
    state_ += bits + 0x9E3779B97F4A7C15u;
    state_ = (state_ ^ (state_ >> 30)) * 0xBF58476D1CE4E5B9u;
    state_ = (state_ ^ (state_ >> 27)) * 0x94D049BB133111EBu;
    state_ ^= state_ >> 31;
    return *this;
  }
  Digest& add(Index n) { return add(static_cast<std::uint64_t>(n)); }
  /// Built-in and 16-bit numbers, as a double; others, dual numbers say, do not count.
  template <class T>
  Digest& add_number(const T& x) {
    if constexpr (std::is_arithmetic_v<T> || !std::is_same_v<accumulator_t<T>, T>) {
      const auto number = static_cast<double>(x);
      std::uint64_t bits = 0;
      std::memcpy(&bits, &number, sizeof(bits));
      add(bits);
    }
    return *this;
  }
  /// A list with size() and operator[] or operator().
  template <class List>
  Digest& add_list(const List& list) {
    add(static_cast<Index>(list.size()));
    for (Index k = 0; k < static_cast<Index>(list.size()); ++k) add_number(list[k]);
    return *this;
  }
  Digest& add_sizes(const std::array<Index, 4>& sizes) {
    for (const Index size : sizes) add(size);
    return *this;
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace mha::detail
