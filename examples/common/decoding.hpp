// SPDX-License-Identifier: MIT
//
// A decoder block word by word, as in greedy decoding: nothing is computed twice. The keys and values
// of the words so far are kept, those of the context are projected once.
#pragma once

#include <mha/mha.hpp>
#include <vector>

#include "training.hpp"

namespace examples {

/// What a decoder block keeps between words: a row per sequence, in it token after token.
struct DecoderPast {
  Matrix<float> keys, values, context_keys, context_values;

  /// @param context_keys, context_values  projected: a row per sequence, token after token
  DecoderPast(Index sequences, Index longest, Index width, Matrix<float> projected_keys,
              Matrix<float> projected_values)
      : keys(Matrix<float>::Zero(sequences, longest * width)),
        values(keys),
        context_keys(std::move(projected_keys)),
        context_values(std::move(projected_values)) {}
};

template <class Projection>
Matrix<float> apply_linear(const Projection& linear, const Matrix<float>& x) {
  return (x * linear.weight).rowwise() + linear.bias;
}

/// DecoderBlock::forward() at word `place` of every sequence, x holding a row for each: x becomes the
/// block's output.
/// @param context_rule  who of the context may be looked at, lengths(n) say
/// @param weights       if given: of the cross-attention, sequences x (heads * context tokens)
template <class RuleType = mha::All>
void decode_one(DecoderBlock& block, DecoderPast& past, Matrix<float>& x, Index place,
                const RuleType& context_rule = {}, Matrix<float>* weights = nullptr) {
  const Index width = x.cols();
  const Index heads = block.self.layer.num_heads();
  const Index channels = width / heads;
  const auto tokens = [&](const Matrix<float>& rows, Index number) {
    return mha::TensorView<const float>(rows.data(), {x.rows(), heads, number, channels},
                                        {rows.cols(), channels, width, 1});
  };
  Matrix<float> mixed(x.rows(), width);
  mha::AttentionOutputs<float> outputs{.output = mha::split_heads(mixed, heads, x.rows())};

  const auto& self = block.self.layer;
  const Matrix<float> normal = block.norm1.forward(x);
  past.keys.middleCols(place * width, width) = apply_linear(self.k_proj, normal);
  past.values.middleCols(place * width, width) = apply_linear(self.v_proj, normal);
  Matrix<float> query = apply_linear(self.q_proj, normal);
  mha::attention_into(outputs, mha::split_heads(query, heads, x.rows()),
                      tokens(past.keys, place + 1), tokens(past.values, place + 1));
  x += apply_linear(self.out_proj, mixed);

  const auto& cross = block.cross.layer;
  query = apply_linear(cross.q_proj, block.norm2.forward(x));
  const Index number = past.context_keys.cols() / width;
  if (weights != nullptr) outputs.weights = {weights->data(), {x.rows(), heads, 1, number}};
  mha::attention_into(outputs, mha::split_heads(query, heads, x.rows()),
                      tokens(past.context_keys, number), tokens(past.context_values, number),
                      context_rule);
  x += apply_linear(cross.out_proj, mixed);
  x += block.feed_forward.forward(block.norm3.forward(x));
}

}  // namespace examples
