// SPDX-License-Identifier: MIT
//
// Inputs of one head, and rules of one type whose numbers are picked at random.
#pragma once

#include <mha/mask.hpp>

#include <initializer_list>
#include <random>

#include "support/matrices.hpp"

namespace mha::test {

/// Query, key and value of one head.
template <class Scalar>
struct Inputs {
  Matrix<Scalar> query;
  Matrix<Scalar> key;
  Matrix<Scalar> value;

  Inputs(Index query_len, Index kv_len, Index head_dim, Index value_dim, std::uint64_t seed)
      : query(random_matrix<Scalar>(query_len, head_dim, seed, 2)),
        key(random_matrix<Scalar>(kv_len, head_dim, seed + 1, 2)),
        value(random_matrix<Scalar>(kv_len, value_dim, seed + 2)) {}
};

/// Picks from a fixed sequence of random numbers.
class Picker {
 public:
  explicit Picker(std::uint64_t seed) : bits_(seed) {}
  std::uint64_t seed() { return bits_() >> 16; }
  Index between(Index low, Index high) {
    return low + static_cast<Index>(bits_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool one_in(Index n) { return between(1, n) == 1; }
  Index of(std::initializer_list<Index> choices) {
    return choices.begin()[between(0, static_cast<Index>(choices.size()) - 1)];
  }
  double from(std::initializer_list<double> choices) {
    return choices.begin()[between(0, static_cast<Index>(choices.size()) - 1)];
  }

 private:
  std::mt19937_64 bits_;
};

/// Rules of one type that vary in their data: none of them need be in force.
inline Causal pick_causal(Picker& pick, Index query_len, Index kv_len) {
  switch (pick.between(0, 3)) {
    case 0:
      return causal();
    case 1:
      return causal_lower_right();
    case 2:
      return causal_offset(pick.between(-query_len, kv_len));
    default:
      return causal_offset(kv_len);  // hides nothing
  }
}
inline Window pick_window(Picker& pick, Index kv_len) {
  return {pick.one_in(2) ? -1 : pick.between(0, kv_len),
          pick.one_in(2) ? -1 : pick.between(0, kv_len)};
}
inline Lengths pick_lengths(Picker& pick, Index kv_len) {
  return lengths(pick.one_in(3) ? pick.between(0, kv_len) : kv_len);
}

}  // namespace mha::test
