// SPDX-License-Identifier: MIT
//
// The forward pass of projections: y = x W + b for up to three weights of one x. On the kernels for
// float and double, else as written. Backward: gradient.hpp.
#pragma once

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/project.hpp"
#include "mha/internal/support/head_columns.hpp"

namespace mha::detail {

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

/// The same for scalars that the kernels do not take, each number by itself.
template <class Acc, class In, class Linear, class Out>
void project_plainly(const MatrixView<const In>& x, const ProjectionTask<Linear, Out>* tasks,
                     Index num_tasks, const Executor& executor) {
  for (Index n = 0; n < num_tasks; ++n) {
    const Linear& linear = *tasks[n].linear;
    const MatrixView<Out> y = tasks[n].y.run_of_columns(0, tasks[n].y.cols);  // one group
    // One column: Eigen's strides are a column's.
    const MatrixView<const Acc> weight{linear.weight.data(), linear.weight.rows(),
                                       linear.weight.cols(), linear.weight.cols(), 1};
    const MatrixView<const Acc> bias = matrix_view(linear.bias);
    executor.parallel_for(x.rows, [&](Index i) {
      project_plain<Acc>(x.middle_rows(i, 1), weight, bias, y.middle_rows(i, 1));
    });
  }
}

/// y = x W + b for up to three weights of one x. Sums are kept in Acc.
template <class Acc, class In, class Linear, class Out>
void project(const MatrixView<const In>& x, const ProjectionTask<Linear, Out>* tasks,
             Index num_tasks, const Executor& executor,
             [[maybe_unused]] const ProjectionMemory<Acc>& memory) {
  if constexpr (has_kernels<Acc>) {
    project_by_kernels<Acc>(x, tasks, num_tasks, executor, memory);
  } else {
    project_plainly<Acc>(x, tasks, num_tasks, executor);
  }
}

}  // namespace mha::detail
