// SPDX-License-Identifier: MIT
#include "support/results.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <istream>
#include <ostream>
#include <set>
#include <sstream>
#include <stdexcept>

namespace mha_bench {
namespace {

constexpr const char* kColumns =
    "contender,workload,threads,min_ms,median_ms,gflops,fraction_of_peak";

/// printf for one number.
std::string format(const char* pattern, double number) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, number);
  return text.data();
}

/// Three significant digits, in a fitting unit.
std::string time_text(double ms) {
  const bool micro = ms < 0.1;
  const double number = micro ? ms * 1e3 : ms;
  const char* pattern = number < 10 ? "%.2f" : number < 100 ? "%.1f" : "%.0f";
  return format(pattern, number) + (micro ? " us" : " ms");
}

std::string ratio_text(double ratio) { return format(ratio < 10 ? "%.2f" : "%.1f", ratio); }

/// A Markdown table whose columns are as wide as their widest cell.
void print_markdown(std::ostream& out, std::vector<std::vector<std::string>> lines) {
  std::vector<std::size_t> widths(lines.front().size(), 3);
  for (const auto& line : lines) {
    for (std::size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  }
  std::vector<std::string> rule;
  for (const std::size_t width : widths) rule.emplace_back(width, '-');
  lines.insert(lines.begin() + 1, rule);
  for (const auto& line : lines) {
    for (std::size_t c = 0; c < line.size(); ++c) {
      out << (c == 0 ? "| " : " | ") << line[c] << std::string(widths[c] - line[c].size(), ' ');
    }
    out << " |\n";
  }
}

void print_kind(std::ostream& out, const Results& results, Kind kind, int threads) {
  std::vector<std::string> others;
  for (const std::string& name : results.contender_names()) {
    if (name != "mha" && name != kReadName) others.push_back(name);
  }
  std::vector<std::string> head{"workload", "shape", "mha best", "median", "GFLOP/s", "of peak"};
  if (threads > 1) head.emplace_back("1 thread / this");
  for (const std::string& name : others) head.push_back(contender_title(name) + " (/ mha)");
  head.emplace_back("fastest other / mha");
  std::vector<std::vector<std::string>> lines{head};
  for (const Workload& w : kind == Kind::layer ? layer_workloads() : attention_workloads()) {
    const Row* mha = results.find("mha", full_name(w), threads);
    if (mha == nullptr) continue;
    std::vector<std::string> line{w.name,
                                  shape_text(w),
                                  time_text(mha->min_ms),
                                  time_text(mha->median_ms),
                                  format("%.1f", mha->gflops),
                                  format("%.3f", mha->fraction_of_peak)};
    if (threads > 1) {
      const Row* one = results.find("mha", full_name(w), 1);
      line.push_back(one == nullptr ? "" : ratio_text(one->min_ms / mha->min_ms));
    }
    double fastest = 0;
    for (const std::string& name : others) {
      const Row* row = results.find(name, full_name(w), threads);
      if (row == nullptr) {
        line.emplace_back();
        continue;
      }
      fastest = fastest == 0 ? row->min_ms : std::min(fastest, row->min_ms);
      line.push_back(time_text(row->min_ms) + " (" + ratio_text(row->min_ms / mha->min_ms) + ")");
    }
    line.push_back(fastest == 0 ? "" : ratio_text(fastest / mha->min_ms));
    lines.push_back(line);
  }
  if (lines.size() == 1) return;
  out << "\n"
      << (kind == Kind::layer ? "Layer" : "Attention") << ", " << threads
      << (threads == 1 ? " thread" : " threads") << " (batch x heads x tokens x head_dim)\n\n";
  print_markdown(out, lines);
}

/// Two rows of mha (or `over`'s) that are read together.
struct Comparison {
  const char* text;
  const char* first;
  const char* second;
  bool speeds = false;  ///< GFLOP/s, so that more is better; else times
  const char* second_contender = "mha";
};

constexpr Comparison kComparisons[] = {
    {"GFLOP/s, head_dim 15 / 16", "attention/head_dim 15", "attention/head_dim 16", true},
    {"GFLOP/s, head_dim 40 / 32", "attention/head_dim 40", "attention/head_dim 32", true},
    {"GFLOP/s, head_dim 40 / 48", "attention/head_dim 40", "attention/head_dim 48", true},
    {"GFLOP/s, head_dim 80 / 64", "attention/head_dim 80", "attention/P3", true},
    {"GFLOP/s, head_dim 80 / 128", "attention/head_dim 80", "attention/head_dim 128", true},
    {"GFLOP/s, head_dim 96 / 64", "attention/head_dim 96", "attention/P3", true},
    {"GFLOP/s, head_dim 96 / 128", "attention/head_dim 96", "attention/head_dim 128", true},
    {"GFLOP/s, 127 / 128 tokens", "attention/tokens 127", "attention/P1", true},
    {"GFLOP/s, 129 / 128 tokens", "attention/tokens 129", "attention/P1", true},
    {"GFLOP/s, 1000 / 1024 tokens", "attention/tokens 1000", "attention/tokens 1024", true},
    {"GFLOP/s, ragged / equal lengths", "attention/ragged", "attention/P2", true},
    {"GFLOP/s, ragged / equal lengths, layer", "layer/ragged", "layer/P2", true},
    {"time, window of 256 / all 8192 keys", "attention/window 256", "attention/P5"},
    {"time, returning lse / not", "attention/lse", "attention/P3"},
    {"time, alibi() / none", "attention/alibi", "attention/P3"},
    {"time, alibi as a lambda / alibi()", "attention/alibi lambda", "attention/alibi"},
    {"time, double / float", "attention/double", "attention/P3"},
    {"time, D1 / reading its keys and values", "attention/D1", "attention/D1", false, kReadName},
};

void print_comparisons(std::ostream& out, const Results& results) {
  std::vector<std::vector<std::string>> lines{{"mha against itself", "threads", "ratio"}};
  for (const Comparison& c : kComparisons) {
    for (const int threads : results.thread_counts()) {
      const Row* first = results.find("mha", c.first, threads);
      const Row* second = results.find(c.second_contender, c.second, threads);
      if (first == nullptr || second == nullptr) continue;
      const double ratio =
          c.speeds ? first->gflops / second->gflops : first->min_ms / second->min_ms;
      lines.push_back({c.text, std::to_string(threads), format("%.3f", ratio)});
    }
  }
  if (lines.size() == 1) return;
  out << "\n";
  print_markdown(out, lines);
}

}  // namespace

const Row* Results::find(const std::string& contender, const std::string& workload,
                         int threads) const {
  for (const Row& row : rows) {
    if (row.contender == contender && row.workload == workload && row.threads == threads) {
      return &row;
    }
  }
  return nullptr;
}

std::string Results::fact(const std::string& name) const {
  for (const auto& [fact_name, value] : facts) {
    if (fact_name == name) return value;
  }
  return {};
}

std::vector<int> Results::thread_counts() const {
  std::set<int> counts;
  for (const Row& row : rows) counts.insert(row.threads);
  return {counts.begin(), counts.end()};
}

std::vector<std::string> Results::contender_names() const {
  std::vector<std::string> names;
  for (const Row& row : rows) {
    if (std::find(names.begin(), names.end(), row.contender) == names.end()) {
      names.push_back(row.contender);
    }
  }
  return names;
}

std::string contender_title(const std::string& name) {
  if (name == "eigen") return "naive Eigen";
  if (name == "openblas") return "OpenBLAS";
  if (name == kReadName) return "read";
  return name;
}

void write_csv(std::ostream& out, const Results& results) {
  for (const auto& [name, value] : results.facts) out << "# " << name << ": " << value << "\n";
  out << kColumns << "\n";
  for (const Row& row : results.rows) {
    out << row.contender << "," << row.workload << "," << row.threads << ","
        << format("%.6g", row.min_ms) << "," << format("%.6g", row.median_ms) << ","
        << format("%.5g", row.gflops) << "," << format("%.4f", row.fraction_of_peak) << "\n";
  }
}

Results read_csv(std::istream& in) {
  Results results;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.rfind("# ", 0) == 0) {
      const std::size_t colon = line.find(": ");
      if (colon != std::string::npos) {
        results.facts.emplace_back(line.substr(2, colon - 2), line.substr(colon + 2));
      }
      continue;
    }
    if (line == kColumns || line.empty()) continue;
    std::istringstream cells(line);
    Row row;
    char comma = ',';
    std::getline(cells, row.contender, ',');
    std::getline(cells, row.workload, ',');
    cells >> row.threads >> comma >> row.min_ms >> comma >> row.median_ms >> comma >> row.gflops >>
        comma >> row.fraction_of_peak;
    if (!cells) throw std::runtime_error("line " + std::to_string(number) + " is not a result");
    results.rows.push_back(row);
  }
  return results;
}

void print_tables(std::ostream& out, const Results& results) {
  for (const auto& [name, value] : results.facts) out << name << ": " << value << "\n";
  for (const Kind kind : {Kind::attention, Kind::layer}) {
    for (const int threads : results.thread_counts()) print_kind(out, results, kind, threads);
  }
  print_comparisons(out, results);
}

}  // namespace mha_bench
