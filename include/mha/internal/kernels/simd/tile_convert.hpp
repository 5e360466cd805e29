// SPDX-License-Identifier: MIT
//
// Rows of 16-bit numbers as rows of T. Every one of them is a float, so nothing is rounded.
// Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

/// Sixteen bits in each lane, the upper ones 0.
MHA_INLINE IntVec<float> load_16_bits(const std::uint16_t* p) {
#if MHA_VECTOR_TYPES
  using Narrow __attribute__((vector_size(MHA_VECTOR_BYTES / 2), aligned(2), may_alias)) =
      std::uint16_t;
  return __builtin_convertvector(*reinterpret_cast<const Narrow*>(p), IntVec<float>);
#else
  IntVec<float> v;
  MHA_UNROLL for (int l = 0; l < Simd<float>::kCount; ++l) v.v[l] = p[l];
  return v;
#endif
}

MHA_INLINE Vec<float> to_float(const IntVec<float>& v) {
#if MHA_VECTOR_TYPES
  return __builtin_convertvector(v, Vec<float>);
#else
  Vec<float> result;
  MHA_UNROLL for (int l = 0; l < Simd<float>::kCount; ++l) {
    result.v[l] = static_cast<float>(v.v[l]);
  }
  return result;
#endif
}

/// bfloat16: the upper half of a float.
MHA_INLINE Vec<float> from_bf16(const IntVec<float>& x) { return bits_as<Vec<float> >(x << 16); }

/// IEEE half: 5 bits of exponent, 10 of mantissa.
MHA_INLINE Vec<float> from_f16(const IntVec<float>& x) {
  const IntVec<float> sign = (x & all_int<float>(0x8000)) << 16;
  const IntVec<float> exponent = x & all_int<float>(0x7C00);
  const IntVec<float> rebias = all_int<float>(112 << 23);
  IntVec<float> bits = ((x & all_int<float>(0x7FFF)) << 13) + rebias;
  // Infinity and NaN have the largest exponent here as there.
  bits += rebias & (exponent == all_int<float>(0x7C00));
  const Vec<float> tiny = to_float(x & all_int<float>(0x3FF)) * all(0x1p-24F);
  const IntVec<float> is_tiny = exponent == IntVec<float>{};
  bits = (bits_as<IntVec<float> >(tiny) & is_tiny) | (bits & ~is_tiny);
  return bits_as<Vec<float> >(bits | sign);
}

/// As many numbers as a vector of floats has.
template <class T>
MHA_INLINE void widen_vector(const std::uint16_t* from, bool bf16, T* to) {
  const IntVec<float> x = load_16_bits(from);
  const Vec<float> y = bf16 ? from_bf16(x) : from_f16(x);
  if constexpr (sizeof(T) == sizeof(float)) {
    store(to, y);
  } else {
    float plain[Simd<float>::kCount];
    store(plain, y);
    for (int l = 0; l < Simd<float>::kCount; ++l) to[l] = static_cast<T>(plain[l]);
  }
}

/// Kernels::widen.
template <class T>
void widen(const std::uint16_t* from, Index from_row, Index rows, Index cols, bool bf16, T* to,
           Index to_row) {
  constexpr int kCount = Simd<float>::kCount;
  constexpr Index kLine = 32;         // numbers of a cache line
  constexpr Index kRowsFetched = 12;  // ahead of their use
  for (Index r = 0; r < rows; ++r, from += from_row, to += to_row) {
    for (Index c = 0; c < cols; c += kLine) MHA_PREFETCH(from + kRowsFetched * from_row + c, 3);
    Index c = 0;
    for (; c + kCount <= cols; c += kCount) widen_vector(from + c, bf16, to + c);
    if (c == cols) continue;
    std::uint16_t rest[kCount] = {};
    T wide[kCount];
    for (Index l = 0; c + l < cols; ++l) rest[l] = from[c + l];
    widen_vector(rest, bf16, wide);
    for (Index l = 0; c + l < cols; ++l) to[c + l] = wide[l];
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
