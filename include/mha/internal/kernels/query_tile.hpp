// SPDX-License-Identifier: MIT
//
// Attention of a tile of queries, one query per lane. Everything is transposed: a row of the panels
// below is a channel or a key, so that keys and values are read where they lie, at any strides, one
// number broadcast at a time, and no sum or maximum ever runs across lanes.
//     Q^T               [head_dim][query]   packed once per tile, scaled
//     S^T = K Q^T       [key][query]        128 keys at a time
//     P^T = e^(S^T - row_max)               tile_softmax.hpp, column by column
//     O^T += V^T P^T    [channel][query]
// Sums over the keys of a tile begin at 0 and are then added. Chunks of 1024 keys start from an empty
// state; the states are joined by a tree (chunk_tree.hpp). Key tiles and chunks begin at multiples of their
// size, counted from the sequence's first key, so that a query's arithmetic depends on nothing but its
// own keys: its bits are the same in any company.
// Causal and other key ranges: groups of 16 lanes (8 doubles) take part only in the keys that one of
// them may see, and only where some lane may not is anything compared.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <cstring>

#include "mha/internal/kernels/extra_key.hpp"
#include "mha/internal/kernels/query_scores.hpp"

namespace mha::inline MHA_ABI::kernels {

template <class In, class Out, class T>
class QueryTile : public QueryScores<In, Out, T> {
 public:
  using Scores = QueryScores<In, Out, T>;
  using Scores::kGroup;
  using Scores::kWide;
  using Scores::wants;

  QueryTile(const Head<In, Out, T>& head, const QueryTileMemory<T>& memory)
      : Scores(head, memory), states_(memory.states), extra_(memory.extra) {}

  /// Keys max(begin(), tile), ..., min(end(), tile + kKeyTile) - 1 into the running state.
  /// @param key, value  rows from, from + 1, ... of K and V
  /// @param next_keys, next_queries  what is used soon
  void absorb(Index tile, Index from, const MatrixView<const T>& key,
              const MatrixView<const T>& value, const Upcoming<T>& next_keys,
              const Upcoming<T>& next_queries) {
    if (!states_.tree.in_chunk(head_.chunk_at(tile))) start_chunk(head_.chunk_at(tile));
    next_keys_ = next_keys;
    next_queries_ = next_queries;
    segments_.cut(std::max(tile, begin_), std::min(tile + kKeyTile, end_), groups_);
    const Index vectors = vectors_of(groups_);
    fill_minus_infinity(at_.tile_max);
    for (const Segment& s : segments_) {
      score(s, key, from, tile);
      if (this->product_finds_maxima(s)) continue;
      const Index lane = s.first_group * kGroup;
      kernels_.fold_max(at_.scratch.s + (s.begin - tile) * kWide + lane, s.end - s.begin,
                        vectors_of(s.end_group - s.first_group), at_.tile_max + lane,
                        s.whole ? nullptr : at_.begin + lane, at_.end + lane, s.begin);
    }
    SoftmaxState<T>& state = states_.now;
    if (kernels_.raise(at_.tile_max, state.row_max, at_.correction, vectors) && !fresh_) {
      kernels_.rescale(state.row_sum, 1, vectors, at_.correction);
      kernels_.rescale(state.acc, task_.value.cols, vectors, at_.correction);
    }
    T* const tile_sum = fresh_ ? state.row_sum : at_.tile_sum;
    if (!fresh_) std::fill_n(tile_sum, groups_ * kGroup, T(0));
    for (const Segment& s : segments_) {
      const Index lane = s.first_group * kGroup;
      T* const scores = at_.scratch.s + (s.begin - tile) * kWide + lane;
      const Index part = vectors_of(s.end_group - s.first_group);
      kernels_.exponentiate(scores, s.end - s.begin, part, state.row_max + lane, tile_sum + lane);
      if (calls_.dropout_row != nullptr) {
        kernels_.drop(scores, s.end - s.begin, part, this->dropout_of(s));
      }
    }
    if (!fresh_) kernels_.add(state.row_sum, 0, 1, vectors, tile_sum);
    this->weighted_by(at_.scratch.s, tile, calls_.may_mask)
        .add_to(state.acc, fresh_, value, from, at_.scratch.part, next_keys_);
    fresh_ = false;
  }

  /// All keys of a chunk, into a fresh state.
  void run_chunk(Index chunk) {
    start_chunk(head_.chunk_at(chunk));
    const Index stop = std::min(end_, chunk + kKeyChunk);
    for (Index tile = std::max(chunk, begin_ - begin_ % kKeyTile); tile < stop; tile += kKeyTile) {
      if (!wants(tile)) continue;
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      absorb(tile, from, head_.tiles.keys(from, to, at_.scratch.key),
             head_.tiles.values(from, to, at_.scratch.value), {}, {});
    }
    if (fresh_) zero_panel(states_.now.acc, task_.value.cols);
  }

  /// The chunk's state, to be joined by another task of the same queries.
  void save(const ChunkState<T>& chunk) const {
    copy_state(states_.now, chunk.state, task_.value.cols * kWide, kWide);
    std::copy_n(at_.allowed, kWide, chunk.allowed);
  }
  void load(Index chunk, const ChunkState<T>& state) {
    start_chunk(head_.chunk_at(chunk));
    copy_state(state.state, states_.now, task_.value.cols * kWide, kWide);
    for (Index l = 0; l < groups_ * kGroup; ++l) at_.allowed[l] |= state.allowed[l];
  }

  /// Writes output, lse and weights.
  void finish() {
    if (!states_.tree.finish(states_.now, joined())) {
      clear(states_.now);
      zero_panel(states_.now.acc, task_.value.cols);
    }
    if (task_.state.data != nullptr) return write_state();
    if (task_.extra.key != nullptr) join_extra_key();
    write_output();
  }

 private:
  using Scores::all_allowed_;
  using Scores::at_;
  using Scores::begin_;
  using Scores::calls_;
  using Scores::count_;
  using Scores::end_;
  using Scores::fill_minus_infinity;
  using Scores::first_;
  using Scores::groups_;
  using Scores::head_;
  using Scores::kernels_;
  using Scores::next_queries_;
  using Scores::score;
  using Scores::segments_;
  using Scores::task_;
  using Scores::vectors_of;
  using Scores::zero_panel;

  /// No key yet; acc is left as it is.
  void clear(const SoftmaxState<T>& state) const {
    fill_minus_infinity(state.row_max);
    std::fill_n(state.row_sum, groups_ * kGroup, T(0));
  }
  auto joined() const {
    return [this](const SoftmaxState<T>& a, const SoftmaxState<T>& b) {
      kernels_.merge(a.acc, a.row_max, a.row_sum, b.acc, b.row_max, b.row_sum, task_.value.cols,
                     vectors_of(groups_));
    };
  }
  void start_chunk(Index chunk) {
    states_.tree.start(chunk, states_.now, joined());
    clear(states_.now);
    fresh_ = true;
  }

  /// The rows before their end.
  void write_state() {
    const SoftmaxState<T>& state = states_.now;
    std::fill_n(at_.tile_max, count_, T(1));
    this->write_rows(state.acc, at_.tile_max, task_.output);
    for (Index l = 0; l < count_; ++l) {
      task_.state(first_ + l, 0) = state.row_max[l];
      task_.state(first_ + l, 1) = state.row_sum[l];
      task_.state(first_ + l, 2) = at_.allowed[l] != 0 ? T(1) : T(0);
    }
  }

  void write_output() {
    RowEnd<T> end{false, T(0)};
    const SoftmaxState<T>& state = states_.now;
    end.has_sink = sink_of(head_, end.sink);
    T* const factor = at_.correction;
    const bool needs_lse =
        task_.lse.data != nullptr || (task_.extra.zero && task_.weights.data != nullptr);
    const bool sums_only = !end.has_sink && !needs_lse;
    if (sums_only) kernels_.invert(state.row_sum, at_.allowed, factor, vectors_of(groups_));
    for (Index l = sums_only ? count_ : 0; l < count_; ++l) {
      factor[l] = end(at_.allowed[l] != 0, state.row_max[l], state.row_sum[l],
                      needs_lse ? at_.tile_sum + l : nullptr);
      if (task_.lse.data != nullptr) task_.lse(first_ + l, 0) = at_.tile_sum[l];
    }
    T* const output_factor = at_.tile_max;
    for (Index l = 0; l < count_; ++l) output_factor[l] = factor[l] * calls_.dropout_scale;
    this->write_rows(state.acc, output_factor, task_.output);
    if (task_.weights.data == nullptr) return;
    write_weights(factor);
    write_extra_weights(factor, at_.tile_sum);
  }

  void join_extra_key() {
    const Index vectors = vectors_of(groups_);
    const SoftmaxState<T>& state = extra_;
    score_one_key(kernels_, calls_, task_.extra.key, task_.query.cols, at_.query, vectors,
                  state.row_max);
    DropoutLanes<T> dropout{at_.dropout_start, at_.dropout_twist, calls_.dropout_threshold,
                            head_.extent.kv_len};
    fill_extra_state(kernels_, task_.extra.value, task_.value.cols, vectors,
                     calls_.dropout_row == nullptr ? nullptr : &dropout, state);
    joined()(states_.now, state);
    std::fill_n(at_.allowed, groups_ * kGroup, int_of<T>(1));
  }

  /// The weights of the keys beyond the caller's.
  void write_extra_weights(const T* factor, const T* lse) {
    if (task_.extra.key != nullptr) {
      T* const weights = extra_.row_max;
      kernels_.exponentiate(weights, 1, vectors_of(groups_), states_.now.row_max, at_.tile_max);
      for (Index l = 0; l < count_; ++l) {
        task_.extra_weights(first_ + l, 0) = weights[l] * factor[l];
      }
    }
    const Index zero = task_.extra.count() - 1;
    for (Index l = 0; task_.extra.zero && l < count_; ++l) {
      task_.extra_weights(first_ + l, zero) = std::exp(-lse[l]);
    }
  }

  /// The second pass for weights: the same scores again, now that row_max and row_sum are known.
  void write_weights(const T* factor) {
    next_queries_ = {};
    for (Index r = 0; r < count_; ++r) {
      for (Index j = 0; j < task_.key.rows; ++j) task_.weights(first_ + r, j) = T(0);
    }
    for (Index tile = begin_ - begin_ % kKeyTile; tile < end_; tile += kKeyTile) {
      if (!wants(tile)) continue;
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      segments_.cut(from, to, groups_);
      const MatrixView<const T> key = head_.tiles.keys(from, to, at_.scratch.key);
      for (const Segment& s : segments_) {
        score(s, key, from, tile);
        const Index lane = s.first_group * kGroup;
        const Index vectors = vectors_of(s.end_group - s.first_group);
        T* const scores = at_.scratch.s + (s.begin - tile) * kWide + lane;
        // Masks; the maxima and sums that come with it are not needed again.
        kernels_.fold_max(scores, s.end - s.begin, vectors, at_.tile_max + lane,
                          s.whole ? nullptr : at_.begin + lane, at_.end + lane, s.begin);
        kernels_.exponentiate(scores, s.end - s.begin, vectors, states_.now.row_max + lane,
                              at_.tile_max + lane);
        const Index stop = std::min(count_, s.end_group * kGroup);
        for (Index l = lane; l < stop; ++l) {
          if (at_.allowed[l] == 0) continue;
          const KeyRange own = keys_of_row(at_.begin, at_.end, l, s.begin, s.end);
          for (Index j = own.begin; j < own.end; ++j) {
            task_.weights(first_ + l, j) = at_.scratch.s[(j - tile) * kWide + l] * factor[l];
          }
        }
      }
    }
  }

  SoftmaxStates<T> states_;
  const SoftmaxState<T> extra_;  ///< of the extra key
  Upcoming<T> next_keys_;
  bool fresh_ = true;  ///< no key of the chunk yet: acc holds nothing
};

}  // namespace mha::kernels
