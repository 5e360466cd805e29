// SPDX-License-Identifier: MIT
//
// Lists with one number per head, and where their gradients are summed up.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/support/floating.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// A list with one number for all heads, or one per head, has one at least.
inline void check_per_head(const char* sentence, Index size) {
  require(size >= 1, sentence, ", got ", size);
}

/// A vector of its own, from any Eigen vector or expression.
/// @param sentence  what is wrong without an entry
template <EigenDense S>
Vector<typename S::Scalar> copied(const char* sentence, const S& list) {
  bool has_data = true;
  if constexpr (EigenInMemory<S>) has_data = list.data() != nullptr;
  check_per_head(sentence, has_data ? list.size() : 0);
  Vector<typename S::Scalar> all(list.size());
  for (Index h = 0; h < all.size(); ++h) all(h) = list.coeff(h);
  return all;
}

/// The entry of head h of a list with one for all, or one per head.
template <class G>
struct PerHead {
  G* sums;
  Index size;
  Index stride;  ///< from one head's to the next

  template <class Scalar>
  void add(Index h, const Scalar& grad) const {
    G& sum = sums[size == 1 ? 0 : h * stride];
    sum = convert<G>(Scalar(convert<Scalar>(sum) + grad));
  }
  /// Of a head, all queries and keys add to one number.
  GradientSharing sharing() const { return {true, size == 1 || stride == 0, true}; }
};

template <class G>
PerHead<typename G::Scalar> per_head(const char* rule, G& gradient, Index size) {
  static_assert(G::IsVectorAtCompileTime, "mha: the gradient must be a vector");
  require(gradient.size() == size && gradient.data() != nullptr, rule, ": the gradient must have ",
          size, " entries, got ", gradient.data() == nullptr ? 0 : gradient.size());
  return {gradient.data(), size, gradient.innerStride()};
}

}  // namespace detail

}  // namespace mha
