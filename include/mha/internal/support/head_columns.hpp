// SPDX-License-Identifier: MIT
//
// The layer's projected rows, whose heads may lie side by side in a row or each by itself.
#pragma once

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// Rows and columns of which every `group_cols` columns, those of a head, lie by themselves,
/// group_stride apart: [head][token][channel] seen as [token][head * channel]. A plain matrix is one
/// group.
template <class Scalar>
struct HeadColumns {
  Scalar* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index row_stride = 0;
  Index col_stride = 1;
  Index group_cols = 0;
  Index group_stride = 0;

  HeadColumns() = default;
  HeadColumns(const MatrixView<Scalar>& m)  // NOLINT: a matrix is one group
      : data(m.data),
        rows(m.rows),
        cols(m.cols),
        row_stride(m.row_stride),
        col_stride(m.col_stride),
        group_cols(m.cols) {}

  Scalar& operator()(Index row, Index col) const {
    const Index group = group_cols == 0 ? 0 : col / group_cols;
    return data[group * group_stride + row * row_stride + (col - group * group_cols) * col_stride];
  }
  HeadColumns middle_rows(Index row, Index count) const {
    HeadColumns part = *this;
    if (count > 0 && cols > 0) part.data += row * row_stride;
    part.rows = count;
    return part;
  }
  /// The columns from `col` on that lie together, at most `most` of them.
  MatrixView<Scalar> run_of_columns(Index col, Index most) const {
    const Index group = group_cols == 0 ? 0 : col / group_cols;
    const Index within = col - group * group_cols;
    const Index count = most < group_cols - within ? most : group_cols - within;
    return {data + group * group_stride + within * col_stride, rows, count, row_stride, col_stride};
  }
  /// [batch, head, token, channel], the rows being those of `batch` equal sequences.
  TensorView<Scalar> heads(Index num_heads, Index batch) const {
    const Index tokens = batch == 0 ? 0 : rows / batch;
    const Index channels = num_heads == 0 ? 0 : cols / num_heads;
    const Index head_stride = group_cols == cols ? channels * col_stride : group_stride;
    TensorView<Scalar> view;
    view.data = data;
    view.sizes = {batch, num_heads, tokens, channels};
    view.strides = {tokens * row_stride, head_stride, row_stride, col_stride};
    return view;
  }
};

}  // namespace mha::detail
