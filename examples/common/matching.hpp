// SPDX-License-Identifier: MIT
//
// Which prediction answers for which object: the assignment of least cost, exactly.
#pragma once

#include <cstddef>
#include <limits>
#include <mha/types.hpp>
#include <vector>

namespace examples {

/// Each row of `cost` gets a column of its own, so that the sum is least: the columns in the order of
/// the rows. By dynamic programming over sets of columns: least(set) is the least cost at which the
/// first |set| rows get the columns of `set`. 2^columns * columns steps, so for few columns.
/// @param cost  rows <= columns <= 16
inline std::vector<int> least_cost_matching(const mha::Matrix<float>& cost) {
  const auto rows = static_cast<std::size_t>(cost.rows());
  const auto columns = static_cast<std::size_t>(cost.cols());
  const std::size_t sets = std::size_t{1} << columns;
  std::vector<float> least(sets, std::numeric_limits<float>::infinity());
  std::vector<std::size_t> last(sets, 0);  // the column of row |set| - 1
  least[0] = 0;
  std::size_t best = 0;
  bool complete = rows == 0;
  for (std::size_t set = 0; set < sets; ++set) {
    std::size_t row = 0;
    for (std::size_t bits = set; bits != 0; bits &= bits - 1) ++row;
    if (row > rows) continue;
    if (row == rows && (!complete || least[set] < least[best])) {
      best = set;
      complete = true;
    }
    if (row == rows) continue;
    for (std::size_t column = 0; column < columns; ++column) {
      const std::size_t with = set | std::size_t{1} << column;
      if (with == set) continue;
      const float sum =
          least[set] + cost(static_cast<mha::Index>(row), static_cast<mha::Index>(column));
      if (sum >= least[with]) continue;
      least[with] = sum;
      last[with] = column;
    }
  }
  std::vector<int> matched(rows);
  for (std::size_t row = rows; row-- > 0; best &= ~(std::size_t{1} << last[best])) {
    matched[row] = static_cast<int>(last[best]);
  }
  return matched;
}

}  // namespace examples
