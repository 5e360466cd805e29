// SPDX-License-Identifier: MIT
//
// What y = x W + b asks for in the backward pass, on the kernels' register tile:
//     dW += x^T dy          [input][output]   panels of 64 columns of dy, the tokens are the depth; x is
//     db += sum of dy rows                    transposed first, so that these lie side by side
//     dx  = dy W^T          [token][input]    panels of 64 rows of W, transposed
// Sums over outputs are one chain of multiply-adds. Those over tokens run through blocks of 128, chunks of 1024, and a
// binary tree over chunks, counted from the call's first row, and are then added to what is there: the same
// bits for any number of threads, and an error that grows with the logarithm of the batch.
#pragma once

#include <algorithm>
#include <cstring>

#include "mha/internal/kernels/project.hpp"
#include "mha/internal/kernels/tile_memory.hpp"

namespace mha::inline MHA_ABI::kernels {

/// C (+)= A B for a panel of B at a time: rows x cols, over a depth.
template <class T>
class PanelProducts {
 public:
  static constexpr Index kWide = kLanes<T>;

  /// Bytes that so many workers need for x of these sizes.
  static std::size_t bytes(Index workers, Index tokens, Index inputs) {
    return static_cast<std::size_t>(workers) * bytes_per_worker(tokens, inputs) +
           static_cast<std::size_t>(inputs * transposed_stride(tokens)) * sizeof(T);
  }

  /// @param tokens, inputs  of the largest x
  PanelProducts(const Executor& executor, const MemoryBlock& memory, Index workers, Index tokens,
                Index inputs)
      : kernels_(table<T>(target())),
        executor_(executor),
        memory_(memory),
        workers_(workers),
        tokens_(tokens),
        inputs_(inputs),
        transposed_(reinterpret_cast<T*>(memory.data + static_cast<std::size_t>(workers) *
                                                           bytes_per_worker(tokens, inputs))) {}

  /// weight += x^T y; bias += the sum of y's rows, unless it is null.
  void add_outer(const MatrixView<T>& weight, T* bias, const MatrixView<const T>& x,
                 const MatrixView<const T>& y) const {
    const Index stride = transposed_stride(x.rows);
    eigen_assert(bytes(workers_, x.rows, x.cols) <= memory_.size &&
                 "a transposed matrix reaches beyond its block");
    if (x.rows == 0) return;
    const Index blocks = (x.cols + kWide - 1) / kWide;
    share(blocks, std::min(workers_, blocks), executor_, [&](Index n, Index /*worker*/) {
      const MatrixView<const T> cols =
          x.middle_cols(n * kWide, std::min(kWide, x.cols - n * kWide));
      kernels_.pack(cols.data, cols.row_stride, cols.col_stride, cols.rows, cols.cols, T(1),
                    transposed_ + n * kWide * stride, stride,
                    round_up(x.rows, kernels_.vector_lanes));
    });
    const MatrixView<const T> transposed{transposed_, x.cols, x.rows, stride, 1};
    const Index most_rows = x.rows > kKeyChunk ? kSumRows : weight.rows;
    share_panels(weight, most_rows, [&](const Part& part, const Memory& at) {
      sum_over_tokens(transposed.middle_rows(part.row, part.rows), y, part.col,
                      weight.block(part.row, part.col, part.rows, part.cols),
                      part.row == 0 && bias != nullptr ? bias + part.col : nullptr, at);
    });
  }

  /// x = y weight^T, or x += it.
  void by_transposed(const MatrixView<T>& x, const MatrixView<const T>& y,
                     const MatrixView<const T>& weight, bool add) const {
    const auto panel = [&](Index output, Index outputs, Index input, Index inputs, Index lanes,
                           T* to) {
      kernels_.pack(&weight(input, output), weight.row_stride, weight.col_stride, inputs, outputs,
                    T(1), to, kWide, lanes);
    };
    share_panels(x, x.rows, [&](const Part& part, const Memory& at) {
      run_panel(y.middle_rows(part.row, part.rows),
                x.block(part.row, part.col, part.rows, part.cols), part.col, add, panel, at);
    });
  }

 private:
  static constexpr Index kTokenBlock = 128;
  static constexpr Index kSumRows = kManyTokens;  ///< of a part that has several chunks
  struct Memory {
    T* panel;
    T* tail;
    T* sums;             ///< of the chunk at hand [input, then the bias][kWide]; null of one chunk
    ChunkTree<T*> tree;  ///< of such sums
  };
  /// Rows and columns of the result that a task computes.
  struct Part {
    Index row, rows, col, cols;
  };
  static std::size_t bytes_per_worker(Index tokens, Index inputs) {
    Arena arena;
    take(arena, tokens, inputs);
    return arena.used();
  }
  /// Whole lines, and never a multiple of 2 KiB, whose rows would share few lines of the cache.
  static Index transposed_stride(Index tokens) {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
    const Index stride = round_up(tokens, kLine);
    return stride % (32 * kLine) == 0 ? stride + kLine : stride;
  }
  static Memory take(Arena& arena, Index tokens, Index inputs) {
    T* const panel = arena.take<T>(kPanelDepth * kWide);
    T* const tail = arena.take<T>(kRowBlock * kWide);
    const Index waiting = waiting_states(chunks_of(tokens));
    const Index sums = waiting == 0 ? 0 : (std::min(inputs, kSumRows) + 1) * kWide;
    T* const now = arena.take<T>(sums);
    return {panel, tail, now, take_tree<T*>(waiting, arena, [&] { return arena.take<T>(sums); })};
  }

  /// f(part, memory) for all parts of c: panels of columns, and of these as many pieces as the workers need, of
  /// at most so many rows.
  template <class F>
  void share_panels(const MatrixView<T>& c, Index most_rows, const F& f) const {
    const Index panels = (c.cols + kWide - 1) / kWide;
    // Rows of a task: enough of them to be worth a panel, and tasks enough to go round.
    Index rows = std::max<Index>(std::min(c.rows, most_rows), 1);
    while (workers_ > 1 && rows > kManyTokens &&
           (c.rows + rows - 1) / rows * panels < 4 * workers_) {
      rows = (rows + 1) / 2;
    }
    const Index blocks = (c.rows + rows - 1) / rows;
    const std::size_t each = bytes_per_worker(tokens_, inputs_);
    share(blocks * panels, std::min(workers_, blocks * panels), executor_,
          [&](Index n, Index worker) {
            Arena arena(memory_.of_worker(worker, each));
            const Memory at = take(arena, tokens_, inputs_);
            const Index row = n / panels * rows;
            const Index col = n % panels * kWide;
            f(Part{row, std::min(rows, c.rows - row), col, std::min(kWide, c.cols - col)}, at);
          });
  }

  /// c += a y, bias += the sum of y's rows: of columns col, ..., col + c.cols - 1 of y. A row of a is a channel of x.
  void sum_over_tokens(const MatrixView<const T>& a, const MatrixView<const T>& y, Index col,
                       const MatrixView<T>& c, T* bias, Memory at) const {
    const Index lanes = round_up(c.cols, kernels_.vector_lanes);
    const bool one_chunk = y.rows <= kKeyChunk;
    const MatrixView<T> bias_row{bias, bias == nullptr ? 0 : 1, c.cols, c.cols, 1};
    const auto join = [&](T* sums, const T* later) {
      kernels_.add(sums, kWide, c.rows + bias_row.rows, lanes / kernels_.vector_lanes, later);
    };
    const T one(1);
    for (Index first = 0; first < y.rows; first += kKeyChunk) {
      const Index tokens = std::min(kKeyChunk, y.rows - first);
      pack_rows(y, first, tokens, col, c.cols, lanes, at.panel);
      const MatrixView<const T> chunk = a.middle_cols(first, tokens);
      const MatrixView<const T> ones{&one, bias_row.rows, tokens, 0, 0};
      if (one_chunk) {
        add_chunk(chunk, lanes, at, c);
        add_chunk(ones, lanes, at, bias_row);
      } else {
        at.tree.start(first / kKeyChunk, at.sums, join);
        sum_chunk(chunk, lanes, at.panel, at.sums);
        sum_chunk(ones, lanes, at.panel, at.sums + c.rows * kWide);
      }
    }
    if (one_chunk) return;
    at.tree.finish(at.sums, join);
    add_rows(c, lanes, at.sums);
    add_rows(bias_row, lanes, at.sums + c.rows * kWide);
  }

  /// c += a b, b in at.panel.
  void add_chunk(const MatrixView<const T>& a, Index lanes, const Memory& at,
                 const MatrixView<T>& c) const {
    if (a.cols <= kTokenBlock && lanes == c.cols && c.col_stride == 1) {
      add_block(a, lanes, at.panel, c.data, c.row_stride, true);
      return;
    }
    for (Index r = 0; r < c.rows; r += kRowBlock) {
      const Index rows = std::min(kRowBlock, c.rows - r);
      sum_chunk(a.middle_rows(r, rows), lanes, at.panel, at.tail);
      add_rows(c.middle_rows(r, rows), lanes, at.tail);
    }
  }

  /// to = a b, its sums begun anew every kTokenBlock tokens and then added. Rows of b and `to` are kWide apart.
  void sum_chunk(const MatrixView<const T>& a, Index lanes, const T* b, T* to) const {
    for (Index r = 0; r < a.rows; r += kRowBlock, to += kRowBlock * kWide) {
      const MatrixView<const T> rows = a.middle_rows(r, std::min(kRowBlock, a.rows - r));
      for (Index k = 0; k < a.cols; k += kTokenBlock) {
        add_block(rows.middle_cols(k, std::min(kTokenBlock, a.cols - k)), lanes, b + k * kWide, to,
                  kWide, k > 0);
      }
    }
  }

  /// to (+)= a b.
  void add_block(const MatrixView<const T>& a, Index lanes, const T* b, T* to, Index to_row,
                 bool add) const {
    Product<T> p;
    p.rows = a.rows;
    p.vectors = lanes / kernels_.vector_lanes;
    p.depth = a.cols;
    p.a = a.data;
    p.a_row = a.row_stride;
    p.a_step = a.col_stride;
    p.b = b;
    p.b_step = kWide;
    p.c = to;
    p.c_row = to_row;
    p.add = add;
    fetch_next_strip(p);
    kernels_.product(p);
  }

  /// c += from, whose rows are kWide apart.
  void add_rows(const MatrixView<T>& c, Index lanes, const T* from) const {
    if (lanes == c.cols && c.col_stride == 1) {
      kernels_.add(c.data, c.row_stride, c.rows, lanes / kernels_.vector_lanes, from);
      return;
    }
    for (Index r = 0; r < c.rows; ++r, from += kWide) {
      for (Index j = 0; j < c.cols; ++j) c(r, j) += from[j];
    }
  }

  /// Rows first, ..., first + rows - 1 of some columns of y, in whole vectors, 0 behind the last.
  static void pack_rows(const MatrixView<const T>& y, Index first, Index rows, Index col,
                        Index cols, Index lanes, T* to) {
    for (Index k = 0; k < rows; ++k, to += kWide) {
      const T* const from = &y(first + k, col);
      if (y.col_stride == 1) {
        std::memcpy(to, from, static_cast<std::size_t>(cols) * sizeof(T));
      } else {
        for (Index c = 0; c < cols; ++c) to[c] = from[c * y.col_stride];
      }
      std::fill(to + cols, to + lanes, T(0));
    }
  }

  /// c (+)= a b, where panel(k, depth, col, cols, lanes, to) writes rows k, ..., k + depth - 1 of
  /// columns col, ..., col + cols - 1 of b, in whole vectors.
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
  const Index tokens_, inputs_;
  T* const transposed_;
};

/// PanelProducts::add_outer and by_transposed, each a function of its own.
template <class T>
void add_outer(const PanelProducts<T>& products, const MatrixView<T>& weight, T* bias,
               const MatrixView<const T>& x, const MatrixView<const T>& y) {
  products.add_outer(weight, bias, x, y);
}
template <class T>
void by_transposed(const PanelProducts<T>& products, const MatrixView<T>& x,
                   const MatrixView<const T>& y, const MatrixView<const T>& weight, bool add) {
  products.by_transposed(x, y, weight, add);
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_PRODUCTS(T)                                                                   \
  MHA_COMPILED_TEMPLATE void add_outer(const PanelProducts<T>&, const MatrixView<T>&, T*,          \
                                       const MatrixView<const T>&, const MatrixView<const T>&);    \
  MHA_COMPILED_TEMPLATE void by_transposed(const PanelProducts<T>&, const MatrixView<T>&,          \
                                           const MatrixView<const T>&, const MatrixView<const T>&, \
                                           bool);
MHA_COMPILED_PRODUCTS(float)
MHA_COMPILED_PRODUCTS(double)
#undef MHA_COMPILED_PRODUCTS
#endif

}  // namespace mha::kernels
