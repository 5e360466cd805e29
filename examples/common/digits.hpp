// SPDX-License-Identifier: MIT
//
// Handwritten digits, 8 x 8 pixels of 0 to 16, scaled to [0, 1]: the UCI "Optical Recognition of
// Handwritten Digits" test set, 1,797 of them; the last 360 are for testing, by other writers.
#pragma once

#include <fstream>
#include <mha/types.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

struct Digits {
  std::vector<mha::Matrix<float>> images;  ///< 8 x 8
  std::vector<int> labels;                 ///< 0 to 9

  int size() const { return static_cast<int>(labels.size()); }
};

inline constexpr int kTestDigits = 360;

/// @throws std::runtime_error if the file is missing or is not as described
inline Digits read_digits(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open " + path);
  Digits digits;
  for (std::string line; std::getline(file, line);) {
    std::istringstream numbers(line);
    mha::Matrix<float> image(8, 8);
    int value = 0;
    char comma = 0;
    for (int k = 0; k < 64; ++k) {
      numbers >> value >> comma;
      image(k / 8, k % 8) = static_cast<float>(value) / 16;
    }
    if (!(numbers >> value) || value < 0 || value > 9) {
      throw std::runtime_error(path + ": line " + std::to_string(digits.size() + 1) +
                               ": expected 64 pixels and a label");
    }
    digits.images.push_back(image);
    digits.labels.push_back(value);
  }
  return digits;
}

/// Digits first, ..., last - 1.
inline Digits slice(const Digits& all, int first, int last) {
  return {{all.images.begin() + first, all.images.begin() + last},
          {all.labels.begin() + first, all.labels.begin() + last}};
}

}  // namespace examples
