// SPDX-License-Identifier: MIT
//
// Sixteen numbers at once: what a score modifier of yours may be written over, so that it runs on
// whole vectors:
//     score_mod([slope](mha::Lanes<float> s, Index b, Index h, mha::Lanes<int> i, mha::Lanes<int> j) {
//       return s - slope * abs(i - j);
//     });
// Arithmetic, comparisons, select, abs, min and max work lane by lane; a plain number stands for
// sixteen equal ones. They are loops of fixed length over plain arrays, which compilers turn into
// vectors of whatever instruction set the loop is inlined into.
#pragma once

#include "mha/internal/support/language.hpp"

#include <concepts>
#include <type_traits>

namespace mha::inline MHA_ABI {

#if defined(__GNUC__)
#define MHA_LANES_INLINE [[gnu::always_inline]] inline
#else
#define MHA_LANES_INLINE inline
#endif

/// Sixteen numbers.
template <class T>
struct Lanes {
  static constexpr int kCount = 16;
  using Number = T;
  T v[kCount];

  Lanes() = default;
  /// All equal.
  template <class U>
  requires std::is_arithmetic_v<U> MHA_LANES_INLINE Lanes(U x) {  // NOLINT: a number is sixteen
    for (T& lane : v) lane = static_cast<T>(x);
  }
  /// Converted one by one: positions to scores, say.
  template <class U>
  requires(!std::is_same_v<U, T>) MHA_LANES_INLINE explicit Lanes(const Lanes<U>& x) {
    for (int l = 0; l < kCount; ++l) v[l] = static_cast<T>(x.v[l]);
  }
  MHA_LANES_INLINE T operator[](int l) const { return v[l]; }
  MHA_LANES_INLINE T& operator[](int l) { return v[l]; }
};

/// Sixteen answers.
struct LaneMask {
  bool v[16];
  MHA_LANES_INLINE bool operator[](int l) const { return v[l]; }
};

namespace detail {

template <class T>
inline constexpr bool is_lanes = false;
template <class T>
inline constexpr bool is_lanes<Lanes<T>> = true;

template <class T>
struct LaneNumber {
  using Type = T;
};
template <class T>
struct LaneNumber<Lanes<T>> {
  using Type = T;
};

/// What `a op b` has: the floating-point type among the two if there is one (that of the lanes, if
/// both are), else their common one.
template <class A, class B>
struct LaneCommon {
  using Left = typename LaneNumber<A>::Type;
  using Right = typename LaneNumber<B>::Type;
  using Type =
      std::conditional_t<is_lanes<A> && std::is_floating_point_v<Left> &&
                             (!is_lanes<B> || !std::is_floating_point_v<Right>),
                         Left,
                         std::conditional_t<is_lanes<B> && std::is_floating_point_v<Right> &&
                                                (!is_lanes<A> || !std::is_floating_point_v<Left>),
                                            Right, std::common_type_t<Left, Right>>>;
};
template <class A, class B>
using lane_common_t = typename LaneCommon<A, B>::Type;

template <class A, class B>
concept LanePair = (is_lanes<A> || is_lanes<B>)&&(is_lanes<A> || std::is_arithmetic_v<A>)&&(
    is_lanes<B> || std::is_arithmetic_v<B>);

template <class T, class A>
MHA_LANES_INLINE T lane(const A& a, int l) {
  if constexpr (is_lanes<A>) {
    return static_cast<T>(a.v[l]);
  } else {
    return static_cast<T>(a);
  }
}

}  // namespace detail

#define MHA_LANES_OPERATOR(op)                                                                \
  template <class A, class B>                                                                 \
  requires detail::LanePair<A, B> MHA_LANES_INLINE auto operator op(const A& a, const B& b) { \
    using T = detail::lane_common_t<A, B>;                                                    \
    Lanes<T> result;                                                                          \
    for (int l = 0; l < 16; ++l) {                                                            \
      result.v[l] = detail::lane<T>(a, l) op detail::lane<T>(b, l);                           \
    }                                                                                         \
    return result;                                                                            \
  }
MHA_LANES_OPERATOR(+)
MHA_LANES_OPERATOR(-)
MHA_LANES_OPERATOR(*)
MHA_LANES_OPERATOR(/)
#undef MHA_LANES_OPERATOR

#define MHA_LANES_COMPARISON(op)                                                                  \
  template <class A, class B>                                                                     \
  requires detail::LanePair<A, B> MHA_LANES_INLINE LaneMask operator op(const A& a, const B& b) { \
    using T = detail::lane_common_t<A, B>;                                                        \
    LaneMask result;                                                                              \
    for (int l = 0; l < 16; ++l) {                                                                \
      result.v[l] = detail::lane<T>(a, l) op detail::lane<T>(b, l);                               \
    }                                                                                             \
    return result;                                                                                \
  }
MHA_LANES_COMPARISON(<)
MHA_LANES_COMPARISON(<=)
MHA_LANES_COMPARISON(>)
MHA_LANES_COMPARISON(>=)
MHA_LANES_COMPARISON(==)
MHA_LANES_COMPARISON(!=)
#undef MHA_LANES_COMPARISON

template <class T>
MHA_LANES_INLINE Lanes<T> operator-(const Lanes<T>& a) {
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) result.v[l] = -a.v[l];
  return result;
}

template <class T>
MHA_LANES_INLINE Lanes<T> abs(const Lanes<T>& a) {
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) result.v[l] = a.v[l] < T(0) ? -a.v[l] : a.v[l];
  return result;
}

template <class A, class B>
requires detail::LanePair<A, B> MHA_LANES_INLINE auto min(const A& a, const B& b) {
  using T = detail::lane_common_t<A, B>;
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) {
    const T x = detail::lane<T>(a, l);
    const T y = detail::lane<T>(b, l);
    result.v[l] = y < x ? y : x;
  }
  return result;
}

template <class A, class B>
requires detail::LanePair<A, B> MHA_LANES_INLINE auto max(const A& a, const B& b) {
  using T = detail::lane_common_t<A, B>;
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) {
    const T x = detail::lane<T>(a, l);
    const T y = detail::lane<T>(b, l);
    result.v[l] = x < y ? y : x;
  }
  return result;
}

/// a where the answer is yes, else b.
template <class A, class B>
requires detail::LanePair<A, B> MHA_LANES_INLINE auto select(const LaneMask& mask, const A& a,
                                                             const B& b) {
  using T = detail::lane_common_t<A, B>;
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) {
    result.v[l] = mask.v[l] ? detail::lane<T>(a, l) : detail::lane<T>(b, l);
  }
  return result;
}

}  // namespace mha
