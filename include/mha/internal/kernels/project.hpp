// SPDX-License-Identifier: MIT
//
// Projections y = x W + b, several of the same x together, shared out over an executor.
#pragma once

#include "mha/internal/kernels/project_task.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Every map of every row. `memory` has at least plan.bytes(), the plan being that of these sizes.
template <class In, class Out, class T>
void project(const MatrixView<const In>& x, const ProjectJob<In, Out, T>* jobs, Index num_jobs,
             const ProjectPlan<T>& plan, const Executor& executor, const MemoryBlock& memory) {
  const Kernels<T>& kernels = table<T>(target());
  // Which rows a worker has packed last.
  constexpr Index kRemembered = 64;
  std::array<Index, std::size_t{kRemembered}> packed_rows;
  packed_rows.fill(-1);
  const Index per_rows = num_jobs * plan.output_tasks;
  const auto weight_at = [&](Index k) {
    const Weight<T>& weight = jobs[k / plan.output_tasks].weight;
    const Index output = k % plan.output_tasks * plan.output_block;
    return plan.way == ProjectWay::prepacked ? weight.panel(output) : weight.weight + output;
  };
  // Tasks first, ..., last - 1 of some rows, of which a worker does each step'th.
  const auto run = [&](Index row_task, Index first, Index last, Index worker, Index step) {
    Arena arena(memory.of_worker(worker, plan.bytes_per_worker));
    const Index row = row_task * plan.row_block;
    const Index rows = std::min(plan.row_block, x.rows - row);
    ProjectTask<In, Out, T> task(
        kernels, x.middle_rows(row, rows), plan.take(arena, x.cols),
        worker < kRemembered && packed_rows[static_cast<std::size_t>(worker)] == row_task);
    for (Index k = first; k < last; ++k) {
      ProjectJob<In, Out, T> job = jobs[k / plan.output_tasks];
      job.y = job.y.middle_rows(row, rows);
      const Index output = k % plan.output_tasks * plan.output_block;
      const Index outputs = std::min(plan.output_block, job.y.cols - output);
      if (outputs <= 0) continue;
      if (plan.way == ProjectWay::panels) {
        task.run_panel(job, output, outputs);
      } else if (plan.way == ProjectWay::prepacked) {
        task.run_prepacked(job, output, outputs,
                           k + step < per_rows ? weight_at(k + step) : nullptr);
      } else if (plan.way == ProjectWay::tokens) {
        task.run_transposed(job, output, outputs, weight_at(k + 1 < last ? k + 1 : 0));
      } else {
        task.run_in_place(job, output, outputs);
      }
    }
    // Not where nothing had to be computed: of maps of several widths, the narrow have fewer outputs.
    if (task.is_packed() && worker < kRemembered) {
      packed_rows[static_cast<std::size_t>(worker)] = row_task;
    }
  };
  if (plan.workers <= 1) {
    for (Index r = 0; r < plan.row_tasks; ++r) run(r, 0, per_rows, 0, 1);
  } else {
    share(plan.row_tasks * per_rows, plan.workers, executor, [&](Index k, Index worker) {
      run(k / per_rows, k % per_rows, k % per_rows + 1, worker, plan.workers);
    });
  }
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_PROJECT(T)                                                              \
  MHA_COMPILED_TEMPLATE void project(const MatrixView<const T>&, const ProjectJob<T, T, T>*, \
                                     Index, const ProjectPlan<T>&, const Executor&,          \
                                     const MemoryBlock&);
MHA_COMPILED_PROJECT(float)
MHA_COMPILED_PROJECT(double)
#undef MHA_COMPILED_PROJECT
#endif

}  // namespace mha::kernels
