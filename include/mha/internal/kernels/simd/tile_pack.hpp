// SPDX-License-Identifier: MIT
//
// Rows to lanes and back: queries enter as panel[channel][query] and outputs leave as rows. The
// work is done in chunks of 16 bytes: a chunk of 4 rows each 4 apart fills a vector, and 4 such
// vectors are transposed within their 16-byte parts (2 x 2 for double).
// Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

/// Entries of a chunk of 16 bytes, and chunks of a vector.
template <class T>
inline constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
inline constexpr int kChunks = MHA_VECTOR_BYTES / 16;

#if MHA_VECTOR_BYTES > 16

template <class T>
struct Chunk {
  using Type __attribute__((vector_size(16), aligned(sizeof(T)), may_alias)) = T;
  using Plain __attribute__((vector_size(16))) = T;
};

template <class T>
MHA_INLINE const typename Chunk<T>::Type& chunk_in(const T* p) {
  return *reinterpret_cast<const typename Chunk<T>::Type*>(p);
}
template <class T>
MHA_INLINE typename Chunk<T>::Plain chunk_at(const T* p) {
  return chunk_in(p);
}

#endif

/// The chunks at p, p + stride, ... as one vector.
template <class T>
MHA_INLINE Vec<T> gather_chunks(const T* p, [[maybe_unused]] Index stride) {
#if MHA_VECTOR_BYTES == 16
  return load(p);
#elif MHA_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return __builtin_shufflevector(chunk_at(p), chunk_at(p + stride), 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(chunk_at(p), chunk_at(p + stride), 0, 1, 2, 3);
  }
#else
  // Inserts straight from memory, which leave the shuffle unit alone: compilers load all four first,
  // and then take three shuffles to join them.
  Vec<T> v;
  asm("vbroadcastf32x4 %1, %0\n\t"
      "vinsertf32x4 $1, %2, %0, %0\n\t"
      "vinsertf32x4 $2, %3, %0, %0\n\t"
      "vinsertf32x4 $3, %4, %0, %0"
      : "=&v"(v)
      : "m"(chunk_in(p)), "m"(chunk_in(p + stride)), "m"(chunk_in(p + 2 * stride)),
        "m"(chunk_in(p + 3 * stride)));
  return v;
#endif
}

/// The chunk at p in every chunk of a vector.
template <class T>
MHA_INLINE Vec<T> repeat_chunk(const T* p) {
#if MHA_VECTOR_BYTES == 64
  Vec<T> v;
  asm("vbroadcastf32x4 %1, %0" : "=v"(v) : "m"(chunk_in(p)));
  return v;
#else
  return gather_chunks(p, 0);
#endif
}

/// The chunks of v to p, p + stride, ...
template <class T>
MHA_INLINE void scatter_chunks(T* p, [[maybe_unused]] Index stride, Vec<T> v) {
#if MHA_VECTOR_BYTES == 16
  store(p, v);
#else
#define MHA_STORE_CHUNK(k)                                                             \
  if constexpr (sizeof(T) == 4) {                                                      \
    *reinterpret_cast<typename Chunk<T>::Type*>(p + (k)*stride) =                      \
        __builtin_shufflevector(v, v, 4 * (k), 4 * (k) + 1, 4 * (k) + 2, 4 * (k) + 3); \
  } else {                                                                             \
    *reinterpret_cast<typename Chunk<T>::Type*>(p + (k)*stride) =                      \
        __builtin_shufflevector(v, v, 2 * (k), 2 * (k) + 1);                           \
  }
  MHA_STORE_CHUNK(0)
  MHA_STORE_CHUNK(1)
#if MHA_VECTOR_BYTES >= 64
  MHA_STORE_CHUNK(2)
  MHA_STORE_CHUNK(3)
#endif
#undef MHA_STORE_CHUNK
#endif
}

#if MHA_VECTOR_TYPES

/// Transposes v[0 .. kChunk) within each 16-byte part.
template <class T>
MHA_INLINE void transpose_chunks(Vec<T> (&v)[kChunk<T>]) {
#if MHA_VECTOR_BYTES == 16
#define MHA_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, (k) + 4, (l) + 4)
#define MHA_SHUFFLE2(a, b, i, j) __builtin_shufflevector(a, b, i, (j) + 2)
#elif MHA_VECTOR_BYTES == 32
#define MHA_SHUFFLE4(a, b, i, j, k, l) \
  __builtin_shufflevector(a, b, i, j, (k) + 8, (l) + 8, (i) + 4, (j) + 4, (k) + 12, (l) + 12)
#define MHA_SHUFFLE2(a, b, i, j) __builtin_shufflevector(a, b, i, (j) + 4, (i) + 2, (j) + 6)
#else
#define MHA_SHUFFLE4(a, b, i, j, k, l)                                                          \
  __builtin_shufflevector(a, b, i, j, (k) + 16, (l) + 16, (i) + 4, (j) + 4, (k) + 20, (l) + 20, \
                          (i) + 8, (j) + 8, (k) + 24, (l) + 24, (i) + 12, (j) + 12, (k) + 28,   \
                          (l) + 28)
#define MHA_SHUFFLE2(a, b, i, j) \
  __builtin_shufflevector(a, b, i, (j) + 8, (i) + 2, (j) + 10, (i) + 4, (j) + 12, (i) + 6, (j) + 14)
#endif
  if constexpr (sizeof(T) == 4) {
    // (a0 a1 b0 b1), (a2 a3 b2 b3) of rows a, b, then the columns of both pairs.
    const Vec<T> ab01 = MHA_SHUFFLE4(v[0], v[1], 0, 1, 0, 1);
    const Vec<T> ab23 = MHA_SHUFFLE4(v[0], v[1], 2, 3, 2, 3);
    const Vec<T> cd01 = MHA_SHUFFLE4(v[2], v[3], 0, 1, 0, 1);
    const Vec<T> cd23 = MHA_SHUFFLE4(v[2], v[3], 2, 3, 2, 3);
    v[0] = MHA_SHUFFLE4(ab01, cd01, 0, 2, 0, 2);
    v[1] = MHA_SHUFFLE4(ab01, cd01, 1, 3, 1, 3);
    v[2] = MHA_SHUFFLE4(ab23, cd23, 0, 2, 0, 2);
    v[3] = MHA_SHUFFLE4(ab23, cd23, 1, 3, 1, 3);
  } else {
    const Vec<T> first = MHA_SHUFFLE2(v[0], v[1], 0, 0);
    v[1] = MHA_SHUFFLE2(v[0], v[1], 1, 1);
    v[0] = first;
  }
#undef MHA_SHUFFLE4
#undef MHA_SHUFFLE2
}

#else

/// Transposes v[0 .. kChunk).
template <class T>
MHA_INLINE void transpose_chunks(Vec<T> (&v)[kChunk<T>]) {
  Vec<T> columns[kChunk<T>];
  MHA_UNROLL for (int r = 0; r < kChunk<T>; ++r) {
    MHA_UNROLL for (int c = 0; c < kChunk<T>; ++c) columns[c].v[r] = v[r].v[c];
  }
  MHA_UNROLL for (int c = 0; c < kChunk<T>; ++c) v[c] = columns[c];
}

#endif

/// Kernels::pack.
template <class T>
void pack(const T* x, Index row_stride, Index col_stride, Index rows, Index cols, T factor,
          T* panel, Index panel_row, Index lanes) {
  if (cols <= 0) return;  // x may be null
  constexpr Index kCount = Simd<T>::kCount;
  const Vec<T> factors = all(factor);
  Index r = 0;
  if (col_stride == 1) {
    for (; r + kCount <= rows; r += kCount) {
      Index c = 0;
      for (; c + kChunk<T> <= cols; c += kChunk<T>) {
        // Vector k holds rows k, k + kChunk, ...: transposed, they are in order.
        Vec<T> v[kChunk<T>];
        const T* from = x + r * row_stride + c;
        MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
          v[k] = gather_chunks(from, kChunk<T> * row_stride);
          from += row_stride;
          MHA_MOVING_POINTER(from);  // one pointer that moves, not sixteen
        }
        transpose_chunks<T>(v);
        MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
          store(panel + (c + k) * panel_row + r, v[k] * factors);
        }
      }
      for (; c < cols; ++c) {
        for (Index l = 0; l < kCount; ++l) {
          panel[c * panel_row + r + l] = x[(r + l) * row_stride + c] * factor;
        }
      }
    }
  } else if (row_stride == 1) {
    for (; r + kCount <= rows; r += kCount) {
      for (Index c = 0; c < cols; ++c) {
        store(panel + c * panel_row + r, load(x + r + c * col_stride) * factors);
      }
    }
  }
  if (col_stride == 1 && r < rows) {  // the last rows once more in place of those that are missing
    const T* from[static_cast<std::size_t>(kCount)];
    for (Index l = 0; l < kCount; ++l) {
      from[l] = x + (r + l < rows ? r + l : rows - 1) * row_stride;
    }
    Index c = 0;
    for (; c + kChunk<T> <= cols; c += kChunk<T>) {
      alignas(64) T block[static_cast<std::size_t>(kCount * kChunk<T>)];
      for (Index l = 0; l < kCount; ++l) {
        copy_bytes(block + l * kChunk<T>, from[l] + c, sizeof(T) * kChunk<T>);
      }
      Vec<T> v[kChunk<T>];
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
        v[k] = gather_chunks(block + k * kChunk<T>, kChunk<T> * kChunk<T>);
      }
      transpose_chunks<T>(v);
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
        store(panel + (c + k) * panel_row + r, v[k] * factors);
      }
    }
    for (; c < cols; ++c) {
      for (Index l = 0; l < kCount; ++l) panel[c * panel_row + r + l] = from[l][c] * factor;
    }
    r += kCount;
  }
  for (; r < rows; ++r) {
    const T* const row = x + r * row_stride;
    for (Index c = 0; c < cols; ++c) panel[c * panel_row + r] = row[c * col_stride] * factor;
  }
  const T* const last = x + (rows - 1) * row_stride;  // in place of all rows beyond it
  for (; r + kCount <= lanes; r += kCount) {
    for (Index c = 0; c < cols; ++c) {
      store(panel + c * panel_row + r, all(last[c * col_stride]) * factors);
    }
  }
  for (; r < lanes; ++r) {
    for (Index c = 0; c < cols; ++c) panel[c * panel_row + r] = last[c * col_stride] * factor;
  }
}

/// The same expression for lanes and for single numbers. Adding 0 turns a -0 of rounding into +0; so
/// the product is rounded by itself: fused, one that underflows would keep its sign.
template <class V>
MHA_INLINE V finished(V x, V f, V o) {
  V product = x * f;
  keep_rounding(product);
  return product + o;
}

/// Channels in whole vectors, rows in whole chunks: the channels of a row together, so that whole lines
/// are written at once.
template <class T>
void unpack_blocks(const T* panel, Index panel_row, const T* factor, const T* offset, T* out,
                   Index row_stride, Index rows, Index cols) {
  constexpr Index kCount = Simd<T>::kCount;
  alignas(16) constexpr T kOnes[] = {1, 1, 1, 1};
  for (Index r = 0; r < rows; r += kChunk<T>) {
    const Vec<T> f = repeat_chunk(factor != nullptr ? factor + r : kOnes);
    const T* from = panel + r;
    T* const row = out + r * row_stride;
    for (Index c = 0; c < cols; c += kCount, from += (kCount - kChunk<T>)*panel_row) {
      const Vec<T> o = offset != nullptr ? load(offset + c) : Vec<T>{};
      // Vector k holds channels k, k + kChunk, ... of kChunk rows: transposed, they are in order.
      Vec<T> v[kChunk<T>];
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
        v[k] = gather_chunks(from, kChunk<T> * panel_row) * f;
        keep_rounding(v[k]);
        from += panel_row;
        MHA_MOVING_POINTER(from);  // one pointer that moves, not sixteen
      }
      transpose_chunks<T>(v);
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) store(row + k * row_stride + c, v[k] + o);
    }
  }
}

/// Kernels::unpack.
template <class T>
void unpack(const T* panel, Index panel_row, const T* factor, const T* offset, T* out,
            Index row_stride, Index col_stride, Index rows, Index cols) {
  constexpr Index kCount = Simd<T>::kCount;
  const Index in_blocks = col_stride == 1 ? cols - cols % kCount : 0;
  if (in_blocks > 0) {
    unpack_blocks(panel, panel_row, factor, offset, out, row_stride, rows - rows % kCount,
                  in_blocks);
  }
  Index r = 0;
  if (col_stride == 1 || row_stride == 1) {
    for (; r + kCount <= rows; r += kCount) {
      const Vec<T> f = factor != nullptr ? load(factor + r) : all(T(1));
      Index c = in_blocks;
      if (col_stride == 1) {
        for (; c + kChunk<T> <= cols; c += kChunk<T>) {
          Vec<T> v[kChunk<T>];
          MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
            const Vec<T> o = all(offset != nullptr ? offset[c + k] : T(0));
            v[k] = finished(load(panel + (c + k) * panel_row + r), f, o);
          }
          transpose_chunks<T>(v);
          MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
            scatter_chunks(out + (r + k) * row_stride + c, kChunk<T> * row_stride, v[k]);
          }
        }
      }
      for (; c < cols; ++c) {
        const Vec<T> o = all(offset != nullptr ? offset[c] : T(0));
        const Vec<T> v = finished(load(panel + c * panel_row + r), f, o);
        if (row_stride == 1) {
          store(out + r + c * col_stride, v);
        } else {
          for (int l = 0; l < kCount; ++l) out[(r + l) * row_stride + c * col_stride] = v[l];
        }
      }
    }
  }
  if (col_stride == 1 && r < rows) {
    const Vec<T> f = factor != nullptr ? load(factor + r) : all(T(1));
    for (Index c = 0; c < cols; c += kChunk<T>) {
      const Index width = cols - c < kChunk<T> ? cols - c : kChunk<T>;
      Vec<T> v[kChunk<T>];
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
        const Index channel = k < width ? c + k : c;
        const Vec<T> o = all(offset != nullptr ? offset[channel] : T(0));
        v[k] = finished(load(panel + channel * panel_row + r), f, o);
      }
      transpose_chunks<T>(v);
      alignas(64) T block[static_cast<std::size_t>(kCount * kChunk<T>)];
      MHA_UNROLL for (int k = 0; k < kChunk<T>; ++k) {
        scatter_chunks(block + k * kChunk<T>, kChunk<T> * kChunk<T>, v[k]);
      }
      for (Index l = 0; l < rows - r; ++l) {
        T* const to = out + (r + l) * row_stride + c;
        const T* const part = block + l * kChunk<T>;
        if (width == kChunk<T>) {
          copy_bytes(to, part, sizeof(T) * kChunk<T>);
        } else {
          for (Index k = 0; k < width; ++k) to[k] = part[k];
        }
      }
    }
    return;
  }
  for (; r < rows; ++r) {
    const T f = factor != nullptr ? factor[r] : T(1);
    for (Index c = 0; c < cols; ++c) {
      const T o = offset != nullptr ? offset[c] : T(0);
      out[r * row_stride + c * col_stride] = finished(panel[c * panel_row + r], f, o);
    }
  }
}

/// Kernels::fill_rows.
template <class T>
void fill_rows(T* panel, Index rows, Index lanes, const T* values) {
  for (Index r = 0; r < rows; ++r, panel += kLanes<T>) {
    const Vec<T> v = all(values != nullptr ? values[r] : T(0));
    for (Index l = 0; l < lanes; l += Simd<T>::kCount) store(panel + l, v);
  }
}

}  // namespace mha::kernels::MHA_TARGET
#endif
