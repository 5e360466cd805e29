// SPDX-License-Identifier: MIT
//
// The backward pass of the query heads that share a key head: in which order queries meet keys, and how the
// sums over them are put together. Sums over queries run through blocks of 64 rows (32 of double), chunks of
// 1024, and a binary tree over chunks, counted from the sequence's first query; so do sums over keys, as in
// chunk_tree.hpp; and those over the heads of a group, by a tree over the head. So the bits depend on nothing
// else.
// Pairs of (query chunk, key chunk) are walked in Morton order: a square of pairs, by its four quarters. Both
// trees close on the way, with memory for one more gradient instead of one for every level.
//     Q \ K   k0   k1
//       q0     1    2        after 2 the sums over k0 and k1 are joined for q0's gradient,
//       q1     3    4        after 3 those over q0 and q1 for k0's, after 4 both others
#pragma once

#include "mha/internal/kernels/gradient_tile.hpp"

namespace mha::inline MHA_ABI::kernels {

/// What the gradients of a key head take beside its tile. Sums over keys of a query block are a panel
/// [head_dim]; those of a chunk's blocks lie one behind the other.
template <class T>
struct GradientMemory {
  static constexpr Index kBlock = kLanes<T>;  ///< queries
  static constexpr int kMostLevels =
      static_cast<int>(waiting_states(chunks_of(mha::detail::kMaxSize))) + 1;

  GradientTileMemory<T> tile;
  Index panel = 0;  ///< numbers of a block's sum
  T* grad_query = nullptr;
  int_of<T>* seen = nullptr;  ///< queries that may attend to a key, so far
  T* delta = nullptr;         ///< of all queries
  KeySums<T> sums;
  ChunkTree<KeySums<T>> heads;
  KeySums<T> extra;  ///< of the extra key, from a chunk of queries
  ChunkTree<KeySums<T>> extra_tree;
  /// Of level n - 1, the second of two halves before they are joined.
  std::array<T*, std::size_t{kMostLevels}> half_query{};
  std::array<KeySums<T>, std::size_t{kMostLevels}> half_key{};

  /// @param query_len, kv_len  of the longest sequences
  GradientMemory(const TileSizes& sizes, Index query_len, Index group_size, bool keeps_capped,
                 Arena& arena)
      : tile(sizes, keeps_capped, arena),
        panel(sizes.head_dim * kBlock),
        sums(tile.take_sums(sizes.kv_len + extra_keys(sizes), arena)),
        heads(take_tree<KeySums<T>>(
            waiting_states(group_size), arena,
            [&] { return tile.take_sums(sizes.kv_len + extra_keys(sizes), arena); })),
        extra(tile.take_sums(extra_keys(sizes), arena)),
        extra_tree(take_tree<KeySums<T>>(waiting_states(chunks_of(query_len)) * extra_keys(sizes),
                                         arena, [&] { return tile.take_sums(1, arena); })) {
    const Index query_chunks = chunks_of(query_len);
    const Index key_chunks = chunks_of(sizes.kv_len);
    grad_query = take_panels(key_chunks > 1 || sizes.extra_key ? query_len : kBlock, arena);
    seen = arena.take<int_of<T>>(round_up(query_len, kBlock));
    delta = arena.take<T>(round_up(query_len, kBlock));
    const Index levels = waiting_states(std::max(query_chunks, key_chunks));
    for (Index level = 1; level <= levels; ++level) {
      const Index half = Index{1} << (level - 1);
      const Index tokens = half * kKeyChunk;
      const auto at = static_cast<std::size_t>(level);
      if (key_chunks > half) half_query[at] = take_panels(std::min(tokens, query_len), arena);
      if (query_chunks > half) half_key[at] = tile.take_sums(std::min(tokens, sizes.kv_len), arena);
    }
  }

 private:
  static Index extra_keys(const TileSizes& sizes) { return sizes.extra_key ? 1 : 0; }
  T* take_panels(Index queries, Arena& arena) const {
    return arena.take<T>((queries + kBlock - 1) / kBlock * panel);
  }
};

/// One query head: its dQ is written, its share of dK and dV added up in `sums`.
template <class In, class T>
class GradientWalk {
 public:
  static constexpr Index kBlock = GradientMemory<T>::kBlock;

  GradientWalk(const Head<In, In, T>& head, const HeadGradientTask<In, T>& task,
               const GradientCalls<T>& calls, GradientMemory<T>& memory)
      : head_(head),
        task_(task),
        at_(memory),
        tile_(head, task, calls, GradientsOf::all, memory.tile),
        query_len_(task.query.rows),
        kv_len_(task.key.rows),
        query_chunks_(chunks_of(query_len_)),
        key_chunks_(std::max<Index>(1, chunks_of(kv_len_))) {}  // without keys dQ is 0

  /// @param sums  become those of all queries of the head
  void run(const KeySums<T>& sums) {
    if (query_len_ == 0) {
      at_.tile.clear(sums, kv_len_ + (has_extra() ? 1 : 0));
      return;
    }
    std::fill_n(at_.seen, query_len_, int_of<T>(0));
    if (!one_panel()) {
      for_each_block(0, query_len_, [&](Index row, Index count) {
        tile_.find_delta(row, count, at_.delta + row);
      });
    }
    const Index chunks = std::max(query_chunks_, key_chunks_);
    square(static_cast<int>(waiting_states(chunks)), 0, 0, at_.grad_query, sums);
    if (has_extra()) run_extra_key(at_.tile.row(sums, kv_len_));
    for_each_block(0, query_len_, [&](Index row, Index count) {
      if (!one_panel()) {
        tile_.write(row, count, at_.grad_query + row / kBlock * at_.panel);
      }
      tile_.collect_sink(row, count, at_.seen + row, at_.delta + row);
    });
  }

 private:
  bool has_extra() const { return task_.extra.key != nullptr; }
  /// Of a single chunk of keys and no other key nothing is kept: one panel serves all blocks.
  bool one_panel() const { return key_chunks_ == 1 && !has_extra(); }
  template <class F>
  static void for_each_block(Index first, Index end, const F& f) {
    for (Index row = first; row < end; row += kBlock) f(row, std::min(kBlock, end - row));
  }

  /// Query chunks q 2^level, ... and key chunks k 2^level, ..., 2^level of each, as far as there are. False: no
  /// query may attend to any of the keys, all sums are 0.
  bool square(int level, Index q, Index k, T* grad_query, const KeySums<T>& sums) {
    if (level == 0) return pair(q, k, grad_query, sums);
    const auto at = static_cast<std::size_t>(level);
    const Index half = Index{1} << (level - 1);
    const Index tokens = half * kKeyChunk;
    const bool more_queries = (2 * q + 1) * half < query_chunks_;
    const bool more_keys = (2 * k + 1) * half < key_chunks_;
    T* const half_query = at_.half_query[at];
    const KeySums<T> half_key = at_.half_key[at];
    T* const lower = one_panel() ? grad_query : grad_query + tokens / kBlock * at_.panel;
    const KeySums<T> right = at_.tile.row(sums, tokens);
    bool any = square(level - 1, 2 * q, 2 * k, grad_query, sums);
    if (more_keys && square(level - 1, 2 * q, 2 * k + 1, half_query, right)) {
      add_queries(grad_query, half_query, 2 * q * tokens, tokens);
      any = true;
    }
    if (!more_queries) return any;
    if (square(level - 1, 2 * q + 1, 2 * k, lower, half_key)) {
      add_keys(sums, half_key, 2 * k * tokens, tokens);
      any = true;
    }
    if (more_keys && square(level - 1, 2 * q + 1, 2 * k + 1, half_query, half_key)) {
      add_queries(lower, half_query, (2 * q + 1) * tokens, tokens);
      add_keys(right, half_key, (2 * k + 1) * tokens, tokens);
      any = true;
    }
    return any;
  }

  /// One chunk of queries and one of keys.
  bool pair(Index q, Index k, T* grad_query, const KeySums<T>& sums) {
    bool any = false;
    const Index from = k * kKeyChunk;
    const Index to = std::min(kv_len_, from + kKeyChunk);
    at_.tile.clear(sums, to - from);
    const Index first = q * kKeyChunk;
    for_each_block(first, std::min(query_len_, first + kKeyChunk), [&](Index row, Index count) {
      T* const panel = one_panel() ? grad_query : grad_query + (row - first) / kBlock * at_.panel;
      if (tile_.start(row, count, from, to)) {
        any = true;
        if (one_panel()) {
          tile_.find_delta(row, count, at_.delta + row);
        } else {
          tile_.pack_grad_output();
        }
        tile_.take_rows(at_.delta + row);
        tile_.run_keys(panel, sums);
        if (!one_panel()) tile_.zero_unused(panel);
        tile_.note_seen(at_.seen + row);
      } else {
        std::fill_n(panel, at_.panel, T(0));
      }
      if (one_panel()) tile_.write(row, count, panel);
    });
    return any;
  }

  /// The extra key, joined after the root: its share of dQ is added to all others, its own sums run over the
  /// queries like those of any key.
  void run_extra_key(const KeySums<T>& to) {
    const auto join = [this](const KeySums<T>& a, const KeySums<T>& b) {
      at_.tile.add(head_.kernels, a, b, 1);
    };
    KeySums<T>& now = at_.extra;
    ChunkTree<KeySums<T>>& tree = at_.extra_tree;
    for_each_block(0, query_len_, [&](Index row, Index count) {
      if (!tree.in_chunk(row / kKeyChunk)) {
        tree.start(row / kKeyChunk, now, join);
        at_.tile.clear(now, 1);
      }
      tile_.run_extra_key(row, count, at_.delta + row, at_.grad_query + row / kBlock * at_.panel,
                          now);
    });
    tree.finish(now, join);
    std::copy_n(now.key, at_.tile.wide_head, to.key);
    std::copy_n(now.value, at_.tile.wide_value, to.value);
  }

  void add(T* to, const T* from, Index count) const {
    head_.kernels.add(to, 0, 1, count / head_.kernels.vector_lanes, from);
  }
  /// Of queries first, ..., at most so many.
  void add_queries(T* to, const T* from, Index first, Index tokens) const {
    const Index blocks = (std::min(tokens, query_len_ - first) + kBlock - 1) / kBlock;
    add(to, from, blocks * at_.panel);
  }
  void add_keys(const KeySums<T>& to, const KeySums<T>& from, Index first, Index tokens) const {
    const Index keys = std::min(tokens, kv_len_ - first);
    at_.tile.add(head_.kernels, to, from, keys);
  }

  const Head<In, In, T>& head_;
  const HeadGradientTask<In, T>& task_;
  GradientMemory<T>& at_;
  GradientTile<In, T> tile_;
  const Index query_len_, kv_len_;
  const Index query_chunks_, key_chunks_;
};

}  // namespace mha::kernels
