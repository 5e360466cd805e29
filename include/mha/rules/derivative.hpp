// SPDX-License-Identifier: MIT
//
// Several rules in the backward pass: what becomes of a score's gradient, and of the gradients of numbers that rules
// are made of.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI::detail {

/// Those whose type `Plain`, a base, does the same but collect.
template <class R>
concept CollectsApart = CollectsGradient<R> && requires {
  typename R::Plain;
  requires std::is_base_of_v<typename R::Plain, R>;
  requires !HasScore<R> || HasAdditiveScore<typename R::Plain> ||
      HasScoreGradient<typename R::Plain>;
};

/// A rule as it is, or one that collects a gradient without that.
template <class R, bool kCollects>
struct AsCollecting {
  using type = R;
};
template <CollectsApart R>
struct AsCollecting<R, false> {
  using type = typename R::Plain;
};

/// The chain rule, last rule first: each is asked at the score that it was given.
template <std::size_t kPart, bool kCollects, class Scalar, class... Parts>
Scalar undo_from(const std::tuple<Parts...>& parts, const Scalar& s, const Scalar& grad,
                 const Extent& extent, Index b, Index h, Index i, Index j) {
  if constexpr (kPart == sizeof...(Parts)) {
    return grad;
  } else {
    const auto& part = std::get<kPart>(parts);
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (HasScore<Part>) {
      static_assert(HasScoreGradient<Part> || HasAdditiveScore<Part>,
                    "mha: this rule cannot be differentiated: it needs score_gradient (with "
                    "kHasScoreGradient), or kAdditiveScore if it only adds to the score");
      const Scalar grad_after = undo_from<kPart + 1, kCollects, Scalar>(
          parts, part.score(s, extent, b, h, i, j), grad, extent, b, h, i, j);
      using Own = typename AsCollecting<Part, kCollects>::type;
      if constexpr (HasScoreGradient<Own>) {
        return static_cast<const Own&>(part).score_gradient(s, grad_after, extent, b, h, i, j);
      } else {
        return grad_after;
      }
    } else {
      return undo_from<kPart + 1, kCollects, Scalar>(parts, s, grad, extent, b, h, i, j);
    }
  }
}

/// The gradient of the score before the rules, from that of the score after them.
/// @tparam kCollects  rules that collect a gradient of their own numbers do so
template <bool kCollects, class RuleSet, class Scalar>
Scalar score_gradient(const RuleSet& rules, const Scalar& s, const Scalar& grad,
                      const Extent& extent, Index b, Index h, Index i, Index j) {
  return undo_from<0, kCollects, Scalar>(rules.parts(), s, grad, extent, b, h, i, j);
}
/// Whether that gradient is the same before and after, since rules only add to scores.
template <bool kCollects, class... Parts>
constexpr bool leaves_gradient(const Rules<Parts...>* /*rules*/) {
  return (
      (!HasScore<Parts> ||
       HasAdditiveScore<typename AsCollecting<std::remove_cvref_t<Parts>, kCollects>::type>)&&...);
}

/// f(rule) for every rule that collects a gradient of its own numbers.
template <class RuleSet, class F>
void for_each_collecting(const RuleSet& rules, const F& f) {
  std::apply(
      [&](const auto&... parts) {
        [[maybe_unused]] const auto visit = [&](const auto& part) {
          if constexpr (CollectsGradient<decltype(part)>) f(part);
        };
        (visit(parts), ...);
      },
      rules.parts());
}

/// The gradient of head h's sink, to the rule that collects it.
template <class RuleSet, class Scalar>
void collect_sink_gradient(const RuleSet& rules, Index h, const Scalar& grad) {
  for_each_collecting(rules, [&](const auto& rule) {
    if constexpr (HasSink<decltype(rule)>) rule.collect(h, grad);
  });
}

/// What adds to the same number of some gradient that a rule collects.
template <class RuleSet>
GradientSharing gradient_sharing(const RuleSet& rules) {
  GradientSharing all{false, false, false};
  for_each_collecting(rules, [&](const auto& rule) {
    using R = std::remove_cvref_t<decltype(rule)>;
    GradientSharing own;
    if constexpr (HasGradientSharing<R>) own = rule.gradient_sharing();
    // A head whose keys are shared out asks for scores' gradients twice, and never for a sink's.
    if constexpr (!CollectsApart<R> || HasSink<R>) own.keys = true;
    all.sequences = all.sequences || own.sequences;
    all.heads = all.heads || own.heads;
    all.keys = all.keys || own.keys;
  });
  return all;
}

}  // namespace mha::detail
