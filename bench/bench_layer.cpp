// SPDX-License-Identifier: MIT
//
// mha::MultiHead::forward_into against the other contenders: self-attention with bias, embed_dim =
// heads * head_dim. As bench_attention, for one workload at a time:
//     bench_layer --benchmark_filter=P3/mha
#include "support/google_benchmark.hpp"

int main(int argc, char** argv) {
  return mha_bench::run_benchmarks(argc, argv, mha_bench::layer_workloads(), mha_bench::time_call);
}
