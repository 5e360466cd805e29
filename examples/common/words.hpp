// SPDX-License-Identifier: MIT
//
// From what somebody typed to tokens that a small vocabulary has, with a name for each to print.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "sentencepiece.hpp"

namespace examples {

inline std::size_t count_characters(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += character_length(text, at)) ++count;
  return count;
}

/// `text` with spaces behind it up to `width` characters.
inline std::string padded(const std::string& text, std::size_t width) {
  const std::size_t count = count_characters(text);
  return text + std::string(count < width ? width - count : 0, ' ');
}

/// A text as it can be printed: one space between words, whatever white space or control characters
/// were there, and U+FFFD for bytes that are not UTF-8.
inline std::string tidy(const std::string& text) {
  std::string tidied;
  bool space = false;
  for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
    length = character_length(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte <= ' ' || byte == 0x7F) {
      space = true;
      continue;
    }
    if (space && !tidied.empty()) tidied += ' ';
    space = false;
    tidied += length == 1 && byte >= 0x80 ? "\xEF\xBF\xBD" : text.substr(at, length);
  }
  return tidied;
}

struct Sentence {
  std::vector<Token> tokens;
  std::vector<std::string> words;  // a name for each token; "+s" continues the word before it
  std::vector<std::string> notes;  // what was not taken literally, as sentences
};

/// The piece for a word that is not in the vocabulary as it stands: the same word as if it began
/// after a space (for one behind a quotation mark), or that in lower case. id kUnknown if there is
/// none.
inline Token known_form(const SentencePiece& pieces, const std::string& word) {
  std::string lower = word;
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const std::string& form : {word, lower}) {
    const std::vector<Token> found = pieces.encode(form);
    if (found.size() == 1 && found[0].id != kUnknown) return found[0];
  }
  return {kUnknown, std::string(kSpace) + word};
}

/// Cuts `text` into at most `longest` tokens. A word that the vocabulary has only in lower case is
/// taken so; a word that it does not have becomes the unknown token.
inline Sentence read_sentence(const SentencePiece& pieces, const std::string& text,
                              std::size_t longest) {
  const auto in_word = [](char c) { return is_word_byte(static_cast<unsigned char>(c)); };
  Sentence sentence;
  std::string unknown, lowered, before = " ";
  for (Token token : whole_unknown_words(pieces.encode(text))) {
    if (sentence.tokens.size() == longest) {
      sentence.notes.push_back("Cut after " + std::to_string(longest) + " tokens.");
      break;
    }
    std::string word = token.without_space();
    const bool continues =
        !token.begins_word() && in_word(before.back()) && in_word(token.text.front());
    before = token.text;
    if (token.id == kUnknown) {
      token = known_form(pieces, word);
      std::string& list = token.id == kUnknown ? unknown : lowered;
      if (token.without_space() != word || token.id == kUnknown)
        list += (list.empty() ? "" : ", ") + (word.empty() ? "(space)" : word);
      word = token.without_space();
    }
    if (word.empty()) word = "(space)";
    sentence.words.push_back(continues ? "+" + word : word);
    sentence.tokens.push_back(token);
  }
  if (!lowered.empty())
    sentence.notes.push_back("In the vocabulary in lower case only, and taken so: " + lowered +
                             ".");
  if (!unknown.empty())
    sentence.notes.push_back("Not in the vocabulary, taken as the unknown word: " + unknown + ".");
  return sentence;
}

}  // namespace examples
