// SPDX-License-Identifier: MIT
//
// Score modifiers: rules that change scores before the softmax. They combine with each other and
// with masks by `&`. The order is fixed for the first two, written for the rest:
//     s = scale * (q . k)                scale(factor), else 1 / sqrt(head_dim)
//     s = cap * tanh(s / cap)            softcap(cap)
//     s = s + bias, s - slope * |...|    bias(m), alibi(), score_mod(f), in the order written
//     masks, then the softmax            and sinks(logits) in its denominator
// (ONNX since its 2026 erratum, FlashAttention, Gemma 2.)
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/mask.hpp"
#include "mha/rules/alibi.hpp"
#include "mha/rules/bias.hpp"
#include "mha/rules/scale.hpp"
#include "mha/rules/score_mod.hpp"
#include "mha/rules/sinks.hpp"
#include "mha/rules/softcap.hpp"
