// SPDX-License-Identifier: MIT
//
// The program that a competent Eigen user writes: a block per head, the whole score matrix, Eigen's
// products, OpenMP over the heads. Compiled for this very machine.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "module_softmax.hpp"
#include "module_support.hpp"
#include "support/eigen_version.hpp"

namespace mha_bench {
namespace {

using Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowVector = Eigen::Matrix<float, 1, Eigen::Dynamic>;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;
/// Tokens x channels of one head inside a wider matrix.
using Head = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;

int num_threads = 1;

/// One head.
template <class Output>
void attend(const Head& query, const Head& key, const Head& value, bool causal, Output&& output) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(query.cols()));
  Matrix weights(query.rows(), key.rows());
  weights.noalias() = scale * query * key.transpose();
  for (Index i = 0; i < weights.rows(); ++i) {
    const Index allowed = causal ? std::min(i + 1, weights.cols()) : weights.cols();
    softmax_row(weights.row(i).data(), allowed, weights.cols());
  }
  output.noalias() = weights * value;
}

class Attention : public ModuleCall {
 public:
  explicit Attention(const BenchAttention& problem) : p_(problem) {}

  void run() override {
    // The queries of all heads that share keys are the rows of one matrix.
    const Index rows = p_.causal != 0 ? p_.query_len : p_.heads / p_.kv_heads * p_.query_len;
    const Index blocks = p_.batch * p_.heads * p_.query_len / rows;
    const Index sharing = blocks / (p_.batch * p_.kv_heads);
    const Index dim = p_.head_dim;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
    for (Index b = 0; b < blocks; ++b) {
      const Index kv = b / sharing * p_.kv_len * dim;
      attend(Head(p_.query + b * rows * dim, rows, dim, Eigen::OuterStride<>(dim)),
             Head(p_.key + kv, p_.kv_len, dim, Eigen::OuterStride<>(dim)),
             Head(p_.value + kv, p_.kv_len, dim, Eigen::OuterStride<>(dim)), p_.causal != 0,
             Map(p_.output + b * rows * dim, rows, dim));
    }
  }

 private:
  const BenchAttention p_;
};

class Layer : public ModuleCall {
 public:
  explicit Layer(const BenchLayer& problem)
      : p_(problem),
        width_(problem.heads * problem.head_dim),
        in_weight_(width_, 3 * width_),
        in_bias_(3 * width_),
        in_(problem.rows, 3 * width_),
        concat_(problem.rows, width_) {
    const float* weights[] = {p_.q_weight, p_.k_weight, p_.v_weight};
    const float* biases[] = {p_.q_bias, p_.k_bias, p_.v_bias};
    for (Index part = 0; part < 3; ++part) {
      in_weight_.middleCols(part * width_, width_) = ConstMap(weights[part], width_, width_);
      in_bias_.segment(part * width_, width_) = Eigen::Map<const RowVector>(biases[part], width_);
    }
    Index row = 0;
    for (Index s = 0; s < p_.sequences; ++s) {
      for (Index h = 0; h < p_.heads; ++h) tasks_.push_back({row, p_.lengths[s], h});
      row += p_.lengths[s];
    }
  }

  void run() override {
    Eigen::setNbThreads(num_threads);
    in_.noalias() = ConstMap(p_.x, p_.rows, width_) * in_weight_;
    in_.rowwise() += in_bias_;
    const auto count = static_cast<Index>(tasks_.size());
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
    for (Index t = 0; t < count; ++t) {
      const Task& task = tasks_[static_cast<std::size_t>(t)];
      const Index dim = p_.head_dim;
      const auto part = [&](Index n) {
        return Head(&in_(task.row, n * width_ + task.head * dim), task.length, dim,
                    Eigen::OuterStride<>(in_.cols()));
      };
      attend(part(0), part(1), part(2), false,
             concat_.block(task.row, task.head * dim, task.length, dim));
    }
    Map output(p_.output, p_.rows, width_);
    output.noalias() = concat_ * ConstMap(p_.out_weight, width_, width_);
    output.rowwise() += Eigen::Map<const RowVector>(p_.out_bias, width_);
  }

 private:
  struct Task {
    Index row, length, head;
  };
  const BenchLayer p_;
  const Index width_;
  Matrix in_weight_;
  RowVector in_bias_;
  Matrix in_, concat_;
  std::vector<Task> tasks_;
};

const char* describe() {
  static const std::string text = "version " + eigen_version() + ", " MHA_BENCH_MODULE_FLAGS;
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
