// SPDX-License-Identifier: MIT
//
// Attention of one head, tile by tile, with Eigen's products: what runs for float, double, half and
// bfloat16 without the kernels (MHA_KERNELS=0, or a compiler without vector types). The scores of a
// query tile (kQueryTile rows) against a key tile (at most kKvTile keys) are all that exists at a
// time; a running (row_max, row_sum, acc) per query row absorbs tile after tile, see softmax.hpp:
//     S = scale Q K^T, then softcap, score modifiers and masks       rows x cols
//     m' = max(row_max, rowmax(S))     P = exp(S - m')               masked entries exactly 0
//     row_sum = exp(row_max - m') row_sum + rowsum(P)
//     acc     = exp(row_max - m') acc + P V               dropped entries of P are 0 here
// A key tile that no row of the query tile may see is skipped; one that all may see pays nothing
// for the mask. Masked values never enter: in a partly masked tile the infinite and NaN entries of
// V are set aside, multiplied as 0, and added afterwards to the rows that may see them.
// Two limits: acc is a plain sum, see the range in attention.hpp; and Eigen's
// products round differently for other row counts, so a row computed alone, or in other company,
// may differ from the same row here in its last bits.
// Read first: reference.hpp, the same without tiles.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mha/product.hpp"
#include "mha/reference.hpp"

namespace mha::detail {

// Measured with g++ 12 -O3 -march=native at head_dim 64 (bench_attention): 128 x 512 scores fit the
// second-level cache beside their operands, and packing K costs 1/128 of the product.
inline constexpr Index kQueryTile = 128;
inline constexpr Index kKvTile = 512;

/// The memory of one thread's tiles, made once and used for every head it computes.
template <class Acc>
struct TileScratch {
  /// Makes room for one head; what is large enough stays.
  void fit(Index query_len, Index kv_len, Index head_dim, Index value_dim, bool with_flags) {
    const Index rows = std::min(query_len, kQueryTile);
    query.resize(rows, head_dim);
    scores.resize(rows, std::min(kv_len, kKvTile));
    acc.resize(rows, value_dim);
    if (with_flags) allowed.resize(scores.size());
  }

  Matrix<Acc> query;             ///< scale * Q, this tile's rows
  Matrix<Acc> scores;            ///< S, then P; the first cols entries of each row
  Matrix<Acc> acc;               ///< unscaled output
  Vector<std::uint8_t> allowed;  ///< beside scores, when more than key ranges decides
  Matrix<Acc> key;               ///< a copy of the key tile, if it can't be read in place
  Matrix<Acc> value;             ///< likewise of the value tile
  std::vector<KeyRange> ranges;  ///< of each row, among all keys
  std::vector<Acc> row_max;
  std::vector<Acc> row_sum;
  std::vector<Index> count;  ///< allowed keys so far; a sink counts too
};

/// An entry of V that is infinite or NaN.
template <class Acc>
struct NonFinite {
  Index row;
  Index col;
  Acc value;
};

/// One head on tiles. Steps in the order of run().
template <class Acc, class In, class Out, class RuleSet>
class TiledHead {
 public:
  TiledHead(const RuleSet& rules, const Extent& extent, Index b, Index h,
            const HeadTask<In, Out, Acc>& task, TileScratch<Acc>& scratch)
      : rules_(rules),
        extent_(rules.placed(extent, b, h)),
        b_(b),
        h_(h),
        task_(task),
        tile_(scratch),
        scale_(rules.template scale<Acc>(task.query.cols)),
        query_scale_(scale_ > Acc(1) || scale_ < Acc(-1) ? Acc(1) : scale_),
        softcap_(rules.template softcap<Acc>()),
        sink_(rules.template sink<Acc>(h)) {
    if (sink_ && is_minus_infinity(*sink_)) sink_.reset();
  }

  void run() {
    tile_.fit(extent_.query_len, extent_.kv_len, task_.query.cols, task_.value.cols,
              !rules_.only_ranges());
    for (row0_ = 0; row0_ < extent_.query_len; row0_ += kQueryTile) {
      rows_ = std::min(kQueryTile, extent_.query_len - row0_);
      start_rows();
      for_each_key_tile([&] { absorb(); });
      finish_rows();
      if (task_.weights.data != nullptr) {
        task_weights_to_zero();
        for_each_key_tile([&] { write_weights(); });
      }
    }
  }

 private:
  /// Q scaled, the rows' key ranges, an empty state. A sink is a key seen beforehand, without a
  /// value.
  void start_rows() {
    const auto rows = static_cast<std::size_t>(rows_);
    for (Index r = 0; r < rows_; ++r) {
      for (Index d = 0; d < task_.query.cols; ++d) {
        tile_.query(r, d) = query_scale_ * convert<Acc>(task_.query(row0_ + r, d));
      }
    }
    tile_.ranges.resize(rows);
    tile_.row_max.assign(rows, sink_ ? *sink_ : Acc(0));  // of no meaning while count is 0
    tile_.row_sum.assign(rows, Acc(sink_ ? 1 : 0));
    tile_.count.assign(rows, sink_ ? 1 : 0);
    tile_.acc.topRows(rows_).setZero();
    begin_ = extent_.kv_len;
    end_ = 0;
    for (Index r = 0; r < rows_; ++r) {
      const KeyRange range = rules_.keys(extent_, b_, h_, row0_ + r);
      tile_.ranges[static_cast<std::size_t>(r)] = range;
      if (range.begin >= range.end) continue;
      begin_ = std::min(begin_, range.begin);
      end_ = std::max(end_, range.end);
    }
  }

  /// Calls f for each key tile that some row may see, its scores computed, modified and masked.
  /// Tiles start at multiples of kKvTile; the first and the last are trimmed, to multiples of 16,
  /// to what is seen.
  template <class F>
  void for_each_key_tile(const F& f) {
    for (Index first = begin_ - begin_ % kKvTile; first < end_; first += kKvTile) {
      col0_ = std::max(first, begin_ - begin_ % 16);
      cols_ = std::min({first + kKvTile, extent_.kv_len, end_ + (16 - end_ % 16) % 16}) - col0_;
      compute_scores();
      f();
    }
  }

  void compute_scores() {
    const MatrixView<const Acc> key = in_place(task_.key, tile_.key);
    for (Index r = 0; r < rows_; ++r) row(r).setZero();
    add_product_transposed(tile_.query.data(), tile_.query.outerStride(), key.data, key.row_stride,
                           tile_.scores.data(), stride(), rows_, task_.query.cols, cols_);
    if (query_scale_ != scale_) {
      for (Index r = 0; r < rows_; ++r) row(r) *= scale_;
    }
    if (RuleSet::kHasSoftcap || RuleSet::kModifiesScore || !rules_.only_ranges()) {
      for (Index r = 0; r < rows_; ++r) modify_row(r);
    }
  }

  /// Softcap, score modifiers and element-wise masks, in the part of the row that its range leaves.
  void modify_row(Index r) {
    const KeyRange range = segment(r);
    Acc* const scores = row_data(r);
    for (Index c = range.begin; c < range.end; ++c) {
      const Index i = row0_ + r;
      const Index j = col0_ + c;
      bool allowed = rules_.allowed(extent_, b_, h_, i, j);
      if (allowed) {
        if (RuleSet::kHasSoftcap && softcap_ > Acc(0)) {
          scores[c] = softcap_ * std::tanh(scores[c] / softcap_);
        }
        scores[c] = rules_.score(scores[c], extent_, b_, h_, i, j);
        allowed = !RuleSet::kScoreMayMask || !is_minus_infinity(scores[c]);
      }
      if (!rules_.only_ranges()) {
        allowed_data(r)[c] = allowed;
        if (!allowed) set_minus_infinity(scores[c]);
      }
    }
  }

  /// One key tile into the running state of every row.
  void absorb() {
    for (Index r = 0; r < rows_; ++r) absorb_row(r);
    bool all_allowed = rules_.only_ranges();
    for (Index r = 0; r < rows_ && all_allowed; ++r) {
      const KeyRange range = segment(r);
      all_allowed = range.begin == 0 && range.end == cols_;
    }
    non_finite_.clear();
    if constexpr (RuleSet::kHasDropout) {
      for (Index r = 0; r < rows_; ++r) drop_row(r);
    }
    const MatrixView<const Acc> value =
        all_allowed ? in_place(task_.value, tile_.value) : finite_values();
    add_product(tile_.scores.data(), stride(), value.data, value.row_stride, tile_.acc.data(),
                tile_.acc.outerStride(), rows_, cols_, task_.value.cols);
    for (const NonFinite<Acc>& v : non_finite_) {
      for (Index r = 0; r < rows_; ++r) {
        if (is_allowed(r, v.row)) tile_.acc(r, v.col) += row_data(r)[v.row] * v.value;
      }
    }
  }

  void absorb_row(Index r) {
    const auto k = static_cast<std::size_t>(r);
    const KeyRange range = segment(r);
    Index count = range.end - range.begin;
    if (!rules_.only_ranges()) {
      count = 0;
      for (Index c = range.begin; c < range.end; ++c) count += allowed_data(r)[c];
    }
    if (count == 0) {
      row(r).setZero();
      return;
    }
    auto seen = row(r).segment(range.begin, range.end - range.begin).array();
    const Acc tile_max = seen.maxCoeff();
    const Acc old_max = tile_.row_max[k];
    const Acc row_max = tile_.count[k] == 0 ? tile_max : larger(old_max, tile_max);
    if (tile_.count[k] != 0 && row_max != old_max) {
      const Acc shrink = std::exp(old_max - row_max);
      tile_.row_sum[k] *= shrink;
      tile_.acc.row(r) *= shrink;
    }
    tile_.row_max[k] = row_max;
    tile_.count[k] += count;
    exponentiate(r, row_max);
    tile_.row_sum[k] += seen.sum();
  }

  /// Dropped weights become 0, after row_sum has counted them; 1 / (1 - p) is a factor of the output.
  void drop_row(Index r) {
    const auto& dropout = *rules_.dropout();
    const auto own = dropout.row(b_, h_, row0_ + r);
    const KeyRange range = segment(r);
    Acc* const weights = row_data(r);
    for (Index c = range.begin; c < range.end; ++c) {
      if (!dropout.keeps(own, col0_ + c)) weights[c] = Acc(0);
    }
  }

  /// S becomes P = exp(S - row_max); what the row may not see becomes 0.
  void exponentiate(Index r, Acc row_max) {
    const KeyRange range = segment(r);
    auto seen = row(r).segment(range.begin, range.end - range.begin).array();
    // Every allowed score may be -inf, by overflow: weigh them 0 (the row's end is 0 / 0, NaN), not
    // NaN, so that later tiles still count.
    const Acc shift = is_minus_infinity(row_max) ? Acc(0) : row_max;
    seen = (seen - shift).unaryExpr(ExpOrZero<Acc>());
    if (!rules_.only_ranges()) {
      Acc* const weights = row_data(r);
      const std::uint8_t* const allowed = allowed_data(r);
      for (Index c = range.begin; c < range.end; ++c) {
        weights[c] = allowed[c] != 0 ? weights[c] : Acc(0);
      }
    }
    row(r).head(range.begin).setZero();
    row(r).tail(cols_ - range.end).setZero();
  }

  void finish_rows() {
    for (Index r = 0; r < rows_; ++r) {
      const auto k = static_cast<std::size_t>(r);
      const bool nothing = tile_.count[k] == 0;
      if (!nothing) tile_.acc.row(r) /= tile_.row_sum[k];
      if constexpr (RuleSet::kHasDropout) {
        tile_.acc.row(r) *= rules_.dropout()->template dropout_scale<Acc>();
      }
      for (Index c = 0; c < task_.value.cols; ++c) {
        task_.output(row0_ + r, c) = nothing ? Out(0) : convert<Out>(tile_.acc(r, c));
      }
      if (task_.lse.data != nullptr) write_lse(k, task_.lse(row0_ + r, 0));
    }
  }

  void write_lse(std::size_t k, Acc& lse) const {
    if (tile_.count[k] == 0) {
      set_minus_infinity(lse);
    } else if (is_minus_infinity(tile_.row_max[k])) {
      // Allowed scores that are all -inf are not the same as nothing allowed: 0 / 0, NaN.
      lse = tile_.row_sum[k] / tile_.row_sum[k];
    } else {
      lse = tile_.row_max[k] + std::log(tile_.row_sum[k]);
    }
  }

  void task_weights_to_zero() {
    for (Index r = 0; r < rows_; ++r) {
      for (Index j = 0; j < extent_.kv_len; ++j) task_.weights(row0_ + r, j) = Acc(0);
    }
  }

  /// The second pass for weights: the same scores again, now that row_max and row_sum are known.
  void write_weights() {
    for (Index r = 0; r < rows_; ++r) {
      const auto k = static_cast<std::size_t>(r);
      const KeyRange range = segment(r);
      if (range.begin == range.end || tile_.count[k] == 0) continue;
      exponentiate(r, tile_.row_max[k]);
      for (Index c = range.begin; c < range.end; ++c) {
        if (!is_allowed(r, c)) continue;
        task_.weights(row0_ + r, col0_ + c) = row_data(r)[c] / tile_.row_sum[k];
      }
    }
  }

  /// Rows col0_ ... of K or V for the products: where they lie, or copied (converted, packed) into
  /// `copy`.
  MatrixView<const Acc> in_place(const MatrixView<const In>& whole, Matrix<Acc>& copy) {
    const MatrixView<const In> rows = whole.middle_rows(col0_, cols_);
    if constexpr (std::is_same_v<In, Acc>) {
      if (rows.col_stride == 1) return rows;
    }
    return packed(rows, copy);
  }

  MatrixView<const Acc> packed(const MatrixView<const In>& rows, Matrix<Acc>& copy) {
    copy.resize(rows.rows, rows.cols);
    for (Index j = 0; j < rows.rows; ++j) {
      for (Index d = 0; d < rows.cols; ++d) copy(j, d) = convert<Acc>(rows(j, d));
    }
    return matrix_view(copy);
  }

  /// V's tile with its infinite and NaN entries as 0; they are listed in non_finite_.
  MatrixView<const Acc> finite_values() {
    const MatrixView<const In> rows = task_.value.middle_rows(col0_, cols_);
    if (all_finite(rows)) return in_place(task_.value, tile_.value);
    packed(rows, tile_.value);
    for (Index j = 0; j < rows.rows; ++j) {
      for (Index c = 0; c < rows.cols; ++c) {
        if (is_finite(rows(j, c))) continue;
        non_finite_.push_back({j, c, tile_.value(j, c)});
        tile_.value(j, c) = Acc(0);
      }
    }
    return matrix_view(tile_.value);
  }

  static bool all_finite(const MatrixView<const In>& rows) {
    if (rows.cols == 0) return true;  // there may be no memory at all
    int infinite = 0;
    for (Index j = 0; j < rows.rows; ++j) {
      const In* const first = rows.data + j * rows.row_stride;
      if (rows.col_stride == 1) {  // this loop the compiler turns into vectors
        for (Index c = 0; c < rows.cols; ++c) infinite |= is_finite(first[c]) ? 0 : 1;
      } else {
        for (Index c = 0; c < rows.cols; ++c) infinite |= is_finite(rows(j, c)) ? 0 : 1;
      }
    }
    return infinite == 0;
  }

  /// The columns of this tile in row r's range.
  KeyRange segment(Index r) const {
    const KeyRange& range = tile_.ranges[static_cast<std::size_t>(r)];
    const KeyRange columns = intersect({range.begin - col0_, range.end - col0_}, {0, cols_});
    return columns.begin < columns.end ? columns : KeyRange{0, 0};
  }

  bool is_allowed(Index r, Index c) const {
    const KeyRange range = segment(r);
    if (c < range.begin || c >= range.end) return false;
    return rules_.only_ranges() || tile_.allowed.data()[r * stride() + c] != 0;
  }

  Index stride() const { return tile_.scores.outerStride(); }
  Acc* row_data(Index r) { return tile_.scores.data() + r * stride(); }
  std::uint8_t* allowed_data(Index r) { return tile_.allowed.data() + r * stride(); }
  auto row(Index r) { return tile_.scores.row(r).head(cols_); }

  const RuleSet& rules_;
  const Extent extent_;
  const Index b_;
  const Index h_;
  const HeadTask<In, Out, Acc>& task_;
  TileScratch<Acc>& tile_;
  const Acc scale_;
  const Acc query_scale_;  ///< scale_, or 1 if it is larger: then it is a factor of the scores
  const Acc softcap_;
  std::optional<Acc> sink_;
  std::vector<NonFinite<Acc>> non_finite_;
  Index row0_ = 0, rows_ = 0;  // the query tile
  Index col0_ = 0, cols_ = 0;  // the key tile
  Index begin_ = 0, end_ = 0;  // keys that any row of the query tile may see
};

}  // namespace mha::detail
