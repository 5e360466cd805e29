// SPDX-License-Identifier: MIT
//
// A call of the layer over caches: the steps of forward.hpp, with the projected keys and values kept.
//     project, rotate      q, k, v of the rows at hand, each at its place in its sequence
//     append               k and v into the pages of their sequences
//     attend, project      to all keys that a sequence has
// Sequences take pages before anything is computed, and have more keys only when all has been: whatever is thrown
// in between leaves them as they were.
#pragma once

#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/forward.hpp"
#include "mha/kv_pool.hpp"

namespace mha::inline MHA_ABI::detail {

/// Room that a call has taken in the caches of its sequences: what is not committed is given back.
class TakenRoom {
 public:
  explicit TakenRoom(const KvLayers& caches) : caches_(caches) {}
  TakenRoom(const TakenRoom&) = delete;
  TakenRoom& operator=(const TakenRoom&) = delete;
  ~TakenRoom() {
    for (Index b = 0; b < taken_; ++b) caches_[b].state().release_unused();
  }
  void take(const char* where, Index b, Index tokens) {
    taken_ = b + 1;
    caches_[b].state().prepare(where, caches_[b].layer(), tokens);
  }
  template <class TokensOf>
  void commit(const TokensOf& tokens_of) noexcept {
    for (Index b = 0; b < taken_; ++b) caches_[b].state().commit(caches_[b].layer(), tokens_of(b));
    taken_ = 0;
  }

 private:
  const KvLayers& caches_;
  Index taken_ = 0;
};

template <class Scalar>
class CachedPass : public LayerPass<Scalar> {
 public:
  using Pass = LayerPass<Scalar>;
  using typename Pass::Acc;
  using typename Pass::AllInputs;
  using typename Pass::AnyRules;
  using typename Pass::Layer;
  using typename Pass::Options;
  using typename Pass::Outputs;
  static_assert(has_kernels<Acc>,
                "mha: caches are for layers of float, double, Eigen::half and Eigen::bfloat16");

  CachedPass(const char* where, const Layer& layer, const KvLayers& caches, const Options& options)
      : Pass(layer), where_(where), layer_(layer), caches_(caches), options_(options) {}

  /// x's rows as sequences, one for each cache.
  /// @param appends  x's rows become keys, too
  SequenceBatch check_sequences(Index rows, bool appends) const {
    const MultiHeadConfig& c = layer_.config;
    check_rows(where_, "query", rows);
    check_caches(c);
    require(
        options_.past_len.empty() && options_.kv_sequences.empty() && options_.kv_positions.empty(),
        where_, ": with caches past_len, kv_sequences and kv_positions are the caches' own, got ",
        options_.past_len.size(), ", ", options_.kv_sequences.size(), " and ",
        options_.kv_positions.size(), " numbers");
    require(c.rotary || options_.positions.empty(), where_,
            ": positions are for a layer with rotary, got ", options_.positions.size());
    require(options_.positions.size() <= 1 || options_.positions.size() == rows, where_,
            ": positions must be one number, or one per row, got ", options_.positions.size(),
            " and ", rows);
    require(options_.batch == 1 || options_.batch == caches_.size(), where_,
            ": batch must be left out beside caches, or equal their number, got ", options_.batch,
            " and ", caches_.size());
    const IndexList& lengths = options_.sequences;
    if (lengths.empty()) {
      require(rows % std::max<Index>(1, caches_.size()) == 0, where_,
              ": without sequences the caches must divide the rows, got ", caches_.size(), " and ",
              rows);
    } else {
      require(lengths.size() == caches_.size(), where_,
              ": there must be one of sequences for each cache, got ", lengths.size(), " and ",
              caches_.size());
    }
    SequenceBatch batch;
    batch.count = caches_.size();
    Index sum = 0;
    for (Index b = 0; b < batch.count; ++b) {
      const Index count = tokens_of(rows, b);
      require(count >= 0 && count <= rows, where_, ": sequences must lie between 0 and the ", rows,
              " rows, got ", count, " for sequence ", b);
      sum += count;
      const Index kv_len = caches_[b].size() + (appends ? count : 0);
      if (b > 0 && (count != batch.query_len || kv_len != batch.kv_len)) {
        batch.lengths_differ = true;
      }
      batch.query_len = std::max(batch.query_len, count);
      batch.kv_len = std::max(batch.kv_len, kv_len);
    }
    batch.ragged = true;
    require(sum == rows, where_, ": sequences must add up to the rows, got ", sum, " and ", rows);
    Index first_row = 0;
    for (Index b = 0; b < batch.count; ++b) {
      check_guesses(b, first_row, tokens_of(rows, b));
      first_row += tokens_of(rows, b);
    }
    check_total_size<Acc>(where_, c, rows, std::max(rows, batch.kv_len), batch,
                          options_.need_weights || options_.average_weights);
    return batch;
  }

  void check_rule(const AnyRules& rules, const SequenceBatch& batch, Index rows,
                  bool appends) const {
    const Index num_heads = layer_.config.num_heads;
    rules.check(
        {where_, batch.count, num_heads, batch.query_len, batch.kv_len, batch.lengths_differ});
    for (Index b = 0; b < batch.count; ++b) {
      const Segment s = segment(rows, b, 0, appends);
      rules.check_place(where_, {num_heads, s.query_len, s.kv_len, s.past_len}, b, true);
      if (!appends) check_remembered(where_, caches_[b].keys(), s.past_len);
    }
  }

  /// Of workspace, for any call of so many rows.
  std::size_t bytes(Index rows) const {
    const SequenceBatch batch = check_sequences(rows, true);
    return Pass::most_bytes([&](Inputs inputs, bool contiguous) {
      return plan_of(rows, rows, batch, inputs, contiguous);
    });
  }

  /// Appends the rows of key and value, if there are any, and attends from those of query, if an output is given.
  void compute(const AllInputs& inputs, const SequenceBatch& batch, const AnyRules& rules,
               const Outputs& outputs) const {
    if (batch.count == 0) return;
    const bool appends = inputs.key.data != nullptr;
    const bool attends = outputs.output.data != nullptr;
    const Index rows = attends ? inputs.query.rows : inputs.key.rows;
    TakenRoom room(caches_);
    for (Index b = 0; appends && b < batch.count; ++b) room.take(where_, b, tokens_of(rows, b));

    const LayerPlan<Scalar> plan = plan_of(inputs.query.rows, inputs.key.rows, batch,
                                           Pass::inputs_of(inputs), outputs.output.col_stride == 1);
    const CallMemory block(options_.workspace, plan.bytes());
    BlockMatrices<Acc> source({block.data(), block.size()});
    const LayerMemory<Acc> memory(plan.sizes, source);
    place(memory, rows, appends);
    const ProjectionMemory<Acc> scratch{memory.wide_weight, memory.wide_bias, memory.scratch};
    this->project_inputs(plan, memory, inputs, options_.executor, scratch);
    if (layer_.config.rotary) rotate(memory, attends, appends);
    if (appends) append(memory);
    if (attends) {
      this->fill_extra_key(memory);
      BatchTask<Acc> call = this->heads_of(memory, outputs.lse, batch, options_);
      call.past_len = nullptr;  // the segments have their own
      call.paged = memory.paged;
      for (Index b = 0; b < batch.count; ++b) {
        if (memory.retention[b].window > 0) call.retention = memory.retention;
      }
      call.weights = outputs.weights;
      rules.attend(call, plan.attention, options_.executor, memory.scratch);
      this->project_output(plan, memory, outputs.output, options_.executor, scratch);
    }
    room.commit([&](Index b) { return tokens_of(rows, b); });
  }

 private:
  LayerPlan<Scalar> plan_of(Index query_rows, Index key_rows, const SequenceBatch& batch,
                            Inputs inputs, bool contiguous_output) const {
    LayerCallKind kind{inputs, contiguous_output};
    kind.caches = caches_.size();
    for (Index b = 0; b < batch.count; ++b) {
      kind.converts_pages = kind.converts_pages || !keeps<Acc>(caches_[b].keys().storage());
    }
    return {layer_, query_rows, key_rows, batch, kind, options_.executor};
  }

  /// Rows of a tree of guesses stand at places of their own, which a window does not know.
  void check_guesses(Index b, Index first_row, Index count) const {
    if (options_.positions.size() <= 1 || caches_[b].keys().retention().window == 0) return;
    for (Index i = 1; i < count; ++i) {
      const Index before = options_.positions[first_row + i - 1];
      const Index now = options_.positions[first_row + i];
      require(before < now && now - 1 == before, where_,
              ": positions must rise by 1 in a sequence with window_keys, got ", before, " and ",
              now, " in rows ", i - 1, " and ", i, " of sequence ", b);
    }
  }

  Index tokens_of(Index rows, Index b) const {
    return options_.sequences.empty() ? rows / caches_.size() : options_.sequences[b];
  }
  /// Queries stand behind the keys that were there, or, where none are added, at the last ones.
  Segment segment(Index rows, Index b, Index first_row, bool appends) const {
    const Index count = tokens_of(rows, b);
    const Index size = caches_[b].size();
    const Index kv_len = size + (appends ? count : 0);
    return {first_row, count, first_row, kv_len, std::max<Index>(0, kv_len - count)};
  }

  void check_caches(const MultiHeadConfig& c) const {
    static std::atomic<std::uint64_t> calls{0};
    const std::uint64_t call = calls.fetch_add(1, std::memory_order_relaxed) + 1;
    for (Index b = 0; b < caches_.size(); ++b) {
      const PageShape& shape = caches_[b].state().shape();
      require(shape.kv_heads == c.kv_heads && shape.head_dim == c.head_dim &&
                  shape.value_dim == c.value_dim,
              where_, ": a cache must have the layer's kv_heads ", c.kv_heads, ", head_dim ",
              c.head_dim, " and value_dim ", c.value_dim, ", got ", shape.kv_heads, ", ",
              shape.head_dim, " and ", shape.value_dim, " of cache ", b);
      require(std::is_same_v<Acc, double> || shape.storage != Storage::f64, where_,
              ": a cache of Storage::f64 is for a layer of double, got one as cache ", b);
      require(caches_[b].state().is_first_in(call), where_,
              ": a sequence must be given once, got it again as cache ", b);
    }
  }

  void place(const LayerMemory<Acc>& memory, Index rows, bool appends) const {
    Index row = 0;
    for (Index b = 0; b < caches_.size(); ++b) {
      memory.segments[b] = segment(rows, b, row, appends);
      row += memory.segments[b].query_len;
      memory.paged[b] = caches_[b].keys().paged();
      memory.retention[b] = caches_[b].keys().retention();
    }
  }

  void rotate(const LayerMemory<Acc>& memory, bool attends, bool appends) const {
    const MultiHeadConfig& c = layer_.config;
    fill_frequencies(memory.rotary, c.rotary->dim, c.rotary->base);
    for (Index b = 0; b < caches_.size(); ++b) {
      const Segment& s = memory.segments[b];
      const auto turn = [&](const HeadColumns<Acc>& rows, Index heads, Index first) {
        this->turn_rows(memory, rows.middle_rows(s.query_row, s.query_len), heads,
                        options_.positions, s.query_row, first);
      };
      if (attends) turn(memory.q, c.num_heads, s.past_len);
      if (appends) turn(memory.k, c.kv_heads, caches_[b].size());
    }
  }

  void append(const LayerMemory<Acc>& memory) const {
    const Index kv_heads = layer_.config.kv_heads;
    const TensorView<const Acc> keys = memory.k.heads(kv_heads, 1);
    const TensorView<const Acc> values = memory.v.heads(kv_heads, 1);
    const auto write = [&](Index n) {
      const Index b = n / kv_heads;
      const Index head = n % kv_heads;
      const Segment& s = memory.segments[b];
      caches_[b].state().write(caches_[b].layer(), head, caches_[b].size(),
                               keys.matrix(0, head).middle_rows(s.key_row, s.query_len),
                               values.matrix(0, head).middle_rows(s.key_row, s.query_len));
    };
    const Index tasks = caches_.size() * kv_heads;
    const double moved = 64.0 * static_cast<double>(memory.k.rows) *
                         static_cast<double>(memory.k.cols + memory.v.cols);
    kernels::share(tasks, kernels::workers_for(tasks, moved, options_.executor), options_.executor,
                   [&](Index n, Index /*worker*/) { write(n); });
  }

  const char* where_;
  const Layer& layer_;
  const KvLayers& caches_;
  const Options& options_;
};

}  // namespace mha::detail
