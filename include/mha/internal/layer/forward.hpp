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

#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/layer_rules.hpp"
#include "mha/internal/layer/plan.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI::detail {

template <class Scalar>
class LayerPass {
 public:
  using Acc = accumulator_t<Scalar>;
  using Layer = LayerView<Scalar>;
  using Options = MultiHeadOptions;
  using View = MatrixView<const Scalar>;
  using Batch = SequenceBatch;
  using Plan = LayerPlan<Scalar>;
  using AllInputs = LayerInputs<Scalar>;
  using Outputs = LayerOutputs<Scalar>;
  using AnyRules = LayerRules<Acc>;

  explicit LayerPass(const Layer& layer) : layer_(layer) {}

  static Inputs inputs_of(const AllInputs& x) {
    const auto same = [](const View& a, const View& b) {
      // Matrices without rows have no memory by which to tell them apart: each is its own.
      return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.rows > 0 &&
             a.row_stride == b.row_stride && a.col_stride == b.col_stride;
    };
    if (!same(x.key, x.value)) return Inputs::all_apart;
    return same(x.query, x.key) ? Inputs::one_matrix : Inputs::one_context;
  }

  /// Bytes of the block that a call works in, whichever of its inputs are one matrix.
  std::size_t bytes(Index query_rows, Index key_rows, const Batch& batch,
                    const Options& options) const {
    return most_bytes([&](Inputs inputs, bool contiguous) {
      return Plan(layer_, query_rows, key_rows, batch, {inputs, contiguous}, options.executor);
    });
  }

  void compute(const AllInputs& inputs, const AnyRules& rules, const Options& options,
               const Batch& batch, const Outputs& outputs) const {
    if (batch.count == 0) return;
    const Plan plan(layer_, inputs.query.rows, inputs.key.rows, batch,
                    {inputs_of(inputs), outputs.output.col_stride == 1}, options.executor);
    if constexpr (has_kernels<Acc>) {
      const CallMemory block(options.workspace, plan.bytes());
      BlockMatrices<Acc> source({block.data(), block.size()});
      compute_in(plan, LayerMemory<Acc>(plan.sizes, source), inputs, rules, options, outputs);
    } else {
      OwnedMatrices<Acc> source;
      compute_in(plan, LayerMemory<Acc>(plan.sizes, source), inputs, rules, options, outputs);
    }
  }

 protected:
  /// @param plan_of  the plan of a call, by which of its inputs are one matrix, and whether its output is one
  template <class PlanOf>
  static std::size_t most_bytes(const PlanOf& plan_of) {
    std::size_t most = 0;
    for (const Inputs inputs : {Inputs::all_apart, Inputs::one_context, Inputs::one_matrix}) {
      for (const bool contiguous : {true, false}) {
        most = std::max(most, plan_of(inputs, contiguous).bytes());
      }
    }
    return most;
  }

  void compute_in(const Plan& plan, const LayerMemory<Acc>& memory, const AllInputs& inputs,
                  const AnyRules& rules, const Options& options, const Outputs& outputs) const {
    const Batch& batch = plan.batch;
    const ProjectionMemory<Acc> scratch{memory.wide_weight, memory.wide_bias, memory.scratch};
    if (memory.segments != nullptr && batch.ragged) batch.place(options, memory.segments);
    project_inputs(plan, memory, inputs, options.executor, scratch);
    if (layer_.config.rotary) rotate(memory, rules, batch, options);
    fill_extra_key(memory);
    BatchTask<Acc> call =
        heads_of(memory, outputs.lse.data != nullptr ? outputs.lse : memory.lse, batch, options);
    call.weights = outputs.weights;
    rules.attend(call, plan.attention, options.executor, memory.scratch);
    project_output(plan, memory, outputs.output, options.executor, scratch);
  }

  /// The layer's own key and value in the type of the sums.
  void fill_extra_key(const LayerMemory<Acc>& memory) const {
    for (Index d = 0; d < layer_.bias_k.cols; ++d) {
      memory.bias_k[d] = convert<Acc>(layer_.bias_k(0, d));
    }
    for (Index d = 0; d < layer_.bias_v.cols; ++d) {
      memory.bias_v[d] = convert<Acc>(layer_.bias_v(0, d));
    }
  }

  void project_output(const Plan& plan, const LayerMemory<Acc>& memory,
                      const MatrixView<Scalar>& output, const Executor& executor,
                      const ProjectionMemory<Acc>& scratch) const {
    const ProjectionTask<Scalar, Scalar> last{&layer_.out_proj, output};
    const MatrixView<const Acc> concat = memory.concat;
    project<Acc>(concat, &last, 1, plan.out, executor, scratch);
  }

  /// Attention's call: the heads of q, k, v and of the concatenation are views of their columns.
  BatchTask<Acc> heads_of(const LayerMemory<Acc>& memory, const MatrixView<Acc>& lse,
                          const Batch& batch, const Options& options) const {
    const MultiHeadConfig& c = layer_.config;
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

  /// q, k and v. What is projected from one matrix is projected together.
  void project_inputs(const Plan& plan, const LayerMemory<Acc>& memory, const AllInputs& given,
                      const Executor& executor, const ProjectionMemory<Acc>& scratch) const {
    const View* const inputs[3] = {&given.query, &given.key, &given.value};
    const ProjectionTask<Scalar, Acc> tasks[3] = {
        {&layer_.q_proj, memory.q}, {&layer_.k_proj, memory.k}, {&layer_.v_proj, memory.v}};
    for (int g = 0; g < plan.num_groups; ++g) {
      const auto& group = plan.groups[static_cast<std::size_t>(g)];
      if (inputs[group.first]->data == nullptr) continue;
      project<Acc>(*inputs[group.first], tasks + group.first, group.count, group.plan, executor,
                   scratch);
    }
  }

  /// Where sequence b lies among the rows of q and k.
  static Segment segment_at(const LayerMemory<Acc>& memory, const Batch& batch, Index b) {
    if (memory.segments != nullptr && batch.ragged) return memory.segments[b];
    const Index kv_len = memory.k.rows / batch.count;
    return {b * batch.query_len, batch.query_len, b * kv_len, kv_len, 0};
  }

  /// Rotary on the projected queries and keys, sequence by sequence; never on bias_k. Queries stand
  /// where the options or a rule place them among the keys, unless positions are given.
  void rotate(const LayerMemory<Acc>& memory, const AnyRules& rules, const Batch& batch,
              const Options& options) const {
    const MultiHeadConfig& c = layer_.config;
    const IndexList& kv_positions =
        options.kv_positions.empty() ? options.positions : options.kv_positions;
    fill_frequencies(memory.rotary, c.rotary->dim, c.rotary->base);
    for (Index b = 0; b < batch.count; ++b) {
      const Segment s = segment_at(memory, batch, b);
      const Extent extent{c.num_heads, s.query_len, s.kv_len, options.past_len[b]};
      turn_rows(memory, memory.q.middle_rows(s.query_row, s.query_len), c.num_heads,
                options.positions, s.query_row, rules.placed(extent, b, 0).offset);
      turn_rows(memory, memory.k.middle_rows(s.key_row, s.kv_len), c.kv_heads, kv_positions,
                s.key_row, 0);
    }
  }

  /// One sequence's rows of queries or keys.
  /// @param first_row  of the call
  /// @param first      where its tokens begin unless positions say otherwise
  void turn_rows(const LayerMemory<Acc>& memory, const HeadColumns<Acc>& rows, Index heads,
                 const IndexList& positions, Index first_row, Index first) const {
    const Rotary& rotary = *layer_.config.rotary;
    const auto position_of = [&](Index, Index i) {
      if (positions.size() > 1) return positions[first_row + i];
      return clamp_far(positions.empty() ? first : positions[0]) + i;
    };
    rotate_by_frequencies(rows.heads(heads, 1), rotary.dim, rotary.pairs, position_of,
                          memory.rotary);
  }

  const Layer& layer_;
};

/// LayerPass::compute(), and the memory that it takes.
template <class Scalar>
void compute_layer(const LayerView<Scalar>& layer, const LayerInputs<Scalar>& inputs,
                   const LayerRules<accumulator_t<Scalar>>& rules, const MultiHeadOptions& options,
                   const SequenceBatch& batch, const LayerOutputs<Scalar>& outputs) {
  LayerPass<Scalar>(layer).compute(inputs, rules, options, batch, outputs);
}
template <class Scalar>
std::size_t layer_bytes(const char* where, const LayerView<Scalar>& layer, Index query_rows,
                        Index key_rows, const MultiHeadOptions& options) {
  using Acc = accumulator_t<Scalar>;
  check_parameters(where, layer);
  const SequenceBatch batch = cut_sequences(where, query_rows, key_rows, options);
  check_total_size<Acc>(where, layer.config, query_rows, key_rows, batch, false);
  if constexpr (!has_kernels<Acc>) {
    return 0;
  } else {
    if (batch.count == 0) return 0;
    return LayerPass<Scalar>(layer).bytes(query_rows, key_rows, batch, options);
  }
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_LAYER(T)                                                                     \
  MHA_COMPILED_TEMPLATE CheckedCall<T> check_call(const char*, const LayerView<T>&,               \
                                                  const LayerInputs<T>&, const ErasedRules<T>&,   \
                                                  const MultiHeadOptions&);                       \
  MHA_COMPILED_TEMPLATE void check_output(const char*, const LayerView<T>&, const MatrixView<T>&, \
                                          const CheckedCall<T>&);                                 \
  MHA_COMPILED_TEMPLATE void compute_layer(const LayerView<T>&, const LayerInputs<T>&,            \
                                           const LayerRules<T>&, const MultiHeadOptions&,         \
                                           const SequenceBatch&, const LayerOutputs<T>&);         \
  MHA_COMPILED_TEMPLATE std::size_t layer_bytes(const char*, const LayerView<T>&, Index, Index,   \
                                                const MultiHeadOptions&);
MHA_COMPILED_LAYER(float)
MHA_COMPILED_LAYER(double)
#undef MHA_COMPILED_LAYER
#endif

}  // namespace mha::detail
