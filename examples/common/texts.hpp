// SPDX-License-Identifier: MIT
//
// Tables of texts, their words, and two measures on words: TF-IDF vectors and ROUGE-1.
// Sources: Sparck Jones 1972, Journal of Documentation 28(1) (inverse document frequency); Lin 2004,
// "ROUGE: A Package for Automatic Evaluation of Summaries" (ROUGE-N).
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <mha/types.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sentencepiece.hpp"

namespace examples {

/// The lines of a file, each cut at its tabs into `columns` texts, none of them empty.
/// @throws std::runtime_error if the file is missing or is not as described
inline std::vector<std::vector<std::string>> read_tsv(const std::string& path,
                                                      std::size_t columns) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::vector<std::vector<std::string>> rows;
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> row{""};
    for (const char c : line) {
      if (c == '\t') {
        row.emplace_back();
      } else {
        row.back() += c;
      }
    }
    rows.push_back(row);
    if (row.size() != columns || std::find(row.begin(), row.end(), "") != row.end()) {
      throw std::runtime_error(path + ": line " + std::to_string(rows.size()) + ": expected " +
                               std::to_string(columns) + " texts with a tab between");
    }
  }
  if (rows.empty()) throw std::runtime_error(path + ": is empty");
  return rows;
}

/// The words in lower case; everything but letters and digits parts them.
inline std::vector<std::string> plain_words(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  for (const char c : text) {
    if (!is_word_byte(static_cast<unsigned char>(c))) {
      inside = false;
      continue;
    }
    if (!inside) words.emplace_back();
    inside = true;
    words.back() += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return words;
}

inline std::map<std::string, int> word_counts(std::string_view text) {
  std::map<std::string, int> counts;
  for (const std::string& word : plain_words(text)) ++counts[word];
  return counts;
}

/// ROUGE-1 F1: the words that a summary shares with a reference, each as often as both have it, over
/// the mean number of words of the two. 1 if they have the same words, 0 if no word in common.
inline double rouge_1(std::string_view summary, std::string_view reference) {
  const auto reference_counts = word_counts(reference);
  int shared = 0;
  for (const auto& [word, count] : word_counts(summary)) {
    const auto found = reference_counts.find(word);
    if (found != reference_counts.end()) shared += std::min(count, found->second);
  }
  const std::size_t words = plain_words(summary).size() + plain_words(reference).size();
  return words == 0 ? 0 : 2.0 * shared / static_cast<double>(words);
}

/// How often a text has each word, times how rare the word is: count log((1 + texts) / (1 + texts
/// with the word)) + count, as a vector of length 1. Words are those of the texts given first.
class TfIdf {
 public:
  explicit TfIdf(const std::vector<std::string>& texts) {
    std::map<std::string, int> texts_with;
    for (const std::string& text : texts) {
      for (const auto& [word, count] : word_counts(text)) ++texts_with[word];
    }
    for (const auto& [word, count] : texts_with) {
      const double rarity = (1.0 + static_cast<double>(texts.size())) / (1.0 + count);
      const auto index = static_cast<mha::Index>(words_.size());
      words_[word] = {index, static_cast<float>(std::log(rarity) + 1)};
    }
  }
  /// All 0 if no word is known.
  mha::RowVector<float> operator()(std::string_view text) const {
    mha::RowVector<float> v = mha::RowVector<float>::Zero(static_cast<mha::Index>(words_.size()));
    for (const auto& [word, count] : word_counts(text)) {
      const auto found = words_.find(word);
      if (found == words_.end()) continue;
      v(found->second.index) = static_cast<float>(count) * found->second.rarity;
    }
    return v.norm() > 0 ? v.normalized() : v;
  }

 private:
  struct Word {
    mha::Index index;
    float rarity;
  };
  std::map<std::string, Word> words_;
};

}  // namespace examples
