// SPDX-License-Identifier: MIT
//
// The same program with OpenBLAS's products: a product of one thread per head, the heads shared out
// by OpenMP; the layer's projections by all threads. OpenBLAS chooses its kernels by the processor,
// or by OPENBLAS_CORETYPE in the environment, which its older versions need on processors that are
// newer than they.
#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "module_softmax.hpp"
#include "module_support.hpp"

namespace mha_bench {
namespace {

using Index = std::int64_t;

int num_threads = 1;

int blas_int(Index n) { return static_cast<int>(n); }

/// C [m, n] = alpha A [m, k] B [k, n] + beta C, B given as B^T [n, k] if transposed; row-major.
void product(Index m, Index n, Index k, float alpha, const float* a, Index a_stride, const float* b,
             Index b_stride, bool b_transposed, float beta, float* c, Index c_stride) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans, blas_int(m),
              blas_int(n), blas_int(k), alpha, a, blas_int(a_stride), b, blas_int(b_stride), beta,
              c, blas_int(c_stride));
}

/// One head: pointers to its first row, elements from row to row.
struct Head {
  const float *query, *key, *value;
  float* output;
  Index query_len, kv_len, dim;
  Index in_stride, out_stride;
};

void attend(const Head& head, bool causal, std::vector<float>& weights) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head.dim));
  weights.resize(static_cast<std::size_t>(head.query_len * head.kv_len));
  product(head.query_len, head.kv_len, head.dim, scale, head.query, head.in_stride, head.key,
          head.in_stride, true, 0, weights.data(), head.kv_len);
  for (Index i = 0; i < head.query_len; ++i) {
    softmax_row(weights.data() + i * head.kv_len,
                causal ? std::min(i + 1, head.kv_len) : head.kv_len, head.kv_len);
  }
  product(head.query_len, head.dim, head.kv_len, 1, weights.data(), head.kv_len, head.value,
          head.in_stride, false, 0, head.output, head.out_stride);
}

void attend_all(const std::vector<Head>& heads, bool causal) {
  openblas_set_num_threads(1);
  const auto count = static_cast<Index>(heads.size());
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    std::vector<float> weights;
#pragma omp for
    for (Index h = 0; h < count; ++h) attend(heads[static_cast<std::size_t>(h)], causal, weights);
  }
}

class Attention : public ModuleCall {
 public:
  explicit Attention(const BenchAttention& p) : causal_(p.causal != 0) {
    // The queries of all heads that share keys are the rows of one matrix.
    const Index rows = causal_ ? p.query_len : p.heads / p.kv_heads * p.query_len;
    const Index blocks = p.batch * p.heads * p.query_len / rows;
    const Index sharing = blocks / (p.batch * p.kv_heads);
    const Index dim = p.head_dim;
    for (Index b = 0; b < blocks; ++b) {
      const Index kv = b / sharing * p.kv_len * dim;
      heads_.push_back({p.query + b * rows * dim, p.key + kv, p.value + kv,
                        p.output + b * rows * dim, rows, p.kv_len, dim, dim, dim});
    }
  }
  void run() override { attend_all(heads_, causal_); }

 private:
  bool causal_;
  std::vector<Head> heads_;
};

class Layer : public ModuleCall {
 public:
  explicit Layer(const BenchLayer& problem)
      : p_(problem),
        width_(problem.heads * problem.head_dim),
        in_weight_(static_cast<std::size_t>(3 * width_ * width_)),
        in_bias_(static_cast<std::size_t>(3 * width_)),
        in_(static_cast<std::size_t>(3 * width_ * problem.rows)),
        concat_(static_cast<std::size_t>(width_ * problem.rows)) {
    const float* weights[] = {p_.q_weight, p_.k_weight, p_.v_weight};
    const float* biases[] = {p_.q_bias, p_.k_bias, p_.v_bias};
    for (Index part = 0; part < 3; ++part) {
      for (Index row = 0; row < width_; ++row) {
        std::copy_n(weights[part] + row * width_, width_,
                    in_weight_.data() + (3 * row + part) * width_);
      }
      std::copy_n(biases[part], width_, in_bias_.data() + part * width_);
    }
    const Index dim = p_.head_dim;
    Index row = 0;
    for (Index s = 0; s < p_.sequences; ++s) {
      for (Index h = 0; h < p_.heads; ++h) {
        const float* query = in_.data() + row * 3 * width_ + h * dim;
        heads_.push_back({query, query + width_, query + 2 * width_,
                          concat_.data() + row * width_ + h * dim, p_.lengths[s], p_.lengths[s],
                          dim, 3 * width_, width_});
      }
      row += p_.lengths[s];
    }
  }

  void run() override {
    project(p_.x, in_weight_.data(), in_bias_.data(), 3 * width_, in_.data());
    attend_all(heads_, false);
    project(concat_.data(), p_.out_weight, p_.out_bias, width_, p_.output);
  }

 private:
  /// output = input weight + bias; the bias is there first.
  void project(const float* input, const float* weight, const float* bias, Index outputs,
               float* output) const {
    for (Index row = 0; row < p_.rows; ++row) std::copy_n(bias, outputs, output + row * outputs);
    openblas_set_num_threads(num_threads);
    product(p_.rows, outputs, width_, 1, input, width_, weight, outputs, false, 1, output, outputs);
  }

  const BenchLayer p_;
  const Index width_;
  std::vector<float> in_weight_, in_bias_, in_, concat_;
  std::vector<Head> heads_;
};

const char* describe() {
  static const std::string text = std::string(openblas_get_config()) + ", core type " +
                                  openblas_get_corename() + ", softmax in Eigen, " +
                                  MHA_BENCH_MODULE_FLAGS;
  return text.c_str();
}

const BenchModule kModule = {
    describe,
    [](int threads) { num_threads = threads; },
    [](const BenchAttention* problem) { return make_call<Attention>(problem); },
    [](const BenchLayer* problem) { return make_call<Layer>(problem); },
    run_call,
    release_call,
};

}  // namespace
}  // namespace mha_bench

extern "C" const BenchModule* bench_module() { return &mha_bench::kModule; }
