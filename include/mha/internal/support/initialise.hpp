// SPDX-License-Identifier: MIT
//
// Initial parameters from a seed: the same with every standard library (the normal
// numbers up to the last bit of its log and cos).
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// Numbers from a seed, by SplitMix64. Source: Steele, Lea, Flood 2014,
/// doi:10.1145/2660193.2660195.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  /// In [0, 1), 53 random bits.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// Mean 0, deviation 1, by Box and Muller.
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * 3.14159265358979323846 * uniform());
  }

 private:
  std::uint64_t state_;
};

/// The seed of a layer that is given none: another one with every call, in one order in every run.
/// At least 2^63, so that no small seed of a user's is drawn.
inline std::uint64_t drawn_seed() {
  static std::atomic<std::uint64_t> layers{0};
  constexpr std::uint64_t kFirst = 0x6D68612E68707021u;
  return Random(kFirst + layers.fetch_add(1, std::memory_order_relaxed)).bits() | std::uint64_t{1}
                                                                                      << 63;
}

template <class Derived>
void fill_uniform(Eigen::MatrixBase<Derived>& m, double bound, Random& random) {
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      m(i, j) = convert<typename Derived::Scalar>(bound * (2 * random.uniform() - 1));
    }
  }
}

template <class Derived>
void fill_normal(Eigen::MatrixBase<Derived>& m, double deviation, Random& random) {
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      m(i, j) = convert<typename Derived::Scalar>(deviation * random.normal());
    }
  }
}

}  // namespace mha::detail
