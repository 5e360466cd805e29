// SPDX-License-Identifier: MIT
//
// What one call of the layer comes to: how its rows form sequences, which of its inputs are one matrix, how
// each step is cut into tasks, and how much memory it all takes. Made once per call, and read by every step;
// workspace_bytes() is the size of the largest that such a call may have.
#pragma once

#include <algorithm>

#include "mha/internal/layer/layer_view.hpp"
#include "mha/internal/layer/memory.hpp"
#include "mha/internal/layer/sequences.hpp"
#include "mha/internal/projection/forward.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI::detail {

/// Which inputs of a call are one matrix: what is projected from one is projected together.
enum class Inputs { all_apart, one_context, one_matrix };

/// What a call is, for its plan.
struct LayerCallKind {
  Inputs inputs = Inputs::all_apart;
  bool contiguous_output = true;
  bool keeps_lse = false;       ///< for a backward pass
  Index caches = 0;             ///< in which the keys are kept
  bool converts_pages = false;  ///< some of them in another type than that of the sums
};

/// Of a layer the sizes count, and whether its weights are prepacked, not its numbers.
template <class Scalar>
class LayerPlan {
 public:
  using Acc = accumulator_t<Scalar>;
  using Layer = LayerView<Scalar>;

  SequenceBatch batch;
  LayerSizes sizes;
  /// What is projected from one matrix: q alone or with k and v; k alone or with v; v.
  struct Group {
    int first = 0;  ///< 0 = q, 1 = k, 2 = v
    int count = 0;
    ProjectionPlan<Acc> plan;
  };
  std::array<Group, 3> groups;
  int num_groups = 0;
  ProjectionPlan<Acc> out;
  AttentionPlan<Acc> attention;

  LayerPlan(const Layer& layer, Index query_rows, Index key_rows, const SequenceBatch& sequences,
            const LayerCallKind& kind, const Executor& executor)
      : batch(sequences) {
    const MultiHeadConfig& c = layer.config;
    sizes.query_rows = query_rows;
    sizes.key_rows = key_rows;
    sizes.num_caches = kind.caches;
    measure(layer, kind.keeps_lse);
    group_inputs(layer.q_proj.is_read_in_place() ? kind.inputs : Inputs::all_apart);
    if constexpr (has_kernels<Acc>) {
      plan_inputs(layer, executor);
      out = projection_plan<Acc, Acc, Scalar>(query_rows, sizes.concat_width, c.out_dim, 1,
                                              kind.contiguous_output, layer.out_proj.prepacked,
                                              executor);
      attention = {batch.count,         c.num_heads, c.kv_heads,  batch.query_len,
                   batch.kv_len,        c.head_dim,  c.value_dim, c.add_bias_kv,
                   kind.converts_pages, 0,           executor};
      // The steps take turns in one piece of memory.
      sizes.scratch = std::max({sizes.scratch, out.bytes(), attention.bytes()});
    }
  }

  /// Of the block that the call works in.
  std::size_t bytes() const { return layer_bytes<Acc>(sizes); }

 private:
  /// Which widths its matrices have.
  void measure(const Layer& layer, bool keeps_lse) {
    const MultiHeadConfig& c = layer.config;
    sizes.extra_key = c.add_bias_kv;
    sizes.query_width = c.num_heads * c.head_dim;
    sizes.key_width = c.kv_heads * c.head_dim;
    sizes.value_width = c.kv_heads * c.value_dim;
    sizes.concat_width = c.num_heads * c.value_dim;
    sizes.lse_width = keeps_lse ? c.num_heads : 0;
    sizes.num_segments = batch.ragged ? batch.count : 0;
    sizes.rotary_pairs = c.rotary ? c.rotary->dim / 2 : 0;
    for (const auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
      if (linear->is_read_in_place()) continue;
      sizes.wide_weight = std::max(sizes.wide_weight, linear->inputs() * linear->outputs());
      sizes.wide_bias = std::max(sizes.wide_bias, linear->bias.cols);
    }
  }

  void group_inputs(Inputs inputs) {
    num_groups = inputs == Inputs::one_matrix ? 1 : inputs == Inputs::one_context ? 2 : 3;
    for (int g = 0; g < num_groups; ++g) {
      groups[static_cast<std::size_t>(g)].first = g;
      groups[static_cast<std::size_t>(g)].count = g + 1 < num_groups ? 1 : 4 - num_groups;
    }
  }

  /// How the inputs are projected, and where the heads of q, k and v lie.
  void plan_inputs(const Layer& layer, const Executor& executor) {
    const MultiHeadConfig& c = layer.config;
    const Index inputs[3] = {c.embed_dim, c.kdim, c.vdim};
    const Index widths[3] = {sizes.query_width, sizes.key_width, sizes.value_width};
    const Index rows[3] = {sizes.query_rows, sizes.key_rows, sizes.key_rows};
    for (int g = 0; g < num_groups; ++g) {
      Group& group = groups[static_cast<std::size_t>(g)];
      const Index* const width = widths + group.first;
      group.plan = projection_plan<Acc, Scalar, Acc>(
          rows[group.first], inputs[group.first], *std::max_element(width, width + group.count),
          group.count, true, layer.q_proj.prepacked, executor);
      sizes.scratch = std::max(sizes.scratch, group.plan.bytes());
    }
    // Prepacked weights or not: heads of many rows each lie by themselves, as attention reads them.
    const auto lie = [&](int n, Index heads) {
      const auto way = kernels::way_to_project(rows[n], inputs[n], widths[n], false, false);
      return way == kernels::ProjectWay::in_place ? 1 : heads;
    };
    sizes.query_heads = lie(0, c.num_heads);
    sizes.key_heads = lie(1, c.kv_heads);
    sizes.value_heads = lie(2, c.kv_heads);
  }
};

}  // namespace mha::detail
