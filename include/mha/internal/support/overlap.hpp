// SPDX-License-Identifier: MIT
//
// Do two views of memory share an element? Asked before a result is written, so that it never
// destroys what is still to be read, whatever the sizes:
//     overlaps(a, b)          may some element of a lie where one of b does?
//     overlaps_itself(a)      may two elements of a lie in one place?
// "May": the layouts that are used in practice are told apart exactly (column blocks of one packed
// matrix, slices, heads side by side, steps over rows, negative strides); for a layout that cannot be
// proven disjoint the answer is yes. Both look at sizes and strides alone, in constant time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// Where the elements of a view lie, in bytes: first + i_0 step_0 + i_1 step_1 + ..., each i_k below
/// count_k, and `size` bytes from there on. All steps are positive, all counts at least 2.
struct Places {
  std::int64_t first = 0;  ///< the lowest address
  std::int64_t reach = 0;  ///< from there to the end of the last element
  std::int64_t size = 0;   ///< of an element; 0: there are no elements
  int axes = 0;
  std::array<std::int64_t, 4> step{};
  std::array<std::int64_t, 4> count{};

  void add_axis(std::int64_t stride, std::int64_t length) {
    step[static_cast<std::size_t>(axes)] = stride;
    count[static_cast<std::size_t>(axes)] = length;
    reach += stride * (length - 1);
    ++axes;
  }
  /// Without the axes whose step is a multiple of `period`: the same elements modulo `period`.
  Places modulo(std::int64_t period) const {
    Places rest;
    rest.first = first;
    rest.reach = rest.size = size;
    for (std::size_t k = 0; k < static_cast<std::size_t>(axes); ++k) {
      if (step[k] % period != 0) rest.add_axis(step[k], count[k]);
    }
    return rest;
  }
};

/// The places of a view whose extent has been checked, see check_extent().
template <class Scalar>
Places places_of(const TensorView<Scalar>& view) {
  constexpr std::int64_t kSize{sizeof(Scalar)};
  Places places;
  places.first = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.data));
  for (const Index size : view.sizes) {
    if (size == 0) return places;
  }
  places.size = places.reach = kSize;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const std::int64_t count = view.sizes[axis];
    if (count == 1) continue;
    std::int64_t step = std::int64_t{view.strides[axis]} * kSize;
    if (step < 0) {
      places.first += step * (count - 1);
      step = -step;
    }
    places.add_axis(step, count);
  }
  return places;
}

/// Disjoint, proven by residues: modulo the step of any axis, which drops the axes that step by a
/// multiple of it, what is left of both spans two intervals. If these do not meet, nothing does. If
/// they meet within one period, then elements in one place have equal remainders in it, and it is
/// enough to tell the remainders apart, by another step: the largest period goes first.
inline bool are_disjoint(Places a, Places b) {
  const auto remainder = [](std::int64_t x, std::int64_t period) {
    const std::int64_t r = x % period;
    return r < 0 ? r + period : r;
  };
  for (;;) {
    if (a.first + a.reach <= b.first || b.first + b.reach <= a.first) return true;
    std::int64_t largest = 0;
    Places next_a;
    Places next_b;
    for (int k = 0; k < a.axes + b.axes; ++k) {
      const std::int64_t period = k < a.axes ? a.step[static_cast<std::size_t>(k)]
                                             : b.step[static_cast<std::size_t>(k - a.axes)];
      if (period == 0) continue;
      Places rest_a = a.modulo(period);
      Places rest_b = b.modulo(period);
      const std::int64_t b_after_a = remainder(b.first - a.first, period);
      const std::int64_t a_after_b = remainder(a.first - b.first, period);
      if (b_after_a >= rest_a.reach && a_after_b >= rest_b.reach) return true;
      const bool b_follows = rest_a.reach <= period && b_after_a + rest_b.reach <= period;
      const bool a_follows = rest_b.reach <= period && a_after_b + rest_a.reach <= period;
      if (period <= largest || (!b_follows && !a_follows)) continue;
      rest_a.first = b_follows ? 0 : a_after_b;
      rest_b.first = b_follows ? b_after_a : 0;
      largest = period;
      next_a = rest_a;
      next_b = rest_b;
    }
    if (largest == 0) return false;
    a = next_a;  // without the axis that steps by the period, at least
    b = next_b;
  }
}

inline bool overlaps(const Places& a, const Places& b) {
  if (a.size == 0 || b.size == 0) return false;
  if (a.first + a.reach <= b.first || b.first + b.reach <= a.first) return false;
  return !are_disjoint(a, b);
}

/// May two elements of it lie in one place? Not if every axis steps over all that the axes with
/// smaller steps reach.
inline bool overlaps_itself(Places places) {
  for (int k = 1; k < places.axes; ++k) {  // by rising steps
    for (auto n = static_cast<std::size_t>(k); n > 0 && places.step[n] < places.step[n - 1]; --n) {
      std::swap(places.step[n], places.step[n - 1]);
      std::swap(places.count[n], places.count[n - 1]);
    }
  }
  std::int64_t reach = places.size;
  for (std::size_t k = 0; k < static_cast<std::size_t>(places.axes); ++k) {
    if (places.step[k] < reach) return true;
    reach += places.step[k] * (places.count[k] - 1);
  }
  return false;
}

/// The same elements in the same order: strides matter only along axes that have several.
template <class A, class B>
bool is_same_view(const TensorView<A>& a, const TensorView<B>& b) {
  bool same = static_cast<const void*>(a.data) == static_cast<const void*>(b.data) &&
              sizeof(A) == sizeof(B);
  for (std::size_t axis = 0; axis < 4; ++axis) {
    same = same && a.sizes[axis] == b.sizes[axis] &&
           (a.sizes[axis] <= 1 || a.strides[axis] == b.strides[axis]);
  }
  return same;
}

/// Column blocks of the same rows, the commonest layout of one packed matrix: told without divisions.
template <class A, class B>
bool are_column_blocks(const TensorView<A>& a, const TensorView<B>& b) {
  const std::array<Index, 4>& step = a.strides;
  if (sizeof(A) != sizeof(B) || !are_equal(step, b.strides)) return false;
  const Index row = step[2];
  constexpr Index kMost = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(A));
  if (row <= 0 || row > kMost || step[1] < 0 || step[3] < 0) return false;
  if ((a.sizes[0] > 1 || b.sizes[0] > 1) && step[0] % row != 0) return false;
  const auto width = [&](const std::array<Index, 4>& n) {
    return ((n[1] - 1) * step[1] + (n[3] - 1) * step[3] + 1) * static_cast<Index>(sizeof(A));
  };
  const Index period = row * static_cast<Index>(sizeof(A));
  const Index distance =
      reinterpret_cast<std::intptr_t>(b.data) - reinterpret_cast<std::intptr_t>(a.data);
  return distance >= 0 ? distance >= width(a.sizes) && distance + width(b.sizes) <= period
                       : -distance >= width(b.sizes) && width(a.sizes) - distance <= period;
}

template <class A, class B>
bool overlaps(const TensorView<A>& a, const TensorView<B>& b) {
  return !are_column_blocks(a, b) && overlaps(places_of(a), places_of(b));
}
template <class A, class B>
bool overlaps(const MatrixView<A>& a, const MatrixView<B>& b) {
  return overlaps(as_tensor(a), as_tensor(b));
}
template <class Scalar>
bool overlaps_itself(const TensorView<Scalar>& view) {
  return overlaps_itself(places_of(view));
}
template <class Scalar>
bool overlaps_itself(const MatrixView<Scalar>& view) {
  return overlaps_itself(as_tensor(view));
}

}  // namespace mha::detail
