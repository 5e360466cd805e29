// SPDX-License-Identifier: MIT
//
// Everything at once: every workload by every contender, with one thread and with all, as tables,
// as a CSV file and as a picture.
//     bench_table [--csv FILE] [--figure FILE] [--threads 1,2] [--only TEXT] [--short]
//     bench_table --from FILE [--figure FILE]      the tables and the picture of an earlier run
// README.md beside this file says what is measured, and how.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "contender_mha.hpp"
#include "support/contenders.hpp"
#include "support/figure.hpp"
#include "support/machine.hpp"
#include "support/results.hpp"
#include "support/timing.hpp"

namespace mha_bench {
namespace {

struct Arguments {
  std::string csv, figure, from;
  std::string only;  ///< of the workloads, those with this in their name
  std::vector<int> threads{};
  bool is_short = false;  ///< small workloads, once: shows that the program works
};

std::vector<int> thread_list(const std::string& text) {
  std::vector<int> threads;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t comma = std::min(text.find(',', begin), text.size());
    const int count = std::atoi(text.substr(begin, comma - begin).c_str());
    if (count < 1) throw std::invalid_argument("--threads takes numbers, as in 1,2");
    threads.push_back(count);
    begin = comma + 1;
  }
  return threads;
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int a = 1; a < argc; ++a) {
    const std::string name = argv[a];
    const auto value = [&]() -> std::string {
      if (++a == argc) throw std::invalid_argument(name + " needs a value");
      return argv[a];
    };
    if (name == "--csv") {
      arguments.csv = value();
    } else if (name == "--figure") {
      arguments.figure = value();
    } else if (name == "--from") {
      arguments.from = value();
    } else if (name == "--only") {
      arguments.only = value();
    } else if (name == "--threads") {
      arguments.threads = thread_list(value());
    } else if (name == "--short") {
      arguments.is_short = true;
    } else {
      throw std::invalid_argument(
          name + " is not known; known are --csv, --figure, --from, --only, --threads, --short");
    }
  }
  if (arguments.threads.empty()) {
    arguments.threads = {1};
    if (num_cores() > 1) arguments.threads.push_back(num_cores());
  }
  return arguments;
}

/// The greatest difference of an output from the first contender's. Both compute in float, by other
/// orders of operations.
constexpr float kTolerance = 1e-4f;

class Measurement {
 public:
  explicit Measurement(const Arguments& arguments) : arguments_(arguments) {}

  void run() {
    for (const int threads : arguments_.threads) {
      for (const auto& contender : contenders()) contender->set_threads(threads);
      fma_peak(threads, Arithmetic::f32);
      std::vector<std::string> done;
      for (const Workload& w : all_workloads()) {
        const std::string group = full_name(w).substr(0, full_name(w).find('/')) + w.group;
        if (std::find(done.begin(), done.end(), group) != done.end()) continue;
        done.push_back(group);
        measure_group(w, threads);
      }
    }
    remeasure_peaks();
  }

  Results results() const {
    Results results;
    results.facts = machine_facts();
    for (const int threads : arguments_.threads) {
      const auto name = [&](const std::string& what) {
        return what + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
      };
      const auto rate = [](double value, const std::string& unit) {
        return std::to_string(static_cast<long>(std::lround(value))) + " " + unit;
      };
      results.facts.emplace_back(name("FMA peak"),
                                 rate(fma_peak(threads, Arithmetic::f32), "GFLOP/s"));
      for (const std::size_t bytes : {std::size_t{1} << 25, std::size_t{1} << 29}) {
        if (arguments_.is_short && bytes > (std::size_t{1} << 25)) continue;
        results.facts.emplace_back(name("reading " + std::to_string(bytes >> 20) + " MiB"),
                                   rate(measure_read_bandwidth(bytes, threads), "GB/s"));
      }
    }
    for (const auto& contender : contenders()) {
      results.facts.emplace_back(contender_title(contender->name()), contender->describe());
    }
    results.rows = rows_;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const Workload& w = workloads_[r];
      Row& row = results.rows[r];
      row.gflops = w.flops() / (row.min_ms * 1e6);
      row.fraction_of_peak = row.gflops / fma_peak(row.threads, arithmetic_of(w));
    }
    return results;
  }

  bool agreed() const { return agreed_; }

 private:
  bool takes_part(const Workload& w, int threads) const {
    if (arguments_.is_short && w.flops() > kShortFlops) return false;
    if (threads > 1 && !w.in_figure) return false;
    return full_name(w).find(arguments_.only) != std::string::npos;
  }

  /// All workloads of the group that `first` begins.
  void measure_group(const Workload& first, int threads) {
    std::vector<std::unique_ptr<Problem>> problems;
    std::vector<Entrant> entrants;
    std::vector<std::pair<std::string, const Problem*>> who;
    for (const Workload& w : all_workloads()) {
      if (w.kind != first.kind || w.group != first.group || !takes_part(w, threads)) continue;
      problems.push_back(std::make_unique<Problem>(w));
      const Problem& problem = *problems.back();
      for (const auto& contender : contenders()) {
        std::unique_ptr<Call> call = problem.call(*contender);
        if (call == nullptr) continue;
        entrants.push_back({.call = std::move(call)});
        who.emplace_back(contender->name(), &problem);
      }
      if (w.kind == Kind::attention && w.query_len == 1) {
        entrants.push_back(
            {.call = read_keys_and_values(*problem.attention, make_mha_threads(threads))});
        who.emplace_back(kReadName, &problem);
      }
    }
    if (entrants.empty()) return;
    std::cerr << "measuring " << full_name(first) << ", " << threads
              << (threads == 1 ? " thread" : " threads") << "\n";
    std::vector<float> expected;
    time_in_turn(entrants, threads, arguments_.is_short ? kShortPlan : TimingPlan{},
                 [&](std::size_t e) { compare(who[e].first, *who[e].second, expected); });
    for (std::size_t e = 0; e < entrants.size(); ++e) {
      const Workload& w = who[e].second->workload;
      fma_peak(threads, arithmetic_of(w));
      rows_.push_back({.contender = who[e].first,
                       .workload = full_name(w),
                       .threads = threads,
                       .min_ms = entrants[e].min_ms(),
                       .median_ms = entrants[e].median_ms()});
      workloads_.push_back(w);
    }
  }

  /// Keeps the output of mha, which comes first, and holds the others' against it.
  void compare(const std::string& contender, const Problem& problem, std::vector<float>& expected) {
    const Buffer<float>& output = problem.output();
    if (contender == "mha") {
      expected.assign(output.begin(), output.end());
      return;
    }
    if (contender == kReadName) return;
    float worst = 0;
    for (std::size_t k = 0; k < output.size(); ++k) {
      const float difference = std::abs(output.data()[k] - expected[k]);
      if (!(difference <= worst)) worst = difference;  // NaN counts
    }
    if (worst <= kTolerance) return;
    std::cerr << full_name(problem.workload) << ": the output of " << contender_title(contender)
              << " differs from mha's by " << worst << "\n";
    agreed_ = false;
  }

  const Arguments& arguments_;
  std::vector<Row> rows_;
  std::vector<Workload> workloads_;  ///< of the rows
  bool agreed_ = true;
};

template <class Write>
void write_file(const std::string& name, const Write& write) {
  if (name.empty()) return;
  const std::filesystem::path folder = std::filesystem::path(name).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder);
  std::ofstream file(name);
  write(file);
  file.close();
  if (!file) throw std::runtime_error(name + " cannot be written");
}

int run(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  Results results;
  bool agreed = true;
  if (arguments.from.empty()) {
    Measurement measurement(arguments);
    measurement.run();
    results = measurement.results();
    agreed = measurement.agreed();
  } else {
    std::ifstream file(arguments.from);
    if (!file) throw std::runtime_error(arguments.from + " cannot be read");
    results = read_csv(file);
  }
  print_tables(std::cout, results);
  write_file(arguments.csv, [&](std::ostream& out) { write_csv(out, results); });
  write_file(arguments.figure, [&](std::ostream& out) { write_figure(out, results); });
  return agreed ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace mha_bench

int main(int argc, char** argv) {
  try {
    return mha_bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "bench_table: " << error.what() << "\n";
    return EXIT_FAILURE;
  }
}
