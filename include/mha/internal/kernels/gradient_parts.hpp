// SPDX-License-Identifier: MIT
//
// The backward pass of a head in parts: dK and dV of some keys alone, or dQ of some queries alone. The weights of a
// pair of tiles are computed for each, which makes 7 products of the 5 of gradient_walk.hpp, but a head can be
// shared out. Sums are put together in that file's order: the same bits.
#pragma once

#include "mha/internal/kernels/attend.hpp"
#include "mha/internal/kernels/gradient_walk.hpp"

namespace mha::inline MHA_ABI::kernels {

template <class T>
struct KeyPartMemory {
  GradientTileMemory<T> tile;
  T* delta;
  KeySums<T> sums;                ///< of a query head
  ChunkTree<KeySums<T>> queries;  ///< chunks of them
  ChunkTree<KeySums<T>> heads;    ///< of a group

  /// @param keys  of a part, at the most
  KeyPartMemory(const TileSizes& sizes, Index query_len, Index group_size, bool keeps_capped,
                Index keys, Arena& arena)
      : tile(sizes, keeps_capped, arena),
        delta(arena.take<T>(kLanes<T>)),
        sums(tile.take_sums(keys, arena)),
        queries(take_tree<KeySums<T>>(waiting_states(chunks_of(query_len)), arena,
                                      [&] { return tile.take_sums(keys, arena); })),
        heads(take_tree<KeySums<T>>(waiting_states(group_size), arena,
                                    [&] { return tile.take_sums(keys, arena); })) {}
};

template <class T>
struct QueryPartMemory {
  GradientTileMemory<T> tile;
  T* delta;
  T* grad_query;         ///< panel [head_dim]
  ChunkTree<T*> chunks;  ///< of keys
  Index panel;           ///< its numbers

  QueryPartMemory(const TileSizes& sizes, bool keeps_capped, Arena& arena)
      : tile(sizes, keeps_capped, arena),
        delta(arena.take<T>(kLanes<T>)),
        grad_query(arena.take<T>(sizes.head_dim * kLanes<T>)),
        chunks(take_tree<T*>(sizes.waiting(), arena,
                             [&] { return arena.take<T>(sizes.head_dim * kLanes<T>); })),
        panel(sizes.head_dim * kLanes<T>) {}
};

/// at.sums becomes dK and dV of some keys of one chunk, which begin with a tile, or of the extra key (the one
/// behind the last): the share of one query head.
template <class In, class T>
void sum_over_queries(const Head<In, In, T>& head, const HeadGradientTask<In, T>& task,
                      const GradientCalls<T>& calls, const KeyRange& keys, KeyPartMemory<T>& at) {
  constexpr Index kBlock = GradientMemory<T>::kBlock;
  GradientTile<In, T> tile(head, task, calls, GradientsOf::keys, at.tile);
  const bool extra = keys.begin == task.key.rows;
  const Index count = keys.end - keys.begin;
  const auto join = [&](const KeySums<T>& a, const KeySums<T>& b) {
    at.tile.add(head.kernels, a, b, count);
  };
  for (Index row = 0; row < task.query.rows; row += kBlock) {
    const Index rows = std::min(kBlock, task.query.rows - row);
    if (!extra && !tile.start(row, rows, keys.begin, keys.end)) continue;
    if (!at.queries.in_chunk(row / kKeyChunk)) {
      at.queries.start(row / kKeyChunk, at.sums, join);
      at.tile.clear(at.sums, count);
    }
    tile.find_delta(row, rows, at.delta);
    if (extra) {
      tile.run_extra_key(row, rows, at.delta, nullptr, at.sums);
    } else {
      tile.take_rows(at.delta);
      tile.run_keys(nullptr, at.sums);
    }
  }
  if (!at.queries.finish(at.sums, join)) at.tile.clear(at.sums, count);
}

/// Writes dQ of queries row, ..., row + rows - 1 of a block.
template <class In, class T>
void sum_over_keys(const Head<In, In, T>& head, const HeadGradientTask<In, T>& task,
                   const GradientCalls<T>& calls, Index row, Index rows, QueryPartMemory<T>& at) {
  GradientTile<In, T> tile(head, task, calls, GradientsOf::queries, at.tile);
  const auto join = [&](T* a, const T* b) {
    head.kernels.add(a, 0, 1, at.panel / head.kernels.vector_lanes, b);
  };
  tile.find_delta(row, rows, at.delta);
  for (Index from = 0; from < task.key.rows; from += kKeyChunk) {
    if (!tile.start(row, rows, from, std::min(task.key.rows, from + kKeyChunk))) continue;
    tile.take_rows(at.delta);
    at.chunks.start(from / kKeyChunk, at.grad_query, join);
    tile.run_keys(at.grad_query, {});
    tile.zero_unused(at.grad_query);
  }
  if (!at.chunks.finish(at.grad_query, join)) std::fill_n(at.grad_query, at.panel, T(0));
  if (task.extra.key != nullptr) {
    tile.run_extra_key(row, rows, at.delta, at.grad_query, {});
  }
  tile.write(row, rows, at.grad_query);
}

/// The heads of keys of a call, in units: those that add to the same number of a gradient that a rule collects
/// make one, and are taken in order.
struct HeadUnits {
  Index sequences = 0;
  Index kv_heads = 0;
  GradientSharing sharing{false, false, false};

  Index count() const {
    return (sharing.sequences ? 1 : sequences) * (sharing.heads ? 1 : kv_heads);
  }
  /// f(sequence, head of keys) for all of unit n.
  template <class F>
  void each(Index n, const F& f) const {
    const Index heads = sharing.heads ? 1 : kv_heads;
    const Index b = n / heads;
    const Index h = n % heads;
    for (Index s = sharing.sequences ? 0 : b; s < (sharing.sequences ? sequences : b + 1); ++s) {
      for (Index k = sharing.heads ? 0 : h; k < (sharing.heads ? kv_heads : h + 1); ++k) f(s, k);
    }
  }
};

/// Multiply-adds in the time that threads need to be woken twice.
inline constexpr double kWakeWork = 4 * kWorkPerThread;

/// How a backward pass is shared out. A task takes whole heads, or, where these are too few for the workers, first
/// dK and dV of a part of the keys, then dQ of some blocks of queries.
struct GradientPlan {
  HeadUnits units;
  Index workers = 1;
  Index keys = 0;         ///< of a part; 0: whole heads
  Index key_parts = 0;    ///< of a head
  Index blocks = 0;       ///< of queries, of a task
  Index query_parts = 0;  ///< of a head

  /// @param all    one at least
  /// @param block  queries
  GradientPlan(const HeadUnits& all, Index group_size, Index query_len, const TileSizes& sizes,
               Index block, const Executor& executor)
      : units(all) {
    const Index heads = units.sequences * units.kv_heads;
    const double work = 2.5 * static_cast<double>(query_len) * static_cast<double>(sizes.kv_len) *
                        static_cast<double>(heads) * static_cast<double>(group_size) *
                        static_cast<double>(sizes.head_dim + sizes.value_dim);
    const Index count = units.count();
    workers = workers_for(count, work, executor);
    if (!executor.concurrency_is_known() || units.sharing.keys || sizes.kv_len == 0 ||
        query_len == 0) {
      return;
    }
    const auto parts_of = [&](Index size) { return (sizes.kv_len + size - 1) / size; };
    const Index all_blocks = (query_len + block - 1) / block;
    const Index query_heads = heads * group_size;
    const Index wanted =
        workers_for(std::max(count * parts_of(kKeyTile), query_heads * all_blocks), work, executor);
    // In units of all heads' products, one after the other: dK and dV take 4 / 5 of them, dQ 3 / 5, and what is packed
    // again a tenth.
    const auto share_of = [&](Index tasks) {
      return 1 / static_cast<double>(std::min(tasks, wanted));
    };
    const double whole =
        static_cast<double>((count + workers - 1) / workers) / static_cast<double>(count);
    const double apart = 1.1 * (0.8 * share_of(count * parts_of(kKeyTile)) +
                                0.6 * share_of(query_heads * all_blocks));
    if (work * (whole - apart) < kWakeWork) return;
    workers = wanted;
    keys = kKeyChunk;
    while (keys > kKeyTile && count * parts_of(keys) < 2 * workers) keys /= 2;
    key_parts = parts_of(keys);
    blocks = std::max<Index>(1, all_blocks * query_heads / (4 * workers));
    query_parts = (all_blocks + blocks - 1) / blocks;
  }
};

}  // namespace mha::kernels
