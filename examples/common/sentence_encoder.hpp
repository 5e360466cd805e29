// SPDX-License-Identifier: MIT
//
// The whole Universal Sentence Encoder lite: two transformer blocks whose attention comes from this
// library. The weights (28 MB, Apache-2.0) are fetched once, see data/README.md. Needs utf8proc.
// Source: Cer et al. 2018, arXiv:1803.11175.
#pragma once

#include <utf8proc.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <mha/io/safetensors.hpp>
#include <mha/mha.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "sentencepiece.hpp"
#include "transformer.hpp"
#include "weights.hpp"

namespace examples {

/// Unicode's form NFKC, in which the model's vocabulary is written.
inline std::string nfkc(const std::string& text) {
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> normal(
      utf8proc_NFKC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())), &std::free);
  if (!normal) throw std::invalid_argument("a sentence must be UTF-8");
  return reinterpret_cast<const char*>(normal.get());
}

class SentenceEncoder {
 public:
  static constexpr std::size_t kMaxTokens = 128;  ///< the most that the model reads

  SentenceEncoder(const std::string& weights_path, const std::string& vocab_path)
      : file_(mha::io::Safetensors::read(weights_path)),
        pieces_(SentencePiece::read(vocab_path)),
        embed_(file_.matrix<float>("embed")) {
    load_attention(attention_[0], file_, "layer0.");
    load_attention(attention_[1], file_, "layer1.");
  }

  /// 512 numbers of length 1. Text beyond 128 tokens is left out, which is said on stderr.
  RowVector<float> operator()(const std::string& text) const {
    return meaning(token_rows(tokens(text)));
  }

  /// The pieces of the text, at most 128 of them.
  std::vector<Token> tokens(const std::string& text) const {
    std::vector<Token> tokens = pieces_.encode(nfkc(text));
    if (tokens.empty()) throw std::invalid_argument("a sentence must not be empty");
    if (tokens.size() > kMaxTokens) {
      std::cerr << "note: of " << tokens.size() << " tokens the first " << kMaxTokens
                << " are read\n";
      tokens.resize(kMaxTokens);
    }
    return tokens;
  }

  /// What the transformer makes of each token in its sentence: tokens x 512.
  Matrix<float> token_rows(const std::vector<Token>& tokens) const { return layers(tokens).back(); }

  /// The tokens' embeddings, tokens x 256, and what each of the two blocks makes of them, tokens x
  /// 512.
  std::vector<Matrix<float>> layers(const std::vector<Token>& tokens) const {
    Matrix<float> embedded(static_cast<mha::Index>(tokens.size()), embed_.cols());
    for (mha::Index i = 0; const Token& token : tokens) embedded.row(i++) = embed_.row(token.id);
    Matrix<float> x =
        2 * embedded + sinusoidal_positions(embedded.rows(), row(file_, "timing_inv"));
    std::vector<Matrix<float>> all{embedded};

    // Each block: x = x + attention(norm(x)), x = x + feed_forward(norm(x)). The first attention
    // widens from 256 to 512, so a linear map takes x along.
    for (const std::size_t b : {0u, 1u}) {
      const std::string block = "layer" + std::to_string(b) + ".";
      const Matrix<float> attended = attention_[b](norm(x, block + "ln1"));
      x = attended + (b == 0 ? linear_map(x, block + "res_") : x);
      const Matrix<float> hidden =
          linear_map(norm(x, block + "ln2"), block + "ffn_", "1").cwiseMax(0.0f);
      x += linear_map(hidden, block + "ffn_", "2");
      all.push_back(x);
    }
    return all;
  }

  /// The sentence's 512 numbers from those of its tokens.
  RowVector<float> meaning(const Matrix<float>& token_rows) const {
    const Matrix<float> mean = token_rows.colwise().mean();
    return linear_map(mean, "out_").array().tanh().matrix().row(0).normalized();
  }

 private:
  Matrix<float> linear_map(const Matrix<float>& x, const std::string& name,
                           const std::string& n = "") const {
    return linear(x, file_.matrix<float>(name + "w" + n), row(file_, name + "b" + n));
  }
  Matrix<float> norm(const Matrix<float>& x, const std::string& name) const {
    return layer_norm(x, row(file_, name + "_g"), row(file_, name + "_b"));
  }

  mha::io::Safetensors file_;
  SentencePiece pieces_;
  Matrix<float> embed_;
  mha::MultiHead<float, 4> attention_[2] = {
      mha::MultiHead<float, 4>({.embed_dim = 256, .out_dim = 512}),
      mha::MultiHead<float, 4>({.embed_dim = 512})};
};

}  // namespace examples
