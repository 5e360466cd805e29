// SPDX-License-Identifier: MIT
//
// A linear map of tokens: y = x W + b. W is in x out as in the paper's X W (PyTorch stores out x
// in; the loaders transpose), a plain row-major Eigen matrix that you may read and write.
#pragma once

#include "mha/language.hpp"

#include "mha/batch.hpp"
#include "mha/head_columns.hpp"
#include "mha/kernels/project.hpp"
#if !MHA_KERNELS
#include "mha/product.hpp"
#endif

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

/// One of several maps of the same x.
template <class Linear, class Out>
struct ProjectionTask {
  const Linear* linear;
  HeadColumns<Out> y;
};

/// Memory for projecting: where 16-bit weights are widened, and the kernels' scratch.
template <class Acc>
struct ProjectionMemory {
  Acc* wide_weight = nullptr;
  Acc* wide_bias = nullptr;
  kernels::MemoryBlock scratch;
};

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

#if MHA_KERNELS

/// How the kernels map rows by `jobs` weights, the widest of which has so many outputs.
template <class Acc, class In, class Scalar, class Out>
kernels::ProjectPlan<Acc> projection_plan(Index rows, Index inputs, Index outputs, Index jobs,
                                          bool contiguous, const Executor& executor) {
  const bool converts = !std::is_same_v<In, Acc> || !std::is_same_v<Out, Acc> || !contiguous;
  return {rows, inputs, outputs, std::is_same_v<Scalar, Acc> ? jobs : 1, converts, executor};
}

template <class Acc, class In, class Linear, class Out>
void project_by_kernels(const MatrixView<const In>& x, const ProjectionTask<Linear, Out>* tasks,
                        Index num_tasks, const Executor& executor,
                        const ProjectionMemory<Acc>& memory) {
  using Scalar = typename Linear::Weight::Scalar;
  const auto run = [&](const kernels::ProjectJob<In, Out, Acc>* jobs, Index count) {
    Index outputs = 0;
    bool contiguous = true;
    for (Index n = 0; n < count; ++n) {
      outputs = std::max(outputs, jobs[n].y.cols);
      contiguous = contiguous && jobs[n].y.col_stride == 1;
    }
    const auto plan =
        projection_plan<Acc, In, Scalar, Out>(x.rows, x.cols, outputs, count, contiguous, executor);
    kernels::project(x, jobs, count, plan, executor, memory.scratch);
  };
  kernels::ProjectJob<In, Out, Acc> jobs[3];
  for (Index n = 0; n < num_tasks; ++n) {
    const Linear& linear = *tasks[n].linear;
    kernels::ProjectJob<In, Out, Acc>& job = jobs[std::is_same_v<Scalar, Acc> ? n : 0];
    job.y = tasks[n].y;
    job.weight.row_stride = linear.weight.cols();
    if constexpr (std::is_same_v<Scalar, Acc>) {
      job.weight.weight = linear.weight.data();
      job.weight.bias = linear.has_bias() ? linear.bias.data() : nullptr;
    } else {
      using WideWeight = Eigen::Map<Eigen::Array<Acc, Eigen::Dynamic, 1>>;
      using Weight = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>;
      WideWeight(memory.wide_weight, linear.weight.size()) =
          Weight(linear.weight.data(), linear.weight.size()).template cast<Acc>();
      WideWeight(memory.wide_bias, linear.bias.size()) =
          Weight(linear.bias.data(), linear.bias.size()).template cast<Acc>();
      job.weight.weight = memory.wide_weight;
      job.weight.bias = linear.has_bias() ? memory.wide_bias : nullptr;
      run(&job, 1);
    }
  }
  if constexpr (std::is_same_v<Scalar, Acc>) run(jobs, num_tasks);
}

#else

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
  if (std::is_same_v<Out, Acc> && y.col_stride == 1) {
    if constexpr (std::is_same_v<Out, Acc>) compute(y.data, y.row_stride);
  } else {
    Matrix<Acc> result(y.rows, y.cols);
    compute(result.data(), result.outerStride());
    for (Index i = 0; i < y.rows; ++i) {
      for (Index c = 0; c < y.cols; ++c) y(i, c) = convert<Out>(result(i, c));
    }
  }
}

#endif

/// y = x W + b for up to three weights of one x. Sums are kept in Acc.
template <class Acc, class In, class Linear, class Out>
void project(const MatrixView<const In>& x, const ProjectionTask<Linear, Out>* tasks,
             Index num_tasks, const Executor& executor,
             [[maybe_unused]] const ProjectionMemory<Acc>& memory) {
#if MHA_KERNELS
  if constexpr (has_kernels<Acc>) {
    project_by_kernels<Acc>(x, tasks, num_tasks, executor, memory);
    return;
  }
#endif
  using Scalar = typename Linear::Weight::Scalar;
  for (Index n = 0; n < num_tasks; ++n) {
    const Linear& linear = *tasks[n].linear;
    const MatrixView<Out> y = tasks[n].y.run_of_columns(0, tasks[n].y.cols);  // one group
    Matrix<Acc> wide_weight;
    RowVector<Acc> wide_bias;
    MatrixView<const Acc> weight;
    MatrixView<const Acc> bias;
    if constexpr (std::is_same_v<Scalar, Acc>) {
      weight = matrix_view(linear.weight);
      bias = matrix_view(linear.bias);
      weight.row_stride = linear.weight.cols();  // one column: Eigen's strides are a column's
      weight.col_stride = 1;
    } else {
      wide_weight = linear.weight.template cast<Acc>();
      wide_bias = linear.bias.template cast<Acc>();
      weight = matrix_view(wide_weight);
      bias = matrix_view(wide_bias);
    }
    constexpr Index kRows = 256;  // at a time, whoever computes: part of what fixes the bits
    executor.parallel_for((x.rows + kRows - 1) / kRows, [&](Index t) {
      const Index row = t * kRows;
      const Index rows = std::min(kRows, x.rows - row);
#if !MHA_KERNELS
      if constexpr (has_fast_path<Acc>) {
        project_tile<Acc>(x.middle_rows(row, rows), weight, bias, y.middle_rows(row, rows));
        return;
      }
#endif
      project_plain<Acc>(x.middle_rows(row, rows), weight, bias, y.middle_rows(row, rows));
    });
  }
}

}  // namespace detail
}  // namespace mha
