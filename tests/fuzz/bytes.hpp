// SPDX-License-Identifier: MIT
//
// A string of bytes as the source of every choice that a random test makes: sizes, layouts, rules,
// the seed of the numbers. The same bytes make the same case; past their end every choice is its
// first. A fuzzer mutates such strings, a random test draws them from a seed, a reproducer names one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mha/types.hpp>

namespace mha::fuzz {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  /// 0, ..., n - 1.
  Index pick(Index n) {
    Index number = byte();
    if (n > 256) number = number * 256 + byte();
    return n <= 1 ? 0 : number % n;
  }
  Index between(Index low, Index high) { return low + pick(high - low + 1); }
  /// True once in n times.
  bool once_in(Index n) { return pick(n) == n - 1; }
  bool coin() { return pick(2) == 1; }
  /// One of the numbers given.
  template <class... More>
  Index one_of(Index first, More... more) {
    const Index all[] = {first, static_cast<Index>(more)...};
    return all[pick(1 + static_cast<Index>(sizeof...(more)))];
  }
  /// How many have been asked for: what lies behind makes no difference to the case.
  std::size_t used() const { return next_; }
  std::uint32_t seed() {
    std::uint32_t bits = 0;
    for (int k = 0; k < 3; ++k) bits = bits * 256 + static_cast<std::uint32_t>(byte());
    return bits;
  }

 private:
  Index byte() { return next_ < size_ ? static_cast<Index>(data_[next_++]) : 0; }

  const std::uint8_t* data_;
  std::size_t size_;
  std::size_t next_ = 0;
};

/// Random numbers for data, by SplitMix64.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(mixed(seed + 1)) {}
  std::uint64_t bits() { return mixed(state_ += 0x9E3779B97F4A7C15u); }
  /// In [-1, 1), of few bits now and then, so that equal numbers and ties occur.
  double number() {
    const std::uint64_t x = bits();
    if (x % 8 == 0) return static_cast<double>(x >> 61) / 4 - 1;
    return static_cast<double>(x >> 11) * 0x1p-52 - 1;
  }

 private:
  static std::uint64_t mixed(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

/// More than cases ask for, but for the rarest: past the end every choice is its first.
inline constexpr std::size_t kCaseBytes = 512;

/// The bytes of case k of a seed.
inline std::vector<std::uint8_t> case_bytes(std::uint64_t seed, std::uint64_t k) {
  Numbers numbers((seed << 40) + k);
  std::vector<std::uint8_t> bytes(kCaseBytes);
  for (std::size_t n = 0; n < kCaseBytes; n += 8) {
    std::uint64_t bits = numbers.bits();
    for (std::size_t i = 0; i < 8; ++i, bits >>= 8) bytes[n + i] = static_cast<std::uint8_t>(bits);
  }
  return bytes;
}

inline std::string to_hex(const std::uint8_t* data, std::size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t k = 0; k < size; ++k) {
    text += kDigits[data[k] >> 4];
    text += kDigits[data[k] & 15];
  }
  return text;
}

/// Digits that are none end the string.
inline std::vector<std::uint8_t> from_hex(const std::string& text) {
  std::vector<std::uint8_t> bytes;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (std::size_t k = 0; k + 1 < text.size(); k += 2) {
    const int high = digit(text[k]);
    const int low = digit(text[k + 1]);
    if (high < 0 || low < 0) break;
    bytes.push_back(static_cast<std::uint8_t>(high * 16 + low));
  }
  return bytes;
}

}  // namespace mha::fuzz
