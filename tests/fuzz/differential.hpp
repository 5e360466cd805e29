// SPDX-License-Identifier: MIT
//
// The differential test: a string of bytes becomes a call of the library, forward, of the layer, or
// backward, whose every number is compared with a plain oracle within a bound that is computed along
// with it, and whose bits are compared with those of the same call said otherwise (threads, workspace,
// batch company, cut queries, other outputs). Used three ways:
//     test_differential.cpp             some thousand cases of a fixed seed, with every test run
//     mha_differential                  a program: so many seconds, from any seed
//     fuzz_differential                 a target of libFuzzer
// To add an option: draw it in draw_...(), give it to the call and to the oracle.
#pragma once

#include <stdexcept>
#include <string>

#include "fuzz/bytes.hpp"

namespace mha::fuzz {

/// What a case may cost: multiply-adds of the oracle.
struct Budget {
  Index usual = 20'000;
  Index now_and_then = 400'000;  ///< once in 64
  Index seldom = 8'000'000;      ///< once in 1024

  Index draw(Bytes& bytes) const {
    const Index n = bytes.pick(1024);
    return n == 1023 ? seldom : n % 64 == 63 ? now_and_then : usual;
  }
};

/// Of a fuzzer, and of millions of cases: ten thousand a second.
inline constexpr Budget kSmallCases{60, 240, 2'400};

/// What a case found wrong; the bytes that made it are printed beside it.
class Wrong : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Each runs one case and returns what it was, in words. @throws Wrong if a number, a bit or an untouched place is wrong
std::string attention_case(Bytes& bytes, const Budget& budget);
std::string gradient_case(Bytes& bytes, const Budget& budget);
std::string layer_case(Bytes& bytes, const Budget& budget);
std::string cache_case(Bytes& bytes);

/// Comparisons with the oracle; those whose bound allows nearly any number show nothing.
struct Comparisons {
  std::uint64_t all = 0;
  std::uint64_t vacuous = 0;
  double share() const {
    return all == 0 ? 0 : static_cast<double>(vacuous) / static_cast<double>(all);
  }
};
/// The largest share that is right: 1 to 3 % are seen, nearly all of them gradients of wide layers in
/// float that cancel to almost nothing. More means that the test has ceased to test.
inline constexpr double kMostVacuous = 0.05;

/// Of all cases so far.
inline Comparisons& comparisons() {
  static Comparisons all;
  return all;
}

/// The first byte chooses among them.
inline std::string differential_case(Bytes& bytes, const Budget& budget) {
  const Index what = bytes.pick(256);
  if (what >= 224) return cache_case(bytes);
  switch (what % 8) {
    case 0:
    case 1:
    case 2:
    case 3:
      return attention_case(bytes, budget);
    case 4:
    case 5:
      return gradient_case(bytes, budget);
    default:
      return layer_case(bytes, budget);
  }
}
inline std::string differential_case(const std::uint8_t* data, std::size_t size,
                                     const Budget& budget) {
  Bytes bytes(data, size);
  return differential_case(bytes, budget);
}

}  // namespace mha::fuzz
