// SPDX-License-Identifier: MIT
//
// Masks: rules that say which query row i may attend to which key row j. True means "may attend",
// always; a boolean matrix is never passed naked, its factory says what true means. Masks combine
// with `&` (both must allow) and `|` (either, see either.hpp): nothing replaces or silently drops
// anything.
//     causal()  causal_lower_right()  causal_offset(n)     key position <= query position
//     window(left, right)  window_keys(w)                  keys near the query
//     query_offset(n)                                      where the window's queries stand
//     lengths(n)                                           the first n keys of each sequence
//     keep(m)  ignore(m)                                   a boolean matrix or tensor
//     key_padding(m)                                       keys of each sequence, [batch, key]
//     documents(ids)                                       tokens of the same document
//     blocks(m, block_queries, block_keys)                 a boolean matrix of whole blocks
//     mask_mod(f)                                          f(b, h, i, j), a function of yours
// An additive bias, whose -inf masks too, is in score.hpp. A query row that may attend to no key
// gets output 0, weights 0 and lse -inf. Keys and values that a row may not attend to never
// influence it, even if they are NaN or infinite.
#pragma once

#include "mha/language.hpp"

#include <limits>
#include <utility>

#include "mha/blocks.hpp"
#include "mha/documents.hpp"
#include "mha/either.hpp"
#include "mha/grid.hpp"
#include "mha/index_list.hpp"
#include "mha/key_padding.hpp"
#include "mha/rules.hpp"
#include "mha/saturate.hpp"

namespace mha {

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

/// keep(m) and ignore(m).
template <bool kTrueMeansAttend>
class BooleanMask : public Rule {
 public:
  explicit BooleanMask(detail::Grid<bool> grid) : grid_(std::move(grid)) {}
  void check(const CallExtent& call) const {
    grid_.check(call, kTrueMeansAttend ? "keep(mask)" : "ignore(mask)");
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return grid_(b, h, i, j) == kTrueMeansAttend;
  }
  TileMask tile(const Extent& /*extent*/, Index b, Index h, const PairTile& tile) const {
    const TileMask truths = detail::truths_of(grid_, b, h, tile);
    if (kTrueMeansAttend || truths == TileMask::some) return truths;
    return truths == TileMask::all ? TileMask::none : TileMask::all;
  }
  void add_to(detail::Digest& digest) const { digest.add_sizes(grid_.sizes()); }

 private:
  detail::Grid<bool> grid_;
};

namespace detail {

template <class M>
auto keep_mask(M&& m) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::keep: the mask must be of bool, true = may attend; numbers to be added go "
                "through bias()");
  return BooleanMask<true>(make_grid("keep", std::forward<M>(m)));
}
template <class M>
auto ignore_mask(M&& m) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::ignore: the mask must be of bool, true = may not attend; numbers to be added "
                "go through bias()");
  return BooleanMask<false>(make_grid("ignore", std::forward<M>(m)));
}

}  // namespace detail

/// True = may attend (the sense of PyTorch's scaled_dot_product_attention, ONNX, JAX, Keras).
/// @param m  query_len x kv_len Eigen matrix or expression of bool; a vector of kv_len, the same
///           for every query; or a TensorView<const bool> [batch, head, query, key], where an axis
///           of size 1 serves all. A named matrix or tensor is read where it lies: while the rule
///           is used it must live, and be neither resized nor assigned; an expression or a
///           temporary matrix is kept.
template <class M>
[[nodiscard]] auto keep(M&& m) {
  return detail::keep_mask(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto keep(M&& m MHA_LIFETIMEBOUND) {
  return detail::keep_mask(m);
}

/// True = may not attend (the sense of PyTorch's nn.MultiheadAttention). Arguments as for keep().
template <class M>
[[nodiscard]] auto ignore(M&& m) {
  return detail::ignore_mask(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto ignore(M&& m MHA_LIFETIMEBOUND) {
  return detail::ignore_mask(m);
}

/// mask_mod(f).
template <class F>
class MaskFunction : public Rule {
 public:
  explicit MaskFunction(F f) : f_(std::move(f)) {
    detail::require_function("mask_mod: the function", f_);
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return static_cast<bool>(f_(b, h, i, j));
  }

 private:
  F f_;
};

/// f(b, h, i, j): may query row i of head h in sequence b attend to key row j? Called once or more
/// per pair, in any order, from several threads if an executor is given.
template <class F>
[[nodiscard]] auto mask_mod(F f) {
  static_assert(std::is_invocable_r_v<bool, const F&, Index, Index, Index, Index>,
                "mha::mask_mod: the function must take (b, h, i, j) and return bool");
  return MaskFunction<F>(std::move(f));
}

}  // namespace mha
