// SPDX-License-Identifier: MIT
//
// One call of the layer, from checked arguments to the output: how much memory it works in, and its
// steps in that memory. Read multi_head.hpp first; this is what stands behind forward().
//     project_inputs    q, k, v = x W + b, each head's rows together
//     rotate            rotary positions, if the layer has them
//     attend            batch.hpp, over views of the heads
//     project           the concatenated heads
#pragma once

#include <algorithm>
#include <utility>

#include "mha/internal/layer/memory.hpp"
#include "mha/internal/layer/sequences.hpp"
#include "mha/multi_head_config.hpp"
#include "mha/projection.hpp"

namespace mha::detail {

template <class Layer>
class LayerPass {
 public:
  using Scalar = typename Layer::Scalar;
  using Acc = typename Layer::Acc;
  using Linear = typename Layer::Linear;
  using Options = MultiHeadOptions;
  using View = MatrixView<const Scalar>;
  using Batch = SequenceBatch;

  explicit LayerPass(const Layer& layer) : layer_(layer) {}

  /// Sizes of a call's memory, without its scratch.
  LayerSizes sizes(Index query_rows, Index key_rows, Index sequences, bool own_lse,
                   bool ragged) const {
    const MultiHeadConfig& c = layer_.config();
    LayerSizes s;
    s.query_rows = query_rows;
    s.key_rows = key_rows;
    s.extra_key = c.add_bias_kv;
    s.query_width = c.num_heads * c.head_dim;
    s.key_width = c.kv_heads * c.head_dim;
    s.value_width = c.kv_heads * c.value_dim;
    s.concat_width = c.num_heads * c.value_dim;
    s.lse_width = own_lse ? c.num_heads : 0;
    s.num_segments = ragged ? sequences : 0;
    s.rotary_pairs = c.rotary ? c.rotary->dim / 2 : 0;
    if constexpr (has_kernels<Acc>) {
      const auto apart = [](Index rows, Index inputs, Index heads, Index width) {
        const auto way = kernels::way_to_project(rows, inputs, width, false);
        return way == kernels::ProjectWay::in_place ? 1 : heads;
      };
      s.query_heads = apart(query_rows, c.embed_dim, c.num_heads, s.query_width);
      s.key_heads = apart(key_rows, c.kdim, c.kv_heads, s.key_width);
      s.value_heads = apart(key_rows, c.vdim, c.kv_heads, s.value_width);
    }
    if constexpr (!std::is_same_v<Scalar, Acc>) {
      for (const Linear* linear :
           {&layer_.q_proj, &layer_.k_proj, &layer_.v_proj, &layer_.out_proj}) {
        s.wide_weight = std::max(s.wide_weight, linear->weight.size());
        s.wide_bias = std::max(s.wide_bias, linear->bias.size());
      }
    }
    return s;
  }

  /// Which inputs are one matrix: what is projected from one is projected together.
  enum class Inputs { all_apart, one_context, one_matrix };
  static Inputs inputs_of(const View& query, const View& key, const View& value) {
    const auto same = [](const View& a, const View& b) {
      // Matrices without rows have no memory by which to tell them apart: each is its own.
      return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.rows > 0 &&
             a.row_stride == b.row_stride && a.col_stride == b.col_stride;
    };
    if (!same(key, value)) return Inputs::all_apart;
    return same(query, key) ? Inputs::one_matrix : Inputs::one_context;
  }

  /// The scratch of its steps, which share it: the largest counts.
  std::size_t scratch_bytes([[maybe_unused]] Index query_rows, [[maybe_unused]] Index key_rows,
                            [[maybe_unused]] const Batch& batch,
                            [[maybe_unused]] const Options& options, [[maybe_unused]] Inputs inputs,
                            [[maybe_unused]] bool contiguous) const {
    std::size_t most = 0;
    if constexpr (has_kernels<Acc>) {
      const MultiHeadConfig& c = layer_.config();
      const Executor& executor = options.executor;
      const Index q_width = c.num_heads * c.head_dim;
      const Index k_width = c.kv_heads * c.head_dim;
      const Index v_width = c.kv_heads * c.value_dim;
      const auto input = [&](Index rows, Index width, Index outputs, Index jobs) {
        most = std::max(most, projection_plan<Acc, Scalar, Scalar, Acc>(rows, width, outputs, jobs,
                                                                        true, executor)
                                  .bytes());
      };
      if (!std::is_same_v<Scalar, Acc>) inputs = Inputs::all_apart;
      if (inputs == Inputs::one_matrix) {
        input(query_rows, c.embed_dim, std::max({q_width, k_width, v_width}), 3);
      } else {
        input(query_rows, c.embed_dim, q_width, 1);
        if (inputs == Inputs::one_context) {
          input(key_rows, c.kdim, std::max(k_width, v_width), 2);
        } else {
          input(key_rows, c.kdim, k_width, 1);
          input(key_rows, c.vdim, v_width, 1);
        }
      }
      most = std::max(
          most, projection_plan<Acc, Acc, Scalar, Scalar>(query_rows, c.num_heads * c.value_dim,
                                                          c.out_dim, 1, contiguous, executor)
                    .bytes());
      const kernels::Plan<Acc> plan(batch.count, c.num_heads, c.kv_heads, batch.query_len,
                                    batch.kv_len, c.head_dim, c.value_dim, c.add_bias_kv, false,
                                    executor);
      most = std::max(most, plan.bytes());
    }
    return most;
  }

  /// Bytes of the block that a call works in, whichever of its inputs are one matrix.
  std::size_t bytes(Index query_rows, Index key_rows, const Batch& batch,
                    const Options& options) const {
    LayerSizes s = sizes(query_rows, key_rows, batch.count, false, batch.ragged);
    for (const Inputs inputs : {Inputs::all_apart, Inputs::one_context, Inputs::one_matrix}) {
      for (const bool contiguous : {true, false}) {
        s.scratch = std::max(
            s.scratch, scratch_bytes(query_rows, key_rows, batch, options, inputs, contiguous));
      }
    }
    return layer_bytes<Acc>(s);
  }

  template <class RuleSet>
  void compute(const View& query, const View& key, const View& value, const RuleSet& rules,
               const Options& options, const Batch& batch, const MatrixView<Scalar>& output,
               const MatrixView<Acc>& lse, Tensor<Acc>& weights) const {
    if (batch.count == 0) return;
    LayerSizes s = sizes(query.rows, key.rows, batch.count, false, batch.ragged);
    if constexpr (has_kernels<Acc>) {
      s.scratch = scratch_bytes(query.rows, key.rows, batch, options, inputs_of(query, key, value),
                                output.col_stride == 1);
      const CallMemory block(options.workspace, layer_bytes<Acc>(s));
      BlockMatrices<Acc> source({block.data(), block.size()});
      compute_in(LayerMemory<Acc>(s, source), query, key, value, rules, options, batch, output, lse,
                 weights);
    } else {
      OwnedMatrices<Acc> source;
      compute_in(LayerMemory<Acc>(s, source), query, key, value, rules, options, batch, output, lse,
                 weights);
    }
  }

 protected:
  template <class RuleSet>
  void compute_in(const LayerMemory<Acc>& memory, const View& query, const View& key,
                  const View& value, const RuleSet& rules, const Options& options,
                  const Batch& batch, const MatrixView<Scalar>& output, const MatrixView<Acc>& lse,
                  Tensor<Acc>& weights) const {
    const MultiHeadConfig& c = layer_.config();
    const MatrixView<Acc>& lse_rows = lse.data != nullptr ? lse : memory.lse;
    if (memory.segments != nullptr && batch.ragged) batch.place(options, memory.segments);
    project_inputs(memory, query, key, value, options.executor);
    for (Index d = 0; d < layer_.bias_k.size(); ++d)
      memory.bias_k[d] = convert<Acc>(layer_.bias_k(d));
    for (Index d = 0; d < layer_.bias_v.size(); ++d)
      memory.bias_v[d] = convert<Acc>(layer_.bias_v(d));
    if (c.rotary) rotate(memory, rules, batch, options);

    BatchTask<Acc> call = heads_of(memory, lse_rows, batch, options);
    if (!weights.empty()) call.weights = weights.view();
    attend(memory, call, rules, options);
    const ProjectionTask<Linear, Scalar> last{&layer_.out_proj, output};
    project<Acc, Acc>(memory.concat, &last, 1, options.executor, projection_memory(memory));
  }

  /// Attention's call: the heads of q, k, v and of the concatenation are views of their columns.
  BatchTask<Acc> heads_of(const LayerMemory<Acc>& memory, const MatrixView<Acc>& lse,
                          const Batch& batch, const Options& options) const {
    const MultiHeadConfig& c = layer_.config();
    const bool in_segments = memory.segments != nullptr && batch.ragged;
    const Index entries = in_segments ? 1 : batch.count;
    BatchTask<Acc> call{memory.q.heads(c.num_heads, entries),
                        memory.k.heads(c.kv_heads, entries),
                        memory.v.heads(c.kv_heads, entries),
                        HeadColumns<Acc>(memory.concat).heads(c.num_heads, entries),
                        {},
                        HeadColumns<Acc>(lse).heads(c.num_heads, entries),
                        &options.past_len};
    if (lse.cols == 0) call.lse.data = nullptr;
    call.extra = {c.add_bias_kv ? memory.bias_k : nullptr, memory.bias_v, c.add_zero_attn};
    if (in_segments) {
      call.segments = memory.segments;
      call.num_segments = batch.count;
    }
    return call;
  }

  static ProjectionMemory<Acc> projection_memory(const LayerMemory<Acc>& memory) {
    return {memory.wide_weight, memory.wide_bias, memory.scratch};
  }

  template <class RuleSet>
  static void attend([[maybe_unused]] const LayerMemory<Acc>& memory, const BatchTask<Acc>& call,
                     const RuleSet& rules, const Options& options) {
    if constexpr (has_kernels<Acc>) {
      const auto plan = kernels::plan_of<Acc, Acc>(call, options.executor);
      kernels::attend<Acc, Acc, Acc>(call, rules, plan, options.executor, memory.scratch);
    } else {
      attend_plainly(call, rules, options.executor);
    }
  }

  /// q, k and v. What is projected from one matrix is projected together.
  void project_inputs(const LayerMemory<Acc>& memory, const View& query, const View& key,
                      const View& value, const Executor& executor) const {
    using Task = ProjectionTask<Linear, Acc>;
    const ProjectionMemory<Acc> scratch = projection_memory(memory);
    const Task tasks[3] = {
        {&layer_.q_proj, memory.q}, {&layer_.k_proj, memory.k}, {&layer_.v_proj, memory.v}};
    const Inputs inputs = inputs_of(query, key, value);
    const bool one_context = inputs == Inputs::one_context;
    if (inputs == Inputs::one_matrix) {
      project<Acc>(query, tasks, 3, executor, scratch);
      return;
    }
    project<Acc>(query, tasks, 1, executor, scratch);
    project<Acc>(key, tasks + 1, one_context ? 2 : 1, executor, scratch);
    if (!one_context) project<Acc>(value, tasks + 2, 1, executor, scratch);
  }

  /// Where sequence b lies among the rows of q and k.
  static Segment segment_at(const LayerMemory<Acc>& memory, const Batch& batch, Index b) {
    if (memory.segments != nullptr && batch.ragged) return memory.segments[b];
    const Index kv_len = memory.k.rows / batch.count;
    return {b * batch.query_len, batch.query_len, b * kv_len, kv_len};
  }

  /// Rotary on the projected queries and keys, sequence by sequence; never on bias_k. Queries stand
  /// where the options or a rule place them among the keys, unless positions are given.
  template <class RuleSet>
  void rotate(const LayerMemory<Acc>& memory, const RuleSet& rules, const Batch& batch,
              const Options& options) const {
    const MultiHeadConfig& c = layer_.config();
    const IndexList& kv_positions =
        options.kv_positions.empty() ? options.positions : options.kv_positions;
    fill_frequencies(memory.rotary, c.rotary->dim, c.rotary->base);
    // `first` is where the tokens of a sequence begin unless told otherwise.
    const auto turn = [&](const HeadColumns<Acc>& rows, Index heads, const IndexList& positions,
                          Index first_row, Index first) {
      const auto position_of = [&](Index, Index i) {
        if (positions.size() > 1) return positions[first_row + i];
        return clamp_far(positions.empty() ? first : positions[0]) + i;
      };
      rotate_by_frequencies(rows.heads(heads, 1), c.rotary->dim, c.rotary->pairs, position_of,
                            memory.rotary);
    };
    for (Index b = 0; b < batch.count; ++b) {
      const Segment s = segment_at(memory, batch, b);
      const Extent extent{c.num_heads, s.query_len, s.kv_len, options.past_len[b]};
      turn(memory.q.middle_rows(s.query_row, s.query_len), c.num_heads, options.positions,
           s.query_row, rules.placed(extent, b, 0).offset);
      turn(memory.k.middle_rows(s.key_row, s.kv_len), c.kv_heads, kv_positions, s.key_row, 0);
    }
  }

  const Layer& layer_;
};

}  // namespace mha::detail
