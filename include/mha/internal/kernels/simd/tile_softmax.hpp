// SPDX-License-Identifier: MIT
//
// The running softmax of a tile of scores:
//     P = e^(S - row_max),   row_sum = sum of P
// where row_max is the maximum so far, or little less: see risen().
// A lane is a query: maxima and sums run down the rows of the panel, lane by lane, and nothing is
// ever summed across lanes. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

/// scale * 2^r for |r| <= 1/2, by a near-minimax polynomial with constant term 1.
template <class T>
MHA_INLINE Vec<T> exp2_fraction(Vec<T> r, T scale) {
  Vec<T> p;
  if constexpr (sizeof(T) == 4) {
    p = all<T>(1.3264739e-3f * scale);
    p = p * r + all<T>(9.6715167e-3f * scale);
    p = p * r + all<T>(5.5507336e-2f * scale);
    p = p * r + all<T>(2.4022242e-1f * scale);
    p = p * r + all<T>(6.9314700e-1f * scale);
  } else {
    p = all<T>(4.4549605981865186e-10 * scale);
    p = p * r + all<T>(7.0725859492692234e-09 * scale);
    p = p * r + all<T>(1.0178062445845774e-07 * scale);
    p = p * r + all<T>(1.3215442587921689e-06 * scale);
    p = p * r + all<T>(1.5252733829836119e-05 * scale);
    p = p * r + all<T>(1.5403530441736051e-04 * scale);
    p = p * r + all<T>(1.3333558146416936e-03 * scale);
    p = p * r + all<T>(9.6181291076068882e-03 * scale);
    p = p * r + all<T>(5.5504108664821597e-02 * scale);
    p = p * r + all<T>(2.4022650695910097e-01 * scale);
    p = p * r + all<T>(6.9314718055994529e-01 * scale);
  }
  p = p * r + all<T>(scale);
  return p;
}

/// log2(e).
template <class T>
inline constexpr T kLog2E = static_cast<T>(1.44269504088896340736L);

/// e^x for x <= 44 (float) or 354 (double); exactly 1 at 0, exactly 0 where it is below 2^-63.5
/// (2^-511.5), NaN for NaN. Its relative error is at most 1.75e-7 + 1.4e-8 |x| in float, 1.5e-16 +
/// 1.5e-17 |x| in double; without fused multiply-adds 2e-7 + 7.4e-8 |x| and 2e-16 + 1.3e-16 |x|
/// (test_kernels.cpp measures it).
/// x log2(e) = n + r with an integer n and |r| <= 1/2: 2^n is put together as bits, 2^r is a
/// polynomial with constant term 1, near-minimax. Smaller weights count as 0, since what they would be
/// multiplied with and added to would soon be subnormal: a hundred times slower, for nothing.
template <class T>
MHA_INLINE Vec<T> exp_of(Vec<T> x) {
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kExponents = kFloat ? T(64) : T(512);
  constexpr T kLowest = kFloat ? T(-44.375) : T(-355);  // just below -kExponents ln(2)
  constexpr int kFractionBits = kFloat ? 23 : 52;
  // Adding 1.5 * 2^fraction rounds to an integer, which then stands in the low bits; with kExponents
  // added, they are the exponent of 2^n, down to 0 for n = -kExponents. What is missing to the
  // exponent's bias is a factor of the polynomial.
  constexpr T kRound = (kFloat ? T(12582912) : T(6755399441055744)) + kExponents;
  constexpr T kBias = kFloat ? T(0x1p63) : T(0x1p511);
  x = larger<T>(all<T>(kLowest), x);  // in this order: NaN stays
  Vec<T> shifted = x * all(kLog2E<T>) + all<T>(kRound);
  keep_rounding(shifted);
  Vec<T> n = shifted - all<T>(kRound);
  keep_rounding(n);
  const Vec<T> r = x * all(kLog2E<T>) - n;
  const Vec<T> p = exp2_fraction<T>(r, kBias);
  const IntVec<T> bits = bits_as<IntVec<T> >(shifted) << kFractionBits;
  return p * bits_as<Vec<T> >(bits);
}

/// The same down to the smallest subnormal number, for double: 2^n in two factors. Gradients through
/// weights that small may stand alone. For float, whose products would meet subnormal numbers in
/// practice, exp_of().
template <class T>
MHA_INLINE Vec<T> exp_far(Vec<T> x) {
  if constexpr (sizeof(T) == 4) {
    return exp_of<T>(x);
  } else {
    constexpr T kRound = T(6755399441055744);  // 1.5 * 2^52, as in exp_of()
    x = larger<T>(all<T>(-762), x);            // in this order: NaN stays; below, e^x is 0
    Vec<T> n = x * all(kLog2E<T>) + all<T>(kRound);
    keep_rounding(n);
    n = n - all<T>(kRound);
    keep_rounding(n);
    const Vec<T> near = larger<T>(all<T>(-512), n);
    Vec<T> first = near + all<T>(kRound + T(1023));
    keep_rounding(first);
    Vec<T> second = n - near + all<T>(kRound + T(1023));
    keep_rounding(second);
    const Vec<T> p = exp2_fraction<T>(x * all(kLog2E<T>) - n, T(1)) *
                     bits_as<Vec<T> >(bits_as<IntVec<T> >(first) << 52);
    return p * bits_as<Vec<T> >(bits_as<IntVec<T> >(second) << 52);
  }
}

/// row_max, or 0 where it is -infinity: nothing was seen, or only scores of -infinity. Told by the
/// bits, which -ffast-math leaves alone.
template <class T>
MHA_INLINE Vec<T> finite_or_zero(Vec<T> row_max) {
  const IntVec<T> empty = bits_as<IntVec<T> >(row_max) == all_int<T>(kMinusInfinityBits<T>);
  return select<T>(empty, Vec<T>{}, row_max);
}

/// The reference that weights are taken from: it follows the maximum only when left behind by more
/// than a factor of e^8, so that earlier results are rarely rescaled. Any reference near the maximum
/// gives the same softmax.
template <class T>
MHA_INLINE Vec<T> risen(Vec<T> reference, Vec<T> most) {
  constexpr T kSlack = T(8);
  const IntVec<T> behind = most > reference + all<T>(kSlack);
  const IntVec<T> empty = bits_as<IntVec<T> >(reference) == all_int<T>(kMinusInfinityBits<T>);
  return select<T>(behind | empty, most, reference);
}

/// fold_max() for W vectors, all of whose entries count.
template <class T, int W>
MHA_INLINE void fold_max_columns(const T* s, Index keys, T* row_max) {
  constexpr int kCount = Simd<T>::kCount;
  Vec<T> even[std::size_t{W}];
  Vec<T> odd[std::size_t{W}];  // two chains, so that each waits half as long
  MHA_UNROLL for (int w = 0; w < W; ++w) even[w] = odd[w] = minus_infinity<T>();
  Index j = 0;
  for (; j + 2 <= keys; j += 2, s += 2 * kLanes<T>) {
    MHA_UNROLL for (int w = 0; w < W; ++w) {
      even[w] = larger<T>(load(s + w * kCount), even[w]);
      odd[w] = larger<T>(load(s + kLanes<T> + w * kCount), odd[w]);
    }
  }
  MHA_UNROLL for (int w = 0; w < W; ++w) {
    if (j < keys) even[w] = larger<T>(load(s + w * kCount), even[w]);
    store(row_max + w * kCount, larger<T>(load(row_max + w * kCount), larger<T>(odd[w], even[w])));
  }
}

/// Kernels::fold_max.
template <class T>
void fold_max(T* s, Index keys, Index vectors, T* row_max, const int_of<T>* begin,
              const int_of<T>* end, Index first) {
  constexpr Index kCount = Simd<T>::kCount;
  Index w = 0;
  if (begin == nullptr) {
    for (; w + 4 <= vectors; w += 4) {
      fold_max_columns<T, 4>(s + w * kCount, keys, row_max + w * kCount);
    }
    for (; w < vectors; ++w) fold_max_columns<T, 1>(s + w * kCount, keys, row_max + w * kCount);
    return;
  }
  const Vec<T> masked = minus_infinity<T>();
  for (; w < vectors; ++w) {
    const Index lane = w * kCount;
    T* column = s + lane;
    Vec<T> most = load(row_max + lane);
    const IntVec<T> from = load_int<T>(begin + lane);
    const IntVec<T> to = load_int<T>(end + lane);
    for (Index j = 0; j < keys; ++j, column += kLanes<T>) {
      const IntVec<T> position = all_int<T>(static_cast<int_of<T> >(first + j));
      const IntVec<T> allowed = (position >= from) & (position < to);
      const Vec<T> x = select<T>(allowed, load(column), masked);
      store(column, x);
      most = larger<T>(x, most);
    }
    store(row_max + lane, most);
  }
}

/// Kernels::raise.
template <class T>
bool raise(const T* tile_max, T* row_max, T* correction, Index vectors) {
  constexpr Index kCount = Simd<T>::kCount;
  IntVec<T> changed = {};
  for (Index w = 0; w < vectors; ++w) {
    const Vec<T> from = load(row_max + w * kCount);
    const Vec<T> to = risen<T>(from, load(tile_max + w * kCount));
    store(row_max + w * kCount, to);
    store(correction + w * kCount, exp_of<T>(from - finite_or_zero<T>(to)));
    changed |= bits_as<IntVec<T> >(from) != bits_as<IntVec<T> >(to);
  }
  return any_bit<T>(changed);
}

/// exponentiate() for W vectors at once.
template <class T, int W>
MHA_INLINE void exponentiate_columns(T* s, Index keys, const T* row_max, T* tile_sum) {
  constexpr int kCount = Simd<T>::kCount;
  Vec<T> most[std::size_t{W}];
  Vec<T> sum[std::size_t{W}];
  MHA_UNROLL for (int w = 0; w < W; ++w) {
    most[w] = finite_or_zero<T>(load(row_max + w * kCount));
    sum[w] = load(tile_sum + w * kCount);
  }
  for (Index j = 0; j < keys; ++j, s += kLanes<T>) {
    MHA_UNROLL for (int w = 0; w < W; ++w) {
      const Vec<T> p = exp_of<T>(load(s + w * kCount) - most[w]);
      store(s + w * kCount, p);
      sum[w] += p;
    }
  }
  MHA_UNROLL for (int w = 0; w < W; ++w) store(tile_sum + w * kCount, sum[w]);
}

/// Kernels::exponentiate.
template <class T>
void exponentiate(T* s, Index keys, Index vectors, const T* row_max, T* tile_sum) {
  constexpr Index kCount = Simd<T>::kCount;
  Index lane = 0;
  for (; vectors >= 4; vectors -= 4, lane += 4 * kCount) {
    exponentiate_columns<T, 4>(s + lane, keys, row_max + lane, tile_sum + lane);
  }
  for (; vectors > 0; --vectors, lane += kCount) {
    exponentiate_columns<T, 1>(s + lane, keys, row_max + lane, tile_sum + lane);
  }
}

/// Kernels::exponentiate_rows.
template <class T>
void exponentiate_rows(T* s, Index s_row, Index rows, Index keys, T* row_max, T* row_sum,
                       T* correction) {
  constexpr Index kCount = Simd<T>::kCount;
  const Index vectors = (keys + kCount - 1) / kCount;
  for (Index r = 0; r < rows; ++r) {
    T* const row = s + r * s_row;
    Vec<T> most = minus_infinity<T>();
    for (Index w = 0; w < vectors; ++w) most = larger<T>(load(row + w * kCount), most);
    Vec<T> lane = all(T(most[0]));
    for (int l = 1; l < Simd<T>::kCount; ++l) lane = larger<T>(all(T(most[l])), lane);
    lane = risen<T>(all(row_max[r]), lane);
    const Vec<T> shift = finite_or_zero<T>(lane);
    const Vec<T> factor = exp_of<T>(all(row_max[r]) - shift);
    Vec<T> corrected = all(row_sum[r]) * factor;
    keep_rounding(corrected);  // rounded here, as where a lane is a query
    correction[r] = factor[0];
    row_max[r] = lane[0];
    row_sum[r] = corrected[0];
    for (Index w = 0; w < vectors; ++w) {
      store(row + w * kCount, exp_of<T>(load(row + w * kCount) - shift));
    }
  }
  // The sums run over the keys in order, one after the other: four rows at a time hide the wait.
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    const T* const row = s + r * s_row;
    T sum[4] = {};
    for (Index j = 0; j < keys; ++j) {
      MHA_UNROLL for (int k = 0; k < 4; ++k) sum[k] += row[k * s_row + j];
    }
    MHA_UNROLL for (int k = 0; k < 4; ++k) row_sum[r + k] += sum[k];
  }
  for (; r < rows; ++r) {
    T sum(0);
    for (Index j = 0; j < keys; ++j) sum += s[r * s_row + j];
    row_sum[r] += sum;
  }
}

/// Kernels::invert.
template <class T>
void invert(const T* x, const int_of<T>* used, T* inverse, Index vectors) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index l = 0; l < vectors * kCount; l += kCount) {
    const IntVec<T> unused = load_int<T>(used + l) == IntVec<T>{};
    store(inverse + l, select<T>(unused, Vec<T>{}, all<T>(1) / load(x + l)));
  }
}

/// Kernels::rescale.
template <class T>
void rescale(T* x, Index rows, Index vectors, const T* factor) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index w = 0; w < vectors; ++w) {
    const Vec<T> f = load(factor + w * kCount);
    T* column = x + w * kCount;
    for (Index r = 0; r < rows; ++r, column += kLanes<T>) store(column, load(column) * f);
  }
}

/// Kernels::end_row. Not by adding 0, which may be fused with the product.
template <class T>
void end_row(T* x, Index vectors, T factor) {
  constexpr Index kCount = Simd<T>::kCount;
  const Vec<T> f = all(factor);
  for (Index w = 0; w < vectors; ++w, x += kCount) {
    const IntVec<T> bits = bits_as<IntVec<T> >(load(x) * f);
    store(x, bits_as<Vec<T> >(bits & ~((bits << 1) == IntVec<T>{})));
  }
}

/// Kernels::add.
template <class T>
void add(T* x, Index x_row, Index rows, Index vectors, const T* part) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index r = 0; r < rows; ++r, x += x_row, part += kLanes<T>) {
    for (Index l = 0; l < vectors * kCount; l += kCount) store(x + l, load(x + l) + load(part + l));
  }
}

/// One entry of a merge: total * f + part * g, with the same rounding everywhere.
template <class V>
MHA_INLINE V weighted(V total, V f, V part, V g) {
  V first = total * f;
  keep_rounding(first);
  V second = part * g;
  keep_rounding(second);
  return first + second;
}

/// Kernels::merge.
template <class T>
void merge(T* total, T* total_max, T* total_sum, const T* part, const T* part_max,
           const T* part_sum, Index rows, Index vectors) {
  constexpr Index kCount = Simd<T>::kCount;
  for (Index w = 0; w < vectors; ++w) {
    const Index lane = w * kCount;
    const Vec<T> a = load(total_max + lane);
    const Vec<T> b = load(part_max + lane);
    const Vec<T> most = larger<T>(b, a);
    const Vec<T> shift = finite_or_zero<T>(most);
    const Vec<T> f = exp_of<T>(a - shift);
    const Vec<T> g = exp_of<T>(b - shift);
    store(total_max + lane, most);
    store(total_sum + lane, weighted(load(total_sum + lane), f, load(part_sum + lane), g));
    for (Index r = 0; r < rows; ++r) {
      T* const at = total + r * kLanes<T> + lane;
      store(at, weighted(load(at), f, load(part + r * kLanes<T> + lane), g));
    }
  }
}

/// Kernels::all_finite. Told by the exponents' bits.
template <class T>
bool all_finite(const T* x, Index row_stride, Index col_stride, Index rows, Index cols) {
  constexpr Index kCount = Simd<T>::kCount;
  constexpr int_of<T> kExponent = sizeof(T) == 4 ? static_cast<int_of<T> >(0x7F800000)
                                                 : static_cast<int_of<T> >(0x7FF0000000000000);
  IntVec<T> special = {};
  bool any = false;
  for (Index r = 0; r < rows; ++r) {
    const T* const row = x + r * row_stride;
    Index c = 0;
    if (col_stride == 1) {
      for (; c + kCount <= cols; c += kCount) {
        const auto bits = bits_as<IntVec<T> >(load(row + c));
        special |= (bits & all_int<T>(kExponent)) == all_int<T>(kExponent);
      }
    }
    for (; c < cols; ++c) any |= !mha::detail::is_finite(row[c * col_stride]);
  }
  return !any && !any_bit<T>(special);
}

/// tanh(x) to a few units in the last place, NaN for NaN. Near 0 by Cephes' approximations (Moshier
/// 1989: tanhf.c, tanh.c), else (1 - t) / (1 + t) with t = e^(-2 |x|).
template <class T>
MHA_INLINE Vec<T> tanh_of(Vec<T> x) {
  constexpr int_of<T> kSign = sizeof(T) == 4 ? static_cast<int_of<T> >(0x80000000u)
                                             : static_cast<int_of<T> >(0x8000000000000000u);
  const IntVec<T> sign = bits_as<IntVec<T> >(x) & all_int<T>(kSign);
  const auto size = bits_as<Vec<T> >(bits_as<IntVec<T> >(x) ^ sign);
  const Vec<T> t = exp_of<T>(size * all<T>(-2));
  const Vec<T> far = (all<T>(1) - t) / (all<T>(1) + t);
  const Vec<T> z = size * size;
  Vec<T> near;
  if constexpr (sizeof(T) == 4) {
    near = all<T>(-5.70498872745e-3f);
    near = near * z + all<T>(2.06390887954e-2f);
    near = near * z + all<T>(-5.37397155531e-2f);
    near = near * z + all<T>(1.33314422036e-1f);
    near = near * z + all<T>(-3.33332819422e-1f);
  } else {
    Vec<T> top = all<T>(-9.64399179425052238628e-1);
    top = top * z + all<T>(-9.92877231001918586564e1);
    top = top * z + all<T>(-1.61468768441708447952e3);
    Vec<T> bottom = z + all<T>(1.12811678491632931402e2);
    bottom = bottom * z + all<T>(2.23548839060100448583e3);
    bottom = bottom * z + all<T>(4.84406305325125486048e3);
    near = top / bottom;
  }
  near = near * z * size + size;
  const Vec<T> result = select<T>(size < all<T>(T(0.625)), near, far);
  return bits_as<Vec<T> >(bits_as<IntVec<T> >(result) | sign);
}

/// Kernels::softcap.
template <class T>
void softcap(T* s, Index rows, Index row_stride, Index vectors, T cap) {
  constexpr Index kCount = Simd<T>::kCount;
  const Vec<T> caps = all(cap);
  for (Index r = 0; r < rows; ++r) {
    for (Index w = 0; w < vectors; ++w) {
      T* const at = s + r * row_stride + w * kCount;
      store(at, caps * tanh_of<T>(load(at) / caps));
    }
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
