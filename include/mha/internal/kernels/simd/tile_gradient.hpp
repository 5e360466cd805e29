// SPDX-License-Identifier: MIT
//
// The backward pass of the softmax over a tile of weights, element by element:
//     dS = P o (dP - delta),   delta = sum of P o dP over the keys = dO . O
// A lane is a query, a row a key. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

/// Kernels::weights.
template <class T>
void weights(T* s, Index keys, Index vectors, const T* lse) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index w = 0; w < vectors; ++w) {
    const Vec<T> shift = finite_or_zero<T>(load(lse + w * kCount));
    T* column = s + w * kCount;
    for (Index j = 0; j < keys; ++j, column += kLanes<T>) {
      const Vec<T> score = load(column);
      const IntVec<T> masked = bits_as<IntVec<T> >(score) == all_int<T>(kMinusInfinityBits<T>);
      store(column, select<T>(masked, Vec<T>{}, exp_far<T>(score - shift)));
    }
  }
}

/// Numbers without sign, which may overflow, and their low 32 bits.
template <class T>
using Unsigned = typename Simd<T>::Unsigned;
template <class T>
MHA_INLINE Unsigned<T> low_32(Unsigned<T> x) {
  return x & bits_as<Unsigned<T> >(all_int<T>(static_cast<int_of<T> >(0xFFFFFFFFu)));
}
template <class T>
MHA_INLINE Unsigned<T> all_32(std::uint32_t x) {
  return low_32<T>(bits_as<Unsigned<T> >(all_int<T>(static_cast<int_of<T> >(x))));
}

/// All bits of the lanes whose weight of key j is kept, no bit of the others: DropoutRow::bits by
/// vectors. The threshold is not 0.
template <class T>
MHA_INLINE IntVec<T> kept_lanes(const DropoutLanes<T>& dropout, Index lane, Index j) {
  const std::uint32_t step = static_cast<std::uint32_t>(dropout.first_key + j) * 0x9E3779B9u;
  auto x = bits_as<Unsigned<T> >(load_int<T>(dropout.start + lane));
  x = low_32<T>(x + all_32<T>(step));
  x ^= x >> 16;
  x = low_32<T>(x * all_32<T>(0x85EBCA6Bu));
  x ^= x >> 13;
  x = low_32<T>(x * all_32<T>(0xC2B2AE35u));
  x ^= x >> 16;
  x ^= low_32<T>(bits_as<Unsigned<T> >(load_int<T>(dropout.twist + lane)));
  const auto last = static_cast<std::uint32_t>(dropout.threshold - 1);
  return bits_as<IntVec<T> >(x > all_32<T>(last));
}

/// Kernels::drop_gradient.
template <class T>
void drop_gradient(T* grad, Index keys, Index vectors, const DropoutLanes<T>& dropout, T scale) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index j = 0; j < keys; ++j) {
    for (Index w = 0; w < vectors; ++w) {
      T* const at = grad + j * kLanes<T> + w * kCount;
      const Vec<T> x = load(at) * all(scale);
      const bool none = dropout.threshold == 0;
      store(at, none ? x : select<T>(kept_lanes<T>(dropout, w * kCount, j), x, Vec<T>{}));
    }
  }
}

/// Kernels::drop.
template <class T>
void drop(T* s, Index keys, Index vectors, const DropoutLanes<T>& dropout) {
  drop_gradient<T>(s, keys, vectors, dropout, T(1));
}

/// Kernels::dot.
template <class T>
void dot(const T* a, const T* b, Index rows, Index vectors, T* sum) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index w = 0; w < vectors; ++w) {
    Vec<T> total = {};
    for (Index r = 0; r < rows; ++r) {
      const Index at = r * kLanes<T> + w * kCount;
      total += load(a + at) * load(b + at);
    }
    store(sum + w * kCount, total);
  }
}

/// `x` where `p` is not 0, else 0: told by the bits, which -ffast-math leaves alone.
template <class T>
MHA_INLINE Vec<T> where_weighed(Vec<T> p, Vec<T> x) {
  const IntVec<T> none = bits_as<IntVec<T> >(p) == IntVec<T>{};
  return select<T>(none, Vec<T>{}, x);
}

/// Kernels::weight_gradient.
template <class T>
void weight_gradient(const T* p, T* grad, Index keys, Index vectors, const T* delta) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index w = 0; w < vectors; ++w) {
    const Index lane = w * kCount;
    const Vec<T> d = load(delta + lane);
    for (Index j = 0; j < keys; ++j) {
      const Index at = j * kLanes<T> + lane;
      const Vec<T> weight = load(p + at);
      store(grad + at, where_weighed<T>(weight, weight * (load(grad + at) - d)));
    }
  }
}

/// Kernels::softcap_gradient.
template <class T>
void softcap_gradient(const T* capped, T* grad, Index keys, Index vectors, T cap) {
  constexpr Index kCount = Simd<T>::kCount;
  const Vec<T> caps = all(cap);
  for (Index j = 0; j < keys; ++j) {
    for (Index w = 0; w < vectors; ++w) {
      const Index at = j * kLanes<T> + w * kCount;
      const Vec<T> ratio = load(capped + at) / caps;
      const Vec<T> g = load(grad + at);
      store(grad + at, where_weighed<T>(g, g * (all<T>(1) - ratio * ratio)));
    }
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
