// SPDX-License-Identifier: MIT
//
// Masks of padding at the end of each sequence, by its length.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/index_list.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// Key rows n[b] and later are padding.
class Lengths : public Rule {
 public:
  static constexpr bool kKeysFromZero = true;
  static constexpr bool kKeysRise = true;

  explicit Lengths(IndexList n) : n_(std::move(n)) {
    for (Index b = 0; b < n_.size(); ++b) {
      detail::require(n_[b] >= 0, "lengths: lengths must not be negative, got ", n_[b],
                      " for sequence ", b);
    }
  }
  void check(const CallExtent& call) const {
    detail::check_list(call, "lengths", n_);
    for (Index b = 0; b < n_.size(); ++b) {
      detail::require(n_[b] <= call.kv_len, call.where,
                      ": lengths must lie between 0 and kv_len, got ", n_[b], " and ", call.kv_len);
    }
  }
  KeyRange keys(const Extent& /*extent*/, Index b, Index /*h*/, Index /*i*/) const {
    return {0, n_[b]};
  }
  void add_to(detail::Digest& digest) const { digest.add_list(n_); }

 private:
  IndexList n_;
};

/// The first n keys may be attended to: one n, or one per sequence (`lengths({3, 5})`, a vector).
/// @throws std::invalid_argument if one is negative
inline Lengths lengths(IndexList n) { return Lengths(std::move(n)); }

}  // namespace mha
