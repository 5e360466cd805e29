// SPDX-License-Identifier: MIT
//
// Sums of a key tile's rows, weighted: C^T += R^T W, where R has a row per key and W is a panel [key][query]. So values
// become outputs (W are the softmax's weights) and keys gradients of queries (W are the gradients of the
// scores). The sum over a tile begins at 0 and is then added, in whatever pieces it is computed.
#pragma once

#include <algorithm>

#include "mha/internal/kernels/head.hpp"
#include "mha/internal/kernels/segments.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Two ranges of rows to bring into the second-level cache, `step` from one row to the next in both;
/// null: nothing.
template <class T>
struct Upcoming {
  const T* first = nullptr;
  const T* second = nullptr;
  Index step = 0;
};

/// While a product runs, brings closer what comes next: two ranges of rows, a line of each in turn.
/// They move on to where the next product goes on.
template <class T>
void fetch_beside(Product<T>& x, Upcoming<T>& rows) {
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
  if (rows.first == nullptr) {
    x.fetch[0] = x.fetch[1] = x.a;
    return;
  }
  x.fetch[0] = rows.first;
  x.fetch[1] = rows.second;
  x.fetch_step = rows.step;
  x.fetch_strip = kLine;
  const Index strips = (x.rows + 5) / 6;  // at the least
  rows.first += strips / 2 * kLine;
  rows.second += strips / 2 * kLine;
}

template <class T>
struct WeightedRows {
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kGroup = kWide / Segments::kGroups;

  const Kernels<T>& kernels;
  const Segments& segments;  ///< of the tile
  Index groups;              ///< of lanes in use
  const T* weights;          ///< panel, its first row that of the tile's first key
  Index tile;                ///< the tile's first key
  const int_of<T>* begin;    ///< keys of a lane: [begin, end)
  const int_of<T>* end;
  bool may_mask;     ///< a weight 0 may be that of a key that its lane may not attend to
  bool skips_zeros;  ///< a weight 0 takes no part, whatever is in the row: 0 * inf is NaN

  /// acc += the tile's sum, or acc = it, if `first`.
  /// @param rows  of keys from, from + 1, ...
  /// @param part  a panel to put the sum together in; not read where `first`
  void add_to(T* acc, bool first, const MatrixView<const T>& rows, Index from, T* part,
              Upcoming<T>& next) const {
    if (rows.cols == 0) return;
    bool clean = true;
    for (const Segment& s : segments) clean = clean && is_clean(s, rows, from);
    const auto runs = segments.by_groups(groups);
    if (!clean || runs.has_gaps()) {
      T* const sum = first ? acc : part;
      zero_lanes(sum, rows.cols, 0, groups);
      for (const Segment& s : segments) {
        if (is_clean(s, rows, from)) {
          add_keys(s, rows, s.begin, s.end, from, sum, Sum::continued, nullptr);
        } else {
          add_in_pieces(s, rows, from, sum);
        }
      }
      if (!first) kernels.add(acc, kWide, rows.cols, vectors_of(groups), part);
      return;
    }
    for (const Segment& s : runs) {
      if (s.begin < s.end) {
        add_keys(s, rows, s.begin, s.end, from, acc, first ? Sum::from_zero : Sum::added, &next);
      } else if (first) {
        zero_lanes(acc, rows.cols, s.first_group, s.end_group);
      }
    }
  }

  static void zero_lanes(T* panel, Index rows, Index first_group, Index end_group) {
    for (Index r = 0; r < rows; ++r) {
      std::fill_n(panel + r * kWide + first_group * kGroup, (end_group - first_group) * kGroup,
                  T(0));
    }
  }

 private:
  /// How a product's sums begin and where they go: see Product.
  enum class Sum { from_zero, continued, added };

  Index vectors_of(Index lane_groups) const {
    return lane_groups * (kGroup / kernels.vector_lanes);
  }

  /// Whether no weight 0 of a lane that may not attend meets an infinity.
  bool is_clean(const Segment& s, const MatrixView<const T>& rows, Index from) const {
    return (s.whole && !may_mask) ||
           kernels.all_finite(rows.data + (s.begin - from) * rows.row_stride, rows.row_stride,
                              rows.col_stride, s.end - s.begin, rows.cols);
  }

  /// Keys whose row has an infinity or NaN are taken by themselves, for the lanes that may attend to them.
  void add_in_pieces(const Segment& s, const MatrixView<const T>& rows, Index from, T* sum) const {
    Index clean = s.begin;
    for (Index j = s.begin; j < s.end; ++j) {
      const T* const row = rows.data + (j - from) * rows.row_stride;
      if (kernels.all_finite(row, rows.row_stride, rows.col_stride, 1, rows.cols)) continue;
      add_keys(s, rows, clean, j, from, sum, Sum::continued, nullptr);
      add_special(s, {row, 1, rows.cols, rows.row_stride, rows.col_stride}, j, sum);
      clean = j + 1;
    }
    add_keys(s, rows, clean, s.end, from, sum, Sum::continued, nullptr);
  }

  void add_keys(const Segment& s, const MatrixView<const T>& rows, Index first_key, Index end_key,
                Index from, T* acc, Sum sum, Upcoming<T>* next) const {
    if (first_key >= end_key) return;
    const Index lane = s.first_group * kGroup;
    Product<T> x;
    x.rows = rows.cols;
    x.vectors = vectors_of(s.end_group - s.first_group);
    x.depth = end_key - first_key;
    x.a = rows.data + (first_key - from) * rows.row_stride;
    x.a_row = rows.col_stride;
    x.a_step = rows.row_stride;
    x.b = weights + (first_key - tile) * kWide + lane;
    x.b_step = kWide;
    x.c = acc + lane;
    x.c_row = kWide;
    x.accumulate = sum == Sum::continued;
    x.add = sum == Sum::added;
    Upcoming<T> nothing;
    fetch_beside(x, next == nullptr ? nothing : *next);
    kernels.product(x);
  }

  /// One key. Its finite channels go the way of any other key's, so that their bits do not depend on
  /// what happens here; the others are for the lanes that may attend.
  void add_special(const Segment& s, const MatrixView<const T>& row, Index j, T* sum) const {
    const T* const own = weights + (j - tile) * kWide;
    const Index lane = s.first_group * kGroup;
    Product<T> x;
    x.vectors = vectors_of(s.end_group - s.first_group);
    x.depth = 1;
    x.a_row = row.col_stride;
    x.b = own + lane;
    x.b_step = kWide;
    x.c_row = kWide;
    x.accumulate = true;
    x.fetch[0] = x.fetch[1] = row.data;
    for (Index c = 0; c < row.cols; ++c) {
      x.a = row.data + c * row.col_stride;
      x.c = sum + c * kWide + lane;
      x.rows = 0;
      for (; c < row.cols && mha::detail::is_finite(row(0, c)); ++c) ++x.rows;
      kernels.product(x);
      if (c == row.cols) break;
      for (Index l = lane; l < s.end_group * kGroup; ++l) {
        const bool in_range = j >= begin[l] && j < end[l];
        if (!in_range || (skips_zeros && own[l] == T(0))) continue;
        sum[c * kWide + l] += own[l] * row(0, c);
      }
    }
  }
};

}  // namespace mha::kernels
