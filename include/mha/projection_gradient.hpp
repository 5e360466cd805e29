// SPDX-License-Identifier: MIT
//
// The backward pass of a projection, y = x W + b:
//     dW += x^T dy        db += sum of the rows of dy        dx = dy W^T
// On the kernels for float and double, else as written.
#pragma once

#include "mha/kernels/project_gradient.hpp"
#include "mha/kernels/tile_memory.hpp"
#include "mha/projection.hpp"

namespace mha::detail {

/// Products of the backward pass of several projections, in one workspace.
template <class Acc>
class ProjectionGradients {
 public:
  using View = MatrixView<const Acc>;

  /// @param tokens, inputs  of the largest x
  ProjectionGradients(const Executor& executor, Workspace& workspace, [[maybe_unused]] Index tokens,
                      [[maybe_unused]] Index inputs)
      : executor_(executor) {
    if constexpr (has_kernels<Acc>) {
      workers_ = executor.is_serial() ? 1 : std::min(executor.concurrency(), kMostWorkers);
      workspace.reserve(kernels::PanelProducts<Acc>::bytes(workers_, tokens, inputs));
      memory_ = {workspace.data(), workspace.size()};
    }
  }

  /// weight += x^T y, bias += the sum of y's rows if there is a bias.
  template <class Linear>
  void add_parameters(Linear& gradient, const View& x, const View& y) const {
    const MatrixView<Acc> weight{gradient.weight.data(), gradient.weight.rows(),
                                 gradient.weight.cols(), gradient.weight.cols(), 1};
    if (gradient.has_bias()) {
      if constexpr (has_kernels<Acc>) {
        using Rows = Eigen::Map<const Matrix<Acc>, 0, Eigen::OuterStride<>>;
        if (y.col_stride == 1) {  // in the rows' order, column by column: the same bits anywhere
          const Rows rows(y.data, y.rows, y.cols, Eigen::OuterStride<>(y.row_stride));
          for (Index i = 0; i < y.rows; ++i) gradient.bias += rows.row(i);
        }
      }
      if (!has_kernels<Acc> || y.col_stride != 1) {
        for (Index i = 0; i < y.rows; ++i) {
          for (Index c = 0; c < y.cols; ++c) gradient.bias(c) += y(i, c);
        }
      }
    }
    if constexpr (has_kernels<Acc>) {
      products().add_outer(weight, x, y);
    } else {
      for (Index i = 0; i < x.rows; ++i) {
        for (Index d = 0; d < x.cols; ++d) {
          for (Index c = 0; c < y.cols; ++c) weight(d, c) += Acc(x(i, d) * y(i, c));
        }
      }
    }
  }

  /// x = y weight^T, or x += it.
  void to_input(const MatrixView<Acc>& x, const View& y, const View& weight, bool add) const {
    if constexpr (has_kernels<Acc>) {
      products().by_transposed(x, y, weight, add);
    } else {
      for (Index i = 0; i < x.rows; ++i) {
        for (Index d = 0; d < x.cols; ++d) {
          Acc sum = add ? x(i, d) : Acc(0);
          for (Index c = 0; c < y.cols; ++c) sum += Acc(y(i, c) * weight(d, c));
          x(i, d) = sum;
        }
      }
    }
  }

 private:
  static constexpr Index kMostWorkers = 256;
  kernels::PanelProducts<Acc> products() const { return {executor_, memory_, workers_}; }

  const Executor& executor_;
  kernels::MemoryBlock memory_;
  Index workers_ = 1;
};

}  // namespace mha::detail
