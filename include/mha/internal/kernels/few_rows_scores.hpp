// SPDX-License-Identifier: MIT
//
// The scores of few query rows, see few_rows.hpp: lanes are keys.
#pragma once

#include <array>

#include "mha/internal/kernels/extra_key.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Rows that are computed together at the most.
inline constexpr Index kFewRows = 8;

/// Rows of keys and values by which they are fetched from pages ahead of their use. Of 32 query and 8 key heads
/// of 128 with 4096 keys, from memory: 0.82 of the time without; from the last-level cache: 0.94.
inline constexpr Index kRowsAhead = 12;

template <class In, class Out, class T>
class FewRowsScores {
 public:
  /// @param heads  neighbouring query heads of one key head, with num_queries queries each
  FewRowsScores(const Head<In, Out, T>* heads, Index num_heads, Index num_queries,
                const FewRowsMemory<T>& memory)
      : heads_(heads),
        kernels_(heads[0].kernels),  // NOLINT(clang-analyzer-core.*): a task has at least one head
        calls_(heads[0].calls),
        key_(heads[0].task.key),
        value_(heads[0].task.value),
        num_heads_(num_heads),
        num_queries_(num_queries),
        rows_(num_heads * num_queries),
        at_(memory),
        extra_(heads[0].task.extra) {}

  void start() {
    scale_queries();
    find_ranges();
  }

  /// Keys that some row may see: [begin(), end()), empty if begin() >= end().
  Index begin() const { return begin_; }
  Index end() const { return end_; }

 protected:
  const Head<In, Out, T>& head_of(Index row) const { return heads_[row / num_queries_]; }
  Index query_of(Index row) const { return row % num_queries_; }
  Index vectors_of(Index lanes) const {
    return (lanes + kernels_.vector_lanes - 1) / kernels_.vector_lanes;
  }

  void scale_queries() {
    const T factor = calls_.query_factor();
    for (Index r = 0; r < rows_; ++r) {
      const MatrixView<const In> query = head_of(r).task.query.middle_rows(query_of(r), 1);
      T* const row = at_.query + r * at_.wide_head;
      convert_rows(kernels_, query, row, key_.cols);
      if (factor == T(1)) continue;
      std::fill(row + key_.cols, row + at_.wide_head, T(0));
      // A -0 becomes +0, which no sum tells apart.
      kernels_.end_row(row, at_.wide_head / kernels_.vector_lanes, factor);
    }
  }

  void find_ranges() {
    begin_ = all_end_ = key_.rows;
    end_ = all_begin_ = 0;
    for (Index r = 0; r < rows_; ++r) {
      KeyRange range{0, key_.rows};
      const Head<In, Out, T>& head = head_of(r);
      if (calls_.ranges != nullptr)
        calls_.ranges(calls_.rules, head.extent, head.b, head.h, query_of(r), 1, &range);
      range = intersect(range, {0, key_.rows});
      const bool empty = range.begin >= range.end;
      if (empty) range = {0, 0};
      at_.begin[r] = static_cast<int_of<T>>(range.begin);
      at_.end[r] = static_cast<int_of<T>>(range.end);
      at_.allowed[r] = calls_.may_mask || empty ? 0 : 1;
      all_begin_ = std::max(all_begin_, empty ? key_.rows : range.begin);
      all_end_ = std::min(all_end_, range.end);
      if (empty) continue;
      begin_ = std::min(begin_, range.begin);
      end_ = std::max(end_, range.end);
    }
  }

  /// Asks the rules about keys from, ..., to - 1, within one key tile. False: no row may attend to any
  /// of them.
  bool wants(Index from, Index to) {
    if (calls_.tile == nullptr) return true;
    bool any = false;
    for (Index n = 0; n < num_heads_; ++n) {
      const Head<In, Out, T>& head = heads_[n];
      const TileMask mask = calls_.tile(calls_.rules, head.extent, head.b, head.h,
                                        {0, num_queries_, from, to - from});
      all_allowed_[static_cast<std::size_t>(n)] = mask == TileMask::all;
      any = any || mask != TileMask::none;
    }
    return any;
  }

  void score(Index from, Index to) {
    const Index keys = to - from;
    const Index lanes = vectors_of(keys) * kernels_.vector_lanes;
    const KeyTiles<In, T>& tiles = heads_[0].tiles;
    if (const T* const panel = tiles.panel(from); panel != nullptr) {
      multiply_panel(panel, kKeyTile, keys, at_.s, 0, key_.cols,
                     tiles.values_in_place(from, to).data);
    } else if (tiles.in_pages()) {
      // As many channels at a time as stay in the first-level cache until they are used.
      constexpr Index kNumbers = 2048;
      const Index step = kNumbers / keys;
      for (Index d = 0; d == 0 || d < key_.cols; d += step) {
        const Index channels = std::min(step, key_.cols - d);
        tiles.convert_panel(from, to, d, channels, at_.key, kKeyTile);
        multiply_panel(at_.key, kKeyTile, keys, at_.s, d, channels);
      }
    } else {
      // As many keys at a time as keep their transposed panel in the first-level cache.
      constexpr Index kPanel = FewRowsMemory<T>::kPanel;
      for (Index j = 0; j < keys; j += kPanel) {
        const Index count = std::min(kPanel, keys - j);
        multiply(tiles.keys(from + j, from + j + count, at_.plain), at_.s + j);
      }
    }
    scale_and_cap(keys);
    modify(from, keys);
    for (Index r = 0; r < rows_; ++r) {
      T* const row = at_.s + r * kKeyTile;
      for (Index j = from; j < std::min(to, static_cast<Index>(at_.begin[r])); ++j) {
        mha::detail::set_minus_infinity(row[j - from]);
      }
      for (Index j = std::max(from, static_cast<Index>(at_.end[r])); j < to; ++j) {
        mha::detail::set_minus_infinity(row[j - from]);
      }
      for (Index j = keys; j < lanes; ++j) mha::detail::set_minus_infinity(row[j]);
    }
  }

  /// Scores of at most kPanel keys.
  void multiply(const MatrixView<const T>& key, T* scores) {
    constexpr Index kPanel = FewRowsMemory<T>::kPanel;
    kernels_.pack(key.data, key.row_stride, key.col_stride, key.rows, key.cols, T(1), at_.key,
                  kPanel, vectors_of(key.rows) * kernels_.vector_lanes);
    multiply_panel(at_.key, kPanel, key.rows, scores, 0, key.cols);
  }
  /// Of transposed keys, whose rows are `step` apart and may be read in whole vectors. The panel has so many
  /// channels from `channel` on, whose products are added to those of the channels before.
  /// @param next  what is read after them, if they come from memory: values
  void multiply_panel(const T* panel, Index step, Index keys, T* scores, Index channel,
                      Index channels, const T* next = nullptr) {
    Product<T> x;
    if (next != nullptr) x.b_ahead = kRowsAhead;
    x.b_next = next;
    x.rows = rows_;
    x.vectors = vectors_of(keys);
    x.depth = channels;
    x.accumulate = channel > 0;
    x.a = at_.query + channel;
    x.a_row = at_.wide_head;
    x.a_step = 1;
    x.b = panel;
    x.b_step = step;
    x.c = scores;
    x.c_row = kKeyTile;
    x.fetch[0] = x.fetch[1] = x.a;
    kernels_.product(x);
  }

  void scale_and_cap(Index keys) {
    for (Index r = 0; calls_.scales_scores() && r < rows_; ++r) {
      T* const row = at_.s + r * kKeyTile;
      for (Index j = 0; j < keys; ++j) row[j] *= calls_.scale;
    }
    if (calls_.softcap > T(0)) {
      kernels_.softcap(at_.s, rows_, kKeyTile, vectors_of(keys), calls_.softcap);
    }
  }

  void modify(Index from, Index keys) {
    if (calls_.modify == nullptr) return;
    for (Index n = 0; n < num_heads_; ++n) {
      const Index row = n * num_queries_;
      const bool all_allowed = all_allowed_[static_cast<std::size_t>(n)];
      if (all_allowed && !calls_.changes_scores) {
        for (Index r = row; r < row + num_queries_; ++r) {
          note_allowed(at_.allowed[r], at_.s + r * kKeyTile, 1, from,
                       keys_of_row(at_.begin, at_.end, r, from, from + keys));
        }
        continue;
      }
      ModifyTile<T> tile;
      tile.all_allowed = all_allowed;
      tile.extent = &heads_[n].extent;
      tile.b = heads_[n].b;
      tile.h = heads_[n].h;
      tile.first_query = 0;
      tile.queries = num_queries_;
      tile.first_key = from;
      tile.keys = keys;
      tile.s = at_.s + row * kKeyTile;
      tile.row_stride = kKeyTile;
      tile.lanes_are_queries = false;
      tile.begin = at_.begin + row;
      tile.end = at_.end + row;
      tile.allowed = at_.allowed + row;
      calls_.modify(calls_.rules, tile);
    }
  }

  void drop(Index from, Index keys) const {
    for (Index r = 0; r < rows_; ++r) {
      const Head<In, Out, T>& head = head_of(r);
      std::uint32_t row[2];
      calls_.dropout_row(calls_.rules, head.b, head.h, head.extent.first_query + query_of(r), row);
      const DropoutRow dropout{row[0], row[1]};
      for (Index j = 0; j < keys; ++j) {
        if (dropout.bits(head.extent.first_key + from + j) < calls_.dropout_threshold)
          at_.s[r * kKeyTile + j] = T(0);
      }
    }
  }

  const Head<In, Out, T>* heads_;
  const Kernels<T>& kernels_;
  const RuleCalls<T>& calls_;
  const MatrixView<const In> key_;
  const MatrixView<const In> value_;
  const Index num_heads_;
  const Index num_queries_;
  const Index rows_;
  FewRowsMemory<T> at_;
  SoftmaxStates<T>& states_ = at_.states;
  const ExtraKeys<T> extra_;
  std::array<bool, std::size_t{kFewRows}> all_allowed_{};  ///< of the key tile at hand, by heads
  Index begin_ = 0, end_ = 0;                              ///< keys that some row may see
  Index all_begin_ = 0, all_end_ = 0;                      ///< keys that every row may see
};

}  // namespace mha::kernels
