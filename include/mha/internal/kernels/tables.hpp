// SPDX-License-Identifier: MIT
//
// What the kernels are given and what they offer: the shapes of their tiles, and the table of
// functions that each instruction set fills in. Everything is about one tile: up to kLanes queries
// (or key rows) side by side in vectors, against up to kKeyTile rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Keys that are scored at a time. Part of what fixes the bits: row_max grows from tile to tile.
/// 128 rows of scores for 64 queries take 32 KiB and stay in the first-level cache.
inline constexpr Index kKeyTile = 128;

/// Keys whose softmax is run through from an empty state; the states of such chunks are joined by a
/// tree (chunk_tree.hpp). Part of what fixes the bits; lets several threads share one long row.
inline constexpr Index kKeyChunk = 1024;

/// Lanes of a panel: rows of 256 bytes, whatever the instruction set.
template <class T>
inline constexpr Index kLanes = 256 / static_cast<Index>(sizeof(T));

/// The integer as wide as T: for masks, and for positions beside scores.
template <class T>
using int_of = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

/// A tile of scores for a rule to modify. Positions count within the sequence at hand.
template <class T>
struct ModifyTile {
  const Extent* extent = nullptr;
  Index b = 0;
  Index h = 0;
  Index first_query = 0;
  Index queries = 0;
  Index first_key = 0;
  Index keys = 0;
  T* s = nullptr;          ///< scores
  Index row_stride = 0;    ///< of s
  bool lanes_are_queries;  ///< rows of s are keys (else queries)
  const int_of<T>* begin;  ///< query's keys: [begin, end)
  const int_of<T>* end;
  int_of<T>* allowed;        ///< set to nonzero for a query that may attend to a key of this tile
  bool all_allowed = false;  ///< element-wise masks allow every pair of the ranges: not to be asked
};

/// C[rows x lanes] = A[rows x depth] B[depth x lanes], or start + A B, or C + A B: each entry of C is one
/// chain of multiply-adds over the depth, in order, that begins with 0, with start, or with C (`accumulate`). With
/// `add` the chain begins with 0 and is added to C as a whole. Entry (r, k) of A is at
/// a[r * a_row + k * a_step]; rows of B and C are `vectors` vectors long, b_step and c_row apart.
template <class T>
struct Product {
  Index rows = 0;
  Index vectors = 0;
  Index depth = 0;
  const T* a = nullptr;
  Index a_row = 0;
  Index a_step = 0;
  const T* b = nullptr;
  Index b_step = 0;
  T* c = nullptr;
  Index c_row = 0;
  bool accumulate = false;
  bool add = false;
  const T* start = nullptr;  ///< unless accumulating: what every row of C starts from; null: 0
  /// If given: column_max[l] = max(column_max[l], entries of C's column l).
  T* column_max = nullptr;
  /// What to bring into the second-level cache on the way, for whoever comes next: strips of rows
  /// fetch from fetch[0] and fetch[1] in turn, fetch_step further per two steps of the depth; each of the
  /// two moves on by fetch_strip after its turn.
  const T* fetch[2] = {nullptr, nullptr};
  Index fetch_step = 0;
  Index fetch_strip = 0;
  /// If not 0: how many rows ahead of their use B's are fetched, of a B that comes from memory and is used once.
  Index b_ahead = 0;
  /// And what is read after its last row, in rows as far apart; null: the rows behind it.
  const T* b_next = nullptr;
};

/// The dropout of a tile's queries, lane by lane: see dropout.hpp.
template <class T>
struct DropoutLanes {
  const int_of<T>* start = nullptr;  ///< 32 bits in each
  const int_of<T>* twist = nullptr;
  std::uint64_t threshold = 0;  ///< 2^32 p
  Index first_key = 0;          ///< of the panel's first row
};

/// The functions of one instruction set. A "panel" is a matrix whose row takes kLanes<T> entries,
/// 64-byte aligned; `vectors` counts the vectors of a row that are in use, from the first.
template <class T>
struct Kernels {
  Index vector_lanes;  ///< entries of a vector

  void (*product)(const Product<T>& product);

  /// panel[c][r] = factor * x[r][c] for r < rows, c < cols; the last row again up to `lanes`, a
  /// multiple of vector_lanes. rows >= 1.
  /// panel rows are panel_row apart.
  void (*pack)(const T* x, Index row_stride, Index col_stride, Index rows, Index cols, T factor,
               T* panel, Index panel_row, Index lanes);

  /// out[r][c] = panel[c][r] * factor[r] + offset[c] for r < rows, c < cols; either may be null.
  void (*unpack)(const T* panel, Index panel_row, const T* factor, const T* offset, T* out,
                 Index row_stride, Index col_stride, Index rows, Index cols);

  /// panel[r][l] = values[r], or 0 if null, for l < lanes.
  void (*fill_rows)(T* panel, Index rows, Index lanes, const T* values);

  /// tile_max[l] = max(tile_max[l], s[j][l]) over `keys` rows of a panel. With a range, entries
  /// outside of begin[l] <= first + j < end[l] become -inf first.
  void (*fold_max)(T* s, Index keys, Index vectors, T* tile_max, const int_of<T>* begin,
                   const int_of<T>* end, Index first);

  /// row_max[l] rises to tile_max[l] where it is left far behind, and correction[l] is what this
  /// shrinks earlier results by; returns whether any rose.
  bool (*raise)(const T* tile_max, T* row_max, T* correction, Index vectors);

  /// s[j][l] = e^(s[j][l] - row_max[l]), and tile_sum[l] += each of them, in order.
  void (*exponentiate)(T* s, Index keys, Index vectors, const T* row_max, T* tile_sum);

  /// The same where a row of s, s_row long, holds the keys of one query: `keys` of them, and -inf
  /// in the rest of the last vector. Their maxima are folded into row_max first; *correction is what
  /// this shrinks each row's earlier results by. row_sum is corrected, and the tile's own sum added.
  void (*exponentiate_rows)(T* s, Index s_row, Index rows, Index keys, T* row_max, T* row_sum,
                            T* correction);

  /// inverse[l] = 1 / x[l], or 0 where used[l] is 0.
  void (*invert)(const T* x, const int_of<T>* used, T* inverse, Index vectors);

  /// x[r][l] *= factor[l].
  void (*rescale)(T* x, Index rows, Index vectors, const T* factor);

  /// x[l] *= factor, and a -0 of rounding becomes +0, as where a lane is a query.
  void (*end_row)(T* x, Index vectors, T factor);

  /// x[r][l] += part[r][l]; rows of x are x_row apart.
  void (*add)(T* x, Index x_row, Index rows, Index vectors, const T* part);

  /// total += part, two states of the running softmax: maxima, sums and accumulators.
  void (*merge)(T* total, T* total_max, T* total_sum, const T* part, const T* part_max,
                const T* part_sum, Index rows, Index vectors);

  /// Is every entry of x finite?
  bool (*all_finite)(const T* x, Index row_stride, Index col_stride, Index rows, Index cols);

  /// s = cap * tanh(s / cap) over rows of a panel.
  void (*softcap)(T* s, Index rows, Index row_stride, Index vectors, T cap);

  /// s[j][l] = e^(s[j][l] - lse[l]): weights once more; of -inf 0, even if lse is NaN. Not below 2^-1074 for double, 2^-63.5 for
  /// float.
  void (*weights)(T* s, Index keys, Index vectors, const T* lse);

  /// s[j][l] = 0 where the weight is dropped.
  void (*drop)(T* s, Index keys, Index vectors, const DropoutLanes<T>& dropout);

  /// grad[j][l] *= scale, or 0 where the weight is dropped.
  void (*drop_gradient)(T* grad, Index keys, Index vectors, const DropoutLanes<T>& dropout,
                        T scale);

  /// sum[l] = sum over rows of a[r][l] * b[r][l], in order.
  void (*dot)(const T* a, const T* b, Index rows, Index vectors, T* sum);

  /// grad[j][l] = p[j][l] * (grad[j][l] - delta[l]), and 0 where p is 0, whatever grad is there.
  void (*weight_gradient)(const T* p, T* grad, Index keys, Index vectors, const T* delta);

  /// grad[j][l] *= 1 - (capped[j][l] / cap)^2, and 0 stays 0, whatever the score is there.
  void (*softcap_gradient)(const T* capped, T* grad, Index keys, Index vectors, T cap);

  /// to[r][c] = from[r][c], which are bfloat16 or IEEE half.
  void (*widen)(const std::uint16_t* from, Index from_row, Index rows, Index cols, bool bf16, T* to,
                Index to_row);
};

}  // namespace mha::kernels
