// SPDX-License-Identifier: MIT
//
// Decoding: one query per head against cached keys, one thread, beside the time that reading the same bytes takes.
// "cold": eight sequences in turn, whose keys do not fit the processor's caches together; "hot": one sequence.
// Then some tokens through a layer, its weights as MultiHead has them and as Inference, beside reading these.
// Prints tables; --short runs each once.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mha/mha.hpp>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "support/brief.hpp"
#include "support/machine.hpp"
#include "support/timing.hpp"

namespace mha_bench {
namespace {

using mha::Index;
using mha::Storage;

struct Shape {
  const char* name;
  Index heads, kv_heads, head_dim, keys, sequences;

  std::size_t numbers() const { return static_cast<std::size_t>(2 * kv_heads * keys * head_dim); }
};

constexpr Shape kShapes[] = {{"cold", 32, 8, 128, 4096, 8},
                             {"hot", 32, 8, 128, 4096, 1},
                             {"cold", 8, 8, 128, 4096, 8},
                             {"hot", 16, 4, 32, 1024, 1},
                             {"hot", 12, 12, 64, 16, 1}};

/// A query against one sequence after the other.
class Decoding : public Call {
 public:
  explicit Decoding(const Shape& s)
      : shape_(s),
        query_(random_tensor({1, s.heads, 1, s.head_dim})),
        output_({1, s.heads, 1, s.head_dim}) {}

 protected:
  std::size_t next() { return turn_++ % static_cast<std::size_t>(shape_.sequences); }
  Shape shape_;
  mha::Tensor<float> query_, output_;
  mha::Workspace workspace_;

 private:
  std::size_t turn_ = 0;
};

class FromCache : public Decoding {
 public:
  FromCache(const Shape& s, Storage storage)
      : Decoding(s),
        pool_({.kv_heads = s.kv_heads,
               .head_dim = s.head_dim,
               .pages = (s.keys + 127) / 128 * s.sequences,
               .storage = storage}) {
    for (Index n = 0; n < s.sequences; ++n) {
      sequences_.push_back(pool_.sequence());
      const std::array<Index, 4> sizes{1, s.kv_heads, s.keys, s.head_dim};
      sequences_.back().layer(0).append(random_tensor(sizes), random_tensor(sizes));
    }
  }
  void run() override {
    mha::attention_into(output_, query_, sequences_[next()].layer(0).keys(), mha::all(),
                        {.workspace = &workspace_});
  }

 private:
  mha::KvPool pool_;
  std::vector<mha::KvSequence> sequences_;
};

/// Keys and values in tensors of the caller's.
class FromTensors : public Decoding {
 public:
  explicit FromTensors(const Shape& s) : Decoding(s) {
    for (Index n = 0; n < s.sequences; ++n) {
      const std::array<Index, 4> sizes{1, s.kv_heads, s.keys, s.head_dim};
      keys_.push_back(random_tensor(sizes));
      values_.push_back(random_tensor(sizes));
    }
  }
  void run() override {
    const std::size_t n = next();
    mha::attention_into(output_, query_, keys_[n], values_[n], {.workspace = &workspace_});
  }

 private:
  std::vector<mha::Tensor<float>> keys_, values_;
};

/// As many numbers, added up, in several places in turn; in the same kind of pages as those of caches and of Inference.
class Reading : public Call {
 public:
  Reading(std::size_t count, Index places)
      : count_(count),
        places_(static_cast<std::size_t>(places)),
        memory_(static_cast<float*>(::operator new(bytes(), kLargePage))) {
#if defined(__linux__)
    (void)::madvise(memory_.get(), bytes(), MADV_HUGEPAGE);
#endif
    std::memset(memory_.get(), 0, bytes());
  }
  void run() override {
    total_ = total_ + read_all(memory_.get() + turn_++ % places_ * count_, count_);
  }

 private:
  static constexpr std::align_val_t kLargePage{std::size_t{1} << 21};
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, kLargePage); }
  };
  std::size_t bytes() const { return count_ * places_ * sizeof(float); }

  std::size_t count_, places_, turn_ = 0;
  std::unique_ptr<float, Free> memory_;
  volatile float total_ = 0;
};

/// A step of a layer: one token, whose key is taken back again.
template <class Layer>
class LayerStep : public Call {
 public:
  explicit LayerStep(const mha::MultiHead<float, Eigen::Dynamic>& layer)
      : layer_(layer),
        cache_({.kv_heads = 4, .head_dim = 32, .capacity = 1100}),
        token_(mha::Matrix<float>::Random(1, 512)),
        output_(1, 512) {
    (void)layer_(mha::Matrix<float>::Random(1024, 512), cache_, mha::causal());
  }
  void run() override {
    layer_.forward_into(output_, token_, cache_, mha::causal(), {.workspace = &workspace_});
    cache_.truncate(1024);
  }

 private:
  Layer layer_;
  mha::KvCache cache_;
  mha::Matrix<float> token_, output_;
  mha::Workspace workspace_;
};

/// Some tokens through a layer: its weights are most of what is read.
template <class Layer>
class Tokens : public Call {
 public:
  Tokens(const mha::MultiHead<float, Eigen::Dynamic>& layer, Index tokens)
      : layer_(layer),
        x_(mha::Matrix<float>::Random(tokens, layer.embed_dim())),
        output_(tokens, layer.embed_dim()) {}
  void run() override { layer_.forward_into(output_, x_, {.workspace = &workspace_}); }

 private:
  Layer layer_;
  mha::Matrix<float> x_, output_;
  mha::Workspace workspace_;
};

/// MB of this program that the system gave in large pages: it need not, and what lies in small ones is read slower.
double large_page_mb() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;) {
    double kib = 0;
    if (word == "AnonHugePages:" && file >> kib) return kib * 1024 * 1e-6;
  }
  return 0;
}

using AnyLayer = mha::MultiHead<float, Eigen::Dynamic>;

void time_calls(std::vector<Entrant>& entrants, bool brief) {
  time_in_turn(entrants, 1, brief ? kShortPlan : TimingPlan{.seconds_each = 1.0},
               [](std::size_t) {});
}

void print_tokens(Index tokens, Index embed_dim, bool brief) {
  const AnyLayer layer({.embed_dim = embed_dim, .num_heads = 16, .bias = false});
  std::vector<Entrant> entrants(3);
  entrants[0].call = std::make_unique<Tokens<AnyLayer>>(layer, tokens);
  const double before = large_page_mb();
  entrants[1].call = std::make_unique<Tokens<mha::Inference<float>>>(layer, tokens);
  const double in_large_pages = large_page_mb() - before;
  entrants[2].call =
      std::make_unique<Reading>(static_cast<std::size_t>(4 * embed_dim * embed_dim), 1);
  time_calls(entrants, brief);
  const double reading = entrants[2].median_ms();
  std::printf("| %6lld | %9lld |", static_cast<long long>(tokens),
              static_cast<long long>(embed_dim));
  for (std::size_t n = 0; n < 2; ++n) {
    std::printf(" %9.1f us %5.2f |", 1e3 * entrants[n].median_ms(),
                entrants[n].median_ms() / reading);
  }
  const double bytes = 16.0 * static_cast<double>(embed_dim * embed_dim);
  std::printf(" %9.1f us %5.1f GB/s | %6.1f of %4.1f MB |\n", 1e3 * reading, bytes / reading * 1e-6,
              in_large_pages, bytes * 1e-6);
  std::fflush(stdout);
}

void print_layers(bool brief) {
  std::printf(
      "\nTokens through a layer of 16 heads: medians, and how many times as long as reading the "
      "weights takes; of Inference's\nweights, how much the system gave in large pages\n\n"
      "| tokens | embed_dim | MultiHead          | Inference          | reading the weights   | in "
      "large "
      "pages    |\n"
      "| ------ | --------- | ------------------ | ------------------ | --------------------- | "
      "----------------- |\n");
  for (const Index embed_dim : {512, 2048}) {
    for (const Index tokens : {1, 8}) print_tokens(tokens, embed_dim, brief);
  }
  const AnyLayer layer({.embed_dim = 512,
                        .num_heads = 16,
                        .kv_heads = 4,
                        .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
  std::vector<Entrant> steps(2);
  steps[0].call = std::make_unique<LayerStep<AnyLayer>>(layer);
  steps[1].call = std::make_unique<LayerStep<mha::Inference<float>>>(layer);
  time_calls(steps, brief);
  std::printf(
      "\nA step of a layer (embed_dim 512, 16 / 4 heads, rotary, 1024 keys): MultiHead %.1f us, "
      "Inference %.1f us, medians\n",
      1e3 * steps[0].median_ms(), 1e3 * steps[1].median_ms());
}

void print(const Shape& s, bool brief) {
  std::vector<Entrant> entrants(6);
  entrants[0].call = std::make_unique<FromCache>(s, Storage::f32);
  entrants[1].call = std::make_unique<FromTensors>(s);
  entrants[2].call = std::make_unique<Reading>(s.numbers(), s.sequences);
  entrants[3].call = std::make_unique<FromCache>(s, Storage::bf16);
  entrants[4].call = std::make_unique<FromCache>(s, Storage::f16);
  entrants[5].call = std::make_unique<Reading>(s.numbers() / 2, s.sequences);
  time_calls(entrants, brief);
  std::printf("| %-4s %2lld / %2lld of %3lld, %4lld keys |", s.name,
              static_cast<long long>(s.heads), static_cast<long long>(s.kv_heads),
              static_cast<long long>(s.head_dim), static_cast<long long>(s.keys));
  for (std::size_t n = 0; n < 6; ++n) {
    const double ms = entrants[n].median_ms();
    const double reading = entrants[n < 3 ? 2 : 5].median_ms();
    if (n == 2 || n == 5) {
      std::printf(" %9.2f us %5.1f GB/s |", 1e3 * ms,
                  static_cast<double>(s.numbers()) * (n == 2 ? 4 : 2) / ms * 1e-6);
    } else {
      std::printf(" %9.2f us %5.2f |", 1e3 * ms, ms / reading);
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace mha_bench

int main(int argc, char** argv) {
  using namespace mha_bench;
  const bool brief = is_brief(argc, argv, "bench_decode");
  std::printf(
      "Decoding, one thread: medians, and how many times as long as reading the same bytes "
      "takes\n\n"
      "| query / key heads, keys      | float cache        | float tensors      | reading it       "
      "     "
      "| bfloat16 cache     | half cache         | reading it            |\n"
      "| ---------------------------- | ------------------ | ------------------ | "
      "--------------------- "
      "| ------------------ | ------------------ | --------------------- |\n");
  for (const Shape& s : kShapes) print(s, brief);
  print_layers(brief);
  return EXIT_SUCCESS;
}
