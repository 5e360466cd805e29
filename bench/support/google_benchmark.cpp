// SPDX-License-Identifier: MIT
#include "support/google_benchmark.hpp"

#include <algorithm>
#include <cstring>

#include "support/machine.hpp"
#include "support/results.hpp"

namespace mha_bench {

int run_benchmarks(int argc, char** argv, const std::vector<Workload>& workloads,
                   const BenchmarkFunction& function) {
  char** const end = std::remove_if(argv + 1, argv + argc, [](const char* argument) {
    return std::strcmp(argument, "--short") == 0;
  });
  const bool is_short = end != argv + argc;
  argc = static_cast<int>(end - argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;

  for (const auto& [name, value] : machine_facts()) benchmark::AddCustomContext(name, value);
  std::vector<int> thread_counts{1};
  if (num_cores() > 1) thread_counts.push_back(num_cores());
  for (const int threads : thread_counts) {
    const std::string name = "FMA peak, threads:" + std::to_string(threads);
    const double peak = fma_peak(threads, Arithmetic::f32);
    benchmark::AddCustomContext(name, std::to_string(static_cast<int>(peak)) + " GFLOP/s");
  }
  for (const auto& contender : contenders()) {
    benchmark::AddCustomContext(contender_title(contender->name()), contender->describe());
    for (const Workload& w : workloads) {
      if (is_short && w.flops() > kShortFlops) continue;
      for (const int threads : thread_counts) {
        if (threads > 1 && !w.in_figure) continue;
        std::string name = w.name + "/" + contender->name() + "/threads:" + std::to_string(threads);
        std::replace(name.begin(), name.end(), ' ', '_');
        benchmark::RegisterBenchmark(name.c_str(),
                                     [&function, &w, &contender, threads](benchmark::State& state) {
                                       function(state, w, *contender, threads);
                                     })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

void time_call(benchmark::State& state, const Workload& workload, Contender& contender,
               int threads) {
  contender.set_threads(threads);
  const Problem problem(workload);
  const std::unique_ptr<Call> call = problem.call(contender);
  if (call == nullptr) {
    state.SkipWithError("this contender has no such call");
    return;
  }
  settle(threads);
  call->run();
  for ([[maybe_unused]] auto iteration : state) call->run();
  using benchmark::Counter;
  const double gflop = workload.flops() * 1e-9;
  state.counters["GFLOP/s"] = Counter(gflop, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = Counter(gflop / fma_peak(threads, arithmetic_of(workload)),
                                      Counter::kIsIterationInvariantRate);
}

}  // namespace mha_bench
