// SPDX-License-Identifier: MIT
//
// READ THIS FIRST. Attention of one head, as the formula says it, for any scalar type:
//     scores  = rules(scale * query * key^T)      query_len x kv_len
//     weights = softmax of each row of scores     over the allowed keys; a row sums to 1, or is 0
//     output  = weights * value                   query_len x value_dim
// This is the specification: everything faster is tested against it. It is also what runs for
// scalar types without a fast path (long double, dual numbers, AutoDiffScalar). score.hpp beside it has
// the score of a pair.
// Source: Vaswani et al. 2017, arXiv:1706.03762, equation (1).
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <optional>
#include <vector>

#include "mha/reference/extra_keys.hpp"
#include "mha/reference/score.hpp"
#include "mha/softmax.hpp"

namespace mha::inline MHA_ABI {

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
  ExtraKeys<Acc> extra{};
  MatrixView<Acc> extra_weights{};  ///< query_len x extra.count()
  /// query_len x 3, if rows are not to be ended (partial.hpp): row_max, row_sum, and 1 if any key is allowed.
  /// The output is then the sum of e^(score - row_max) value. Only the kernels do this.
  MatrixView<Acc> state{};
};

namespace reference {

/// The weights after dropout: themselves without, else in `copy`.
template <class Acc, class RuleSet>
const std::vector<Acc>& dropped(const RuleSet& rules, Index b, Index h, Index i, Index first_key,
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
      copy[k] = dropout.keeps(row, first_key + keys[k]) ? Acc(copy[k] * scale) : Acc(0);
    }
    return copy;
  }
}

/// Scores become weights: e^(score - max) over their sum, which counts the sink too, if there is one.
/// False: there is neither a key nor a sink. Else lse is the logarithm of the sum of all e^score.
template <class Acc>
bool softmax(std::vector<Acc>& scores, const Acc* sink, Acc& lse) {
  using std::exp;
  using std::log;
  if (sink == nullptr && scores.empty()) return false;
  Acc row_max = sink != nullptr ? *sink : scores[0];
  for (const Acc& score : scores) row_max = detail::larger(row_max, score);
  Acc row_sum(0);
  if (sink != nullptr) row_sum = *sink < row_max ? Acc(exp(Acc(*sink - row_max))) : Acc(1);
  for (Acc& score : scores) {
    score = Acc(exp(Acc(score - row_max)));
    row_sum += score;
  }
  for (Acc& weight : scores) weight = Acc(weight / row_sum);
  lse = row_max + Acc(log(row_sum));
  return true;
}

/// output, weights and lse of head h of sequence b. Cost: 2 query_len kv_len (head_dim + value_dim)
/// flops.
template <class Acc, class In, class Out, class RuleSet>
void attend(const RuleSet& rules, const Extent& call_extent, Index b, Index h,
            const HeadTask<In, Out, Acc>& task) {
  const Extent extent = rules.placed(call_extent, b, h);
  const Score<Acc, In, RuleSet> score(rules, extent, b, h, task.query, task.key);
  const Index kv_len = task.key.rows;
  const auto value = [&](Index j, Index c) {
    if (j < kv_len) return detail::convert<Acc>(task.value(j, c));
    return j == kv_len ? task.extra.value[c] : Acc(0);
  };
  const std::optional<Acc> sink = rules.template sink<Acc>(h);
  const bool has_sink = sink && !detail::is_minus_infinity(*sink);
  std::vector<Index> allowed;  // the keys that row i may attend to ...
  std::vector<Acc> weights;    // ... and their scores, then weights
  std::vector<Acc> after_dropout;

  for (Index i = 0; i < task.query.rows; ++i) {
    allowed.clear();
    weights.clear();
    const KeyRange range = score.keys(i);
    for (Index j = range.begin; j < range.end; ++j) {
      Acc s;
      if (!score.modified(i, j, score.capped(score.scaled(i, j)), s)) continue;
      allowed.push_back(j);
      weights.push_back(s);
    }
    if (task.extra.key != nullptr) {
      allowed.push_back(kv_len);
      weights.push_back(score.capped(score.scaled(i, task.extra.key)));
    }
    if (task.extra.zero) {
      allowed.push_back(kv_len + 1);
      weights.push_back(Acc(0));
    }
    Acc lse;
    if (!softmax(weights, has_sink ? &*sink : nullptr, lse)) detail::set_minus_infinity(lse);

    // The weighted sum of the values; nothing allowed gives exactly 0.
    const std::vector<Acc>& kept = dropped(rules, b, h, score.whole_query(i), extent.first_key,
                                           allowed, weights, after_dropout);
    for (Index c = 0; c < task.value.cols; ++c) {
      Acc sum(0);
      for (std::size_t k = 0; k < allowed.size(); ++k) {
        sum += Acc(kept[k] * value(allowed[k], c));
      }
      task.output(i, c) = detail::convert<Out>(sum);
    }
    if (task.weights.data != nullptr) {
      for (Index j = 0; j < kv_len; ++j) task.weights(i, j) = Acc(0);
      for (std::size_t k = 0; k < allowed.size(); ++k) {
        const Index j = allowed[k];
        if (j < kv_len) {
          task.weights(i, j) = weights[k];
        } else {
          task.extra_weights(i, j == kv_len ? 0 : task.extra.count() - 1) = weights[k];
        }
      }
    }
    if (task.lse.data != nullptr) task.lse(i, 0) = lse;
  }
}

}  // namespace reference
}  // namespace mha
