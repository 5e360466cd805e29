// SPDX-License-Identifier: MIT
#include "support/machine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#if defined(__linux__)
#include <sys/utsname.h>
#include <unistd.h>
#endif

#include "support/buffer.hpp"
#include "support/eigen_version.hpp"

// The loops, for each instruction set.
namespace {
constexpr int kFmaSums = 12;
}  // namespace
#define BENCH_TARGET baseline
#define BENCH_BYTES 16
#include "support/machine_kernels.inc"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define BENCH_TARGET avx2
#define BENCH_BYTES 32
#include "support/machine_kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#define BENCH_TARGET avx512
#define BENCH_BYTES 64
#include "support/machine_kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // x86-64

namespace mha_bench {
namespace {

struct Kernels {
  const char* name;
  long floats;  ///< in a vector
  float (*fma_float)(long, float, float);
  double (*fma_double)(long, double, double);
  float (*sum)(const float*, long);
};

/// The widest that this processor has; AVX2's at most if asked for.
const Kernels& kernels(bool at_most_avx2 = false) {
  static const auto choose = [](bool narrow) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!narrow && __builtin_cpu_supports("avx512f")) {
      return Kernels{"AVX-512", 16, avx512::fma_chains_float, avx512::fma_chains_double,
                     avx512::sum};
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return Kernels{"AVX2", 8, avx2::fma_chains_float, avx2::fma_chains_double, avx2::sum};
    }
    const char* name = "SSE2";
#else
    static_cast<void>(narrow);
    const char* name = "128-bit vectors";
#endif
    return Kernels{name, 4, baseline::fma_chains_float, baseline::fma_chains_double, baseline::sum};
  };
  static const Kernels widest = choose(false);
  static const Kernels narrower = choose(true);
  return at_most_avx2 ? narrower : widest;
}

/// Seconds from the moment when all `threads` threads begin f(thread) until the last is done.
double seconds_together(int threads, const std::function<void(int)>& f) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(threads));
  std::vector<Clock::time_point> end(begin.size());
  const auto work = [&](int thread) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    begin[static_cast<std::size_t>(thread)] = Clock::now();
    f(thread);
    end[static_cast<std::size_t>(thread)] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

std::map<std::pair<int, Arithmetic>, double>& known_peaks() {
  static std::map<std::pair<int, Arithmetic>, double> peaks;
  return peaks;
}

#if defined(__linux__)
/// The value of the first "name : value" line of a file of /proc, or nothing.
std::string proc_value(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(':');
    if (line.compare(0, name.size(), name) == 0 && colon != std::string::npos) {
      const std::size_t value = line.find_first_not_of(" \t", colon + 1);
      return value == std::string::npos ? std::string() : line.substr(value);
    }
  }
  return {};
}

std::string kibibytes(long bytes) {
  return bytes > 0 ? std::to_string(bytes / 1024) + " KiB" : "unknown";
}
#endif

}  // namespace

int num_cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

std::string instruction_set() { return kernels().name; }

double measure_fma_peak(int threads, Arithmetic arithmetic) {
  constexpr int kTries = 30;
  constexpr long kSteps = 1L << 17;
  const bool in_double = arithmetic == Arithmetic::f64;
  const Kernels& k = kernels(arithmetic == Arithmetic::f32_avx2);
  std::atomic<int> sink{0};  // the results are used, and the operands unknown to the compiler
  const volatile double half = 0.5;
  const auto work = [&](int) {
    const double result = in_double
                              ? k.fma_double(kSteps, half, half)
                              : static_cast<double>(k.fma_float(kSteps, static_cast<float>(half),
                                                                static_cast<float>(half)));
    sink += result > 0 ? 1 : 0;
  };
  const long lanes = in_double ? k.floats / 2 : k.floats;
  const double flops = 2.0 * static_cast<double>(kSteps * kFmaSums * lanes) * threads;
  double best = 0;
  for (int round = 0; round < kTries; ++round) {
    best = std::max(best, flops / seconds_together(threads, work));
  }
  return best * 1e-9;
}

float read_all(const float* numbers, std::size_t count) {
  return kernels().sum(numbers, static_cast<long>(count));
}

double measure_read_bandwidth(std::size_t bytes, int threads) {
  constexpr std::size_t kMultiple = 1024;
  const int tries = bytes > (std::size_t{1} << 28) ? 5 : 40;
  const std::size_t part =
      bytes / sizeof(float) / static_cast<std::size_t>(threads) / kMultiple * kMultiple;
  const Buffer<float> numbers = [&] {
    Buffer<float> ones(part * static_cast<std::size_t>(threads));
    std::fill(ones.begin(), ones.end(), 1.0f);
    return ones;
  }();
  std::atomic<int> sink{0};
  double best = 0;
  for (int round = 0; round < tries; ++round) {
    const double seconds = seconds_together(threads, [&](int thread) {
      sink += read_all(numbers.data() + static_cast<std::size_t>(thread) * part, part) > 0 ? 1 : 0;
    });
    best = std::max(best, static_cast<double>(numbers.size() * sizeof(float)) / seconds);
  }
  return best * 1e-9;
}

double fma_peak(int threads, Arithmetic arithmetic) {
  const auto [peak, is_new] = known_peaks().try_emplace({threads, arithmetic}, 0.0);
  if (is_new) peak->second = measure_fma_peak(threads, arithmetic);
  return peak->second;
}

void remeasure_peaks() {
  for (auto& [what, peak] : known_peaks()) {
    peak = std::max(peak, measure_fma_peak(what.first, what.second));
  }
}

std::vector<std::pair<std::string, std::string>> machine_facts() {
  std::vector<std::pair<std::string, std::string>> facts;
#if defined(__linux__)
  const std::string processor = proc_value("/proc/cpuinfo", "model name");
  facts.emplace_back("processor", processor.empty() ? "unknown" : processor);
  facts.emplace_back("cores", std::to_string(num_cores()));
  facts.emplace_back("vectors", instruction_set());
  facts.emplace_back("caches", "L1d " + kibibytes(sysconf(_SC_LEVEL1_DCACHE_SIZE)) + ", L2 " +
                                   kibibytes(sysconf(_SC_LEVEL2_CACHE_SIZE)) + ", L3 " +
                                   kibibytes(sysconf(_SC_LEVEL3_CACHE_SIZE)));
  facts.emplace_back("memory", proc_value("/proc/meminfo", "MemTotal"));
  utsname system{};
  if (uname(&system) == 0) {
    facts.emplace_back("system",
                       std::string(system.sysname) + " " + system.release + " " + system.machine);
  }
#else
  facts.emplace_back("cores", std::to_string(num_cores()));
  facts.emplace_back("vectors", instruction_set());
#endif
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "g++ " __VERSION__;
#endif
  facts.emplace_back("compiler", compiler + ", " MHA_BENCH_FLAGS);
  facts.emplace_back("Eigen", eigen_version());
  return facts;
}

}  // namespace mha_bench
