// SPDX-License-Identifier: MIT
//
// Dropout of attention weights, for training: each weight is dropped with a probability p after the
// softmax, the others are divided by 1 - p. Only where a call asks for it, by a rule:
//     layer.forward_training(pass, x, mha::causal() & mha::dropout(0.1, step));
// The mask is a function of (seed, sequence, head, query, key) and nothing else: neither tiles nor
// threads change it, and the backward pass, given the same rule, has the same one.
// Source: Srivastava et al. 2014, JMLR 15 (dropout); Salmon et al. 2011, doi:10.1145/2063384.2063405
// (counter-based random numbers); the mixers are SplitMix64's (Steele et al. 2014) and MurmurHash3's.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <cstdint>

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// The dropout of a query row: asked key by key.
struct DropoutRow {
  std::uint32_t start = 0;
  std::uint32_t twist = 0;

  /// 32 random bits for key j.
  std::uint32_t bits(Index j) const {
    std::uint32_t x = static_cast<std::uint32_t>(j) * 0x9E3779B9u + start;
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    return x ^ twist;
  }
};

/// dropout(p, seed).
class Dropout : public Rule {
 public:
  Dropout(double probability, std::uint64_t seed)
      : threshold_(static_cast<std::uint64_t>(std::llround(checked(probability) * 0x1p32))),
        scale_(probability < 1 ? 1 / (1 - static_cast<long double>(probability)) : 0),
        seed_(seed) {}

  DropoutRow row(Index b, Index h, Index i) const {
    std::uint64_t x = mixed(seed_);
    x = mixed(x + static_cast<std::uint64_t>(b));
    x = mixed(x + static_cast<std::uint64_t>(h));
    x = mixed(x + static_cast<std::uint64_t>(i));
    return {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)};
  }
  /// Weights whose bits are below it are dropped: 2^32 p.
  std::uint64_t threshold() const { return threshold_; }
  /// 1 / (1 - p), or 0 where all are dropped.
  template <class T = double>
  T dropout_scale() const {
    if constexpr (std::is_floating_point_v<T>) {
      return static_cast<T>(scale_);
    } else {
      return detail::convert<T>(static_cast<double>(scale_));
    }
  }
  bool keeps(const DropoutRow& row, Index j) const { return row.bits(j) >= threshold_; }
  void add_to(detail::Digest& digest) const { digest.add(threshold_).add(seed_); }

 private:
  static double checked(double probability) {
    detail::require(probability >= 0 && probability <= 1,
                    "dropout: the probability must lie between 0 and 1, got ", probability);
    return probability;
  }
  static std::uint64_t mixed(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  std::uint64_t threshold_;
  long double scale_;
  std::uint64_t seed_;
};

/// Drops each weight with probability p after the softmax, and divides the others by 1 - p: the
/// output is the same on average. Weights that are returned, and lse, are those before. p counts in
/// steps of 2^-32; with p = 1 every output is 0. A dropped weight is a 0 that multiplies its value: an
/// infinite or NaN value of a key that the row may attend to makes NaN of it all the same. Use
/// another seed for every layer and step.
/// @throws std::invalid_argument unless 0 <= p <= 1
[[nodiscard]] inline Dropout dropout(double p, std::uint64_t seed) { return {p, seed}; }

}  // namespace mha
