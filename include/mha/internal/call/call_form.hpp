// SPDX-License-Identifier: MIT
//
// The forms of a call, written down once. What a function reads is followed by nothing, by a rule, by
// options, or by a rule and options:
//     attention(q, k, v)                           attention(q, k, v, causal())
//     attention(q, k, v, {.executor = pool})       attention(q, k, v, causal(), {.executor = pool})
// and what a layer reads is x, or x and a context, or a query, a key and a value.
//
// Each function is one template. Its last parameters have default types, and a braced list, from which
// no type can be deduced, gets that type:
//     template <..., class R = Options, class O = Following<Options, R>>
//     auto f(..., const R& rule = R{}, const O& options = O{})
// Nothing can follow the options: that is what the type NoMore is for. RuleAndOptions and LayerCall say
// which argument is what, and refuse any other order.
#pragma once

#include "mha/internal/support/language.hpp"

#include <type_traits>
#include <utility>

#include "mha/internal/call/batch.hpp"
#include "mha/internal/support/argument.hpp"
#include "mha/rules/combine.hpp"
#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// The type of a parameter for which there is no argument in this form: no braced list fits it.
struct NoMore {
  explicit NoMore() = default;
};

template <class Options, class T>
concept IsOptions = std::is_base_of_v<Options, std::remove_cvref_t<T>>;

template <class T>
concept IsNoMore = std::is_same_v<std::remove_cvref_t<T>, NoMore>;

/// The type that a parameter has, unless its argument says otherwise, behind one of type T.
template <class Options, class T>
using Following = std::conditional_t<IsOptions<Options, T> || IsNoMore<T>, NoMore, Options>;

/// The rule of a call without one.
inline constexpr All kNoRule{};

#define MHA_CALL_FORMS                                                                          \
  "mha: what a call reads (a layer: x, or x and context, or query, key and value) is followed " \
  "by nothing, by a rule, by options, or by a rule and then options; several rules are joined " \
  "by &"

/// The rule and the options of a call, from the arguments behind its inputs.
template <class Options, class R, class O, class... Rest>
class RuleAndOptions {
  static constexpr bool kHasRule = !IsOptions<Options, R> && !IsNoMore<R>;
  static_assert((kHasRule ? IsOptions<Options, O> : IsNoMore<O>)&&(IsNoMore<Rest> && ...),
                MHA_CALL_FORMS);

 public:
  /// Of the rule; that it is one is TypesFit's to say.
  using Rule = std::conditional_t<kHasRule, R, All>;

  RuleAndOptions(const R& rule, const O& options) : first_(rule), second_(options) {}

  const Rule& rule() const {
    if constexpr (kHasRule) {
      return first_;
    } else {
      return kNoRule;
    }
  }
  const Options& options() const {
    if constexpr (IsOptions<Options, R>) {
      return first_;
    } else {
      return second_;
    }
  }

 private:
  const R& first_;
  const O& second_;
};

template <class Options, class R, class O>
RuleAndOptions<Options, R, O> rule_and_options(const R& rule, const O& options) {
  return {rule, options};
}

template <class Given>
using rule_t = typename std::remove_cvref_t<Given>::Rule;

/// An argument of a layer's call, of type M, if it is an input.
template <class Layer, class M, bool kIsInput>
struct LayerInput {
  explicit LayerInput(const M& /*argument*/) {}
};
template <class Layer, class M>
struct LayerInput<Layer, M, true> : Argument<M> {
  static_assert(std::is_same_v<typename M::Scalar, typename Layer::Scalar>,
                "mha: the arguments of MultiHead must have its Scalar");
  using Argument<M>::Argument;
};

/// The arguments of a layer's call: x, or x and a context, or query, key and value; then a rule and
/// options. An expression is evaluated once.
template <class Layer, class A, class B, class C, class D, class E>
class LayerCall {
  using Options = typename Layer::Options;
  static constexpr int kInputs = !EigenDense<A> ? 0 : !EigenDense<B> ? 1 : !EigenDense<C> ? 2 : 3;

  static auto end_of(const B& b, const C& c, const D& d, const E& e) {
    if constexpr (kInputs <= 1) {
      return RuleAndOptions<Options, B, C, D, E>(b, c);
    } else if constexpr (kInputs == 2) {
      return RuleAndOptions<Options, C, D, E>(c, d);
    } else {
      return RuleAndOptions<Options, D, E>(d, e);
    }
  }
  using End = decltype(end_of(std::declval<const B&>(), std::declval<const C&>(),
                              std::declval<const D&>(), std::declval<const E&>()));
  using Rule = typename End::Rule;
  using Scalar = typename Layer::Scalar;
  static_assert(kInputs != 0 && (kInputs == 3 || IsRule<Rule>), MHA_CALL_FORMS);
  static_assert(TypesFit<Scalar, Scalar, Scalar, Rule>::kChecked);

 public:
  LayerCall(const A& a, const B& b, const C& c, const D& d, const E& e)
      : first_(a), second_(b), third_(c), end_(end_of(b, c, d, e)) {}

  MatrixView<const Scalar> query() const { return first_.view(); }
  MatrixView<const Scalar> key() const {
    if constexpr (kInputs >= 2) {
      return second_.view();
    } else {
      return first_.view();
    }
  }
  MatrixView<const Scalar> value() const {
    if constexpr (kInputs == 3) {
      return third_.view();
    } else {
      return key();
    }
  }
  const Rule& rule() const { return end_.rule(); }
  const Options& options() const { return end_.options(); }

 private:
  LayerInput<Layer, A, (kInputs >= 1)> first_;
  LayerInput<Layer, B, (kInputs >= 2)> second_;
  LayerInput<Layer, C, (kInputs == 3)> third_;
  End end_;
};

#undef MHA_CALL_FORMS

}  // namespace mha::detail
