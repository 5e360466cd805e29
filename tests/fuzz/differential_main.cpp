// SPDX-License-Identifier: MIT
//
// The differential test as a program:
//     mha_differential --seconds 60 --seed 7       random cases from a seed
//     mha_differential --cases 1000000             so many of them
//     mha_differential --case 0a1b2c...            one case, as a failure names it
//     mha_differential --file FILE                 one case, as a fuzzer leaves it
//     mha_differential --cases 20 --show all       says what the cases are
//     mha_differential --size small ...            cases of a fuzzer's size, a hundred times as many
// It ends with a line that says how many cases ran and how many were wrong, and one on the numbers
// compared; 1 if any was wrong, or too many bounds were too wide to show anything.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>

#include <mha/internal/kernels/dispatch.hpp>

#include "fuzz/differential.hpp"

namespace {

using mha::fuzz::Budget;

struct Settings {
  Budget budget;
  bool small = false;
  bool show = false;
};

/// True if the case is right; else says what is wrong and how to see it again.
bool is_right(const std::vector<std::uint8_t>& bytes, const Settings& settings) {
  mha::fuzz::Bytes choices(bytes.data(), bytes.size());
  const auto used = [&] {
    return mha::fuzz::to_hex(bytes.data(), std::min(bytes.size(), choices.used()));
  };
  try {
    const std::string name = mha::fuzz::differential_case(choices, settings.budget);
    if (settings.show) std::printf("%s%s\n", used().c_str(), name.c_str());
    return true;
  } catch (const std::exception& error) {
    std::printf("wrong on %s: %s\n  again: mha_differential %s--case %s\n",
                mha::kernels::name(mha::kernels::target()), error.what(),
                settings.small ? "--size small " : "", used().c_str());
    std::fflush(stdout);
    return false;
  }
}

int run_many(std::uint64_t seed, double seconds, std::uint64_t cases, const Settings& settings) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::uint64_t done = 0;
  std::uint64_t wrong = 0;
  double told = 0;
  while (done < cases && (done % 64 != 0 || elapsed() < seconds) && wrong < 20) {
    if (!is_right(mha::fuzz::case_bytes(seed, done), settings)) ++wrong;
    ++done;
    if (elapsed() > told + 30) {
      told = elapsed();
      std::fprintf(stderr, "%.0f s: %llu cases, %llu wrong\n", told,
                   static_cast<unsigned long long>(done), static_cast<unsigned long long>(wrong));
    }
  }
  std::printf("seed %llu: %llu cases in %.0f s, %llu wrong\n",
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(done),
              elapsed(), static_cast<unsigned long long>(wrong));
  const mha::fuzz::Comparisons& seen = mha::fuzz::comparisons();
  const bool shows_something = done < 1000 || seen.share() <= mha::fuzz::kMostVacuous;
  std::printf("%llu numbers compared, %.4f %% of them within a bound that allows nearly any%s\n",
              static_cast<unsigned long long>(seen.all), 100 * seen.share(),
              shows_something ? "" : ": too many");
  return wrong == 0 && shows_something ? 0 : 1;
}

int usage() {
  std::fprintf(
      stderr,
      "usage: mha_differential [--size small] ([--seconds S] [--cases N] [--seed K] [--show all] | "
      "--case HEX | --file FILE)\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int k = 1; k + 1 < argc; k += 2) options[argv[k]] = argv[k + 1];
  if (argc % 2 == 0) return usage();
  for (const auto& [name, value] : options) {
    if (name == "--size" && value != "small") return usage();
    if (name != "--seconds" && name != "--cases" && name != "--seed" && name != "--show" &&
        name != "--size" && name != "--case" && name != "--file") {
      return usage();
    }
  }
  Settings settings;
  settings.small = options.count("--size") != 0;
  if (settings.small) settings.budget = mha::fuzz::kSmallCases;
  const bool from_file = options.count("--file") != 0;
  settings.show = from_file || options.count("--case") != 0 || options.count("--show") != 0;
  if (from_file) {
    std::ifstream file(options["--file"], std::ios::binary);
    const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
    return is_right({text.begin(), text.end()}, settings) ? 0 : 1;
  }
  if (options.count("--case") != 0) {
    return is_right(mha::fuzz::from_hex(options["--case"]), settings) ? 0 : 1;
  }
  const bool counted = options.count("--cases") != 0;
  const bool timed = options.count("--seconds") != 0;
  const double seconds = timed ? std::atof(options["--seconds"].c_str()) : counted ? 1e9 : 10;
  const std::uint64_t cases =
      counted ? std::strtoull(options["--cases"].c_str(), nullptr, 10) : ~std::uint64_t{0};
  return run_many(std::strtoull(options["--seed"].c_str(), nullptr, 10), seconds, cases, settings);
}
