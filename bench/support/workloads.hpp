// SPDX-License-Identifier: MIT
//
// What is measured: the list of workloads, what each costs, and the numbers it is fed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/buffer.hpp"

namespace mha_bench {

enum class Kind { attention, layer };

/// What a workload asks for beside plain attention.
enum class Variant {
  plain,
  causal,
  window,        ///< the query's own key and kWindow before it
  lengths,       ///< a ragged batch: key padding for attention, sequences for the layer
  alibi,         ///< the built-in rule
  alibi_lambda,  ///< the same as a user's score_mod
  lse,           ///< plain, returning lse
  f64,           ///< plain, in double
  avx2,          ///< plain, by the library's AVX2 kernels
};

inline constexpr std::int64_t kWindow = 256;

/// [batch, heads, query_len, head_dim] against kv_heads heads of kv_len keys; for the layer
/// embed_dim is heads * head_dim.
struct Workload {
  std::string name{};
  Kind kind = Kind::attention;
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t query_len = 1;
  std::int64_t head_dim = 1;
  std::int64_t kv_heads = heads;
  std::int64_t kv_len = query_len;
  Variant variant = Variant::plain;
  bool in_figure = false;  ///< one of those that are run with one and with more threads
  std::string group{};     ///< workloads of a group are timed in turn, to be compared
  std::vector<std::int64_t> lengths{};  ///< Variant::lengths

  std::int64_t embed_dim() const { return heads * head_dim; }
  std::int64_t rows() const;  ///< of the layer's input
  /// Pairs of a query and a key that it may attend to, over batch and heads.
  double allowed_pairs() const;
  /// 4 flops per allowed pair and channel; the layer's projections are 8 rows embed_dim^2 more.
  double flops() const;
  double kv_bytes() const;  ///< of keys and values
  bool is_double() const { return variant == Variant::f64; }
};

/// "attention/P1", "layer/P1": how a workload is called in tables.
std::string full_name(const Workload& workload);

/// "1 x 12 x 128 x 64 causal": batch x heads x tokens x head_dim.
std::string shape_text(const Workload& workload);

const std::vector<Workload>& attention_workloads();
const std::vector<Workload>& layer_workloads();
/// Both lists, attention first.
std::vector<Workload> all_workloads();

/// The largest work in a short run, which only shows that a program works.
inline constexpr double kShortFlops = 1e8;

/// `size` numbers, uniform in [-limit, limit], the same for the same seed.
template <class T>
Buffer<T> random_numbers(std::int64_t size, std::uint64_t seed, double limit = 1);

}  // namespace mha_bench
