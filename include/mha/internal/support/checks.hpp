// SPDX-License-Identifier: MIT
//
// What every entry asks of the views it is given, before it writes anything: sizes within limits,
// places that an address reaches, memory where there are elements, results of the right shape that
// lie apart from what is read and from each other. Each question takes constant time.
#pragma once

#include "mha/internal/support/overlap.hpp"

namespace mha::inline MHA_ABI::detail {

/// What a tensor and its axes are called in messages.
struct Named {
  const char* name;
  std::array<const char*, 4> axes;
};
inline constexpr Named kQuery{"query", {"batch", "num_heads", "query_len", "head_dim"}};
inline constexpr Named kKey{"key", {"batch", "kv_heads", "kv_len", "head_dim"}};
inline constexpr Named kValue{"value", {"batch", "kv_heads", "kv_len", "value_dim"}};
inline constexpr Named kOutput{"output", {"batch", "num_heads", "query_len", "value_dim"}};
inline constexpr Named kWeights{"weights", {"batch", "num_heads", "query_len", "kv_len"}};
inline constexpr Named kLse{"lse", {"batch", "num_heads", "query_len", "its last axis"}};

/// Another name for a tensor of these axes.
constexpr Named called(const char* name, const Named& axes) { return {name, axes.axes}; }

/// Addresses between which a view's elements lie: [first, end).
struct AddressRange {
  std::int64_t first = 0;
  std::int64_t end = 0;
};
inline bool are_apart(const AddressRange& a, const AddressRange& b) {
  return a.end <= b.first || b.end <= a.first;
}

/// Says what is wrong with a view.
[[noreturn]] MHA_COLD inline void refuse_view(const char* where, const Named& what,
                                              const std::array<Index, 4>& sizes,
                                              const std::array<Index, 4>& strides,
                                              std::size_t element_size) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    require(sizes[axis] >= 0 && sizes[axis] <= kMaxSize, where, ": ", what.name,
            " must have between 0 and ", kMaxSize, " entries along ", what.axes[axis], ", got ",
            sizes[axis]);
  }
  require(extent_fits(sizes, strides, element_size), where, ": no element of ", what.name,
          " may lie farther than an address reaches, got sizes ", list_text(sizes), " and strides ",
          list_text(strides));
  fail<std::invalid_argument>(std::string("mha::") + where + ": " + what.name +
                              ".data must not be null, got sizes " + list_text(sizes));
}

/// Whether memory is needed: not where a call only asks about sizes.
enum class Memory { needed, unused };

/// The limits of any view: for sizes, strides and memory that refuse_view() would complain about.
MHA_COLD inline AddressRange check_any_view(const char* where, const Named& what,
                                            const std::array<Index, 4>& sizes,
                                            const std::array<Index, 4>& strides, const void* data,
                                            std::size_t element_size, Memory memory) {
  bool empty = false;
  bool fits = extent_fits(sizes, strides, element_size);
  for (const Index size : sizes) {
    fits = fits && size <= kMaxSize;
    empty = empty || size == 0;
  }
  if (!fits || (data == nullptr && !empty && memory == Memory::needed)) {
    refuse_view(where, what, sizes, strides, element_size);
  }
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data));
  if (empty) return {address, address};
  std::int64_t low = 0;
  std::int64_t high = 1;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    (strides[axis] < 0 ? low : high) += std::int64_t{sizes[axis] - 1} * strides[axis];
  }
  const auto bytes = static_cast<std::int64_t>(element_size);
  return {address + low * bytes, address + high * bytes};
}

/// The limits of a view, quickly for views as they mostly are: with elements, strides of no sign and below 2^24.
template <class Scalar>
AddressRange check_view(const char* where, const Named& what, const TensorView<Scalar>& view,
                        Memory memory = Memory::needed) {
  using Bits = std::uint64_t;
  const auto bits = [](Index n) { return static_cast<Bits>(n); };
  const auto& n = view.sizes;
  const auto& step = view.strides;
  const Bits most = (bits(n[0]) - 1) | (bits(n[1]) - 1) | (bits(n[2]) - 1) | (bits(n[3]) - 1);
  const Bits far = bits(step[0]) | bits(step[1]) | bits(step[2]) | bits(step[3]);
  if (most >= bits(kMaxSize) || far >= Bits{1} << 24 || view.data == nullptr) {
    return check_any_view(where, what, n, step, view.data, sizeof(Scalar), memory);
  }
  const Bits reach = (bits(n[0]) - 1) * bits(step[0]) + (bits(n[1]) - 1) * bits(step[1]) +
                     (bits(n[2]) - 1) * bits(step[2]) + (bits(n[3]) - 1) * bits(step[3]);
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.data));
  return {address, address + static_cast<std::int64_t>((reach + 1) * sizeof(Scalar))};
}

[[noreturn]] MHA_COLD inline void refuse_sizes(const char* where, const Named& what,
                                               const std::array<Index, 4>& got,
                                               const std::array<Index, 4>& wanted) {
  std::size_t axis = 0;
  while (axis < 3 && got[axis] == wanted[axis]) ++axis;
  fail<std::invalid_argument>(std::string("mha::") + where + ": " + what.name + " must have size " +
                              text(wanted[axis]) + " along " + what.axes[axis] + ", got " +
                              text(got[axis]));
}

/// A view that is to have these sizes.
template <class Scalar>
AddressRange check_sizes(const char* where, const Named& what, const TensorView<Scalar>& view,
                         const std::array<Index, 4>& sizes) {
  if (!are_equal(view.sizes, sizes)) refuse_sizes(where, what, view.sizes, sizes);
  return check_view(where, what, view);
}

/// The lse of a forward pass, which has one only if it was asked for it.
template <class Scalar>
AddressRange check_lse(const char* where, const char* name, const TensorView<Scalar>& lse,
                       const std::array<Index, 4>& sizes) {
  const auto is_empty = [](const std::array<Index, 4>& n) {
    return n[0] == 0 || n[1] == 0 || n[2] == 0 || n[3] == 0;
  };
  require(is_empty(sizes) || (!is_empty(lse.sizes) && lse.data != nullptr), where, ": ", name,
          " must be there (need_lse = true in the forward pass), got none for sizes ",
          list_text(sizes));
  if (is_empty(sizes) && is_empty(lse.sizes)) return {};
  return check_sizes(where, called(name, kLse), lse, sizes);
}

/// So many elements are to be allocated.
inline void check_count(const char* where, const char* name, const std::array<Index, 4>& sizes,
                        std::size_t element_size) {
  std::array<Index, 4> strides{};
  Index count = 0;
  const bool fits = make_contiguous(sizes, element_size, strides, count);
  if (!fits) {
    require(false, where, ": ", name, " must have as many elements as fit in memory, got sizes ",
            list_text(sizes), " of ", element_size, " bytes each");
  }
}

/// A view and where it lies, for the checks of overlap.
template <class Scalar>
struct Placed {
  const Named& what;
  const TensorView<Scalar>& view;
  AddressRange range;
};

/// The ranges of both meet: do their elements?
template <class A, class B>
MHA_COLD void check_elements_apart(const char* where, const Placed<A>& result,
                                   const Placed<B>& other) {
  if (!overlaps(result.view, other.view)) return;
  require(false, where, ": ", result.what.name, " must not overlap ", other.what.name, ", got ",
          result.what.name, " with sizes ", list_text(result.view.sizes), " and strides ",
          list_text(result.view.strides), ", and ", other.what.name, " with sizes ",
          list_text(other.view.sizes), " and strides ", list_text(other.view.strides),
          ", whose first element lies ",
          reinterpret_cast<std::intptr_t>(other.view.data) -
              reinterpret_cast<std::intptr_t>(result.view.data),
          " bytes after that of ", result.what.name);
}

/// `result` is written while `other` is still in use.
template <class A, class B>
void check_apart(const char* where, const Placed<A>& result, const Placed<B>& other) {
  if (are_apart(result.range, other.range) || are_column_blocks(result.view, other.view)) return;
  check_elements_apart(where, result, other);
}

template <class Scalar>
MHA_COLD void check_any_places(const char* where, const Placed<Scalar>& result) {
  if (!overlaps_itself(result.view)) return;
  require(false, where, ": ", result.what.name,
          " must have a place of its own for every element, got sizes ",
          list_text(result.view.sizes), " and strides ", list_text(result.view.strides));
}

/// Each element of `result`, whose extent has been checked, has a place of its own: quickly where
/// channels lie within tokens and heads, in either order, and these within the batch.
template <class Scalar>
void check_own_places(const char* where, const Placed<Scalar>& result) {
  const auto& n = result.view.sizes;
  const auto& step = result.view.strides;
  const bool tokens_within = step[2] <= step[1];
  const std::size_t inner = tokens_within ? 2 : 1;
  const std::size_t outer = tokens_within ? 1 : 2;
  const auto reach_of = [&](std::size_t axis) {  // of any value if there are no elements
    return (static_cast<std::uint64_t>(n[axis]) - 1) * static_cast<std::uint64_t>(step[axis]);
  };
  std::uint64_t reach = reach_of(3);
  const auto steps_over = [&](std::size_t axis) {
    return step[axis] > 0 && static_cast<std::uint64_t>(step[axis]) > reach;
  };
  bool nested = step[3] > 0 && (n[inner] <= 1 || steps_over(inner));
  reach += reach_of(inner);
  nested = nested && (n[outer] <= 1 || steps_over(outer));
  reach += reach_of(outer);
  nested = nested && (n[0] <= 1 || steps_over(0));
  if (!nested) check_any_places(where, result);
}

/// A matrix that is written where it lies.
template <class Scalar>
void check_matrix_result(const char* where, const char* name, const MatrixView<Scalar>& matrix) {
  const TensorView<Scalar> view = as_tensor(matrix);
  const Named what{name, {"batch", "num_heads", "rows", "cols"}};
  check_own_places(where, Placed<Scalar>{what, view, check_view(where, what, view)});
}

}  // namespace mha::detail
