// SPDX-License-Identifier: MIT
//
// Keys beyond the caller's that every query may attend to: what add_bias_kv and add_zero_attn give a layer. Scale
// and softcap apply to them and no other rule; rules speak of the caller's keys alone. They stand behind
// the last key of a sequence: bias_k at kv_len, the key of zeros behind it.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

template <class Acc>
struct ExtraKeys {
  const Acc* key = nullptr;    ///< [head_dim], null: none
  const Acc* value = nullptr;  ///< [value_dim]
  bool zero = false;           ///< one more, of zeros: a logit 0 in the denominator

  Index count() const { return (key != nullptr ? 1 : 0) + (zero ? 1 : 0); }
};

}  // namespace mha
