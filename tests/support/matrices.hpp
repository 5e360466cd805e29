// SPDX-License-Identifier: MIT
//
// Matrices for tests: written out, or random from a fixed seed.
#pragma once

#include <mha/types.hpp>

#include <cstdint>
#include <initializer_list>
#include <random>

namespace mha::test {

/// `m` in another scalar type.
template <class Scalar, class M>
Matrix<Scalar> cast_to(const M& m) {
  Matrix<Scalar> result(m.rows(), m.cols());
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) result(i, j) = detail::convert<Scalar>(m(i, j));
  }
  return result;
}

/// The rows as written: matrix_of<float>({{1, 2}, {3, 4}}).
template <class Scalar>
Matrix<Scalar> matrix_of(std::initializer_list<std::initializer_list<double>> rows) {
  return cast_to<Scalar>(Matrix<double>(rows));
}

/// Entries in [-magnitude, magnitude), the same on every platform.
template <class Scalar>
Matrix<Scalar> random_matrix(Index rows, Index cols, std::uint64_t seed, double magnitude = 1) {
  std::mt19937_64 bits(seed);
  Matrix<Scalar> result(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      const double unit = static_cast<double>(bits() >> 11) * 0x1p-52 - 1;
      result(i, j) = detail::convert<Scalar>(magnitude * unit);
    }
  }
  return result;
}

/// The same for [batch, head, token, channel].
template <class Scalar>
Tensor<Scalar> random_tensor(const std::array<Index, 4>& sizes, std::uint64_t seed,
                             double magnitude = 1) {
  Tensor<Scalar> result(sizes);
  const Matrix<Scalar> entries =
      random_matrix<Scalar>(1, sizes[0] * sizes[1] * sizes[2] * sizes[3], seed, magnitude);
  for (Index k = 0; k < entries.cols(); ++k) result.data()[k] = entries(0, k);
  return result;
}

/// Entries first, ..., first + count - 1 of an axis: 0 batch, 1 head, 2 token, 3 channel.
template <class Scalar>
TensorView<const Scalar> some_of(TensorView<const Scalar> whole, std::size_t axis, Index first,
                                 Index count) {
  if (whole.data != nullptr) whole.data += first * whole.strides[axis];
  whole.sizes[axis] = count;
  return whole;
}
template <class Scalar>
TensorView<const Scalar> some_of(const Tensor<Scalar>& whole, std::size_t axis, Index first,
                                 Index count) {
  return some_of(TensorView<const Scalar>(whole.view()), axis, first, count);
}
/// Those of tokens.
template <class Scalar>
TensorView<const Scalar> rows_of(const Tensor<Scalar>& whole, Index first, Index count) {
  return some_of(whole, 2, first, count);
}

/// True with the given probability.
inline Matrix<bool> random_booleans(Index rows, Index cols, std::uint64_t seed,
                                    double probability) {
  const Matrix<double> uniform = random_matrix<double>(rows, cols, seed);
  Matrix<bool> result(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) result(i, j) = uniform(i, j) < 2 * probability - 1;
  }
  return result;
}

/// All entries of a tensor as one matrix: a row per token, batches and heads one below the other.
template <class T>
auto stacked(const T& tensor) {
  const auto view = tensor_view(tensor);
  using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
  Matrix<Scalar> result(view.size(0) * view.size(1) * view.size(2), view.size(3));
  Index row = 0;
  for (Index b = 0; b < view.size(0); ++b) {
    for (Index h = 0; h < view.size(1); ++h) {
      for (Index i = 0; i < view.size(2); ++i, ++row) {
        for (Index d = 0; d < view.size(3); ++d) result(row, d) = view(b, h, i, d);
      }
    }
  }
  return result;
}

}  // namespace mha::test
