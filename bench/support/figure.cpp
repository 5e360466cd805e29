// SPDX-License-Identifier: MIT
#include "support/figure.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "support/workloads.hpp"

namespace mha_bench {
namespace {

// Pixels.
constexpr double kStep = 66;  // from one workload to the next
constexpr double kPlotHeight = 210;
constexpr double kLeft = 66;    // of a panel, for the scale
constexpr double kRight = 96;   // for the contenders' names
constexpr double kTop = 44;     // for its heading
constexpr double kBottom = 58;  // for the workloads' names
constexpr double kHeader = 74;  // of the picture
constexpr double kMargin = 14;
constexpr double kLabelHeight = 15;  // of a contender's name

/// Colours for light and dark pages, as CSS; distinguishable with any colour vision.
struct Style {
  const char* contender;
  const char* light;
  const char* dark;
};
constexpr Style kStyles[] = {
    {"mha", "#0b62d6", "#5aa9ff"},
    {"eigen", "#8a6d00", "#d9b648"},
    {"libtorch", "#c8432b", "#ff8a70"},
    {"openblas", "#0f7f6c", "#4fcbb3"},
};

std::string number(double x) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", x);
  return text.data();
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else {
      result += c;
    }
  }
  return result;
}

void text(std::ostream& out, double x, double y, const std::string& classes,
          const std::string& content) {
  out << "<text x='" << number(x) << "' y='" << number(y) << "' class='" << classes << "'>"
      << escaped(content) << "</text>\n";
}

void line(std::ostream& out, double x1, double y1, double x2, double y2,
          const std::string& classes) {
  out << "<line x1='" << number(x1) << "' y1='" << number(y1) << "' x2='" << number(x2) << "' y2='"
      << number(y2) << "' class='" << classes << "'/>\n";
}

void print_css(std::ostream& out) {
  const auto colours = [&](bool dark) {
    out << ".page{fill:" << (dark ? "#14171c" : "#ffffff") << "}\n"
        << "text{fill:" << (dark ? "#e4e7eb" : "#1d2126") << "}\n"
        << ".soft{fill:" << (dark ? "#9aa3ad" : "#5c6570") << "}\n"
        << ".grid{stroke:" << (dark ? "#2c323a" : "#e3e6ea") << "}\n"
        << ".limit{stroke:" << (dark ? "#9aa3ad" : "#5c6570") << "}\n";
    for (const Style& style : kStyles) {
      const char* colour = dark ? style.dark : style.light;
      out << "." << style.contender << "{stroke:" << colour << "}\n"
          << ".dot." << style.contender << ",text." << style.contender << "{fill:" << colour
          << "}\n";
    }
  };
  out << "<style>\n"
         "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
         "font-size:12px;stroke:none!important}\n"
         ".title{font-size:17px;font-weight:600}\n"
         ".heading{font-size:13px;font-weight:600}\n"
         ".tick{text-anchor:middle}\n"
         ".scale{text-anchor:end}\n"
         "text.mha{font-weight:700}\n"
         ".grid{stroke-width:1}\n"
         ".limit{stroke-width:1.5;stroke-dasharray:5 4}\n"
         ".read{stroke-width:2.5;stroke-dasharray:none}\n"
         ".curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\n"
         ".curve.mha{stroke-width:3.2}\n"
         ".dot{stroke:none}\n"
         ".leader{stroke-width:1;opacity:.6}\n";
  colours(false);
  out << "@media (prefers-color-scheme:dark){\n";
  colours(true);
  out << "}\n</style>\n";
}

/// The workloads of a panel: one query against a cache first, apart; then by their work.
std::vector<Workload> ordered(Kind kind) {
  std::vector<Workload> list;
  for (const Workload& w : kind == Kind::layer ? layer_workloads() : attention_workloads()) {
    if (w.in_figure) list.push_back(w);
  }
  std::sort(list.begin(), list.end(), [](const Workload& a, const Workload& b) {
    const bool a_decodes = a.query_len != a.kv_len;
    const bool b_decodes = b.query_len != b.kv_len;
    return a_decodes != b_decodes ? a_decodes : a.flops() < b.flops();
  });
  return list;
}

/// Moves labels apart that would overlap: `y` are wanted places, sorted here with their names.
void spread(std::vector<std::pair<double, std::string>>& labels, double lowest) {
  std::sort(labels.begin(), labels.end());
  for (std::size_t k = 1; k < labels.size(); ++k) {
    labels[k].first = std::max(labels[k].first, labels[k - 1].first + kLabelHeight);
  }
  double most = lowest;
  for (std::size_t k = labels.size(); k-- > 0;) {
    labels[k].first = std::min(labels[k].first, most);
    most = labels[k].first - kLabelHeight;
  }
}

class Panel {
 public:
  Panel(std::ostream& out, const Results& results, Kind kind, int threads, double x, double y)
      : out_(out),
        results_(results),
        kind_(kind),
        threads_(threads),
        list_(ordered(kind)),
        left_(x + kLeft),
        top_(y + kTop) {}

  static double width(Kind kind) {
    return kLeft + kStep * static_cast<double>(ordered(kind).size()) + kRight;
  }
  static double height() { return kTop + kPlotHeight + kBottom; }

  void print() const {
    const double right = left_ + kStep * static_cast<double>(list_.size());
    const std::string peak = results_.fact("FMA peak, " + std::to_string(threads_) +
                                           (threads_ == 1 ? " thread" : " threads"));
    text(out_, left_, top_ - 24, "heading",
         std::string(kind_ == Kind::layer ? "Layer" : "Attention") + ", " +
             std::to_string(threads_) + (threads_ == 1 ? " thread" : " threads"));
    for (int percent = 0; percent <= 100; percent += 25) {
      const double y = place(percent / 100.0);
      line(out_, left_, y, right, y, percent == 100 ? "limit" : "grid");
      text(out_, left_ - 8, y + 4, "scale soft", std::to_string(percent) + "%");
    }
    text(out_, right, place(1) - 6, "scale soft", peak.empty() ? "peak" : "peak: " + peak);
    print_ticks();
    for (std::size_t k = 0; k < list_.size() && kind_ == Kind::attention; ++k) print_reading(k);
    // mha last, so that it lies on top.
    std::vector<std::string> names = results_.contender_names();
    std::reverse(names.begin(), names.end());
    std::vector<std::pair<double, std::string>> labels;
    std::map<std::string, double> ends;
    for (const std::string& name : names) {
      if (name == kReadName) continue;
      const double end = print_curve(name);
      if (end < 0) continue;
      ends[name] = end;
      labels.emplace_back(end, name);
    }
    spread(labels, place(0));
    for (const auto& [y, name] : labels) {
      line(out_, centre(list_.size() - 1) + 7, ends[name], right + 2, y, "leader " + name);
      text(out_, right + 6, y + 4, name, contender_title(name));
    }
  }

 private:
  double place(double fraction) const { return top_ + kPlotHeight * (1 - fraction); }
  double centre(std::size_t k) const { return left_ + kStep * (static_cast<double>(k) + 0.5); }
  static bool decodes(const Workload& w) { return w.query_len != w.kv_len; }

  void print_ticks() const {
    const double y = place(0);
    text(out_, left_ - 16, y + 17, "scale soft", "tokens");
    text(out_, left_ - 16, y + 32, "scale soft", "heads");
    for (std::size_t k = 0; k < list_.size(); ++k) {
      const Workload& w = list_[k];
      const std::string batch = w.batch > 1 ? std::to_string(w.batch) + " \u00d7 " : "";
      text(out_, centre(k), y + 17, "tick",
           decodes(w) ? "1 of " + std::to_string(w.kv_len) : batch + std::to_string(w.query_len));
      const std::string shared = w.kv_heads == w.heads ? "" : "/" + std::to_string(w.kv_heads);
      text(out_, centre(k), y + 32, "tick soft",
           std::to_string(w.heads) + shared + " \u00d7 " + std::to_string(w.head_dim));
      if (w.variant == Variant::causal) text(out_, centre(k), y + 47, "tick soft", "causal");
      if (decodes(w)) {
        text(out_, centre(k), y + 47, "tick soft", "decoding");
        line(out_, left_ + kStep, top_, left_ + kStep, y, "grid");
      }
    }
  }

  /// How fast one query could be if reading keys and values were all there is to do.
  void print_reading(std::size_t k) const {
    const Workload& w = list_[k];
    const Row* read = results_.find(kReadName, full_name(w), threads_);
    if (read == nullptr || !decodes(w)) return;
    const double y = place(read->fraction_of_peak);
    line(out_, centre(k) - 16, y, centre(k) + 16, y, "limit read");
    text(out_, centre(k), y - 8, "tick soft", "reading");
  }

  /// The curve of a contender; the y of its end, or -1 if it has none.
  double print_curve(const std::string& name) const {
    std::string points;
    std::string dots;
    double end = -1;
    for (std::size_t k = 0; k < list_.size(); ++k) {
      const Row* row = results_.find(name, full_name(list_[k]), threads_);
      if (row == nullptr) continue;
      const double y = place(std::min(row->fraction_of_peak, 1.0));
      const std::string radius = name == "mha" ? "4.5" : "3.5";
      dots += "<circle cx='" + number(centre(k)) + "' cy='" + number(y) + "' r='" + radius +
              "' class='dot " + name + "'><title>" + contender_title(name) + ": " +
              number(100 * row->fraction_of_peak) + "%</title></circle>\n";
      if (decodes(list_[k])) continue;
      points += number(centre(k)) + "," + number(y) + " ";
      end = y;
    }
    if (!points.empty()) {
      out_ << "<polyline points='" << points << "' class='curve " << name << "'/>\n";
    }
    out_ << dots;
    return end;
  }

  std::ostream& out_;
  const Results& results_;
  Kind kind_;
  int threads_;
  std::vector<Workload> list_;
  double left_, top_;
};

}  // namespace

void write_figure(std::ostream& out, const Results& results) {
  const std::vector<int> thread_counts = results.thread_counts();
  const double attention_width = Panel::width(Kind::attention);
  const double width = 2 * kMargin + attention_width + Panel::width(Kind::layer);
  const double height =
      kHeader + Panel::height() * static_cast<double>(thread_counts.size()) + kMargin;
  out << "<svg xmlns='http://www.w3.org/2000/svg' width='" << number(width) << "' height='"
      << number(height) << "' viewBox='0 0 " << number(width) << " " << number(height)
      << "' role='img'>\n<title>Fraction of the FMA peak that each contender reaches</title>\n";
  print_css(out);
  out << "<rect width='100%' height='100%' rx='8' class='page'/>\n";
  text(out, kMargin + kLeft, 34, "title", "How much of the processor's arithmetic is used");
  text(out, kMargin + kLeft, 54, "soft",
       "GFLOP/s as a fraction of the measured peak of fused multiply-adds, in float. Under the "
       "points: "
       "tokens, heads \u00d7 head_dim. " +
           results.fact("processor") + ", " + results.fact("compiler"));
  for (std::size_t t = 0; t < thread_counts.size(); ++t) {
    const double y = kHeader + Panel::height() * static_cast<double>(t);
    Panel(out, results, Kind::attention, thread_counts[t], kMargin, y).print();
    Panel(out, results, Kind::layer, thread_counts[t], kMargin + attention_width, y).print();
  }
  out << "</svg>\n";
}

}  // namespace mha_bench
