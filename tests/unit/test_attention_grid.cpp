// SPDX-License-Identifier: MIT
//
// Attention against the formula in long double: sizes around the edges of tiles and vectors,
// and a random grid of rules. All through the public functions.
#include <mha/attention.hpp>

#include "support/expected_attention.hpp"
#include "support/picker.hpp"

using mha::Index;
using mha::Matrix;
using mha::scaled_dot_product_attention_forward;
using mha::test::check_head;
using mha::test::expected_attention;
using mha::test::Inputs;
using mha::test::Picker;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

template <class Scalar, class RuleType>
void check_against_formula(const Inputs<Scalar>& x, const RuleType& rule, double modified_by = 0) {
  check_head(scaled_dot_product_attention_forward(x.query, x.key, x.value, rule, kEverything),
             expected_attention(x.query, x.key, x.value, rule, {}, modified_by));
}

template <class Scalar>
Inputs<Scalar> pick_inputs(Picker& pick) {
  const Index longest = pick.one_in(8) ? 1100 : 150;
  const Index query_len = pick.one_in(6) ? pick.between(120, 260) : pick.between(1, 20);
  const Index kv_len = pick.between(1, longest);
  const Index head_dim = pick.between(1, 20);
  return {query_len, kv_len, head_dim, pick.between(1, 10), pick.seed()};
}

}  // namespace

TEMPLATE_TEST_CASE("attention equals the formula at every length around tile edges",
                   "[attention][sizes]", float, double, Eigen::half, Eigen::bfloat16) {
  const Index kv_len = GENERATE(1, 15, 16, 17, 127, 128, 129, 511, 512, 513, 1027);
  const Index query_len = GENERATE(1, 2, 127, 128, 129, 300);
  // Long times long only in float: the formula in long double is slow.
  if (!std::is_same_v<TestType, float> && query_len * kv_len > 200000) return;
  // Each pair of lengths meets one width, each width many lengths.
  const std::array<Index, 5> head_dims{1, 3, 8, 15, 64};
  const std::array<Index, 5> value_dims{7, 64, 1, 16, 33};
  const auto k = static_cast<std::size_t>((3 * kv_len + query_len) % 5);
  const Index head_dim =
      kv_len * query_len > 100000 ? std::min<Index>(head_dims[k], 15) : head_dims[k];
  CAPTURE(kv_len, query_len, head_dim, value_dims[k]);
  const Inputs<TestType> x(query_len, kv_len, head_dim, value_dims[k], 100);
  check_against_formula(x, mha::All());
}

TEMPLATE_TEST_CASE("attention equals the formula for every width", "[attention][sizes]", float,
                   double, Eigen::half, Eigen::bfloat16) {
  const Index head_dim = GENERATE(1, 3, 8, 15, 64);
  const Index value_dim = GENERATE(1, 2, 9, 65);
  CAPTURE(head_dim, value_dim);
  check_against_formula(Inputs<TestType>(19, 131, head_dim, value_dim, 200), mha::All());
}

TEMPLATE_TEST_CASE("causal attention equals the formula at every length around tile edges",
                   "[attention][sizes][causal]", float, double) {
  const Index kv_len = GENERATE(1, 16, 17, 128, 129, 511, 512, 513, 1027);
  const Index query_len = GENERATE(1, 2, 128, 129, 257);
  CAPTURE(kv_len, query_len);
  if (query_len * kv_len > 140000) return;
  check_against_formula(Inputs<TestType>(query_len, kv_len, 5, 3, 300), mha::causal_lower_right());
}

TEMPLATE_TEST_CASE("attention over wide heads equals the formula", "[attention][sizes]", float,
                   double) {
  // Wider than Eigen's products take at a time.
  check_against_formula(Inputs<TestType>(5, 40, 1500, 700, 400), mha::causal_offset(30));
}

TEMPLATE_TEST_CASE("attention under any key ranges equals the formula", "[attention][grid]", float,
                   double, Eigen::half, Eigen::bfloat16) {
  Picker pick(1000);
  for (int n = 0; n < 100; ++n) {
    const Inputs<TestType> x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    check_against_formula(
        x, pick_causal(pick, query_len, kv_len) & pick_window(pick, kv_len) &
               pick_lengths(pick, kv_len) & mha::scale(pick.from({0.25, 0, -0.5, 1})) &
               mha::sinks(pick.from({-std::numeric_limits<double>::infinity(), -3, 0.5, 6})));
  }
}

TEMPLATE_TEST_CASE("attention with capped and modified scores equals the formula",
                   "[attention][grid]", float, double, Eigen::half, Eigen::bfloat16) {
  Picker pick(2000);
  for (int n = 0; n < 60; ++n) {
    const Inputs<TestType> x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const double slope = pick.from({0, 0.01, 0.5});
    const auto distance = static_cast<double>(query_len + kv_len);
    check_against_formula(x,
                          mha::softcap(pick.from({0, 0.5, 4, 30})) & mha::alibi(slope) &
                              pick_causal(pick, query_len, kv_len),
                          4 + slope * distance);
  }
}

TEMPLATE_TEST_CASE("attention under all kinds of rules at once equals the formula",
                   "[attention][grid]", float, double, Eigen::half, Eigen::bfloat16) {
  Picker pick(3000);
  for (int n = 0; n < 100; ++n) {
    const Inputs<TestType> x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const double density = pick.from({0.02, 0.5, 0.95, 1});
    const Matrix<bool> kept = random_booleans(query_len, kv_len, pick.seed(), density);
    const Matrix<bool> ignored = random_booleans(1, kv_len, pick.seed(), 0.1);
    Matrix<float> bias = random_matrix<float>(query_len, kv_len, pick.seed(), 3);
    const Matrix<bool> hidden = random_booleans(query_len, kv_len, pick.seed(), 0.1);
    for (Index i = 0; i < query_len; ++i) {
      for (Index j = 0; j < kv_len; ++j) {
        if (hidden(i, j)) bias(i, j) = mha::test::minus_infinity_of<float>();
      }
    }
    const Index stripe = pick.between(2, 9);
    const auto striped =
        mha::mask_mod([&](Index, Index, Index i, Index j) { return (i + 2 * j) % stripe != 0; });
    const auto bent = mha::score_mod([&](auto s, auto, auto, Index i, Index j) {
      using S = decltype(s);
      if ((3 * i + j) % 11 == 0) return mha::test::minus_infinity_of<S>();
      return S(s * S(0.5)) + S(static_cast<double>((i + j) % 3));
    });
    check_against_formula(x,
                          pick_causal(pick, query_len, kv_len) & pick_window(pick, kv_len) &
                              pick_lengths(pick, kv_len) & mha::keep(kept) & mha::ignore(ignored) &
                              mha::bias(bias) & striped & bent &
                              mha::softcap(pick.from({0, 1, 10})) &
                              mha::scale(pick.from({0.25, -1})) & mha::alibi(pick.from({0, 0.1})) &
                              mha::sinks(pick.from({-std::numeric_limits<double>::infinity(), 1})),
                          10 + 0.1 * static_cast<double>(query_len + kv_len));
  }
}
