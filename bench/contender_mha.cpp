// SPDX-License-Identifier: MIT
#include "contender_mha.hpp"

#include <Eigen/Core>
#include <array>
#include <cmath>
#include <mha/mha.hpp>
#include <optional>
#include <utility>

#include "support/commit.hpp"
#include "support/machine.hpp"

// What older versions of the library lack is left out, so that they can be measured as well.
#if __has_include(<mha/rules/lanes.hpp>)
#include <mha/rules/lanes.hpp>
#define MHA_BENCH_HAS_LANES 1
#else
#define MHA_BENCH_HAS_LANES 0
#endif
#if __has_include(<mha/instruction_set.hpp>)
#include <mha/instruction_set.hpp>
#define MHA_BENCH_HAS_TARGETS 1
#else
#define MHA_BENCH_HAS_TARGETS 0
#endif

namespace mha_bench {

using mha::Index;

class MhaThreads {
 public:
  explicit MhaThreads(int threads) {
    if (threads > 1) pool_.emplace(threads);
  }
  mha::Executor executor() { return pool_ ? mha::Executor(*pool_) : mha::Executor(); }
  int count() const { return pool_ ? static_cast<int>(pool_->num_threads()) : 1; }

 private:
  std::optional<mha::ThreadPool> pool_;
};

std::shared_ptr<MhaThreads> make_mha_threads(int threads) {
  return std::make_shared<MhaThreads>(threads);
}

namespace {

struct NoWorkspace {};

/// The workspace that an options type points to, if it has one.
template <class Options>
auto workspace_type() {
  if constexpr (requires(Options & options) { options.workspace; }) {
    return std::type_identity<std::remove_pointer_t<decltype(Options::workspace)>>();
  } else {
    return std::type_identity<NoWorkspace>();
  }
}

/// Options with who computes and a workspace.
template <class Options>
class Settings {
 public:
  explicit Settings(std::shared_ptr<MhaThreads> threads) : threads_(std::move(threads)) {
    options_.executor = threads_->executor();
    if constexpr (requires { options_.workspace; }) options_.workspace = &workspace_;
  }
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;

  Options& options() { return options_; }

 private:
  std::shared_ptr<MhaThreads> threads_;
  [[no_unique_address]] typename decltype(workspace_type<Options>())::type workspace_{};
  Options options_{};
};

/// f() when run.
template <class F>
class FunctionCall : public Call {
 public:
  explicit FunctionCall(F f) : f_(std::move(f)) {}
  void run() override { f_(); }

 private:
  F f_;
};
template <class F>
std::unique_ptr<Call> make_function_call(F f) {
  return std::make_unique<FunctionCall<F>>(std::move(f));
}

template <class Scalar, class RuleType>
std::unique_ptr<Call> attention_call(const AttentionProblem& problem, const Buffer<Scalar>& query,
                                     const Buffer<Scalar>& key_value, Buffer<Scalar>& output,
                                     RuleType rule, std::shared_ptr<MhaThreads> threads) {
  const Workload& w = problem.workload;
  const std::array<Index, 4> kv_sizes{w.batch, w.kv_heads, w.kv_len, w.head_dim};
  const mha::TensorView<const Scalar> q(query.data(), {w.batch, w.heads, w.query_len, w.head_dim});
  const mha::TensorView<const Scalar> k(key_value.data(), kv_sizes);
  const mha::TensorView<const Scalar> v(key_value.data() + key_value.size() / 2, kv_sizes);
  mha::AttentionOutputs<Scalar> outputs{.output = {output.data(), q.sizes}};
  if constexpr (std::is_same_v<Scalar, float>) {
    if (w.variant == Variant::lse) {
      outputs.lse = {problem.lse.data(), {w.batch, w.heads, w.query_len, 1}};
    }
  }
  auto settings = std::make_shared<Settings<mha::AttentionOptions>>(std::move(threads));
  return make_function_call([=, rule = std::move(rule)] {
    mha::attention_into(outputs, q, k, v, rule, settings->options());
  });
}

/// The call with the library's AVX2 kernels.
std::unique_ptr<Call> with_avx2([[maybe_unused]] std::unique_ptr<Call> call) {
#if MHA_BENCH_HAS_TARGETS
  return make_function_call([call = std::shared_ptr<Call>(std::move(call))] {
    const mha::kernels::Target before = mha::kernels::target();
    mha::kernels::use_target(mha::kernels::Target::avx2);
    call->run();
    mha::kernels::use_target(before);
  });
#else
  return nullptr;
#endif
}

/// ALiBi as a user writes it: over whole vectors where the library has them.
auto alibi_lambda(std::int64_t heads) {
  const mha::Vector<float> slopes = mha::alibi_slopes<float>(heads);
#if MHA_BENCH_HAS_LANES
  return mha::score_mod([slopes](mha::Lanes<float> score, Index /*b*/, Index h, mha::Lanes<int> i,
                                 mha::Lanes<int> j) { return score - slopes(h) * abs(i - j); });
#else
  return mha::score_mod([slopes](float score, Index /*b*/, Index h, Index i, Index j) {
    return score - slopes(h) * static_cast<float>(i < j ? j - i : i - j);
  });
#endif
}

template <class Layer, class Output, class Input, class Options>
void forward(const Layer& layer, Output& output, const Input& x, const Options& options) {
  if constexpr (requires { layer.forward_into(output, x, mha::All{}, options); }) {
    layer.forward_into(output, x, mha::All{}, options);
  } else {
    output = layer(x, options);
  }
}

}  // namespace

std::unique_ptr<Call> mha_attention(const AttentionProblem& problem,
                                    std::shared_ptr<MhaThreads> threads) {
  const Workload& w = problem.workload;
  const auto call = [&](auto rule) {
    return attention_call(problem, problem.query, problem.key_value, problem.output,
                          std::move(rule), threads);
  };
  switch (w.variant) {
    case Variant::causal:
      return call(mha::causal());
    case Variant::window:
      return call(mha::window(kWindow, 0));
    case Variant::lengths:
      return call(mha::lengths(std::vector<Index>(w.lengths.begin(), w.lengths.end())));
    case Variant::alibi:
      return call(mha::alibi());
    case Variant::alibi_lambda:
      return call(alibi_lambda(w.heads));
    case Variant::f64:
      return attention_call(problem, problem.query_f64, problem.key_value_f64, problem.output_f64,
                            mha::All{}, threads);
    case Variant::avx2:
      return mha_has_avx2() ? with_avx2(call(mha::All{})) : nullptr;
    case Variant::plain:
    case Variant::lse:
      break;
  }
  return call(mha::All{});
}

std::unique_ptr<Call> mha_layer(const LayerProblem& problem, std::shared_ptr<MhaThreads> threads) {
  using Layer = mha::MultiHead<float, Eigen::Dynamic>;
  using Rows = Eigen::Map<mha::Matrix<float>>;
  using ConstRows = Eigen::Map<const mha::Matrix<float>>;
  const Workload& w = problem.workload;
  const Index width = w.embed_dim();
  auto layer =
      std::make_shared<Layer>(mha::MultiHeadConfig{.embed_dim = width, .num_heads = w.heads});
  Layer::Linear* linears[] = {&layer->q_proj, &layer->k_proj, &layer->v_proj, &layer->out_proj};
  for (std::size_t p = 0; p < 4; ++p) {
    linears[p]->weight = ConstRows(problem.weights[p].data(), width, width);
    linears[p]->bias = Eigen::Map<const mha::RowVector<float>>(problem.biases[p].data(), width);
  }
  auto settings = std::make_shared<Settings<mha::MultiHeadOptions>>(std::move(threads));
  if (w.variant == Variant::lengths) {
    settings->options().sequences = std::vector<Index>(w.lengths.begin(), w.lengths.end());
  } else {
    settings->options().batch = w.batch;
  }
  const ConstRows x(problem.x.data(), w.rows(), width);
  Rows output(problem.output.data(), w.rows(), width);
  return make_function_call([=]() mutable { forward(*layer, output, x, settings->options()); });
}

std::unique_ptr<Call> read_keys_and_values(const AttentionProblem& problem,
                                           std::shared_ptr<MhaThreads> threads) {
  constexpr std::size_t kMultiple = 1024;
  const float* numbers = problem.key_value.data();
  const std::size_t parts = static_cast<std::size_t>(threads->count());
  const std::size_t part = problem.key_value.size() / parts / kMultiple * kMultiple;
  float* sums = problem.output.data();
  return make_function_call([=] {
    threads->executor().parallel_for(static_cast<Index>(parts), [&](Index p) {
      sums[p] = read_all(numbers + static_cast<std::size_t>(p) * part, part);
    });
  });
}

std::string describe_mha() {
  std::string text = std::to_string(mha::kVersionMajor) + "." + std::to_string(mha::kVersionMinor) +
                     "." + std::to_string(mha::kVersionPatch) + ", commit " MHA_BENCH_COMMIT;
#if MHA_BENCH_HAS_TARGETS
  text += std::string(", target ") + mha::kernels::name(mha::kernels::target());
#endif
  return text;
}

bool mha_has_avx2() {
#if MHA_BENCH_HAS_TARGETS
  return mha::kernels::is_available(mha::kernels::Target::avx2);
#else
  return false;
#endif
}

}  // namespace mha_bench
