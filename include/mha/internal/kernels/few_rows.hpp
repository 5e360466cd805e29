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

#include "mha/internal/kernels/few_rows_scores.hpp"
#include "mha/internal/kernels/join_rows.hpp"

namespace mha::inline MHA_ABI::kernels {

template <class In, class Out, class T>
class FewRows : public FewRowsScores<In, Out, T> {
 public:
  using Scores = FewRowsScores<In, Out, T>;
  using Scores::Scores;

  void run() {
    this->start();
    for (Index tile = begin_ - begin_ % kKeyTile; tile < end_; tile += kKeyTile) absorb(tile);
    finish();
  }

  /// All keys of a chunk, into a fresh state.
  void run_chunk(Index chunk) {
    start_chunk(heads_[0].chunk_at(chunk));
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
    start_chunk(heads_[0].chunk_at(chunk));
    copy_state(state.state, states_.now, rows_ * at_.wide, rows_);
    for (Index r = 0; r < rows_; ++r) at_.allowed[r] |= state.allowed[r];
  }

  /// Writes output, lse and weights.
  void finish() {
    if (!states_.tree.finish(states_.now, joined())) {
      clear(states_.now);
      std::fill_n(states_.now.acc, rows_ * at_.wide, T(0));
    }
    if (heads_[0].task.state.data != nullptr) return write_state();
    if (extra_.key != nullptr) join_extra_key();
    write_output();
  }

 private:
  using Scores::all_begin_;
  using Scores::all_end_;
  using Scores::at_;
  using Scores::begin_;
  using Scores::calls_;
  using Scores::drop;
  using Scores::end_;
  using Scores::extra_;
  using Scores::head_of;
  using Scores::heads_;
  using Scores::kernels_;
  using Scores::key_;
  using Scores::query_of;
  using Scores::rows_;
  using Scores::score;
  using Scores::states_;
  using Scores::value_;
  using Scores::vectors_of;
  using Scores::wants;

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
    next_panel_ = to < end_ ? heads_[0].tiles.panel(to) : nullptr;
    if (!states_.tree.in_chunk(heads_[0].chunk_at(tile))) start_chunk(heads_[0].chunk_at(tile));
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
      kernels_.add(acc, 0, 1, rows_ * at_.wide / kernels_.vector_lanes, at_.part);
    }
    fresh_ = false;
  }

  /// part = the weights of keys from, ..., to - 1 times their values.
  void weigh(Index from, Index to, T* part) {
    std::fill_n(part, rows_ * at_.wide, T(0));
    if (value_.cols == 0) return;
    MatrixView<const T> rows;
    if (at_.wide == value_.cols) rows = heads_[0].tiles.values_in_place(from, to);
    const bool whole = !calls_.may_mask && all_begin_ <= from && all_end_ >= to;
    if (rows.data == nullptr && whole) {  // copied where they are used at once
      for (Index j = from; j < to; j += kKeysAtATime) {
        const Index count = std::min(kKeysAtATime, to - j);
        copy_values(j, j + count);
        multiply_values(at_.value, at_.wide, at_.s + j - from, count, rows_, part);
      }
      return;
    }
    if (rows.data == nullptr) {
      copy_values(from, to);
      rows = {at_.value, to - from, at_.wide, at_.wide, 1};
    }
    const T* const values = rows.data;
    const Index stride = rows.row_stride;
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

  /// In whole vectors, to at_.value.
  void copy_values(Index from, Index to) {
    heads_[0].tiles.copy_values(from, to, at_.value, at_.wide);
    for (Index j = 0; at_.wide > value_.cols && j < to - from; ++j) {
      std::fill(at_.value + j * at_.wide + value_.cols, at_.value + (j + 1) * at_.wide, T(0));
    }
  }

  /// Keys begin, ..., end - 1 of the tile, for `count` rows from `row` on.
  void weigh_keys(const T* values, Index stride, Index begin, Index end, Index row, Index count,
                  T* part) {
    if (begin >= end) return;
    const bool in_pages = values != at_.value && heads_[0].tiles.in_pages();
    for (Index j = begin; j < end; j += kKeysAtATime) {
      const bool is_last = j + kKeysAtATime >= end;
      multiply_values(values + j * stride, stride, at_.s + row * kKeyTile + j,
                      std::min(kKeysAtATime, end - j), count, part + row * at_.wide, in_pages,
                      is_last);
    }
  }
  /// part += the weights of so many keys times their values, for `count` rows.
  /// @param in_pages  the values are read there; the next panel of keys after the last of them
  void multiply_values(const T* values, Index stride, const T* weights, Index keys, Index count,
                       T* part, bool in_pages = false, bool is_last = false) {
    Product<T> x;
    x.rows = count;
    x.vectors = vectors_of(at_.wide);
    x.depth = keys;
    x.a = weights;
    x.a_row = kKeyTile;
    x.a_step = 1;
    x.b = values;
    x.b_step = stride;
    x.c = part;
    x.c_row = at_.wide;
    x.accumulate = true;
    if (in_pages) x.b_ahead = kRowsAhead;
    if (in_pages && is_last) x.b_next = next_panel_;
    x.fetch[0] = x.fetch[1] = x.a;
    kernels_.product(x);
  }

  /// The row's sum of weighted values, times a factor, to where it belongs.
  void end_row(Index row, T factor, const MatrixView<Out>& output) {
    T* const total = states_.now.acc + row * at_.wide;
    kernels_.end_row(total, at_.wide / kernels_.vector_lanes, factor);
    copy_run(output.data, output.col_stride, total, 1, value_.cols);
  }

  /// The rows before their end.
  void write_state() {
    for (Index r = 0; r < rows_; ++r) {
      const HeadTask<In, Out, T>& task = head_of(r).task;
      const Index i = query_of(r);
      end_row(r, T(1), task.output.middle_rows(i, 1));
      task.state(i, 0) = states_.now.row_max[r];
      task.state(i, 1) = states_.now.row_sum[r];
      task.state(i, 2) = at_.allowed[r] != 0 ? T(1) : T(0);
    }
  }

  void write_output() {
    for (Index r = 0; r < rows_; ++r) {
      const Head<In, Out, T>& head = head_of(r);
      RowEnd<T> end{false, T(0)};
      end.has_sink = sink_of(head, end.sink);
      const Index i = query_of(r);
      const bool weighs_zero = extra_.zero && head.task.weights.data != nullptr;
      const bool needs_lse = weighs_zero || head.task.lse.data != nullptr;
      T lse(0);
      at_.factor[r] = end(at_.allowed[r] != 0, states_.now.row_max[r], states_.now.row_sum[r],
                          needs_lse ? &lse : nullptr);
      if (head.task.lse.data != nullptr) head.task.lse(i, 0) = lse;
      if (weighs_zero) head.task.extra_weights(i, extra_.count() - 1) = std::exp(-lse);
      const T factor = at_.factor[r] * calls_.dropout_scale;
      end_row(r, factor, head.task.output.middle_rows(i, 1));
    }
    if (heads_[0].task.weights.data == nullptr) return;
    write_weights();
    if (extra_.key != nullptr) write_extra_weights();
  }

  /// As where a lane is a query.
  void join_extra_key() {
    const SoftmaxState<T>& state = at_.extra;
    this->multiply({extra_.key, 1, key_.cols, key_.cols, 1}, at_.s);
    this->scale_and_cap(1);
    for (Index r = 0; r < rows_; ++r) {
      state.row_max[r] = at_.s[r * kKeyTile];
      state.row_sum[r] = at_.s[r * kKeyTile] = T(1);
      at_.allowed[r] = 1;
    }
    if (calls_.dropout_row != nullptr) drop(key_.rows, 1);
    std::fill_n(state.acc, rows_ * at_.wide, T(0));
    for (Index r = 0; r < rows_; ++r) {
      if (at_.s[r * kKeyTile] == T(0)) continue;
      std::copy_n(extra_.value, value_.cols, state.acc + r * at_.wide);
    }
    joined()(states_.now, state);
  }

  void write_extra_weights() {
    for (Index r = 0; r < rows_; ++r) {
      T* const row = at_.s + r * kKeyTile;
      row[0] = at_.extra.row_max[r];
      for (Index l = 1; l < kernels_.vector_lanes; ++l) mha::detail::set_minus_infinity(row[l]);
    }
    kernels_.exponentiate_rows(at_.s, kKeyTile, rows_, 1, states_.now.row_max, states_.now.row_sum,
                               at_.correction);
    for (Index r = 0; r < rows_; ++r) {
      head_of(r).task.extra_weights(query_of(r), 0) = at_.s[r * kKeyTile] * at_.factor[r];
    }
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

  /// Few keys at a time for all channels, so that V is read in the order in which it lies.
  static constexpr Index kKeysAtATime = 16;
  const T* next_panel_ = nullptr;  ///< the keys behind the tile at hand, in pages
  bool fresh_ = true;              ///< no key of the chunk yet: acc holds nothing
};

}  // namespace mha::kernels
