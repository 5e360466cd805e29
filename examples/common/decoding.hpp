// SPDX-License-Identifier: MIT
//
// A decoder block word by word, as in greedy decoding: nothing is computed twice. The keys and values
// of the words so far are kept, those of the context are projected once.
#pragma once

#include <mha/mha.hpp>
#include <vector>

#include "training.hpp"

namespace examples {

/// What a decoder block keeps between words: keys and values of each sequence's words, and of its context.
class DecoderPast {
 public:
  std::vector<mha::KvLayer> words, context;  ///< of each sequence

  /// @param context  the rows of all sequences, `lengths` of each
  /// @param longest  words of a sequence, at the most
  DecoderPast(const DecoderBlock& block, const Matrix<float>& context_rows,
              const std::vector<Index>& lengths, Index longest)
      : words_pool_(pool_of(block.self.layer, std::vector<Index>(lengths.size(), longest))),
        context_pool_(pool_of(block.cross.layer, lengths)) {
    for (std::size_t n = 0; n < lengths.size(); ++n) {
      sequences_.push_back(words_pool_.sequence());
      words.push_back(sequences_.back().layer(0));
      sequences_.push_back(context_pool_.sequence());
      context.push_back(sequences_.back().layer(0));
    }
    block.cross.layer.append(context_rows, context, {.sequences = lengths});
  }

 private:
  static mha::KvPool pool_of(const Attention::Layer& layer, const std::vector<Index>& lengths) {
    Index pages = 0;
    for (const Index length : lengths) pages += length / 128 + 1;
    return mha::KvPool(
        {.kv_heads = layer.kv_heads(), .head_dim = layer.head_dim(), .pages = pages});
  }

  mha::KvPool words_pool_, context_pool_;
  std::vector<mha::KvSequence> sequences_;
};

/// DecoderBlock::forward() at the next word of every sequence, x holding a row for each: x becomes the
/// block's output.
/// @param weights  if given: of the cross-attention, [sequence, head, 1, longest context]
inline void decode_one(DecoderBlock& block, const DecoderPast& past, Matrix<float>& x,
                       mha::Tensor<float>* weights = nullptr) {
  x += block.self.layer(block.norm1.forward(x), past.words, mha::causal());
  auto looked = block.cross.layer.attend(block.norm2.forward(x), past.context, mha::all(),
                                         {.need_weights = weights != nullptr});
  if (weights != nullptr) *weights = std::move(looked.weights);
  x += looked.output;
  x += block.feed_forward.forward(block.norm3.forward(x));
}

}  // namespace examples
