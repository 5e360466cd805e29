// SPDX-License-Identifier: MIT
//
// The checks of a call's matrices: that their sizes, strides and memory are right, and that what is
// written lies apart from what is read. Read first: checks.hpp, which does it for tensors.
#pragma once

#include <cstdint>

#include "mha/internal/support/checks.hpp"

namespace mha::inline MHA_ABI::detail {

/// A matrix of a call as checks.hpp takes views: its sizes, strides and memory are right.
template <class T>
class PlacedMatrix {
 public:
  PlacedMatrix(const char* where, const char* name, const MatrixView<T>& m)
      : what_{name, {"batch", "num_heads", "rows", "columns"}},
        view_(as_tensor(m)),
        range_(check_view(where, what_, view_)) {}
  Placed<T> placed() const MHA_LIFETIMEBOUND { return {what_, view_, range_}; }

 private:
  Named what_;
  TensorView<T> view_;
  AddressRange range_;
};

/// Where a matrix of a call lies, once its sizes, strides and memory are right: quickly for matrices as
/// they mostly are, with entries, strides of no sign and below 2^24.
template <class T>
AddressRange check_matrix(const char* where, const char* name, const MatrixView<T>& m) {
  using Bits = std::uint64_t;
  const Bits rows = static_cast<Bits>(m.rows) - 1;
  const Bits cols = static_cast<Bits>(m.cols) - 1;
  const Bits far = static_cast<Bits>(m.row_stride) | static_cast<Bits>(m.col_stride);
  if ((rows | cols) >= Bits{kMaxSize} || far >= Bits{1} << 24 || m.data == nullptr) {
    return PlacedMatrix(where, name, m).placed().range;
  }
  const Bits reach =
      rows * static_cast<Bits>(m.row_stride) + cols * static_cast<Bits>(m.col_stride);
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(m.data));
  return {address, address + static_cast<std::int64_t>((reach + 1) * sizeof(T))};
}

/// A matrix and where it lies, as check_matrix() found.
template <class T>
struct CheckedMatrix {
  const char* name;
  MatrixView<T> view;
  AddressRange range;
};
template <class T>
CheckedMatrix<T> checked(const char* where, const char* name, const MatrixView<T>& m) {
  return {name, m, check_matrix(where, name, m)};
}

/// `result` is written while `other` is still in use.
template <class A, class B>
void check_apart(const char* where, const CheckedMatrix<A>& result, const CheckedMatrix<B>& other) {
  if (are_apart(result.range, other.range)) return;
  const PlacedMatrix written(where, result.name, result.view);
  const PlacedMatrix read(where, other.name, other.view);
  check_apart(where, written.placed(), read.placed());
}

/// A matrix that owns its memory, row by row, whatever Eigen says of the strides of a single column.
template <class M>
auto memory_of(M& m) {
  return MatrixView<std::remove_pointer_t<decltype(m.data())>>{m.data(), m.rows(), m.cols(),
                                                               m.cols(), 1};
}

/// A matrix whose memory, row by row, cannot be wrong; it may have none.
template <class T>
CheckedMatrix<T> owned(const char* name, const MatrixView<T>& m) {
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(m.data));
  const Index size = m.data == nullptr ? 0 : m.rows * m.cols;
  return {name, m, {address, address + size * static_cast<std::int64_t>(sizeof(T))}};
}

}  // namespace mha::detail
