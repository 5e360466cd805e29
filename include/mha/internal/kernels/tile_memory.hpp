// SPDX-License-Identifier: MIT
//
// The memory of one thread's tiles: its size known beforehand, its parts cut from one block. It
// depends on the widths of a head, on min(kv_len, kKeyTile), and on the logarithm of the number of chunks.
#pragma once

#include <algorithm>
#include <cstddef>

#include "mha/internal/kernels/chunk_tree.hpp"

namespace mha::inline MHA_ABI::kernels {

inline constexpr std::size_t kAlignment = 64;

/// Sizes of one head's tiles.
struct TileSizes {
  Index head_dim = 0;
  Index value_dim = 0;
  Index kv_len = 0;
  bool extra_key = false;  ///< a key beyond the caller's
  bool converts = false;   ///< query, key, value and output are of another type than the sums
  Index first_key = 0;     ///< where the keys begin in the whole problem

  /// States that wait at the most while the keys' chunks are joined.
  Index waiting() const { return waiting_states(chunks_of(first_key + kv_len)); }
};

/// So many bytes of memory; null where they are only counted.
struct MemoryBlock {
  std::byte* data = nullptr;
  std::size_t size = 0;

  MemoryBlock part(std::size_t first, std::size_t bytes) const {
    eigen_assert(first <= size && bytes <= size - first && "a part reaches beyond its block");
    return {data + first, bytes};
  }
  /// That of one of several workers, who have `bytes` each.
  MemoryBlock of_worker(Index worker, std::size_t bytes) const {
    return part(static_cast<std::size_t>(worker) * bytes, bytes);
  }
};

/// Hands out parts of a block, each aligned. Without a block it only counts.
class Arena {
 public:
  Arena() = default;
  explicit Arena(const MemoryBlock& block) : block_(block) {}

  template <class T>
  T* take(Index count) {
    T* const part = block_.data == nullptr ? nullptr : reinterpret_cast<T*>(block_.data + used_);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    eigen_assert((part == nullptr || used_ <= block_.size) && "a part reaches beyond its block");
    return part;
  }
  std::size_t used() const { return used_; }

 private:
  MemoryBlock block_;
  std::size_t used_ = 0;
};

inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

/// What the tiles of a worker take in turns: see query_tile.hpp.
template <class T>
struct TileScratch {
  /// Score modifiers read and write sixteen lanes from the first of any group of kLanes / 4 on.
  static constexpr Index kBeyond = 16 - kLanes<T> / 4;
  T* s = nullptr;  ///< panel [kKeyTile]: S^T, then P^T
  T* part =
      nullptr;  ///< panel [value_dim]: a tile's part of the output; null where there is one tile
  T* key = nullptr;     ///< a converted key tile
  T* value = nullptr;   ///< a converted value tile
  T* output = nullptr;  ///< rows to be converted

  TileScratch(const TileSizes& sizes, Arena& arena) {
    const Index keys = std::min(round_up(sizes.kv_len, 16), kKeyTile);
    s = arena.take<T>(keys * kLanes<T> + kBeyond);
    if (sizes.kv_len > kKeyTile) part = arena.take<T>(sizes.value_dim * kLanes<T>);
    if (sizes.converts) {
      key = arena.take<T>(keys * sizes.head_dim);
      value = arena.take<T>(keys * sizes.value_dim);
      output = arena.take<T>(kLanes<T> * std::max(sizes.head_dim, sizes.value_dim));
    }
  }
};

/// The running softmax of some rows: row_sum and acc are sums of weights e^(score - row_max), and of these times values.
template <class T>
struct SoftmaxState {
  T* acc;
  T* row_max;
  T* row_sum;

  /// @param width  entries of acc
  static SoftmaxState take(Index width, Index rows, Arena& arena) {
    T* const acc = arena.take<T>(width);
    T* const row_max = arena.take<T>(rows);
    return {acc, row_max, arena.take<T>(rows)};
  }
};

/// A tree with places for `count` states that wait; take() hands out the memory of one.
template <class State, class Take>
ChunkTree<State> take_tree(Index count, Arena& arena, const Take& take) {
  State* const waiting = arena.take<State>(count);
  for (Index k = 0; k < count; ++k) {
    const State state = take();
    if (waiting != nullptr) waiting[k] = state;  // null where memory is only counted
  }
  return ChunkTree<State>(waiting, arena.take<Index>(count));
}

/// The state of the chunk at hand, and those that wait to be joined.
template <class T>
struct SoftmaxStates {
  SoftmaxState<T> now;
  ChunkTree<SoftmaxState<T>> tree;

  SoftmaxStates(const TileSizes& sizes, Index width, Index rows, Arena& arena)
      : now(SoftmaxState<T>::take(width, rows, arena)),
        tree(take_tree<SoftmaxState<T>>(
            sizes.waiting(), arena, [&] { return SoftmaxState<T>::take(width, rows, arena); })) {}
};

/// Where a lane is a query: see query_scores.hpp.
template <class T>
struct QueryScoresMemory {
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kBeyond = TileScratch<T>::kBeyond;
  T* query = nullptr;  ///< panel [head_dim]: scale * Q^T
  T* tile_max = nullptr;
  T* tile_sum = nullptr;
  T* correction = nullptr;
  int_of<T>* begin = nullptr;
  int_of<T>* end = nullptr;
  int_of<T>* allowed = nullptr;
  int_of<T>* dropout_start = nullptr;  ///< dropout, by lanes
  int_of<T>* dropout_twist = nullptr;
  TileScratch<T> scratch;

  QueryScoresMemory(const TileSizes& sizes, const TileScratch<T>& shared, Arena& arena)
      : query(arena.take<T>(sizes.head_dim * kWide)), scratch(shared) {
    for (T** lane : {&tile_max, &tile_sum, &correction}) *lane = arena.take<T>(kWide);
    for (int_of<T>** lane : {&begin, &end, &allowed, &dropout_start, &dropout_twist}) {
      *lane = arena.take<int_of<T>>(kWide + kBeyond);
    }
  }
};

/// And its softmax, see query_tile.hpp. acc is a panel [value_dim]: the output so far, transposed.
template <class T>
struct QueryTileMemory : QueryScoresMemory<T> {
  using QueryScoresMemory<T>::kWide;
  SoftmaxStates<T> states;
  SoftmaxState<T> extra{};  ///< of the extra key, if there is one

  QueryTileMemory(const TileSizes& sizes, const TileScratch<T>& shared, Arena& arena)
      : QueryScoresMemory<T>(sizes, shared, arena),
        states(sizes, sizes.value_dim * kWide, kWide, arena) {
    if (sizes.extra_key) {
      extra = SoftmaxState<T>::take(sizes.value_dim * kWide, kWide, arena);
    }
  }
};

/// Where a lane is a key or a channel: see few_rows.hpp. acc is [rows][wide].
template <class T>
struct FewRowsMemory {
  static constexpr Index kPanel = kLanes<T> / 2;  ///< keys transposed at a time (measured)
  Index wide = 0;                                 ///< value_dim in whole vectors
  Index wide_head = 0;                            ///< head_dim likewise
  SoftmaxStates<T> states;
  SoftmaxState<T> extra{};  ///< of the extra key, if there is one
  T* part = nullptr;        ///< [rows][wide]: a tile's part of the output
  T* query = nullptr;       ///< [rows][wide_head]: scale * Q
  T* key = nullptr;         ///< [head_dim][kPanel]: K^T
  T* s = nullptr;           ///< [rows][kKeyTile]
  T* value = nullptr;       ///< [keys][wide], where V cannot be read in place
  T* plain = nullptr;       ///< [kPanel][head_dim], converted keys
  T* correction = nullptr;
  T* factor = nullptr;
  int_of<T>* begin = nullptr;
  int_of<T>* end = nullptr;
  int_of<T>* allowed = nullptr;

  FewRowsMemory(const TileSizes& sizes, Index rows, Arena& arena)
      : wide(round_up(sizes.value_dim, 64 / static_cast<Index>(sizeof(T)))),
        wide_head(round_up(sizes.head_dim, 64 / static_cast<Index>(sizeof(T)))),
        states(sizes, rows * wide, rows, arena) {
    if (sizes.extra_key) extra = SoftmaxState<T>::take(rows * wide, rows, arena);
    part = arena.take<T>(rows * wide);
    query = arena.take<T>(rows * wide_head);
    key = arena.take<T>(sizes.head_dim * (sizes.converts ? kKeyTile : kPanel));
    s = arena.take<T>(rows * kKeyTile);
    const Index keys = std::min(round_up(sizes.kv_len, 16), kKeyTile);
    value = arena.take<T>(keys * wide);
    if (sizes.converts) plain = arena.take<T>(kPanel * sizes.head_dim);
    correction = arena.take<T>(rows);
    factor = arena.take<T>(rows);
    begin = arena.take<int_of<T>>(rows);
    end = arena.take<int_of<T>>(rows);
    allowed = arena.take<int_of<T>>(rows);
  }
};

/// The softmax of some rows over one chunk of keys, computed by one task and joined by another.
template <class T>
struct ChunkState {
  Index lanes = 0;
  Index width = 0;  ///< entries of acc
  SoftmaxState<T> state;
  int_of<T>* allowed = nullptr;

  ChunkState(Index rows, Index value_dim, Arena& arena)
      : lanes(rows),
        width(rows * round_up(value_dim, 64 / static_cast<Index>(sizeof(T)))),
        state(SoftmaxState<T>::take(width, rows, arena)),
        allowed(arena.take<int_of<T>>(rows)) {}
};

/// The numbers of one state into another's memory.
template <class T>
void copy_state(const SoftmaxState<T>& from, const SoftmaxState<T>& to, Index width, Index rows) {
  std::copy_n(from.acc, width, to.acc);
  std::copy_n(from.row_max, rows, to.row_max);
  std::copy_n(from.row_sum, rows, to.row_sum);
}

}  // namespace mha::kernels
