// SPDX-License-Identifier: MIT
//
// Neighbouring query tiles of one head go through the keys together: at each key tile, one after the
// other. What comes next in memory is fetched while they compute.
#pragma once

#include <array>

#include "mha/internal/kernels/query_tile.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Neighbouring tiles of one head's queries that go through the keys together, so that each key tile
/// is brought from memory once for all of them, and is there in the second-level cache by then.
template <class In, class Out, class T>
class QueryBlock {
 public:
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kMostTiles = 4;

  /// @param next        the head that is computed next, null if none is: what it reads first is
  ///                    brought closer
  /// @param next_first  the first query of its block
  QueryBlock(const Head<In, Out, T>& head, const HeadTask<In, Out, T>* next, Index next_first)
      : task_(head.task), next_(next), next_first_(next_first), head_(head) {}

  /// Queries first, ..., first + count - 1, tile_width to a tile. `arena` has memory for as many
  /// tiles as there are.
  void run(Index first, Index count, Index tile_width, const TileSizes& sizes, Arena& arena) {
    const TileScratch<T> scratch(sizes, arena);
    alignas(QueryTile<In, Out, T>)
        std::byte raw[static_cast<std::size_t>(kMostTiles) * sizeof(QueryTile<In, Out, T>)];
    auto* const tiles = reinterpret_cast<QueryTile<In, Out, T>*>(raw);
    const Index num_tiles = (count + tile_width - 1) / tile_width;
    Index begin = task_.key.rows;
    end_ = 0;
    for (Index t = 0; t < num_tiles; ++t) {
      QueryTile<In, Out, T>& tile =
          *new (tiles + t) QueryTile<In, Out, T>(head_, QueryTileMemory<T>(sizes, scratch, arena));
      tile.start(first + t * tile_width, std::min(tile_width, count - t * tile_width));
      begin = std::min(begin, tile.begin());
      end_ = std::max(end_, tile.end());
    }
    for (Index j = begin - begin % kKeyTile; j < end_; j += kKeyTile) {
      std::array<bool, std::size_t{kMostTiles}> wants{};
      bool any_wants = false;
      for (Index t = 0; t < num_tiles; ++t) {
        bool& own = wants[static_cast<std::size_t>(t)];
        own = tiles[t].begin() < j + kKeyTile && tiles[t].end() > j && tiles[t].wants(j);
        any_wants = any_wants || own;
      }
      if (!any_wants) continue;
      const Index from = std::max(j, begin);
      const Index to = std::min(j + kKeyTile, end_);
      const MatrixView<const T> key = head_.tiles.keys(from, to, scratch.key);
      const MatrixView<const T> value = head_.tiles.values(from, to, scratch.value);
      Index turn = 0;
      for (Index t = 0; t < num_tiles; ++t) {
        if (!wants[static_cast<std::size_t>(t)]) continue;
        const bool last = j + kKeyTile >= tiles[t].end();
        tiles[t].absorb(j, from, key, value, next_keys(j, turn++),
                        last ? next_queries(t * tile_width) : Upcoming<T>());
      }
    }
    for (Index t = 0; t < num_tiles; ++t) tiles[t].finish();
  }

 private:
  /// The first two tiles at each key tile fetch half of the next one each, and at the last key tile
  /// that of the next head.
  Upcoming<T> next_keys(Index key_tile, Index turn) const {
    if constexpr (std::is_same_v<In, T>) {
      if (head_.tiles.in_pages()) return {};
      const bool last = key_tile + kKeyTile >= end_;
      if (turn >= 2 || (last && (next_ == nullptr || next_->key.data == task_.key.data))) return {};
      const MatrixView<const T>& key = last ? next_->key : task_.key;
      const MatrixView<const T>& value = last ? next_->value : task_.value;
      const Index row = (last ? 0 : key_tile + kKeyTile) + turn * kKeyTile / 2;
      return beside(key, value, row, kKeyTile / 2);
    } else {
      return {};
    }
  }

  /// At its last key tile, each tile fetches its successor's queries, and where their output goes.
  Upcoming<T> next_queries(Index row) const {
    if constexpr (std::is_same_v<In, T> && std::is_same_v<Out, T>) {
      if (next_ == nullptr) return {};
      Upcoming<T> x = beside(next_->query, next_->output, next_first_ + row, kWide);
      // A strip of 64 channels takes 32 steps: every other row of 64 first, the rest by running on
      // past their ends.
      if (next_->query.cols < 2 * kWide) x.step *= 2;
      return x;
    } else {
      return {};
    }
  }

  /// Rows row, ..., row + count - 1 of both, if they are there and lie alike.
  template <class B>
  static Upcoming<T> beside(const MatrixView<const T>& a, const B& b, Index row, Index count) {
    if (a.rows < row + count || a.row_stride != b.row_stride || a.col_stride != 1 ||
        b.col_stride != 1) {
      return {};
    }
    return {a.data + row * a.row_stride, b.data + row * b.row_stride, a.row_stride};
  }

  const HeadTask<In, Out, T>& task_;
  const HeadTask<In, Out, T>* next_;
  Index next_first_;
  const Head<In, Out, T>& head_;
  Index end_ = 0;
};

}  // namespace mha::kernels
