// SPDX-License-Identifier: MIT
//
// mha::attention against the program that a competent Eigen user writes by hand: per-head blocks,
// the whole score matrix, Eigen's products. One process, the contenders in turn, minimum and median
// of many rounds:
//     naive_ms, mha_ms        best round of each           naive_median_ms, mha_median_ms
//     ratio, ratio_median     naive / mha: above 1, mha is faster
//     gflops                  4 heads seq^2 dim / mha's best time
// The arguments are matrices of both storage orders, since a user's are.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <mha/mha.hpp>
#include <vector>

namespace {

using Eigen::Index;

template <int Order>
using MatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Order>;

/// The naive program.
template <int Order>
void naive_attention(const MatrixF<Order>& query, const MatrixF<Order>& key,
                     const MatrixF<Order>& value, Index heads, MatrixF<Order>& output) {
  const Index dim = query.cols() / heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (Index h = 0; h < heads; ++h) {
    const auto q = query.middleCols(h * dim, dim);
    const auto k = key.middleCols(h * dim, dim);
    MatrixF<Order> weights = scale * (q * k.transpose());
    weights = (weights.colwise() - weights.rowwise().maxCoeff()).array().exp();
    weights.array().colwise() /= weights.rowwise().sum().array();
    output.middleCols(h * dim, dim).noalias() = weights * value.middleCols(h * dim, dim);
  }
}

double milliseconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

double median(std::vector<double> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

template <int Order>
void BM_AttentionAgainstNaive(benchmark::State& state) {
  const Index heads = state.range(0);
  const Index seq = state.range(1);
  const Index dim = state.range(2);
  const MatrixF<Order> query = MatrixF<Order>::Random(seq, heads * dim);
  const MatrixF<Order> key = MatrixF<Order>::Random(seq, heads * dim);
  const MatrixF<Order> value = MatrixF<Order>::Random(seq, heads * dim);
  MatrixF<Order> naive(seq, heads * dim);
  MatrixF<Order> ours(seq, heads * dim);
  std::vector<double> naive_times;
  std::vector<double> our_times;
  for ([[maybe_unused]] auto round : state) {
    const auto start = std::chrono::steady_clock::now();
    naive_attention<Order>(query, key, value, heads, naive);
    benchmark::ClobberMemory();
    const auto middle = std::chrono::steady_clock::now();
    mha::attention_into(mha::AttentionOutputs<float>{.output = mha::split_heads(ours, heads)},
                        mha::split_heads(query, heads), mha::split_heads(key, heads),
                        mha::split_heads(value, heads));
    benchmark::ClobberMemory();
    const auto end = std::chrono::steady_clock::now();
    naive_times.push_back(milliseconds(middle - start));
    our_times.push_back(milliseconds(end - middle));
    state.SetIterationTime(milliseconds(end - middle) * 1e-3);
  }
  if (!((ours - naive).cwiseAbs().maxCoeff() < 1e-5f)) {
    state.SkipWithError("the two programs disagree");
    return;
  }
  const double naive_ms = *std::min_element(naive_times.begin(), naive_times.end());
  const double mha_ms = *std::min_element(our_times.begin(), our_times.end());
  state.counters["naive_ms"] = naive_ms;
  state.counters["mha_ms"] = mha_ms;
  state.counters["naive_median_ms"] = median(naive_times);
  state.counters["mha_median_ms"] = median(our_times);
  state.counters["ratio"] = naive_ms / mha_ms;
  state.counters["ratio_median"] = median(naive_times) / median(our_times);
  const auto flops = static_cast<double>(4 * heads * seq * seq * dim);
  state.counters["gflops"] = flops / (mha_ms * 1e6);
}

void workloads(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"heads", "seq", "dim"})->UseManualTime()->Unit(benchmark::kMillisecond);
  bench->Args({12, 128, 64})->Args({12, 512, 64})->Args({16, 2048, 64})->Args({4, 32, 16});
}

BENCHMARK(BM_AttentionAgainstNaive<Eigen::ColMajor>)->Apply(workloads);
BENCHMARK(BM_AttentionAgainstNaive<Eigen::RowMajor>)->Apply(workloads);

}  // namespace
