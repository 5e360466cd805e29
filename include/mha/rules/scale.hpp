// SPDX-License-Identifier: MIT
//
// The factor of query * key^T.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

template <class T>
struct Scale : Rule {
  T scale_value;
  void add_to(detail::Digest& digest) const { digest.add_number(scale_value); }
};

/// Multiplies query * key^T in place of 1 / sqrt(head_dim). 0 and negative factors are fine.
/// @throws std::invalid_argument if factor is NaN or infinite; the call, if its accumulator cannot
/// hold it (1e300 in float)
template <class T>
[[nodiscard]] Scale<T> scale(T factor) {
  detail::require(detail::is_finite_number(factor), "scale: the factor must be finite, got ",
                  factor);
  return {{}, std::move(factor)};
}

}  // namespace mha
