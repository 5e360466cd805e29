// SPDX-License-Identifier: MIT
//
// The scores of a tile of queries, which are the lanes: what query_tile.hpp and gradient_tile.hpp share. Which keys each
// lane may see, the packed queries, S^T = K Q^T, and what rules make of it.
// Causal and other key ranges: groups of 16 lanes (8 doubles) take part only in the keys that one of
// them may see, and only where some lane may not is anything compared.
#pragma once

#include <array>
#include <cstring>

#include "mha/internal/kernels/weighted_rows.hpp"

namespace mha::inline MHA_ABI::kernels {

template <class In, class Out, class T>
class QueryScores {
 public:
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kGroup = kWide / Segments::kGroups;  ///< lanes that take part together

  QueryScores(const Head<In, Out, T>& head, const QueryScoresMemory<T>& memory)
      : head_(head), kernels_(head.kernels), calls_(head.calls), task_(head.task), at_(memory) {}

  /// Queries first, ..., first + count - 1; 0 < count <= kWide.
  void start(Index first, Index count) {
    place(first, count);
    pack_queries();
    find_ranges();
    if (calls_.dropout_row != nullptr) start_dropout();
  }

  /// Keys that some query may see: [begin(), end()), empty if begin() >= end().
  Index begin() const { return begin_; }
  Index end() const { return end_; }

  /// Asks the rules about keys max(begin(), tile), ..., min(end(), tile + kKeyTile) - 1. False: no
  /// query may attend to any of them, and nothing is left to do. To be called before absorb().
  bool wants(Index tile) {
    if (calls_.tile == nullptr) return true;
    const Index from = std::max(tile, begin_);
    const Index to = std::min(tile + kKeyTile, end_);
    const TileMask mask = calls_.tile(calls_.rules, head_.extent, head_.b, head_.h,
                                      {first_, count_, from, to - from});
    all_allowed_ = mask == TileMask::all;
    return mask != TileMask::none;
  }

 protected:
  Index vectors_of(Index groups) const { return groups * (kGroup / kernels_.vector_lanes); }

  void place(Index first, Index count) {
    first_ = first;
    count_ = count;
    groups_ = (count + kGroup - 1) / kGroup;
  }

  void pack_queries() {
    const T factor = calls_.query_factor();
    const Index lanes = groups_ * kGroup;
    const MatrixView<const In> rows = task_.query.middle_rows(first_, count_);
    if constexpr (std::is_same_v<In, T>) {
      kernels_.pack(rows.data, rows.row_stride, rows.col_stride, count_, rows.cols, factor,
                    at_.query, kWide, lanes);
    } else {
      convert_rows(kernels_, rows, at_.scratch.output, rows.cols);
      kernels_.pack(at_.scratch.output, rows.cols, 1, count_, rows.cols, factor, at_.query, kWide,
                    lanes);
    }
  }

  /// The keys of each lane, of each group, and of all. Lanes without a query do as the last one.
  void find_ranges() {
    if (calls_.ranges == nullptr) {
      const Index kv_len = task_.key.rows;
      const Index lanes = groups_ * kGroup;
      begin_ = 0;
      end_ = kv_len;
      segments_.fill({0, kv_len, 0, kv_len});
      std::fill_n(at_.allowed, lanes, int_of<T>(calls_.may_mask || kv_len == 0 ? 0 : 1));
      if (calls_.modify == nullptr && task_.weights.data == nullptr) return;
      std::fill_n(at_.begin, lanes, int_of<T>(0));
      std::fill_n(at_.end, lanes, static_cast<int_of<T>>(kv_len));
      return;
    }
    std::array<KeyRange, std::size_t{kWide}> ranges;
    calls_.ranges(calls_.rules, head_.extent, head_.b, head_.h, first_, count_, ranges.data());
    const Index kv_len = task_.key.rows;
    begin_ = kv_len;
    end_ = 0;
    for (Index g = 0; g < groups_; ++g) {
      Segments::Group& group = segments_.group(g);
      group = {kv_len, 0, 0, kv_len};
      for (Index l = g * kGroup; l < (g + 1) * kGroup; ++l) {
        const KeyRange range =
            intersect(ranges[static_cast<std::size_t>(std::min(l, count_ - 1))], {0, kv_len});
        const bool empty = range.begin >= range.end;
        at_.begin[l] = static_cast<int_of<T>>(empty ? 0 : range.begin);
        at_.end[l] = static_cast<int_of<T>>(empty ? 0 : range.end);
        at_.allowed[l] = calls_.may_mask || empty ? 0 : 1;
        if (!empty) {
          group.begin = std::min(group.begin, range.begin);
          group.end = std::max(group.end, range.end);
        }
        group.all_begin = std::max(group.all_begin, empty ? kv_len : range.begin);
        group.all_end = std::min(group.all_end, empty ? 0 : range.end);
      }
      if (group.begin >= group.end) continue;
      begin_ = std::min(begin_, group.begin);
      end_ = std::max(end_, group.end);
    }
  }

  void start_dropout() {
    for (Index l = 0; l < groups_ * kGroup; ++l) {
      std::uint32_t row[2];
      calls_.dropout_row(calls_.rules, head_.b, head_.h, head_.extent.first_query + first_ + l,
                         row);
      at_.dropout_start[l] = static_cast<int_of<T>>(row[0]);
      at_.dropout_twist[l] = static_cast<int_of<T>>(row[1]);
    }
  }
  DropoutLanes<T> dropout_of(const Segment& s) const {
    const Index lane = s.first_group * kGroup;
    return {at_.dropout_start + lane, at_.dropout_twist + lane, calls_.dropout_threshold,
            head_.extent.first_key + s.begin};
  }

  /// All lanes; as bits, which -ffast-math leaves alone.
  void fill_minus_infinity(T* lanes) const {
    T x;
    mha::detail::set_minus_infinity(x);
    int_of<T> bits;
    std::memcpy(&bits, &x, sizeof(x));
    std::array<int_of<T>, std::size_t{kGroup}> group;
    group.fill(bits);
    for (Index g = 0; g < groups_; ++g) {
      std::memcpy(lanes + g * kGroup, group.data(), sizeof(group));
    }
  }

  void zero_panel(T* panel, Index rows) const {
    WeightedRows<T>::zero_lanes(panel, rows, 0, groups_);
  }

  /// Of a segment's scores, since nothing happens to them after it.
  bool product_finds_maxima(const Segment& s) const {
    return s.whole && !calls_.changes_products() && (calls_.modify == nullptr || all_allowed_);
  }

  /// S^T of a segment, scaled, softcapped, modified and masked element by element.
  void score(const Segment& s, const MatrixView<const T>& key, Index from, Index tile) {
    const Index lane = s.first_group * kGroup;
    const Index vectors = vectors_of(s.end_group - s.first_group);
    T* const scores = at_.scratch.s + (s.begin - tile) * kWide + lane;
    Product<T> x;
    x.rows = s.end - s.begin;
    x.vectors = vectors;
    x.depth = key.cols;
    x.a = key.data + (s.begin - from) * key.row_stride;
    x.a_row = key.row_stride;
    x.a_step = key.col_stride;
    x.b = at_.query + lane;
    x.b_step = kWide;
    x.c = scores;
    x.c_row = kWide;
    x.fetch[0] = x.fetch[1] = x.a;
    fetch_beside(x, next_queries_);
    if (product_finds_maxima(s)) x.column_max = at_.tile_max + lane;
    kernels_.product(x);
    if (calls_.scales_scores()) {
      std::array<T, std::size_t{kWide}> scale;
      scale.fill(calls_.scale);
      kernels_.rescale(scores, s.end - s.begin, vectors, scale.data());
    }
    if (calls_.softcap > T(0)) {
      kernels_.softcap(scores, s.end - s.begin, kWide, vectors, calls_.softcap);
    }
    if (capped_ != nullptr) {
      T* const copy = capped_ + (s.begin - tile) * kWide + lane;
      std::copy_n(scores, (s.end - s.begin - 1) * kWide + vectors * kernels_.vector_lanes, copy);
    }
    if (calls_.modify == nullptr) return;
    if (all_allowed_ && !calls_.changes_scores) {
      for (Index l = lane; l < std::min(count_, s.end_group * kGroup); ++l) {
        note_allowed(at_.allowed[l], at_.scratch.s + l, kWide, tile,
                     keys_of_row(at_.begin, at_.end, l, s.begin, s.end));
      }
      return;
    }
    ModifyTile<T> modified;
    modified.extent = &head_.extent;
    modified.b = head_.b;
    modified.h = head_.h;
    modified.first_query = first_ + lane;
    modified.queries = std::min(count_, s.end_group * kGroup) - lane;
    modified.first_key = s.begin;
    modified.keys = s.end - s.begin;
    modified.s = scores;
    modified.row_stride = kWide;
    modified.lanes_are_queries = true;
    modified.begin = at_.begin + lane;
    modified.end = at_.end + lane;
    modified.allowed = at_.allowed + lane;
    modified.all_allowed = all_allowed_;
    calls_.modify(calls_.rules, modified);
  }

  /// The weights of a tile, or what stands in their place, with which rows of keys are summed.
  WeightedRows<T> weighted_by(const T* panel, Index tile, bool skips_zeros) const {
    return {kernels_,  segments_, groups_,         panel,      tile,
            at_.begin, at_.end,   calls_.may_mask, skips_zeros};
  }

  /// Transposes a panel, times a factor for each lane, into the tile's rows of a matrix.
  template <class To>
  void write_rows(const T* panel, const T* factor, const MatrixView<To>& matrix) const {
    const MatrixView<To> rows = matrix.middle_rows(first_, count_);
    if constexpr (std::is_same_v<To, T>) {
      kernels_.unpack(panel, kWide, factor, nullptr, rows.data, rows.row_stride, rows.col_stride,
                      count_, rows.cols);
    } else {
      T* const plain = at_.scratch.output;
      kernels_.unpack(panel, kWide, factor, nullptr, plain, rows.cols, 1, count_, rows.cols);
      for (Index r = 0; r < count_; ++r) {
        for (Index c = 0; c < rows.cols; ++c) {
          rows(r, c) = mha::detail::convert<To>(plain[r * rows.cols + c]);
        }
      }
    }
  }

  const Head<In, Out, T>& head_;
  const Kernels<T>& kernels_;
  const RuleCalls<T>& calls_;
  const HeadTask<In, Out, T>& task_;
  Upcoming<T> next_queries_;
  const QueryScoresMemory<T> at_;
  T* capped_ = nullptr;  ///< where the scores are kept that modifiers see, if they are wanted
  Index first_ = 0, count_ = 0, groups_ = 0;
  Index begin_ = 0, end_ = 0;
  bool all_allowed_ = false;  ///< of the key tile at hand: element-wise masks allow every pair
  Segments segments_;
};

}  // namespace mha::kernels
