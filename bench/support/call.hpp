// SPDX-License-Identifier: MIT
//
// A workload's memory, and a call that can be timed.
#pragma once

#include "contender.h"
#include "support/buffer.hpp"
#include "support/workloads.hpp"

namespace mha_bench {

/// Something to be timed. Its output is the problem's.
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  virtual ~Call() = default;
  virtual void run() = 0;
};

/// The tensors of an attention workload; those in double are there for Variant::f64 alone.
struct AttentionProblem {
  explicit AttentionProblem(const Workload& w);
  BenchAttention view() const;  ///< for the modules, which write to `output`

  Workload workload;
  Buffer<float> query, key_value;  ///< keys, then values: one block, so that it can be read as one
  Buffer<double> query_f64, key_value_f64;
  mutable Buffer<float> output, lse;
  mutable Buffer<double> output_f64;
};

/// The parameters and rows of a layer workload.
struct LayerProblem {
  explicit LayerProblem(const Workload& w);
  BenchLayer view() const;

  Workload workload;
  Buffer<float> weights[4], biases[4];  ///< of q, k, v, out
  Buffer<float> x;
  std::vector<std::int64_t> lengths;
  mutable Buffer<float> output;
};

}  // namespace mha_bench
