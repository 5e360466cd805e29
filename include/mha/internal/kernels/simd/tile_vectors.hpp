// SPDX-License-Identifier: MIT
//
// Vectors of this target: the compiler's own vector types, on which arithmetic and comparisons are
// built in, or, where a compiler has none (MHA_VECTOR_TYPES 0), a struct of lanes with the same
// operators. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

/// memcpy, which is no function here.
MHA_INLINE void copy_bytes(void* to, const void* from, std::size_t bytes) {
#if defined(__GNUC__)
  __builtin_memcpy(to, from, bytes);
#else
  std::memcpy(to, from, bytes);
#endif
}

#if MHA_VECTOR_TYPES

template <class T>
struct Simd {
  static constexpr int kCount = MHA_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using Vec __attribute__((vector_size(MHA_VECTOR_BYTES))) = T;
  using Unaligned __attribute__((vector_size(MHA_VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
  using Int __attribute__((vector_size(MHA_VECTOR_BYTES))) = int_of<T>;
  using Unsigned __attribute__((vector_size(MHA_VECTOR_BYTES))) = std::make_unsigned_t<int_of<T>>;
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

/// The bits of one vector as another of the same size.
template <class To, class From>
MHA_INLINE To bits_as(From v) {
  return reinterpret_cast<To>(v);
}

#else

/// Lanes, one by one.
template <class T>
struct alignas(MHA_VECTOR_BYTES) Pack {
  static constexpr int kCount = MHA_VECTOR_BYTES / static_cast<int>(sizeof(T));
  T v[std::size_t{kCount}];

  MHA_INLINE T operator[](int l) const { return v[l]; }
};

#define MHA_PACK_OPERATOR(op)                                          \
  template <class T>                                                   \
  MHA_INLINE Pack<T> operator op(const Pack<T>& a, const Pack<T>& b) { \
    Pack<T> result;                                                    \
    MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) {             \
      result.v[l] = static_cast<T>(a.v[l] op b.v[l]);                  \
    }                                                                  \
    return result;                                                     \
  }                                                                    \
  template <class T>                                                   \
  MHA_INLINE Pack<T>& operator op##=(Pack<T>& a, const Pack<T>& b) {   \
    return a = a op b;                                                 \
  }
MHA_PACK_OPERATOR(+)
MHA_PACK_OPERATOR(-)
MHA_PACK_OPERATOR(*)
MHA_PACK_OPERATOR(/)
MHA_PACK_OPERATOR(&)
MHA_PACK_OPERATOR(|)
MHA_PACK_OPERATOR(^)
#undef MHA_PACK_OPERATOR

#define MHA_PACK_SHIFT(op)                                             \
  template <class T>                                                   \
  MHA_INLINE Pack<T> operator op(const Pack<T>& a, int bits) {         \
    using Bits = std::make_unsigned_t<T>;                              \
    Pack<T> result;                                                    \
    MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) {             \
      result.v[l] = static_cast<T>(static_cast<Bits>(a.v[l]) op bits); \
    }                                                                  \
    return result;                                                     \
  }
MHA_PACK_SHIFT(<<)
MHA_PACK_SHIFT(>>)
#undef MHA_PACK_SHIFT

/// All bits of the lanes whose answer is yes, no bit of the others.
#define MHA_PACK_COMPARISON(op)                                                \
  template <class T>                                                           \
  MHA_INLINE Pack<int_of<T>> operator op(const Pack<T>& a, const Pack<T>& b) { \
    Pack<int_of<T>> result;                                                    \
    MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) {                     \
      result.v[l] = a.v[l] op b.v[l] ? int_of<T>(-1) : int_of<T>(0);           \
    }                                                                          \
    return result;                                                             \
  }
MHA_PACK_COMPARISON(<)
MHA_PACK_COMPARISON(>)
MHA_PACK_COMPARISON(>=)
MHA_PACK_COMPARISON(==)
MHA_PACK_COMPARISON(!=)
#undef MHA_PACK_COMPARISON

template <class T>
MHA_INLINE Pack<T> operator~(const Pack<T>& a) {
  Pack<T> result;
  MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) result.v[l] = static_cast<T>(~a.v[l]);
  return result;
}

template <class T>
struct Simd {
  static constexpr int kCount = Pack<T>::kCount;
  using Vec = Pack<T>;
  using Int = Pack<int_of<T>>;
  using Unsigned = Pack<std::make_unsigned_t<int_of<T>>>;
};

template <class T>
using Vec = Pack<T>;
template <class T>
using IntVec = Pack<int_of<T>>;

template <class T>
MHA_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  copy_bytes(v.v, p, sizeof(v));
  return v;
}
template <class T>
MHA_INLINE IntVec<T> load_int(const int_of<T>* p) {
  return load(p);
}
template <class T>
MHA_INLINE void store(T* p, const Vec<T>& v) {
  copy_bytes(p, v.v, sizeof(v));
}
template <class T>
MHA_INLINE void store_int(int_of<T>* p, const IntVec<T>& v) {
  store(p, v);
}

template <class To, class From>
MHA_INLINE To bits_as(const From& v) {
  To result;
  copy_bytes(result.v, v.v, sizeof(result));
  return result;
}

#endif

/// Every lane x.
template <class T>
MHA_INLINE Vec<T> all(T x) {
#if MHA_VECTOR_TYPES
  return x - Vec<T>{};  // exact, also for -0 and NaN
#else
  Vec<T> v;
  MHA_UNROLL for (T& lane : v.v) lane = x;
  return v;
#endif
}
template <class T>
MHA_INLINE IntVec<T> all_int(int_of<T> x) {
#if MHA_VECTOR_TYPES
  return x - IntVec<T>{};
#else
  return all(x);
#endif
}

// Where a number, or a vector of numbers, is kept by the processor.
#if !defined(__GNUC__)
#define MHA_REGISTER 0
#elif defined(__x86_64__) && MHA_VECTOR_BYTES == 64
#define MHA_REGISTER "+v"
#elif defined(__SSE2__)
#define MHA_REGISTER "+x"
#elif defined(__aarch64__)
#define MHA_REGISTER "+w"
#elif !MHA_VECTOR_TYPES && (defined(__riscv_flen) || defined(__s390x__))
#define MHA_REGISTER "+f"
#else
#define MHA_REGISTER "+m"
#endif

/// Hides a value from the optimiser: what was rounded on purpose is not simplified away, whatever
/// the user's -ffast-math allows.
template <class V>
MHA_INLINE void keep_rounding(V& v) {
#if !defined(__GNUC__)
  (void)v;
#elif MHA_VECTOR_TYPES
  asm("" : MHA_REGISTER(v));
#else
  if constexpr (std::is_integral_v<V>) {
    asm("" : "+r"(v));
  } else if constexpr (std::is_floating_point_v<V>) {
    asm("" : MHA_REGISTER(v));
  } else {
    MHA_UNROLL for (auto& lane : v.v) keep_rounding(lane);
  }
#endif
}
#undef MHA_REGISTER

/// The larger lane by lane; b where the two are unordered. One instruction on x86, which compilers
/// do not find by themselves, since it is not symmetric.
template <class T>
MHA_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
#if MHA_VECTOR_TYPES && defined(__x86_64__)
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
#elif MHA_VECTOR_TYPES
  return a > b ? a : b;
#else
  MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l];
  return a;
#endif
}

/// The smaller lane by lane.
template <class T>
MHA_INLINE IntVec<T> smaller_int(IntVec<T> a, IntVec<T> b) {
#if MHA_VECTOR_TYPES
  return a < b ? a : b;
#else
  MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) a.v[l] = a.v[l] < b.v[l] ? a.v[l] : b.v[l];
  return a;
#endif
}

/// The bits of -infinity.
template <class T>
inline constexpr int_of<T> kMinusInfinityBits = sizeof(T) == 4
                                                    ? static_cast<int_of<T>>(0xFF800000u)
                                                    : static_cast<int_of<T>>(0xFFF0000000000000u);

/// -infinity, from its bits: compilers that assume there is none leave integers alone.
template <class T>
MHA_INLINE Vec<T> minus_infinity() {
  IntVec<T> bits = all_int<T>(kMinusInfinityBits<T>);
  keep_rounding(bits);
  return bits_as<Vec<T>>(bits);
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
#if MHA_VECTOR_TYPES
  return mask ? a : b;
#else
  MHA_UNROLL for (int l = 0; l < Pack<T>::kCount; ++l) a.v[l] = mask.v[l] != 0 ? a.v[l] : b.v[l];
  return a;
#endif
}

}  // namespace mha::kernels::MHA_TARGET
#endif
