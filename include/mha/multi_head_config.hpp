// SPDX-License-Identifier: MIT
//
// What a multi-head attention layer is told: its sizes, once (MultiHeadConfig), and how to read the
// rows of one call (MultiHeadOptions). Read next: multi_head.hpp.
#pragma once

#include "mha/language.hpp"

#include <cstdint>
#include <optional>
#include <vector>

#include "mha/executor.hpp"
#include "mha/rotary.hpp"
#include "mha/workspace.hpp"

namespace mha {

/// The sizes and options of a layer. 0 means the default named beside it.
struct MultiHeadConfig {
  Index embed_dim = 0;             ///< columns of query; must be given unless fixed at compile time
  Index num_heads = 0;             ///< query heads; the class's Heads unless that is Eigen::Dynamic
  Index kv_heads = 0;              ///< num_heads; fewer: grouped-query, 1: multi-query attention
  Index head_dim = 0;              ///< embed_dim / num_heads
  Index value_dim = 0;             ///< head_dim
  Index kdim = 0;                  ///< columns of key; embed_dim
  Index vdim = 0;                  ///< columns of value; embed_dim
  Index out_dim = 0;               ///< columns of the output; embed_dim
  bool bias = true;                ///< projections add a bias
  bool add_bias_kv = false;        ///< one learned key and value at the end of every sequence
  bool add_zero_attn = false;      ///< a key and value of zeros at the end: a sink with logit 0
  std::optional<Rotary> rotary{};  ///< rotate projected queries and keys
  std::uint64_t seed = 0;          ///< of the initial parameters
};

/// What a call of the layer may be told besides its rule.
struct MultiHeadOptions {
  Index batch = 1;           ///< sequences of equal length, one after the other in the rows
  IndexList sequences{};     ///< or: the lengths of sequences that differ (a ragged batch)
  IndexList kv_sequences{};  ///< likewise of key and value; `sequences` if not given
  IndexList positions{};     ///< for rotary: one per row of query, or that of each sequence's first
                             ///< row, the others following; default past_len
  IndexList kv_positions{};  ///< likewise of key; default `positions`, or 0
  Index past_len = 0;        ///< leading keys of each sequence that precede query row 0
  bool need_weights = false;       ///< return the weights of every head; changes no other number
  bool average_weights = false;    ///< return them averaged over the heads
  bool need_lse = false;           ///< return the log of each row's softmax denominator
  Executor executor{};             ///< who computes; the calling thread if not given
  Workspace* workspace = nullptr;  ///< memory of yours to work in; else the call's own
};

namespace detail {

/// The config with every default filled in.
/// @param heads, head_dim  the class's template arguments; Eigen::Dynamic = not fixed
/// @throws std::invalid_argument if the sizes contradict each other
inline MultiHeadConfig resolve(MultiHeadConfig c, Index heads, Index head_dim) {
  const auto check_size = [](const char* name, Index size) {
    require(size >= 0 && size <= kMaxSize, "MultiHead: ", name, " must lie between 1 and ",
            kMaxSize, ", got ", size);
  };
  check_size("embed_dim", c.embed_dim);
  check_size("num_heads", c.num_heads);
  check_size("kv_heads", c.kv_heads);
  check_size("head_dim", c.head_dim);
  check_size("value_dim", c.value_dim);
  check_size("kdim", c.kdim);
  check_size("vdim", c.vdim);
  check_size("out_dim", c.out_dim);
  if (heads != Eigen::Dynamic) {
    require(c.num_heads == 0 || c.num_heads == heads,
            "MultiHead: num_heads must equal the class's Heads, got ", c.num_heads, " and ", heads);
    c.num_heads = heads;
  }
  require(c.num_heads > 0, "MultiHead: num_heads must be at least 1, got ", c.num_heads);
  if (head_dim != Eigen::Dynamic) {
    const Index width = heads * head_dim;
    const bool as_fixed =
        (c.embed_dim == 0 || c.embed_dim == width) && (c.kv_heads == 0 || c.kv_heads == heads) &&
        (c.head_dim == 0 || c.head_dim == head_dim) &&
        (c.value_dim == 0 || c.value_dim == head_dim) && (c.kdim == 0 || c.kdim == width) &&
        (c.vdim == 0 || c.vdim == width) && (c.out_dim == 0 || c.out_dim == width);
    require(as_fixed,
            "MultiHead: with HeadDim fixed at compile time every width must be Heads * "
            "HeadDim, got another than ",
            width);
    c.embed_dim = width;
  }
  require(c.embed_dim > 0, "MultiHead: embed_dim must be at least 1, got ", c.embed_dim);
  if (c.kv_heads == 0) c.kv_heads = c.num_heads;
  require(c.num_heads % c.kv_heads == 0, "MultiHead: kv_heads must divide num_heads, got ",
          c.kv_heads, " and ", c.num_heads);
  if (c.head_dim == 0) {
    require(c.embed_dim % c.num_heads == 0,
            "MultiHead: num_heads must divide embed_dim unless head_dim is given, got ",
            c.num_heads, " and ", c.embed_dim);
    c.head_dim = c.embed_dim / c.num_heads;
  }
  if (c.value_dim == 0) c.value_dim = c.head_dim;
  if (c.kdim == 0) c.kdim = c.embed_dim;
  if (c.vdim == 0) c.vdim = c.embed_dim;
  if (c.out_dim == 0) c.out_dim = c.embed_dim;
  if (c.rotary) {
    c.rotary->dim = check_rotary("MultiHead: rotary", c.rotary->pairs, c.rotary->dim, c.head_dim,
                                 c.rotary->base);
  }
  return c;
}

}  // namespace detail
}  // namespace mha
