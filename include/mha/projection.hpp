// SPDX-License-Identifier: MIT
//
// A linear map of tokens: y = x W + b. W is in x out as in the paper's X W (PyTorch stores out x
// in; the loaders transpose), a plain row-major Eigen matrix that you may read and write.
#pragma once

#include "mha/batch.hpp"
#include "mha/executor.hpp"
#include "mha/product.hpp"

namespace mha {

/// A weight and a bias; sizes known at compile time, or Eigen::Dynamic.
template <class Scalar, int In = Eigen::Dynamic, int Out = Eigen::Dynamic>
struct Projection {
  // Eigen wants a matrix of one column to be column-major: the same memory.
  static constexpr int kOrder = Out == 1 && In != 1 ? Eigen::ColMajor : Eigen::RowMajor;
  using Weight = Eigen::Matrix<Scalar, In, Out, kOrder>;
  using Bias = Eigen::Matrix<Scalar, 1, Out, Eigen::RowMajor>;

  Weight weight;  ///< inputs x outputs
  Bias bias;      ///< outputs; empty without bias (all 0 where the size is fixed)

  Index inputs() const noexcept { return weight.rows(); }
  Index outputs() const noexcept { return weight.cols(); }
  bool has_bias() const noexcept { return bias.size() != 0; }

  /// Weight and bias of these sizes, all 0.
  void resize(Index inputs, Index outputs, bool with_bias) {
    weight.setZero(inputs, outputs);
    bias.setZero(Out != Eigen::Dynamic || with_bias ? outputs : 0);
  }
};

namespace detail {

/// Does a weight of these sizes fit Eigen's limit for matrices that live inside an object?
template <class Scalar>
constexpr bool fits_on_stack(int heads, int head_dim) {
  if (heads == Eigen::Dynamic || head_dim == Eigen::Dynamic) return false;
  const auto width = static_cast<long long>(heads) * head_dim;
  const long long limit = EIGEN_STACK_ALLOCATION_LIMIT;
  return limit == 0 || width * width * static_cast<long long>(sizeof(Scalar)) <= limit;
}

/// Rows that are projected at a time, whoever computes: the block is part of what fixes the bits.
inline constexpr Index kProjectionTile = 256;

/// y = x W + b for some rows, in Acc, through Eigen's product.
template <class Acc, class In, class Out>
void project_tile(const MatrixView<const In>& x, const MatrixView<const Acc>& weight,
                  const MatrixView<const Acc>& bias, const MatrixView<Out>& y) {
  Matrix<Acc> input;
  const Acc* rows = nullptr;
  Index stride = 0;
  if constexpr (std::is_same_v<In, Acc>) {
    if (x.col_stride == 1) {
      rows = x.data;
      stride = x.row_stride;
    }
  }
  if (rows == nullptr) {
    input.resize(x.rows, x.cols);
    for (Index i = 0; i < x.rows; ++i) {
      for (Index d = 0; d < x.cols; ++d) input(i, d) = convert<Acc>(x(i, d));
    }
    rows = input.data();
    stride = input.outerStride();
  }
  const auto compute = [&](Acc* result, Index result_stride) {
    for (Index i = 0; i < x.rows; ++i) {
      for (Index c = 0; c < y.cols; ++c) {
        result[i * result_stride + c] = bias.cols != 0 ? bias(0, c) : Acc(0);
      }
    }
    add_product(rows, stride, weight.data, weight.row_stride, result, result_stride, x.rows, x.cols,
                y.cols);
  };
  if constexpr (std::is_same_v<Out, Acc>) {
    compute(y.data, y.row_stride);
  } else {
    Matrix<Acc> result(y.rows, y.cols);
    compute(result.data(), result.outerStride());
    for (Index i = 0; i < y.rows; ++i) {
      for (Index c = 0; c < y.cols; ++c) y(i, c) = convert<Out>(result(i, c));
    }
  }
}

/// y = x W + b, for scalars without a fast product.
template <class Acc, class In, class Out>
void project_plain(const MatrixView<const In>& x, const MatrixView<const Acc>& weight,
                   const MatrixView<const Acc>& bias, const MatrixView<Out>& y) {
  for (Index i = 0; i < x.rows; ++i) {
    for (Index c = 0; c < y.cols; ++c) {
      Acc sum = bias.cols != 0 ? bias(0, c) : Acc(0);
      for (Index d = 0; d < x.cols; ++d) sum += Acc(convert<Acc>(x(i, d)) * weight(d, c));
      y(i, c) = convert<Out>(sum);
    }
  }
}

/// y = x W + b. `y` has contiguous rows. Sums are kept in Acc, 16-bit weights widened once per
/// call.
template <class Acc, class In, class Linear, class Out>
void project(const MatrixView<const In>& x, const Linear& linear, const MatrixView<Out>& y,
             const Executor& executor) {
  using Scalar = typename Linear::Weight::Scalar;
  Matrix<Acc> wide_weight;
  RowVector<Acc> wide_bias;
  MatrixView<const Acc> weight;
  MatrixView<const Acc> bias;
  if constexpr (std::is_same_v<Scalar, Acc>) {
    weight = matrix_view(linear.weight);
    bias = matrix_view(linear.bias);
    weight.row_stride = linear.weight.cols();  // one column: Eigen's strides are those of a column
    weight.col_stride = 1;
  } else {
    wide_weight = linear.weight.template cast<Acc>();
    wide_bias = linear.bias.template cast<Acc>();
    weight = matrix_view(wide_weight);
    bias = matrix_view(wide_bias);
  }
  const Index tiles = (x.rows + kProjectionTile - 1) / kProjectionTile;
  executor.parallel_for(tiles, [&](Index t) {
    const Index row = t * kProjectionTile;
    const Index rows = std::min(kProjectionTile, x.rows - row);
    if constexpr (has_fast_path<Acc>) {
      project_tile<Acc>(x.middle_rows(row, rows), weight, bias, y.middle_rows(row, rows));
    } else {
      project_plain<Acc>(x.middle_rows(row, rows), weight, bias, y.middle_rows(row, rows));
    }
  });
}

}  // namespace detail
}  // namespace mha
