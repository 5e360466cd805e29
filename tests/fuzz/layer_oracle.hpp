// SPDX-License-Identifier: MIT
//
// The layer and its gradients in plain loops over numbers that carry their tolerance: projections and
// rotary positions around oracle.hpp's heads.
//     q = x W_Q + b_Q, ...     rotated     heads     y = concat W_O + b_O
#pragma once

#include "fuzz/oracle.hpp"

namespace mha::fuzz {

/// y = x W + b, one chain of multiply-adds over the inputs. W is taken for exact, x may carry errors.
inline Table project(const Arithmetic& with, const Table& x, const Table& weight,
                     const Table& bias) {
  Table y(x.rows, weight.cols);
  const auto terms = static_cast<long double>(x.cols);
  std::vector<long double> column(static_cast<std::size_t>(x.cols));
  for (Index c = 0; c < y.cols; ++c) {
    for (Index d = 0; d < x.cols; ++d) column[static_cast<std::size_t>(d)] = weight(d, c).v;
    const Bounded start = bias.cols > 0 ? bias(0, c) : Bounded{};
    for (Index i = 0; i < x.rows; ++i) {
      const Bounded* const a = x.entries.data() + i * x.cols;
      long double sum = start.v, off = 0, size = std::abs(start.v);
      for (Index d = 0; d < x.cols; ++d) {
        const long double product = a[d].v * column[static_cast<std::size_t>(d)];
        sum += product;
        size += std::abs(product);
        if (a[d].e != 0) off += a[d].e * std::abs(column[static_cast<std::size_t>(d)]);
      }
      y(i, c) = {sum,
                 start.e + off + (terms + 2) * with.u * (size + off) + with.tiny * (terms + 1)};
    }
  }
  return y;
}

inline Table transposed(const Table& m) {
  Table t(m.cols, m.rows);
  for (Index r = 0; r < m.rows; ++r) {
    for (Index c = 0; c < m.cols; ++c) t(c, r) = m(r, c);
  }
  return t;
}

/// Sums of columns, as one row.
inline Table column_sums(const Arithmetic& with, const Table& m) {
  Table sums(1, m.cols);
  for (Index c = 0; c < m.cols; ++c) {
    BoundedSum sum;
    for (Index r = 0; r < m.rows; ++r) sum.add(m(r, c));
    sums(0, c) = sum.result(with);
  }
  return sums;
}

/// How heads are rotated; dim = 0: not at all.
struct PlainRotary {
  Index dim = 0;
  bool interleaved = false;
  double base = 10000;
};

/// One token's channels of one head, turned by its position (backwards: by -position). The angle is
/// computed in double; its error is that of the power, the product, sine and cosine.
inline void turn(const Arithmetic& with, Table& rows, Index row, Index col, const PlainRotary& how,
                 Index position, bool backwards) {
  for (Index k = 0; k < how.dim / 2; ++k) {
    const long double angle =
        static_cast<long double>(position) *
        std::pow(static_cast<long double>(how.base),
                 -2.0L * static_cast<long double>(k) / static_cast<long double>(how.dim));
    const long double off = with.u + 0x1p-52L * (2 + 3 * std::abs(angle));
    const Bounded cosine{std::cos(angle), off};
    const Bounded sine{backwards ? -std::sin(angle) : std::sin(angle), off};
    Bounded& first = rows(row, col + (how.interleaved ? 2 * k : k));
    Bounded& second = rows(row, col + (how.interleaved ? 2 * k + 1 : k + how.dim / 2));
    const Bounded x1 = first;
    const Bounded x2 = second;
    first = with.subtract(with.multiply(cosine, x1), with.multiply(sine, x2));
    second = with.add(with.multiply(sine, x1), with.multiply(cosine, x2));
  }
}

inline void put(Table& to, Index row, Index col, const Table& part) {
  for (Index r = 0; r < part.rows; ++r) {
    for (Index c = 0; c < part.cols; ++c) to(row + r, col + c) = part(r, c);
  }
}
inline void add_to(const Arithmetic& with, Table& to, Index row, Index col, const Table& part) {
  for (Index r = 0; r < part.rows; ++r) {
    for (Index c = 0; c < part.cols; ++c) {
      to(row + r, col + c) = with.add(to(row + r, col + c), part(r, c));
    }
  }
}
inline Table block(const Table& m, Index row, Index rows, Index col, Index cols) {
  return m.middle_rows(row, rows).middle_cols(col, cols);
}

/// The layer: its sizes and parameters.
struct PlainLayer {
  Index num_heads = 1, kv_heads = 1, head_dim = 1, value_dim = 1;
  bool zero_attn = false;
  PlainRotary rotary;
  Table q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, out_weight, out_bias;
  Table bias_k, bias_v;  ///< one row each with add_bias_kv
  bool has_bias_kv() const { return bias_k.cols > 0; }
};

/// A call of it: where each sequence lies in the rows, and where its tokens stand.
struct PlainSequences {
  std::vector<Index> query_len, kv_len;
  std::vector<Index> query_position, key_position;  ///< of each row
  Index first = 0;                                  ///< the call's number of the first of them
};

struct LayerTruth {
  Table output, concat, lse;
  Table q, k, v;                              ///< projected and rotated; k, v without bias_k
  std::vector<std::vector<HeadTruth>> heads;  ///< [sequence][head]
};

/// Keys of one sequence and key head, with bias_k at the end.
inline Table with_extra_row(const Table& own, const Table& extra, Index col) {
  Table all(own.rows + (extra.cols > 0 ? 1 : 0), own.cols);
  put(all, 0, 0, own);
  if (extra.cols > 0) put(all, own.rows, 0, extra.middle_cols(col, own.cols));
  return all;
}

inline LayerTruth forward(const Arithmetic& with, const PlainLayer& layer,
                          const PlainSequences& rows, const Table& query, const Table& key,
                          const Table& value, const PlainRule& rule) {
  LayerTruth t;
  t.q = project(with, query, layer.q_weight, layer.q_bias);
  t.k = project(with, key, layer.k_weight, layer.k_bias);
  t.v = project(with, value, layer.v_weight, layer.v_bias);
  for (Index i = 0; i < t.q.rows; ++i) {
    for (Index h = 0; h < layer.num_heads; ++h) {
      turn(with, t.q, i, h * layer.head_dim, layer.rotary,
           rows.query_position[static_cast<std::size_t>(i)], false);
    }
  }
  for (Index j = 0; j < t.k.rows; ++j) {
    for (Index h = 0; h < layer.kv_heads; ++h) {
      turn(with, t.k, j, h * layer.head_dim, layer.rotary,
           rows.key_position[static_cast<std::size_t>(j)], false);
    }
  }
  t.concat = Table(query.rows, layer.num_heads * layer.value_dim);
  t.lse = Table(query.rows, layer.num_heads);
  Index row = 0;
  Index key_row = 0;
  for (std::size_t b = 0; b < rows.query_len.size(); ++b) {
    t.heads.emplace_back();
    const Index n = rows.query_len[b];
    const Index m = rows.kv_len[b];
    for (Index h = 0; h < layer.num_heads; ++h) {
      const Index g = h / (layer.num_heads / layer.kv_heads);
      const Index col = g * layer.head_dim;
      const Table k =
          with_extra_row(block(t.k, key_row, m, col, layer.head_dim), layer.bias_k, col);
      const Table v = with_extra_row(block(t.v, key_row, m, g * layer.value_dim, layer.value_dim),
                                     layer.bias_v, g * layer.value_dim);
      t.heads.back().push_back(attend(with, block(t.q, row, n, h * layer.head_dim, layer.head_dim),
                                      k, v, rule, rows.first + static_cast<Index>(b), h));
      put(t.concat, row, h * layer.value_dim, t.heads.back().back().output);
      put(t.lse, row, h, t.heads.back().back().lse);
    }
    row += n;
    key_row += m;
  }
  t.output = project(with, t.concat, layer.out_weight, layer.out_bias);
  return t;
}

struct LayerGradientTruth {
  PlainLayer parameters;  ///< the gradient of each
  Table query, key, value;
};

inline LayerGradientTruth backward(const Arithmetic& with, const PlainLayer& layer,
                                   const PlainSequences& rows, const Table& query, const Table& key,
                                   const Table& value, const PlainRule& rule, const LayerTruth& t,
                                   const Table& grad_output) {
  LayerGradientTruth g;
  const Table none;
  PlainLayer& p = g.parameters;
  p.out_weight = project(with, transposed(t.concat), grad_output, none);
  p.out_bias = column_sums(with, grad_output);
  const Table grad_concat = project(with, grad_output, transposed(layer.out_weight), none);
  Table grad_q(t.q.rows, t.q.cols), grad_k(t.k.rows, t.k.cols), grad_v(t.v.rows, t.v.cols);
  p.bias_k = Table(layer.has_bias_kv() ? 1 : 0, layer.bias_k.cols);
  p.bias_v = Table(layer.has_bias_kv() ? 1 : 0, layer.bias_v.cols);
  Index row = 0;
  Index key_row = 0;
  for (std::size_t b = 0; b < rows.query_len.size(); ++b) {
    const Index n = rows.query_len[b];
    const Index m = rows.kv_len[b];
    for (Index h = 0; h < layer.num_heads; ++h) {
      const Index group = h / (layer.num_heads / layer.kv_heads);
      const Index col = group * layer.head_dim;
      const Index value_col = group * layer.value_dim;
      const HeadGradientTruth head =
          backward(with, block(t.q, row, n, h * layer.head_dim, layer.head_dim),
                   with_extra_row(block(t.k, key_row, m, col, layer.head_dim), layer.bias_k, col),
                   with_extra_row(block(t.v, key_row, m, value_col, layer.value_dim), layer.bias_v,
                                  value_col),
                   block(grad_concat, row, n, h * layer.value_dim, layer.value_dim),
                   t.heads[b][static_cast<std::size_t>(h)], rule,
                   rows.first + static_cast<Index>(b), h, 0, 0);
      put(grad_q, row, h * layer.head_dim, head.query);
      add_to(with, grad_k, key_row, col, head.key.middle_rows(0, m));
      add_to(with, grad_v, key_row, value_col, head.value.middle_rows(0, m));
      if (layer.has_bias_kv()) {
        add_to(with, p.bias_k, 0, col, head.key.middle_rows(m, 1));
        add_to(with, p.bias_v, 0, value_col, head.value.middle_rows(m, 1));
      }
    }
    row += n;
    key_row += m;
  }
  for (Index i = 0; i < grad_q.rows; ++i) {
    for (Index h = 0; h < layer.num_heads; ++h) {
      turn(with, grad_q, i, h * layer.head_dim, layer.rotary,
           rows.query_position[static_cast<std::size_t>(i)], true);
    }
  }
  for (Index j = 0; j < grad_k.rows; ++j) {
    for (Index h = 0; h < layer.kv_heads; ++h) {
      turn(with, grad_k, j, h * layer.head_dim, layer.rotary,
           rows.key_position[static_cast<std::size_t>(j)], true);
    }
  }
  // x^T dy: the error is in dy, so that y^T x is computed and turned.
  const auto of_weight = [&](const Table& x, const Table& grad) {
    return transposed(project(with, transposed(grad), x, none));
  };
  p.q_weight = of_weight(query, grad_q);
  p.k_weight = of_weight(key, grad_k);
  p.v_weight = of_weight(value, grad_v);
  p.q_bias = column_sums(with, grad_q);
  p.k_bias = column_sums(with, grad_k);
  p.v_bias = column_sums(with, grad_v);
  g.query = project(with, grad_q, transposed(layer.q_weight), none);
  g.key = project(with, grad_k, transposed(layer.k_weight), none);
  g.value = project(with, grad_v, transposed(layer.v_weight), none);
  return g;
}

}  // namespace mha::fuzz
