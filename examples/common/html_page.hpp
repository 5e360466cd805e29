// SPDX-License-Identifier: MIT
//
// Writes attention weights as one web page that needs nothing but itself: no network, no library.
//   Pick a word        each head's line of words, shaded by how much the picked word looks at them
//   Strongest links    for each word an arc to the word that it looks at most, itself not counted
//   Heat maps          all weights of a head, row = word that looks, column = word looked at
// It works with keyboard and mouse, in light and dark, on narrow screens, and without JavaScript
// (but for picking). Colours are one blue whose lightness alone carries the value.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <mha/types.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "html_style.hpp"
#include "sentencepiece.hpp"
#include "words.hpp"

namespace examples {

struct AttentionPage {
  std::string sentence;
  std::vector<std::string> words;           // one per row of the weights
  std::vector<mha::Matrix<float>> weights;  // one matrix per head; row i looks at column j
  std::vector<std::string> notes;           // sentences to print under the heading
  std::string source;                       // where the weights come from
};

/// What one word looks at most, itself not counted.
struct Link {
  Index to = -1;
  float weight = 0;
};
inline Link strongest_link(const mha::Matrix<float>& weights, Index from, Index at_least_away = 1) {
  Link link;
  for (Index to = 0; to < weights.cols(); ++to) {
    if (std::abs(to - from) >= at_least_away && weights(from, to) > link.weight)
      link = {to, weights(from, to)};
  }
  return link;
}

/// Text for an HTML element or a quoted attribute. Bytes that are not UTF-8 become U+FFFD, control
/// characters a space.
inline std::string html_escape(std::string_view text) {
  std::string safe;
  for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
    length = character_length(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (length > 1)
      safe += text.substr(at, length);
    else if (byte >= 0x80)
      safe += "\xEF\xBF\xBD";
    else if (byte < 0x20 || byte == 0x7F)
      safe += ' ';
    else if (byte == '&')
      safe += "&amp;";
    else if (byte == '<')
      safe += "&lt;";
    else if (byte == '>')
      safe += "&gt;";
    else if (byte == '"')
      safe += "&quot;";
    else if (byte == '\'')
      safe += "&#39;";
    else
      safe += text[at];
  }
  return safe;
}

/// The first `most` characters; an ellipsis replaces the last if there are more.
inline std::string shorten(std::string_view text, std::size_t most) {
  std::size_t at = 0, count = 0, cut = 0;
  for (; at < text.size(); at += character_length(text, at)) {
    if (count++ == most - 1) cut = at;
  }
  return count <= most ? std::string(text) : std::string(text.substr(0, cut)) + "\xE2\x80\xA6";
}

namespace detail {

inline constexpr int kShades = 25;         // shade 0 is weight 0, the last one is weight 1
inline constexpr int kLowShade = 13;       // the last shade with the text colour of shade 0
inline constexpr Index kMostNumbers = 16;  // up to so many words, cells show their value

inline std::string number(double value, int digits = 1) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

/// Shades follow the square root of the weight, so that 1 % and 5 % can be told from nothing.
inline int shade(float weight) {
  return static_cast<int>(std::lround(std::sqrt(std::clamp(weight, 0.0f, 1.0f)) * (kShades - 1)));
}

/// CSS variables --s0, --s1, ... between colours given at equal steps.
inline std::string palette(const std::vector<std::array<int, 3>>& stops) {
  std::string css;
  for (int s = 0; s < kShades; ++s) {
    const double at =
        static_cast<double>(s) / (kShades - 1) * static_cast<double>(stops.size() - 1);
    const std::size_t low = std::min(static_cast<std::size_t>(at), stops.size() - 2);
    css += "--s" + std::to_string(s) + ":rgb(";
    for (std::size_t c = 0; c < 3; ++c) {
      const double mix =
          stops[low][c] + (at - static_cast<double>(low)) * (stops[low + 1][c] - stops[low][c]);
      css += std::to_string(std::lround(mix)) + (c < 2 ? "," : ");");
    }
  }
  return css;
}

/// The colours of the scale. CIE lightness runs from 96 down to 19 (light) and from 13 up to 97
/// (dark); black or white text on every shade has a contrast of 4.5 or more.
inline std::string shades() {
  const std::vector<std::array<int, 3>> light{{244, 243, 240}, {208, 221, 235}, {143, 184, 219},
                                              {48, 118, 174},  {22, 84, 140},   {8, 46, 92}};
  const std::vector<std::array<int, 3>> dark{{30, 34, 42},   {22, 52, 86},    {26, 84, 140},
                                             {62, 136, 196}, {142, 196, 235}, {238, 248, 255}};
  std::string css = ":root{" + palette(light) + "}\n@media(prefers-color-scheme:dark){:root{" +
                    palette(dark) + "}}\n";
  for (int s = 0; s < kShades; ++s) {
    const std::string n = std::to_string(s);
    css += ".s" + n + "{background:var(--s" + n + ");color:var(--text-" +
           (s > kLowShade ? "high)}" : "low)}");
  }
  return css;
}

/// The name of word i, escaped.
inline std::string word(const AttentionPage& page, Index i) {
  return html_escape(page.words[static_cast<std::size_t>(i)]);
}

/// class and title of the element that shows one weight; the title is "his looks at man: 66.1 %"
inline std::string weight_attributes(const AttentionPage& page, std::size_t head, Index from,
                                     Index to, const std::string& more_classes = "") {
  const float weight = page.weights[head](from, to);
  return " class=\"s" + std::to_string(shade(weight)) + more_classes + "\" title=\"" +
         word(page, from) + " looks at " + (from == to ? "itself" : word(page, to)) + ": " +
         number(100.0 * weight) + " %\"";
}

/// How much of a head's attention goes to earlier words, to the word itself and to later words.
inline std::string shares(const mha::Matrix<float>& weights) {
  std::array<double, 3> share{};
  for (Index i = 0; i < weights.rows(); ++i) {
    for (Index j = 0; j < weights.cols(); ++j) {
      const std::size_t side = j == i ? 1 : j < i ? 0 : 2;
      share[side] += 100.0 * weights(i, j) / static_cast<double>(weights.rows());
    }
  }
  std::string html = "<div class=\"share\" aria-hidden=\"true\">";
  for (std::size_t k = 0; k < 3; ++k)
    html +=
        std::string("<i class=\"") + "bsa"[k] + "\" style=\"flex:" + number(share[k]) + "\"></i>";
  return html + "</div><p class=\"shares\">" + number(share[0], 0) + " % to earlier words, " +
         number(share[1], 0) + " % to the word itself, " + number(share[2], 0) +
         " % to later words</p>";
}

/// The sentence downwards; arcs on the left lead to an earlier word, on the right to a later one.
inline std::string links(const AttentionPage& page, std::size_t head) {
  const mha::Matrix<float>& weights = page.weights[head];
  const double pitch = 25, middle = 115;
  const auto label = [&](Index i) { return shorten(page.words[static_cast<std::size_t>(i)], 14); };
  const auto y = [&](Index i) { return (static_cast<double>(i) + 0.5) * pitch; };
  const auto edge = [&](Index i) {  // half the width of the printed word, and a gap
    return 8 + 3.7 * static_cast<double>(count_characters(label(i)));
  };
  std::string svg = "<svg viewBox=\"0 0 230 " + number(y(weights.rows())) +
                    "\" role=\"img\" aria-label=\"Strongest link of each word in head " +
                    std::to_string(head + 1) + "\">";
  for (Index i = 0; i < weights.rows(); ++i) {
    const Link link = strongest_link(weights, i);
    if (link.weight < 0.1f) continue;
    const double side = link.to < i ? -1 : 1;
    const double from_x = middle + side * edge(i);
    const double to_x = middle + side * edge(link.to);
    const double distance = std::abs(static_cast<double>(link.to - i));
    const double reach = 45 + 75 * std::sqrt(distance / static_cast<double>(weights.rows()));
    const double bend = middle + side * std::max({reach, edge(i) + 20, edge(link.to) + 20});
    const std::string tip_y = number(y(link.to) - 3 * side);
    const std::string start_y = number(y(i) + 3 * side);
    const std::string kind = side < 0 ? "back" : "ahead";
    svg += "<g class=\"" + kind + "\" opacity=\"" + number(0.4 + 0.6 * link.weight, 2) +
           "\"><title>" + word(page, i) + " looks at " + word(page, link.to) + ": " +
           number(100.0 * link.weight) + " %</title><path stroke-width=\"" +
           number(0.8 + 3.7 * link.weight) + "\" d=\"M" + number(from_x) + " " + start_y + "C" +
           number(bend) + " " + start_y + " " + number(bend) + " " + tip_y + " " +
           number(to_x + side * 6) + " " + tip_y + "\"/><path class=\"tip\" d=\"M" + number(to_x) +
           " " + tip_y + "l" + number(side * 8) + " -4v8z\"/></g>";
  }
  for (Index i = 0; i < weights.rows(); ++i)
    svg += "<text x=\"" + number(middle) + "\" y=\"" + number(y(i) + 4.5) + "\">" +
           html_escape(label(i)) + "</text>";
  return svg + "</svg>";
}

inline std::string heat_map(const AttentionPage& page, std::size_t head) {
  const mha::Matrix<float>& weights = page.weights[head];
  const bool numbers = weights.rows() <= kMostNumbers;
  std::string html = std::string("<div class=\"scroll\"><table class=\"map") +
                     (numbers ? "" : " small") +
                     "\" role=\"grid\" aria-label=\"Attention weights of head " +
                     std::to_string(head + 1) + "\"><thead><tr><th></th>";
  for (Index j = 0; j < weights.cols(); ++j)
    html += "<th scope=\"col\"><span>" + word(page, j) + "</span></th>";
  html += "</tr></thead><tbody>\n";
  for (Index i = 0; i < weights.rows(); ++i) {
    html += "<tr><th scope=\"row\">" + word(page, i) + "</th>";
    for (Index j = 0; j < weights.cols(); ++j) {
      html += "<td" + weight_attributes(page, head, i, j) + " tabindex=\"" +
              (i + j == 0 ? "0" : "-1") + "\">";
      if (numbers && weights(i, j) >= 0.05f) html += number(100.0 * weights(i, j), 0);
      html += "</td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>";
}

inline std::string legend() {
  std::string html = "<div class=\"legend\"><span>Weight</span><div class=\"scale\"><div>";
  for (int s = 0; s < kShades; ++s) html += "<i class=\"s" + std::to_string(s) + "\"></i>";
  html += "</div><ol>";
  for (const int percent : {0, 1, 5, 10, 25, 50, 100})
    html += "<li style=\"left:" + number(10 * std::sqrt(percent)) + "%\">" +
            std::to_string(percent) + (percent == 100 ? " %" : "") + "</li>";
  return html + "</ol></div></div>";
}

/// The word to begin with: its strongest link is the strongest that reaches past the neighbours.
inline Index first_pick(const AttentionPage& page) {
  Index picked = 0;
  float strongest = 0;
  for (Index i = 0; i < static_cast<Index>(page.words.size()); ++i) {
    for (const mha::Matrix<float>& weights : page.weights) {
      const float weight = strongest_link(weights, i, 2).weight;
      if (weight <= strongest) continue;
      strongest = weight;
      picked = i;
    }
  }
  return picked;
}

inline std::string pick_section(const AttentionPage& page) {
  const auto num_words = static_cast<Index>(page.words.size());
  const Index picked = first_pick(page);
  std::string html = R"html(<section>
<h2>Pick a word</h2>
<p class="how">Each line shows how much the picked word, which is framed, looks at every word of
the sentence.</p>
<div class="card"><fieldset class="pick" aria-label="The word that looks">)html";
  for (Index i = 0; i < num_words; ++i)
    html += "<label><input type=\"radio\" name=\"from\" value=\"" + std::to_string(i) + "\"" +
            (i == picked ? " checked" : "") + "><span>" + word(page, i) + "</span></label>";
  html += "</fieldset>\n<div class=\"lines\">";
  for (std::size_t h = 0; h < page.weights.size(); ++h) {
    html += "<b>Head " + std::to_string(h + 1) + "</b><p>";
    for (Index j = 0; j < num_words; ++j)
      html += "<span" + weight_attributes(page, h, picked, j, j == picked ? " from" : "") + ">" +
              word(page, j) + "</span>";
    html += "</p>\n";
  }
  return html + "</div></div>\n</section>\n";
}

inline std::string links_section(const AttentionPage& page) {
  std::string html = R"html(<section>
<h2>The strongest links</h2>
<p class="how">From each word an arc to the word that it looks at most, itself not counted, if that
is 10 % or more. <span class="back">On the left, back to an earlier word;</span>
<span class="ahead">on the right, ahead to a later one.</span></p>
<div class="links">)html";
  for (std::size_t h = 0; h < page.weights.size(); ++h)
    html += "<figure class=\"card\"><h3>Head " + std::to_string(h + 1) + "</h3>" +
            shares(page.weights[h]) + links(page, h) + "</figure>\n";
  return html + "</div>\n</section>\n";
}

inline std::string maps_section(const AttentionPage& page) {
  std::string html = R"html(<section>
<h2>All weights</h2>
<p class="how">A row is the word that looks, a column the word looked at; a row adds up to 100 %.
Point at a cell for its value, or use Tab and the arrow keys.</p>
)html";
  html += legend() + "<div class=\"maps\">";
  for (std::size_t h = 0; h < page.weights.size(); ++h)
    html += "<figure class=\"card\"><div class=\"title\"><h3>Head " + std::to_string(h + 1) +
            "</h3><output aria-live=\"polite\"></output></div>" + heat_map(page, h) + "</figure>\n";
  return html + "</div>\n</section>\n";
}

}  // namespace detail

/// The whole page. There must be a word and a head, and `words` as many as rows and columns.
inline std::string attention_page(const AttentionPage& page) {
  const std::size_t num_words = page.words.size();
  std::size_t longest_word = 3;
  for (const std::string& word : page.words)
    longest_word = std::max(longest_word, count_characters(word));
  // How wide row names and maps are, in pixels.
  const std::string label = std::to_string(std::min<std::size_t>(longest_word * 8 + 12, 116));
  const std::string map = num_words <= 24 ? "500" : "900";

  std::string html = R"html(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
)html";
  html += "<title>Attention: " + html_escape(shorten(page.sentence, 60)) + "</title>\n<style>" +
          detail::kStyle + detail::shades() + "\n:root{--n:" + std::to_string(num_words) +
          ";--label:" + label + "px;--wide:" + map + "px}</style>\n</head>\n<body>\n<main>\n" +
          "<p class=\"kicker\">Which word looks at which? " + std::to_string(page.weights.size()) +
          " heads of one trained attention layer</p>\n<h1" +
          (num_words > 18 ? " class=\"long\">" : ">") + html_escape(page.sentence) + "</h1>";
  html += R"html(
<p>An attention layer gives every word a new description, mixed from the words that it looks at.
Each head looks in a way of its own, learnt in training, and shares out 100 % for every word.</p>
)html";
  for (const std::string& note : page.notes)
    html += "<p class=\"note\">" + html_escape(note) + "</p>\n";
  return html + detail::pick_section(page) + detail::links_section(page) +
         detail::maps_section(page) + "<footer>" + html_escape(page.source) +
         "</footer>\n</main>\n<script>" + detail::kScript + "</script>\n</body>\n</html>\n";
}

}  // namespace examples
