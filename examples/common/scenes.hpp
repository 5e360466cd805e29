// SPDX-License-Identifier: MIT
//
// Scenes: handwritten digits at random places of a 24 x 24 image, no two of their 8 x 8 boxes
// overlapping. New ones are drawn for every step, so a network sees no scene twice, though it does see
// the same digits. Beside them what reads scenes without learning (find_digits) and draws them.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mha/types.hpp>
#include <random>
#include <string>
#include <vector>

#include "digits.hpp"

namespace examples {

inline constexpr int kSceneSide = 24;
inline constexpr int kDigitSide = 8;

/// A digit and the upper left pixel of its box.
struct PlacedDigit {
  int label = 0;
  int row = 0;
  int col = 0;
};

struct Scene {
  mha::Matrix<float> image;  ///< kSceneSide x kSceneSide, ink in [0, 1]
  std::vector<PlacedDigit> digits;
};

inline bool boxes_overlap(const PlacedDigit& a, const PlacedDigit& b) {
  return std::abs(a.row - b.row) < kDigitSide && std::abs(a.col - b.col) < kDigitSide;
}

/// The digit as other hands might have written it: a little turned, slanted, stretched and moved.
inline mha::Matrix<float> jittered(const mha::Matrix<float>& image, std::mt19937& random) {
  const auto within = [&random](float limit) {
    return limit * (static_cast<float>(random() >> 8) * 0x1p-23f - 1);
  };
  // Pixel p of the result is what lies at middle + (I + turn) (p - middle) + move of the image.
  constexpr float kMiddle = (kDigitSide - 1) / 2.0f;
  float turn[4];
  for (float& entry : turn) entry = within(0.15f);
  const float move[2] = {within(0.5f), within(0.5f)};
  mha::Matrix<float> padded = mha::Matrix<float>::Zero(kDigitSide + 6, kDigitSide + 6);
  padded.block(3, 3, kDigitSide, kDigitSide) = image;
  mha::Matrix<float> result(kDigitSide, kDigitSide);
  for (int k = 0; k < kDigitSide * kDigitSide; ++k) {
    const int i = k / kDigitSide;
    const int j = k % kDigitSide;
    const float down = static_cast<float>(i) - kMiddle;
    const float right = static_cast<float>(j) - kMiddle;
    const float row = 3 + static_cast<float>(i) + turn[0] * down + turn[1] * right + move[0];
    const float col = 3 + static_cast<float>(j) + turn[2] * down + turn[3] * right + move[1];
    const auto r = static_cast<mha::Index>(row);
    const auto c = static_cast<mha::Index>(col);
    const float below = row - static_cast<float>(r);
    const float beside = col - static_cast<float>(c);
    result(i, j) = (1 - below) * ((1 - beside) * padded(r, c) + beside * padded(r, c + 1)) +
                   below * ((1 - beside) * padded(r + 1, c) + beside * padded(r + 1, c + 1));
  }
  return result;
}

/// `count` digits of `source`, at most 4; as they are, or each jittered.
inline Scene random_scene(const Digits& source, int count, bool jitter, std::mt19937& random) {
  const auto below = [&random](int end) {
    return static_cast<int>(random() % static_cast<unsigned>(end));
  };
  Scene scene;
  scene.image.setZero(kSceneSide, kSceneSide);
  // The first digits may leave no place for the next: then all are placed again.
  for (int tries = 0; static_cast<int>(scene.digits.size()) < count; ++tries) {
    if (tries % 100 == 99) scene.digits.clear();
    const int places = kSceneSide - kDigitSide + 1;
    const PlacedDigit next{0, below(places), below(places)};
    const auto overlaps = [&next](const PlacedDigit& other) { return boxes_overlap(next, other); };
    if (std::none_of(scene.digits.begin(), scene.digits.end(), overlaps)) {
      scene.digits.push_back(next);
    }
  }
  for (PlacedDigit& digit : scene.digits) {
    const auto which = static_cast<std::size_t>(below(source.size()));
    digit.label = source.labels[which];
    scene.image.block(digit.row, digit.col, kDigitSide, kDigitSide) =
        jitter ? jittered(source.images[which], random) : source.images[which];
  }
  return scene;
}

/// Many scenes of a random number of digits, `least` to `most`.
inline std::vector<Scene> random_scenes(const Digits& source, int count, int least, int most,
                                        bool jitter, std::mt19937& random) {
  std::vector<Scene> scenes;
  for (int n = 0; n < count; ++n) {
    const auto digits = static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
    scenes.push_back(random_scene(source, least + digits, jitter, random));
  }
  return scenes;
}

/// What can be done without learning: the connected pieces of ink, and for each the digit of `known`
/// that is nearest to the 8 x 8 pixels around its middle, or a pixel away from there. Digits that
/// touch are one piece.
inline std::vector<PlacedDigit> find_digits(const Scene& scene, const Digits& known) {
  constexpr float kInk = 0.2f;
  mha::Matrix<float> ink = scene.image;
  std::vector<PlacedDigit> found;
  for (int start = 0; start < kSceneSide * kSceneSide; ++start) {
    std::vector<std::array<int, 2>> piece;
    const auto take = [&](int row, int col) {
      if (row < 0 || row >= kSceneSide || col < 0 || col >= kSceneSide) return;
      if (ink(row, col) <= kInk) return;
      ink(row, col) = 0;
      piece.push_back({row, col});
    };
    take(start / kSceneSide, start % kSceneSide);
    std::array<int, 2> low{kSceneSide, kSceneSide};
    std::array<int, 2> high{0, 0};
    for (std::size_t n = 0; n < piece.size(); ++n) {
      const std::array<int, 2> at = piece[n];
      for (int k = 0; k < 9; ++k) take(at[0] + k / 3 - 1, at[1] + k % 3 - 1);
      for (std::size_t axis = 0; axis < 2; ++axis) {
        low[axis] = std::min(low[axis], at[axis]);
        high[axis] = std::max(high[axis], at[axis]);
      }
    }
    if (piece.size() < 6) continue;  // a blot beside a digit
    PlacedDigit best;
    float least = std::numeric_limits<float>::max();
    for (int shift = 0; shift < 9; ++shift) {
      const auto corner = [&](std::size_t axis, int by) {
        return std::clamp((low[axis] + high[axis] + 1 - kDigitSide) / 2 + by, 0,
                          kSceneSide - kDigitSide);
      };
      const int row = corner(0, shift / 3 - 1);
      const int col = corner(1, shift % 3 - 1);
      const mha::Matrix<float> window = scene.image.block(row, col, kDigitSide, kDigitSide);
      for (int k = 0; k < known.size(); ++k) {
        const auto which = static_cast<std::size_t>(k);
        const float distance = (window - known.images[which]).squaredNorm();
        if (distance >= least) continue;
        least = distance;
        best = {known.labels[which], row, col};
      }
    }
    found.push_back(best);
  }
  return found;
}

/// The ink as SVG squares of `pixel` units, the image's corner at (x, y), inside a frame.
inline std::string scene_svg(const Scene& scene, double x, double y, double pixel) {
  std::string svg;
  char text[160];
  const auto add = [&](double left, double top, double side, const char* style) {
    std::snprintf(text, sizeof text, "<rect x='%g' y='%g' width='%g' height='%g' %s/>\n", left, top,
                  side, side, style);
    svg += text;
  };
  for (int k = 0; k < kSceneSide * kSceneSide; ++k) {
    const int row = k / kSceneSide;
    const int col = k % kSceneSide;
    const double ink = static_cast<double>(scene.image(row, col));
    if (ink == 0) continue;
    char style[48];
    std::snprintf(style, sizeof style, "fill-opacity='%.2f'", ink);
    add(x + col * pixel, y + row * pixel, pixel, style);
  }
  add(x, y, kSceneSide * pixel, "fill='none' stroke='#999'");
  return svg;
}

}  // namespace examples
