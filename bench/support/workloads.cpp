// SPDX-License-Identifier: MIT
#include "support/workloads.hpp"

#include <algorithm>
#include <numeric>

namespace mha_bench {
namespace {

Workload plain(const std::string& name, Kind kind, std::int64_t batch, std::int64_t heads,
               std::int64_t tokens, std::int64_t head_dim) {
  return {.name = name,
          .kind = kind,
          .batch = batch,
          .heads = heads,
          .query_len = tokens,
          .head_dim = head_dim,
          .kv_heads = heads,
          .kv_len = tokens,
          .group = name};
}

Workload with(Workload workload, std::string name, Variant variant) {
  workload.name = std::move(name);
  workload.variant = variant;
  workload.in_figure = false;
  return workload;
}

Workload ragged(Workload workload, std::string name, std::vector<std::int64_t> lengths) {
  workload = with(std::move(workload), std::move(name), Variant::lengths);
  workload.batch = static_cast<std::int64_t>(lengths.size());
  workload.query_len = *std::max_element(lengths.begin(), lengths.end());
  workload.kv_len = workload.query_len;
  workload.lengths = std::move(lengths);
  return workload;
}

/// The shapes that attention and the layer share.
std::vector<Workload> common(Kind kind) {
  std::vector<Workload> list{
      plain("P1", kind, 1, 12, 128, 64), plain("P2", kind, 8, 12, 128, 64),
      plain("P3", kind, 1, 12, 512, 64), plain("P4", kind, 1, 16, 2048, 64),
      plain("P7", kind, 1, 4, 32, 16),   plain("P8", kind, 1, 2, 8, 8),
  };
  for (Workload& workload : list) workload.in_figure = true;
  return list;
}

const std::vector<std::int64_t> kRaggedLengths{37, 128, 64, 9, 101, 128, 77, 18};

std::vector<Workload> make_attention_workloads() {
  constexpr Kind kKind = Kind::attention;
  std::vector<Workload> list = common(kKind);
  const Workload p3 = list[2];
  Workload p5 = plain("P5", kKind, 1, 8, 8192, 64);
  Workload p6 = with(plain("P6", kKind, 1, 32, 1024, 128), "P6", Variant::causal);
  Workload d1 = plain("D1", kKind, 1, 32, 1, 128);
  d1.kv_heads = 8;
  d1.kv_len = 4096;
  for (Workload* workload : {&p5, &p6, &d1}) workload->in_figure = true;
  list.insert(list.begin() + 4, {p5, p6});
  list.push_back(d1);
  for (const std::int64_t dim : {15, 16, 32, 40, 48, 80, 96, 128}) {
    list.push_back(plain("head_dim " + std::to_string(dim), kKind, 1, 12, 512, dim));
    list.back().group = p3.group;
  }
  for (const std::int64_t tokens : {127, 129, 1000, 1024}) {
    list.push_back(plain("tokens " + std::to_string(tokens), kKind, 1, 12, tokens, 64));
    list.back().group = tokens < 512 ? "P1" : "tokens 1024";
  }
  list.push_back(with(p5, "window " + std::to_string(kWindow), Variant::window));
  list.push_back(ragged(plain("P2", kKind, 1, 12, 128, 64), "ragged", kRaggedLengths));
  list.push_back(with(p3, "double", Variant::f64));
  list.push_back(with(p3, "alibi", Variant::alibi));
  list.push_back(with(p3, "alibi lambda", Variant::alibi_lambda));
  list.push_back(with(p3, "lse", Variant::lse));
  list.push_back(with(p3, "avx2", Variant::avx2));
  return list;
}

std::vector<Workload> make_layer_workloads() {
  std::vector<Workload> list = common(Kind::layer);
  list.push_back(ragged(plain("P2", Kind::layer, 1, 12, 128, 64), "ragged", kRaggedLengths));
  return list;
}

}  // namespace

std::int64_t Workload::rows() const {
  return lengths.empty() ? batch * query_len
                         : std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

double Workload::allowed_pairs() const {
  double pairs = 0;
  switch (variant) {
    case Variant::causal:
    case Variant::window:
      for (std::int64_t i = 0; i < query_len; ++i) {
        const std::int64_t most = variant == Variant::window ? kWindow + 1 : kv_len;
        pairs += static_cast<double>(std::min({i + 1, kv_len, most}));
      }
      return pairs * static_cast<double>(batch * heads);
    case Variant::lengths:
      for (const std::int64_t n : lengths) {
        pairs += static_cast<double>(n * (kind == Kind::layer ? n : query_len));
      }
      return pairs * static_cast<double>(heads);
    default:
      return static_cast<double>(batch * heads * query_len * kv_len);
  }
}

double Workload::flops() const {
  const double attention = 4 * allowed_pairs() * static_cast<double>(head_dim);
  if (kind == Kind::attention) return attention;
  return attention + 8 * static_cast<double>(rows() * embed_dim() * embed_dim());
}

double Workload::kv_bytes() const {
  const std::size_t scalar = is_double() ? sizeof(double) : sizeof(float);
  return 2 * static_cast<double>(batch * kv_heads * kv_len * head_dim) *
         static_cast<double>(scalar);
}

std::string full_name(const Workload& workload) {
  return (workload.kind == Kind::layer ? "layer/" : "attention/") + workload.name;
}

std::string shape_text(const Workload& w) {
  const auto text = [](std::int64_t number) { return std::to_string(number); };
  std::string shape = text(w.batch) + " x " + text(w.heads);
  if (w.kv_heads != w.heads) shape += "/" + text(w.kv_heads);
  shape += " x " + text(w.query_len);
  if (w.kv_len != w.query_len) shape += "/" + text(w.kv_len);
  shape += " x " + text(w.head_dim);
  switch (w.variant) {
    case Variant::causal:
      return shape + " causal";
    case Variant::window:
      return shape + " window";
    case Variant::lengths:
      return shape + " ragged";
    default:
      return shape;
  }
}

const std::vector<Workload>& attention_workloads() {
  static const std::vector<Workload> list = make_attention_workloads();
  return list;
}

const std::vector<Workload>& layer_workloads() {
  static const std::vector<Workload> list = make_layer_workloads();
  return list;
}

std::vector<Workload> all_workloads() {
  std::vector<Workload> list = attention_workloads();
  list.insert(list.end(), layer_workloads().begin(), layer_workloads().end());
  return list;
}

template <class T>
Buffer<T> random_numbers(std::int64_t size, std::uint64_t seed, double limit) {
  Buffer<T> numbers(static_cast<std::size_t>(size));
  std::uint64_t state = seed;
  for (T& number : numbers) {
    // SplitMix64 (Steele, Lea, Flood 2014); the upper 53 bits are a fraction.
    state += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    z ^= z >> 31;
    number = static_cast<T>(limit * (static_cast<double>(z >> 11) * 0x1p-52 - 1));
  }
  return numbers;
}
template Buffer<float> random_numbers<float>(std::int64_t, std::uint64_t, double);
template Buffer<double> random_numbers<double>(std::int64_t, std::uint64_t, double);

}  // namespace mha_bench
