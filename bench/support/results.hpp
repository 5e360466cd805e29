// SPDX-License-Identifier: MIT
//
// What was measured, as rows: written to and read from CSV, and printed as tables.
#pragma once

#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

#include "support/workloads.hpp"

namespace mha_bench {

struct Row {
  std::string contender;
  std::string workload;  ///< as full_name() has it
  int threads = 1;
  double min_ms = 0;
  double median_ms = 0;
  double gflops = 0;            ///< by the best time
  double fraction_of_peak = 0;  ///< of the FMA peak of so many threads (in double if it is one)
};

/// Name and value, in order: the machine, its limits, the contenders.
using Facts = std::vector<std::pair<std::string, std::string>>;

struct Results {
  Facts facts;
  std::vector<Row> rows;

  const Row* find(const std::string& contender, const std::string& workload, int threads) const;
  std::string fact(const std::string& name) const;   ///< empty if there is none
  std::vector<int> thread_counts() const;            ///< ascending
  std::vector<std::string> contender_names() const;  ///< in order of appearance
};

/// The name of a contender that reads keys and values and computes nothing.
inline constexpr const char* kReadName = "read";

/// How people call the contender of this name.
std::string contender_title(const std::string& name);

/// `# name: value` for every fact, then contender,workload,threads,min_ms,median_ms,gflops,
/// fraction_of_peak.
void write_csv(std::ostream& out, const Results& results);
/// @throws std::runtime_error with the number of the line that cannot be read
Results read_csv(std::istream& in);

/// Facts, a Markdown table per kind and number of threads, and what compares one workload with
/// another.
void print_tables(std::ostream& out, const Results& results);

}  // namespace mha_bench
