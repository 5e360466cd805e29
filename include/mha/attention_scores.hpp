// SPDX-License-Identifier: MIT
//
// What the softmax sees, for looking at: the matrix of scores at one of its stages. Attention
// itself never holds it whole.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/attention.hpp"
#include "mha/reference/score.hpp"

namespace mha::inline MHA_ABI {

enum class ScoreStage {
  scaled,    ///< scale * query * key^T
  capped,    ///< after softcap
  modified,  ///< after score modifiers, biases and masks; -inf where not allowed
};

/// What attention_scores() may be told besides its rule.
struct AttentionScoresOptions {
  ScoreStage stage = ScoreStage::modified;  ///< which matrix to return
  IndexList past_len{};                     ///< as in AttentionOptions
  Box box{};                                ///< as in AttentionOptions
};

namespace detail {

/// One head's.
template <class Score, class Acc>
void write_scores(const Score& score, ScoreStage stage, const MatrixView<Acc>& to) {
  for (Index i = 0; i < to.rows; ++i) {
    const KeyRange range = score.keys(i);
    for (Index j = 0; j < to.cols; ++j) {
      Acc& s = to(i, j);
      s = score.scaled(i, j);
      if (stage == ScoreStage::scaled) continue;
      s = score.capped(s);
      if (stage == ScoreStage::capped) continue;
      const Acc capped = s;
      const bool allowed = j >= range.begin && j < range.end && score.modified(i, j, capped, s);
      if (!allowed) set_minus_infinity(s);
    }
  }
}

}  // namespace detail

/// scale * query * key^T, softcap, modifiers and masks, as far as `stage` says.
/// @param query, key      as in attention()
/// @param rule, options   a rule, options, a rule and options, or nothing:
///                        attention_scores(q, k, causal(), {.stage = ScoreStage::scaled})
/// @return [batch, num_heads, query_len, kv_len], in the accumulator's type
/// @throws std::invalid_argument as attention() does
/// Cost: 2 batch num_heads query_len kv_len head_dim flops, in plain loops.
template <TensorLike Q, TensorLike K, class R = AttentionScoresOptions,
          class O = detail::Following<AttentionScoresOptions, R>>
[[nodiscard]] auto attention_scores(const Q& query, const K& key, const R& rule = R{},
                                    const O& options = O{}) {
  using Scalar = detail::element_t<const Q>;
  using Acc = accumulator_t<Scalar>;
  const auto given = detail::rule_and_options<AttentionScoresOptions>(rule, options);
  static_assert(detail::TypesFit<Scalar, detail::element_t<const K>, Scalar,
                                 detail::rule_t<decltype(given)>>::kChecked);
  decltype(auto) rules = detail::as_rules(given.rule());
  const ScoreStage stage = given.options().stage;
  const IndexList& past_len = given.options().past_len;
  const Box& box = given.options().box;
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const CallExtent call = detail::check_attention<Scalar>("attention_scores", q, k, k,
                                                          detail::erased<Acc>(rules), past_len, box)
                              .first;
  detail::require(
      stage == ScoreStage::scaled || stage == ScoreStage::capped || stage == ScoreStage::modified,
      "attention_scores: stage must be one of ScoreStage's, got ", static_cast<int>(stage));
  detail::check_count("attention_scores", "the result",
                      {call.batch, call.num_heads, call.query_len, call.kv_len}, sizeof(Acc));
  Tensor<Acc> scores({call.batch, call.num_heads, call.query_len, call.kv_len});
  const Index group_size = call.num_heads == 0 ? 1 : call.num_heads / k.size(1);
  for (Index b = 0; b < call.batch; ++b) {
    const Extent sizes =
        detail::extent_of(box, call.num_heads, call.query_len, call.kv_len, past_len[b]);
    const Index whole_b = box.first_batch + b;
    for (Index h = 0; h < call.num_heads; ++h) {
      const reference::Score<Acc, Scalar, std::remove_cvref_t<decltype(rules)>> score(
          rules, rules.placed(sizes, whole_b, box.first_head + h), whole_b, box.first_head + h,
          q.matrix(b, h), k.matrix(b, h / group_size));
      detail::write_scores(score, stage, scores.view().matrix(b, h));
    }
  }
  return scores;
}

}  // namespace mha
