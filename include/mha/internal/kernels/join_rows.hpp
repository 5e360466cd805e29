// SPDX-License-Identifier: MIT
//
// The join of two softmax states where a row's numbers lie side by side (few_rows.hpp), with the bits of the join
// where they lie in lanes (query_tile.hpp).
#pragma once

#include "mha/internal/kernels/tile_memory.hpp"

namespace mha::inline MHA_ABI::kernels {

/// a becomes the join of a and b: states of `rows` rows, whose acc is [rows][wide]. The kernels' merge works
/// on lanes of state: here each row's is spread over its lanes.
template <class T>
void join_rows(const Kernels<T>& kernels, const SoftmaxState<T>& a, const SoftmaxState<T>& b,
               Index rows, Index wide) {
  constexpr Index kWide = kLanes<T>;
  alignas(kAlignment) T total_max[std::size_t{kWide}];
  alignas(kAlignment) T total_sum[std::size_t{kWide}];
  alignas(kAlignment) T part_max[std::size_t{kWide}];
  alignas(kAlignment) T part_sum[std::size_t{kWide}];
  for (Index r = 0; r < rows; ++r) {
    T joined_max = a.row_max[r];
    T joined_sum = a.row_sum[r];
    for (Index c = 0; c == 0 || c < wide; c += kWide) {
      std::fill_n(total_max, kWide, a.row_max[r]);
      std::fill_n(total_sum, kWide, a.row_sum[r]);
      std::fill_n(part_max, kWide, b.row_max[r]);
      std::fill_n(part_sum, kWide, b.row_sum[r]);
      const Index lanes = std::min(kWide, wide - c);
      kernels.merge(a.acc + r * wide + c, total_max, total_sum, b.acc + r * wide + c, part_max,
                    part_sum, wide == 0 ? 0 : 1,
                    wide == 0 ? 1 : (lanes + kernels.vector_lanes - 1) / kernels.vector_lanes);
      joined_max = total_max[0];
      joined_sum = total_sum[0];
    }
    a.row_max[r] = joined_max;
    a.row_sum[r] = joined_sum;
  }
}

}  // namespace mha::kernels
