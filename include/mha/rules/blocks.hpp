// SPDX-License-Identifier: MIT
//
// Block-sparse masks: a truth value for each block of queries and keys. Blocks that nobody may attend
// to are skipped where they fill whole tiles (64 queries, or 32 of double, and 128 keys, both counted
// from the first).
#pragma once

#include "mha/internal/support/language.hpp"

#include <array>
#include <type_traits>
#include <utility>

#include "mha/rules/grid.hpp"

namespace mha::inline MHA_ABI {

/// blocks(m, block_queries, block_keys).
class Blocks : public Rule {
 public:
  Blocks(detail::Grid<bool> grid, Index block_queries, Index block_keys)
      : grid_(std::move(grid)), queries_(block_queries), keys_(block_keys) {
    detail::require(block_queries >= 1 && block_keys >= 1,
                    "blocks: block_queries and block_keys must be at least 1, got ", block_queries,
                    " and ", block_keys);
  }

  void check(const CallExtent& call) const {
    const std::array<Index, 4> wanted{call.batch, call.num_heads, queries_.count(call.query_len),
                                      keys_.count(call.kv_len)};
    constexpr std::array<const char*, 4> kNames{"batch", "num_heads", "query blocks", "key blocks"};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const Index got = grid_.sizes()[axis];
      const bool longer = call.ragged && axis >= 2 && got > wanted[axis];
      detail::require(got == wanted[axis] || got == 1 || longer, call.where,
                      ": blocks(m) must have 1 or ", wanted[axis], " entries along ", kNames[axis],
                      ", for ", call.query_len, " queries and ", call.kv_len, " keys in blocks of ",
                      queries_.size, " x ", keys_.size, ", got ", got);
    }
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return grid_(b, h, queries_.block_of(i), keys_.block_of(j));
  }
  TileMask tile(const Extent& /*extent*/, Index b, Index h, const PairTile& tile) const {
    PairTile blocks;
    blocks.first_query = queries_.block_of(tile.first_query);
    blocks.first_key = keys_.block_of(tile.first_key);
    blocks.queries =
        queries_.block_of(tile.first_query + tile.queries - 1) + 1 - blocks.first_query;
    blocks.keys = keys_.block_of(tile.first_key + tile.keys - 1) + 1 - blocks.first_key;
    return detail::truths_of(grid_, b, h, blocks);
  }
  void add_to(detail::Digest& digest) const {
    digest.add_sizes(grid_.sizes()).add(queries_.size).add(keys_.size);
  }

 private:
  /// Rows in blocks of `size`.
  struct Cut {
    Index size;
    double share;
    explicit Cut(Index n) : size(n), share(1 / static_cast<double>(n)) {}
    Index count(Index rows) const { return rows / size + (rows % size == 0 ? 0 : 1); }
    /// row / size, without the time of a division. Exact: rows are below 2^30, so that the error stays
    /// below 2^-22 / size, and the half keeps it at least 1 / (2 size) away from any whole number.
    Index block_of(Index row) const {
      return static_cast<Index>((static_cast<double>(row) + 0.5) * share);
    }
  };

  detail::Grid<bool> grid_;  ///< [batch, head, query block, key block]
  Cut queries_;
  Cut keys_;
};

namespace detail {

template <class M>
auto make_blocks(M&& m, Index block_queries, Index block_keys) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::blocks: the matrix must be of bool, true = may attend");
  return Blocks(make_grid("blocks", std::forward<M>(m)), block_queries, block_keys);
}

}  // namespace detail

/// Query row i may attend to key row j where m(i / block_queries, j / block_keys) is true. The last
/// blocks may be smaller. As with keep(), rows count within the call, wherever the queries stand.
/// @param m  query blocks x key blocks, an Eigen matrix or expression of bool; a vector of one entry per
///           key block, the same for every query; or a TensorView<const bool> [batch, head, query
///           block, key block], where an axis of size 1 serves all. A named matrix or tensor is read
///           where it lies: while the rule is used it must live, and be neither resized nor assigned;
///           an expression or a temporary matrix is kept.
/// @throws std::invalid_argument if a block has no rows
template <class M>
[[nodiscard]] auto blocks(M&& m, Index block_queries, Index block_keys) {
  return detail::make_blocks(std::forward<M>(m), block_queries, block_keys);
}
template <detail::NamedMemory M>
[[nodiscard]] auto blocks(M&& m MHA_LIFETIMEBOUND, Index block_queries, Index block_keys) {
  return detail::make_blocks(m, block_queries, block_keys);
}

}  // namespace mha
