// SPDX-License-Identifier: MIT
//
// What a transformer has besides attention, as the Universal Sentence Encoder lite has it. A row is
// a token; weights are [out, in] as the files store them, so a linear map is y = x W^T + b.
// Source: Vaswani et al. 2017, arXiv:1706.03762, sections 3.3 and 3.5; Ba et al. 2016,
// arXiv:1607.06450, equation (3).
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <mha/types.hpp>

namespace examples {

using mha::Matrix;
using mha::RowVector;

/// y = x W^T + b
inline Matrix<float> linear(const Matrix<float>& x, const Matrix<float>& weight,
                            const RowVector<float>& bias) {
  return (x * weight.transpose()).rowwise() + bias;
}

/// Each row: (x - mean) / sqrt(variance + epsilon) * gain + bias, the variance divided by the
/// width.
inline Matrix<float> layer_norm(const Matrix<float>& x, const RowVector<float>& gain,
                                const RowVector<float>& bias, float epsilon = 1e-6f) {
  Matrix<float> y = x;
  for (auto row : y.rowwise()) {
    row.array() -= row.mean();
    row /= std::sqrt(row.squaredNorm() / static_cast<float>(row.size()) + epsilon);
    row = row.cwiseProduct(gain) + bias;
  }
  return y;
}

/// relu(x W1^T + b1) W2^T + b2
inline Matrix<float> feed_forward(const Matrix<float>& x, const Matrix<float>& w1,
                                  const RowVector<float>& b1, const Matrix<float>& w2,
                                  const RowVector<float>& b2) {
  return linear(linear(x, w1, b1).cwiseMax(0.0f), w2, b2);
}

/// Row p is [sin(p w) | cos(p w)] for positions p = 0, 1, ... and the given angular frequencies w.
inline Matrix<float> sinusoidal_positions(Eigen::Index length,
                                          const RowVector<float>& frequencies) {
  Matrix<float> angles(length, frequencies.size());
  for (Eigen::Index p = 0; p < length; ++p) angles.row(p) = static_cast<float>(p) * frequencies;
  Matrix<float> positions(length, 2 * frequencies.size());
  positions << angles.array().sin().matrix(), angles.array().cos().matrix();
  return positions;
}

}  // namespace examples
