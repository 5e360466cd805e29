// SPDX-License-Identifier: MIT
//
// The backward pass of one head, as the formulas say it, for any scalar type: each step beside the
// line of forward.hpp that it undoes. What attention_gradient.hpp's fast path is tested against, and what
// runs for scalars without one. With s the capped score, S = rules(s), P = softmax(S), O = P V and
// the loss L:
//     dV_j  = sum_i P_ij dO_i            dP_ij = dO_i . V_j
//     delta_i = sum_j P_ij dP_ij         dS_ij = P_ij (dP_ij - delta_i)
//     ds_ij = dS_ij dS/ds                the rules' own derivatives
//     dQ_i  = scale sum_j ds_ij K_j      dK_j  = scale sum_i ds_ij Q_i
// Masked pairs are never looked at: no NaN or infinity behind a mask reaches a gradient, and a row
// that may attend to nothing has the gradient 0.
// Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, section 2.2.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <optional>
#include <vector>

#include "mha/reference/extra_keys.hpp"
#include "mha/reference/score.hpp"

namespace mha::inline MHA_ABI {

/// The backward pass of one query head of one sequence.
template <class In, class Acc = accumulator_t<In>>
struct HeadGradientTask {
  MatrixView<const In> query;        ///< query_len x head_dim
  MatrixView<const In> key;          ///< kv_len x head_dim
  MatrixView<const In> value;        ///< kv_len x value_dim
  MatrixView<const In> output;       ///< query_len x value_dim, of the forward pass
  MatrixView<const Acc> lse;         ///< query_len x 1, of the forward pass
  MatrixView<const In> grad_output;  ///< query_len x value_dim
  MatrixView<In> grad_query;         ///< query_len x head_dim
  MatrixView<Acc> grad_key;          ///< kv_len x head_dim: added to
  MatrixView<Acc> grad_value;        ///< kv_len x value_dim: added to
  ExtraKeys<Acc> extra{};
  Acc* grad_extra_key = nullptr;  ///< [head_dim]: added to
  Acc* grad_extra_value = nullptr;
};

namespace reference {

/// What dropout multiplies a weight by: 0, or 1 / (1 - p).
template <class Acc, class RuleSet>
Acc dropout_factor(const RuleSet& rules, Index b, Index h, Index i, Index j) {
  if constexpr (RuleSet::kHasDropout) {
    const auto& dropout = *rules.dropout();
    return dropout.keeps(dropout.row(b, h, i), j) ? dropout.template dropout_scale<Acc>() : Acc(0);
  } else {
    return Acc(1);
  }
}

/// A query row and a key that it may attend to.
template <class Acc>
struct GradientPair {
  Index j;
  Acc capped;       ///< s
  Acc weight;       ///< P
  Acc grad_weight;  ///< dP
};

/// The pairs of row i, their weights once more from lse.
template <class Acc, class In, class RuleSet>
void find_pairs(const Score<Acc, In, RuleSet>& score, Index i, const Acc& lse, const Acc* extra_key,
                Index kv_len, std::vector<GradientPair<Acc>>& pairs) {
  using std::exp;
  pairs.clear();
  const KeyRange range = score.keys(i);
  for (Index j = range.begin; j < range.end; ++j) {
    const Acc capped = score.capped(score.scaled(i, j));
    Acc modified;
    if (!score.modified(i, j, capped, modified)) continue;
    pairs.push_back({j, capped, Acc(exp(Acc(modified - lse))), Acc(0)});
  }
  if (extra_key == nullptr) return;
  const Acc capped = score.capped(score.scaled(i, extra_key));
  pairs.push_back({kv_len, capped, Acc(exp(Acc(capped - lse))), Acc(0)});
}

/// dP and dV of row i. Returns delta, which is also what a sink's weight would have gained.
template <class Acc, class In, class RuleSet>
Acc grad_of_values(const RuleSet& rules, const Extent& extent, Index b, Index h, Index i,
                   const HeadGradientTask<In, Acc>& task, std::vector<GradientPair<Acc>>& pairs) {
  Acc delta(0);
  for (GradientPair<Acc>& pair : pairs) {
    const Acc kept =
        dropout_factor<Acc>(rules, b, h, extent.first_query + i, extent.first_key + pair.j);
    const bool extra = pair.j == task.key.rows;
    for (Index c = 0; c < task.value.cols; ++c) {
      const Acc grad_output(kept * detail::convert<Acc>(task.grad_output(i, c)));
      const Acc value = extra ? task.extra.value[c] : detail::convert<Acc>(task.value(pair.j, c));
      pair.grad_weight += Acc(grad_output * value);
      Acc& sum = extra ? task.grad_extra_value[c] : task.grad_value(pair.j, c);
      sum += Acc(pair.weight * grad_output);
    }
    delta += Acc(pair.weight * pair.grad_weight);
  }
  return delta;
}

/// Gradients of head h of sequence b. Cost: 4 query_len kv_len (head_dim + value_dim) flops and more.
template <class Acc, class In, class RuleSet>
void backward(const RuleSet& rules, const Extent& call_extent, Index b, Index h,
              const HeadGradientTask<In, Acc>& task) {
  using std::exp;
  const Extent extent = rules.placed(call_extent, b, h);
  const Score<Acc, In, RuleSet> score(rules, extent, b, h, task.query, task.key);
  std::vector<GradientPair<Acc>> pairs;
  std::vector<Acc> grad_query(static_cast<std::size_t>(task.query.cols));

  for (Index i = 0; i < task.query.rows; ++i) {
    const Acc lse = task.lse(i, 0);
    find_pairs(score, i, lse, task.extra.key, task.key.rows, pairs);
    const Acc delta = grad_of_values(rules, extent, b, h, i, task, pairs);
    // dS, ds, dQ, dK.
    grad_query.assign(grad_query.size(), Acc(0));
    for (const GradientPair<Acc>& pair : pairs) {
      Acc grad(pair.weight * Acc(pair.grad_weight - delta));
      const bool extra = pair.j == task.key.rows;
      if (!extra) grad = score.modified_gradient(i, pair.j, pair.capped, grad);
      grad = Acc(score.capped_gradient(pair.capped, grad) * score.scale());
      for (Index d = 0; d < task.query.cols; ++d) {
        const Acc key = extra ? task.extra.key[d] : detail::convert<Acc>(task.key(pair.j, d));
        grad_query[static_cast<std::size_t>(d)] += Acc(grad * key);
        Acc& sum = extra ? task.grad_extra_key[d] : task.grad_key(pair.j, d);
        sum += Acc(grad * detail::convert<Acc>(task.query(i, d)));
      }
    }
    for (Index d = 0; d < task.query.cols; ++d) {
      task.grad_query(i, d) = detail::convert<In>(grad_query[static_cast<std::size_t>(d)]);
    }
    if constexpr (RuleSet::kCollectsGradient) {
      const std::optional<Acc> sink = rules.template sink<Acc>(h);
      // A sink of +infinity takes all the weight: its gradient is 0.
      if (sink && !detail::is_minus_infinity(*sink) && !detail::is_minus_infinity(Acc(-*sink))) {
        detail::collect_sink_gradient(rules, h, Acc(-Acc(Acc(exp(Acc(*sink - lse))) * delta)));
      }
    }
  }
}

}  // namespace reference
}  // namespace mha
