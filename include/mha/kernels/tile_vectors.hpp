// SPDX-License-Identifier: MIT
//
// Vectors of this target, as the compiler's own vector types: arithmetic, comparisons and `?:` on
// them are built in. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/kernels/targets.hpp"
#else
namespace mha::kernels::MHA_TARGET {

template <class T>
struct Simd {
  static constexpr int kCount = MHA_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using Vec __attribute__((vector_size(MHA_VECTOR_BYTES))) = T;
  using Unaligned __attribute__((vector_size(MHA_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
  using Int __attribute__((vector_size(MHA_VECTOR_BYTES))) = int_of<T>;
  using Unsigned __attribute__((vector_size(MHA_VECTOR_BYTES))) = std::make_unsigned_t<int_of<T> >;
  using UnalignedInt __attribute__((vector_size(MHA_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) =
      int_of<T>;
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using IntVec = typename Simd<T>::Int;

template <class T>
MHA_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}
template <class T>
MHA_INLINE IntVec<T> load_int(const int_of<T>* p) {
  return *reinterpret_cast<const typename Simd<T>::UnalignedInt*>(p);
}
template <class T>
MHA_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}
template <class T>
MHA_INLINE void store_int(int_of<T>* p, IntVec<T> v) {
  *reinterpret_cast<typename Simd<T>::UnalignedInt*>(p) = v;
}

/// Every lane x.
template <class T>
MHA_INLINE Vec<T> all(T x) {
  return x - Vec<T>{};  // exact, also for -0 and NaN
}
template <class T>
MHA_INLINE IntVec<T> all_int(int_of<T> x) {
  return x - IntVec<T>{};
}

/// Hides a value from the optimiser: what was rounded on purpose is not simplified away, whatever
/// the user's -ffast-math allows.
template <class V>
MHA_INLINE void keep_rounding(V& v) {
#if defined(__x86_64__) && MHA_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#else
  asm("" : "+w"(v));
#endif
}

/// The larger lane by lane; b where the two are unordered. One instruction on x86, which compilers
/// do not find by themselves, since it is not symmetric.
template <class T>
MHA_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
#if defined(__x86_64__)
#if MHA_VECTOR_BYTES == 16 && !defined(__AVX__)
  if constexpr (sizeof(T) == 4) {
    asm("maxps %1, %0" : "+x"(a) : "x"(b));
  } else {
    asm("maxpd %1, %0" : "+x"(a) : "x"(b));
  }
  return a;
#elif MHA_VECTOR_BYTES < 64
  if constexpr (sizeof(T) == 4) {
    asm("vmaxps %2, %1, %0" : "=x"(a) : "x"(a), "x"(b));
  } else {
    asm("vmaxpd %2, %1, %0" : "=x"(a) : "x"(a), "x"(b));
  }
  return a;
#else
  if constexpr (sizeof(T) == 4) {
    asm("vmaxps %2, %1, %0" : "=v"(a) : "v"(a), "v"(b));
  } else {
    asm("vmaxpd %2, %1, %0" : "=v"(a) : "v"(a), "v"(b));
  }
  return a;
#endif
#else
  return a > b ? a : b;
#endif
}

/// The bits of -infinity.
template <class T>
inline constexpr int_of<T> kMinusInfinityBits = sizeof(T) == 4
                                                    ? static_cast<int_of<T> >(0xFF800000u)
                                                    : static_cast<int_of<T> >(0xFFF0000000000000u);

/// -infinity, from its bits: compilers that assume there is none leave integers alone.
template <class T>
MHA_INLINE Vec<T> minus_infinity() {
  IntVec<T> bits = all_int<T>(kMinusInfinityBits<T>);
  keep_rounding(bits);
  return reinterpret_cast<Vec<T> >(bits);
}

/// Whether any bit of any lane is set. Through an array: a vector whose lane is read by a variable
/// number lies in memory, where g++ 12's address sanitizer may misalign it (GCC bug 110027).
template <class T>
MHA_INLINE bool any_bit(IntVec<T> v) {
  int_of<T> lanes[std::size_t{Simd<T>::kCount}];
  store_int<T>(lanes, v);
  int_of<T> any = 0;
  for (int l = 0; l < Simd<T>::kCount; ++l) any |= lanes[l];
  return any != 0;
}

/// Lanes of `a` where the mask is set, else of `b`.
template <class T>
MHA_INLINE Vec<T> select(IntVec<T> mask, Vec<T> a, Vec<T> b) {
  return mask ? a : b;
}

}  // namespace mha::kernels::MHA_TARGET
#endif
