// SPDX-License-Identifier: MIT
//
// In which type numbers are kept in memory, chosen at run time, apart from the type that is computed in.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cstddef>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

/// f32: 4 bytes; f64: 8 bytes, for double; bf16 and f16: 2 bytes, rounded to the nearest of 8 or 11 significant
/// bits.
enum class Storage { f32, f64, bf16, f16 };

namespace detail {

/// f(x) with an x of the type that numbers are kept in.
template <class F>
decltype(auto) with_stored_type(Storage storage, const F& f) {
  switch (storage) {
    case Storage::f64:
      return f(double{});
    case Storage::bf16:
      return f(Eigen::bfloat16{});
    case Storage::f16:
      return f(Eigen::half{});
    case Storage::f32:
      break;
  }
  return f(float{});
}

/// Bytes of one number.
inline std::size_t bytes_of(Storage storage) {
  return with_stored_type(storage, [](auto x) { return sizeof(x); });
}

/// Numbers are kept as they are computed with.
template <class T>
bool keeps(Storage storage) {
  return with_stored_type(storage, [](auto x) { return std::is_same_v<decltype(x), T>; });
}

}  // namespace detail
}  // namespace mha
