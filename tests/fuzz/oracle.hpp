// SPDX-License-Identifier: MIT
//
// Attention and its gradients of one head, in plain loops over numbers that carry their tolerance
// (bounded.hpp). Written from the formulas, and from nothing of the library:
//     s_ij = modifiers(cap tanh(scale q_i . k_j / cap))       masked pairs never exist
//     P = softmax(s, sink)     O_i = sum_j P_ij d_ij v_j       d: dropout's factor, 0 or 1 / (1 - p)
//     lse_i = ln(sum_j exp s_ij + exp sink)
//     dV_j = sum_i P_ij d_ij dO_i        dP_ij = d_ij dO_i . v_j       delta_i = sum_j P_ij dP_ij
//     dS_ij = P_ij (dP_ij - delta_i)     ds = dS times the slopes of modifiers and cap
//     dQ_i = scale sum_j ds_ij k_j       dK_j = scale sum_i ds_ij q_i
#pragma once

#include <functional>
#include <optional>

#include "fuzz/bounded.hpp"

namespace mha::fuzz {

/// A score and its derivative by the score before.
struct Modified {
  Bounded score;
  long double slope = 1;
};

/// What rules mean. b, h, i, j count within the whole call.
struct PlainRule {
  std::vector<std::function<bool(Index b, Index h, Index i, Index j)>> masks;
  std::vector<std::function<Modified(const Bounded& s, Index b, Index h, Index i, Index j)>>
      modifiers;
  std::optional<long double> scale;
  long double cap = 0;
  std::function<std::optional<long double>(Index h)> sink = [](Index) { return std::nullopt; };
  std::function<long double(Index b, Index h, Index i, Index j)> dropout;  ///< none: 1
  /// Keys from here on are the layer's own: always allowed, and only the cap touches their scores.
  std::function<Index(Index b)> first_extra = [](Index) {
    return std::numeric_limits<Index>::max();
  };

  bool allows(Index b, Index h, Index i, Index j) const {
    if (j >= first_extra(b)) return true;
    for (const auto& mask : masks) {
      if (!mask(b, h, i, j)) return false;
    }
    return true;
  }
};

/// One head of one sequence, computed.
struct HeadTruth {
  Table output, weights, lse;
  Table scores;                ///< modified ones
  std::vector<char> allowed;   ///< query_len x kv_len
  std::vector<Bounded> slope;  ///< d score / d (scale q . k), likewise
  bool is_allowed(Index i, Index j) const {
    return allowed[static_cast<std::size_t>(i * weights.cols + j)] != 0;
  }
};

/// The score of a pair, from scale q . k on.
inline Modified modified_score(const Arithmetic& with, const PlainRule& rule, const Bounded& scaled,
                               Index b, Index h, Index i, Index j) {
  Modified result{scaled, 1};
  if (rule.cap > 0) {
    const long double t = std::tanh(scaled.v / rule.cap);
    result.score = {rule.cap * t, scaled.e + 12 * with.u * std::abs(scaled.v) + with.tiny};
    result.slope = 1 - t * t;
  }
  if (j >= rule.first_extra(b)) return result;
  for (const auto& modifier : rule.modifiers) {
    const Modified next = modifier(result.score, b, h, i, j);
    result = {next.score, result.slope * next.slope};
  }
  return result;
}

/// A weight lies between 0 and 1, and so does a computed one, to rounding.
inline void clamp_weight(const Arithmetic& with, Bounded& weight) {
  weight.e = std::min(weight.e, 1 + 16 * with.u);
}

inline HeadTruth attend(const Arithmetic& with, const Table& q, const Table& k, const Table& v,
                        const PlainRule& rule, Index b, Index h) {
  HeadTruth truth;
  truth.output = Table(q.rows, v.cols);
  truth.weights = truth.scores = Table(q.rows, k.rows);
  truth.lse = Table(q.rows, 1);
  truth.allowed.assign(truth.weights.entries.size(), 0);
  truth.slope.assign(truth.weights.entries.size(), {});
  const long double scale =
      rule.scale.value_or(1 / std::sqrt(static_cast<long double>(std::max<Index>(q.cols, 1))));
  const std::optional<long double> sink = rule.sink(h);
  for (Index i = 0; i < q.rows; ++i) {
    long double most = sink.value_or(-std::numeric_limits<long double>::infinity());
    bool any = sink.has_value();
    bool any_key = false;
    for (Index j = 0; j < k.rows; ++j) {
      if (!rule.allows(b, h, i, j)) continue;
      BoundedSum dot;
      for (Index d = 0; d < q.cols; ++d) dot.add_product(q(i, d), k(j, d));
      Bounded scaled = dot.result(with);
      scaled = with.multiply(scaled, {scale, 3 * with.u * std::abs(scale)});
      scaled.e += 2 * with.u * std::abs(scaled.v);  // times log2(e), or into another unit
      const Modified m = modified_score(with, rule, scaled, b, h, i, j);
      const auto at = static_cast<std::size_t>(i * k.rows + j);
      truth.scores.entries[at] = m.score;
      truth.allowed[at] = 1;
      truth.slope[at] = {m.slope, 0};
      most = any ? std::max(most, m.score.v) : m.score.v;
      any = any_key = true;
    }
    if (!any) {
      truth.lse(i, 0) = {-std::numeric_limits<long double>::infinity(), 0};
      continue;
    }
    // exp(s - most) with the error of the difference, whatever the reference is.
    const auto power = [&](const Bounded& s) {
      const long double distance = std::abs(s.v) + std::abs(most);
      Bounded p = with.exp({s.v - most, s.e + 3 * with.u * distance});
      p.e += with.least;
      return p;
    };
    BoundedSum sum;
    if (sink) sum.add(power({*sink, 4 * with.u * (1 + std::abs(*sink))}));
    for (Index j = 0; j < k.rows; ++j) {
      if (truth.is_allowed(i, j)) sum.add(truth.weights(i, j) = power(truth.scores(i, j)));
    }
    const Bounded total = sum.result(with);
    const long double share = total.v > total.e ? total.e / (total.v - total.e)
                                                : std::numeric_limits<long double>::infinity();
    const long double lse = most + std::log(total.v);
    truth.lse(i, 0) = {lse, share + with.u * (8 * std::abs(lse) + 4 * std::abs(most) + 8)};
    if (!any_key) continue;
    for (Index j = 0; j < k.rows; ++j) {
      if (!truth.is_allowed(i, j)) continue;
      truth.weights(i, j) = with.divide(truth.weights(i, j), total);
      clamp_weight(with, truth.weights(i, j));
    }
    for (Index c = 0; c < v.cols; ++c) {
      BoundedSum out;
      for (Index j = 0; j < k.rows; ++j) {
        if (!truth.is_allowed(i, j)) continue;
        const long double d = rule.dropout ? rule.dropout(b, h, i, j) : 1;
        out.add_product(with.multiply(truth.weights(i, j), {d, 2 * with.u * std::abs(d)}), v(j, c));
      }
      truth.output(i, c) = out.result(with);
    }
  }
  return truth;
}

/// The gradients of one query head.
struct HeadGradientTruth {
  Table query, key, value;
  Table scores;  ///< dS, of the modified scores: what biases collect
  Bounded sink;  ///< of the head's sink
};

/// @param output_u, output_step  unit roundoff and subnormal step of the output that the backward
///                               pass is given
inline HeadGradientTruth backward(const Arithmetic& with, const Table& q, const Table& k,
                                  const Table& v, const Table& grad_output,
                                  const HeadTruth& forward, const PlainRule& rule, Index b, Index h,
                                  long double output_u, long double output_step) {
  HeadGradientTruth truth;
  truth.query = Table(q.rows, q.cols);
  truth.key = Table(k.rows, k.cols);
  truth.value = Table(v.rows, v.cols);
  truth.scores = Table(q.rows, k.rows);
  Table weights(q.rows, k.rows), dropped(q.rows, k.rows), grad_s(q.rows, k.rows);
  const long double scale =
      rule.scale.value_or(1 / std::sqrt(static_cast<long double>(std::max<Index>(q.cols, 1))));
  const Bounded factor{scale, 3 * with.u * std::abs(scale)};
  const std::optional<long double> sink = rule.sink(h);
  BoundedSum sink_sum;
  for (Index i = 0; i < q.rows; ++i) {
    const Bounded& lse = forward.lse(i, 0);
    // delta is dO . O or the sum of P dP: bounded by the larger of both.
    BoundedSum from_output, from_weights;
    for (Index c = 0; c < v.cols; ++c) {
      Bounded o = forward.output(i, c);
      o.e += output_u * (std::abs(o.v) + o.e) + output_step;
      from_output.add_product(grad_output(i, c), o);
    }
    std::vector<Bounded> grad_weight(static_cast<std::size_t>(k.rows));
    for (Index j = 0; j < k.rows; ++j) {
      if (!forward.is_allowed(i, j)) continue;
      const Bounded& s = forward.scores(i, j);
      const long double off = s.e + lse.e + 4 * with.u * (std::abs(s.v) + std::abs(lse.v));
      Bounded& p = weights(i, j) = with.exp({s.v - lse.v, off});
      p.e += with.least;
      clamp_weight(with, p);
      const long double d = rule.dropout ? rule.dropout(b, h, i, j) : 1;
      const Bounded kept{d, 2 * with.u * std::abs(d)};
      dropped(i, j) = with.multiply(p, kept);
      BoundedSum dot;
      for (Index c = 0; c < v.cols; ++c) dot.add_product(grad_output(i, c), v(j, c));
      grad_weight[static_cast<std::size_t>(j)] = with.multiply(dot.result(with), kept);
      from_weights.add_product(p, grad_weight[static_cast<std::size_t>(j)]);
    }
    Bounded delta = from_weights.result(with);
    delta.e += from_output.result(with).e;
    if (sink) {
      const Bounded share =
          with.exp({*sink - lse.v, lse.e + 4 * with.u * (std::abs(*sink) + std::abs(lse.v))});
      sink_sum.add(with.multiply({-share.v, share.e}, delta));
    }
    for (Index j = 0; j < k.rows; ++j) {
      if (!forward.is_allowed(i, j)) continue;
      const Bounded grad = with.multiply(
          weights(i, j), with.subtract(grad_weight[static_cast<std::size_t>(j)], delta));
      truth.scores(i, j) = grad;
      // Slopes of at most a few, each off by the error of the score that it is asked at.
      const Bounded& slope = forward.slope[static_cast<std::size_t>(i * k.rows + j)];
      const Bounded& s = forward.scores(i, j);
      const long double bent = rule.cap > 0 ? 2 * s.e / rule.cap : 0;
      grad_s(i, j) = with.multiply(grad, {slope.v, bent + 16 * with.u * (1 + std::abs(slope.v))});
    }
    for (Index d = 0; d < q.cols; ++d) {
      BoundedSum sum;
      for (Index j = 0; j < k.rows; ++j) {
        if (forward.is_allowed(i, j)) sum.add_product(grad_s(i, j), k(j, d));
      }
      truth.query(i, d) = with.multiply(sum.result(with), factor);
    }
  }
  for (Index j = 0; j < k.rows; ++j) {
    for (Index d = 0; d < k.cols; ++d) {
      BoundedSum sum;
      for (Index i = 0; i < q.rows; ++i) {
        if (forward.is_allowed(i, j)) sum.add_product(grad_s(i, j), q(i, d));
      }
      truth.key(j, d) = with.multiply(sum.result(with), factor);
    }
    for (Index c = 0; c < v.cols; ++c) {
      BoundedSum sum;
      for (Index i = 0; i < q.rows; ++i) {
        if (forward.is_allowed(i, j)) sum.add_product(dropped(i, j), grad_output(i, c));
      }
      truth.value(j, c) = sum.result(with);
    }
  }
  truth.sink = sink_sum.result(with);
  return truth;
}

}  // namespace mha::fuzz
