// SPDX-License-Identifier: MIT
//
// A mask against keep(m) with the same mask drawn out: everything that attention makes of the two,
// forward and backward, has the same bits, on each instruction set.
#pragma once

#include <mha/attention_gradient.hpp>

#include "support/matchers.hpp"
#include "support/targets.hpp"

namespace mha::test {

struct MaskedSizes {
  Index query_len = 1;
  Index kv_len = 1;
  Index batch = 1;
  Index num_heads = 1;
  Index kv_heads = 1;
  Index past_len = 0;  ///< 0: the call says nothing of it
};

/// @param allowed  f(b, h, i, j), what the rule means
template <class Scalar, class RuleType, class F>
void check_bits_of_keep(const RuleType& rule, const MaskedSizes& s, const F& allowed) {
  CAPTURE(s.query_len, s.kv_len, s.batch, s.num_heads, s.past_len);
  Tensor<bool> drawn({s.batch, s.num_heads, s.query_len, s.kv_len});
  for (Index b = 0; b < s.batch; ++b) {
    for (Index h = 0; h < s.num_heads; ++h) {
      for (Index i = 0; i < s.query_len; ++i) {
        for (Index j = 0; j < s.kv_len; ++j) drawn(b, h, i, j) = allowed(b, h, i, j);
      }
    }
  }
  const auto query = random_tensor<Scalar>({s.batch, s.num_heads, s.query_len, 5}, 1);
  const auto key = random_tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, 5}, 2);
  const auto value = random_tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, 4}, 3);
  const auto grad_output = random_tensor<Scalar>({s.batch, s.num_heads, s.query_len, 4}, 4);
  AttentionOptions options{.need_weights = true, .need_lse = true};
  if (s.past_len > 0) options.past_len = s.past_len;
  const auto check = [&] {
    const auto result = attention_forward(query, key, value, rule, options);
    const auto expected = attention_forward(query, key, value, keep(drawn), options);
    const AttentionOptions backward{.past_len = options.past_len};
    const auto gradients =
        attention_backward(grad_output, query, key, value, result, rule, backward);
    const auto expected_gradients =
        attention_backward(grad_output, query, key, value, expected, keep(drawn), backward);
    for (Index b = 0; b < s.batch; ++b) {
      for (Index h = 0; h < s.num_heads; ++h) {
        CAPTURE(b, h);
        CHECK_THAT(result.output.matrix(b, h), HasBitsOf(expected.output.matrix(b, h)));
        CHECK_THAT(result.weights.matrix(b, h), HasBitsOf(expected.weights.matrix(b, h)));
        CHECK_THAT(result.lse.matrix(b, h), HasBitsOf(expected.lse.matrix(b, h)));
        CHECK_THAT(gradients.query.matrix(b, h), HasBitsOf(expected_gradients.query.matrix(b, h)));
      }
      for (Index h = 0; h < s.kv_heads; ++h) {
        CAPTURE(b, h);
        CHECK_THAT(gradients.key.matrix(b, h), HasBitsOf(expected_gradients.key.matrix(b, h)));
        CHECK_THAT(gradients.value.matrix(b, h), HasBitsOf(expected_gradients.value.matrix(b, h)));
      }
    }
  };
  for (const auto target : available_targets()) {
    CAPTURE(kernels::name(target));
    const UsingTarget use(target);
    check();
  }
}

}  // namespace mha::test
