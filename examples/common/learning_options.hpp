// SPDX-License-Identifier: MIT
//
// The options of the programs that learn from scenes.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <utility>

namespace examples {

struct LearningOptions {
  unsigned seed = 1;
  bool is_short = false;
  std::string picture;  ///< a file, or none
  std::string data;
};

/// Nothing, and a message on stderr, if the arguments are wrong.
inline std::optional<LearningOptions> read_learning_options(int count, char** arguments,
                                                            std::string data) {
  LearningOptions options;
  options.data = std::move(data);
  for (int n = 1; n < count; ++n) {
    const std::string name = arguments[n];
    const bool takes_value = name == "--seed" || name == "--picture" || name == "--data";
    bool good = !takes_value || n + 1 < count;
    const std::string value = takes_value && good ? arguments[++n] : "";
    if (name == "--short") {
      options.is_short = true;
    } else if (name == "--picture" && good) {
      options.picture = value;
    } else if (name == "--data" && good) {
      options.data = value;
    } else if (name == "--seed" && good) {
      errno = 0;
      const unsigned long seed = std::strtoul(value.c_str(), nullptr, 10);
      good = value.find_first_not_of("0123456789") == std::string::npos && !value.empty() &&
             errno == 0 && seed <= 0xFFFFFFFFUL;
      options.seed = static_cast<unsigned>(seed);
    } else {
      good = false;
    }
    if (!good) {
      std::fprintf(
          stderr,
          "usage: %s [--seed N] [--short] [--picture FILE.svg] [--data FILE.csv]\n"
          "  --seed N     of the weights and the scenes, default 1\n"
          "  --short      learn for a few seconds only; exit code 1 if too little is learned\n"
          "  --picture    draw what was learned\n"
          "  --data       the digits, default %s\n",
          arguments[0], options.data.c_str());
      return std::nullopt;
    }
  }
  return options;
}

/// main() of such a program: its exit code is what run(options) returns, or 2.
inline int learning_main(int count, char** arguments, const std::string& data,
                         int (*run)(const LearningOptions&)) {
  const std::optional<LearningOptions> options = read_learning_options(count, arguments, data);
  if (!options) return 2;
  try {
    return run(*options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

}  // namespace examples
