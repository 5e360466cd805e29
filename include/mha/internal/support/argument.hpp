// SPDX-License-Identifier: MIT
//
// Matrix arguments of a call: read where they lie, or evaluated once.
#pragma once

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::detail {

/// A matrix argument: the memory of anything that has some, else the evaluated expression.
template <EigenDense M>
class Argument {
 public:
  using Scalar = typename std::remove_cvref_t<M>::Scalar;

  explicit Argument(const M& m) {
    if constexpr (EigenInMemory<M>) {
      view_ = matrix_view(m);
    } else {
      storage_ = m;
      view_ = matrix_view(storage_);
    }
  }
  Argument(const Argument&) = delete;
  Argument& operator=(const Argument&) = delete;

  MatrixView<const Scalar> view() const { return view_; }

 private:
  struct Nothing {};
  std::conditional_t<EigenInMemory<M>, Nothing, Matrix<Scalar>> storage_;
  MatrixView<const Scalar> view_;
};

}  // namespace mha::detail
