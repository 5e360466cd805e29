// SPDX-License-Identifier: MIT
//
// The extra key of a layer with add_bias_kv as a softmax state by itself, which is joined after the root of
// the tree (chunk_tree.hpp): so it moves no tile when a sequence grows.
#pragma once

#include "mha/internal/kernels/head.hpp"
#include "mha/internal/kernels/tile_memory.hpp"

namespace mha::inline MHA_ABI::kernels {

/// scores[l] = the score of a key for the queries of a panel.
template <class T>
void score_one_key(const Kernels<T>& kernels, const RuleCalls<T>& calls, const T* key,
                   Index head_dim, const T* query, Index vectors, T* scores) {
  Product<T> x;
  x.rows = 1;
  x.vectors = vectors;
  x.depth = head_dim;
  x.a = key;
  x.a_step = 1;
  x.b = query;
  x.b_step = kLanes<T>;
  x.c = scores;
  x.c_row = kLanes<T>;
  x.fetch[0] = x.fetch[1] = x.a;
  kernels.product(x);
  for (Index l = 0; calls.scales_scores() && l < vectors * kernels.vector_lanes; ++l) {
    scores[l] *= calls.scale;
  }
  if (calls.softcap > T(0)) kernels.softcap(scores, 1, kLanes<T>, vectors, calls.softcap);
}

/// Where a lane is a query. row_max holds its scores before.
template <class T>
void fill_extra_state(const Kernels<T>& kernels, const T* value, Index value_dim, Index vectors,
                      const DropoutLanes<T>* dropout, const SoftmaxState<T>& state) {
  const Index lanes = vectors * kernels.vector_lanes;
  T* const kept = state.row_sum;
  std::fill_n(kept, lanes, T(1));
  if (dropout != nullptr) kernels.drop(kept, 1, vectors, *dropout);
  for (Index c = 0; c < value_dim; ++c) {
    T* const acc = state.acc + c * kLanes<T>;
    for (Index l = 0; l < lanes; ++l) acc[l] = kept[l] == T(0) ? T(0) : value[c];
  }
  std::fill_n(state.row_sum, lanes, T(1));
}

/// Takes the caller's sink and the key of zeros as one logit, ln(e^sink + 1). False: there is neither.
template <class In, class Out, class T>
bool sink_of(const Head<In, Out, T>& head, T& logit) {
  const bool given = head.calls.sink(head.calls.rules, head.h, logit);
  if (!head.task.extra.zero) return given;
  if (!given) {
    logit = T(0);
  } else if (!mha::detail::is_minus_infinity(T(-logit))) {  // +infinity takes all
    const T top = logit > T(0) ? logit : T(0);
    logit = top + std::log(std::exp(logit - top) + std::exp(-top));
  }
  return true;
}

}  // namespace mha::kernels
