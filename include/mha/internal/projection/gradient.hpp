// SPDX-License-Identifier: MIT
//
// The backward pass of a projection, y = x W + b:
//     dW += x^T dy        db += sum of the rows of dy        dx = dy W^T
// On the kernels for float and double, else as written.
#pragma once

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/project_gradient.hpp"
#include "mha/internal/kernels/tile_memory.hpp"
#include "mha/internal/projection/linear_view.hpp"
#include "mha/internal/support/matrix_check.hpp"

namespace mha::inline MHA_ABI::detail {

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
      workers_ = workers_of(executor);
      tokens_ = tokens;
      inputs_ = inputs;
      workspace.reserve(bytes(executor, tokens, inputs));
      memory_ = {workspace.data(), workspace.size()};
    }
  }

  /// Of workspace, for x of these sizes.
  static std::size_t bytes([[maybe_unused]] const Executor& executor, [[maybe_unused]] Index tokens,
                           [[maybe_unused]] Index inputs) {
    if constexpr (has_kernels<Acc>) {
      return kernels::PanelProducts<Acc>::bytes(workers_of(executor), tokens, inputs);
    }
    return 0;
  }

  /// weight += x^T y, bias += the sum of y's rows if there is a bias.
  void add_parameters(const LinearParameters<Acc>& gradient, const View& x, const View& y) const {
    const MatrixView<Acc>& weight = gradient.weight;
    if constexpr (has_kernels<Acc>) {
      kernels::add_outer(products(), weight, gradient.has_bias() ? gradient.bias.data : nullptr, x,
                         y);
    } else {
      if (gradient.has_bias()) {
        for (Index i = 0; i < y.rows; ++i) {
          for (Index c = 0; c < y.cols; ++c) gradient.bias(0, c) += y(i, c);
        }
      }
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
      kernels::by_transposed(products(), x, y, weight, add);
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
  static Index workers_of(const Executor& executor) {
    return executor.is_serial() ? 1 : std::min(executor.concurrency(), kMostWorkers);
  }
  kernels::PanelProducts<Acc> products() const {
    return {executor_, memory_, workers_, tokens_, inputs_};
  }

  const Executor& executor_;
  kernels::MemoryBlock memory_;
  Index workers_ = 1;
  Index tokens_ = 0, inputs_ = 0;
};

/// In the accumulator's type: itself, or a copy.
template <class Acc, class In>
MatrixView<const Acc> widened(const MatrixView<const In>& m, [[maybe_unused]] Matrix<Acc>& copy) {
  if constexpr (std::is_same_v<In, Acc>) {
    return m;
  } else {
    copy.resize(m.rows, m.cols);
    for (Index i = 0; i < m.rows; ++i) {
      for (Index j = 0; j < m.cols; ++j) copy(i, j) = convert<Acc>(m(i, j));
    }
    return memory_of(copy);
  }
}

/// The step back through y = x W + b: adds to the gradients of W and b, and writes that of x, or adds
/// to it.
template <class Acc, class Scalar, class In>
void backward_projection(const ProjectionGradients<Acc>& products,
                         const LinearParameters<Acc>& gradient, const LinearView<Scalar>& linear,
                         const MatrixView<const In>& x, const MatrixView<const Acc>& grad_y,
                         const MatrixView<Acc>& grad_x, bool add) {
  Matrix<Acc> copy;
  products.add_parameters(gradient, widened<Acc>(x, copy), grad_y);
  products.to_input(grad_x, grad_y, widened<Acc>(linear.weight, copy), add);
}

}  // namespace mha::detail
