// SPDX-License-Identifier: MIT
//
// y = x W + b on the kernels' register tile, in one of four ways. In each, an entry of y is one chain
// of multiply-adds over the inputs, in order, from its bias: the same bits for any rows beside it.
//   panels    Y = X W + b         many tokens: 64 columns of W are copied side by side, then read as
//             vectors by all tokens, over the whole depth while the sums stay in registers
//   tokens    Y^T = W^T X^T + b   fewer: tokens are the lanes. x is transposed into panels of 64
//             tokens; W is read where it lies, 96 of its rows at a time, one number broadcast after
//             the other, while the next 96 rows are fetched in the order in which they lie there
//   in_place  Y = X W + b         few tokens, or a small W: rows of W are read as vectors where they lie
//   prepacked Y = X W + b         any tokens: W lies in panels of 64 columns, which are read as in `panels`
// Measured (AVX-512, 768 x 768, share of the multiply-add peak): panels 0.81 with 128 tokens, 0.85
// with 256, 0.88 with 512, 0.89 with 2048; tokens 0.81, 0.80, 0.80, 0.79.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "mha/internal/kernels/project_plan.hpp"

namespace mha::inline MHA_ABI::kernels {

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

  /// The memory holds this x, packed or converted, or the worker has read it where it lies.
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

  /// A panel of a W that lies in panels.
  /// @param upcoming  the panel that comes after this one, to be fetched; null if none does
  void run_prepacked(const Job& job, Index first_output, Index outputs, const T* upcoming) {
    const MatrixView<const T> x = rows_of_x();
    const Index lanes = round_up(outputs, kernels_.vector_lanes);
    const Index row = whole_vectors<T>(outputs);
    const MatrixView<Out> to = job.y.run_of_columns(first_output, outputs);
    T* y = nullptr;  // if whole vectors may be written there
    if constexpr (std::is_same_v<Out, T>) {
      if (to.cols == lanes && to.col_stride == 1) y = to.data;
    }
    const Index block = y != nullptr ? x.rows : kRowBlock;
    // Of several strips the second finds W in the first-level cache.
    const bool few = x.rows < kFetchStrips * 6;
    const Index depth = x.rows > 1 && few ? kDepthBlock : kPanelDepth;
    for (Index r = 0; r < x.rows; r += block) {
      Product<T> p;
      p.rows = std::min(block, x.rows - r);
      p.vectors = lanes / kernels_.vector_lanes;
      p.a_row = x.row_stride;
      p.a_step = x.col_stride;
      p.b_step = row;
      p.c = y != nullptr ? y + r * to.row_stride : at_.tail;
      p.c_row = y != nullptr ? to.row_stride : kWide;
      p.start = bias_at(job, first_output);
      for (Index k = 0; k == 0 || k < x.cols; k += depth) {
        p.depth = std::min(depth, x.cols - k);
        p.a = x.data + r * x.row_stride + k * x.col_stride;
        p.b = job.weight.panel(first_output) + k * row;
        p.accumulate = k > 0;
        const bool last = k + depth >= x.cols;
        if (few) {
          p.fetch[0] = p.fetch[1] = p.a;
          p.b_ahead = kAheadRows;
          p.b_next = p.b + p.depth * row;
        } else if (!packed_) {
          fetch_next_strip(p);  // x comes from memory, too
        } else {
          fetch_in_strips(p, last ? upcoming : p.b + depth * row, row);
        }
        kernels_.product(p);
      }
      if (y == nullptr) {
        copy_columns(job.y.middle_rows(r, p.rows), first_output, outputs, at_.tail, true);
      }
    }
    packed_ = true;
  }

  /// Few tokens, or a small W.
  void run_in_place(const Job& job, Index first_output, Index outputs) {
    const MatrixView<const T> x = rows_of_x();
    while (outputs > 0) {  // columns that lie together: all of them, or a head's
      const MatrixView<Out> to = job.y.run_of_columns(first_output, outputs);
      map_columns(job, x, first_output, to);
      first_output += to.cols;
      outputs -= to.cols;
    }
  }

 private:
  static const T* bias_at(const Job& job, Index output) {
    return job.weight.bias == nullptr ? nullptr : job.weight.bias + output;
  }
  /// x as the kernels read it: where it lies, or converted, which is kept.
  MatrixView<const T> rows_of_x() {
    if constexpr (std::is_same_v<In, T>) {
      return x_;
    } else {
      if (!packed_) convert_rows(kernels_, x_, at_.x, x_.cols);
      packed_ = true;
      return {at_.x, x_.rows, x_.cols, x_.cols, 1};
    }
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
      for (Index r = 0; r < run.rows; ++r) {
        Out* const there = run.data + r * run.row_stride;
        T* const here = rows + r * kWide;
        if (to_y) {
          copy_run(there, run.col_stride, here, 1, run.cols);
        } else {
          copy_run(here, 1, there, run.col_stride, run.cols);
        }
      }
      rows += run.cols;
      first += run.cols;
      count -= run.cols;
    }
  }

  void map_columns(const Job& job, const MatrixView<const T>& x, Index first_output,
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
    for (Index k = 0; k == 0 || k < x.cols; k += kDepthBlock) {
      Product<T> p;
      p.rows = x.rows;
      p.depth = std::min(kDepthBlock, x.cols - k);
      p.a = x.data + k * x.col_stride;
      p.a_row = x.row_stride;
      p.a_step = x.col_stride;
      p.accumulate = k > 0;
      p.fetch[0] = p.fetch[1] = x.data;
      p.b = weight + k * job.weight.row_stride;
      p.b_step = job.weight.row_stride;
      // Rows of a W that no cache holds are fetched ahead; where it is at hand that costs a few percent.
      if (x.cols * job.weight.row_stride >= kLargeWeight) p.b_ahead = kAheadInPlace;
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
    for (Index r = 0; r < to.rows; ++r) {
      copy_run(to.data + r * to.row_stride, to.col_stride, y + r * y_row, 1, outputs);
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
        convert_rows(kernels_, rows, at_.rows, rows.cols);
        kernels_.pack(at_.rows, rows.cols, 1, rows.rows, rows.cols, T(1), panel, kWide,
                      lanes_of(t));
      }
    }
    packed_ = true;
  }

  /// As many rows of W as p has, from `next` on, each strip its share.
  static void fetch_in_strips(Product<T>& p, const T* next, Index row) {
    const Index strips = (p.rows + 5) / 6;
    p.fetch[0] = p.fetch[1] = p.a;
    if (next == nullptr || p.depth == 0) return;
    const Index share = (p.depth * row + strips - 1) / strips;
    p.fetch[0] = next;
    p.fetch[1] = next + share;
    p.fetch_step = 2 * share / p.depth;
    p.fetch_strip = 2 * share;
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
          copy_run(to.data + r * to.row_stride, to.col_stride, at_.rows + r * to.cols, 1, to.cols);
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

}  // namespace mha::kernels
