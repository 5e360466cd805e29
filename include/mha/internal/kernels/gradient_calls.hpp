// SPDX-License-Identifier: MIT
//
// The rules of a backward pass as the kernels see them: what rule_calls.hpp is for the forward pass.
#pragma once

#include "mha/internal/kernels/rule_calls.hpp"

namespace mha::inline MHA_ABI::kernels {

/// What rules do in the backward pass, without their types.
template <class T>
struct GradientCalls {
  /// grad (a panel) becomes the gradient of the capped scores (tile.s); null if it is that already.
  void (*score_gradient)(const void* rules, const ModifyTile<T>& tile, T* grad) = nullptr;
  void (*collect_sink)(const void* rules, Index h, T grad) = nullptr;
};

namespace detail {

template <class T, class RuleSet>
void score_gradient(const void* rules, const ModifyTile<T>& tile, T* grad) {
  for (Index j = 0; j < tile.keys; ++j) {
    for (Index i = 0; i < tile.queries; ++i) {
      T& g = grad[j * tile.row_stride + i];
      if (g == T(0)) continue;  // masked, or nothing to pass on
      g = static_cast<const RuleSet*>(rules)->score_gradient(
          tile.s[j * tile.row_stride + i], g, *tile.extent, tile.b, tile.h,
          tile.extent->first_query + tile.first_query + i,
          tile.extent->first_key + tile.first_key + j);
    }
  }
}

template <class T, class RuleSet>
void collect_sink(const void* rules, Index h, T grad) {
  static_cast<const RuleSet*>(rules)->collect_sink_gradient(h, grad);
}

}  // namespace detail

template <class T, class RuleSet>
GradientCalls<T> gradient_calls() {
  GradientCalls<T> calls;
  if constexpr (!RuleSet::kAdditiveScore) calls.score_gradient = detail::score_gradient<T, RuleSet>;
  if constexpr (RuleSet::kCollectsGradient) calls.collect_sink = detail::collect_sink<T, RuleSet>;
  return calls;
}

}  // namespace mha::kernels
