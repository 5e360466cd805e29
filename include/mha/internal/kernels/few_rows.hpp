// SPDX-License-Identifier: MIT
//
// Attention of few queries, as in decoding: the lanes are keys for the scores and channels for the
// output. The rows are the query heads that share a key head (grouped queries), times their queries,
// so that each key and value is read once for all of them.
//     K^T            [head_dim][key]   packed, 32 keys (16 of double) at a time
//     S = Q K^T      [row][key]
//     P = e^(S - row_max)
//     O += P V       [row][channel]    V read where it lies
// Every number is computed by the same chain of operations as in query_tile.hpp, in the same key
// tiles and chunks: a decoded row has the bits of that row of the full run.
#pragma once

#include <array>

#include "mha/internal/kernels/head.hpp"
#include "mha/internal/kernels/join_rows.hpp"

namespace mha::kernels {

/// Rows that are computed together at the most.
inline constexpr Index kFewRows = 8;

template <class In, class Out, class T>
class FewRows {
 public:
  /// @param heads  neighbouring query heads of one key head, with num_queries queries each
  FewRows(const Head<In, Out, T>* heads, Index num_heads, Index num_queries,
          const FewRowsMemory<T>& memory)
      : heads_(heads),
        kernels_(heads[0].kernels),  // NOLINT(clang-analyzer-core.*): a task has at least one head
        calls_(heads[0].calls),
        key_(heads[0].task.key),
        value_(heads[0].task.value),
        num_heads_(num_heads),
        num_queries_(num_queries),
        rows_(num_heads * num_queries),
        at_(memory) {}

  void run() {
    start();
    for (Index tile = begin_ - begin_ % kKeyTile; tile < end_; tile += kKeyTile) absorb(tile);
    finish();
  }

  void start() {
    scale_queries();
    find_ranges();
  }

  /// Keys that some row may see: [begin(), end()), empty if begin() >= end().
  Index begin() const { return begin_; }
  Index end() const { return end_; }

  /// All keys of a chunk, into a fresh state.
  void run_chunk(Index chunk) {
    start_chunk(chunk / kKeyChunk);
    const Index first = std::max(chunk, begin_ - begin_ % kKeyTile);
    const Index stop = std::min(end_, chunk + kKeyChunk);
    for (Index tile = first; tile < stop; tile += kKeyTile) absorb(tile);
    if (fresh_) std::fill_n(states_.now.acc, rows_ * at_.wide, T(0));
  }

  /// The chunk's state, to be joined by another task of the same rows.
  void save(const ChunkState<T>& chunk) const {
    copy_state(states_.now, chunk.state, rows_ * at_.wide, rows_);
    std::copy_n(at_.allowed, rows_, chunk.allowed);
  }
  void load(Index chunk, const ChunkState<T>& state) {
    start_chunk(chunk);
    copy_state(state.state, states_.now, rows_ * at_.wide, rows_);
    for (Index r = 0; r < rows_; ++r) at_.allowed[r] |= state.allowed[r];
  }

  /// Writes output, lse and weights.
  void finish() {
    if (!states_.tree.finish(states_.now, joined())) {
      clear(states_.now);
      std::fill_n(states_.now.acc, rows_ * at_.wide, T(0));
    }
    write_output();
  }

 private:
  const Head<In, Out, T>& head_of(Index row) const { return heads_[row / num_queries_]; }
  Index query_of(Index row) const { return row % num_queries_; }
  Index vectors_of(Index lanes) const {
    return (lanes + kernels_.vector_lanes - 1) / kernels_.vector_lanes;
  }

  void scale_queries() {
    const T factor = calls_.query_factor();
    for (Index r = 0; r < rows_; ++r) {
      const MatrixView<const In>& query = head_of(r).task.query;
      for (Index d = 0; d < key_.cols; ++d) {
        at_.query[r * key_.cols + d] = mha::detail::convert<T>(query(query_of(r), d)) * factor;
      }
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

  /// No key yet; acc is left as it is.
  void clear(const SoftmaxState<T>& state) const {
    for (Index r = 0; r < rows_; ++r) mha::detail::set_minus_infinity(state.row_max[r]);
    std::fill_n(state.row_sum, rows_, T(0));
  }
  void start_chunk(Index chunk) {
    states_.tree.start(chunk, states_.now, joined());
    clear(states_.now);
    fresh_ = true;
  }
  auto joined() const {
    return [this](const SoftmaxState<T>& a, const SoftmaxState<T>& b) {
      join_rows(kernels_, a, b, rows_, at_.wide);
    };
  }

  /// Keys tile, ..., tile + kKeyTile - 1, as far as some row may see them, into the running state.
  void absorb(Index tile) {
    const Index from = std::max(tile, begin_);
    const Index to = std::min(tile + kKeyTile, end_);
    if (!wants(from, to)) return;
    if (!states_.tree.in_chunk(tile / kKeyChunk)) start_chunk(tile / kKeyChunk);
    score(from, to);
    kernels_.exponentiate_rows(at_.s, kKeyTile, rows_, to - from, states_.now.row_max,
                               states_.now.row_sum, at_.correction);
    if (calls_.dropout_row != nullptr) drop(from, to - from);
    T* const acc = states_.now.acc;
    if (fresh_) {
      weigh(from, to, acc);
    } else {
      weigh(from, to, at_.part);
      for (Index r = 0; r < rows_; ++r) {
        const T correction = at_.correction[r];
        if (correction == T(1)) continue;
        for (Index c = 0; c < at_.wide; ++c) acc[r * at_.wide + c] *= correction;
      }
      kernels_.add(acc, 1, rows_ * at_.wide / kernels_.vector_lanes, at_.part);
    }
    fresh_ = false;
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
    // As many keys at a time as keep their transposed panel in the first-level cache.
    constexpr Index kPanel = FewRowsMemory<T>::kPanel;
    for (Index j = 0; j < keys; j += kPanel) {
      const MatrixView<const In> key = key_.middle_rows(from + j, std::min(kPanel, keys - j));
      const Index vectors = vectors_of(key.rows);
      const T* rows = nullptr;
      Index row_stride = key.cols;
      Index col_stride = 1;
      if constexpr (std::is_same_v<In, T>) {
        rows = key.data;
        row_stride = key.row_stride;
        col_stride = key.col_stride;
      } else {
        convert_rows(key, at_.plain, key.cols);
        rows = at_.plain;
      }
      kernels_.pack(rows, row_stride, col_stride, key.rows, key.cols, T(1), at_.key, kPanel,
                    vectors * kernels_.vector_lanes);
      Product<T> x;
      x.rows = rows_;
      x.vectors = vectors;
      x.depth = key.cols;
      x.a = at_.query;
      x.a_row = key.cols;
      x.a_step = 1;
      x.b = at_.key;
      x.b_step = kPanel;
      x.c = at_.s + j;
      x.c_row = kKeyTile;
      x.fetch[0] = x.fetch[1] = x.a;
      kernels_.product(x);
    }
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

  void modify(Index from, Index keys) {
    for (Index r = 0; calls_.scales_scores() && r < rows_; ++r) {
      T* const row = at_.s + r * kKeyTile;
      for (Index j = 0; j < keys; ++j) row[j] *= calls_.scale;
    }
    if (calls_.softcap > T(0)) {
      kernels_.softcap(at_.s, rows_, kKeyTile, vectors_of(keys), calls_.softcap);
    }
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
      calls_.dropout_row(calls_.rules, head.b, head.h, query_of(r), row);
      const DropoutRow dropout{row[0], row[1]};
      for (Index j = 0; j < keys; ++j) {
        if (dropout.bits(from + j) < calls_.dropout_threshold) at_.s[r * kKeyTile + j] = T(0);
      }
    }
  }

  /// part = the weights of keys from, ..., to - 1 times their values.
  void weigh(Index from, Index to, T* part) {
    std::fill_n(part, rows_ * at_.wide, T(0));
    if (value_.cols == 0) return;
    const MatrixView<const In> rows = value_.middle_rows(from, to - from);
    const T* values = nullptr;
    Index stride = 0;
    if constexpr (std::is_same_v<In, T>) {
      if (rows.col_stride == 1 && at_.wide == value_.cols) {
        values = rows.data;
        stride = rows.row_stride;
      }
    }
    if (values == nullptr) {
      for (Index j = 0; j < to - from; ++j) {
        T* const row = at_.value + j * at_.wide;
        for (Index c = 0; c < rows.cols; ++c) row[c] = mha::detail::convert<T>(rows(j, c));
        std::fill(row + rows.cols, row + at_.wide, T(0));
      }
      values = at_.value;
      stride = at_.wide;
    }
    const bool whole = !calls_.may_mask && all_begin_ <= from && all_end_ >= to;
    if (whole || kernels_.all_finite(values, stride, 1, to - from, at_.wide)) {
      weigh_keys(values, stride, 0, to - from, 0, rows_, part);
      return;
    }
    Index clean = 0;
    for (Index j = 0; j < to - from; ++j) {
      const T* const row = values + j * stride;
      if (kernels_.all_finite(row, stride, 1, 1, at_.wide)) continue;
      weigh_keys(values, stride, clean, j, 0, rows_, part);
      for (Index r = 0; r < rows_; ++r) {
        const bool in_range = from + j >= at_.begin[r] && from + j < at_.end[r];
        if (!in_range || (calls_.may_mask && at_.s[r * kKeyTile + j] == T(0))) continue;
        weigh_keys(values, stride, j, j + 1, r, 1, part);
      }
      clean = j + 1;
    }
    weigh_keys(values, stride, clean, to - from, 0, rows_, part);
  }

  /// Keys begin, ..., end - 1 of the tile, for `count` rows from `row` on.
  void weigh_keys(const T* values, Index stride, Index begin, Index end, Index row, Index count,
                  T* part) {
    if (begin >= end) return;
    // Few keys at a time for all channels, so that V is read in the order in which it lies.
    constexpr Index kKeys = 16;
    for (Index j = begin; j < end; j += kKeys) {
      Product<T> x;
      x.rows = count;
      x.vectors = vectors_of(at_.wide);
      x.depth = std::min(kKeys, end - j);
      x.a = at_.s + row * kKeyTile + j;
      x.a_row = kKeyTile;
      x.a_step = 1;
      x.b = values + j * stride;
      x.b_step = stride;
      x.c = part + row * at_.wide;
      x.c_row = at_.wide;
      x.accumulate = true;
      x.fetch[0] = x.fetch[1] = x.a;
      kernels_.product(x);
    }
  }

  void write_output() {
    for (Index r = 0; r < rows_; ++r) {
      const Head<In, Out, T>& head = head_of(r);
      RowEnd<T> end{false, T(0)};
      end.has_sink = calls_.sink(calls_.rules, head.h, end.sink);
      const Index i = query_of(r);
      T* const lse = head.task.lse.data == nullptr ? nullptr : &head.task.lse(i, 0);
      at_.factor[r] = end(at_.allowed[r] != 0, states_.now.row_max[r], states_.now.row_sum[r], lse);
      const T factor = at_.factor[r] * calls_.dropout_scale;
      const T* const total = states_.now.acc + r * at_.wide;
      const MatrixView<Out> output = head.task.output.middle_rows(i, 1);
      for (Index c = 0; c < value_.cols; ++c) {
        // As where a lane is a query: a -0 of rounding is +0.
        const T x = mha::detail::without_sign_of_zero(T(total[c] * factor));
        output(0, c) = mha::detail::convert<Out>(x);
      }
    }
    if (heads_[0].task.weights.data != nullptr) write_weights();
  }

  void write_weights() {
    for (Index r = 0; r < rows_; ++r) {
      for (Index j = 0; j < key_.rows; ++j) head_of(r).task.weights(query_of(r), j) = T(0);
    }
    for (Index tile = begin_ - begin_ % kKeyTile; tile < end_; tile += kKeyTile) {
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      if (!wants(from, to)) continue;
      score(from, to);
      kernels_.exponentiate_rows(at_.s, kKeyTile, rows_, to - from, states_.now.row_max,
                                 states_.now.row_sum, at_.correction);
      for (Index r = 0; r < rows_; ++r) {
        if (at_.allowed[r] == 0) continue;
        const KeyRange own = keys_of_row(at_.begin, at_.end, r, from, to);
        for (Index j = own.begin; j < own.end; ++j) {
          head_of(r).task.weights(query_of(r), j) = at_.s[r * kKeyTile + j - from] * at_.factor[r];
        }
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
  std::array<bool, std::size_t{kFewRows}> all_allowed_{};  ///< of the key tile at hand, by heads
  bool fresh_ = true;                  ///< no key of the chunk yet: acc holds nothing
  Index begin_ = 0, end_ = 0;          ///< keys that some row may see
  Index all_begin_ = 0, all_end_ = 0;  ///< keys that every row may see
};

}  // namespace mha::kernels
