// SPDX-License-Identifier: MIT
//
// Attention on every instruction set against the formula in long double: lengths around the edges
// of vectors, tiles (128 keys, 64 or 32 queries) and chunks (1024 keys), widths of heads, and random
// rules. Built with -O2, as test_kernels.cpp.
#include <mha/attention.hpp>

#include "support/expected_attention.hpp"
#include "support/picker.hpp"
#include "support/targets.hpp"

using mha::Index;
using mha::Lanes;
using mha::Matrix;
using mha::test::available_targets;
using mha::test::expected_attention;
using mha::test::ExpectedAttention;
using mha::test::Inputs;
using mha::test::Picker;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

template <class Scalar, class RuleType>
void check_on_every_target(const Inputs<Scalar>& x, const RuleType& rule,
                           ExpectedAttention expected) {
  // A sink far above all scores leaves weights that are subnormal at the most.
  constexpr double kSmallest = std::numeric_limits<mha::accumulator_t<Scalar>>::min();
  expected.weights_tolerance = std::max(expected.weights_tolerance, kSmallest);
  for (const mha::kernels::Target t : available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    mha::test::check_head(
        mha::scaled_dot_product_attention_forward(x.query, x.key, x.value, rule, kEverything),
        expected);
  }
}

template <class Scalar, class RuleType>
void check_against_formula(const Inputs<Scalar>& x, const RuleType& rule, double modified_by = 0) {
  check_on_every_target(x, rule,
                        expected_attention(x.query, x.key, x.value, rule, {}, modified_by));
}

constexpr std::initializer_list<Index> kQueryLens{1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130};
constexpr std::initializer_list<Index> kKvLens{1,   15,  16,  17,  31,   32,   33,   127,  128,
                                               129, 130, 257, 300, 1023, 1024, 1025, 1100, 2100};

// Long keys come with few queries and channels, since the formula is slow.
template <class Scalar>
Inputs<Scalar> pick_inputs(Picker& pick) {
  const Index kv_len = pick.of(kKvLens);
  const Index query_len = kv_len > 500 ? pick.of({1, 2, 4, 5, 15, 17, 33}) : pick.of(kQueryLens);
  const Index head_dim = kv_len > 500 ? pick.between(1, 9) : pick.between(1, 20);
  return {query_len, kv_len, head_dim, pick.between(1, 18), pick.seed()};
}

}  // namespace

TEMPLATE_TEST_CASE("the kernels equal the formula at every length around their tiles",
                   "[kernels][attention]", float, double) {
  for (const Index query_len : kQueryLens) {
    for (const Index kv_len : kKvLens) {
      if (kv_len > 500 && query_len > 17 && query_len != 65) continue;
      CAPTURE(query_len, kv_len);
      const Inputs<TestType> x(query_len, kv_len, 4, 3, 5);
      check_against_formula(x, mha::All{});
    }
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula at every length under a causal rule",
                   "[kernels][attention][causal]", float, double) {
  for (const Index query_len : kQueryLens) {
    for (const Index kv_len : kKvLens) {
      if (kv_len > 500 && query_len > 17 && query_len != 65) continue;
      CAPTURE(query_len, kv_len);
      const Inputs<TestType> x(query_len, kv_len, 3, 4, 6);
      check_against_formula(x, mha::causal_lower_right());
    }
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula at every width of a head", "[kernels][attention]",
                   float, double, Eigen::half, Eigen::bfloat16) {
  for (const Index query_len : {1, 3, 18}) {
    for (const Index head_dim : {1, 2, 3, 7, 8, 15, 16, 17, 40, 64, 80, 96, 128, 256}) {
      for (const Index value_dim : {head_dim, head_dim + 1, 257 - head_dim}) {
        CAPTURE(query_len, head_dim, value_dim);
        const Inputs<TestType> x(query_len, 131, head_dim, value_dim, 7);
        check_against_formula(x, mha::scale(0.125F));
      }
    }
  }
}

TEMPLATE_TEST_CASE("without channels to score or to weigh, the rest is as the formula says",
                   "[kernels][attention][regression]", float, double, Eigen::half) {
  for (const Index query_len : {2, 40}) {
    CAPTURE(query_len);
    // Scores rise from tile to tile, so that the state is rescaled.
    Inputs<TestType> x(query_len, 700, 2, 0, 8);
    for (Index j = 0; j < x.key.rows(); ++j) {
      const auto growing = static_cast<TestType>(static_cast<float>(j) / 20);
      x.key(j, 0) = x.key(j, 1) = growing;
    }
    x.query.setConstant(TestType(1));
    check_against_formula(x, mha::All{});
    check_against_formula(Inputs<TestType>(query_len, 700, 0, 3, 9), mha::causal());
    check_against_formula(Inputs<TestType>(query_len, 0, 3, 3, 10), mha::causal());
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula under random key ranges", "[kernels][attention]",
                   float, double, Eigen::half, Eigen::bfloat16) {
  Picker pick(41);
  for (int n = 0; n < 120; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    check_against_formula(x, pick_causal(pick, query_len, kv_len) & pick_window(pick, kv_len) &
                                 pick_lengths(pick, kv_len));
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula under capped and biased scores and sinks",
                   "[kernels][attention]", float, double, Eigen::half, Eigen::bfloat16) {
  Picker pick(42);
  for (int n = 0; n < 100; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    Matrix<TestType> bias = random_matrix<TestType>(query_len, kv_len, pick.seed(), 2);
    const Matrix<bool> masked = random_booleans(query_len, kv_len, pick.seed(), 0.2);
    for (Index k = 0; k < bias.size(); ++k) {
      if (masked.data()[k]) bias.data()[k] = mha::test::minus_infinity_of<TestType>();
    }
    const double slope = pick.from({0, 0.01, 0.5});
    const auto distance = static_cast<double>(query_len + kv_len);
    check_against_formula(x,
                          mha::softcap(pick.from({0, 0.5, 4, 30})) & mha::alibi(slope) &
                              mha::bias(bias) & pick_causal(pick, query_len, kv_len) &
                              mha::sinks(pick.from({-40, -2, 0, 3, 40})),
                          slope * distance + 42);
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula under alibi alone", "[kernels][attention][alibi]",
                   float, double, Eigen::half) {
  Picker pick(43);
  for (int n = 0; n < 100; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const double slope = pick.from({0.01, 0.5});
    check_against_formula(x,
                          mha::alibi(slope) & pick_causal(pick, query_len, kv_len) &
                              pick_window(pick, kv_len) & pick_lengths(pick, kv_len),
                          slope * static_cast<double>(query_len + kv_len));
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula under random boolean masks",
                   "[kernels][attention][keep][ignore][mask_mod]", float, double, Eigen::bfloat16) {
  Picker pick(44);
  for (int n = 0; n < 100; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const Matrix<bool> kept =
        random_booleans(query_len, kv_len, pick.seed(), pick.from({0.02, 0.5, 0.9, 1}));
    const Matrix<bool> padding = random_booleans(1, kv_len, pick.seed(), pick.from({0, 0.3}));
    const Index period = pick.between(2, 40);
    check_against_formula(x, mha::keep(kept) & mha::ignore(padding) &
                                 mha::mask_mod([period](Index, Index, Index i, Index j) {
                                   return (i + j) % period != 1;
                                 }) &
                                 pick_causal(pick, query_len, kv_len));
  }
}

TEMPLATE_TEST_CASE("the kernels equal the formula under a score_mod of single numbers",
                   "[kernels][attention][score_mod]", float, double, Eigen::half) {
  Picker pick(45);
  for (int n = 0; n < 100; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const Index period = pick.between(2, 40);
    const auto rule = mha::score_mod([period](auto s, Index, Index, Index i, Index j) {
      using Number = decltype(s);
      if ((i + 3 * j) % period == 0) return mha::test::minus_infinity_of<Number>();
      return static_cast<Number>(s - Number(0.25) * static_cast<Number>((i + j) % 8));
    });
    check_against_formula(
        x, rule & pick_causal(pick, query_len, kv_len) & pick_window(pick, kv_len), 2);
  }
}

namespace {

// A modifier over Lanes<T>, and the same over one number of any type, for the formula.
template <class T>
auto lanes_modifier(int period) {
  return mha::score_mod([period](Lanes<T> s, Index, Index, Lanes<int> i, Lanes<int> j) {
    const Lanes<int> sum = i + j;
    const Lanes<int> rest = sum - sum / period * period;
    return select(rest == 0, Lanes<T>(mha::test::minus_infinity_of<T>()),
                  s - T(0.25) * abs(i - j) / period);
  });
}
auto number_modifier(int period) {
  return mha::score_mod([period](auto s, Index, Index, Index i, Index j) {
    using Number = decltype(s);
    if ((i + j) % period == 0) return mha::test::minus_infinity_of<Number>();
    return static_cast<Number>(s - Number(0.25) * static_cast<Number>(std::abs(i - j)) /
                                       static_cast<Number>(period));
  });
}

}  // namespace

TEMPLATE_TEST_CASE("the kernels equal the formula under a score_mod of lanes",
                   "[kernels][attention][score_mod][lanes]", float, double, Eigen::bfloat16) {
  Picker pick(46);
  for (int n = 0; n < 100; ++n) {
    const auto x = pick_inputs<TestType>(pick);
    const Index query_len = x.query.rows();
    const Index kv_len = x.key.rows();
    CAPTURE(n, query_len, kv_len, x.key.cols(), x.value.cols());
    const int period = static_cast<int>(pick.between(2, 40));
    const auto beside = pick_causal(pick, query_len, kv_len) & pick_lengths(pick, kv_len) &
                        pick_window(pick, kv_len);
    const double modified_by = static_cast<double>(query_len + kv_len) / (4 * period);
    check_on_every_target(x, lanes_modifier<mha::accumulator_t<TestType>>(period) & beside,
                          expected_attention(x.query, x.key, x.value,
                                             number_modifier(period) & beside, {}, modified_by));
  }
}
