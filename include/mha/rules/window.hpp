// SPDX-License-Identifier: MIT
//
// Masks by the distance between query and key.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/support/saturate.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// p - left <= j <= p + right, where p = i + offset is the query's position: the offset of the
/// causal rule or query_offset() that the window is combined with, else the number of cached keys.
class Window : public Rule {
 public:
  static constexpr bool kKeysRise = true;

  Window(Index left, Index right) : left_(left), right_(right) {
    detail::require(left >= -1 && right >= -1,
                    "window: left and right must be -1 (unbounded) or more, got ", left, " and ",
                    right);
  }
  /// Exact for any numbers: what saturates lies far on one side of all keys, and i is added last.
  KeyRange keys(const Extent& extent, Index /*b*/, Index /*h*/, Index i) const {
    using detail::saturated_difference;
    using detail::saturated_sum;
    return {
        left_ < 0 ? 0 : saturated_sum(i, saturated_difference(extent.offset, left_)),
        right_ < 0 ? extent.kv_len : saturated_sum(i + 1, saturated_sum(extent.offset, right_))};
  }
  void add_to(detail::Digest& digest) const { digest.add(left_).add(right_); }

 private:
  Index left_;
  Index right_;
};

/// At most `left` keys before the query and `right` after it, itself not counted; -1 = unbounded.
/// @throws std::invalid_argument for any other negative number
inline Window window(Index left, Index right) { return {left, right}; }

/// The query's own key and the w - 1 before it: window(w - 1, 0).
/// @throws std::invalid_argument if w < 1
inline Window window_keys(Index w) {
  detail::require(w >= 1, "window_keys: w must be at least 1, got ", w);
  return {w - 1, 0};
}

}  // namespace mha
