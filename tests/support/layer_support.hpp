// SPDX-License-Identifier: MIT
//
// What the tests of the layer share, above all MultiHead once more: explicit loops in double,
// written from its definition alone.
#pragma once

#include <mha/mha.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/matchers.hpp"
#include "support/matrices.hpp"

namespace mha::test {

using Tokens = Matrix<double>;  ///< a row is a token

/// Same shape and same bits, so that NaN equals NaN and 0 differs from -0.
template <class A, class B>
bool same_bits(const A& a, const B& b) {
  if constexpr (EigenDense<A>) {
    return HasBitsOf(b).match(a);
  } else {
    return a.sizes() == b.sizes() && same_bits(stacked(a), stacked(b));
  }
}

/// The message of the std::invalid_argument that f() must throw.
template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Every parameter of the layer, biases included, uniform within +-1 / sqrt(inputs): what goes in
/// with entries of order 1 comes out with entries of order 1.
template <class Layer>
void randomise(Layer& layer, unsigned seed) {
  using Scalar = typename Layer::Scalar;
  const auto fill = [&](auto& m, Index inputs) {
    const Tokens numbers = random_matrix<double>(m.rows(), m.cols(), seed++);
    const double bound = 1 / std::sqrt(static_cast<double>(inputs));
    for (Index i = 0; i < m.rows(); ++i) {
      for (Index j = 0; j < m.cols(); ++j) {
        m(i, j) = detail::convert<Scalar>(bound * numbers(i, j));
      }
    }
  };
  for (auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
    fill(linear->weight, linear->inputs());
    fill(linear->bias, 1);
  }
  fill(layer.bias_k, 1);
  fill(layer.bias_v, 1);
}

/// What plain_layer() may be told about one sequence.
struct PlainCall {
  std::function<bool(Index, Index, Index)> allowed{};          ///< (h, i, j); none: all are
  std::function<double(double, Index, Index, Index)> score{};  ///< (score, h, i, j); none: the same
  std::vector<Index> positions{};                              ///< of the queries; none: 0, 1, ...
  std::vector<Index> kv_positions{};                           ///< of the keys; none: 0, 1, ...
};

struct PlainResult {
  Tokens output;
  std::vector<Tokens> weights;  ///< of each head; extra keys at the end
  Tokens lse;                   ///< query_len x num_heads
};

/// x W + b.
template <class Linear>
Tokens plain_projection(const Tokens& x, const Linear& linear) {
  Tokens y(x.rows(), linear.weight.cols());
  for (Index i = 0; i < y.rows(); ++i) {
    for (Index c = 0; c < y.cols(); ++c) {
      double sum = linear.bias.size() == 0 ? 0 : detail::convert<double>(linear.bias(c));
      for (Index d = 0; d < x.cols(); ++d) {
        sum += x(i, d) * detail::convert<double>(linear.weight(d, c));
      }
      y(i, c) = sum;
    }
  }
  return y;
}

/// Turns the pairs of the first `how.dim` channels of every head.
inline void plain_rotary(Tokens& x, Index heads, const Rotary& how,
                         const std::vector<Index>& positions) {
  const Index head_dim = x.cols() / heads;
  const Index dim = how.dim == 0 ? head_dim : how.dim;
  for (Index i = 0; i < x.rows(); ++i) {
    const Index position = positions.empty() ? i : positions[static_cast<std::size_t>(i)];
    for (Index h = 0; h < heads; ++h) {
      for (Index k = 0; k < dim / 2; ++k) {
        const bool half = how.pairs == RotaryPairs::half;
        const Index a = h * head_dim + (half ? k : 2 * k);
        const Index b = h * head_dim + (half ? k + dim / 2 : 2 * k + 1);
        const double angle =
            static_cast<double>(position) *
            std::pow(how.base, -2 * static_cast<double>(k) / static_cast<double>(dim));
        const double x1 = x(i, a);
        const double x2 = x(i, b);
        x(i, a) = std::cos(angle) * x1 - std::sin(angle) * x2;
        x(i, b) = std::sin(angle) * x1 + std::cos(angle) * x2;
      }
    }
  }
}

/// One sequence through a layer of any Scalar, in double, one number at a time.
template <class Layer>
PlainResult plain_layer(const Layer& layer, const Tokens& query, const Tokens& key,
                        const Tokens& value, const PlainCall& call = {}) {
  const MultiHeadConfig& c = layer.config();
  const Index query_len = query.rows();
  const Index kv_len = key.rows();
  Tokens q = plain_projection(query, layer.q_proj);
  Tokens k = plain_projection(key, layer.k_proj);
  Tokens v = plain_projection(value, layer.v_proj);
  if (c.rotary) {
    plain_rotary(q, c.num_heads, *c.rotary, call.positions);
    plain_rotary(k, c.kv_heads, *c.rotary, call.kv_positions);
  }
  const auto append = [](Tokens& x) -> Index {
    x.conservativeResize(x.rows() + 1, x.cols());
    x.row(x.rows() - 1).setZero();
    return x.rows() - 1;
  };
  if (c.add_bias_kv) {
    const Index row = append(k);
    append(v);
    for (Index d = 0; d < k.cols(); ++d) k(row, d) = detail::convert<double>(layer.bias_k(d));
    for (Index d = 0; d < v.cols(); ++d) v(row, d) = detail::convert<double>(layer.bias_v(d));
  }
  if (c.add_zero_attn) {
    append(k);
    append(v);
  }

  PlainResult result;
  result.lse.resize(query_len, c.num_heads);
  Tokens concat = Tokens::Zero(query_len, c.num_heads * c.value_dim);
  for (Index h = 0; h < c.num_heads; ++h) {
    const Index kv_head = h * c.kv_heads / c.num_heads;
    Tokens weights = Tokens::Zero(query_len, k.rows());
    for (Index i = 0; i < query_len; ++i) {
      double row_sum = 0;
      for (Index j = 0; j < k.rows(); ++j) {
        if (j < kv_len && call.allowed && !call.allowed(h, i, j)) continue;
        double score = 0;
        for (Index d = 0; d < c.head_dim; ++d) {
          score += q(i, h * c.head_dim + d) * k(j, kv_head * c.head_dim + d);
        }
        score /= std::sqrt(static_cast<double>(c.head_dim));
        if (j < kv_len && call.score) score = call.score(score, h, i, j);
        weights(i, j) = std::exp(score);  // scores are of order 1 here: no need for a maximum
        row_sum += weights(i, j);
      }
      result.lse(i, h) = std::log(row_sum);
      if (row_sum > 0) weights.row(i) /= row_sum;
      for (Index j = 0; j < k.rows(); ++j) {
        for (Index d = 0; d < c.value_dim; ++d) {
          concat(i, h * c.value_dim + d) += weights(i, j) * v(j, kv_head * c.value_dim + d);
        }
      }
    }
    result.weights.push_back(weights);
  }
  result.output = plain_projection(concat, layer.out_proj);
  return result;
}

/// How far weights and lse may be from plain_layer() when all numbers are of order 1: they pass
/// through sums over inputs, channels and keys, an output through one more, over the concatenated
/// heads; each adds at most its length times the accumulator's eps. The factor leaves room for
/// products of rounded numbers (measured: 0.25 would do).
template <class Layer>
double inner_tolerance(const Layer& layer, Index kv_len) {
  constexpr double kFactor = 2;
  const MultiHeadConfig& c = layer.config();
  const Index inputs = std::max({c.embed_dim, c.kdim, c.vdim});
  const auto length =
      static_cast<double>(inputs + c.head_dim + kv_len + 2 + c.num_heads * c.value_dim);
  return kFactor * std::max(eps_of<typename Layer::Acc>(), eps_of<double>()) * length;
}

/// The same for an output, which is rounded once to the Scalar; |output| < 4.
template <class Layer>
double layer_tolerance(const Layer& layer, Index kv_len) {
  return inner_tolerance(layer, kv_len) + 2 * eps_of<typename Layer::Scalar>();
}

}  // namespace mha::test
