// SPDX-License-Identifier: MIT
//
// How much memory a call takes beside its inputs and outputs:
//     first_bytes  allocated at most at a time, from the call's preparation to its first end; with
//                  a workspace that was empty before
//     again_bytes  the same of the second run of the same call
//     seconds      the time of the first run
// Counted are the functions of the malloc family, for the whole process (see allocations.hpp).
#include <algorithm>
#include <chrono>

#include "support/allocations.hpp"
#include "support/google_benchmark.hpp"

namespace mha_bench {
namespace {

/// A second run of a call that took longer than this is left out.
constexpr double kLongSeconds = 20;
/// A contender that would need more than this is left out.
constexpr double kMostBytes = 8e9;

benchmark::Counter bytes_counter(std::int64_t bytes) {
  using benchmark::Counter;
  return {static_cast<double>(bytes), Counter::kDefaults, Counter::kIs1024};
}

void measure_memory(benchmark::State& state, const Workload& workload, Contender& contender,
                    int threads) {
  // The others keep all scores of as many heads as they compute at a time, at most all.
  const bool keeps_scores = contender.name() != "mha";
  if (keeps_scores && workload.allowed_pairs() * sizeof(float) > kMostBytes) {
    state.SkipWithError("needs all scores");
    return;
  }
  contender.set_threads(threads);
  // Whatever the contender or its threads allocate once and for all is not of this call.
  const Workload small{.heads = 8, .query_len = 64, .head_dim = 64, .kv_heads = 8, .kv_len = 64};
  const Problem small_problem(small);
  small_problem.call(contender)->run();

  const Problem problem(workload);
  for ([[maybe_unused]] auto iteration : state) {
    const std::int64_t before = reset_peak_bytes();
    const std::unique_ptr<Call> call = problem.call(contender);
    if (call == nullptr) {
      state.SkipWithError("this contender has no such call");
      break;
    }
    const auto start = std::chrono::steady_clock::now();
    call->run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    state.counters["seconds"] = seconds.count();
    state.counters["first_bytes"] = bytes_counter(peak_bytes() - before);
    if (seconds.count() < kLongSeconds) {
      const std::int64_t before_again = reset_peak_bytes();
      call->run();
      state.counters["again_bytes"] = bytes_counter(peak_bytes() - before_again);
    }
  }
}

std::vector<Workload> workloads() {
  std::vector<Workload> list;
  for (const Workload& w : attention_workloads()) {
    if (w.name == "P1" || w.name == "P5" || w.name == "P7") list.push_back(w);
  }
  Workload whole{.name = "65536",
                 .heads = 8,
                 .query_len = 65536,
                 .head_dim = 64,
                 .kv_heads = 8,
                 .kv_len = 65536};
  Workload window = whole;
  window.name = "65536 window";
  window.variant = Variant::window;
  list.push_back(window);
  list.push_back(whole);
  for (Workload& w : list) w.in_figure = true;
  return list;
}

}  // namespace
}  // namespace mha_bench

int main(int argc, char** argv) {
  if (!mha_bench::kCountsAllocations) return 0;
  return mha_bench::run_benchmarks(argc, argv, mha_bench::workloads(), mha_bench::measure_memory);
}
