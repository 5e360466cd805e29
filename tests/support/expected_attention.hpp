// SPDX-License-Identifier: MIT
//
// What attention must give: the formula of reference/forward.hpp in long double over the very same inputs,
// and how far rounding may take another way of computing it.
#pragma once

#include <mha/attention.hpp>

#include <algorithm>
#include <cmath>

#include "support/matchers.hpp"

namespace mha::test {

/// The head of a call that a rule is asked about.
struct HeadOfCall {
  Index past_len = 0;
  Index b = 0;
  Index h = 0;
  Index num_heads = 1;
};

struct ExpectedAttention {
  Matrix<Wide> output;
  Matrix<Wide> weights;
  Matrix<Wide> lse;  ///< query_len x 1
  // How far a correct result of the scalar type of the inputs may be from these.
  double output_tolerance = 0;
  double weights_tolerance = 0;
  double lse_tolerance = 0;
};

/// Largest |entry|, NaN and infinity excepted.
template <class M>
double largest(const M& m) {
  double result = 0;
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      if (!detail::is_finite(m(i, j))) continue;
      result = std::max(result, std::abs(detail::convert<double>(m(i, j))));
    }
  }
  return result;
}

/// Rounding in a softmax-weighted average of n values v, |v| <= V, by scores of d products each.
/// With u = eps / 2, S the largest sum of |terms| of a score, modifiers included, and m roundings
/// in the modifiers:
///     score           |ds| <= (d + 2 + m) u S
///     exp(s - max)    relative error 2 |ds| + 2 S u + 6 u           (exp: test_softmax.cpp)
///     its sum         n u more; with each further tile of keys, a rescaling, 6 u more
///     weight          twice all that;   output  V times that, and n u V more
/// in the worst case. The roundings of a sum are as good as independent, so that lengths enter by
/// their square roots (Higham, Mary 2019, SIAM J. Sci. Comput. 41(5), theorem 2.4). Measured in
/// test_attention_grid.cpp: below 0.3 of this bound; below 0.6 for 16-bit types, whose output is rounded
/// once more.
template <class Scalar>
double relative_tolerance(Index head_dim, Index kv_len, double score_size, Index modifiers) {
  const auto d = static_cast<double>(head_dim + 2 + modifiers);
  const auto n = static_cast<double>(kv_len);
  const double tiles = std::ceil(n / 512);
  const double in_scores = 2 * std::sqrt(d) * score_size;
  return eps_of<accumulator_t<Scalar>>() *
         (in_scores + std::sqrt(n) + 2 * score_size + 6 + 6 * tiles);
}

/// Attention of one head in long double.
/// @param modified_by  bound of what score modifiers add to a score, for the tolerance
template <class Scalar, class RuleType = All>
ExpectedAttention expected_attention(const Matrix<Scalar>& query, const Matrix<Scalar>& key,
                                     const Matrix<Scalar>& value, const RuleType& rule = {},
                                     const HeadOfCall& head = {}, double modified_by = 0) {
  const auto& rules = detail::as_rules(rule);
  ExpectedAttention result;
  result.output.resize(query.rows(), value.cols());
  result.weights.resize(query.rows(), key.rows());
  result.lse.resize(query.rows(), 1);
  const HeadTask<Scalar, Wide, Wide> task{matrix_view(query),          matrix_view(key),
                                          matrix_view(value),          matrix_view(result.output),
                                          matrix_view(result.weights), matrix_view(result.lse)};
  reference::attend<Wide>(rules, Extent{head.num_heads, query.rows(), key.rows(), head.past_len},
                          head.b, head.h, task);

  const double scale = std::abs(static_cast<double>(rules.template scale<Wide>(query.cols())));
  const double products = scale * static_cast<double>(query.cols()) * largest(query) * largest(key);
  const double relative = relative_tolerance<Scalar>(
      query.cols(), key.rows(), products + modified_by, modified_by > 0 ? 4 : 0);
  const double v = largest(value);
  const bool rounded = !std::is_same_v<accumulator_t<Scalar>, Scalar>;
  result.output_tolerance = v * (relative + (rounded ? eps_of<Scalar>() / 2 : 0));
  result.weights_tolerance = relative * std::min(1.0, largest(result.weights));
  result.lse_tolerance = relative + eps_of<accumulator_t<Scalar>>() * largest(result.lse);
  return result;
}

/// Checks a HeadResult with weights and lse against the expectation.
template <class Scalar>
void check_head(const HeadResult<Scalar>& actual, const ExpectedAttention& expected) {
  CHECK_THAT(actual.output, IsClose(expected.output, expected.output_tolerance));
  CHECK_THAT(actual.weights, IsClose(expected.weights, expected.weights_tolerance));
  CHECK_THAT(actual.lse, IsClose(expected.lse, expected.lse_tolerance));
}

}  // namespace mha::test
