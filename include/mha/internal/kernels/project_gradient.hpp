// SPDX-License-Identifier: MIT
//
// What y = x W + b asks for in the backward pass, on the kernels' register tile:
//     dW += x^T dy      [input][output]   panels of 64 columns of dy, the tokens are the depth; x is
//                                         transposed first, so that these lie side by side
//     dx  = dy W^T      [token][input]    panels of 64 rows of W, transposed
// Either way an entry is one chain of multiply-adds, over the tokens or the outputs in order: the same
// bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "mha/internal/kernels/project.hpp"

namespace mha::inline MHA_ABI::kernels {

/// C (+)= A B for a panel of B at a time: rows x cols, over a depth.
template <class T>
class PanelProducts {
 public:
  static constexpr Index kWide = kLanes<T>;

  /// Bytes that so many workers need for x of these sizes.
  static std::size_t bytes(Index workers, Index tokens, Index inputs) {
    return static_cast<std::size_t>(workers) * bytes_per_worker() +
           static_cast<std::size_t>(inputs * transposed_stride(tokens)) * sizeof(T);
  }

  PanelProducts(const Executor& executor, const MemoryBlock& memory, Index workers)
      : kernels_(table<T>(target())),
        executor_(executor),
        memory_(memory),
        workers_(workers),
        transposed_(reinterpret_cast<T*>(memory.data +
                                         static_cast<std::size_t>(workers) * bytes_per_worker())) {}

  /// weight += x^T y.
  void add_outer(const MatrixView<T>& weight, const MatrixView<const T>& x,
                 const MatrixView<const T>& y) const {
    const auto panel = [&](Index token, Index tokens, Index col, Index cols, Index lanes, T* to) {
      for (Index k = 0; k < tokens; ++k, to += kWide) {
        const T* const from = &y(token + k, col);
        if (y.col_stride == 1) {
          std::memcpy(to, from, static_cast<std::size_t>(cols) * sizeof(T));
        } else {
          for (Index c = 0; c < cols; ++c) to[c] = from[c * y.col_stride];
        }
        std::fill(to + cols, to + lanes, T(0));
      }
    };
    const Index stride = transposed_stride(x.rows);
    eigen_assert(bytes(workers_, x.rows, x.cols) <= memory_.size &&
                 "a transposed matrix reaches beyond its block");
    const Index blocks = x.rows == 0 ? 0 : (x.cols + kWide - 1) / kWide;
    share(blocks, std::min(workers_, blocks), executor_, [&](Index n, Index /*worker*/) {
      const MatrixView<const T> cols =
          x.middle_cols(n * kWide, std::min(kWide, x.cols - n * kWide));
      kernels_.pack(cols.data, cols.row_stride, cols.col_stride, cols.rows, cols.cols, T(1),
                    transposed_ + n * kWide * stride, stride,
                    round_up(x.rows, kernels_.vector_lanes));
    });
    run({transposed_, x.cols, x.rows, stride, 1}, weight, true, panel);
  }

  /// x = y weight^T, or x += it.
  void by_transposed(const MatrixView<T>& x, const MatrixView<const T>& y,
                     const MatrixView<const T>& weight, bool add) const {
    const auto panel = [&](Index output, Index outputs, Index input, Index inputs, Index lanes,
                           T* to) {
      kernels_.pack(&weight(input, output), weight.row_stride, weight.col_stride, inputs, outputs,
                    T(1), to, kWide, lanes);
    };
    run(y, x, add, panel);
  }

 private:
  struct Memory {
    T* panel;
    T* tail;
  };
  static std::size_t bytes_per_worker() {
    Arena arena;
    take(arena);
    return arena.used();
  }
  /// Whole lines, and never a multiple of 2 KiB, whose rows would share few lines of the cache.
  static Index transposed_stride(Index tokens) {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
    const Index stride = round_up(tokens, kLine);
    return stride % (32 * kLine) == 0 ? stride + kLine : stride;
  }
  static Memory take(Arena& arena) {
    T* const panel = arena.take<T>(kPanelDepth * kWide);
    return {panel, arena.take<T>(kRowBlock * kWide)};
  }

  /// c (+)= a b, where panel(k, depth, col, cols, lanes, to) writes rows k, ..., k + depth - 1 of
  /// columns col, ..., col + cols - 1 of b, in whole vectors.
  template <class Panel>
  void run(const MatrixView<const T>& a, const MatrixView<T>& c, bool add,
           const Panel& panel) const {
    const Index panels = (c.cols + kWide - 1) / kWide;
    // Rows of a task: enough of them to be worth a panel, and tasks enough to go round.
    Index rows = std::max<Index>(c.rows, 1);
    while (workers_ > 1 && rows > kManyTokens &&
           (c.rows + rows - 1) / rows * panels < 4 * workers_) {
      rows = (rows + 1) / 2;
    }
    const Index blocks = (c.rows + rows - 1) / rows;
    share(blocks * panels, std::min(workers_, blocks * panels), executor_,
          [&](Index n, Index worker) {
            Arena arena(memory_.of_worker(worker, bytes_per_worker()));
            const Memory at = take(arena);
            const Index row = n / panels * rows;
            const Index col = n % panels * kWide;
            run_panel(
                a.middle_rows(row, std::min(rows, c.rows - row)),
                c.block(row, col, std::min(rows, c.rows - row), std::min(kWide, c.cols - col)), col,
                add, panel, at);
          });
  }

  template <class Panel>
  void run_panel(const MatrixView<const T>& a, const MatrixView<T>& c, Index col, bool add,
                 const Panel& panel, const Memory& at) const {
    const Index lanes = round_up(c.cols, kernels_.vector_lanes);
    const bool direct = lanes == c.cols && c.col_stride == 1;
    for (Index k = 0; k == 0 || k < a.cols; k += kPanelDepth) {
      Product<T> p;
      p.depth = std::min(kPanelDepth, a.cols - k);
      panel(k, p.depth, col, c.cols, lanes, at.panel);
      p.vectors = lanes / kernels_.vector_lanes;
      p.a_row = a.row_stride;
      p.a_step = a.col_stride;
      p.b = at.panel;
      p.b_step = kWide;
      p.accumulate = add || k > 0;
      for (Index r = 0; r < c.rows; r += direct ? c.rows : kRowBlock) {
        p.rows = direct ? c.rows : std::min(kRowBlock, c.rows - r);
        p.a = a.data + r * a.row_stride + k * a.col_stride;
        p.c = direct ? c.data : at.tail;
        p.c_row = direct ? c.row_stride : kWide;
        fetch_next_strip(p);
        if (!direct && p.accumulate) {
          for (Index i = 0; i < p.rows; ++i) {
            for (Index j = 0; j < c.cols; ++j) at.tail[i * kWide + j] = c(r + i, j);
            std::fill(at.tail + i * kWide + c.cols, at.tail + i * kWide + lanes, T(0));
          }
        }
        kernels_.product(p);
        if (direct) continue;
        for (Index i = 0; i < p.rows; ++i) {
          for (Index j = 0; j < c.cols; ++j) c(r + i, j) = at.tail[i * kWide + j];
        }
      }
    }
  }

  const Kernels<T>& kernels_;
  const Executor& executor_;
  const MemoryBlock memory_;
  const Index workers_;
  T* const transposed_;
};

/// PanelProducts::add_outer and by_transposed, each a function of its own.
template <class T>
void add_outer(const PanelProducts<T>& products, const MatrixView<T>& weight,
               const MatrixView<const T>& x, const MatrixView<const T>& y) {
  products.add_outer(weight, x, y);
}
template <class T>
void by_transposed(const PanelProducts<T>& products, const MatrixView<T>& x,
                   const MatrixView<const T>& y, const MatrixView<const T>& weight, bool add) {
  products.by_transposed(x, y, weight, add);
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_PRODUCTS(T)                                                                   \
  MHA_COMPILED_TEMPLATE void add_outer(const PanelProducts<T>&, const MatrixView<T>&,              \
                                       const MatrixView<const T>&, const MatrixView<const T>&);    \
  MHA_COMPILED_TEMPLATE void by_transposed(const PanelProducts<T>&, const MatrixView<T>&,          \
                                           const MatrixView<const T>&, const MatrixView<const T>&, \
                                           bool);
MHA_COMPILED_PRODUCTS(float)
MHA_COMPILED_PRODUCTS(double)
#undef MHA_COMPILED_PRODUCTS
#endif

}  // namespace mha::kernels
