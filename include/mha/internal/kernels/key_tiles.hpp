// SPDX-License-Identifier: MIT
//
// Keys and values of one head as the tiles read them: a range of keys within one tile at a time, as rows of T. They
// lie in the caller's memory at any strides, or in pages of 128 keys (kv_pool.hpp), in T or in another type. Nothing
// in the forward pass reads keys or values but through here.
#pragma once

#include <cstring>

#include "mha/internal/kernels/tile_memory.hpp"
#include "mha/storage.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Where the keys and values of one sequence lie: page p has keys kKeyTile p, ... Each head of keys has a block in
/// every page: keys [head_dim][kKeyTile], so that a decoded query need not transpose them, then values
/// [kKeyTile][value_dim].
struct PagedKeys {
  std::byte* const* pages = nullptr;  ///< those that no query may see may be null
  Storage storage = Storage::f32;
  std::size_t first_head = 0;  ///< bytes from a page's begin to head 0 of the layer at hand
  std::size_t head_bytes = 0;
};

/// Bytes that a head of keys takes in a page.
inline std::size_t page_bytes_of_head(Index head_dim, Index value_dim, Storage storage) {
  return static_cast<std::size_t>(kKeyTile * (head_dim + value_dim)) *
         mha::detail::bytes_of(storage);
}

/// to[k] = from[k], converted, for so many numbers, each `step` behind the one before it.
template <class To, class From>
void copy_run(To* to, Index to_step, const From* from, Index from_step, Index count) {
  if constexpr (std::is_same_v<To, From>) {
    if (to_step == 1 && from_step == 1 && count > 0) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(To));
      return;
    }
  }
  for (Index k = 0; k < count; ++k) to[k * to_step] = mha::detail::convert<To>(from[k * from_step]);
}

/// Element-wise conversion into memory of ours.
template <class In, class T>
void convert_rows([[maybe_unused]] const Kernels<T>& kernels, const MatrixView<const In>& from,
                  T* to, Index to_row) {
  constexpr bool kBf16 = std::is_same_v<In, Eigen::bfloat16>;
  if constexpr (kBf16 || std::is_same_v<In, Eigen::half>) {
    if (from.col_stride == 1) {
      kernels.widen(reinterpret_cast<const std::uint16_t*>(from.data), from.row_stride, from.rows,
                    from.cols, kBf16, to, to_row);
      return;
    }
  }
  for (Index r = 0; r < from.rows; ++r) {
    copy_run(to + r * to_row, 1, from.data + r * from.row_stride, from.col_stride, from.cols);
  }
}

/// Rows from, ..., to - 1 of a matrix as T: where they lie, or converted into `copy`.
template <class In, class T>
MatrixView<const T> rows_of([[maybe_unused]] const Kernels<T>& kernels,
                            const MatrixView<const In>& whole, [[maybe_unused]] T* copy, Index from,
                            Index to) {
  const MatrixView<const In> rows = whole.middle_rows(from, to - from);
  if constexpr (std::is_same_v<In, T>) {
    return rows;
  } else {
    convert_rows(kernels, rows, copy, rows.cols);
    return {copy, rows.rows, rows.cols, rows.cols, 1};
  }
}

template <class In, class T>
class KeyTiles {
 public:
  KeyTiles(const Kernels<T>& kernels, const MatrixView<const In>& key,
           const MatrixView<const In>& value, const PagedKeys* paged, Index kv_head)
      : kernels_(kernels), key_(key), value_(value), paged_(paged) {
    if (paged == nullptr) return;
    first_key_ = paged->first_head + static_cast<std::size_t>(kv_head) * paged->head_bytes;
    first_value_ = first_key_ + static_cast<std::size_t>(kKeyTile * key.cols) *
                                    mha::detail::bytes_of(paged->storage);
    in_place_ = mha::detail::keeps<T>(paged->storage);
  }
  KeyTiles(const KeyTiles&) = delete;
  KeyTiles& operator=(const KeyTiles&) = delete;

  bool in_pages() const { return paged_ != nullptr; }

  /// Keys from, ..., to - 1 of one tile: where they lie, or converted into `copy`.
  MatrixView<const T> keys(Index from, Index to, T* copy) const {
    if (!in_pages()) return rows_of(kernels_, key_, copy, from, to);
    if (in_place_) return {panel(from), to - from, key_.cols, 1, kKeyTile};
    convert_panel(from, to, 0, key_.cols, copy, to - from);
    return {copy, to - from, key_.cols, 1, to - from};
  }
  /// Values likewise.
  MatrixView<const T> values(Index from, Index to, T* copy) const {
    if (!in_pages()) return rows_of(kernels_, value_, copy, from, to);
    if (in_place_) return {value_row<T>(from), to - from, value_.cols, value_.cols, 1};
    copy_values(from, to, copy, value_.cols);
    return {copy, to - from, value_.cols, value_.cols, 1};
  }

  /// Key `from` and those behind it, transposed, rows kKeyTile apart; null if they do not lie so as T, or have been
  /// given back.
  const T* panel(Index from) const {
    if (!in_pages() || !in_place_ || page(from) == nullptr) return nullptr;
    return reinterpret_cast<const T*>(page(from) + first_key_) + from % kKeyTile;
  }
  /// The same of pages in another type, so many channels from `channel` on converted: to[channel * step + key].
  void convert_panel(Index from, Index to_key, Index channel, Index channels, T* to,
                     Index step) const {
    mha::detail::with_stored_type(paged_->storage, [&](auto x) {
      using Stored = decltype(x);
      const auto* const keys = reinterpret_cast<const Stored*>(page(from) + first_key_) +
                               channel * kKeyTile + from % kKeyTile;
      const MatrixView<const Stored> rows{keys, channels, to_key - from, kKeyTile, 1};
      convert_rows(kernels_, rows, to, step);
    });
  }

  /// Rows of values, each contiguous, where they lie so; data is null otherwise.
  MatrixView<const T> values_in_place(Index from, Index to) const {
    if (in_pages()) {
      if (!in_place_) return {};
      return {value_row<T>(from), to - from, value_.cols, value_.cols, 1};
    }
    if constexpr (std::is_same_v<In, T>) {
      if (value_.col_stride == 1) return value_.middle_rows(from, to - from);
    }
    return {};
  }
  /// Rows of values, `step` apart in `to`.
  void copy_values(Index from, Index to_key, T* to, Index step) const {
    if (!in_pages()) {
      convert_rows(kernels_, value_.middle_rows(from, to_key - from), to, step);
      return;
    }
    mha::detail::with_stored_type(paged_->storage, [&](auto x) {
      using Stored = decltype(x);
      const MatrixView<const Stored> rows{value_row<Stored>(from), to_key - from, value_.cols,
                                          value_.cols, 1};
      convert_rows(kernels_, rows, to, step);
    });
  }

 private:
  const std::byte* page(Index key) const { return paged_->pages[key / kKeyTile]; }
  template <class Stored>
  const Stored* value_row(Index key) const {
    return reinterpret_cast<const Stored*>(page(key) + first_value_) + key % kKeyTile * value_.cols;
  }

  const Kernels<T>& kernels_;
  const MatrixView<const In>&key_, &value_;
  const PagedKeys* paged_;
  std::size_t first_key_ = 0, first_value_ = 0;  ///< bytes into a page
  bool in_place_ = false;                        ///< pages hold T
};

}  // namespace mha::kernels
