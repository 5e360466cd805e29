// SPDX-License-Identifier: MIT
//
// Handwritten digits, 8 x 8 pixels of 0 to 16, scaled to [0, 1]: the UCI "Optical Recognition of
// Handwritten Digits" test set, 1,797 of them; the last 360 are for testing, by other writers.
#pragma once

#include <Eigen/Geometry>
#include <fstream>
#include <mha/types.hpp>
#include <random>
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

/// The digit as another hand might write it: turned, stretched and moved a little, with
/// noise. What stands at a pixel comes from where that map leads, between four pixels.
inline mha::Matrix<float> varied(const mha::Matrix<float>& image, std::mt19937& random) {
  const auto within = [&](float limit) {
    return limit * (static_cast<float>(random() >> 8) * 0x1p-23f - 1);
  };
  Eigen::Matrix2f map = Eigen::Rotation2D<float>(within(0.2f)).toRotationMatrix();
  map.col(0) *= 1 + within(0.15f);
  map.col(1) *= 1 + within(0.15f);
  const Eigen::Vector2f middle(3.5f, 3.5f);
  const Eigen::Vector2f moved = middle + Eigen::Vector2f{within(1), within(1)};  // braces: in order
  mha::Matrix<float> y(8, 8);
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) {
      const Eigen::Array2f from =
          map * (Eigen::Vector2f(static_cast<float>(i), static_cast<float>(j)) - middle) + moved;
      float sum = within(0.05f);
      for (int k = 0; k < 4; ++k) {
        const Eigen::Array2f at = from.floor() + Eigen::Array2f(k / 2, k % 2);
        if ((at < 0).any() || (at > 7).any()) continue;
        sum += (1 - (from - at).abs()).prod() *
               image(static_cast<mha::Index>(at(0)), static_cast<mha::Index>(at(1)));
      }
      y(i, j) = sum;
    }
  }
  return y;
}

/// The digits to learn from and those to test with.
struct DigitSets {
  Digits train;
  Digits test;
};
inline DigitSets read_digit_sets(const std::string& path) {
  const Digits digits = read_digits(path);
  const int known = digits.size() - kTestDigits;
  return {slice(digits, 0, known), slice(digits, known, digits.size())};
}

}  // namespace examples
