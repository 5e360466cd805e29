// SPDX-License-Identifier: MIT
//
// Which word looks at which? A trained attention layer reads a sentence: the first layer of the
// Universal Sentence Encoder lite, four heads of 64, with the weights in data/.
//
//   05_sentence_attention                                   reads the sentence below
//   05_sentence_attention "The cat sat on my chair."        reads yours
//   05_sentence_attention "The cat sat." --page cat.html    says where to write the page
//
// A line tells at which other word a word looks most, head by head: "< girl" is an earlier word,
// "> friends" a later one, and "itself" means that no other gets 10 %. Here head 1 finds whom "her"
// and "their" mean, head 2 the noun that a phrase is about; head 3 looks one word ahead, head 4 one
// back. Nobody programmed that: it was learnt. The page shows all weights; open it in a browser.
//
// Output:
//   The girl sent her friends a picture of their dog.
//
//                   head 1          head 2          head 3          head 4
//   The             > girl 25%      > girl 43%      > girl 53%      > . 24%
//   girl            < The 49%       itself 99%      > sent 43%      < The 48%
//   sent            < girl 30%      itself 97%      > her 35%       itself 97%
//   her             < girl 84%      > friends 25%   > friends 54%   < sent 27%
//   friends         < her 40%       itself 98%      > a 16%         < her 38%
//   a               < friends 32%   > picture 79%   > picture 48%   < friends 40%
//   picture         < her 23%       itself 100%     > of 38%        < a 17%
//   of              < The 16%       < picture 88%   > their 65%     < picture 67%
//   their           < friends 38%   > dog 47%       > dog 54%       < of 14%
//   dog             < their 33%     itself 100%     > . 16%         < their 22%
//   .               < friends 13%   < dog 13%       itself 93%      < dog 17%
//
//   All weights as a picture: attention.html
#include <cmath>
#include <exception>
#include <fstream>
#include <iostream>
#include <mha/io/safetensors.hpp>
#include <mha/mha.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/html_page.hpp"
#include "common/sentencepiece.hpp"
#include "common/transformer.hpp"
#include "common/weights.hpp"
#include "common/words.hpp"

constexpr const char* kSentence = "The girl sent her friends a picture of their dog.";
constexpr std::size_t kMaxTokens = 128;  // the most that the model reads
constexpr std::size_t kColumn = 16;      // characters in a column of the output

/// The file's pieces, one a line of its metadata, and their scores.
examples::SentencePiece vocabulary(const mha::io::Safetensors& file) {
  std::istringstream lines(file.metadata().at("pieces"));
  std::vector<std::string> pieces;
  for (std::string piece; std::getline(lines, piece);) pieces.push_back(piece);
  const auto scores = file.vector<double>("scores");
  return {pieces, {scores.begin(), scores.end()}};
}

/// What the layer reads: normalised sums of token embeddings and positions, tokens x 256.
mha::Matrix<float> layer_input(const mha::io::Safetensors& file,
                               const std::vector<examples::Token>& tokens) {
  const mha::Matrix<float> embed = file.matrix<float>("embed");
  mha::Matrix<float> x = examples::sinusoidal_positions(static_cast<mha::Index>(tokens.size()),
                                                        examples::row(file, "timing_inv"));
  for (mha::Index i = 0; const examples::Token& token : tokens)
    x.row(i++) += 2 * embed.row(token.id);
  return examples::layer_norm(x, examples::row(file, "ln1_g"), examples::row(file, "ln1_b"));
}

void show(const std::string& text, const std::string& page_path) {
  const auto file =
      mha::io::Safetensors::read(MHA_EXAMPLE_DATA_DIR "/sentence_attention.safetensors");
  const auto sentence = examples::read_sentence(vocabulary(file), text, kMaxTokens);

  mha::MultiHead<float, 4> attention({.embed_dim = 256, .out_dim = 512});
  examples::load_attention(attention, file, "");
  const auto result = attention.forward(layer_input(file, sentence.tokens), {.need_weights = true});
  std::vector<mha::Matrix<float>> heads;
  for (mha::Index h = 0; h < 4; ++h) heads.emplace_back(result.weights.matrix(0, h));

  std::cout << text << "\n";
  for (const std::string& note : sentence.notes) std::cout << note << "\n";
  const auto word = [&](mha::Index i) { return sentence.words[static_cast<std::size_t>(i)]; };
  std::cout << examples::padded("\n", kColumn + 1);
  for (const char* title : {"head 1", "head 2", "head 3"})
    std::cout << examples::padded(title, kColumn);
  std::cout << "head 4\n";
  for (mha::Index i = 0; i < heads[0].rows(); ++i) {
    std::string line = word(i);
    for (std::size_t h = 0; h < 4; ++h) {
      const auto link = examples::strongest_link(heads[h], i);
      const bool itself = link.weight < 0.1f;
      const std::string name = itself ? "itself" : (link.to < i ? "< " : "> ") + word(link.to);
      line = examples::padded(line, (h + 1) * kColumn) + name + " " +
             std::to_string(std::lround(100 * (itself ? heads[h](i, i) : link.weight))) + "%";
    }
    std::cout << line << "\n";
  }

  std::ofstream page(page_path, std::ios::binary);
  page << examples::attention_page(
      {text, sentence.words, heads, sentence.notes, "Weights: " + file.metadata().at("source")});
  page.close();
  if (!page) throw std::runtime_error(page_path + ": cannot be written");
  std::cout << "\nAll weights as a picture: " << page_path << "\n";
}

int main(int argc, char** argv) {
  std::string text, page_path = "attention.html";
  bool typed = false, usage = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--page" && i + 1 < argc) {
      page_path = argv[++i];
    } else {
      text += argument + " ";
      typed = true;
      usage = usage || argument == "--page" || argument == "--help";
    }
  }
  text = examples::tidy(typed ? text : kSentence);
  if (usage || text.empty()) {
    std::cerr << "usage: 05_sentence_attention [\"A sentence of a word or more.\"] [--page FILE]\n";
    return 1;
  }
  try {
    show(text, page_path);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
