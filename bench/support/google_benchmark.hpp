// SPDX-License-Identifier: MIT
//
// What bench_attention, bench_layer and bench_memory share: their benchmarks are made from the list
// of workloads, and the machine's facts are printed above the results.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <string>
#include <vector>

#include "support/contenders.hpp"

namespace mha_bench {

/// A benchmark of one workload by one contender with so many threads.
using BenchmarkFunction =
    std::function<void(benchmark::State&, const Workload&, Contender&, int threads)>;

/// The main function of a program: registers `function` as "P1/mha/threads:1" and so on, for the
/// contenders and numbers of threads (one, and all) for which it makes sense, and runs what
/// --benchmark_filter chooses. --short leaves the large workloads out.
int run_benchmarks(int argc, char** argv, const std::vector<Workload>& workloads,
                   const BenchmarkFunction& function);

/// Times the call; counters GFLOP/s and of_peak.
void time_call(benchmark::State& state, const Workload& workload, Contender& contender,
               int threads);

}  // namespace mha_bench
