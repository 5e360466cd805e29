// SPDX-License-Identifier: MIT
//
// Padding of batches: which keys of each sequence there are.
#pragma once

#include "mha/internal/support/language.hpp"

#include <type_traits>
#include <utility>

#include "mha/rules/grid.hpp"

namespace mha::inline MHA_ABI {

/// key_padding(m).
class KeyPadding : public Rule {
 public:
  explicit KeyPadding(detail::Grid<bool> grid) : grid_(std::move(grid)) {}

  void check(const CallExtent& call) const {
    const Index rows = grid_.sizes()[0];
    const Index cols = grid_.sizes()[3];
    const bool rows_fit = rows == call.batch || rows == 1;
    const bool cols_fit = cols == call.kv_len || (call.ragged && cols > call.kv_len);
    detail::require(rows_fit && cols_fit, call.where, ": key_padding(m) must be ", call.batch,
                    " x ", call.kv_len, " (batch x kv_len",
                    call.ragged ? " of the longest sequence" : "",
                    "), or have one row for all, got ", rows, " x ", cols);
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return grid_(b, h, i, j);
  }
  TileMask tile(const Extent& /*extent*/, Index b, Index h, const PairTile& tile) const {
    return detail::truths_of(grid_, b, h, tile);
  }
  void add_to(detail::Digest& digest) const { digest.add_sizes(grid_.sizes()); }

 private:
  detail::Grid<bool> grid_;  ///< [batch, 1, 1, key]
};

namespace detail {

template <class M>
auto make_key_padding(M&& m) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::key_padding: the matrix must be of bool, true = the key may be attended to");
  auto grid = make_grid("key_padding", std::forward<M>(m));
  if constexpr (EigenDense<M>) {
    grid.make_rows_sequences();
  } else {
    require(grid.sizes()[1] == 1 && grid.sizes()[2] == 1,
            "key_padding: a tensor must be [batch, 1, 1, key], got ", list_text(grid.sizes()));
  }
  return KeyPadding(std::move(grid));
}

}  // namespace detail

/// Key row j of sequence b may be attended to where m(b, j) is true (the opposite sense of PyTorch's
/// key_padding_mask), by every head and query. Of sequences of different lengths (a ragged batch of
/// the layer) m is as wide as the longest, and columns beyond a sequence's own keys are ignored.
/// @param m  batch x kv_len Eigen matrix or expression of bool; a vector of kv_len, the same for every
///           sequence; or a TensorView<const bool> [batch, 1, 1, key]. A named matrix or tensor is
///           read where it lies: while the rule is used it must live, and be neither resized nor
///           assigned; an expression or a temporary matrix is kept.
template <class M>
[[nodiscard]] auto key_padding(M&& m) {
  return detail::make_key_padding(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto key_padding(M&& m MHA_LIFETIMEBOUND) {
  return detail::make_key_padding(m);
}

}  // namespace mha
