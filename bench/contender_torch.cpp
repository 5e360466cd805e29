// SPDX-License-Identifier: MIT
//
// libtorch, through the operators that were the fastest of those tried with libtorch 1.13 (among them
// _scaled_dot_product_attention and _native_multi_head_attention): batched products with the scale
// folded in, softmax, everything written to tensors that exist already. Its products are those of
// the BLAS library that it was built with; if that is OpenBLAS, its threads are set too, to one or
// all, whichever is faster for the workload.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "module_support.hpp"

namespace mha_bench {
namespace {

int num_threads = 1;

/// A function of the OpenBLAS that this module's libtorch runs on, if it does.
template <class Function>
Function openblas_function(const char* name) {
  static void* blas = dlopen("libblas.so.3", RTLD_NOW | RTLD_NOLOAD);
  return blas == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(blas, name));
}

void set_blas_threads(int threads) {
  static const auto set = openblas_function<void (*)(int)>("openblas_set_num_threads");
  if (set != nullptr) set(threads);
}

/// The tensor that lies there.
at::Tensor tensor(const float* data, at::IntArrayRef sizes) {
  return at::from_blob(const_cast<float*>(data), sizes, at::kFloat);
}

/// output = softmax(scale query key^T + mask) value; [heads, tokens, head_dim] with any strides.
void attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
            const at::Tensor& mask, at::Tensor& scores, at::Tensor& output) {
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(2)));
  at::baddbmm_out(scores, mask.defined() ? mask : scores, query, key.transpose(1, 2),
                  mask.defined() ? 1 : 0, scale);
  at::_softmax_out(scores, scores, -1, false);
  at::bmm_out(output, scores, value);
}

/// A call that finds out how many threads its products should have.
class TorchCall : public ModuleCall {
 public:
  void run() override {
    const c10::InferenceMode no_gradients;
    set_blas_threads(blas_threads_);
    compute();
  }

 protected:
  virtual void compute() = 0;
  void choose_threads() {
    if (num_threads == 1) return;
    double best = std::numeric_limits<double>::infinity();
    int fastest = 1;
    for (const int threads : {1, num_threads}) {
      blas_threads_ = threads;
      run();
      for (int round = 0; round < 3; ++round) {
        const auto start = std::chrono::steady_clock::now();
        run();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        if (seconds.count() < best) {
          best = seconds.count();
          fastest = threads;
        }
      }
    }
    blas_threads_ = fastest;
  }

 private:
  int blas_threads_ = 1;
};

class Attention : public TorchCall {
 public:
  explicit Attention(const BenchAttention& p) {
    const c10::InferenceMode no_gradients;
    // The queries of all heads that share keys are the rows of one matrix.
    const bool causal = p.causal != 0;
    const int64_t rows = p.heads / p.kv_heads * p.query_len;
    const int64_t heads = p.batch * p.kv_heads;
    TORCH_CHECK(!causal || p.heads == p.kv_heads, "a causal call with shared keys is not there");
    query_ = tensor(p.query, {heads, rows, p.head_dim});
    key_ = tensor(p.key, {heads, p.kv_len, p.head_dim});
    value_ = tensor(p.value, {heads, p.kv_len, p.head_dim});
    output_ = tensor(p.output, {heads, rows, p.head_dim});
    scores_ = at::empty({heads, rows, p.kv_len});
    if (causal) {
      mask_ = at::full({1, rows, p.kv_len}, -std::numeric_limits<float>::infinity()).triu(1);
    }
    choose_threads();
  }

 protected:
  void compute() override { attend(query_, key_, value_, mask_, scores_, output_); }

 private:
  at::Tensor query_, key_, value_, mask_, scores_, output_;
};

class Layer : public TorchCall {
 public:
  explicit Layer(const BenchLayer& p) {
    const c10::InferenceMode no_gradients;
    const int64_t width = p.heads * p.head_dim;
    const auto weight = [&](const float* w) { return tensor(w, {width, width}); };
    const auto bias = [&](const float* b) { return tensor(b, {width}); };
    in_weight_ = at::cat({weight(p.q_weight), weight(p.k_weight), weight(p.v_weight)}, 1);
    in_bias_ = at::cat({bias(p.q_bias), bias(p.k_bias), bias(p.v_bias)});
    out_weight_ = weight(p.out_weight);
    out_bias_ = bias(p.out_bias);
    x_ = tensor(p.x, {p.rows, width});
    output_ = tensor(p.output, {p.rows, width});
    in_ = at::empty({p.rows, 3 * width});
    concat_ = at::empty({p.rows, width});
    // [3, heads, rows, head_dim] and [heads, rows, head_dim], as views.
    const at::Tensor in = in_.view({p.rows, 3, p.heads, p.head_dim}).permute({1, 2, 0, 3});
    const at::Tensor concat = concat_.view({p.rows, p.heads, p.head_dim}).transpose(0, 1);
    int64_t row = 0;
    for (int64_t s = 0; s < p.sequences; ++s) {
      const int64_t n = p.lengths[s];
      const auto part = [&](int64_t which) { return in[which].narrow(1, row, n); };
      sequences_.push_back(
          {part(0), part(1), part(2), at::empty({p.heads, n, n}), concat.narrow(1, row, n)});
      row += n;
    }
    choose_threads();
  }

 protected:
  void compute() override {
    at::addmm_out(in_, in_bias_, x_, in_weight_);
    for (Sequence& s : sequences_) attend(s.query, s.key, s.value, {}, s.scores, s.output);
    at::addmm_out(output_, out_bias_, concat_, out_weight_);
  }

 private:
  struct Sequence {
    at::Tensor query, key, value, scores, output;
  };
  at::Tensor x_, in_weight_, in_bias_, out_weight_, out_bias_, in_, concat_, output_;
  std::vector<Sequence> sequences_;
};

const char* describe() {
  static const std::string text = [] {
    const auto core = openblas_function<char* (*)()>("openblas_get_corename");
    return "version " MHA_BENCH_TORCH_VERSION +
           (core == nullptr ? std::string() : std::string(", OpenBLAS core type ") + core());
  }();
  return text.c_str();
}

const BenchModule kModule = {
    describe,
    [](int threads) {
      num_threads = threads;
      at::set_num_threads(threads);
    },
    [](const BenchAttention* problem) { return make_call<Attention>(problem); },
    [](const BenchLayer* problem) { return make_call<Layer>(problem); },
    run_call,
    release_call,
};

}  // namespace
}  // namespace mha_bench

extern "C" const BenchModule* bench_module() { return &mha_bench::kModule; }
