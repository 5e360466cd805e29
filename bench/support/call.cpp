// SPDX-License-Identifier: MIT
#include "support/call.hpp"

#include <cmath>

namespace mha_bench {

AttentionProblem::AttentionProblem(const Workload& w) : workload(w) {
  const std::int64_t query_size = w.batch * w.heads * w.query_len * w.head_dim;
  const std::int64_t kv_size = 2 * w.batch * w.kv_heads * w.kv_len * w.head_dim;
  if (w.is_double()) {
    query_f64 = random_numbers<double>(query_size, 1);
    key_value_f64 = random_numbers<double>(kv_size, 2);
    output_f64 = random_numbers<double>(query_size, 3);
    return;
  }
  query = random_numbers<float>(query_size, 1);
  key_value = random_numbers<float>(kv_size, 2);
  output = random_numbers<float>(query_size, 3);
  lse = random_numbers<float>(w.batch * w.heads * w.query_len, 4);
}

BenchAttention AttentionProblem::view() const {
  const Workload& w = workload;
  return {.batch = w.batch,
          .heads = w.heads,
          .kv_heads = w.kv_heads,
          .query_len = w.query_len,
          .kv_len = w.kv_len,
          .head_dim = w.head_dim,
          .causal = w.variant == Variant::causal ? 1 : 0,
          .query = query.data(),
          .key = key_value.data(),
          .value = key_value.data() + key_value.size() / 2,
          .output = output.data()};
}

LayerProblem::LayerProblem(const Workload& w) : workload(w), lengths(w.lengths) {
  if (lengths.empty()) lengths.assign(static_cast<std::size_t>(w.batch), w.query_len);
  const std::int64_t width = w.embed_dim();
  const double limit = std::sqrt(3.0 / static_cast<double>(width));  // keeps the rows' variance
  for (std::uint64_t p = 0; p < 4; ++p) {
    weights[p] = random_numbers<float>(width * width, 10 + p, limit);
    biases[p] = random_numbers<float>(width, 20 + p);
  }
  x = random_numbers<float>(w.rows() * width, 1);
  output = random_numbers<float>(w.rows() * width, 2);
}

BenchLayer LayerProblem::view() const {
  return {.heads = workload.heads,
          .head_dim = workload.head_dim,
          .rows = workload.rows(),
          .sequences = static_cast<std::int64_t>(lengths.size()),
          .lengths = lengths.data(),
          .q_weight = weights[0].data(),
          .k_weight = weights[1].data(),
          .v_weight = weights[2].data(),
          .out_weight = weights[3].data(),
          .q_bias = biases[0].data(),
          .k_bias = biases[1].data(),
          .v_bias = biases[2].data(),
          .out_bias = biases[3].data(),
          .x = x.data(),
          .output = output.data()};
}

}  // namespace mha_bench
