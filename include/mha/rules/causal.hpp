// SPDX-License-Identifier: MIT
//
// Masks by the query's position: a query sees no later key. Also where queries stand among the keys.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/index_list.hpp"
#include "mha/internal/support/saturate.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// j <= i + offset, with three ways to say the offset.
class Causal : public Rule {
 public:
  static constexpr bool kKeysFromZero = true;
  static constexpr bool kKeysRise = true;
  enum class Align { upper_left, lower_right, given };

  Causal(Align align, IndexList given) : align_(align), given_(std::move(given)) {}

  void check(const CallExtent& call) const {
    if (align_ == Align::given) detail::check_list(call, "causal_offset", given_);
  }
  Index offset(const Extent& extent, Index b) const {
    switch (align_) {
      case Align::upper_left:
        return extent.past_len;
      case Align::lower_right:
        return extent.kv_len - extent.query_len;
      case Align::given:
        break;
    }
    return given_[b];
  }
  KeyRange keys(const Extent& extent, Index b, Index /*h*/, Index i) const {
    return {0, detail::saturated_sum(i + 1, offset(extent, b))};
  }
  void add_to(detail::Digest& digest) const {
    digest.add(static_cast<Index>(align_)).add_list(given_);
  }

 private:
  Align align_;
  IndexList given_;
};

/// A query sees no later key: j <= i + past_len, where past_len is the number of cached keys of the
/// call (past_len in its options), else 0. Upper-left aligned, as in PyTorch, ONNX and JAX. Of
/// several causal rules the tightest counts, the one of the smallest offset, for windows too.
inline Causal causal() { return {Causal::Align::upper_left, {}}; }

/// The last query sees the last key: j <= i + kv_len - query_len, as in FlashAttention since 2.1.
/// With more queries than keys the first rows see nothing, and are 0.
inline Causal causal_lower_right() { return {Causal::Align::lower_right, {}}; }

/// j <= i + n: query row 0 stands at key position n; one n, or one per sequence.
inline Causal causal_offset(IndexList n) { return {Causal::Align::given, std::move(n)}; }

/// query_offset(n).
class QueryOffset : public Rule {
 public:
  explicit QueryOffset(IndexList n) : n_(std::move(n)) {}
  void check(const CallExtent& call) const { detail::check_list(call, "query_offset", n_); }
  void place(Extent& extent, Index b, Index /*h*/) const { extent.past_len = n_[b]; }
  void add_to(detail::Digest& digest) const { digest.add_list(n_); }

 private:
  IndexList n_;
};

/// Query row 0 stands at key position n: what causal() and window() go by. As past_len in the options
/// would say; a call that says both must say the same, and so must causal rules beside it. Masks
/// nothing by itself. One n, or one per
/// sequence.
inline QueryOffset query_offset(IndexList n) { return QueryOffset(std::move(n)); }

}  // namespace mha
