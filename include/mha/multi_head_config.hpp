// SPDX-License-Identifier: MIT
//
// What a multi-head attention layer is told: its sizes, once (MultiHeadConfig), and how to read the
// rows of one call (MultiHeadOptions). Read next: multi_head.hpp.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "mha/executor.hpp"
#include "mha/internal/support/initialise.hpp"
#include "mha/rotary.hpp"
#include "mha/workspace.hpp"

namespace mha::inline MHA_ABI {

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
  /// Of the initial parameters: one number, one layer. If not given, the layer draws one that no
  /// other layer of the program has, in the order in which layers are made, so that a program's runs
  /// repeat (unless several threads make layers); MultiHead::config() has it then.
  std::optional<std::uint64_t> seed{};
};

/// What a call of the layer may be told besides its rule.
struct MultiHeadOptions {
  Index batch = 1;           ///< sequences of equal length, one after the other in the rows
  IndexList sequences{};     ///< or: the lengths of sequences that differ (a ragged batch)
  IndexList kv_sequences{};  ///< likewise of key and value; `sequences` if not given
  /// For rotary: one per row of query (of all sequences together, in the order of the rows), or one
  /// number, that of each sequence's first row, the others following. If not given, queries stand
  /// where the call places them among the keys: see past_len.
  IndexList positions{};
  /// Likewise of key. If not given, `positions`, or else 0, 1, 2, ... in every sequence. Must be
  /// given beside `positions` if these are one per row and key has other rows, or if the call
  /// places its queries behind the first key.
  IndexList kv_positions{};
  /// Where query row 0 of a sequence stands among its keys: leading keys that precede it. One
  /// number, or one per sequence; 0 if not given. causal() and windows go by it. The place may be
  /// said by a rule instead, causal_offset(n), causal_lower_right(), query_offset(n), but not by both
  /// unless they agree.
  IndexList past_len{};
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
    require(size >= 0 && size <= kMaxSize, "MultiHead: ", name,
            " must lie between 0 (the default) and ", kMaxSize, ", got ", size);
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
            "MultiHead: with HeadDim fixed at compile time every width must be Heads * HeadDim = ",
            width, ", kv_heads ", heads, " and head_dim ", head_dim, ", got embed_dim ",
            c.embed_dim, ", kv_heads ", c.kv_heads, ", head_dim ", c.head_dim, ", value_dim ",
            c.value_dim, ", kdim ", c.kdim, ", vdim ", c.vdim, " and out_dim ", c.out_dim,
            " (0 = the default)");
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
  require(std::max(c.head_dim, c.value_dim) <= kMaxSize / c.num_heads,
          "MultiHead: num_heads * head_dim and num_heads * value_dim must be at most ", kMaxSize,
          ", got num_heads ", c.num_heads, ", head_dim ", c.head_dim, " and value_dim ",
          c.value_dim);
  if (c.kdim == 0) c.kdim = c.embed_dim;
  if (c.vdim == 0) c.vdim = c.embed_dim;
  if (c.out_dim == 0) c.out_dim = c.embed_dim;
  if (c.rotary) {
    c.rotary->dim = check_rotary("MultiHead: rotary", c.rotary->pairs, c.rotary->dim, c.head_dim,
                                 c.rotary->base);
  }
  if (!c.seed) c.seed = drawn_seed();
  return c;
}

}  // namespace detail
}  // namespace mha
