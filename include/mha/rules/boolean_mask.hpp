// SPDX-License-Identifier: MIT
//
// Masks drawn out: a matrix or tensor of bool.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/rules/combine.hpp"
#include "mha/rules/grid.hpp"

namespace mha::inline MHA_ABI {

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

}  // namespace mha
