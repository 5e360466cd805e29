// SPDX-License-Identifier: MIT
//
// Matrices of numbers from 0 to 1 as a picture: an SVG file, darker where the number is larger.
#pragma once

#include <algorithm>
#include <fstream>
#include <mha/types.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

struct HeatMap {
  std::string title;
  std::vector<std::string> rows;     ///< their names, on the left
  std::vector<std::string> columns;  ///< and above
  mha::Matrix<float> values;
};

inline std::string xml_text(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return escaped;
}

/// The maps under each other, below a title and a line that explains.
/// @throws std::runtime_error if the file cannot be written
inline void write_heat_maps(const std::string& path, const std::string& title,
                            const std::string& note, const std::vector<HeatMap>& maps) {
  constexpr mha::Index kCell = 22;
  constexpr mha::Index kLeft = 56;
  constexpr mha::Index kAbove = 56;  // of a map: its title and the columns' names
  mha::Index width = 760;
  mha::Index height = 76;
  for (const HeatMap& map : maps) {
    width = std::max(width, kLeft + map.values.cols() * kCell + 24);
    height += kAbove + map.values.rows() * kCell + 16;
  }
  std::ofstream svg(path);
  const auto text = [&svg](mha::Index x, mha::Index y, const char* style,
                           const std::string& words) {
    svg << "<text x='" << x << "' y='" << y << "' " << style << ">" << xml_text(words)
        << "</text>\n";
  };
  svg << "<svg xmlns='http://www.w3.org/2000/svg' width='" << width << "' height='" << height
      << "' font-family='sans-serif' font-size='14'>\n<rect width='100%' height='100%' "
         "fill='white'/>\n";
  text(16, 30, "font-size='20' font-weight='bold'", title);
  text(16, 52, "fill='#555'", note);
  mha::Index top = 76;
  for (const HeatMap& map : maps) {
    text(16, top + 18, "font-weight='bold'", map.title);
    top += kAbove;
    for (mha::Index j = 0; j < map.values.cols(); ++j) {
      text(kLeft + j * kCell + kCell / 2, top - 6, "text-anchor='middle'",
           map.columns[static_cast<std::size_t>(j)]);
    }
    for (mha::Index i = 0; i < map.values.rows(); ++i) {
      text(kLeft - 8, top + i * kCell + 16, "text-anchor='end'",
           map.rows[static_cast<std::size_t>(i)]);
      for (mha::Index j = 0; j < map.values.cols(); ++j) {
        svg << "<rect x='" << kLeft + j * kCell << "' y='" << top + i * kCell << "' width='"
            << kCell << "' height='" << kCell << "' stroke='#ddd' fill='#08306b' fill-opacity='"
            << std::clamp(map.values(i, j), 0.0f, 1.0f) << "'/>\n";
      }
    }
    top += map.values.rows() * kCell + 16;
  }
  svg << "</svg>\n";
  if (!svg.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace examples
