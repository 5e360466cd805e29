// SPDX-License-Identifier: MIT
//
// The training pass: forward and backward together, of attention and of the layer, against the
// measured multiply-add peak of one core. Prints a table; --short runs each once.
//     flops: 14 batch heads tokens^2 head_dim        (4 forward, 10 backward)
//            and 24 batch tokens embed_dim^2 more for the layer's projections (8 and 16)
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mha/mha.hpp>

#include "support/brief.hpp"
#include "support/machine.hpp"
#include "support/timing.hpp"

namespace mha_bench {
namespace {

using mha::Index;

struct Shape {
  const char* name;
  Index batch, heads, tokens, head_dim;
  bool causal;

  double pairs() const {
    const auto n = static_cast<double>(tokens);
    return causal ? n * (n + 1) / 2 : n * n;
  }
  double attention_flops() const {
    return 14 * static_cast<double>(batch * heads * head_dim) * pairs();
  }
  double layer_flops() const {
    const auto width = static_cast<double>(heads * head_dim);
    return attention_flops() + 24 * static_cast<double>(batch * tokens) * width * width;
  }
};

constexpr Shape kShapes[] = {{"P1", 1, 12, 128, 64, false},
                             {"P2", 8, 12, 128, 64, false},
                             {"P3", 1, 12, 512, 64, false},
                             {"P4", 1, 16, 2048, 64, false},
                             {"causal", 1, 16, 1024, 128, true}};

/// f(rule)
template <class F>
void under_rule(bool causal, const F& f) {
  if (causal) {
    f(mha::causal());
  } else {
    f(mha::All());
  }
}

class AttentionTraining : public Call {
 public:
  explicit AttentionTraining(const Shape& s) : causal_(s.causal) {
    const std::array<Index, 4> sizes{s.batch, s.heads, s.tokens, s.head_dim};
    for (mha::Tensor<float>* tensor : {&query_, &key_, &value_, &output_, &grad_output_,
                                       &grad_query_, &grad_key_, &grad_value_}) {
      *tensor = random_tensor(sizes);
    }
    lse_ = mha::Tensor<float>({s.batch, s.heads, s.tokens, 1});
  }
  void run() override {
    under_rule(causal_, [&](const auto& rule) { run_under(rule); });
  }

 private:
  template <class RuleType>
  void run_under(const RuleType& rule) {
    const mha::AttentionOptions options{.workspace = &workspace_};
    const mha::AttentionOutputs<float> forward{.output = output_.view(), .lse = lse_.view()};
    mha::attention_into(forward, query_, key_, value_, rule, options);
    mha::attention_backward_into(
        mha::AttentionGradientOutputs<float>{grad_query_.view(), grad_key_.view(),
                                             grad_value_.view()},
        grad_output_, query_, key_, value_, forward, rule, options);
  }

  bool causal_;
  mha::Tensor<float> query_, key_, value_, output_, grad_output_, grad_query_, grad_key_,
      grad_value_, lse_;
  mha::Workspace workspace_;
};

class LayerTraining : public Call {
 public:
  using Layer = mha::MultiHead<float, Eigen::Dynamic>;
  explicit LayerTraining(const Shape& s)
      : batch_(s.batch),
        causal_(s.causal),
        layer_({.embed_dim = s.heads * s.head_dim, .num_heads = s.heads}),
        gradients_(layer_),
        x_(mha::Matrix<float>::Random(s.batch * s.tokens, s.heads * s.head_dim)),
        grad_(mha::Matrix<float>::Random(s.batch * s.tokens, s.heads * s.head_dim)) {}
  void run() override {
    under_rule(causal_, [&](const auto& rule) { run_under(rule); });
  }

 private:
  template <class RuleType>
  void run_under(const RuleType& rule) {
    layer_.forward_training(pass_, x_, rule, {.batch = batch_});
    layer_.backward(gradients_, pass_, grad_, rule, {.batch = batch_});
  }

  Index batch_;
  bool causal_;
  Layer layer_;
  mha::MultiHeadGradients<Layer> gradients_;
  mha::TrainingPass<Layer> pass_;
  mha::Matrix<float> x_, grad_;
};

void print(const char* what, const Shape& s, double flops, std::unique_ptr<Call> call, bool brief) {
  const double peak = brief ? 0 : fma_peak(1, Arithmetic::f32);  // again for each, it drifts
  std::vector<Entrant> entrants(1);
  entrants[0].call = std::move(call);
  time_in_turn(entrants, 1, brief ? kShortPlan : TimingPlan{.seconds_each = 1.5},
               [](std::size_t) {});
  const double gflops = flops / entrants[0].min_ms() / 1e6;
  std::printf("| %-9s | %-6s | %5lld x %3lld x %5lld x %3lld | %9.2f ms | %9.2f ms | %6.1f | ",
              what, s.name, static_cast<long long>(s.batch), static_cast<long long>(s.heads),
              static_cast<long long>(s.tokens), static_cast<long long>(s.head_dim),
              entrants[0].min_ms(), entrants[0].median_ms(), gflops);
  if (brief) {
    std::printf("      - |\n");
  } else {
    std::printf("%7.3f |\n", gflops / std::max(peak, fma_peak(1, Arithmetic::f32)));
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace mha_bench

int main(int argc, char** argv) {
  using namespace mha_bench;
  const bool brief = is_brief(argc, argv, "bench_gradient");
  std::printf("Forward and backward, one thread, float (batch x heads x tokens x head_dim)\n\n");
  std::printf(
      "| what      |        | shape                     | best         | median       | GFLOP/s "
      "| of peak |\n");
  std::printf(
      "| --------- | ------ | ------------------------- | ------------ | ------------ | ------ "
      "| ------- |\n");
  for (const Shape& s : kShapes) {
    print("attention", s, s.attention_flops(), std::make_unique<AttentionTraining>(s), brief);
    print("layer", s, s.layer_flops(), std::make_unique<LayerTraining>(s), brief);
  }
  return EXIT_SUCCESS;
}
