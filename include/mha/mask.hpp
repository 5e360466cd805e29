// SPDX-License-Identifier: MIT
//
// Masks: rules that say which query row i may attend to which key row j. True means "may attend",
// always; a boolean matrix is never passed naked, its factory says what true means. Masks combine
// with `&` (both must allow) and `|` (either, see rules/either.hpp): nothing replaces or silently drops
// anything.
//     causal()  causal_lower_right()  causal_offset(n)     key position <= query position
//     window(left, right)  window_keys(w)                  keys near the query
//     query_offset(n)                                      where the window's queries stand
//     lengths(n)                                           the first n keys of each sequence
//     keep(m)  ignore(m)                                   a boolean matrix or tensor
//     key_padding(m)                                       keys of each sequence, [batch, key]
//     documents(ids)                                       tokens of the same document
//     blocks(m, block_queries, block_keys)                 a boolean matrix of whole blocks
//     mask_mod(f)                                          f(b, h, i, j), a function of yours
// An additive bias, whose -inf masks too, is in score.hpp. A query row that may attend to no key
// gets output 0, weights 0 and lse -inf. Keys and values that a row may not attend to never
// influence it, even if they are NaN or infinite.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/rules/blocks.hpp"
#include "mha/rules/boolean_mask.hpp"
#include "mha/rules/causal.hpp"
#include "mha/rules/documents.hpp"
#include "mha/rules/either.hpp"
#include "mha/rules/key_padding.hpp"
#include "mha/rules/lengths.hpp"
#include "mha/rules/mask_mod.hpp"
#include "mha/rules/window.hpp"
