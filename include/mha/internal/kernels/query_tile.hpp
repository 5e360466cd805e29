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

#include "mha/internal/kernels/weighted_rows.hpp"

namespace mha::kernels {

template <class In, class Out, class T>
class QueryTile {
 public:
  static constexpr Index kWide = kLanes<T>;
  static constexpr Index kGroup = kWide / Segments::kGroups;  ///< lanes that take part together

  QueryTile(const Head<In, Out, T>& head, const QueryTileMemory<T>& memory)
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

  /// Keys max(begin(), tile), ..., min(end(), tile + kKeyTile) - 1 into the running state.
  /// @param key, value  rows from, from + 1, ... of K and V
  /// @param next_keys, next_queries  what is used soon
  void absorb(Index tile, Index from, const MatrixView<const T>& key,
              const MatrixView<const T>& value, const Upcoming<T>& next_keys,
              const Upcoming<T>& next_queries) {
    if (!states_.tree.in_chunk(tile / kKeyChunk)) start_chunk(tile / kKeyChunk);
    next_keys_ = next_keys;
    next_queries_ = next_queries;
    segments_.cut(std::max(tile, begin_), std::min(tile + kKeyTile, end_), groups_);
    const Index vectors = vectors_of(groups_);
    fill_minus_infinity(at_.tile_max);
    for (const Segment& s : segments_) {
      score(s, key, from, tile);
      if (product_finds_maxima(s)) continue;
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
        kernels_.drop(scores, s.end - s.begin, part, dropout_of(s));
      }
    }
    if (!fresh_) kernels_.add(state.row_sum, 1, vectors, tile_sum);
    weighted_by(at_.scratch.s, tile, calls_.may_mask)
        .add_to(state.acc, fresh_, value, from, at_.scratch.part, next_keys_);
    fresh_ = false;
  }

  /// All keys of a chunk, into a fresh state.
  void run_chunk(Index chunk) {
    start_chunk(chunk / kKeyChunk);
    const Index stop = std::min(end_, chunk + kKeyChunk);
    for (Index tile = std::max(chunk, begin_ - begin_ % kKeyTile); tile < stop; tile += kKeyTile) {
      if (!wants(tile)) continue;
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      absorb(tile, from, rows_of(task_.key, at_.scratch.key, from, to),
             rows_of(task_.value, at_.scratch.value, from, to), {}, {});
    }
    if (fresh_) zero_panel(states_.now.acc, task_.value.cols);
  }

  /// The chunk's state, to be joined by another task of the same queries.
  void save(const ChunkState<T>& chunk) const {
    copy_state(states_.now, chunk.state, task_.value.cols * kWide, kWide);
    std::copy_n(at_.allowed, kWide, chunk.allowed);
  }
  void load(Index chunk, const ChunkState<T>& state) {
    start_chunk(chunk);
    copy_state(state.state, states_.now, task_.value.cols * kWide, kWide);
    for (Index l = 0; l < groups_ * kGroup; ++l) at_.allowed[l] |= state.allowed[l];
  }

  /// Writes output, lse and weights.
  void finish() {
    if (!states_.tree.finish(states_.now, joined())) {
      clear(states_.now);
      zero_panel(states_.now.acc, task_.value.cols);
    }
    write_output();
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
      segments_.fill({0, kv_len, 0, kv_len});
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
      Segments::Group& group = segments_.group(g);
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

  void start_dropout() {
    for (Index l = 0; l < groups_ * kGroup; ++l) {
      std::uint32_t row[2];
      calls_.dropout_row(calls_.rules, head_.b, head_.h, first_ + l, row);
      at_.dropout_start[l] = static_cast<int_of<T>>(row[0]);
      at_.dropout_twist[l] = static_cast<int_of<T>>(row[1]);
    }
  }
  DropoutLanes<T> dropout_of(const Segment& s) const {
    const Index lane = s.first_group * kGroup;
    return {at_.dropout_start + lane, at_.dropout_twist + lane, calls_.dropout_threshold, s.begin};
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

  void write_output() {
    RowEnd<T> end{false, T(0)};
    const SoftmaxState<T>& state = states_.now;
    end.has_sink = calls_.sink(calls_.rules, head_.h, end.sink);
    T* const factor = at_.correction;
    const bool sums_only = !end.has_sink && task_.lse.data == nullptr;
    if (sums_only) kernels_.invert(state.row_sum, at_.allowed, factor, vectors_of(groups_));
    for (Index l = sums_only ? count_ : 0; l < count_; ++l) {
      T* const lse = task_.lse.data == nullptr ? nullptr : &task_.lse(first_ + l, 0);
      factor[l] = end(at_.allowed[l] != 0, state.row_max[l], state.row_sum[l], lse);
    }
    T* const output_factor = at_.tile_max;
    for (Index l = 0; l < count_; ++l) output_factor[l] = factor[l] * calls_.dropout_scale;
    const MatrixView<Out> rows = task_.output.middle_rows(first_, count_);
    if constexpr (std::is_same_v<Out, T>) {
      kernels_.unpack(state.acc, kWide, output_factor, nullptr, rows.data, rows.row_stride,
                      rows.col_stride, count_, rows.cols);
    } else {
      kernels_.unpack(state.acc, kWide, output_factor, nullptr, at_.scratch.output, rows.cols, 1,
                      count_, rows.cols);
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
      if (!wants(tile)) continue;
      const Index from = std::max(tile, begin_);
      const Index to = std::min(tile + kKeyTile, end_);
      segments_.cut(from, to, groups_);
      const MatrixView<const T> key = rows_of(task_.key, at_.scratch.key, from, to);
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

  const Head<In, Out, T>& head_;
  const Kernels<T>& kernels_;
  const RuleCalls<T>& calls_;
  const HeadTask<In, Out, T>& task_;
  Upcoming<T> next_keys_;
  Upcoming<T> next_queries_;
  QueryTileMemory<T> at_;
  SoftmaxStates<T>& states_ = at_.states;
  T* capped_ = nullptr;  ///< where the scores are kept that modifiers see, if they are wanted
  Index first_ = 0, count_ = 0, groups_ = 0;
  Index begin_ = 0, end_ = 0;
  bool fresh_ = true;         ///< no key of the chunk yet: acc holds nothing
  bool all_allowed_ = false;  ///< of the key tile at hand: element-wise masks allow every pair
  Segments segments_;
};

}  // namespace mha::kernels
