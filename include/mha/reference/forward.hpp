// SPDX-License-Identifier: MIT
//
// READ THIS FIRST. Attention of one head, as the formula says it, for any scalar type:
//     scores  = rules(scale * query * key^T)      query_len x kv_len
//     weights = softmax of each row of scores     over the allowed keys; a row sums to 1, or is 0
//     output  = weights * value                   query_len x value_dim
// This is the specification: everything faster is tested against it. It is also what runs for
// scalar types without a fast path (long double, dual numbers, AutoDiffScalar). Every product and
// sum is made an Acc at once: the operators of some such numbers return expressions, which do not
// nest.
// Source: Vaswani et al. 2017, arXiv:1706.03762, equation (1).
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <vector>

#include "mha/rules/combine.hpp"
#include "mha/softmax.hpp"

namespace mha {

/// One head of one sequence: what is read, and where the results go. A null `weights.data` or
/// `lse.data` means that it is not wanted.
template <class In, class Out, class Acc = accumulator_t<In>>
struct HeadTask {
  MatrixView<const In> query;  ///< query_len x head_dim
  MatrixView<const In> key;    ///< kv_len x head_dim
  MatrixView<const In> value;  ///< kv_len x value_dim
  MatrixView<Out> output;      ///< query_len x value_dim
  MatrixView<Acc> weights;     ///< query_len x kv_len
  MatrixView<Acc> lse;         ///< query_len x 1
};

namespace reference {

/// The weights after dropout: themselves without, else in `copy`.
template <class Acc, class RuleSet>
const std::vector<Acc>& dropped(const RuleSet& rules, Index b, Index h, Index i,
                                const std::vector<Index>& keys, const std::vector<Acc>& weights,
                                std::vector<Acc>& copy) {
  if constexpr (!RuleSet::kHasDropout) {
    return weights;
  } else {
    const auto& dropout = *rules.dropout();
    const auto row = dropout.row(b, h, i);
    const auto scale = dropout.template dropout_scale<Acc>();
    copy = weights;
    for (std::size_t k = 0; k < keys.size(); ++k) {
      copy[k] = dropout.keeps(row, keys[k]) ? Acc(copy[k] * scale) : Acc(0);
    }
    return copy;
  }
}

/// output, weights and lse of head h of sequence b. Cost: 2 query_len kv_len (head_dim + value_dim)
/// flops.
template <class Acc, class In, class Out, class RuleSet>
void attend(const RuleSet& rules, const Extent& call_extent, Index b, Index h,
            const HeadTask<In, Out, Acc>& task) {
  using std::exp;
  using std::log;
  using std::tanh;
  const Extent extent = rules.placed(call_extent, b, h);
  const Acc scale = rules.template scale<Acc>(task.query.cols);
  const Acc softcap = rules.template softcap<Acc>();
  std::vector<Index> allowed;  // the keys that row i may attend to ...
  std::vector<Acc> weights;    // ... and their scores, then weights
  std::vector<Acc> after_dropout;

  for (Index i = 0; i < extent.query_len; ++i) {
    allowed.clear();
    weights.clear();
    // Scores of the allowed keys.
    const KeyRange range = rules.keys(extent, b, h, i);
    for (Index j = range.begin; j < range.end; ++j) {
      if (!rules.allowed(extent, b, h, i, j)) continue;
      Acc score(0);
      for (Index d = 0; d < task.query.cols; ++d) {
        score += Acc(detail::convert<Acc>(task.query(i, d)) * detail::convert<Acc>(task.key(j, d)));
      }
      score = Acc(scale * score);
      if (rules.kHasSoftcap && softcap > Acc(0))
        score = Acc(softcap * Acc(tanh(Acc(score / softcap))));
      score = rules.score(score, extent, b, h, i, j);
      if (rules.kScoreMayMask && detail::is_minus_infinity(score)) continue;
      allowed.push_back(j);
      weights.push_back(score);
    }

    // Softmax: row_max over the allowed keys and the sink, if there is one.
    std::optional<Acc> row_max = rules.template sink<Acc>(h);
    if (row_max && detail::is_minus_infinity(*row_max)) row_max.reset();
    Acc row_sum(row_max ? 1 : 0);
    if (row_max) {
      const Acc sink = *row_max;
      for (const Acc& score : weights) row_max = detail::larger(*row_max, score);
      row_sum = sink < *row_max ? Acc(exp(Acc(sink - *row_max))) : Acc(1);
    } else {
      for (const Acc& score : weights) row_max = row_max ? detail::larger(*row_max, score) : score;
    }
    for (Acc& weight : weights) {
      weight = Acc(exp(Acc(weight - *row_max)));
      row_sum += weight;
    }
    for (Acc& weight : weights) weight = Acc(weight / row_sum);

    // Output: the weighted sum of the values; nothing allowed gives exactly 0.
    const std::vector<Acc>& kept = dropped(rules, b, h, i, allowed, weights, after_dropout);
    for (Index c = 0; c < task.value.cols; ++c) {
      Acc sum(0);
      for (std::size_t k = 0; k < allowed.size(); ++k) {
        sum += Acc(kept[k] * detail::convert<Acc>(task.value(allowed[k], c)));
      }
      task.output(i, c) = detail::convert<Out>(sum);
    }
    if (task.weights.data != nullptr) {
      for (Index j = 0; j < extent.kv_len; ++j) task.weights(i, j) = Acc(0);
      for (std::size_t k = 0; k < allowed.size(); ++k) {
        task.weights(i, allowed[k]) = weights[k];
      }
    }
    if (task.lse.data != nullptr) {
      if (row_max) {
        task.lse(i, 0) = *row_max + Acc(log(row_sum));
      } else {
        detail::set_minus_infinity(task.lse(i, 0));
      }
    }
  }
}

}  // namespace reference
}  // namespace mha
