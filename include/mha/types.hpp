// SPDX-License-Identifier: MIT
//
// The shapes that data has in this library:
//   Matrix<Scalar>      an owning matrix, row-major: one token per row
//   TensorView<Scalar>  [batch, head, token, channel] of anybody's memory, with four strides
//   Tensor<Scalar>      the same, owning, contiguous
//   MatrixView<Scalar>  one (batch, head) of a TensorView: pointer, rows, columns, two strides
// and the conversions into them: from Eigen matrices and expressions, Eigen tensors, raw pointers.
// Nothing here copies an argument that can be read where it lies.
// Read next: reference/forward.hpp for the formula, rules/rule.hpp for masks and score modifiers.
#pragma once

#include "mha/internal/support/language.hpp"

#include <Eigen/Core>
#include <array>
#include <concepts>
#include <type_traits>
#include <utility>

#include "mha/internal/support/sizes.hpp"

namespace mha::inline MHA_ABI {

using Eigen::Index;

/// An owning matrix; a row is a token.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Scalar>
using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic, Eigen::RowMajor>;

template <class Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1, Eigen::ColMajor>;

/// A type attention can be computed in: real, not an integer, with Eigen's NumTraits. float,
/// double, long double, Eigen::half, Eigen::bfloat16, Eigen::AutoDiffScalar and users' own numbers.
template <class Scalar>
concept AttentionScalar = !std::is_integral_v<Scalar> && !Eigen::NumTraits<Scalar>::IsComplex &&
                          !Eigen::NumTraits<Scalar>::IsInteger;

/// What sums are kept in: float for the 16-bit types, else the scalar itself.
template <class Scalar>
using accumulator_t = std::conditional_t<
    std::is_same_v<Scalar, Eigen::half> || std::is_same_v<Scalar, Eigen::bfloat16>, float, Scalar>;

/// Any dense Eigen expression: Matrix, Array, Map, Block, Ref, a sum of products, ...
template <class T>
concept EigenDense =
    std::is_base_of_v<Eigen::DenseBase<std::remove_cvref_t<T>>, std::remove_cvref_t<T>>;

/// An Eigen object whose coefficients lie in memory at two strides.
template <class T>
concept EigenInMemory = EigenDense<T> &&
                            (std::remove_cvref_t<T>::Flags& Eigen::DirectAccessBit) != 0 &&
                        requires(const std::remove_cvref_t<T>& m) {
  m.data(), m.innerStride(), m.outerStride();
};

/// Rows and columns of somebody's memory. `Scalar` is const for read-only views.
template <class Scalar>
struct MatrixView {
  Scalar* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index row_stride = 0;  ///< elements from one row to the next
  Index col_stride = 1;  ///< elements from one column to the next

  Scalar& operator()(Index row, Index col) const {
    return data[row * row_stride + col * col_stride];
  }
  MatrixView block(Index row, Index col, Index num_rows, Index num_cols) const {
    // An empty view may have no memory at all: leave its pointer alone.
    const bool empty = num_rows == 0 || num_cols == 0;
    return {empty ? data : data + row * row_stride + col * col_stride, num_rows, num_cols,
            row_stride, col_stride};
  }
  MatrixView middle_rows(Index row, Index count) const { return block(row, 0, count, cols); }
  MatrixView middle_cols(Index col, Index count) const { return block(0, col, rows, count); }

  operator MatrixView<const Scalar>() const  // NOLINT: views convert to read-only ones
      requires(!std::is_const_v<Scalar>) {
    return {data, rows, cols, row_stride, col_stride};
  }
};

/// [batch, head, token, channel] of somebody's memory. Element (b, h, i, d) is
/// data[b * strides[0] + h * strides[1] + i * strides[2] + d * strides[3]]. A stride may be 0
/// (the same data for every batch, say) or negative. The view does not own: the memory must outlive
/// it.
template <class Scalar>
struct TensorView {
  Scalar* data = nullptr;
  std::array<Index, 4> sizes{0, 0, 0, 0};
  std::array<Index, 4> strides{0, 0, 0, 1};

  TensorView() = default;
  /// Contiguous memory, the channel running fastest.
  /// @throws std::invalid_argument if a size is negative, or there are more elements than fit in
  ///         memory
  TensorView(Scalar* first, const std::array<Index, 4>& extents) : data(first), sizes(extents) {
    Index count = 0;
    strides = detail::contiguous_strides("TensorView", extents, sizeof(Scalar), count);
  }
  /// @throws std::invalid_argument if a size is negative, or an element's place overflows an Index
  TensorView(Scalar* first, const std::array<Index, 4>& extents, const std::array<Index, 4>& steps)
      : data(first), sizes(extents), strides(steps) {
    if (!detail::extent_fits(sizes, strides, sizeof(Scalar))) {
      detail::require(false,
                      "TensorView: sizes must not be negative, and no element may lie farther than "
                      "an address reaches, got sizes ",
                      detail::list_text(sizes), " and strides ", detail::list_text(strides));
    }
  }

  Index size(std::size_t axis) const { return sizes[axis]; }
  Scalar& operator()(Index b, Index h, Index i, Index d) const {
    return data[b * strides[0] + h * strides[1] + i * strides[2] + d * strides[3]];
  }
  /// Tokens x channels of one head of one sequence.
  MatrixView<Scalar> matrix(Index b, Index h) const {
    const bool empty = sizes[2] == 0 || sizes[3] == 0;
    return {empty ? data : data + b * strides[0] + h * strides[1], sizes[2], sizes[3], strides[2],
            strides[3]};
  }
  operator TensorView<const Scalar>() const  // NOLINT: views convert to read-only ones
      requires(!std::is_const_v<Scalar>) {
    TensorView<const Scalar> view;
    view.data = data;
    view.sizes = sizes;
    view.strides = strides;
    return view;
  }
};

/// [batch, head, token, channel], owning and contiguous. Results with more than two axes come as
/// this.
template <class Scalar_>
class Tensor {
 public:
  using Scalar = Scalar_;

  Tensor() = default;
  /// All elements 0.
  /// @throws std::invalid_argument if a size is negative, or there are more elements than fit in
  ///         memory
  explicit Tensor(const std::array<Index, 4>& sizes) : sizes_(sizes) {
    Index count = 0;
    strides_ = detail::contiguous_strides("Tensor", sizes, sizeof(Scalar), count);
    storage_.setZero(count);
  }

  Tensor(const Tensor&) = default;
  Tensor& operator=(const Tensor&) = default;
  /// What has been moved from is empty.
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    if (this == &other) return *this;
    sizes_ = std::exchange(other.sizes_, {});
    strides_ = std::exchange(other.strides_, {});
    storage_ = std::move(other.storage_);
    other.storage_.resize(0);
    return *this;
  }
  ~Tensor() = default;

  Index size(std::size_t axis) const noexcept { return sizes_[axis]; }
  const std::array<Index, 4>& sizes() const noexcept { return sizes_; }
  bool empty() const noexcept { return storage_.size() == 0; }
  Scalar* data() noexcept { return storage_.data(); }
  const Scalar* data() const noexcept { return storage_.data(); }

  Scalar& operator()(Index b, Index h, Index i, Index d) { return data()[place(b, h, i, d)]; }
  const Scalar& operator()(Index b, Index h, Index i, Index d) const {
    return data()[place(b, h, i, d)];
  }

  /// Tokens x channels of one head of one sequence, as an Eigen matrix.
  auto matrix(Index b, Index h) {
    return Eigen::Map<Matrix<Scalar>>(data() + place(b, h, 0, 0), sizes_[2], sizes_[3]);
  }
  auto matrix(Index b, Index h) const {
    return Eigen::Map<const Matrix<Scalar>>(data() + place(b, h, 0, 0), sizes_[2], sizes_[3]);
  }

  TensorView<Scalar> view() MHA_LIFETIMEBOUND { return view_of(data()); }
  TensorView<const Scalar> view() const MHA_LIFETIMEBOUND { return view_of(data()); }
  // NOLINTNEXTLINE: a tensor is viewed as one
  operator TensorView<Scalar>() MHA_LIFETIMEBOUND { return view(); }
  operator TensorView<const Scalar>() const MHA_LIFETIMEBOUND { return view(); }  // NOLINT

 private:
  using Storage = Eigen::Array<Scalar, Eigen::Dynamic, 1, Eigen::ColMajor>;

  Index place(Index b, Index h, Index i, Index d) const {
    return b * strides_[0] + h * strides_[1] + i * strides_[2] + d;
  }
  template <class T>
  TensorView<T> view_of(T* first) const {
    TensorView<T> view;
    view.data = first;
    view.sizes = sizes_;
    view.strides = strides_;
    return view;
  }

  std::array<Index, 4> sizes_{0, 0, 0, 0};
  std::array<Index, 4> strides_{0, 0, 0, 1};
  Storage storage_;
};

namespace detail {

template <EigenInMemory M>
auto view_of_matrix(M& m) {
  using Plain = std::remove_cvref_t<M>;
  using Element = std::remove_pointer_t<decltype(m.data())>;
  const Index inner = m.innerStride();
  const Index outer = m.outerStride();
  return MatrixView<Element>{m.data(), m.rows(), m.cols(), Plain::IsRowMajor ? outer : inner,
                             Plain::IsRowMajor ? inner : outer};
}

/// One head of one sequence, as a tensor.
template <class Scalar>
TensorView<Scalar> as_tensor(const MatrixView<Scalar>& m) {
  TensorView<Scalar> view;
  view.data = m.data;
  view.sizes = {1, 1, m.rows, m.cols};
  view.strides = {0, 0, m.row_stride, m.col_stride};
  return view;
}

template <class Scalar>
TensorView<Scalar> split_view(const MatrixView<Scalar>& whole, Index num_heads, Index batch) {
  require(num_heads > 0 && whole.cols % num_heads == 0,
          "split_heads: num_heads must divide matrix.cols(), got ", num_heads, " and ", whole.cols);
  require(batch >= 0 && (batch == 0 ? whole.rows == 0 : whole.rows % batch == 0),
          "split_heads: batch must divide matrix.rows(), got ", batch, " and ", whole.rows);
  const Index tokens = batch == 0 ? 0 : whole.rows / batch;
  const Index channels = whole.cols / num_heads;
  TensorView<Scalar> view;
  view.data = whole.data;
  view.sizes = {batch, num_heads, tokens, channels};
  view.strides = {0, 0, whole.row_stride, whole.col_stride};
  const bool fits = multiplies(tokens, whole.row_stride, view.strides[0]) &&
                    multiplies(channels, whole.col_stride, view.strides[1]) &&
                    extent_fits(view.sizes, view.strides, sizeof(Scalar));
  require(
      fits, "split_heads: no element of the matrix may lie farther than an address reaches, got ",
      whole.rows, " x ", whole.cols, " with strides ", whole.row_stride, " and ", whole.col_stride);
  return view;
}

template <class T>
inline constexpr bool is_tensor = false;
template <class Scalar>
inline constexpr bool is_tensor<Tensor<Scalar>> = true;

/// Eigen::Tensor, Eigen::TensorMap, ...: recognised by what they offer, their header is not needed.
template <class T>
concept EigenTensor = requires(T& t) {
  { t.dimension(0) } -> std::convertible_to<Index>;
  { t.rank() } -> std::convertible_to<Index>;
  t.data();
  std::remove_cvref_t<T>::NumIndices;
  std::remove_cvref_t<T>::Layout;
};

/// A matrix or tensor that owns its memory: a view of it must not outlive it. (A Map, Block or
/// TensorView may end before a view of the same memory.)
template <class T>
concept OwnsMemory = is_tensor<std::remove_cvref_t<T>> ||
    std::is_base_of_v<Eigen::PlainObjectBase<std::remove_cvref_t<T>>, std::remove_cvref_t<T>> ||
    (EigenTensor<T>&& requires(std::remove_cvref_t<T>& t) { t.resize(t.dimensions()); });
/// One with a name.
template <class T>
concept NamedMemory = OwnsMemory<T> && std::is_lvalue_reference_v<T>;

}  // namespace detail

/// Where an Eigen object's coefficients lie. The object must outlive the view.
template <EigenInMemory M>
auto matrix_view(M&& m) {
  return detail::view_of_matrix(m);
}
template <EigenInMemory M>
requires detail::OwnsMemory<M>
auto matrix_view(M&& m MHA_LIFETIMEBOUND) { return detail::view_of_matrix(m); }

/// The heads of a 2-D matrix, as a view, not a copy: row b * n + i, column h * d + c of `matrix`
/// becomes (b, h, i, c) of [batch, num_heads, n, d], with n = rows / batch and d = columns /
/// num_heads.
/// @throws std::invalid_argument if num_heads does not divide the columns, or batch the rows.
template <EigenInMemory M>
auto split_heads(M&& matrix, Index num_heads, Index batch = 1) {
  return detail::split_view(detail::view_of_matrix(matrix), num_heads, batch);
}
template <EigenInMemory M>
requires detail::OwnsMemory<M>
auto split_heads(M&& matrix MHA_LIFETIMEBOUND, Index num_heads, Index batch = 1) {
  return detail::split_view(detail::view_of_matrix(matrix), num_heads, batch);
}

namespace detail {

template <class T>
inline constexpr bool is_tensor_view = false;
template <class Scalar>
inline constexpr bool is_tensor_view<TensorView<Scalar>> = true;

}  // namespace detail

/// Whatever can be seen as [batch, head, token, channel].
template <class T>
concept TensorLike = detail::is_tensor_view<std::remove_cvref_t<T>> ||
    detail::is_tensor<std::remove_cvref_t<T>> || detail::EigenTensor<T> || EigenInMemory<T>;

namespace detail {

template <TensorLike T>
auto view_of_tensor(T& t) {
  using Plain = std::remove_cvref_t<T>;
  if constexpr (is_tensor_view<Plain>) {
    return t;
  } else if constexpr (is_tensor<Plain>) {
    return t.view();
  } else if constexpr (EigenInMemory<T>) {
    return as_tensor(view_of_matrix(t));
  } else {
    static_assert(Plain::NumIndices == 4,
                  "mha: an Eigen tensor must have rank 4: [batch, head, token, channel]");
    using Element = std::remove_pointer_t<decltype(t.data())>;
    const std::array<Index, 4> sizes{t.dimension(0), t.dimension(1), t.dimension(2),
                                     t.dimension(3)};
    if constexpr (static_cast<int>(Plain::Layout) == static_cast<int>(Eigen::RowMajor)) {
      return TensorView<Element>(t.data(), sizes);
    } else {
      Index count = 0;
      const std::array<Index, 4> s = contiguous_strides(
          "tensor_view", {sizes[3], sizes[2], sizes[1], sizes[0]}, sizeof(Element), count);
      return TensorView<Element>(t.data(), sizes, {s[3], s[2], s[1], s[0]});
    }
  }
}

}  // namespace detail

/// A view of `t` as [batch, head, token, channel]: of a TensorView or Tensor itself, of an
/// Eigen::Tensor or TensorMap of rank 4 in either layout, of an Eigen matrix as one head of one
/// sequence.
template <TensorLike T>
auto tensor_view(T&& t) {
  return detail::view_of_tensor(t);
}
template <TensorLike T>
requires detail::OwnsMemory<T>
auto tensor_view(T&& t MHA_LIFETIMEBOUND) { return detail::view_of_tensor(t); }

namespace detail {

/// `value` in another scalar type; a half becomes a double by way of float.
template <class To, class From>
To convert(const From& value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (!std::is_same_v<accumulator_t<From>, From>) {
    return convert<To>(static_cast<accumulator_t<From>>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace detail
}  // namespace mha
