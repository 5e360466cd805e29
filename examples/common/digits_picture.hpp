// SPDX-License-Identifier: MIT
//
// An SVG of digits and of what each attention head looks at in them: a column per digit, a row per
// head. It needs nothing but itself and follows the reader's choice of light or dark.
#pragma once

#include <algorithm>
#include <cmath>
#include <mha/types.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "digits.hpp"

namespace examples {

struct LookedAt {
  mha::Matrix<float> image;               ///< 8 x 8, 0 to 1
  int label = 0;                          ///< what it is
  int read = 0;                           ///< what it was taken for
  std::vector<mha::Matrix<float>> heads;  ///< per head the weight of each patch, 4 x 4
};

namespace detail {

inline constexpr const char* kPictureStyle = R"css(
svg { color-scheme: light dark }
text { font: 14px system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; fill: #1d2026 }
.page { fill: #fbfaf8 } .tile { fill: #fff; stroke: #c9c6bf } .ink { fill: #1d2026 }
.heat { fill: #f08a24 } .soft { fill: #5c6370 } .wrong { fill: #b42318; font-weight: 700 }
.title { font-size: 22px; font-weight: 600 } .middle { text-anchor: middle }
@media (prefers-color-scheme: dark) {
  text { fill: #e8eaee } .page { fill: #111318 } .tile { fill: #191c23; stroke: #3a404c }
  .ink { fill: #e8eaee } .heat { fill: #c2570c } .soft { fill: #a0a7b4 } .wrong { fill: #ff9b8a }
}
)css";

/// Squares of one class for the cells of a matrix, the value being the opacity.
inline void add_cells(std::ostream& svg, const mha::Matrix<float>& cells, const char* style,
                      float side) {
  svg << "<g class=\"" << style << "\">";
  const float cell = side / static_cast<float>(cells.rows());
  for (mha::Index i = 0; i < cells.rows(); ++i) {
    for (mha::Index j = 0; j < cells.cols(); ++j) {
      if (cells(i, j) < 0.01f) continue;
      svg << "<rect x=\"" << cell * static_cast<float>(j) << "\" y=\""
          << cell * static_cast<float>(i) << "\" width=\"" << cell << "\" height=\"" << cell
          << "\" opacity=\"" << std::round(100 * cells(i, j)) / 100 << "\"/>";
    }
  }
  svg << "</g>";
}

}  // namespace detail

/// The first digit of each kind that was read right, then the first ones that were not.
inline std::vector<LookedAt> first_right_and_wrong(const Digits& digits,
                                                   const std::vector<int>& answers,
                                                   int most_wrong) {
  std::vector<LookedAt> shown;
  const auto add_first = [&](int most, const auto& fits) {
    for (std::size_t n = 0; n < answers.size() && most > 0; ++n) {
      if (!fits(digits.labels[n], answers[n])) continue;
      shown.push_back({digits.images[n], digits.labels[n], answers[n], {}});
      --most;
    }
  };
  for (int kind = 0; kind < 10; ++kind) {
    add_first(1, [kind](int label, int read) { return label == kind && read == kind; });
  }
  add_first(most_wrong, [](int label, int read) { return label != read; });
  return shown;
}

/// @param title, subtitle  plain text without the characters < and &
inline std::string digits_picture(const std::vector<LookedAt>& digits, const std::string& title,
                                  const std::string& subtitle) {
  constexpr int kTile = 72;
  constexpr int kStep = 82;
  constexpr int kLeft = 86;
  constexpr int kTop = 112;
  const int heads = digits.empty() ? 0 : static_cast<int>(digits[0].heads.size());
  const int width = kLeft + kStep * static_cast<int>(digits.size()) + 14;
  const int height = kTop + kStep * (heads + 1) + 10;
  std::ostringstream svg;
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 " << width << " "
      << height << "\" width=\"" << width << "\" height=\"" << height << "\">\n<title>" << title
      << "</title>\n<style>" << detail::kPictureStyle << "</style>\n"
      << R"(<rect class="page" width="100%" height="100%"/>)"
      << "\n<text class=\"title\" x=\"20\" y=\"38\">" << title << "</text>\n"
      << "<text class=\"soft\" x=\"20\" y=\"64\">" << subtitle << "</text>\n";
  for (int h = 0; h <= heads; ++h) {
    svg << "<text x=\"20\" y=\"" << kTop + kStep * h + kTile / 2 + 5 << "\">"
        << (h == 0 ? "digit" : "head " + std::to_string(h)) << "</text>\n";
  }
  for (std::size_t n = 0; n < digits.size(); ++n) {
    const LookedAt& digit = digits[n];
    const int x = kLeft + kStep * static_cast<int>(n);
    const std::string read = std::to_string(digit.read);
    const bool right = digit.read == digit.label;
    svg << "<text class=\"middle" << (right ? "" : " wrong") << "\" x=\"" << x + kTile / 2
        << "\" y=\"" << kTop - 10 << "\">"
        << (right ? read : read + ", is " + std::to_string(digit.label)) << "</text>\n";
    for (int h = 0; h <= heads; ++h) {
      svg << "<g transform=\"translate(" << x << " " << kTop + kStep * h
          << ")\"><rect class=\"tile\""
          << " width=\"" << kTile << "\" height=\"" << kTile << "\"/>";
      if (h == 0) {
        svg << "<g id=\"d" << n << "\">";
        detail::add_cells(svg, digit.image, "ink", kTile);
        svg << "</g>";
      } else {
        // The patch that is looked at most is shown in full colour, the others in proportion.
        const mha::Matrix<float>& weights = digit.heads[static_cast<std::size_t>(h - 1)];
        detail::add_cells(svg, weights / std::max(weights.maxCoeff(), 1e-6f), "heat", kTile);
        svg << "<use href=\"#d" << n << "\" opacity=\"0.75\"/>";
      }
      svg << "</g>\n";
    }
  }
  svg << "</svg>\n";
  return svg.str();
}

}  // namespace examples
