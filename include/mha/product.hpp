// SPDX-License-Identifier: MIT
//
// The two matrix products of the Eigen path, over row-major memory with a row stride:
//     add_product:             C += A * B
//     add_product_transposed:  C += A * B^T
// They run Eigen's blocked kernel directly, not through an expression, for three reasons: an
// expression starts threads of its own in an -fopenmp build, and this library starts none unless
// asked; it brings four more product algorithms into every including file's compile time; and it
// copies operands whose strides it does not know.
#pragma once

#include "mha/language.hpp"

#include "mha/types.hpp"

namespace mha::detail {

template <int kOrderOfB, class Scalar>
void add_product_ordered(const Scalar* a, Index a_stride, const Scalar* b, Index b_stride,
                         Scalar* c, Index c_stride, Index rows, Index depth, Index cols) {
  if (rows == 0 || cols == 0 || depth == 0) return;
  // Row-major C = A B is column-major C^T = B^T A^T, and a row-major A is a column-major A^T.
  namespace internal = Eigen::internal;
  internal::gemm_blocking_space<Eigen::ColMajor, Scalar, Scalar, Eigen::Dynamic, Eigen::Dynamic,
                                Eigen::Dynamic>
      blocking(cols, rows, depth, 1, true);
  internal::general_matrix_matrix_product<Index, Scalar, kOrderOfB, false, Scalar, Eigen::ColMajor,
                                          false, Eigen::ColMajor, 1>::run(cols, rows, depth, b,
                                                                          b_stride, a, a_stride, c,
                                                                          1, c_stride, Scalar(1),
                                                                          blocking);
}

/// C[rows x cols] += A[rows x depth] * B[depth x cols]
template <class Scalar>
void add_product(const Scalar* a, Index a_stride, const Scalar* b, Index b_stride, Scalar* c,
                 Index c_stride, Index rows, Index depth, Index cols) {
  add_product_ordered<Eigen::ColMajor>(a, a_stride, b, b_stride, c, c_stride, rows, depth, cols);
}

/// C[rows x cols] += A[rows x depth] * B[cols x depth]^T
template <class Scalar>
void add_product_transposed(const Scalar* a, Index a_stride, const Scalar* b, Index b_stride,
                            Scalar* c, Index c_stride, Index rows, Index depth, Index cols) {
  add_product_ordered<Eigen::RowMajor>(a, a_stride, b, b_stride, c, c_stride, rows, depth, cols);
}

}  // namespace mha::detail
