// SPDX-License-Identifier: MIT
//
// What a call of the layer works in: the projected queries, keys and values, the concatenated heads,
// and the scratch of its steps, cut from one block whose size is known beforehand. Scalars without
// kernels get matrices of their own instead.
#pragma once

#include <memory>
#include <vector>

#include "mha/internal/call/batch.hpp"
#include "mha/internal/kernels/tile_memory.hpp"
#include "mha/internal/support/head_columns.hpp"
#include "mha/rotary.hpp"

namespace mha::inline MHA_ABI::detail {

/// Hands out row-major matrices from a block. Without a block it counts what they take.
template <class Acc>
class BlockMatrices {
 public:
  BlockMatrices() = default;
  explicit BlockMatrices(const kernels::MemoryBlock& block) : arena_(block) {}

  /// Rows start at multiples of 64 bytes, but never a multiple of 2 KiB apart: such rows would share
  /// a few lines of the first-level cache.
  MatrixView<Acc> matrix(Index rows, Index cols) {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(Acc));
    Index stride = kernels::round_up(cols, kLine);
    if (stride % (32 * kLine) == 0) stride += kLine;
    return {arena_.template take<Acc>(rows * stride), rows, cols, stride, 1};
  }
  template <class T>
  T* items(Index count) {
    return arena_.template take<T>(count);
  }
  kernels::MemoryBlock bytes(std::size_t count) {
    return {arena_.template take<std::byte>(static_cast<Index>(count)), count};
  }
  std::size_t used() const { return arena_.used(); }

 private:
  kernels::Arena arena_;
};

/// The same from the heap, for any number type.
template <class Acc>
class OwnedMatrices {
 public:
  OwnedMatrices() { matrices_.reserve(kMost); }
  MatrixView<Acc> matrix(Index rows, Index cols) {
    matrices_.emplace_back(rows, cols);
    MatrixView<Acc> view = matrix_view(matrices_.back());
    view.row_stride = cols;  // one column: Eigen's strides are those of a column
    view.col_stride = 1;
    return view;
  }
  template <class T>
  T* items(Index count) {
    items_.emplace_back(std::make_unique<std::byte[]>(static_cast<std::size_t>(count) * sizeof(T)));
    return reinterpret_cast<T*>(items_.back().get());
  }
  kernels::MemoryBlock bytes(std::size_t) { return {}; }

 private:
  static constexpr std::size_t kMost = 11;
  std::vector<Matrix<Acc>> matrices_;
  std::vector<std::unique_ptr<std::byte[]>> items_;
};

/// Sizes of one call.
struct LayerSizes {
  Index query_rows = 0;
  Index key_rows = 0;
  Index query_width = 0;
  Index key_width = 0;
  Index value_width = 0;
  Index concat_width = 0;
  Index lse_width = 0;  ///< 0 = no lse of our own
  bool extra_key = false;
  Index num_segments = 0;
  Index num_caches = 0;
  Index rotary_pairs = 0;  ///< of one head
  Index query_heads = 1;   ///< 1 = rows of q hold all heads; else each head lies by itself
  Index key_heads = 1;
  Index value_heads = 1;
  Index wide_weight = 0;  ///< entries of the largest weight, if it must be widened
  Index wide_bias = 0;
  std::size_t scratch = 0;
};

template <class Acc>
struct LayerMemory {
  HeadColumns<Acc> q, k, v;
  MatrixView<Acc> concat, lse;
  Acc *bias_k = nullptr, *bias_v = nullptr;  ///< the layer's, in Acc
  Segment* segments = nullptr;
  kernels::PagedKeys* paged = nullptr;      ///< of each cache
  kernels::Retention* retention = nullptr;  ///< likewise
  RotaryMemory<Acc> rotary;
  Acc* wide_weight = nullptr;
  Acc* wide_bias = nullptr;
  kernels::MemoryBlock scratch;

  template <class Source>
  LayerMemory(const LayerSizes& sizes, Source& source)
      : q(by_heads(source.matrix(sizes.query_rows, sizes.query_width), sizes.query_heads)),
        k(by_heads(source.matrix(sizes.key_rows, sizes.key_width), sizes.key_heads)),
        v(by_heads(source.matrix(sizes.key_rows, sizes.value_width), sizes.value_heads)),
        concat(source.matrix(sizes.query_rows, sizes.concat_width)),
        lse(source.matrix(sizes.query_rows, sizes.lse_width)),
        bias_k(source.matrix(1, sizes.extra_key ? sizes.key_width : 0).data),
        bias_v(source.matrix(1, sizes.extra_key ? sizes.value_width : 0).data),
        segments(source.template items<Segment>(sizes.num_segments)),
        paged(source.template items<kernels::PagedKeys>(sizes.num_caches)),
        retention(source.template items<kernels::Retention>(sizes.num_caches)),
        rotary{source.template items<double>(sizes.rotary_pairs),
               source.matrix(1, sizes.rotary_pairs).data,
               source.matrix(1, sizes.rotary_pairs).data},
        wide_weight(source.matrix(1, sizes.wide_weight).data),
        wide_bias(source.matrix(1, sizes.wide_bias).data),
        scratch(source.bytes(sizes.scratch)) {}

 private:
  /// The same memory as [head][token][channel]: a head's rows lie together, on few pages.
  static HeadColumns<Acc> by_heads(const MatrixView<Acc>& m, Index heads) {
    HeadColumns<Acc> columns(m);
    if (heads <= 1 || m.cols == 0) return columns;
    columns.group_cols = m.cols / heads;
    columns.row_stride = columns.group_cols;
    columns.group_stride = m.rows * columns.group_cols;
    return columns;
  }
};

/// Bytes of a LayerMemory in one block.
template <class Acc>
std::size_t layer_bytes(const LayerSizes& sizes) {
  BlockMatrices<Acc> counter;
  const LayerMemory<Acc> memory(sizes, counter);
  return counter.used();
}

}  // namespace mha::detail
