// SPDX-License-Identifier: MIT
//
// The backward pass of a tile of queries, which are the lanes as in query_tile.hpp, over keys of one chunk.
// Key tile by key tile the weights are computed once more from lse; then, on the same register tile as
// everything:
//     dP^T = V dO^T                  [key][query]
//     dS^T = P^T o (dP^T - delta)    delta = dO . O, one number per query
//     dV  += P^T dO                  [key][channel]     rows of dO as vectors
//     dK  += dS^T Q                  [key][channel]     rows of Q as vectors; times scale at the end
//     dQ^T += K^T dS^T               [channel][query]   times scale at the end
// Sums over the tile's queries, and over a tile's keys, begin at 0 and are then added. gradient_walk.hpp says
// to what.
// Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, algorithm 2.
#pragma once

#include "mha/internal/kernels/extra_key.hpp"
#include "mha/internal/kernels/gradient_calls.hpp"
#include "mha/internal/kernels/gradient_memory.hpp"
#include "mha/internal/kernels/query_scores.hpp"
#include "mha/reference/backward.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Which gradients are wanted: sums over queries (dK, dV), sums over keys (dQ), or both.
enum class GradientsOf { all, keys, queries };

template <class In, class T>
class GradientTile : public QueryScores<In, In, T> {
 public:
  using Tile = QueryScores<In, In, T>;
  using Tile::kGroup;
  using Tile::kWide;

  GradientTile(const Head<In, In, T>& head, const HeadGradientTask<In, T>& task,
               const GradientCalls<T>& gradient_calls, GradientsOf wanted,
               const GradientTileMemory<T>& memory)
      : Tile(head, memory.tile),
        grad_task_(task),
        grad_calls_(gradient_calls),
        wanted_(wanted),
        score_gradient_(wanted == GradientsOf::queries ? gradient_calls.score_gradient_alone
                                                       : gradient_calls.score_gradient),
        to_(memory) {
    this->capped_ = memory.capped;
  }

  /// Queries first, ..., first + count - 1, 0 < count <= kWide, for keys from, ..., to - 1 of one chunk, which
  /// begin with a tile. False: none of them may attend to any of these, and their share of every sum is 0.
  bool start(Index first, Index count, Index from, Index to) {
    this->place(first, count);
    this->find_ranges();
    first_key_ = from;
    end_key_ = to;
    if (std::max(begin_, from) >= std::min(end_, to)) return false;
    this->pack_queries();
    if (calls_.dropout_row != nullptr) this->start_dropout();
    return true;
  }

  /// dO as a panel, and its products with O: what take_rows() needs, if they are not known.
  void find_delta(Index first, Index count, T* delta) {
    this->place(first, count);
    pack_grad_output();
    pack_rows(grad_task_.output, to_.output);
    kernels_.dot(to_.grad_output, to_.output, task_.value.cols, this->vectors_of(groups_), delta);
  }
  void pack_grad_output() { pack_rows(grad_task_.grad_output, to_.grad_output); }

  /// lse, and rows of Q and dO. Queries without a key count as 0, whatever their rows hold.
  void take_rows(const T* delta) {
    delta_ = delta;
    const bool needs_rows = wanted_ != GradientsOf::queries;
    if (needs_rows) {
      copy_rows(task_.query.middle_rows(first_, count_), to_.query_rows, to_.wide_head);
      copy_rows(grad_task_.grad_output.middle_rows(first_, count_), to_.grad_output_rows,
                to_.wide_value);
    }
    for (Index l = 0; l < groups_ * kGroup; ++l) {
      const T lse = grad_task_.lse(first_ + std::min(l, count_ - 1), 0);
      const bool dead =
          mha::detail::is_minus_infinity(lse) ||
          (grad_task_.extra.key == nullptr && at_.allowed[l] == 0 && !calls_.may_mask);
      to_.lse[l] = lse;
      if (!needs_rows || !dead || l >= count_) continue;
      std::fill_n(to_.query_rows + l * to_.wide_head, to_.wide_head, T(0));
      std::fill_n(to_.grad_output_rows + l * to_.wide_value, to_.wide_value, T(0));
    }
    rows_finite_ =
        needs_rows &&
        kernels_.all_finite(to_.query_rows, to_.wide_head, 1, count_, to_.wide_head) &&
        kernels_.all_finite(to_.grad_output_rows, to_.wide_value, 1, count_, to_.wide_value);
  }

  /// The keys that start() was given.
  /// @param grad_query  panel [head_dim]: becomes their share of dQ^T, without its scale
  /// @param sums        of these keys: the tile's share is added
  void run_keys(T* grad_query, const KeySums<T>& sums) {
    bool fresh = true;
    const Index stop = std::min(end_, end_key_);
    for (Index tile = std::max(first_key_, begin_ - begin_ % kKeyTile); tile < stop;
         tile += kKeyTile) {
      if (!this->wants(tile)) continue;
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      const MatrixView<const T> key = head_.tiles.keys(from, to, at_.scratch.key);
      const MatrixView<const T> value = head_.tiles.values(from, to, at_.scratch.value);
      this->segments_.cut(from, to, groups_);
      for (const Segment& s : this->segments_) {
        step(s, key, value, from, tile, sums);
      }
      if (wanted_ == GradientsOf::keys) continue;
      Upcoming<T> nothing;
      this->weighted_by(to_.grad_scores, tile, true)
          .add_to(grad_query, fresh, key, from, to_.part, nothing);
      fresh = false;
    }
    if (fresh && wanted_ != GradientsOf::keys) this->zero_panel(grad_query, task_.key.cols);
  }

  /// Lanes of a panel without a query: they are added up with the others.
  void zero_unused(T* grad_query) const {
    if (groups_ == Segments::kGroups) return;
    WeightedRows<T>::zero_lanes(grad_query, task_.key.cols, groups_, Segments::kGroups);
  }

  /// The extra key, for queries first, ..., first + count - 1.
  /// @param delta       of these queries, see find_delta()
  /// @param grad_query  panel: its share is added, if it is wanted
  /// @param sums        of one key: its share is added, if it is wanted
  void run_extra_key(Index first, Index count, const T* delta, T* grad_query,
                     const KeySums<T>& sums) {
    this->place(first, count);
    this->pack_queries();
    if (calls_.dropout_row != nullptr) this->start_dropout();
    pack_grad_output();
    take_rows(delta);
    const Index vectors = this->vectors_of(groups_);
    const ExtraKeys<T>& extra = grad_task_.extra;
    T* const p = at_.tile_max;
    T* const grad = at_.tile_sum;
    T* const capped = at_.correction;
    score_one_key(kernels_, calls_, extra.key, task_.key.cols, at_.query, vectors, p);
    std::copy_n(p, groups_ * kGroup, capped);
    kernels_.weights(p, 1, vectors, to_.lse);
    Product<T> x = product_of(1, vectors, task_.value.cols);
    x.a = extra.value;
    x.a_step = 1;
    x.b = to_.grad_output;
    x.b_step = kWide;
    x.c = grad;
    x.c_row = kWide;
    multiply(x);
    const DropoutLanes<T> dropout{at_.dropout_start, at_.dropout_twist, calls_.dropout_threshold,
                                  head_.extent.kv_len};
    const bool drops = calls_.dropout_row != nullptr;
    if (drops) kernels_.drop_gradient(grad, 1, vectors, dropout, calls_.dropout_scale);
    kernels_.weight_gradient(p, grad, 1, vectors, delta_);
    if (calls_.softcap > T(0)) {
      kernels_.softcap_gradient(capped, grad, 1, vectors, calls_.softcap);
    }
    if (drops) kernels_.drop(p, 1, vectors, dropout);
    if (wanted_ != GradientsOf::queries) add_to_keys(p, grad, 1, 0, count_, sums);
    if (wanted_ != GradientsOf::keys) add_extra_to_query(grad, vectors, grad_query);
  }

  /// dQ^T += k dS^T of the extra key, as of any other.
  void add_extra_to_query(const T* grad, Index vectors, T* grad_query) const {
    const T* const key = grad_task_.extra.key;
    if (kernels_.all_finite(key, task_.key.cols, 1, 1, task_.key.cols)) {
      Product<T> x = product_of(task_.key.cols, vectors, 1);
      x.a = key;
      x.a_row = 1;
      x.b = grad;
      x.c = grad_query;
      x.c_row = kWide;
      x.add = true;
      multiply(x);
      return;
    }
    for (Index d = 0; d < task_.key.cols; ++d) {
      for (Index l = 0; l < count_; ++l) {
        if (grad[l] != T(0)) grad_query[d * kWide + l] += std::fma(key[d], grad[l], T(0));
      }
    }
  }

  /// seen[i] becomes nonzero for queries first + i that may attend to a key of the chunk.
  void note_seen(int_of<T>* seen) const {
    for (Index l = 0; l < count_; ++l) seen[l] |= at_.allowed[l];
  }

  /// Writes dQ of queries first, ..., first + count - 1 from the sum of all chunks' shares.
  void write(Index first, Index count, const T* grad_query) {
    this->place(first, count);
    T* const scale = at_.correction;
    std::fill_n(scale, groups_ * kGroup, calls_.scale);
    this->write_rows(grad_query, scale, grad_task_.grad_query);
  }

  /// Gives a learned sink its gradient.
  /// @param seen, delta  of the queries: whether they may attend to a key
  void collect_sink(Index first, Index count, const int_of<T>* seen, const T* delta) const {
    T sink;
    if (grad_calls_.collect_sink == nullptr || !calls_.sink(calls_.rules, head_.h, sink)) return;
    for (Index l = 0; l < count; ++l) {
      const T lse = grad_task_.lse(first + l, 0);
      // A sink of +infinity takes all the weight: its gradient is 0.
      if (mha::detail::is_minus_infinity(lse) ||
          (seen[l] == 0 && grad_task_.extra.key == nullptr) ||
          mha::detail::is_minus_infinity(-sink)) {
        continue;
      }
      grad_calls_.collect_sink(calls_.rules, head_.h, -std::exp(sink - lse) * delta[l]);
    }
  }

 private:
  using Tile::at_;
  using Tile::begin_;
  using Tile::calls_;
  using Tile::count_;
  using Tile::end_;
  using Tile::first_;
  using Tile::groups_;
  using Tile::head_;
  using Tile::kernels_;
  using Tile::task_;

  void pack_rows(const MatrixView<const In>& all, T* panel) {
    const MatrixView<const T> rows =
        rows_of(kernels_, all, at_.scratch.output, first_, first_ + count_);
    kernels_.pack(rows.data, rows.row_stride, rows.col_stride, count_, rows.cols, T(1), panel,
                  kWide, groups_ * kGroup);
  }

  void step(const Segment& s, const MatrixView<const T>& key, const MatrixView<const T>& value,
            Index from, Index tile, const KeySums<T>& sums) {
    const Index keys = s.end - s.begin;
    const Index lane = s.first_group * kGroup;
    const Index vectors = this->vectors_of(s.end_group - s.first_group);
    const Index queries = std::min(count_, s.end_group * kGroup) - lane;
    T* const p = at_.scratch.s + (s.begin - tile) * kWide + lane;
    T* const grad = to_.grad_scores + (s.begin - tile) * kWide + lane;

    // P^T
    this->score(s, key, from, tile);
    if (!s.whole) {
      kernels_.fold_max(p, keys, vectors, at_.tile_max + lane, at_.begin + lane, at_.end + lane,
                        s.begin);
    }
    kernels_.weights(p, keys, vectors, to_.lse + lane);

    // dP^T, dS^T
    Product<T> x = product_of(keys, vectors, value.cols);
    x.a = value.data + (s.begin - from) * value.row_stride;
    x.a_row = value.row_stride;
    x.a_step = value.col_stride;
    x.b = to_.grad_output + lane;
    x.b_step = kWide;
    x.c = grad;
    x.c_row = kWide;
    multiply(x);
    if (calls_.dropout_row != nullptr) {
      kernels_.drop_gradient(grad, keys, vectors, this->dropout_of(s), calls_.dropout_scale);
    }
    kernels_.weight_gradient(p, grad, keys, vectors, delta_ + lane);
    if (score_gradient_ != nullptr) undo_rules(s, grad, tile, queries);
    if (calls_.softcap > T(0)) {
      kernels_.softcap_gradient(to_.capped + (s.begin - tile) * kWide + lane, grad, keys, vectors,
                                calls_.softcap);
    }

    // dV, dK; dV times dropout's scale at the end
    if (wanted_ == GradientsOf::queries) return;
    if (calls_.dropout_row != nullptr) kernels_.drop(p, keys, vectors, this->dropout_of(s));
    add_to_keys(p, grad, keys, lane, queries, to_.row(sums, s.begin - first_key_));
  }

  /// dV and dK of some keys, from queries lane, ..., lane + queries - 1: p and grad begin at the first.
  void add_to_keys(const T* p, const T* grad, Index keys, Index lane, Index queries,
                   const KeySums<T>& sums) const {
    if (!rows_finite_) {
      add_pair_by_pair(p, grad, keys, lane, queries, sums);
      return;
    }
    Product<T> x = product_of(keys, to_.wide_value / kernels_.vector_lanes, queries);
    x.a = p;
    x.a_row = kWide;
    x.a_step = 1;
    x.b = to_.grad_output_rows + lane * to_.wide_value;
    x.b_step = to_.wide_value;
    x.c = sums.value;
    x.c_row = to_.wide_value;
    x.add = true;
    multiply(x);
    x.vectors = to_.wide_head / kernels_.vector_lanes;
    x.a = grad;
    x.b = to_.query_rows + lane * to_.wide_head;
    x.b_step = to_.wide_head;
    x.c = sums.key;
    x.c_row = to_.wide_head;
    multiply(x);
  }

  static Product<T> product_of(Index rows, Index vectors, Index depth) {
    Product<T> x;
    x.rows = rows;
    x.vectors = vectors;
    x.depth = depth;
    return x;
  }
  void multiply(Product<T>& x) const {
    x.fetch[0] = x.fetch[1] = x.a;
    kernels_.product(x);
  }

  /// dV and dK where a query or its gradient is not finite: it must not reach keys that it does not
  /// see.
  void add_pair_by_pair(const T* p, const T* grad, Index keys, Index lane, Index queries,
                        const KeySums<T>& sums) const {
    for (Index j = 0; j < keys; ++j) {
      add_seen(p + j * kWide, queries, to_.grad_output_rows + lane * to_.wide_value, to_.wide_value,
               sums.value + j * to_.wide_value);
      add_seen(grad + j * kWide, queries, to_.query_rows + lane * to_.wide_head, to_.wide_head,
               sums.key + j * to_.wide_head);
    }
  }
  /// sum += the rows times their weights, by the same chain as where all are finite; but a row that is not
  /// is left out where its weight is 0.
  void add_seen(const T* weights, Index queries, const T* rows, Index wide, T* sum) const {
    T* const chain = to_.chain;
    std::fill_n(chain, wide, T(0));
    Product<T> x = product_of(1, wide / kernels_.vector_lanes, 0);
    x.a_step = 1;
    x.b_step = wide;
    x.c = chain;
    x.c_row = wide;
    x.accumulate = true;
    const auto take = [&](Index first, Index end) {
      x.depth = end - first;
      x.a = weights + first;
      x.b = rows + first * wide;
      if (x.depth > 0) multiply(x);
    };
    Index clean = 0;
    for (Index l = 0; l < queries; ++l) {
      if (kernels_.all_finite(rows + l * wide, wide, 1, 1, wide)) continue;
      take(clean, l);
      if (weights[l] != T(0)) take(l, l + 1);
      clean = l + 1;
    }
    take(clean, queries);
    kernels_.add(sum, 0, 1, wide / kernels_.vector_lanes, chain);
  }

  void undo_rules(const Segment& s, T* grad, Index tile, Index queries) {
    const Index lane = s.first_group * kGroup;
    ModifyTile<T> at;
    at.extent = &head_.extent;
    at.b = head_.b;
    at.h = head_.h;
    at.first_query = first_ + lane;
    at.queries = queries;
    at.first_key = s.begin;
    at.keys = s.end - s.begin;
    at.s = to_.capped + (s.begin - tile) * kWide + lane;
    at.row_stride = kWide;
    at.lanes_are_queries = true;
    score_gradient_(calls_.rules, at, grad);
  }

  const HeadGradientTask<In, T>& grad_task_;
  const GradientCalls<T>& grad_calls_;
  const GradientsOf wanted_;
  const typename GradientCalls<T>::ScoreGradient score_gradient_;
  const GradientTileMemory<T>& to_;
  Index first_key_ = 0, end_key_ = 0;  ///< keys, see start()
  const T* delta_ = nullptr;           ///< lanes
  bool rows_finite_ = true;
};

}  // namespace mha::kernels
