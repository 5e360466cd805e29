// SPDX-License-Identifier: MIT
//
// The memory of a tile's backward pass (gradient_tile.hpp), and the sums over queries.
#pragma once

#include <algorithm>
#include <cstring>

#include "mha/internal/kernels/tile_memory.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Sums over queries, of some keys: dK without its scale [key][wide head_dim], dV [key][wide value_dim].
template <class T>
struct KeySums {
  T* key = nullptr;
  T* value = nullptr;
};

/// The memory of one tile.
template <class T>
struct GradientTileMemory {
  Index wide_head = 0;   ///< head_dim in whole vectors
  Index wide_value = 0;  ///< value_dim in whole vectors
  TileScratch<T> scratch;
  QueryScoresMemory<T> tile;
  T* grad_output = nullptr;       ///< panel [value_dim]: dO^T
  T* output = nullptr;            ///< panel [value_dim]: O^T
  T* grad_scores = nullptr;       ///< panel [kKeyTile]: dP^T, then dS^T
  T* capped = nullptr;            ///< panel [kKeyTile]: scores as modifiers see them
  T* part = nullptr;              ///< panel [head_dim]: a key tile's part of dQ^T
  T* query_rows = nullptr;        ///< [query][wide_head]
  T* grad_output_rows = nullptr;  ///< [query][wide_value]
  T* chain = nullptr;             ///< one key's share of dK or dV
  T* lse = nullptr;               ///< lanes

  GradientTileMemory(const TileSizes& sizes, bool keeps_capped, Arena& arena)
      : wide_head(round_up(sizes.head_dim, kLine)),
        wide_value(round_up(sizes.value_dim, kLine)),
        scratch(of_one_tile(sizes), arena),
        tile(of_one_tile(sizes), scratch, arena) {
    constexpr Index kWide = kLanes<T>;
    const Index keys = std::min(round_up(sizes.kv_len, 16), kKeyTile);
    grad_output = arena.take<T>(sizes.value_dim * kWide);
    output = arena.take<T>(sizes.value_dim * kWide);
    grad_scores = arena.take<T>(keys * kWide);
    if (keeps_capped) capped = arena.take<T>(keys * kWide);
    part = arena.take<T>(sizes.head_dim * kWide);
    query_rows = arena.take<T>(kWide * wide_head);
    grad_output_rows = arena.take<T>(kWide * wide_value);
    chain = arena.take<T>(std::max(wide_head, wide_value));
    lse = arena.take<T>(kWide);
  }

  KeySums<T> take_sums(Index keys, Arena& arena) const {
    T* const key = arena.take<T>(keys * wide_head);
    return {key, arena.take<T>(keys * wide_value)};
  }
  /// The sums of keys j, j + 1, ...
  KeySums<T> row(const KeySums<T>& sums, Index j) const {
    return {sums.key + j * wide_head, sums.value + j * wide_value};
  }
  /// to += from, of so many keys.
  void add(const Kernels<T>& kernels, const KeySums<T>& to, const KeySums<T>& from,
           Index keys) const {
    kernels.add(to.key, 0, 1, keys * wide_head / kernels.vector_lanes, from.key);
    kernels.add(to.value, 0, 1, keys * wide_value / kernels.vector_lanes, from.value);
  }
  void clear(const KeySums<T>& sums, Index keys) const {
    std::fill_n(sums.key, keys * wide_head, T(0));
    std::fill_n(sums.value, keys * wide_value, T(0));
  }

 private:
  static constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
  /// No part of an output is put together here.
  static TileSizes of_one_tile(TileSizes sizes) {
    sizes.kv_len = std::min(sizes.kv_len, kKeyTile);
    sizes.extra_key = false;
    return sizes;
  }
};

/// The rows of a matrix in whole vectors: `wide` numbers each, 0 behind the last.
template <class In, class T>
void copy_rows(const MatrixView<const In>& from, T* to, Index wide) {
  for (Index r = 0; r < from.rows; ++r, to += wide) {
    if (std::is_same_v<In, T> && from.col_stride == 1) {
      std::memcpy(to, from.data + r * from.row_stride,
                  static_cast<std::size_t>(from.cols) * sizeof(T));
    } else {
      for (Index c = 0; c < from.cols; ++c) to[c] = mha::detail::convert<T>(from(r, c));
    }
    std::fill(to + from.cols, to + wide, T(0));
  }
}

}  // namespace mha::kernels
