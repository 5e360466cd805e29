// SPDX-License-Identifier: MIT
//
// Softmax of a row in Eigen, for the modules that have no faster one.
#pragma once

#include <Eigen/Core>
#include <cstdint>

namespace mha_bench {

/// The first `allowed` of `size` scores become their softmax, the others 0.
inline void softmax_row(float* scores, std::int64_t allowed, std::int64_t size) {
  Eigen::Map<Eigen::ArrayXf> row(scores, allowed);
  row = (row - row.maxCoeff()).exp();
  row *= 1.0f / row.sum();
  std::fill(scores + allowed, scores + size, 0.0f);
}

}  // namespace mha_bench
