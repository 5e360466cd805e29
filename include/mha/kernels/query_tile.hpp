// SPDX-License-Identifier: MIT
//
// Attention of a tile of queries, one query per lane. Everything is transposed: a row of the panels
// below is a channel or a key, so that keys and values are read where they lie, at any strides, one
// number broadcast at a time, and no sum or maximum ever runs across lanes.
//     Q^T               [head_dim][query]   packed once per tile, scaled
//     S^T = K Q^T       [key][query]        128 keys at a time
//     P^T = 2^(S^T - row_max)               softmax.hpp, column by column
//     O^T += V^T P^T    [channel][query]
// Chunks of 1024 keys start from an empty state; the states are merged in order. Key tiles and
// chunks begin at multiples of their size, counted from the sequence's first key, so that a query's
// arithmetic depends on nothing but its own keys: its bits are the same in any company.
// Causal and other key ranges: groups of 16 lanes (8 doubles) take part only in the keys that one of
// them may see, and only where some lane may not is anything compared.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <array>
#include <cmath>
#include <cstring>

#include "mha/kernels/rule_calls.hpp"
#include "mha/kernels/tile_memory.hpp"
#include "mha/reference.hpp"

#if MHA_KERNELS

namespace mha::kernels {

/// One head of one sequence, for the kernels.
template <class In, class Out, class T>
struct Head {
  const Kernels<T>& kernels;
  const RuleCalls<T>& calls;
  Extent extent;  ///< placed
  Index b = 0;
  Index h = 0;
  HeadTask<In, Out, T> task;
};

/// Element-wise conversion into memory of ours.
template <class In, class T>
void convert_rows(const MatrixView<const In>& from, T* to, Index to_row) {
  for (Index r = 0; r < from.rows; ++r) {
    for (Index c = 0; c < from.cols; ++c) {
      to[r * to_row + c] = mha::detail::convert<T>(from(r, c));
    }
  }
}

/// Rows from, ..., to - 1 of K or V: where they lie, or converted into `copy`.
template <class T, class In>
MatrixView<const T> rows_of(const MatrixView<const In>& whole, [[maybe_unused]] T* copy, Index from,
                            Index to) {
  const MatrixView<const In> rows = whole.middle_rows(from, to - from);
  if constexpr (std::is_same_v<In, T>) {
    return rows;
  } else {
    convert_rows(rows, copy, rows.cols);
    return {copy, rows.rows, rows.cols, rows.cols, 1};
  }
}

/// What ends a row: the factor of its weights and output, and its lse.
template <class T>
struct RowEnd {
  bool natural;   ///< row_max is in units of scores, not of exponents of 2
  bool has_sink;  ///< a logit without a value
  T sink;

  /// The factor: 1 / row_sum, with the sink's share in the sum; 0 for a row that may attend to
  /// nothing.
  T operator()(bool seen, T row_max, T row_sum, T* lse) const {
    T top = natural ? row_max : T(row_max * kLn2<T>);
    T shrink(1);
    if (has_sink && seen) {
      if (top < sink) {
        shrink = std::exp(top - sink);
        row_sum = T(row_sum * shrink) + T(1);
        top = sink;
      } else {
        row_sum += std::exp(sink - top);
      }
    }
    if (lse != nullptr) {
      if (!seen && has_sink) {
        *lse = sink;
      } else if (!seen) {
        mha::detail::set_minus_infinity(*lse);
      } else if (mha::detail::is_minus_infinity(top)) {
        *lse = row_sum / row_sum;  // every allowed score is -inf, by overflow: 0 / 0, NaN
      } else {
        *lse = top + std::log(row_sum);
      }
    }
    return seen ? shrink / row_sum : T(0);
  }
};

/// Two ranges of rows to bring into the second-level cache, `step` from one row to the next in both;
/// null: nothing.
template <class T>
struct Upcoming {
  const T* first = nullptr;
  const T* second = nullptr;
  Index step = 0;
};

template <class In, class Out, class T>
class QueryTile {
 public:
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kGroups = 4;
  static constexpr Index kGroup = kWide / kGroups;  ///< lanes that take part together

  QueryTile(const Head<In, Out, T>& head, const QueryTileMemory<T>& memory)
      : head_(head),
        kernels_(head.kernels),
        calls_(head.calls),
        task_(head.task),
        unit_(head.calls.unit()),
        at_(memory) {}

  /// Queries first, ..., first + count - 1; 0 < count <= kWide.
  void start(Index first, Index count) {
    first_ = first;
    count_ = count;
    groups_ = (count + kGroup - 1) / kGroup;
    pack_queries();
    find_ranges();
    fill_minus_infinity(at_.total_max);
    std::fill_n(at_.total_sum, groups_ * kGroup, T(0));
  }

  /// Keys that some query may see: [begin(), end()), empty if begin() >= end().
  Index begin() const { return begin_; }
  Index end() const { return end_; }

  void start_chunk() {
    fill_minus_infinity(at_.row_max);
    std::fill_n(at_.row_sum, groups_ * kGroup, T(0));
    fresh_ = true;
  }

  /// Keys max(begin(), tile), ..., min(end(), tile + kKeyTile) - 1 into the running state.
  /// @param key, value  rows from, from + 1, ... of K and V
  /// @param next_keys, next_queries  what is used soon
  void absorb(Index tile, Index from, const MatrixView<const T>& key,
              const MatrixView<const T>& value, const Upcoming<T>& next_keys,
              const Upcoming<T>& next_queries) {
    next_keys_ = next_keys;
    next_queries_ = next_queries;
    cut_segments(std::max(tile, begin_), std::min(tile + kKeyTile, end_));
    const Index vectors = vectors_of(groups_);
    fill_minus_infinity(at_.tile_max);
    for (const Segment& s : segments()) {
      score(s, key, from, tile);
      if (s.whole && !calls_.natural_scores()) continue;  // the product has found the maxima
      const Index lane = s.first_group * kGroup;
      kernels_.fold_max(at_.scratch.s + (s.begin - tile) * kWide + lane, s.end - s.begin,
                        vectors_of(s.end_group - s.first_group), at_.tile_max + lane,
                        s.whole ? nullptr : at_.begin + lane, at_.end + lane, s.begin);
    }
    if (kernels_.raise(at_.tile_max, at_.row_max, at_.correction, vectors, unit_) && !fresh_) {
      kernels_.rescale(at_.row_sum, 1, vectors, at_.correction);
      kernels_.rescale(at_.acc, task_.value.cols, vectors, at_.correction);
    }
    for (const Segment& s : segments()) {
      const Index lane = s.first_group * kGroup;
      kernels_.exponentiate(at_.scratch.s + (s.begin - tile) * kWide + lane, s.end - s.begin,
                            vectors_of(s.end_group - s.first_group), at_.row_max + lane,
                            at_.row_sum + lane, unit_);
      weigh(s, value, from, tile);
    }
  }

  /// The chunk's state into that of the chunks before it.
  void end_chunk() {
    if (fresh_) zero_acc();
    if (empty_) {  // merging with an empty state changes nothing
      std::swap(at_.acc, at_.total);
      std::swap(at_.row_max, at_.total_max);
      std::swap(at_.row_sum, at_.total_sum);
      empty_ = false;
    } else {
      kernels_.merge(at_.total, at_.total_max, at_.total_sum, at_.acc, at_.row_max, at_.row_sum,
                     task_.value.cols, vectors_of(groups_), unit_);
    }
  }

  /// Writes output, lse and weights.
  void finish() {
    if (empty_) {
      std::swap(at_.acc, at_.total);
      zero_acc();
      std::swap(at_.acc, at_.total);
    }
    write_output();
  }

 private:
  Index vectors_of(Index groups) const { return groups * (kGroup / kernels_.vector_lanes); }

  void pack_queries() {
    const T factor = calls_.query_factor();
    const Index lanes = groups_ * kGroup;
    const MatrixView<const In> rows = task_.query.middle_rows(first_, count_);
    if constexpr (std::is_same_v<In, T>) {
      kernels_.pack(rows.data, rows.row_stride, rows.col_stride, count_, rows.cols, factor,
                    at_.query, kWide, lanes);
    } else {
      convert_rows(rows, at_.scratch.output, rows.cols);
      kernels_.pack(at_.scratch.output, rows.cols, 1, count_, rows.cols, factor, at_.query, kWide,
                    lanes);
    }
  }

  /// The keys of each lane, of each group, and of all. Lanes without a query do as the last one.
  void find_ranges() {
    if (calls_.ranges == nullptr) {
      const Index kv_len = head_.extent.kv_len;
      const Index lanes = groups_ * kGroup;
      begin_ = 0;
      end_ = kv_len;
      group_.fill({0, kv_len, 0, kv_len});
      std::fill_n(at_.allowed, lanes, int_of<T>(calls_.may_mask || kv_len == 0 ? 0 : 1));
      if (calls_.modify == nullptr && task_.weights.data == nullptr) return;
      std::fill_n(at_.begin, lanes, int_of<T>(0));
      std::fill_n(at_.end, lanes, static_cast<int_of<T>>(kv_len));
      return;
    }
    std::array<KeyRange, std::size_t{kWide}> ranges;
    calls_.ranges(calls_.rules, head_.extent, head_.b, head_.h, first_, count_, ranges.data());
    begin_ = head_.extent.kv_len;
    end_ = 0;
    for (Index g = 0; g < groups_; ++g) {
      Group& group = group_[static_cast<std::size_t>(g)];
      group = {head_.extent.kv_len, 0, 0, head_.extent.kv_len};
      for (Index l = g * kGroup; l < (g + 1) * kGroup; ++l) {
        const KeyRange& range = ranges[static_cast<std::size_t>(std::min(l, count_ - 1))];
        const bool empty = range.begin >= range.end;
        at_.begin[l] = static_cast<int_of<T>>(empty ? 0 : range.begin);
        at_.end[l] = static_cast<int_of<T>>(empty ? 0 : range.end);
        at_.allowed[l] = calls_.may_mask || empty ? 0 : 1;
        if (!empty) {
          group.begin = std::min(group.begin, range.begin);
          group.end = std::max(group.end, range.end);
        }
        group.all_begin = std::max(group.all_begin, empty ? head_.extent.kv_len : range.begin);
        group.all_end = std::min(group.all_end, empty ? 0 : range.end);
      }
      if (group.begin >= group.end) continue;
      begin_ = std::min(begin_, group.begin);
      end_ = std::max(end_, group.end);
    }
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

  void zero_acc() {
    for (Index c = 0; c < task_.value.cols; ++c) {
      std::fill_n(at_.acc + c * kWide, groups_ * kGroup, T(0));
    }
    fresh_ = false;
  }

  /// Keys that the same groups of lanes take part in.
  struct Segment {
    Index begin;
    Index end;
    Index first_group;
    Index end_group;
    bool whole;  ///< every lane may attend to every key
  };
  struct SegmentList {
    const Segment* first;
    const Segment* last;
    const Segment* begin() const { return first; }
    const Segment* end() const { return last; }
  };
  SegmentList segments() const { return {segments_.data(), segments_.data() + num_segments_}; }

  /// Cuts [from, to) wherever a group begins or ends, or begins or ceases to see all.
  void cut_segments(Index from, Index to) {
    bool everything = true;
    for (Index g = 0; g < groups_; ++g) {
      const Group& group = group_[static_cast<std::size_t>(g)];
      everything = everything && group.all_begin <= from && group.all_end >= to;
    }
    if (everything) {
      segments_[0] = {from, to, 0, groups_, true};
      num_segments_ = 1;
      return;
    }
    std::array<Index, 4 * kGroups + 2> cuts;
    std::size_t n = 0;
    cuts[n++] = from;
    cuts[n++] = to;
    for (Index g = 0; g < groups_; ++g) {
      const Group& group = group_[static_cast<std::size_t>(g)];
      for (const Index cut : {group.begin, group.end, group.all_begin, group.all_end}) {
        if (cut > from && cut < to) cuts[n++] = cut;
      }
    }
    std::sort(cuts.data(), cuts.data() + n);
    num_segments_ = 0;
    for (std::size_t k = 0; k + 1 < n; ++k) {
      if (cuts[k] == cuts[k + 1]) continue;
      Segment s{cuts[k], cuts[k + 1], groups_, 0, true};
      for (Index g = 0; g < groups_; ++g) {
        const Group& group = group_[static_cast<std::size_t>(g)];
        if (group.begin > s.begin || group.end < s.end) continue;
        s.first_group = std::min(s.first_group, g);
        s.end_group = g + 1;
      }
      if (s.first_group >= s.end_group) continue;
      // Two groups go in and out together: fewer, longer pieces (measured at the causal diagonal).
      s.first_group -= s.first_group % 2;
      s.end_group = std::min(groups_, s.end_group + s.end_group % 2);
      for (Index g = s.first_group; g < s.end_group; ++g) {
        const Group& group = group_[static_cast<std::size_t>(g)];
        if (group.all_begin > s.begin || group.all_end < s.end) s.whole = false;
      }
      // Neighbours with the same lanes and the same need to compare are one.
      Segment* const last = num_segments_ == 0 ? nullptr : &segments_[num_segments_ - 1];
      if (last != nullptr && last->end == s.begin && last->first_group == s.first_group &&
          last->end_group == s.end_group && last->whole == s.whole) {
        last->end = s.end;
      } else {
        segments_[num_segments_++] = s;
      }
    }
  }

  /// S^T of a segment, softcapped, modified and masked element by element.
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
    fetch(x, next_queries_);
    if (s.whole && !calls_.natural_scores()) x.column_max = at_.tile_max + lane;
    kernels_.product(x);
    if (!calls_.natural_scores()) return;
    if (calls_.softcap > T(0)) {
      kernels_.softcap(scores, s.end - s.begin, kWide, vectors, calls_.softcap);
    }
    if (calls_.modify == nullptr) return;
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
    calls_.modify(calls_.rules, modified);
  }

  /// O^T += V^T P^T of a segment. Where some lane may not attend to some key, its weight there is 0,
  /// but 0 * inf is NaN: keys with such values are taken by themselves, for the lanes that may.
  void weigh(const Segment& s, const MatrixView<const T>& value, Index from, Index tile) {
    if (value.cols == 0) {  // the sums are there all the same, to be rescaled
      fresh_ = false;
      return;
    }
    if (fresh_ && (s.first_group > 0 || s.end_group < groups_)) zero_acc();
    const bool all_lanes_see = s.whole && !calls_.may_mask;
    const T* const rows = value.data + (s.begin - from) * value.row_stride;
    if (all_lanes_see || kernels_.all_finite(rows, value.row_stride, value.col_stride,
                                             s.end - s.begin, value.cols)) {
      weigh_keys(s, value, s.begin, s.end, from, tile);
      return;
    }
    Index clean = s.begin;
    for (Index j = s.begin; j < s.end; ++j) {
      const T* const row = value.data + (j - from) * value.row_stride;
      if (kernels_.all_finite(row, value.row_stride, value.col_stride, 1, value.cols)) continue;
      weigh_keys(s, value, clean, j, from, tile);
      if (fresh_) zero_acc();
      weigh_special(s, row, value.col_stride, j, tile);
      clean = j + 1;
    }
    weigh_keys(s, value, clean, s.end, from, tile);
  }

  void weigh_keys(const Segment& s, const MatrixView<const T>& value, Index begin, Index end,
                  Index from, Index tile) {
    if (begin >= end) return;
    const Index lane = s.first_group * kGroup;
    Product<T> x;
    x.rows = value.cols;
    x.vectors = vectors_of(s.end_group - s.first_group);
    x.depth = end - begin;
    x.a = value.data + (begin - from) * value.row_stride;
    x.a_row = value.col_stride;
    x.a_step = value.row_stride;
    x.b = at_.scratch.s + (begin - tile) * kWide + lane;
    x.b_step = kWide;
    x.c = at_.acc + lane;
    x.c_row = kWide;
    x.accumulate = !fresh_;
    fetch(x, next_keys_);
    kernels_.product(x);
    fresh_ = false;
  }

  /// While a product runs, brings closer what comes next: two ranges of rows, a line of each in turn.
  /// They move on to where the next product goes on.
  static void fetch(Product<T>& x, Upcoming<T>& rows) {
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

  /// One key whose value has an infinity or NaN. Its finite channels go the way of any other key's,
  /// so that their bits do not depend on what happens here; the others are for the lanes that may
  /// attend.
  void weigh_special(const Segment& s, const T* value, Index col_stride, Index j, Index tile) {
    const T* const weights = at_.scratch.s + (j - tile) * kWide;
    const Index lane = s.first_group * kGroup;
    Product<T> x;
    x.vectors = vectors_of(s.end_group - s.first_group);
    x.depth = 1;
    x.a_row = col_stride;
    x.b = weights + lane;
    x.b_step = kWide;
    x.c_row = kWide;
    x.accumulate = true;
    x.fetch[0] = x.fetch[1] = value;
    for (Index c = 0; c < task_.value.cols; ++c) {
      x.a = value + c * col_stride;
      x.c = at_.acc + c * kWide + lane;
      x.rows = 0;
      for (; c < task_.value.cols && mha::detail::is_finite(value[c * col_stride]); ++c) ++x.rows;
      kernels_.product(x);
      if (c == task_.value.cols) break;
      for (Index l = lane; l < s.end_group * kGroup; ++l) {
        const bool in_range = j >= at_.begin[l] && j < at_.end[l];
        if (!in_range || (calls_.may_mask && weights[l] == T(0))) continue;
        at_.acc[c * kWide + l] += weights[l] * value[c * col_stride];
      }
    }
  }

  void write_output() {
    RowEnd<T> end{calls_.natural_scores(), false, T(0)};
    end.has_sink = calls_.sink(calls_.rules, head_.h, end.sink);
    T* const factor = at_.correction;
    const bool sums_only = !end.has_sink && task_.lse.data == nullptr;
    if (sums_only) kernels_.invert(at_.total_sum, at_.allowed, factor, vectors_of(groups_));
    for (Index l = sums_only ? count_ : 0; l < count_; ++l) {
      T* const lse = task_.lse.data == nullptr ? nullptr : &task_.lse(first_ + l, 0);
      factor[l] = end(at_.allowed[l] != 0, at_.total_max[l], at_.total_sum[l], lse);
    }
    const MatrixView<Out> rows = task_.output.middle_rows(first_, count_);
    if constexpr (std::is_same_v<Out, T>) {
      kernels_.unpack(at_.total, kWide, factor, nullptr, rows.data, rows.row_stride,
                      rows.col_stride, count_, rows.cols);
    } else {
      kernels_.unpack(at_.total, kWide, factor, nullptr, at_.scratch.output, rows.cols, 1, count_,
                      rows.cols);
      for (Index r = 0; r < count_; ++r) {
        for (Index c = 0; c < rows.cols; ++c) {
          rows(r, c) = mha::detail::convert<Out>(at_.scratch.output[r * rows.cols + c]);
        }
      }
    }
    if (task_.weights.data != nullptr) write_weights(factor);
  }

  /// The second pass for weights: the same scores again, now that row_max and row_sum are known.
  void write_weights(const T* factor) {
    next_queries_ = {};
    for (Index r = 0; r < count_; ++r) {
      for (Index j = 0; j < head_.extent.kv_len; ++j) task_.weights(first_ + r, j) = T(0);
    }
    for (Index tile = begin_ - begin_ % kKeyTile; tile < end_; tile += kKeyTile) {
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      cut_segments(from, to);
      const MatrixView<const T> key = rows_of(task_.key, at_.scratch.key, from, to);
      for (const Segment& s : segments()) {
        score(s, key, from, tile);
        const Index lane = s.first_group * kGroup;
        const Index vectors = vectors_of(s.end_group - s.first_group);
        T* const scores = at_.scratch.s + (s.begin - tile) * kWide + lane;
        // Masks; the maxima and sums that come with it are not needed again.
        kernels_.fold_max(scores, s.end - s.begin, vectors, at_.tile_max + lane,
                          s.whole ? nullptr : at_.begin + lane, at_.end + lane, s.begin);
        kernels_.exponentiate(scores, s.end - s.begin, vectors, at_.total_max + lane,
                              at_.tile_max + lane, unit_);
        const Index stop = std::min(count_, s.end_group * kGroup);
        for (Index l = lane; l < stop; ++l) {
          if (at_.allowed[l] == 0) continue;
          const Index last = std::min<Index>(s.end, at_.end[l]);
          for (Index j = std::max<Index>(s.begin, at_.begin[l]); j < last; ++j) {
            task_.weights(first_ + l, j) = at_.scratch.s[(j - tile) * kWide + l] * factor[l];
          }
        }
      }
    }
  }

  /// Keys of a lane group: [begin, end) some lane may see, [all_begin, all_end) every lane.
  struct Group {
    Index begin;
    Index end;
    Index all_begin;
    Index all_end;
  };

  static constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));

  const Head<In, Out, T>& head_;
  const Kernels<T>& kernels_;
  const RuleCalls<T>& calls_;
  const HeadTask<In, Out, T>& task_;
  Upcoming<T> next_keys_;
  Upcoming<T> next_queries_;
  const T unit_;
  QueryTileMemory<T> at_;
  Index first_ = 0, count_ = 0, groups_ = 0;
  Index begin_ = 0, end_ = 0;
  bool fresh_ = true;  ///< acc holds nothing yet
  bool empty_ = true;  ///< total holds nothing yet
  std::array<Group, kGroups> group_;
  std::array<Segment, 4 * kGroups + 1> segments_;
  std::size_t num_segments_ = 0;
};

/// Neighbouring tiles of one head's queries that go through the keys together, so that each key tile
/// is brought from memory once for all of them, and is there in the second-level cache by then.
template <class In, class Out, class T>
class QueryBlock {
 public:
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kMostTiles = 4;

  /// @param next        the head that is computed next, null if none is: what it reads first is
  ///                    brought closer
  /// @param next_first  the first query of its block
  QueryBlock(const Head<In, Out, T>& head, const HeadTask<In, Out, T>* next, Index next_first)
      : task_(head.task), next_(next), next_first_(next_first), head_(head) {}

  /// Queries first, ..., first + count - 1, tile_width to a tile. `arena` has memory for as many
  /// tiles as there are.
  void run(Index first, Index count, Index tile_width, const TileSizes& sizes, Arena& arena) {
    const TileScratch<T> scratch(sizes, arena);
    alignas(QueryTile<In, Out, T>)
        std::byte raw[static_cast<std::size_t>(kMostTiles) * sizeof(QueryTile<In, Out, T>)];
    auto* const tiles = reinterpret_cast<QueryTile<In, Out, T>*>(raw);
    const Index num_tiles = (count + tile_width - 1) / tile_width;
    Index begin = head_.extent.kv_len;
    end_ = 0;
    for (Index t = 0; t < num_tiles; ++t) {
      QueryTile<In, Out, T>& tile =
          *new (tiles + t) QueryTile<In, Out, T>(head_, QueryTileMemory<T>(sizes, scratch, arena));
      tile.start(first + t * tile_width, std::min(tile_width, count - t * tile_width));
      begin = std::min(begin, tile.begin());
      end_ = std::max(end_, tile.end());
    }
    for (Index chunk = begin - begin % kKeyChunk; chunk < end_; chunk += kKeyChunk) {
      const auto takes_part = [&](Index t, Index from, Index length) {
        return tiles[t].begin() < from + length && tiles[t].end() > from;
      };
      for (Index t = 0; t < num_tiles; ++t) {
        if (takes_part(t, chunk, kKeyChunk)) tiles[t].start_chunk();
      }
      const Index stop = std::min(end_, chunk + kKeyChunk);
      for (Index j = std::max(chunk, begin - begin % kKeyTile); j < stop; j += kKeyTile) {
        const Index from = std::max(j, begin);
        const Index to = std::min(j + kKeyTile, end_);
        const MatrixView<const T> key = rows_of(task_.key, scratch.key, from, to);
        const MatrixView<const T> value = rows_of(task_.value, scratch.value, from, to);
        Index turn = 0;
        for (Index t = 0; t < num_tiles; ++t) {
          if (!takes_part(t, j, kKeyTile)) continue;
          const bool last = j + kKeyTile >= tiles[t].end();
          tiles[t].absorb(j, from, key, value, next_keys(j, turn++),
                          last ? next_queries(t * tile_width) : Upcoming<T>());
        }
      }
      for (Index t = 0; t < num_tiles; ++t) {
        if (takes_part(t, chunk, kKeyChunk)) tiles[t].end_chunk();
      }
    }
    for (Index t = 0; t < num_tiles; ++t) tiles[t].finish();
  }

 private:
  /// The first two tiles at each key tile fetch half of the next one each, and at the last key tile
  /// that of the next head.
  Upcoming<T> next_keys(Index key_tile, Index turn) const {
    if constexpr (std::is_same_v<In, T>) {
      const bool last = key_tile + kKeyTile >= end_;
      if (turn >= 2 || (last && (next_ == nullptr || next_->key.data == task_.key.data))) return {};
      const MatrixView<const T>& key = last ? next_->key : task_.key;
      const MatrixView<const T>& value = last ? next_->value : task_.value;
      const Index row = (last ? 0 : key_tile + kKeyTile) + turn * kKeyTile / 2;
      return beside(key, value, row, kKeyTile / 2);
    } else {
      return {};
    }
  }

  /// At its last key tile, each tile fetches its successor's queries, and where their output goes.
  Upcoming<T> next_queries(Index row) const {
    if constexpr (std::is_same_v<In, T> && std::is_same_v<Out, T>) {
      if (next_ == nullptr) return {};
      Upcoming<T> x = beside(next_->query, next_->output, next_first_ + row, kWide);
      // A strip of 64 channels takes 32 steps: every other row of 64 first, the rest by running on
      // past their ends.
      if (next_->query.cols < 2 * kWide) x.step *= 2;
      return x;
    } else {
      return {};
    }
  }

  /// Rows row, ..., row + count - 1 of both, if they are there and lie alike.
  template <class B>
  static Upcoming<T> beside(const MatrixView<const T>& a, const B& b, Index row, Index count) {
    if (a.rows < row + count || a.row_stride != b.row_stride || a.col_stride != 1 ||
        b.col_stride != 1) {
      return {};
    }
    return {a.data + row * a.row_stride, b.data + row * b.row_stride, a.row_stride};
  }

  const HeadTask<In, Out, T>& task_;
  const HeadTask<In, Out, T>* next_;
  Index next_first_;
  const Head<In, Out, T>& head_;
  Index end_ = 0;
};

}  // namespace mha::kernels

#endif  // MHA_KERNELS
