// SPDX-License-Identifier: MIT
//
// A layer's rules without their type: what erased_rules.hpp has, and the passes of attention with them.
#pragma once

#include "mha/internal/call/batch_gradient.hpp"
#include "mha/internal/call/erased_rules.hpp"
#include "mha/rules/identity.hpp"

namespace mha::inline MHA_ABI::detail {

template <class Acc>
struct LayerRules : ErasedRules<Acc> {
  void (*attend_of)(const void*, const BatchTask<Acc>&, const AttentionPlan<Acc>&, const Executor&,
                    const kernels::MemoryBlock&) = nullptr;

  /// batch.hpp's attend().
  void attend(const BatchTask<Acc>& call, const AttentionPlan<Acc>& plan, const Executor& executor,
              const kernels::MemoryBlock& memory) const {
    attend_of(this->rules, call, plan, executor, memory);
  }
};

/// What training asks beside it.
template <class Acc>
struct LayerGradientRules : LayerRules<Acc> {
  const void* type = nullptr;  ///< rule_identity()
  std::uint64_t (*digest_of)(const void*) = nullptr;
  void (*backward_of)(const void*, const BatchGradient<Acc>&, const Executor&,
                      Workspace*) = nullptr;

  std::uint64_t digest() const { return digest_of(this->rules); }
  /// batch_gradient.hpp's backward().
  void backward(const BatchGradient<Acc>& call, const Executor& executor,
                Workspace* workspace) const {
    backward_of(this->rules, call, executor, workspace);
  }
};

/// Refers to `rules`.
template <class Acc, class RuleSet>
LayerRules<Acc> layer_rules(const RuleSet& rules MHA_LIFETIMEBOUND) {
  return {erased<Acc>(rules),
          [](const void* p, const BatchTask<Acc>& call, const AttentionPlan<Acc>& plan,
             const Executor& executor, const kernels::MemoryBlock& memory) {
            mha::detail::attend(call, rules_at<RuleSet>(p), plan, executor, memory);
          }};
}

/// Refers to `rules`.
/// @tparam kGoesBack  the backward pass is asked for, too
template <class Acc, bool kGoesBack, class RuleSet>
LayerGradientRules<Acc> layer_gradient_rules(const RuleSet& rules MHA_LIFETIMEBOUND) {
  LayerGradientRules<Acc> all{layer_rules<Acc>(rules)};
  all.type = rule_identity<RuleSet>();
  all.digest_of = [](const void* p) { return rules_at<RuleSet>(p).digest(); };
  if constexpr (kGoesBack) {
    all.backward_of = [](const void* p, const BatchGradient<Acc>& call, const Executor& executor,
                         Workspace* workspace) {
      mha::detail::backward(call, rules_at<RuleSet>(p), executor, workspace);
    };
  }
  return all;
}

}  // namespace mha::detail
