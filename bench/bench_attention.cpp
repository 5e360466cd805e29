// SPDX-License-Identifier: MIT
//
// mha::attention_into against the other contenders, workload by workload. bench_table measures the
// same in turn and makes the published table; this program is for one workload at a time:
//     bench_attention --benchmark_filter=P3/mha
#include "support/google_benchmark.hpp"

int main(int argc, char** argv) {
  return mha_bench::run_benchmarks(argc, argv, mha_bench::attention_workloads(),
                                   mha_bench::time_call);
}
