// SPDX-License-Identifier: MIT
//
// The command line of the programs that learn on top of the sentence encoder.
#pragma once

#include <charconv>
#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

namespace examples {

struct EncoderOptions {
  std::string weights;     ///< use_lite.safetensors
  std::string vocabulary;  ///< vocab.tsv
  std::uint32_t seed = 1;
  bool brief = false;   ///< --short
  std::string picture;  ///< empty: none
};

inline constexpr const char* kEncoderUsage =
    " USE_LITE.safetensors VOCAB.tsv [--seed N] [--short] [--picture FILE.html]\n";

/// @return false if the arguments are not as kEncoderUsage says
inline bool parse_options(const std::vector<std::string>& arguments, EncoderOptions& options) {
  std::vector<std::string> files;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--short") {
      options.brief = true;
    } else if ((argument == "--seed" || argument == "--picture") && i + 1 < arguments.size()) {
      const std::string& value = arguments[++i];
      if (argument == "--picture") {
        options.picture = value;
        continue;
      }
      const char* end = value.data() + value.size();
      const auto read = std::from_chars(value.data(), end, options.seed);
      if (read.ec != std::errc{} || read.ptr != end) return false;
    } else if (argument.starts_with("--")) {
      return false;
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) return false;
  options.weights = files[0];
  options.vocabulary = files[1];
  return true;
}

/// main() of such a program: its exit code is what run(options) returns, or 1.
inline int encoder_main(int count, char** arguments, const char* name,
                        int (*run)(const EncoderOptions&)) {
  EncoderOptions options;
  if (!parse_options({arguments + 1, arguments + count}, options)) {
    std::cerr << "usage: " << name << kEncoderUsage;
    return 1;
  }
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}

}  // namespace examples
