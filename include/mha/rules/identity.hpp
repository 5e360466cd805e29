// SPDX-License-Identifier: MIT
//
// When two calls have the same rule, as a forward and its backward pass must: what is compared of their types.
#pragma once

#include "mha/rules/either.hpp"

namespace mha::inline MHA_ABI::detail {

/// What a rule's type counts as where two calls must have the same: without const and references, and
/// without the collecting of a gradient, which rules name by a member type `Plain`.
template <class R>
struct PlainRule {
  using type = R;
};
template <class R>
requires requires { typename R::Plain; }
struct PlainRule<R> {
  using type = typename R::Plain;
};
template <class... Parts>
struct PlainRule<Rules<Parts...>> {
  using type = Rules<typename PlainRule<std::remove_cvref_t<Parts>>::type...>;
};
template <class A, class B>
struct PlainRule<Either<A, B>> {
  using type = Either<typename PlainRule<A>::type, typename PlainRule<B>::type>;
};

/// Its address stands for T. Not const: those of equal value may be merged into one.
template <class T>
inline char type_tag = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

/// Equal for rules of one plain type, within one program or shared library.
template <class RuleSet>
const void* rule_identity() {
  return &type_tag<typename PlainRule<std::remove_cvref_t<RuleSet>>::type>;
}

}  // namespace mha::detail
