// SPDX-License-Identifier: MIT
//
// What the softmax sees, for looking at: the matrix of scores at one of its stages. Attention
// itself never holds it whole.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/attention.hpp"

namespace mha {

enum class ScoreStage {
  scaled,    ///< scale * query * key^T
  capped,    ///< after softcap
  modified,  ///< after score modifiers, biases and masks; -inf where not allowed
};

/// What attention_scores() may be told besides its rule.
struct AttentionScoresOptions {
  ScoreStage stage = ScoreStage::modified;  ///< which matrix to return
  IndexList past_len{};                     ///< as in AttentionOptions
};

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
  using std::tanh;
  const auto given = detail::rule_and_options<AttentionScoresOptions>(rule, options);
  static_assert(detail::TypesFit<Scalar, detail::element_t<const K>, Scalar,
                                 detail::rule_t<decltype(given)>>::kChecked);
  decltype(auto) rules = detail::as_rules(given.rule());
  const ScoreStage stage = given.options().stage;
  const IndexList& past_len = given.options().past_len;
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const CallExtent call =
      detail::check_attention<Scalar>("attention_scores", q, k, k, rules, past_len).first;
  detail::require(
      stage == ScoreStage::scaled || stage == ScoreStage::capped || stage == ScoreStage::modified,
      "attention_scores: stage must be one of ScoreStage's, got ", static_cast<int>(stage));
  detail::check_count("attention_scores", "the result",
                      {call.batch, call.num_heads, call.query_len, call.kv_len}, sizeof(Acc));
  const Acc scale = rules.template scale<Acc>(q.size(3));
  const Acc softcap = rules.template softcap<Acc>();
  Tensor<Acc> scores({call.batch, call.num_heads, call.query_len, call.kv_len});
  const Index group_size = call.num_heads == 0 ? 1 : call.num_heads / k.size(1);
  for (Index b = 0; b < call.batch; ++b) {
    const Extent sizes{call.num_heads, call.query_len, call.kv_len, past_len[b]};
    for (Index h = 0; h < call.num_heads; ++h) {
      const Extent extent = rules.placed(sizes, b, h);
      for (Index i = 0; i < call.query_len; ++i) {
        const KeyRange range = rules.keys(extent, b, h, i);
        for (Index j = 0; j < call.kv_len; ++j) {
          Acc& score = scores(b, h, i, j);
          score = Acc(0);
          for (Index d = 0; d < q.size(3); ++d) {
            score += Acc(detail::convert<Acc>(q(b, h, i, d)) *
                         detail::convert<Acc>(k(b, h / group_size, j, d)));
          }
          score = Acc(scale * score);
          if (stage == ScoreStage::scaled) continue;
          if (softcap > Acc(0)) score = Acc(softcap * Acc(tanh(Acc(score / softcap))));
          if (stage == ScoreStage::capped) continue;
          const bool allowed =
              j >= range.begin && j < range.end && rules.allowed(extent, b, h, i, j);
          if (allowed) {
            score = rules.score(score, extent, b, h, i, j);
          } else {
            detail::set_minus_infinity(score);
          }
        }
      }
    }
  }
  return scores;
}

}  // namespace mha
