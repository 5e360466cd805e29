// SPDX-License-Identifier: MIT
//
// A linear map as its passes see it, whoever holds its numbers: Projection, in which they can be written, or
// PackedProjection, in which they lie as the kernels read them.
#pragma once

#include "mha/internal/kernels/project_plan.hpp"
#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// W, inputs x outputs, and b, 1 x outputs or 1 x 0, row by row: parameters, or gradients of them.
template <class T>
struct LinearParameters {
  MatrixView<T> weight;
  MatrixView<T> bias;

  Index inputs() const { return weight.rows; }
  Index outputs() const { return weight.cols; }
  bool has_bias() const { return bias.cols != 0; }
};

/// y = x W + b. @tparam Scalar_  that W and b have; sums are kept in its accumulator.
template <class Scalar_>
struct LinearView : LinearParameters<const Scalar_> {
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;

  bool prepacked = false;  ///< W and b lie in `packed`; the views above have no data, only sizes
  kernels::Weight<Acc> packed{};

  /// The kernels read it where it lies: several such maps of one x may be computed together. Others are widened
  /// first, and there is one place for that.
  bool is_read_in_place() const { return std::is_same_v<Scalar, Acc> || prepacked; }
};

}  // namespace mha::detail
