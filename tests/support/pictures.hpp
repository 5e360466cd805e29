// SPDX-License-Identifier: MIT
//
// Masks as pictures: 'x' where query row i (a word) may attend to key row j (a letter), '.' where
// not. Taken from attention itself, twice: from its weights and from attention_scores().
#pragma once

#include <mha/attention_scores.hpp>

#include <string>

#include "support/numbers.hpp"

namespace mha::test {

struct PictureSizes {
  Index query_len = 1;
  Index kv_len = 1;
  Index past_len = 0;  ///< 0: the call says nothing of it
  Index batch = 1;
  Index num_heads = 1;
};

/// The picture of head h of sequence b, all scores being equal. A word of '?' where the weights,
/// the output, lse or attention_scores() contradict each other.
template <class RuleType>
std::string picture(const RuleType& rule, const PictureSizes& sizes, Index b = 0, Index h = 0) {
  const Tensor<float> query({sizes.batch, sizes.num_heads, sizes.query_len, 1});
  const Tensor<float> key({sizes.batch, 1, sizes.kv_len, 1});
  Tensor<float> value({sizes.batch, 1, sizes.kv_len, 1});
  for (Index j = 0; j < sizes.kv_len; ++j) value(b, 0, j, 0) = 1;
  const IndexList past_len = sizes.past_len == 0 ? IndexList() : IndexList(sizes.past_len);
  const auto result = attention_forward(
      query, key, value, rule, {.past_len = past_len, .need_weights = true, .need_lse = true});
  const auto scores = attention_scores(query, key, rule, {.past_len = past_len});
  std::string text;
  for (Index i = 0; i < sizes.query_len; ++i) {
    std::string row;
    Index count = 0;
    bool consistent = true;
    for (Index j = 0; j < sizes.kv_len; ++j) {
      const bool seen = result.weights(b, h, i, j) > 0;
      row += seen ? 'x' : '.';
      count += seen ? 1 : 0;
      consistent = consistent && seen != detail::is_minus_infinity(scores(b, h, i, j)) &&
                   (seen || equal_bits(result.weights(b, h, i, j), 0.0F));
    }
    // Equal weights of values 1 give 1, up to the rounding of their sum; nothing gives exactly 0.
    const float output = result.output(b, h, i, 0);
    const bool nothing = detail::is_minus_infinity(result.lse(b, h, i, 0));
    consistent = consistent && nothing == (count == 0) &&
                 (count == 0 ? equal_bits(output, 0.0F) : output > 0.999F && output < 1.001F);
    if (!consistent) row.assign(row.size(), '?');
    text += (i == 0 ? "" : " ") + row;
  }
  return text;
}

/// The picture of a call with one head of one sequence.
template <class RuleType>
std::string picture(const RuleType& rule, Index query_len, Index kv_len, Index past_len = 0) {
  return picture(rule, PictureSizes{query_len, kv_len, past_len});
}

}  // namespace mha::test
