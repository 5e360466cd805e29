// SPDX-License-Identifier: MIT
//
// How large things may be, and arithmetic with sizes that cannot overflow unnoticed. Also the
// macro by which a function says that its result refers to an argument's memory.
#pragma once

#include <Eigen/Core>
#include <array>
#include <limits>

#include "mha/internal/support/error.hpp"

/// On a parameter whose memory the result goes on referring to: the compiler then warns where the
/// result outlives it (clang: -Wdangling, -Wreturn-stack-address; MSVC's analysis). Not on views,
/// which may end before the memory that they show.
#if defined(__has_cpp_attribute)
#if __has_cpp_attribute(clang::lifetimebound)
#define MHA_LIFETIMEBOUND [[clang::lifetimebound]]
#elif __has_cpp_attribute(msvc::lifetimebound)
#define MHA_LIFETIMEBOUND [[msvc::lifetimebound]]
#endif
#endif
#ifndef MHA_LIFETIMEBOUND
#define MHA_LIFETIMEBOUND
#endif

namespace mha::inline MHA_ABI {

using Eigen::Index;

namespace detail {

/// The largest size of anything along any axis: a batch, heads, tokens, channels, a layer's widths.
/// Products of two are still far from overflow; those of more are checked.
inline constexpr Index kMaxSize = Index{1} << (sizeof(Index) * 4 - 2);

/// product = a * b, unless that overflows: then false.
inline bool multiplies(Index a, Index b, Index& product) {
#if defined(__GNUC__)
  return !__builtin_mul_overflow(a, b, &product);
#else
  constexpr Index kMost = std::numeric_limits<Index>::max();
  const auto magnitude = [](Index x) { return x < 0 ? -x : x; };
  if (a < -kMost || b < -kMost) return false;
  if (a != 0 && magnitude(b) > kMost / magnitude(a)) return false;
  product = a * b;
  return true;
#endif
}

/// Can elements of so many bytes at these strides be told apart by an address?
inline bool extent_fits(const std::array<Index, 4>& sizes, const std::array<Index, 4>& strides,
                        std::size_t element_size) {
  // A quarter of what an address can tell, for each of four axes.
  const Index most = std::numeric_limits<Index>::max() / 4 / static_cast<Index>(element_size) - 1;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    Index reach = 0;
    if (sizes[axis] < 0) return false;
    if (sizes[axis] <= 1) continue;
    if (!multiplies(sizes[axis] - 1, strides[axis], reach)) return false;
    if (reach > most || reach < -most) return false;
  }
  return true;
}

/// Equal lists, told without a call of memcmp.
inline bool are_equal(const std::array<Index, 4>& a, const std::array<Index, 4>& b) {
  return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
}

/// Sizes or strides as they are shown in messages.
template <class Number>
MHA_COLD std::string list_text(const std::array<Number, 4>& numbers) {
  std::string list = "[";
  for (const Number n : numbers) list += (list.size() == 1 ? "" : ", ") + text(n);
  return list + "]";
}
#if defined(MHA_COMPILED_TEMPLATE)
MHA_COMPILED_TEMPLATE std::string list_text(const std::array<Index, 4>&);
#endif

/// The strides of contiguous memory, the last axis running fastest, and the number of elements. False
/// if a size is negative, or the elements are more than fit in memory.
inline bool make_contiguous(const std::array<Index, 4>& sizes, std::size_t element_size,
                            std::array<Index, 4>& strides, Index& count) {
  count = 1;
  for (std::size_t axis = 4; axis-- > 0;) {
    strides[axis] = count;
    if (sizes[axis] < 0 || !multiplies(count, sizes[axis], count)) return false;
  }
  return extent_fits({count, 1, 1, 1}, {1, 1, 1, 1}, element_size);
}

/// make_contiguous(), or an error.
inline std::array<Index, 4> contiguous_strides(const char* where, const std::array<Index, 4>& sizes,
                                               std::size_t element_size, Index& count) {
  std::array<Index, 4> strides{};
  if (!make_contiguous(sizes, element_size, strides, count)) {
    require(false, where,
            ": sizes must not be negative, and their product must be a number of elements that fit "
            "in memory, got ",
            list_text(sizes), " of ", element_size, " bytes each");
  }
  return strides;
}

}  // namespace detail
}  // namespace mha
