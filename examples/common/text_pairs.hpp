// SPDX-License-Identifier: MIT
//
// Two tasks of translation: pairs of texts, as numbers of their symbols, and how well they were
// translated. Dates are made here, words and phonemes are read from examples/data.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <mha/types.hpp>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dates.hpp"

namespace examples {

using Symbols = std::vector<int>;

struct Alphabet {
  std::vector<std::string> names{"end"};  // symbol 0 begins and ends what is written
  std::map<std::string, int> numbers;

  int number(const std::string& name) {
    const auto [at, added] = numbers.emplace(name, static_cast<int>(names.size()));
    if (added) names.push_back(name);
    return at->second;
  }
  Symbols characters(const std::string& text) {
    Symbols symbols;
    for (const char c : text) symbols.push_back(number(std::string(1, c)));
    return symbols;
  }
  std::vector<std::string> names_of(const Symbols& symbols) const {
    std::vector<std::string> list;
    for (const int symbol : symbols) list.push_back(names[static_cast<std::size_t>(symbol)]);
    return list;
  }
};

/// Without the symbol 0.
struct Pair {
  Symbols source, target;
};
using Pairs = std::vector<Pair>;

/// What is to be learned.
struct Task {
  std::string separator;  // between the symbols of a target
  Alphabet sources{}, targets{};
  Pairs train{}, held_out{}, test{};  // held out: to watch the learning; the test comes at the end

  /// Places that a text, or one with symbol 0 before it, has at most.
  std::size_t longest() const {
    std::size_t most = 0;
    for (const Pairs* pairs : {&train, &held_out, &test}) {
      for (const Pair& p : *pairs) most = std::max({most, p.source.size(), p.target.size() + 1});
    }
    return most;
  }
  std::string source_text(const Pair& pair) const { return joined(sources, pair.source, ""); }
  std::string target_text(const Symbols& target) const {
    return joined(targets, target, separator);
  }

 private:
  static std::string joined(const Alphabet& alphabet, const Symbols& symbols,
                            const std::string& between) {
    std::string text;
    for (const std::string& name : alphabet.names_of(symbols)) {
      text += (text.empty() ? "" : between) + name;
    }
    return text;
  }
};

/// Sequences of different lengths, one after the other: nothing is padded, nothing in vain computed.
struct Ragged {
  Symbols symbols;
  std::vector<int> places;
  std::vector<mha::Index> lengths;

  /// @param begin  starts with the symbol 0, for what is written: each symbol follows the one before
  void add(const Symbols& text, bool begin) {
    if (begin) symbols.push_back(0);
    symbols.insert(symbols.end(), text.begin(), text.end());
    for (std::size_t place = 0; places.size() < symbols.size(); ++place) {
      places.push_back(static_cast<int>(place));
    }
    lengths.push_back(static_cast<mha::Index>(text.size() + (begin ? 1 : 0)));
  }
};

inline constexpr std::size_t kHeldOut = 300;

/// 12,000 dates to learn from and 2,000 others to test.
inline Task dates_task(std::mt19937& random) {
  Task task{""};
  for (const DatePair& date : random_dates(12000 + kHeldOut + 2000, random)) {
    Pairs& set = task.train.size() < 12000         ? task.train
                 : task.held_out.size() < kHeldOut ? task.held_out
                                                   : task.test;
    set.push_back({task.sources.characters(date.spelled), task.targets.characters(date.iso)});
  }
  return task;
}

/// The words of cmudict_train.tsv and cmudict_test.tsv: letters, a tab, phonemes between spaces.
/// @throws std::runtime_error if a file is missing
inline Task phonemes_task(const std::string& folder, std::mt19937& random) {
  Task task{" "};
  const auto read = [&task](const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot open " + path);
    Pairs pairs;
    for (std::string word, line; std::getline(file, word, '\t') && std::getline(file, line);) {
      pairs.push_back({task.sources.characters(word), {}});
      std::istringstream phonemes(line);
      for (std::string one; phonemes >> one;) {
        pairs.back().target.push_back(task.targets.number(one));
      }
    }
    return pairs;
  };
  task.train = read(folder + "/cmudict_train.tsv");
  task.test = read(folder + "/cmudict_test.tsv");
  if (task.train.size() <= kHeldOut || task.test.empty()) {
    throw std::runtime_error("too few words in " + folder);
  }
  std::shuffle(task.train.begin(), task.train.end(), random);
  while (task.held_out.size() < kHeldOut) {
    task.held_out.push_back(std::move(task.train.back()));
    task.train.pop_back();
  }
  return task;
}

/// Insertions, deletions and replacements between two texts.
inline std::size_t edits(const Symbols& a, const Symbols& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({replaced, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row.back();
}

struct Score {
  double exact, symbol_errors;  // percent
};

inline Score score(const std::vector<Symbols>& answers, const Pairs& pairs) {
  std::size_t exact = 0, wrong = 0, all = 0;
  for (std::size_t s = 0; s < pairs.size(); ++s) {
    if (answers[s] == pairs[s].target) ++exact;
    wrong += edits(answers[s], pairs[s].target);
    all += pairs[s].target.size();
  }
  const auto percent = [](std::size_t part, std::size_t whole) {
    return 100 * static_cast<double>(part) / static_cast<double>(whole);
  };
  return {percent(exact, pairs.size()), percent(wrong, all)};
}

/// For each letter the phoneme that it has most often in words with a phoneme for each letter.
inline std::vector<Symbols> letter_by_letter(const Task& task) {
  std::map<int, std::map<int, int>> counts;
  for (const Pair& pair : task.train) {
    if (pair.source.size() != pair.target.size()) continue;
    for (std::size_t k = 0; k < pair.source.size(); ++k) ++counts[pair.source[k]][pair.target[k]];
  }
  std::vector<Symbols> answers;
  for (const Pair& pair : task.test) {
    answers.emplace_back();
    for (const int letter : pair.source) {
      const auto& of = counts[letter];
      const auto most = std::max_element(
          of.begin(), of.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
      if (most != of.end()) answers.back().push_back(most->first);
    }
  }
  return answers;
}

/// The first pairs that were answered rightly, up to `most`, with sources of different lengths above 5.
inline Pairs right_ones(const Task& task, const std::vector<Symbols>& answers, std::size_t most) {
  Pairs chosen;
  for (std::size_t s = 0; s < answers.size() && chosen.size() < most; ++s) {
    const Pair& pair = task.test[s];
    const bool like_another = std::any_of(chosen.begin(), chosen.end(), [&](const Pair& other) {
      return other.source.size() == pair.source.size();
    });
    if (!like_another && pair.source.size() > 5 && answers[s] == pair.target) {
      chosen.push_back(pair);
    }
  }
  return chosen;
}

/// Prints the first answers that are right, and the first that are not.
inline void print_some(const Task& task, const std::vector<Symbols>& answers) {
  int right = 0, wrong = 0;
  for (std::size_t s = 0; s < answers.size(); ++s) {
    const Pair& pair = task.test[s];
    const bool exact = answers[s] == pair.target;
    if ((exact ? right : wrong)++ >= (exact ? 7 : 4)) continue;
    std::printf("  %-30s %s%s\n", task.source_text(pair).c_str(),
                task.target_text(answers[s]).c_str(),
                exact ? "" : (" (should be " + task.target_text(pair.target) + ")").c_str());
  }
}

}  // namespace examples
