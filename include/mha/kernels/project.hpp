// SPDX-License-Identifier: MIT
//
// y = x W + b on the kernels' register tile, in one of three ways. In each, an entry of y is one chain
// of multiply-adds over the inputs, in order, from its bias: the same bits for any rows beside it.
//   panels    Y = X W + b         many tokens: 64 columns of W are copied side by side, then read as
//             vectors by all tokens, over the whole depth while the sums stay in registers
//   tokens    Y^T = W^T X^T + b   fewer: tokens are the lanes. x is transposed into panels of 64
//             tokens; W is read where it lies, 96 of its rows at a time, one number broadcast after
//             the other, while the next 96 rows are fetched in the order in which they lie there
//   in_place  Y = X W + b         few tokens, or a small W: rows of W are read as vectors where they lie
// Measured (AVX-512, 768 x 768, share of the multiply-add peak): panels 0.81 with 128 tokens, 0.85
// with 256, 0.88 with 512, 0.89 with 2048; tokens 0.81, 0.80, 0.80, 0.79.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "mha/head_columns.hpp"
#include "mha/kernels/attend.hpp"

namespace mha::kernels {

/// W, inputs x outputs, row-major; b or null.
template <class T>
struct Weight {
  const T* weight = nullptr;
  Index row_stride = 0;
  const T* bias = nullptr;
};

/// While a strip of rows of A is worked through, fetches those of the next, if they lie side by side.
template <class T>
void fetch_next_strip(Product<T>& p) {
  p.fetch[0] = p.fetch[1] = p.a;
  if (p.a_step != 1 || p.depth == 0 || p.a_row >= 2 * p.depth) return;
  p.fetch[0] = p.a + 6 * p.a_row;
  p.fetch[1] = p.a + 12 * p.a_row;
  p.fetch_step = 12 * p.a_row / p.depth;
  p.fetch_strip = 12 * p.a_row;
}

/// Several maps of the same x.
template <class In, class Out, class T>
struct ProjectJob {
  Weight<T> weight;
  mha::detail::HeadColumns<Out> y;
};

enum class ProjectWay { panels, tokens, in_place };

inline constexpr Index kDepthBlock = 96;      ///< rows of W that are worked through at a time
inline constexpr Index kSmallWeight = 32768;  ///< entries: 128 KiB of floats
inline constexpr Index kFewTokens = 16;
inline constexpr Index kRowBlock = 96;      ///< rows of x of a task, where outputs are lanes
inline constexpr Index kOutputBlock = 256;  ///< outputs of a task, where tokens are few
inline constexpr Index kManyTokens = 192;   ///< from here on, copying W to panels pays
inline constexpr Index kPanelDepth = 1024;  ///< rows of a panel of W: at most 256 KiB
inline constexpr Index kPanelRows = 2048;   ///< tokens of a task, at the most

/// How so many rows and weights of this size are mapped.
inline ProjectWay way_to_project(Index rows, Index inputs, Index outputs, bool converts) {
  if (rows < kFewTokens || inputs * outputs <= kSmallWeight) return ProjectWay::in_place;
  return rows < kManyTokens || converts ? ProjectWay::tokens : ProjectWay::panels;
}

/// How a projection is cut into tasks, and their memory.
template <class T>
struct ProjectPlan {
  ProjectWay way;
  bool converts;       ///< x or y is not rows of T, each contiguous
  Index row_block;     ///< tokens of a task
  Index output_block;  ///< outputs of a task
  Index row_tasks;
  Index output_tasks;
  Index workers = 1;
  std::size_t bytes_per_worker = 0;

  /// @param outputs  of the widest of `jobs` maps
  ProjectPlan(Index rows, Index inputs, Index outputs, Index jobs, bool with_conversion,
              const Executor& executor)
      : converts(with_conversion) {
    way = way_to_project(rows, inputs, outputs, converts);
    const double work = static_cast<double>(rows) * static_cast<double>(inputs) *
                        static_cast<double>(outputs) * static_cast<double>(jobs);
    const Index panels = (outputs + kLanes<T> - 1) / kLanes<T>;
    output_block = outputs;
    switch (way) {
      case ProjectWay::panels:
        row_block = std::min(rows, kPanelRows);
        output_block = kLanes<T>;
        workers = workers_for((rows + kFewTokens - 1) / kFewTokens * jobs * panels, work, executor);
        while (workers > 1 && row_block > kManyTokens &&
               (rows + row_block - 1) / row_block * jobs * panels < 4 * workers) {
          row_block = (row_block + 1) / 2;
        }
        break;
      case ProjectWay::tokens:
        row_block = 2 * kLanes<T>;
        break;
      case ProjectWay::in_place:
        row_block = kRowBlock;
        if (rows < kFewTokens) output_block = std::min(outputs, kOutputBlock);
        break;
    }
    row_tasks = (rows + row_block - 1) / row_block;
    if (way != ProjectWay::panels) {
      workers = workers_for(row_tasks * jobs * panels, work, executor);
    }
    if (way == ProjectWay::tokens && workers > 1 && row_tasks * jobs < 4 * workers) {
      // Too few tasks to go round evenly: cut the outputs too, in whole strips of the register tile.
      const Index whole = row_tasks * jobs;
      Index pieces = (2 * workers + whole - 1) / whole;
      while (whole * pieces % workers != 0) ++pieces;
      output_block = std::max<Index>(round_up((outputs + pieces - 1) / pieces, 6), 48);
    }
    output_tasks = outputs == 0 ? 0 : (outputs + output_block - 1) / output_block;
    Arena arena;
    take(arena, inputs);
    bytes_per_worker = arena.used();
  }
  std::size_t bytes() const { return static_cast<std::size_t>(workers) * bytes_per_worker; }

  struct Memory {
    T* x = nullptr;       ///< panels of X^T, or converted rows
    T* y = nullptr;       ///< panels of Y^T, or rows to be converted
    T* rows = nullptr;    ///< rows on their way into or out of panels
    T* weight = nullptr;  ///< a panel of W, or its last columns in whole vectors
    T* tail = nullptr;    ///< and what they give of Y
  };
  Memory take(Arena& arena, Index inputs) const {
    constexpr Index kWide = kLanes<T>;
    Memory m;
    switch (way) {
      case ProjectWay::panels:
        m.weight = arena.take<T>(std::min(inputs, kPanelDepth) * kWide);
        m.tail = arena.take<T>(kRowBlock * kWide);
        break;
      case ProjectWay::tokens:
        m.x = arena.take<T>(2 * kWide * inputs);
        m.y = arena.take<T>(2 * kWide * output_block);
        if (converts) m.rows = arena.take<T>(kWide * std::max(inputs, output_block));
        break;
      case ProjectWay::in_place:
        if (converts) {
          m.x = arena.take<T>(row_block * inputs);
          m.y = arena.take<T>(row_block * output_block);
        }
        m.weight = arena.take<T>(kDepthBlock * kWide / 4);
        m.tail = arena.take<T>(row_block * kWide / 4);
        break;
    }
    return m;
  }
};

/// The maps of some rows of x to some of their outputs.
template <class In, class Out, class T>
class ProjectTask {
 public:
  static constexpr Index kWide = kLanes<T>;
  using Job = ProjectJob<In, Out, T>;
  using Memory = typename ProjectPlan<T>::Memory;

  /// @param packed  the memory holds this x already, from another task of the same rows
  ProjectTask(const Kernels<T>& kernels, const MatrixView<const In>& x, const Memory& memory,
              bool packed)
      : kernels_(kernels), x_(x), at_(memory), packed_(packed) {}

  /// The memory holds this x, packed or converted.
  bool is_packed() const { return packed_; }

  /// Tokens as lanes. X^T stays packed for further calls.
  /// @param upcoming  the weight that comes after this one, to be fetched; null if none does
  void run_transposed(const Job& job, Index first_output, Index outputs, const T* upcoming) {
    if (!packed_) pack();
    for (Index t = 0; t < tiles(); ++t) {
      kernels_.fill_rows(out_panel(t, outputs), outputs, lanes_of(t), bias_at(job, first_output));
    }
    const Index row = job.weight.row_stride;
    const T* const weight = job.weight.weight + first_output;
    for (Index k = 0; k < x_.cols; k += kDepthBlock) {
      const Index depth = std::min(kDepthBlock, x_.cols - k);
      for (Index t = 0; t < tiles(); ++t) {
        Product<T> p;
        p.rows = outputs;
        p.vectors = lanes_of(t) / kernels_.vector_lanes;
        p.depth = depth;
        p.a = weight + k * row;
        p.a_row = 1;
        p.a_step = row;
        p.b = at_.x + (t * x_.cols + k) * kWide;
        p.b_step = kWide;
        p.c = out_panel(t, outputs);
        p.c_row = kWide;
        p.accumulate = true;
        const bool last = k + kDepthBlock >= x_.cols;
        fetch_next(p, outputs, row, t, last ? upcoming : p.a + kDepthBlock * row);
        kernels_.product(p);
      }
    }
    for (Index t = 0; t < tiles(); ++t) unpack(job, first_output, outputs, t);
  }

  /// Many tokens, at most kLanes outputs. x and y are rows of T.
  void run_panel(const Job& job, Index first_output, Index outputs) {
    if constexpr (std::is_same_v<In, T> && std::is_same_v<Out, T>) {
      const Index lanes = round_up(outputs, kernels_.vector_lanes);
      const MatrixView<T> to = job.y.run_of_columns(first_output, outputs);
      const bool direct = to.cols == lanes;
      // Columns that do not lie together pass through memory of ours, some rows at a time. Then the
      // sums of earlier rows of W, if it is deep, wait in y.
      for (Index k = 0; k == 0 || k < x_.cols; k += kPanelDepth) {
        const Index depth = std::min(kPanelDepth, x_.cols - k);
        copy_panel(job, k, depth, first_output, outputs, lanes);
        Product<T> p = panel_product(job, k, depth, first_output, outputs, lanes);
        if (direct) {
          p.rows = x_.rows;
          p.a = x_.data + k * x_.col_stride;
          p.c = to.data;
          p.c_row = to.row_stride;
          fetch_next_strip(p);
          kernels_.product(p);
          continue;
        }
        for (Index r = 0; r < x_.rows; r += kRowBlock) {
          p.rows = std::min(kRowBlock, x_.rows - r);
          p.a = x_.data + r * x_.row_stride + k * x_.col_stride;
          p.c = at_.tail;
          p.c_row = kWide;
          fetch_next_strip(p);
          const auto y = job.y.middle_rows(r, p.rows);
          if (k > 0) copy_columns(y, first_output, outputs, at_.tail, false);
          kernels_.product(p);
          copy_columns(y, first_output, outputs, at_.tail, true);
        }
      }
    }
  }

  /// Few tokens, or a small W.
  void run_in_place(const Job& job, Index first_output, Index outputs) {
    const T* x = nullptr;
    Index x_row = 0;
    Index x_step = 1;
    if constexpr (std::is_same_v<In, T>) {
      x = x_.data;
      x_row = x_.row_stride;
      x_step = x_.col_stride;
    } else {
      if (!packed_) convert_rows(x_, at_.x, x_.cols);
      packed_ = true;
      x = at_.x;
      x_row = x_.cols;
    }
    while (outputs > 0) {  // columns that lie together: all of them, or a head's
      const MatrixView<Out> to = job.y.run_of_columns(first_output, outputs);
      map_columns(job, x, x_row, x_step, first_output, to);
      first_output += to.cols;
      outputs -= to.cols;
    }
  }

 private:
  static const T* bias_at(const Job& job, Index output) {
    return job.weight.bias == nullptr ? nullptr : job.weight.bias + output;
  }
  Index tiles() const { return (x_.rows + kWide - 1) / kWide; }
  Index rows_of(Index tile) const { return std::min(kWide, x_.rows - tile * kWide); }
  Index lanes_of(Index tile) const { return round_up(rows_of(tile), kernels_.vector_lanes); }
  T* out_panel(Index tile, Index outputs) const { return at_.y + tile * outputs * kWide; }

  /// Rows k, ..., k + depth - 1 of W and of the bias before them, in whole vectors.
  void copy_panel(const Job& job, Index k, Index depth, Index first_output, Index outputs,
                  Index lanes) {
    const T* from = job.weight.weight + k * job.weight.row_stride + first_output;
    T* to = at_.weight;
    for (Index r = 0; r < depth; ++r, from += job.weight.row_stride, to += kWide) {
      std::memcpy(to, from, static_cast<std::size_t>(outputs) * sizeof(T));
      std::fill(to + outputs, to + lanes, T(0));
    }
  }

  Product<T> panel_product(const Job& job, Index k, Index depth, Index first_output, Index outputs,
                           Index lanes) {
    Product<T> p;
    p.vectors = lanes / kernels_.vector_lanes;
    p.depth = depth;
    p.a_row = x_.row_stride;
    p.a_step = x_.col_stride;
    p.b = at_.weight;
    p.b_step = kWide;
    p.accumulate = k > 0;
    const T* const bias = bias_at(job, first_output);
    if (k == 0 && bias != nullptr) {
      std::memcpy(bias_.data(), bias, static_cast<std::size_t>(outputs) * sizeof(T));
      std::fill(bias_.begin() + outputs, bias_.begin() + lanes, T(0));
      p.start = bias_.data();
    }
    return p;
  }

  /// Between columns of y, run by run, and rows of ours.
  static void copy_columns(const mha::detail::HeadColumns<Out>& y, Index first, Index count,
                           T* rows, bool to_y) {
    while (count > 0) {
      const MatrixView<Out> run = y.run_of_columns(first, count);
      const std::size_t bytes = static_cast<std::size_t>(run.cols) * sizeof(T);
      for (Index r = 0; r < run.rows; ++r) {
        Out* const there = run.data + r * run.row_stride;
        T* const here = rows + r * kWide;
        if (to_y) {
          std::memcpy(there, here, bytes);
        } else {
          std::memcpy(here, there, bytes);
        }
      }
      rows += run.cols;
      first += run.cols;
      count -= run.cols;
    }
  }

  void map_columns(const Job& job, const T* x, Index x_row, Index x_step, Index first_output,
                   const MatrixView<Out>& to) {
    const Index outputs = to.cols;
    T* y = nullptr;
    Index y_row = 0;
    bool direct = false;
    if constexpr (std::is_same_v<Out, T>) {
      direct = to.col_stride == 1;
      y = to.data;
      y_row = to.row_stride;
    }
    if (!direct) {
      y = at_.y;
      y_row = outputs;
    }
    const T* const bias = bias_at(job, first_output);
    const Index whole = outputs / kernels_.vector_lanes * kernels_.vector_lanes;
    const T* const weight = job.weight.weight + first_output;
    for (Index k = 0; k == 0 || k < x_.cols; k += kDepthBlock) {
      Product<T> p;
      p.rows = x_.rows;
      p.depth = std::min(kDepthBlock, x_.cols - k);
      p.a = x + k * x_step;
      p.a_row = x_row;
      p.a_step = x_step;
      p.accumulate = k > 0;
      p.fetch[0] = p.fetch[1] = x;
      p.b = weight + k * job.weight.row_stride;
      p.b_step = job.weight.row_stride;
      p.c = y;
      p.c_row = y_row;
      p.start = bias;
      for (Index c = 0; c < whole; c += kWide) {
        p.vectors = std::min(kWide, whole - c) / kernels_.vector_lanes;
        kernels_.product(p);
        p.b += kWide;
        p.c += kWide;
        if (p.start != nullptr) p.start += kWide;
      }
      if (whole < outputs) {
        last_columns(p, y + whole, bias == nullptr ? nullptr : bias + whole,
                     weight + k * job.weight.row_stride + whole, outputs - whole);
      }
    }
    if (direct) return;
    for (Index r = 0; r < x_.rows; ++r) {
      for (Index c = 0; c < outputs; ++c) {
        to(r, c) = mha::detail::convert<Out>(y[r * y_row + c]);
      }
    }
  }

  void pack() {
    for (Index t = 0; t < tiles(); ++t) {
      const MatrixView<const In> rows = x_.middle_rows(t * kWide, rows_of(t));
      T* const panel = at_.x + t * x_.cols * kWide;
      if constexpr (std::is_same_v<In, T>) {
        kernels_.pack(rows.data, rows.row_stride, rows.col_stride, rows.rows, rows.cols, T(1),
                      panel, kWide, lanes_of(t));
      } else {
        convert_rows(rows, at_.rows, rows.cols);
        kernels_.pack(at_.rows, rows.cols, 1, rows.rows, rows.cols, T(1), panel, kWide,
                      lanes_of(t));
      }
    }
    packed_ = true;
  }

  /// The next block of W, in the order in which it lies in memory; each tile fetches its share.
  void fetch_next(Product<T>& p, Index outputs, Index row, Index tile, const T* next) const {
    p.fetch[0] = p.fetch[1] = p.a;
    if (next == nullptr) return;
    const Index strips = (outputs + 5) / 6;
    if (outputs == row) {
      const Index share = kDepthBlock * row / tiles();
      const Index step = std::max<Index>(share / (strips * p.depth), 1);
      p.fetch[0] = next + tile * share;
      p.fetch[1] = p.fetch[0] + step * p.depth;
      p.fetch_step = step;
      p.fetch_strip = 2 * step * p.depth;
    } else if (tile == 0) {
      constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
      p.fetch[0] = next;
      p.fetch[1] = next + kLine;
      p.fetch_step = row;
      p.fetch_strip = 2 * kLine;
    }
  }

  void unpack(const Job& job, Index first_output, Index outputs, Index tile) {
    const mha::detail::HeadColumns<Out> rows = job.y.middle_rows(tile * kWide, rows_of(tile));
    const T* panel = out_panel(tile, outputs);
    while (outputs > 0) {
      const MatrixView<Out> to = rows.run_of_columns(first_output, outputs);
      if constexpr (std::is_same_v<Out, T>) {
        kernels_.unpack(panel, kWide, nullptr, nullptr, to.data, to.row_stride, to.col_stride,
                        to.rows, to.cols);
      } else {
        kernels_.unpack(panel, kWide, nullptr, nullptr, at_.rows, to.cols, 1, to.rows, to.cols);
        for (Index r = 0; r < to.rows; ++r) {
          for (Index c = 0; c < to.cols; ++c) {
            to(r, c) = mha::detail::convert<Out>(at_.rows[r * to.cols + c]);
          }
        }
      }
      panel += to.cols * kWide;
      first_output += to.cols;
      outputs -= to.cols;
    }
  }

  /// Fewer outputs than a vector has lanes: padded by zeros, in memory of ours. Otherwise as in p.
  void last_columns(Product<T> p, T* y, const T* bias, const T* weight, Index cols) {
    const Index lanes = kernels_.vector_lanes;
    for (Index k = 0; k < p.depth; ++k) {
      std::copy_n(weight + k * p.b_step, cols, at_.weight + k * lanes);
      std::fill_n(at_.weight + k * lanes + cols, lanes - cols, T(0));
    }
    if (p.accumulate) {
      for (Index r = 0; r < p.rows; ++r) std::copy_n(y + r * p.c_row, cols, at_.tail + r * lanes);
    } else if (bias != nullptr) {
      std::copy_n(bias, cols, bias_.data());
      std::fill_n(bias_.data() + cols, lanes - cols, T(0));
      bias = bias_.data();
    }
    const Index y_row = p.c_row;
    p.vectors = 1;
    p.b = at_.weight;
    p.b_step = lanes;
    p.c = at_.tail;
    p.c_row = lanes;
    p.start = bias;
    kernels_.product(p);
    for (Index r = 0; r < p.rows; ++r) std::copy_n(at_.tail + r * lanes, cols, y + r * y_row);
  }

  const Kernels<T>& kernels_;
  const MatrixView<const In> x_;
  const Memory at_;
  bool packed_;
  alignas(kAlignment) std::array<T, std::size_t{kWide}> bias_;  ///< of a panel
};

/// Every map of every row. `memory` has at least plan.bytes(), the plan being that of these sizes.
template <class In, class Out, class T>
void project(const MatrixView<const In>& x, const ProjectJob<In, Out, T>* jobs, Index num_jobs,
             const ProjectPlan<T>& plan, const Executor& executor, const MemoryBlock& memory) {
  const Kernels<T>& kernels = table<T>(target());
  // Which rows a worker has packed last.
  constexpr Index kRemembered = 64;
  std::array<Index, std::size_t{kRemembered}> packed_rows;
  packed_rows.fill(-1);
  const auto run = [&](Index row_task, Index first, Index last, Index worker) {
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
      } else if (plan.way == ProjectWay::tokens) {
        const Index next = k + 1 < last ? k + 1 : 0;
        task.run_transposed(job, output, outputs,
                            jobs[next / plan.output_tasks].weight.weight +
                                next % plan.output_tasks * plan.output_block);
      } else {
        task.run_in_place(job, output, outputs);
      }
    }
    // Not where nothing had to be computed: of maps of several widths, the narrow have fewer outputs.
    if (task.is_packed() && worker < kRemembered) {
      packed_rows[static_cast<std::size_t>(worker)] = row_task;
    }
  };
  const Index per_rows = num_jobs * plan.output_tasks;
  if (plan.workers <= 1) {
    for (Index r = 0; r < plan.row_tasks; ++r) run(r, 0, per_rows, 0);
  } else {
    share(plan.row_tasks * per_rows, plan.workers, executor, [&](Index k, Index worker) {
      run(k / per_rows, k % per_rows, k % per_rows + 1, worker);
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
