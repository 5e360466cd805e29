// SPDX-License-Identifier: MIT
//
// The forward pass of projections: y = x W + b for up to three weights of one x. On the kernels for
// float and double, else as written. Backward: gradient.hpp.
#pragma once

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/project.hpp"
#include "mha/internal/projection/linear_view.hpp"
#include "mha/internal/support/head_columns.hpp"

namespace mha::inline MHA_ABI::detail {

/// One of several maps of the same x.
template <class Scalar, class Out>
struct ProjectionTask {
  const LinearView<Scalar>* linear;
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

/// How the kernels map rows; nothing for other scalars.
template <class Acc>
using ProjectionPlan = std::conditional_t<has_kernels<Acc>, kernels::ProjectPlan<Acc>, NoPlan>;

/// How they map rows by `maps` weights, the widest of which has so many outputs.
template <class Acc, class In, class Out>
kernels::ProjectPlan<Acc> projection_plan(Index rows, Index inputs, Index outputs, Index maps,
                                          bool contiguous, bool prepacked,
                                          const Executor& executor) {
  const bool converts = !std::is_same_v<In, Acc> || !std::is_same_v<Out, Acc> || !contiguous;
  return {rows, inputs, outputs, maps, converts, prepacked, executor};
}

/// W and b as the kernels read them: where they lie, or widened into memory.
template <class Acc, class Scalar>
kernels::Weight<Acc> widened_weight(const LinearView<Scalar>& linear,
                                    [[maybe_unused]] const ProjectionMemory<Acc>& memory) {
  if (linear.prepacked) return linear.packed;
  kernels::Weight<Acc> weight;
  weight.row_stride = linear.outputs();
  if constexpr (std::is_same_v<Scalar, Acc>) {
    weight.weight = linear.weight.data;
    weight.bias = linear.has_bias() ? linear.bias.data : nullptr;
  } else {
    const auto widen = [](Acc* to, const MatrixView<const Scalar>& m) {
      const Index size = m.rows * m.cols;
      Eigen::Map<Eigen::Array<Acc, Eigen::Dynamic, 1>>(to, size) =
          Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>(m.data, size)
              .template cast<Acc>();
    };
    widen(memory.wide_weight, linear.weight);
    widen(memory.wide_bias, linear.bias);
    weight.weight = memory.wide_weight;
    weight.bias = linear.has_bias() ? memory.wide_bias : nullptr;
  }
  return weight;
}

template <class Acc, class In, class Scalar, class Out>
void project_by_kernels(const MatrixView<const In>& x, const ProjectionTask<Scalar, Out>* tasks,
                        int num_tasks, const kernels::ProjectPlan<Acc>& plan,
                        const Executor& executor, const ProjectionMemory<Acc>& memory) {
  eigen_assert((num_tasks == 1 || tasks->linear->is_read_in_place()) &&
               "one weight is widened at a time");
  kernels::ProjectJob<In, Out, Acc> jobs[3];
  for (int n = 0; n < num_tasks; ++n) {
    jobs[n] = {widened_weight<Acc>(*tasks[n].linear, memory), tasks[n].y};
  }
  kernels::project(x, jobs, num_tasks, plan, executor, memory.scratch);
}

/// The same for scalars that the kernels do not take, each number by itself.
template <class Acc, class In, class Scalar, class Out>
void project_plainly(const MatrixView<const In>& x, const ProjectionTask<Scalar, Out>* tasks,
                     int num_tasks, const Executor& executor) {
  for (int n = 0; n < num_tasks; ++n) {
    const LinearView<Scalar>& linear = *tasks[n].linear;
    const MatrixView<Out> y = tasks[n].y.run_of_columns(0, tasks[n].y.cols);  // one group
    executor.parallel_for(x.rows, [&](Index i) {
      project_plain<Acc>(x.middle_rows(i, 1), linear.weight, linear.bias, y.middle_rows(i, 1));
    });
  }
}

/// y = x W + b for up to three weights of one x, as planned. Sums are kept in Acc.
template <class Acc, class In, class Scalar, class Out>
void project(const MatrixView<const In>& x, const ProjectionTask<Scalar, Out>* tasks, int num_tasks,
             [[maybe_unused]] const ProjectionPlan<Acc>& plan, const Executor& executor,
             [[maybe_unused]] const ProjectionMemory<Acc>& memory) {
  if constexpr (has_kernels<Acc>) {
    project_by_kernels<Acc>(x, tasks, num_tasks, plan, executor, memory);
  } else {
    project_plainly<Acc>(x, tasks, num_tasks, executor);
  }
}

}  // namespace mha::detail
