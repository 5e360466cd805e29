// SPDX-License-Identifier: MIT
//
// mha: multi-head attention over Eigen. This header includes the whole library (the optional
// readers in mha/io excepted).
//
//     mha::MultiHead<float, 8> attention(512);     // embed_dim 512 = 8 heads of 64
//     Eigen::MatrixXf y = attention(x);            // self-attention; a row of x is a token
//
// Where things are, in reading order:
//     reference.hpp    attention of one head as the formula says it; the specification
//     types.hpp        Matrix, TensorView and Tensor [batch, head, token, channel]
//     rule.hpp         what masks and score modifiers are, and how to write one
//     rules.hpp        how `&` joins them; either.hpp: how `|` joins masks
//     mask.hpp         causal, window, query_offset, lengths, keep, ignore, mask_mod
//     key_padding.hpp, documents.hpp, blocks.hpp   masks that answer for whole tiles
//     score.hpp        scale, softcap, bias, alibi, score_mod, sinks
//     attention.hpp    scaled_dot_product_attention, attention
//     scores.hpp       attention_scores: what the softmax sees
//     softmax.hpp      the running softmax, merge
//     rotary.hpp       rotary position embedding
//     projection.hpp   Projection: a linear map of tokens, with its gradients
//     multi_head_config.hpp, multi_head.hpp   MultiHead, the layer with its projections
//     gradient.hpp     the backward pass of attention; reference_gradient.hpp: its formulas;
//                      layer_gradient.hpp: that of the layer, TrainingPass, MultiHeadGradients
//     dropout.hpp      dropout of attention weights, in training
//     gradient_check.hpp   gradient_check: gradients of your own against central differences
//     dual.hpp         Dual: numbers that carry a derivative
//     executor.hpp     Executor, ThreadPool
//     workspace.hpp    Workspace: memory of yours, so that calls allocate nothing
//     lanes.hpp        Lanes: score modifiers over sixteen scores at a time
//     compiled.hpp     what the library mha::compiled holds, for programs of many sources
//     kernels/         the fast path. tile_product.hpp: the one register tile; tile_softmax.hpp: the
//                      running softmax; query_tile.hpp, few_rows.hpp: attention on them; project.hpp:
//                      projections; targets.hpp, dispatch.hpp: how instruction sets are chosen
//     inside: batch, batch_gradient, call_form, checks, matrix_check, overlap, projection_forward,
//     projection_gradient, projection_call, layer_memory, layer_pass, layer_check, head_columns,
//     sequences, extra_keys, initialise, floating, saturate, digest, grid, index_list, sizes, error,
//     language (one sentence for compilers of an older C++)
#pragma once

#include "mha/language.hpp"

#include "mha/attention.hpp"
#include "mha/dropout.hpp"
#include "mha/gradient.hpp"
#include "mha/gradient_check.hpp"
#include "mha/multi_head.hpp"
#include "mha/projection.hpp"
#include "mha/rotary.hpp"
#include "mha/scores.hpp"
#include "mha/version.hpp"
