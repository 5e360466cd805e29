// SPDX-License-Identifier: MIT
//
// The table of this target's functions. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
namespace mha::inline MHA_ABI::kernels::MHA_TARGET {

template <class T>
inline constexpr Kernels<T> kTable = {Simd<T>::kCount,
                                      product<T>,
                                      pack<T>,
                                      unpack<T>,
                                      fill_rows<T>,
                                      fold_max<T>,
                                      raise<T>,
                                      exponentiate<T>,
                                      exponentiate_rows<T>,
                                      invert<T>,
                                      rescale<T>,
                                      end_row<T>,
                                      add<T>,
                                      merge<T>,
                                      all_finite<T>,
                                      softcap<T>,
                                      weights<T>,
                                      drop<T>,
                                      drop_gradient<T>,
                                      dot<T>,
                                      weight_gradient<T>,
                                      softcap_gradient<T>,
                                      widen<T>};

}  // namespace mha::kernels::MHA_TARGET
#endif
