// SPDX-License-Identifier: MIT
//
// The one matrix product of the library: a register tile
//     C[R x W vectors] (+)= A[R x depth] B[depth x W vectors]
// that carries projections, scores and values. R * W accumulators stay in registers; each step of
// the depth loads W vectors of B, broadcasts R numbers of A from where they lie, at any strides, and
// does R * W multiply-adds. Each entry of C is one chain over the depth, so that its bits depend on
// nothing else that is computed beside it.
// Measured (AVX-512, 6 x 4 vectors, operands in the first-level cache): 0.95 to 0.97 of the peak at
// depths of 64 and 128. B and C must be aligned to 64 bytes for that: loads that straddle cache
// lines cost a tenth. Unrolling the depth slows it down.
// Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

inline constexpr Index kTileRows = MHA_TILE_ROWS;
inline constexpr Index kTileVectors = MHA_TILE_VECTORS;

/// Steps by which A is brought into the first-level cache ahead of its use: where a step of the depth
/// is a row further in memory each is another cache line, and multiply-adds that were issued for a
/// number that is not there yet are issued again. 4 to 8 gain 2 %.
inline constexpr Index kFetchAhead = 5;

/// One step of the depth: sum[r][w] += a[r * a_row] * b[w].
template <class T, int R, int W>
MHA_INLINE void multiply_add(Vec<T> (&sum)[std::size_t{R}][std::size_t{W}], const T* a, Index a_row,
                             const T* b) {
  constexpr int kCount = Simd<T>::kCount;
  Vec<T> row[std::size_t{W}];
  MHA_UNROLL for (int w = 0; w < W; ++w) row[w] = load(b + w * kCount);
  MHA_UNROLL for (int r = 0; r < R; ++r) {
    const Vec<T> factor = all(a[r * a_row]);
    MHA_UNROLL for (int w = 0; w < W; ++w) sum[r][w] += factor * row[w];
  }
}

/// What the sums of a strip of C begin with.
template <class T, int R, int W>
MHA_INLINE void start_sums(Vec<T> (&sum)[std::size_t{R}][std::size_t{W}], const Product<T>& x,
                           const T* c) {
  constexpr int kCount = Simd<T>::kCount;
  if (x.accumulate) {
    MHA_UNROLL for (int r = 0; r < R; ++r) {
      MHA_UNROLL for (int w = 0; w < W; ++w) sum[r][w] = load(c + w * kCount);
      c += x.c_row;
      MHA_MOVING_POINTER(c);  // one pointer that moves, not R * W addresses kept in memory
    }
  } else {
    MHA_UNROLL for (int w = 0; w < W; ++w) {
      const Vec<T> start = x.start != nullptr ? load(x.start + w * kCount) : Vec<T>{};
      MHA_UNROLL for (int r = 0; r < R; ++r) sum[r][w] = start;
    }
  }
}

/// Where they go: to C, and to the maxima of its columns.
template <class T, int R, int W>
MHA_INLINE void end_sums(const Vec<T> (&sum)[std::size_t{R}][std::size_t{W}], const Product<T>& x,
                         T* c) {
  constexpr int kCount = Simd<T>::kCount;
  if (x.column_max != nullptr) {
    MHA_UNROLL for (int w = 0; w < W; ++w) {
      Vec<T> most = load(x.column_max + w * kCount);
      MHA_UNROLL for (int r = 0; r < R; ++r) most = larger<T>(sum[r][w], most);
      store(x.column_max + w * kCount, most);
    }
  }
  if (x.add) {
    MHA_UNROLL for (int r = 0; r < R; ++r) {
      MHA_UNROLL for (int w = 0; w < W; ++w) {
        store(c + w * kCount, load(c + w * kCount) + sum[r][w]);
      }
      c += x.c_row;
      MHA_MOVING_POINTER(c);
    }
    return;
  }
  MHA_UNROLL for (int r = 0; r < R; ++r) {
    MHA_UNROLL for (int w = 0; w < W; ++w) store(c + w * kCount, sum[r][w]);
    c += x.c_row;
    MHA_MOVING_POINTER(c);
  }
}

/// `strips` tiles of R rows, one below the other.
template <class T, int R, int W>
void product_strips(Index strips, Product<T>& x) {
  constexpr int kCount = Simd<T>::kCount;
  const T* a = x.a;
  const Index a_row = x.a_row;
  T* c = x.c;
  const T* fetch = x.fetch[0];
  const T* fetch_next = x.fetch[1];
  for (; strips > 0; --strips) {
    Vec<T> sum[std::size_t{R}][std::size_t{W}];
    start_sums<T, R, W>(sum, x, c);
    const T* a_now = a;
    const T* b_now = x.b;
    const T* fetch_now = fetch;
    const Index ahead = kFetchAhead * x.a_step + R - 1;
    Index k = x.depth;
    if constexpr (R > 1 &&
                  W == kTileVectors) {  // of one row the processor's own fetching is enough
      if (x.b_ahead != 0) {
        const T* b_fetch = x.b + x.b_ahead * x.b_step;
        Index own = x.b_next == nullptr ? k : k - x.b_ahead;  // steps that fetch rows of B itself
        for (;;) {
          for (; own > 0; --own, --k) {
            MHA_UNROLL for (int w = 0; w < W; ++w) MHA_PREFETCH(b_fetch + w * kCount, 3);
            multiply_add<T, R, W>(sum, a_now, a_row, b_now);
            a_now += x.a_step;
            b_now += x.b_step;
            b_fetch += x.b_step;
            MHA_MOVING_POINTER(a_now);
            MHA_MOVING_POINTER(b_now);
            MHA_MOVING_POINTER(b_fetch);
          }
          if (k == 0) break;
          own = k;
          b_fetch = x.b_next;
        }
      }
    }
    for (; k >= 2; k -= 2) {
      MHA_PREFETCH(fetch_now, 2);
      fetch_now += x.fetch_step;
      MHA_UNROLL for (int step = 0; step < 2; ++step) {
        MHA_PREFETCH(a_now + ahead, 3);
        multiply_add<T, R, W>(sum, a_now, a_row, b_now);
        a_now += x.a_step;
        b_now += x.b_step;
        MHA_MOVING_POINTER(a_now);  // addresses of both steps cost more
        MHA_MOVING_POINTER(b_now);
      }
    }
    if (k > 0) multiply_add<T, R, W>(sum, a_now, a_row, b_now);
    a += R * a_row;
    const T* const other = fetch + x.fetch_strip;
    fetch = fetch_next;
    fetch_next = other;
    end_sums<T, R, W>(sum, x, c);
    c += R * x.c_row;
  }
  x.a = a;
  x.c = c;
  x.fetch[0] = fetch;
  x.fetch[1] = fetch_next;
}

template <class T>
using ProductStrips = void (*)(Index, Product<T>&);

/// product_strips for 1, 2, ... rows of W vectors.
template <class T, int W>
struct StripTable {
#if MHA_TILE_ROWS == 6
  static constexpr ProductStrips<T> kRows[] = {product_strips<T, 1, W>, product_strips<T, 2, W>,
                                               product_strips<T, 3, W>, product_strips<T, 4, W>,
                                               product_strips<T, 5, W>, product_strips<T, 6, W>};
#else
  static constexpr ProductStrips<T> kRows[] = {product_strips<T, 1, W>, product_strips<T, 2, W>,
                                               product_strips<T, 3, W>, product_strips<T, 4, W>};
#endif
};

/// Any number of rows: strips as equal as possible, the taller ones first.
template <class T>
void product_rows(const ProductStrips<T>* tiles, Product<T> x) {
  const Index strips = (x.rows + kTileRows - 1) / kTileRows;
  const Index height = x.rows / strips;
  const Index taller = x.rows % strips;
  if (taller > 0) tiles[height](taller, x);
  tiles[height - 1](strips - taller, x);
}

/// The columns that lie so many vectors further.
template <class T>
MHA_INLINE void move_right(Product<T>& x, Index vectors) {
  const Index lanes = vectors * Simd<T>::kCount;
  x.b += lanes;
  x.c += lanes;
  if (x.start != nullptr) x.start += lanes;
  if (x.column_max != nullptr) x.column_max += lanes;
}

/// Vectors of one row alone: each addition waits for the one before it in its vector, so that a tile's few vectors
/// would leave most of the time unused, and read B in pieces.
inline constexpr Index kVectorsOfOneRow = 8;

/// Kernels::product.
template <class T>
void product(const Product<T>& whole) {
  if (whole.rows <= 0) return;
  constexpr const ProductStrips<T>* kByWidth[] = {
    StripTable<T, 1>::kRows,
    StripTable<T, 2>::kRows,
#if MHA_TILE_VECTORS == 4
    StripTable<T, 3>::kRows,
    StripTable<T, 4>::kRows
#endif
  };
  Product<T> part = whole;
  Index left = whole.vectors;
#if MHA_TILE_VECTORS < 4
  for (; whole.rows == 1 && left >= kVectorsOfOneRow; left -= kVectorsOfOneRow) {
    Product<T> row = part;
    product_strips<T, 1, kVectorsOfOneRow>(1, row);
    move_right(part, kVectorsOfOneRow);
  }
#endif
  while (left > 0) {
    const Index width = left < kTileVectors ? left : kTileVectors;
    left -= width;
    // The columns beside these come next, the given rows after the last columns.
    if (whole.b_next != nullptr) {
      part.b_next = left > 0 ? part.b + width * Simd<T>::kCount : whole.b_next;
    }
    product_rows(kByWidth[width - 1], part);
    move_right(part, width);
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
