// SPDX-License-Identifier: MIT
//
// The rules of a call without their type: a pointer, and functions for what a call's checks and the layer ask
// them. Above it a call is compiled for each combination of masks and modifiers, below it once per scalar. (What the
// kernels ask: RuleCalls.)
#pragma once

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI::detail {

/// @tparam Acc  what the call's sums are kept in
template <class Acc>
struct ErasedRules {
  const void* rules = nullptr;
  int places = 0;  ///< that say where the queries stand among the keys: RuleSet::kPlaces
  void (*check_of)(const void*, const CallExtent&) = nullptr;
  void (*check_place_of)(const void*, const char*, const Extent&, Index, bool) = nullptr;
  Extent (*placed_of)(const void*, const Extent&, Index, Index) = nullptr;

  // As Rules has them.
  void check(const CallExtent& call) const { check_of(rules, call); }
  void check_place(const char* where, const Extent& extent, Index b, bool has_said) const {
    check_place_of(rules, where, extent, b, has_said);
  }
  Extent placed(const Extent& extent, Index b, Index h) const {
    return placed_of(rules, extent, b, h);
  }
};

template <class RuleSet>
const RuleSet& rules_at(const void* rules) {
  return *static_cast<const RuleSet*>(rules);
}

/// Refers to `rules`.
template <class Acc, class RuleSet>
ErasedRules<Acc> erased(const RuleSet& rules MHA_LIFETIMEBOUND) {
  return {
      &rules, RuleSet::kPlaces,
      [](const void* p, const CallExtent& call) { rules_at<RuleSet>(p).template check<Acc>(call); },
      [](const void* p, const char* where, const Extent& extent, Index b, bool has_said) {
        rules_at<RuleSet>(p).check_place(where, extent, b, has_said);
      },
      [](const void* p, const Extent& extent, Index b, Index h) {
        return rules_at<RuleSet>(p).placed(extent, b, h);
      }};
}

}  // namespace mha::detail
