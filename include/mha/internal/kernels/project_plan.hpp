// SPDX-License-Identifier: MIT
//
// How y = x W + b is cut into tasks, in which of four ways each is computed (project_task.hpp), and in what memory.
#pragma once

#include <algorithm>

#include "mha/internal/kernels/attend.hpp"
#include "mha/internal/support/head_columns.hpp"

namespace mha::inline MHA_ABI::kernels {

/// So many outputs in whole vectors of any instruction set.
template <class T>
constexpr Index whole_vectors(Index outputs) {
  return round_up(outputs, kAlignment / static_cast<Index>(sizeof(T)));
}

/// W, inputs x outputs, row-major; b or null. With a panel_stride W is prepacked, cut into panels: its first kLanes
/// columns row by row, panel_stride further the next ones; the last panel's rows, and b, end in whole vectors.
template <class T>
struct Weight {
  const T* weight = nullptr;
  Index row_stride = 0;
  const T* bias = nullptr;
  Index panel_stride = 0;

  /// The panel that begins with an output.
  const T* panel(Index output) const { return weight + output / kLanes<T> * panel_stride; }
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

enum class ProjectWay { panels, tokens, in_place, prepacked };

inline constexpr Index kDepthBlock = 96;      ///< rows of W that are worked through at a time
inline constexpr Index kSmallWeight = 32768;  ///< entries: 128 KiB of floats
inline constexpr Index kFewTokens = 16;
inline constexpr Index kRowBlock = 96;             ///< rows of x of a task, where outputs are lanes
inline constexpr Index kOutputBlock = 256;         ///< outputs of a task, where tokens are few
inline constexpr Index kManyTokens = 192;          ///< from here on, copying W to panels pays
inline constexpr Index kPanelDepth = 1024;         ///< rows of a panel of W: at most 256 KiB
inline constexpr Index kPanelRows = 2048;          ///< tokens of a task, at the most
inline constexpr Index kPackedBytes = 768 * 1024;  ///< of x, of a task with prepacked weights
// While a panel that is prepacked is at hand, the next one is fetched, if there are so many strips of six tokens;
// with fewer its own rows are, so far ahead of their use.
inline constexpr Index kFetchStrips = 4;
inline constexpr Index kAheadRows = 32;
// So are those of a large W that is read in place.
inline constexpr Index kAheadInPlace = 16;
inline constexpr Index kLargeWeight = 1 << 21;  ///< entries: 8 MiB of floats

/// How so many rows and weights of this size are mapped.
inline ProjectWay way_to_project(Index rows, Index inputs, Index outputs, bool converts,
                                 bool prepacked) {
  if (prepacked) return ProjectWay::prepacked;
  if (rows < kFewTokens || inputs * outputs <= kSmallWeight) return ProjectWay::in_place;
  return rows < kManyTokens || converts ? ProjectWay::tokens : ProjectWay::panels;
}

/// How a projection is cut into tasks, and their memory.
template <class T>
struct ProjectPlan {
  ProjectWay way = ProjectWay::in_place;
  bool converts = false;   ///< x or y is not rows of T, each contiguous
  Index row_block = 1;     ///< tokens of a task
  Index output_block = 1;  ///< outputs of a task
  Index row_tasks = 0;
  Index output_tasks = 0;
  Index workers = 1;
  std::size_t bytes_per_worker = 0;

  ProjectPlan() = default;
  /// @param outputs    of the widest of `jobs` maps
  /// @param prepacked  their weights are
  ProjectPlan(Index rows, Index inputs, Index outputs, Index jobs, bool with_conversion,
              bool prepacked, const Executor& executor)
      : converts(with_conversion) {
    way = way_to_project(rows, inputs, outputs, converts, prepacked);
    const double work = static_cast<double>(rows) * static_cast<double>(inputs) *
                        static_cast<double>(outputs) * static_cast<double>(jobs);
    const Index panels = (outputs + kLanes<T> - 1) / kLanes<T>;
    output_block = outputs;
    switch (way) {
      case ProjectWay::panels:
      case ProjectWay::prepacked:
        row_block = way == ProjectWay::panels ? kPanelRows
                    : converts                ? kRowBlock
                                              : packed_rows(rows, inputs);
        row_block = std::clamp<Index>(rows, 1, row_block);
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
    if (way == ProjectWay::tokens || way == ProjectWay::in_place) {
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

  /// Tokens of a task with prepacked weights: as many as leave x in the second-level cache while one panel
  /// after the other is brought there; tasks as equal as strips of six tokens allow.
  static Index packed_rows(Index rows, Index inputs) {
    const Index most = std::max(kRowBlock, kPackedBytes / (inputs * Index{sizeof(T)} + 1));
    const Index tasks = (rows + most - 1) / most;
    return tasks == 0 ? 1 : round_up((rows + tasks - 1) / tasks, 6);
  }

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
      case ProjectWay::prepacked:
        if (converts) m.x = arena.take<T>(row_block * inputs);
        m.tail = arena.take<T>(std::min(row_block, kRowBlock) * kWide);
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

}  // namespace mha::kernels
