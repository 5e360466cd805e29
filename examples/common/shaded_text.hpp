// SPDX-License-Identifier: MIT
//
// Texts as a web page, each part of a text shaded by the attention that it gets. The page needs
// nothing but itself and works in light and dark.
#pragma once

#include <cmath>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "html_page.hpp"

namespace examples {

struct ShadedPart {
  std::string text;
  float weight = 0;     ///< 0 to 1, the shade
  bool framed = false;  ///< set off from the others
};

struct ShadedText {
  std::string heading;
  std::vector<ShadedPart> parts;
  std::string note;  ///< below the text
};

inline std::string shaded_page(const std::string& title, const std::string& intro,
                               const std::vector<ShadedText>& texts) {
  std::string html = R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
)html";
  html += "<title>" + html_escape(title) + "</title>\n<style>" + detail::kStyle + detail::shades() +
          "\n.card{margin:0 0 14px;max-width:840px}.card h3{margin:0 0 8px}\n"
          ".card .lines{display:block}.card .note{margin:10px 0 0;font-size:14px}</style>\n"
          "</head>\n<body>\n<main>\n<h1>" +
          html_escape(title) + "</h1>\n<p class=\"how\">" + html_escape(intro) + "</p>\n" +
          detail::legend();
  for (const ShadedText& text : texts) {
    html += "<section class=\"card\"><h3>" + html_escape(text.heading) +
            "</h3><div class=\"lines\"><p>";
    for (const ShadedPart& part : text.parts) {
      html += "<span class=\"s" + std::to_string(detail::shade(part.weight)) +
              (part.framed ? " from" : "") + "\" title=\"" + detail::number(100.0 * part.weight) +
              " %\">" + html_escape(part.text) + "</span>";
    }
    html += "</p></div><p class=\"note\">" + html_escape(text.note) + "</p></section>\n";
  }
  return html + "</main>\n</body>\n</html>\n";
}

/// @throws std::runtime_error if the file cannot be written
inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace examples
