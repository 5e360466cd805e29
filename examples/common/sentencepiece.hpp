// SPDX-License-Identifier: MIT
//
// Cuts text into the pieces that a language model was trained on (SentencePiece, unigram model).
//   Every piece has a score, the logarithm of how likely it is. Of all ways to write the text as
//   pieces, the one with the greatest sum of scores is taken (Viterbi):
//     best[0] = 0,  best[end] = max over pieces that end there of best[end - length] + score
//   A space is written U+2581 and one is put in front, so "the cat" is "_the_cat" (with U+2581 for
//   _) and a piece that begins a word knows it. A character that is no piece costs -20 and gets
//   id 0; neighbouring unknown characters become one token.
// Source: Kudo 2018, arXiv:1804.10959, section 3.2; Kudo and Richardson 2018, arXiv:1808.06226.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace examples {

using Eigen::Index;

inline constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a space
inline constexpr Index kUnknown = 0;
inline constexpr double kUnknownScore = -20;

/// Bytes of the UTF-8 character that begins at `text[at]`; 1 if the bytes there are not UTF-8.
inline std::size_t character_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned lead = byte(at);
  std::size_t length = 1;
  if (lead >= 0xC2 && lead <= 0xDF) length = 2;
  if (lead >= 0xE0 && lead <= 0xEF) length = 3;
  if (lead >= 0xF0 && lead <= 0xF4) length = 4;
  if (length == 1) return 1;
  // The second byte excludes over-long forms, surrogates and what lies above U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(at + 1) < low || byte(at + 1) > high) return 1;
  for (std::size_t i = 2; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 1;
  }
  return length;
}

struct Token {
  Index id;
  std::string text;  // what it covers, with U+2581 for spaces

  bool begins_word() const { return text.starts_with(kSpace); }
  std::string without_space() const { return begins_word() ? text.substr(kSpace.size()) : text; }
};

class SentencePiece {
 public:
  /// pieces[id] and scores[id]; empty pieces and id 0, the unknown, are never matched.
  SentencePiece(const std::vector<std::string>& pieces, const std::vector<double>& scores) {
    if (pieces.size() != scores.size())
      throw std::invalid_argument("SentencePiece: as many scores as pieces, got " +
                                  std::to_string(scores.size()) + " and " +
                                  std::to_string(pieces.size()));
    for (std::size_t id = 1; id < pieces.size(); ++id) {
      if (pieces[id].empty()) continue;
      pieces_.insert_or_assign(pieces[id], Piece{static_cast<Index>(id), scores[id]});
      longest_ = std::max(longest_, pieces[id].size());
    }
  }

  /// A file with a line "piece <tab> score" for each id.
  static SentencePiece read(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    std::vector<std::string> pieces;
    std::vector<double> scores;
    for (std::string line; std::getline(file, line);) {
      const std::size_t tab = line.find('\t');
      const char* number = tab == std::string::npos ? "" : line.c_str() + tab + 1;
      char* end = nullptr;
      const double score = std::strtod(number, &end);
      if (tab == std::string::npos || (tab > 0 && end == number))
        throw std::runtime_error(path + ": line " + std::to_string(pieces.size() + 1) +
                                 ": expected piece, tab, score");
      pieces.push_back(line.substr(0, tab));
      scores.push_back(score);
    }
    return {pieces, scores};
  }

  std::vector<Token> encode(std::string_view text) const {
    if (text.empty()) return {};
    std::string marked(kSpace);
    for (const char c : text) c == ' ' ? marked.append(kSpace) : marked.append(1, c);

    struct Step {
      double score = -std::numeric_limits<double>::infinity();
      std::size_t begin = 0;
      Index id = kUnknown;
    };
    std::vector<Step> best(marked.size() + 1);  // best[end]: the last step of the best way there
    best[0].score = 0;
    for (std::size_t begin = 0; begin < marked.size();) {
      const std::size_t character = character_length(marked, begin);
      const auto offer = [&](std::size_t length, Index id, double score) {
        Step& step = best[begin + length];
        if (best[begin].score + score >= step.score) step = {best[begin].score + score, begin, id};
      };
      const std::size_t reach = std::min(longest_, marked.size() - begin);
      bool known = false;
      for (std::size_t length = character; length <= reach;) {
        const auto found = pieces_.find(std::string_view(marked).substr(begin, length));
        if (found != pieces_.end()) {
          offer(length, found->second.id, found->second.score);
          known = known || length == character;
        }
        length += begin + length < marked.size() ? character_length(marked, begin + length) : 1;
      }
      if (!known) offer(character, kUnknown, kUnknownScore);
      begin += character;
    }

    std::vector<Token> tokens;  // from the last to the first
    for (std::size_t end = marked.size(); end > 0; end = best[end].begin) {
      const std::string piece = marked.substr(best[end].begin, end - best[end].begin);
      if (best[end].id == kUnknown && !tokens.empty() && tokens.back().id == kUnknown)
        tokens.back().text.insert(0, piece);
      else
        tokens.push_back({best[end].id, piece});
    }
    std::reverse(tokens.begin(), tokens.end());
    return tokens;
  }

 private:
  struct Piece {
    Index id;
    double score;
  };
  std::map<std::string, Piece, std::less<>> pieces_;
  std::size_t longest_ = 0;
};

/// Letters, digits and all bytes of characters beyond ASCII.
inline bool is_word_byte(unsigned char byte) {
  return byte >= 0x80 || (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
         (byte >= 'A' && byte <= 'Z');
}

/// For a small vocabulary, in which the rest of a word that has an unknown character means little:
/// joins the pieces of such a word to one unknown token. Punctuation around it stays.
inline std::vector<Token> whole_unknown_words(const std::vector<Token>& tokens) {
  const auto in_word = [](char c) { return is_word_byte(static_cast<unsigned char>(c)); };
  std::vector<Token> words;
  for (std::size_t begin = 0; begin < tokens.size();) {
    std::size_t end = begin + 1;  // the pieces begin .. end are one word
    while (end < tokens.size() && !tokens[end].begins_word() &&
           in_word(tokens[end - 1].text.back()) && in_word(tokens[end].text.front()))
      ++end;
    const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = tokens.begin() + static_cast<std::ptrdiff_t>(end);
    if (std::any_of(first, last, [](const Token& token) { return token.id == kUnknown; })) {
      Token word{kUnknown, ""};
      for (auto token = first; token != last; ++token) word.text += token->text;
      words.push_back(word);
    } else {
      words.insert(words.end(), first, last);
    }
    begin = end;
  }
  return words;
}

}  // namespace examples
