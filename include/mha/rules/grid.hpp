// SPDX-License-Identifier: MIT
//
// What masks and biases of one number per pair are read from: a matrix or tensor of yours where it
// lies, or one that the rule owns.
#pragma once

#include "mha/internal/support/language.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "mha/internal/support/checks.hpp"
#include "mha/rules/rule.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// What a rule refers to must have sizes, and memory if they are not 0.
template <class Scalar>
void check_memory(const char* rule, const TensorView<Scalar>& view) {
  const std::array<Index, 4>& n = view.sizes;
  const bool has_sizes = n[0] >= 0 && n[1] >= 0 && n[2] >= 0 && n[3] >= 0;
  const bool empty = n[0] == 0 || n[1] == 0 || n[2] == 0 || n[3] == 0;
  require(has_sizes && (empty || view.data != nullptr), rule,
          has_sizes ? ": data must not be null" : ": sizes must not be negative", ", got ",
          list_text(n));
  require(extent_fits(n, view.strides, sizeof(Scalar)), rule,
          ": no element may lie farther than an address reaches, got sizes ", list_text(n),
          " and strides ", list_text(view.strides));
}

/// A number for each (b, h, i, j) of a call: memory seen through strides, an axis of size 1 serving
/// all. What came as a temporary is owned.
template <class Scalar>
class Grid {
 public:
  /// A tensor [batch, head, query, key].
  Grid(const char* rule, const TensorView<const Scalar>& view) : view_(view) {
    check_memory(rule, view_);
    broadcast();
  }

  /// A matrix [query, key]; a vector is one number per key, the same for every query.
  template <EigenDense M>
  Grid(const char* rule, M&& m) {  // NOLINT(bugprone-forwarding-reference-overload): not for a Grid
    using Plain = std::remove_cvref_t<M>;
    if constexpr (EigenInMemory<M> && std::is_lvalue_reference_v<M>) {
      view_ = as_tensor(MatrixView<const Scalar>(matrix_view(m)));
    } else {
      owner_ = std::make_shared<const Matrix<Scalar>>(m);
      view_ = as_tensor(matrix_view(*owner_));
    }
    if (Plain::IsVectorAtCompileTime && Plain::ColsAtCompileTime == 1) {
      std::swap(view_.sizes[2], view_.sizes[3]);
      std::swap(view_.strides[2], view_.strides[3]);
    }
    check_memory(rule, view_);
    broadcast();
  }

  const Scalar& operator()(Index b, Index h, Index i, Index j) const { return view_(b, h, i, j); }

  /// Rows are sequences, not queries: an entry per (b, j).
  void make_rows_sequences() {
    std::swap(view_.sizes[0], view_.sizes[2]);
    std::swap(view_.strides[0], view_.strides[2]);
  }

  const std::array<Index, 4>& sizes() const { return view_.sizes; }
  const TensorView<const Scalar>& view() const { return view_; }

  void check(const CallExtent& call, const char* rule) const {
    const std::array<Index, 4> wanted{call.batch, call.num_heads, call.query_len, call.kv_len};
    constexpr std::array<const char*, 4> names{"batch", "num_heads", "query_len", "kv_len"};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const Index got = view_.sizes[axis];
      const bool longer = call.ragged && axis >= 2 && got > wanted[axis];
      require(got == wanted[axis] || got == 1 || longer, call.where, ": ", rule, " must have 1 or ",
              wanted[axis], " entries along ", names[axis], ", got ", got);
    }
  }

 private:
  void broadcast() {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (view_.sizes[axis] == 1) view_.strides[axis] = 0;
    }
  }

  std::shared_ptr<const Matrix<Scalar>> owner_;
  TensorView<const Scalar> view_;
};

/// Truth values that lie apart in memory are looked through if they are at most so many.
inline constexpr Index kFewTruths = 256;

/// Are `count` truth values side by side all like the first?
inline bool all_alike(const bool* truths, Index count, bool first) {
  Index k = 0;
  for (const std::uint64_t eight = first ? 0x0101010101010101u : 0; k + 8 <= count; k += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, truths + k, sizeof(word));
    if (word != eight) return false;
  }
  for (; k < count; ++k) {
    if (truths[k] != first) return false;
  }
  return true;
}

/// Whether no number of a tile is true, or all are; some, where it would take long to find out. Read
/// along the lines that lie in memory, eight at a time, up to the first that differs: for a tile of
/// 64 x 128 at most a twentieth of the time that asking for each pair takes (measured).
inline TileMask truths_of(const Grid<bool>& grid, Index b, Index h, const PairTile& tile) {
  const TensorView<const bool>& view = grid.view();
  const bool* const first = &view(b, h, tile.first_query, tile.first_key);
  Index lines = view.strides[2] == 0 ? 1 : tile.queries;
  Index line = view.strides[3] == 0 ? 1 : tile.keys;
  Index step = view.strides[2];
  Index stride = view.strides[3];
  if (stride != 1 && (step == 1 || line == 1)) {  // the queries lie side by side
    std::swap(lines, line);
    std::swap(step, stride);
  }
  if (stride != 1 && line * lines > kFewTruths) return TileMask::some;
  for (Index k = 0; k < lines; ++k) {
    const bool* const truths = first + k * step;
    bool alike = true;
    if (stride == 1) {
      alike = all_alike(truths, line, *first);
    } else {
      for (Index j = 0; j < line && alike; ++j) alike = truths[j * stride] == *first;
    }
    if (!alike) return TileMask::some;
  }
  return *first ? TileMask::all : TileMask::none;
}

/// The element type of what a grid is made from.
template <class T>
auto grid_scalar() {
  if constexpr (EigenDense<T>) {
    return std::type_identity<typename std::remove_cvref_t<T>::Scalar>{};
  } else {
    using View = decltype(tensor_view(std::declval<T&>()));
    return std::type_identity<std::remove_const_t<std::remove_pointer_t<decltype(View::data)>>>{};
  }
}
template <class T>
using grid_scalar_t = typename decltype(grid_scalar<T>())::type;

/// A grid over `m`: an Eigen matrix or expression, or anything tensor_view() takes. `rule` is the
/// factory that the caller used.
template <class T>
auto make_grid(const char* rule, T&& m) {
  using Scalar = grid_scalar_t<T>;
  if constexpr (EigenDense<T>) {
    return Grid<Scalar>(rule, std::forward<T>(m));
  } else {
    static_assert(std::is_lvalue_reference_v<T> || is_tensor_view<std::remove_cvref_t<T>>,
                  "mha: a mask only refers to its tensor, so the tensor must outlive it: give a "
                  "named tensor, not a temporary");
    return Grid<Scalar>(rule, TensorView<const Scalar>(tensor_view(m)));
  }
}

}  // namespace detail

}  // namespace mha
