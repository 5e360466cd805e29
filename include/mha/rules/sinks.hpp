// SPDX-License-Identifier: MIT
//
// Logits of the softmax's denominator that have no value.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/internal/support/saturate.hpp"
#include "mha/rules/per_head.hpp"

namespace mha::inline MHA_ABI {

/// sinks(logits).
template <class T>
class Sinks : public Rule {
 public:
  explicit Sinks(Vector<T> logits) : logits_(std::move(logits)) {}
  void check(const CallExtent& call) const {
    detail::require(logits_.size() == 1 || logits_.size() == call.num_heads, call.where,
                    ": sinks must have one logit, or one per query head, got ", logits_.size(),
                    " for num_heads ", call.num_heads);
  }
  template <class Scalar>
  Scalar sink(Index h) const {
    return detail::convert_finite<Scalar>(logits_(logits_.size() == 1 ? 0 : h));
  }
  void add_to(detail::Digest& digest) const { digest.add_list(logits_); }

 private:
  Vector<T> logits_;
};

/// A logit per head that joins the softmax's denominator and has no value: weights sum to less than
/// 1, and lse counts it. A row with no allowed key still gives 0, and its lse is the sink. One
/// number, or an Eigen vector with one per head. Neither scaled nor capped. -inf is no sink; +inf
/// takes all (output and weights 0, lse +inf); NaN makes NaN of its head's rows that have a key. When
/// parts are merged, give it to one of them. Source: Xiao et al. 2023, arXiv:2309.17453, as
/// learned logits (gpt-oss).
/// @throws std::invalid_argument for an empty vector
template <class T>
[[nodiscard]] auto sinks(const T& logits) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "mha::sinks: the logits must be a vector");
    using Scalar = typename T::Scalar;
    return Sinks<Scalar>(detail::copied("sinks: there must be at least one logit", logits));
  } else {
    return Sinks<T>(Vector<T>::Constant(1, logits));
  }
}

/// sinks(logits, gradient).
template <class T, class G>
class LearnedSinks : public Sinks<T> {
 public:
  using Plain = Sinks<T>;
  static constexpr bool kCollectsGradient = true;

  LearnedSinks(Vector<T> logits, const detail::PerHead<G>& gradient)
      : Sinks<T>(std::move(logits)), gradient_(gradient) {}
  template <class Scalar>
  void collect(Index h, const Scalar& grad) const {
    gradient_.add(h, grad);
  }
  GradientSharing gradient_sharing() const { return gradient_.sharing(); }

 private:
  detail::PerHead<G> gradient_;
};

namespace detail {

template <EigenDense S, EigenDense G>
auto make_learned_sinks(const S& logits, G& gradient) {
  static_assert(S::IsVectorAtCompileTime, "mha::sinks: the logits must be a vector");
  using T = typename S::Scalar;
  Vector<T> own = copied("sinks: there must be at least one logit", logits);
  const auto sums = per_head("sinks", gradient, logits.size());
  return LearnedSinks<T, typename G::Scalar>(std::move(own), sums);
}

}  // namespace detail

/// sinks(logits), learned: attention_backward() adds the logits' gradient to `gradient`, as with
/// bias(m, gradient).
template <EigenDense S, EigenDense G>
[[nodiscard]] auto sinks(const S& logits, G& gradient) {
  return detail::make_learned_sinks(logits, gradient);
}
template <EigenDense S, EigenDense G>
requires detail::NamedMemory<G&>
[[nodiscard]] auto sinks(const S& logits, G& gradient MHA_LIFETIMEBOUND) {
  return detail::make_learned_sinks(logits, gradient);
}

}  // namespace mha
