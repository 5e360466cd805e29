// SPDX-License-Identifier: MIT
//
// Masks by a function of yours.
#pragma once

#include "mha/internal/support/language.hpp"

#include <utility>

#include "mha/internal/support/checks.hpp"
#include "mha/rules/combine.hpp"

namespace mha::inline MHA_ABI {

/// mask_mod(f).
template <class F>
class MaskFunction : public Rule {
 public:
  explicit MaskFunction(F f) : f_(std::move(f)) {
    detail::require_function("mask_mod: the function", f_);
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return static_cast<bool>(f_(b, h, i, j));
  }

 private:
  F f_;
};

/// f(b, h, i, j): may query row i of head h in sequence b attend to key row j? Called once or more
/// per pair, in any order, from several threads if an executor is given.
template <class F>
[[nodiscard]] auto mask_mod(F f) {
  static_assert(std::is_invocable_r_v<bool, const F&, Index, Index, Index, Index>,
                "mha::mask_mod: the function must take (b, h, i, j) and return bool");
  return MaskFunction<F>(std::move(f));
}

}  // namespace mha
