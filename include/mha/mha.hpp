// SPDX-License-Identifier: MIT
//
// mha: multi-head attention over Eigen. This header includes the whole library (the optional
// readers in mha/io excepted).
//
//     mha::MultiHead<float, 8> attention(512);     // embed_dim 512 = 8 heads of 64
//     Eigen::MatrixXf y = attention(x);            // self-attention; a row of x is a token
//
// Where things are, in reading order:
//     reference/forward.hpp    attention of one head as the formula says it; the specification
//     types.hpp                Matrix, TensorView and Tensor [batch, head, token, channel]
//     mask.hpp                 causal, window, query_offset, lengths, keep, ignore, key_padding, documents,
//                              blocks, mask_mod
//     score.hpp                scale, softcap, bias, alibi, score_mod, sinks
//     rules/                   one header for each of them; rule.hpp: what they are, and how to write one;
//                              combine.hpp: how `&` joins them, either.hpp: how `|` joins masks;
//                              lanes.hpp: score modifiers over sixteen scores at a time;
//                              dropout.hpp: dropout of attention weights, in training
//     attention.hpp            scaled_dot_product_attention, attention
//     kv_cache.hpp             KvCache: keys and values of one sequence, kept between calls, for generation
//     kv_pool.hpp              KvPool, KvSequence: those of many layers and sequences, in pages
//     cached_attention.hpp     attention to them without the layer
//     storage.hpp              Storage: the type that a cache keeps its numbers in
//     partial.hpp              attention_partial: over a part of the keys, to be joined with others
//     attention_scores.hpp     attention_scores: what the softmax sees
//     attention_gradient.hpp   the backward pass of attention; reference/backward.hpp: its formulas
//     softmax.hpp              the running softmax, merge
//     rotary.hpp               rotary position embedding
//     projection.hpp           Projection: a linear map of tokens, with its gradients
//     multi_head_config.hpp, multi_head.hpp   MultiHead, the layer with its projections
//     layer_calls.hpp          the calls of a layer
//     inference.hpp            Inference: a layer whose weights lie as they are read fastest
//     packed_projection.hpp    PackedProjection: the same of a linear map
//     multi_head_training.hpp  TrainingPass, MultiHeadGradients
//     gradient_check.hpp       gradients of your own against central differences
//     dual.hpp                 Dual: numbers that carry a derivative
//     executor.hpp             Executor, ThreadPool
//     workspace.hpp            Workspace: memory of yours, so that calls allocate nothing
//     instruction_set.hpp      which instruction set is used, and how to choose one
//     compiled.hpp             what the library mha::compiled holds, for programs of many sources
//     internal/                the machinery, not to be included: it may change any day.
//                              docs/architecture.md leads through it
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/attention.hpp"
#include "mha/attention_gradient.hpp"
#include "mha/attention_scores.hpp"
#include "mha/cached_attention.hpp"
#include "mha/gradient_check.hpp"
#include "mha/inference.hpp"
#include "mha/instruction_set.hpp"
#include "mha/kv_cache.hpp"
#include "mha/multi_head.hpp"
#include "mha/partial.hpp"
#include "mha/projection.hpp"
#include "mha/rotary.hpp"
#include "mha/rules/dropout.hpp"
#include "mha/version.hpp"
