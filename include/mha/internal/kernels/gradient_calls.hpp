// SPDX-License-Identifier: MIT
//
// The rules of a backward pass as the kernels see them: what rule_calls.hpp is for the forward pass.
#pragma once

#include "mha/internal/kernels/rule_calls.hpp"
#include "mha/rules/derivative.hpp"

namespace mha::inline MHA_ABI::kernels {

/// What rules do in the backward pass, without their types.
template <class T>
struct GradientCalls {
  using ScoreGradient = void (*)(const void* rules, const ModifyTile<T>& tile, T* grad);
  /// grad (a panel) becomes the gradient of the capped scores (tile.s); null if it is that already.
  ScoreGradient score_gradient = nullptr;
  /// As score_gradient, but rules do not collect gradients of their own numbers.
  ScoreGradient score_gradient_alone = nullptr;
  void (*collect_sink)(const void* rules, Index h, T grad) = nullptr;
  GradientSharing sharing{false, false, false};
};

namespace detail {

template <bool kCollects, class T, class RuleSet>
void score_gradient(const void* rules, const ModifyTile<T>& tile, T* grad) {
  for (Index j = 0; j < tile.keys; ++j) {
    for (Index i = 0; i < tile.queries; ++i) {
      T& g = grad[j * tile.row_stride + i];
      if (g == T(0)) continue;  // masked, or nothing to pass on
      g = mha::detail::score_gradient<kCollects>(
          *static_cast<const RuleSet*>(rules), tile.s[j * tile.row_stride + i], g, *tile.extent,
          tile.b, tile.h, tile.extent->first_query + tile.first_query + i,
          tile.extent->first_key + tile.first_key + j);
    }
  }
}

template <class T, class RuleSet>
void collect_sink(const void* rules, Index h, T grad) {
  mha::detail::collect_sink_gradient(*static_cast<const RuleSet*>(rules), h, grad);
}

}  // namespace detail

template <class T, class RuleSet>
GradientCalls<T> gradient_calls(const RuleSet& rules) {
  GradientCalls<T> calls;
  constexpr const RuleSet* kRules = nullptr;
  if constexpr (!mha::detail::leaves_gradient<true>(kRules)) {
    calls.score_gradient = detail::score_gradient<true, T, RuleSet>;
  }
  calls.score_gradient_alone = calls.score_gradient;
  if constexpr (RuleSet::kCollectsGradient) {
    calls.score_gradient_alone = nullptr;
    if constexpr (!mha::detail::leaves_gradient<false>(kRules)) {
      calls.score_gradient_alone = detail::score_gradient<false, T, RuleSet>;
    }
    calls.collect_sink = detail::collect_sink<T, RuleSet>;
    calls.sharing = mha::detail::gradient_sharing(rules);
  }
  return calls;
}

}  // namespace mha::kernels
