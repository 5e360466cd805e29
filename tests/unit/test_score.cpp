// SPDX-License-Identifier: MIT
//
// mha/score.hpp: scale, softcap, bias, alibi, score_mod and sinks, and the order in which they
// apply. With one key lse is its score; with several, scores are logs of small integers.
#include <mha/attention.hpp>
#include <mha/score.hpp>

#include <functional>
#include <memory>

#include "support/matchers.hpp"

using Catch::Matchers::WithinAbs;
using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::Vector;
using mha::test::cast_to;
using mha::test::ContainsSubstring;
using mha::test::eps_of;
using mha::test::equal_bits;
using mha::test::HasBitsOf;
using mha::test::infinity_of;
using mha::test::is_nan;
using mha::test::IsClose;
using mha::test::matrix_of;
using mha::test::nan_of;
using mha::test::random_matrix;
using mha::test::random_tensor;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The score of one query (product) and one key (1), as the softmax sees it.
template <class Scalar, class RuleType>
double score_of(double product, const RuleType& rule) {
  const auto result = mha::scaled_dot_product_attention_forward(
      matrix_of<Scalar>({{product}}), matrix_of<Scalar>({{1}}), matrix_of<Scalar>({{1}}), rule,
      {.need_lse = true});
  return mha::detail::convert<double>(result.lse(0));
}

// Attention with all products 0: the rule alone makes the scores. Values 1, 2, 3, ...
template <class Scalar, class RuleType>
auto of_equal_scores(Index query_len, Index kv_len, const RuleType& rule) {
  const Matrix<Scalar> query = Matrix<Scalar>::Zero(query_len, 2);
  const Matrix<Scalar> key = Matrix<Scalar>::Zero(kv_len, 2);
  Matrix<Scalar> value(kv_len, 1);
  for (Index j = 0; j < kv_len; ++j) {
    value(j, 0) = mha::detail::convert<Scalar>(static_cast<double>(j + 1));
  }
  return mha::scaled_dot_product_attention_forward(query, key, value, rule,
                                                   {.need_weights = true, .need_lse = true});
}

// One row of logs of the numbers; 0 gives -inf.
template <class Scalar>
Matrix<Scalar> log_row(std::initializer_list<double> numbers) {
  Matrix<long double> row(1, static_cast<Index>(numbers.size()));
  Index j = 0;
  for (const double x : numbers) row(0, j++) = std::log(static_cast<long double>(x));
  return cast_to<Scalar>(row);
}

// Rounding of a few scores below 10 and of their exponentials.
template <class Scalar>
constexpr double few_roundings() {
  return 40 * static_cast<double>(std::numeric_limits<mha::accumulator_t<Scalar>>::epsilon());
}

}  // namespace

// ---- scale

TEMPLATE_TEST_CASE("scores are divided by sqrt(head_dim) unless a scale is given", "[score][scale]",
                   float, double) {
  // head_dim 4, q . k = 1 + 2 + 3 + 4 = 10, / 2 = 5.
  const auto ones = matrix_of<TestType>({{1, 1, 1, 1}});
  const auto k = matrix_of<TestType>({{1, 2, 3, 4}});
  const auto lse = [&](const auto& rule) {
    return mha::scaled_dot_product_attention_forward(ones, k, k, rule, {.need_lse = true}).lse(0);
  };
  // The scale is rounded once with log2(e), the score once, lse once.
  const auto rounded = [](double score) {
    return WithinAbs(score, 3 * eps_of<TestType>() * std::abs(score));
  };
  CHECK_THAT(lse(mha::All()), rounded(5));
  CHECK_THAT(lse(mha::scale(TestType(3))), rounded(30));
  CHECK_THAT(lse(mha::scale(TestType(-0.5))), rounded(-5));
  CHECK(lse(mha::scale(TestType(0))) == TestType(0));
}

TEST_CASE("a scale may be of any number type", "[score][scale]") {
  CHECK_THAT(score_of<float>(3, mha::scale(2)), WithinAbs(6, 6 * 3 * eps_of<float>()));
  CHECK_THAT(score_of<float>(3, mha::scale(2.0)), WithinAbs(6, 6 * 3 * eps_of<float>()));
  CHECK_THAT(score_of<double>(3, mha::scale(0.5F)), WithinAbs(1.5, 1.5 * 3 * eps_of<double>()));
  const auto half = score_of<Eigen::half>(3, mha::scale(Eigen::half(0.5F)));
  CHECK_THAT(half, WithinAbs(1.5, 1.5 * 3 * eps_of<float>()));
  const auto brain = score_of<Eigen::bfloat16>(3, mha::scale(0.5));
  CHECK_THAT(brain, WithinAbs(1.5, 1.5 * 3 * eps_of<float>()));
  CHECK(score_of<long double>(3, mha::scale(0.5)) == 1.5);
}

TEST_CASE("a scale of 0 weighs all allowed keys alike", "[score][scale]") {
  const auto q = random_matrix<double>(2, 3, 1, 100);
  const auto k = random_matrix<double>(4, 3, 2, 100);
  const auto v = matrix_of<double>({{4}, {8}, {12}, {16}});
  const auto out = mha::scaled_dot_product_attention(q, k, v, mha::scale(0.0) & mha::causal());
  CHECK(out(0, 0) == 4);
  CHECK(out(1, 0) == 6);
}

TEST_CASE("a negative scale prefers the keys that are least alike", "[score][scale]") {
  // products (ln 2, 0) times -1: exp (1/2, 1) -> weights (1/3, 2/3); values 3, 6 -> 5.
  const Matrix<double> k = log_row<double>({2, 1}).transpose();
  const auto out = mha::scaled_dot_product_attention(matrix_of<double>({{1}}), k,
                                                     matrix_of<double>({{3}, {6}}), mha::scale(-1));
  CHECK_THAT(out(0, 0), WithinAbs(5, few_roundings<double>()));
}

// ---- softcap

TEMPLATE_TEST_CASE("softcap(c) turns a score s into c tanh(s / c)", "[score][softcap]", float,
                   double, long double, Eigen::half) {
  // tanh(ln 3) = (9 - 1) / (9 + 1) = 4/5, so that a cap of 5 gives 4.
  const auto cap = mha::softcap(5.0);
  CHECK_THAT(score_of<TestType>(5 * std::log(3.0), cap),
             WithinAbs(4, 4 * (few_roundings<TestType>() + eps_of<TestType>())));
  CHECK(score_of<TestType>(0, cap) == 0);
  CHECK(score_of<TestType>(6000, cap) == 5);
  CHECK(score_of<TestType>(-6000, cap) == -5);
}

TEST_CASE("an infinite score is capped like a large one", "[score][softcap]") {
  CHECK(score_of<float>(kInfinity, mha::softcap(5)) == 5);
  CHECK(score_of<double>(-kInfinity, mha::softcap(5)) == -5);
}

TEMPLATE_TEST_CASE("a softcap of 0 is none, bit for bit", "[score][softcap]", float, double,
                   Eigen::bfloat16) {
  const auto x = random_matrix<TestType>(40, 8, 1, 3);
  CHECK_THAT(mha::scaled_dot_product_attention(x, x, x, mha::softcap(0)),
             HasBitsOf(mha::scaled_dot_product_attention(x, x, x)));
}

TEST_CASE("softcap refuses a negative cap", "[score][softcap][errors]") {
  CHECK_THROWS_AS(mha::softcap(-1.0), std::invalid_argument);
  CHECK_THROWS_WITH(mha::softcap(Eigen::half(-1)), ContainsSubstring("mha::softcap: "));
  CHECK_NOTHROW(mha::softcap(0.0));
}

TEST_CASE("the cap comes after the scale", "[score][softcap][order]") {
  // 10 ln 3 scaled by 1/2 is 5 ln 3; capped at 5: 4. The other way round: 5 tanh(2 ln 3) / 2 = 2.4.
  const double s = 10 * std::log(3.0);
  CHECK_THAT(score_of<double>(s, mha::scale(0.5) & mha::softcap(5)),
             WithinAbs(4, few_roundings<double>()));
  CHECK_THAT(score_of<double>(s, mha::softcap(5) & mha::scale(0.5)),
             WithinAbs(4, few_roundings<double>()));
}

TEMPLATE_TEST_CASE("the cap comes before biases and masks: a masked key stays masked",
                   "[score][softcap][order][regression]", float, double, long double) {
  // Were the cap applied to -inf, the key would have the score -5 and a weight.
  const auto one_query = log_row<TestType>({1, 0, 3});
  const auto expected = matrix_of<TestType>({{0.25, 0, 0.75}});
  const auto result = of_equal_scores<TestType>(1, 3, mha::softcap(5) & mha::bias(one_query));
  CHECK_THAT(result.weights, IsClose(expected, few_roundings<TestType>()));
  CHECK(equal_bits(result.weights(0, 1), TestType(0)));
  // The bias itself is not capped.
  CHECK(score_of<TestType>(0, mha::softcap(5) & mha::bias(matrix_of<TestType>({{9}}))) == 9);
  CHECK(score_of<TestType>(0, mha::bias(matrix_of<TestType>({{9}})) & mha::softcap(5)) == 9);
  const auto causal = of_equal_scores<TestType>(2, 2, mha::softcap(1) & mha::causal());
  CHECK_THAT(causal.weights, HasBitsOf(matrix_of<TestType>({{1, 0}, {0.5, 0.5}})));
}

// ---- bias

TEMPLATE_TEST_CASE("a bias is added to the scores", "[score][bias]", float, double, long double,
                   Eigen::half, Eigen::bfloat16) {
  // exp: (1, 3) -> (1/4, 3/4); values 1, 2 -> 7/4, lse ln 4. Second row (2, 2) -> 3/2, lse ln 4.
  Matrix<mha::accumulator_t<TestType>> bias(2, 2);
  bias << log_row<mha::accumulator_t<TestType>>({1, 3}),
      log_row<mha::accumulator_t<TestType>>({2, 2});
  const auto result = of_equal_scores<TestType>(2, 2, mha::bias(bias));
  CHECK_THAT(result.output,
             IsClose(matrix_of<TestType>({{1.75}, {1.5}}), 2 * few_roundings<TestType>()));
  CHECK_THAT(result.weights,
             IsClose(matrix_of<TestType>({{0.25, 0.75}, {0.5, 0.5}}), few_roundings<TestType>()));
  const Matrix<long double> ln4 = log_row<long double>({4, 4}).transpose();
  CHECK_THAT(result.lse, IsClose(ln4, few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("a bias of -inf masks", "[score][bias]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  const auto bias = matrix_of<TestType>({{0, -kInfinity}, {-kInfinity, -kInfinity}});
  const auto result = of_equal_scores<TestType>(2, 2, mha::bias(bias));
  CHECK_THAT(result.output, HasBitsOf(matrix_of<TestType>({{1}, {0}})));
  using Acc = mha::accumulator_t<TestType>;
  CHECK_THAT(result.weights, HasBitsOf(matrix_of<Acc>({{1, 0}, {0, 0}})));
  CHECK(result.lse(0) == Acc(0));
  CHECK(mha::detail::is_minus_infinity(result.lse(1)));
}

TEMPLATE_TEST_CASE("a large negative bias does not mask", "[score][bias]", float, double,
                   long double) {
  const auto low = GENERATE(-1e9, -1e30, static_cast<double>(std::numeric_limits<float>::lowest()));
  const auto result = of_equal_scores<TestType>(1, 2, mha::bias(matrix_of<TestType>({{low, low}})));
  CHECK_THAT(result.weights, HasBitsOf(matrix_of<TestType>({{0.5, 0.5}})));
  CHECK(result.output(0, 0) == TestType(1.5));
  CHECK_THAT(static_cast<double>(result.lse(0)), WithinAbs(low + std::log(2.0), -low * 1e-7));
}

TEST_CASE("a bias may be of another floating-point type than the data", "[score][bias]") {
  CHECK(score_of<float>(1, mha::bias(matrix_of<double>({{2}}))) == 3);
  CHECK(score_of<double>(1, mha::bias(matrix_of<float>({{2}}))) == 3);
  CHECK(score_of<float>(1, mha::bias(matrix_of<Eigen::half>({{2}}))) == 3);
  CHECK(score_of<Eigen::half>(1, mha::bias(matrix_of<double>({{2}}))) == 3);
  CHECK(score_of<double>(1, mha::bias(matrix_of<Eigen::bfloat16>({{2}}))) == 3);
  CHECK(score_of<float>(1, mha::bias(matrix_of<Eigen::half>({{-kInfinity}}))) == -kInfinity);
}

TEST_CASE("a bias vector is one number per key, expressions and temporaries are kept",
          "[score][bias]") {
  const Eigen::RowVectorXd row = log_row<double>({1, 3}).row(0);
  const Eigen::VectorXd column = row.transpose();
  const auto expected = matrix_of<double>({{0.25, 0.75}, {0.25, 0.75}});
  const auto weights = [&](const auto& rule) {
    return of_equal_scores<double>(2, 2, rule).weights;
  };
  const auto close = IsClose(expected, few_roundings<double>());
  CHECK_THAT(weights(mha::bias(row)), close);
  CHECK_THAT(weights(mha::bias(column)), close);
  CHECK_THAT(weights(mha::bias(2 * row - row)), close);
  CHECK_THAT(weights(mha::bias(row.replicate(2, 1))), close);
  CHECK_THAT(weights(mha::bias(row.transpose().array())), close);
  auto named = std::make_unique<Matrix<double>>(row);
  const auto kept = mha::bias(*named + Matrix<double>::Zero(1, 2));
  named.reset();
  CHECK_THAT(weights(kept), close);
  CHECK_THAT(weights(mha::bias(row) & mha::bias(row)),
             IsClose(matrix_of<double>({{0.1, 0.9}, {0.1, 0.9}}), few_roundings<double>()));
}

TEST_CASE("a bias tensor speaks per sequence and per head", "[score][bias]") {
  const Tensor<float> zeros({2, 2, 1, 1});
  const auto lse = [&](const auto& rule) {
    const auto result = mha::attention_forward(zeros, zeros, zeros, rule, {.need_lse = true});
    return mha::test::stacked(result.lse);
  };
  Tensor<float> full({2, 2, 1, 1});
  for (Index k = 0; k < 4; ++k) full.data()[k] = static_cast<float>(k + 1);
  CHECK(lse(mha::bias(full)) == matrix_of<float>({{1}, {2}, {3}, {4}}));
  const mha::TensorView<const float> per_head(full.data(), {1, 2, 1, 1});
  CHECK(lse(mha::bias(per_head)) == matrix_of<float>({{1}, {2}, {1}, {2}}));
  const mha::TensorView<const float> per_sequence(full.data(), {2, 1, 1, 1});
  CHECK(lse(mha::bias(per_sequence)) == matrix_of<float>({{1}, {1}, {2}, {2}}));
}

TEST_CASE("a bias of the wrong size is refused, naming the rule and both numbers",
          "[score][bias][errors]") {
  const Matrix<float> bias = Matrix<float>::Zero(3, 4);
  CHECK_THROWS_AS(of_equal_scores<float>(2, 4, mha::bias(bias)), std::invalid_argument);
  CHECK_THROWS_WITH(of_equal_scores<float>(2, 4, mha::bias(bias)),
                    ContainsSubstring("bias(m) must have 1 or 2 entries along query_len, got 3"));
  CHECK_THROWS_WITH(of_equal_scores<float>(3, 5, mha::bias(bias)),
                    ContainsSubstring("bias(m) must have 1 or 5 entries along kv_len, got 4"));
}

// ---- alibi

TEST_CASE("ALiBi's slopes for a power of two are 2^(-8 (h + 1) / n)", "[score][alibi]") {
  for (Index h = 0; h < 8; ++h) {
    CHECK(mha::alibi_slope(h, 8) == std::exp2(-static_cast<double>(h + 1)));
  }
  CHECK(mha::alibi_slope(0, 1) == std::exp2(-8.0));
  CHECK(mha::alibi_slope(0, 2) == std::exp2(-4.0));
  CHECK(mha::alibi_slope(1, 2) == std::exp2(-8.0));
  CHECK(mha::alibi_slope(0, 16) == std::exp2(-0.5));
  CHECK(mha::alibi_slope(15, 16) == std::exp2(-8.0));
}

TEST_CASE("ALiBi's slopes for other head counts go on with every other slope of 2n heads",
          "[score][alibi]") {
  // 12 heads: those of 8, then the 1st, 3rd, 5th, 7th of 16 (get_slopes of the authors).
  const std::vector<double> exponents{1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5};
  const Vector<double> slopes = mha::alibi_slopes<double>(12);
  for (Index h = 0; h < 12; ++h) {
    CHECK(slopes(h) == std::exp2(-exponents[static_cast<std::size_t>(h)]));
    CHECK(mha::alibi_slope(h, 12) == slopes(h));
  }
  // 3 heads: those of 2, then the 1st of 4.
  CHECK(mha::alibi_slopes<double>(3) == Eigen::Vector3d(std::exp2(-4.0), std::exp2(-8.0), 0.25));
}

TEST_CASE("alibi_slopes come in any scalar type and for no heads", "[score][alibi]") {
  CHECK(mha::alibi_slopes(8)(7) == 0.00390625F);
  CHECK(mha::alibi_slopes<Eigen::half>(2)(0) == Eigen::half(0.0625F));
  CHECK(mha::alibi_slopes(0).size() == 0);
  CHECK_THROWS_WITH(mha::alibi_slopes(-1),
                    "mha::alibi_slopes: num_heads must lie between 0 and 1073741824, got -1");
}

TEST_CASE("alibi subtracts the distance to the key, the last query at the last key",
          "[score][alibi]") {
  // slope ln 2: every step away halves the weight. 2 queries stand at keys 1 and 2 of 3.
  // row 0: (1/2, 1, 1/2) / 2, row 1: (1/4, 1/2, 1) / (7/4).
  const auto result = of_equal_scores<double>(2, 3, mha::alibi(std::log(2.0)));
  const double a = 1.0 / 7;
  CHECK_THAT(result.weights, IsClose(matrix_of<double>({{0.25, 0.5, 0.25}, {a, 2 * a, 4 * a}}),
                                     few_roundings<double>()));
  // More queries than keys: 3 queries stand at -1, 0, 1. Row 0: distances 1, 2.
  const auto tall = of_equal_scores<double>(3, 2, mha::alibi(std::log(2.0)));
  const double b = 1.0 / 3;
  CHECK_THAT(tall.weights, IsClose(matrix_of<double>({{2 * b, b}, {2 * b, b}, {b, 2 * b}}),
                                   few_roundings<double>()));
}

TEST_CASE("alibi gives each query head its own slope", "[score][alibi]") {
  // One query at the last of 2 keys: lse = ln(1 + exp(-slope)); 4 heads on 2 key heads.
  const Tensor<double> query({1, 4, 1, 1});
  const Tensor<double> key({1, 2, 2, 1});
  const auto lse = [&](const auto& rule) {
    return mha::test::stacked(
        mha::attention_forward(query, key, key, rule, {.need_lse = true}).lse);
  };
  const auto expected = [](const Vector<double>& slopes) {
    Matrix<double> result(4, 1);
    for (Index h = 0; h < 4; ++h) result(h, 0) = std::log1p(std::exp(-slopes(h)));
    return result;
  };
  const Eigen::Vector4d mine(0.5, 1, 2, 4);
  CHECK_THAT(lse(mha::alibi(mine)), IsClose(expected(mine), few_roundings<double>()));
  CHECK_THAT(lse(mha::alibi(mine.transpose())), IsClose(expected(mine), few_roundings<double>()));
  CHECK_THAT(lse(mha::alibi()),
             IsClose(expected(mha::alibi_slopes<double>(4)), few_roundings<double>()));
  CHECK_THAT(lse(mha::alibi(mha::alibi_slopes(4))), HasBitsOf(lse(mha::alibi())));
  CHECK_THAT(lse(mha::alibi(0.5F)),
             IsClose(expected(Vector<double>::Constant(4, 0.5)), few_roundings<double>()));
}

TEST_CASE("alibi refuses a count of slopes that is not the count of heads",
          "[score][alibi][errors]") {
  const Tensor<float> x({1, 4, 2, 3});
  CHECK_THROWS_AS(mha::attention(x, x, x, mha::alibi(Eigen::Vector3f::Ones())),
                  std::invalid_argument);
  CHECK_THROWS_WITH(
      mha::attention(x, x, x, mha::alibi(Eigen::Vector3f::Ones())),
      "mha::attention: alibi must have one slope, or one per query head, got 3 for num_heads 4");
  CHECK_THROWS_WITH(mha::alibi(Eigen::VectorXf(0)),
                    "mha::alibi: there must be at least one slope, got 0");
}

// ---- score_mod

TEST_CASE("score_mod sees the scaled and capped score, and where it stands", "[score][score_mod]") {
  // scale 1/2 of 10 ln 3, capped at 5 is 4 (see above).
  const auto doubled = mha::score_mod([](auto s, auto, auto, auto, auto) { return 2 * s; });
  CHECK_THAT(score_of<double>(10 * std::log(3.0), doubled & mha::softcap(5) & mha::scale(0.5)),
             WithinAbs(8, few_roundings<double>()));
  const Tensor<double> zeros({2, 3, 4, 1});
  const auto place = mha::score_mod([](auto, Index b, Index h, Index i, Index j) {
    return static_cast<double>(1000 * b + 100 * h + 10 * i + j);
  });
  const Tensor<double> one_key({2, 3, 1, 1});
  const auto lse = mha::attention_forward(zeros, one_key, one_key, place, {.need_lse = true}).lse;
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 3; ++h) {
      for (Index i = 0; i < 4; ++i) {
        CHECK(lse(b, h, i, 0) == static_cast<double>(1000 * b + 100 * h + 10 * i));
      }
    }
  }
}

TEMPLATE_TEST_CASE("score_mod gets scores in the accumulator's type", "[score][score_mod]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const auto rule = mha::score_mod([](auto s, auto, auto, auto, auto) {
    static_assert(std::is_same_v<decltype(s), Acc>);
    return s + Acc(1);
  });
  CHECK(score_of<TestType>(2, rule) == 3);
}

TEMPLATE_TEST_CASE("score_mod masks by returning -inf", "[score][score_mod]", float, double,
                   long double) {
  const auto rule = mha::score_mod([](auto s, auto, auto, Index i, Index j) {
    return (i + j) % 2 == 0 || i == 2 ? -infinity_of<TestType>() : s;
  });
  const auto result = of_equal_scores<TestType>(3, 3, rule);
  CHECK_THAT(result.weights, HasBitsOf(matrix_of<TestType>({{0, 1, 0}, {0.5, 0, 0.5}, {0, 0, 0}})));
  CHECK_THAT(result.output, HasBitsOf(matrix_of<TestType>({{2}, {2}, {0}})));
  CHECK(mha::detail::is_minus_infinity(result.lse(2)));
}

TEST_CASE("score_mod may return another number type, and be any function object",
          "[score][score_mod]") {
  const std::function<double(double, Index, Index, Index, Index)> f =
      [](double s, Index, Index, Index, Index) { return s + 0.5; };
  CHECK(score_of<float>(2, mha::score_mod(f)) == 2.5);
  CHECK(score_of<Eigen::half>(2, mha::score_mod(f)) == 2.5);
  CHECK(score_of<double>(2, mha::score_mod([](auto, auto, auto, auto, auto) { return 7; })) == 7);
}

TEST_CASE("a score_mod that is ALiBi's formula equals alibi", "[score][score_mod][alibi]") {
  const auto x = random_tensor<double>({1, 4, 6, 3}, 1);
  const Vector<double> slope = mha::alibi_slopes<double>(4);
  const auto by_hand = mha::score_mod([&](auto score, auto, auto h, auto i, auto j) {
    return score - slope[h] * static_cast<double>(std::abs(i - j));
  });
  CHECK_THAT(mha::test::stacked(mha::attention(x, x, x, by_hand)),
             HasBitsOf(mha::test::stacked(mha::attention(x, x, x, mha::alibi()))));
}

TEST_CASE("a score of NaN makes its row NaN and no other", "[score][score_mod]") {
  const auto rule = mha::score_mod([](auto s, auto, auto, Index i, Index j) {
    return i == 1 && j == 2 ? nan_of<decltype(s)>() : s;
  });
  const auto result = of_equal_scores<float>(3, 4, rule);
  CHECK(result.output(0, 0) == 2.5F);
  CHECK(is_nan(result.output(1, 0)));
  CHECK(is_nan(result.lse(1)));
  CHECK(result.output(2, 0) == 2.5F);
}

// ---- the order of biases and modifiers

TEST_CASE("biases and score modifiers apply in the order written", "[score][order]") {
  const auto bias = matrix_of<double>({{1}});
  const auto doubled = mha::score_mod([](auto s, auto, auto, auto, auto) { return 2 * s; });
  CHECK(score_of<double>(3, mha::bias(bias) & doubled) == 8);  // (3 + 1) * 2
  CHECK(score_of<double>(3, doubled & mha::bias(bias)) == 7);  // 3 * 2 + 1
  CHECK(score_of<double>(3, mha::bias(bias) & doubled & mha::bias(bias)) == 9);
  const auto tenfold = mha::score_mod([](auto s, auto, auto, auto, auto) { return 10 * s; });
  CHECK(score_of<double>(3, doubled & mha::bias(bias) & tenfold) == 70);  // (3 * 2 + 1) * 10
}

TEST_CASE("a mask is a mask wherever it stands among the modifiers", "[score][order]") {
  const auto back = mha::score_mod([](auto, auto, auto, auto, auto) { return 0.0; });
  const auto masked = matrix_of<double>({{-kInfinity, 0}});
  const auto weights = [](const auto& rule) { return of_equal_scores<double>(1, 2, rule).weights; };
  const auto expected = matrix_of<double>({{0, 1}});
  CHECK_THAT(weights(mha::bias(masked) & back), HasBitsOf(expected));
  CHECK_THAT(weights(back & mha::bias(masked)), HasBitsOf(expected));
  CHECK_THAT(weights(back & mha::window(0, 0) & mha::causal_offset(1)), HasBitsOf(expected));
}

// ---- sinks

TEMPLATE_TEST_CASE("a sink joins the denominator without a value", "[score][sinks]", float, double,
                   long double, Eigen::half, Eigen::bfloat16) {
  // scores ln 1, ln 2 and the sink ln 5: weights 1/8, 2/8; values 1, 2 -> 5/8; lse = ln 8.
  using Acc = mha::accumulator_t<TestType>;
  const auto bias = log_row<Acc>({1, 2});
  const auto result = of_equal_scores<TestType>(
      1, 2, mha::bias(bias) & mha::sinks(static_cast<Acc>(log_row<long double>({5})(0, 0))));
  CHECK_THAT(result.weights, IsClose(matrix_of<Acc>({{0.125, 0.25}}), few_roundings<TestType>()));
  CHECK_THAT(result.output, IsClose(matrix_of<TestType>({{0.625}}), few_roundings<TestType>()));
  CHECK_THAT(mha::detail::convert<double>(result.lse(0)),
             WithinAbs(std::log(8.0), few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("a sink far above all scores takes all weight, one far below none",
                   "[score][sinks]", float, double, long double) {
  const auto above = of_equal_scores<TestType>(1, 2, mha::sinks(TestType(1e30)));
  CHECK(equal_bits(above.output(0, 0), TestType(0)));
  CHECK(above.lse(0) == TestType(1e30));
  const auto below = of_equal_scores<TestType>(1, 2, mha::sinks(TestType(-1e30)));
  CHECK(below.output(0, 0) == TestType(1.5));
  CHECK_THAT(below.weights, HasBitsOf(matrix_of<TestType>({{0.5, 0.5}})));
}

TEMPLATE_TEST_CASE("a row that may attend to nothing but a sink is 0, its lse the sink's logit",
                   "[score][sinks]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const auto result = of_equal_scores<TestType>(2, 3, mha::lengths(0) & mha::sinks(Acc(0.7)));
  CHECK_THAT(result.output, HasBitsOf(Matrix<TestType>(Matrix<TestType>::Zero(2, 1))));
  CHECK_THAT(result.weights, HasBitsOf(Matrix<Acc>(Matrix<Acc>::Zero(2, 3))));
  CHECK(result.lse(0) == Acc(0.7));
  CHECK(result.lse(1) == Acc(0.7));
}

TEMPLATE_TEST_CASE("a sink of -inf is none, bit for bit", "[score][sinks]", float, double,
                   long double, Eigen::half, Eigen::bfloat16) {
  const auto x = random_matrix<TestType>(7, 4, 1, 2);
  const auto run = [&](const auto& rule) {
    return mha::scaled_dot_product_attention_forward(x, x, x, rule,
                                                     {.need_weights = true, .need_lse = true});
  };
  const auto without = run(mha::causal_offset(-2));
  const auto with = run(mha::causal_offset(-2) & mha::sinks(-infinity_of<TestType>()));
  CHECK_THAT(with.output, HasBitsOf(without.output));
  CHECK_THAT(with.weights, HasBitsOf(without.weights));
  CHECK_THAT(with.lse, HasBitsOf(without.lse));
}

TEST_CASE("a sink is neither scaled nor capped nor modified", "[score][sinks][order]") {
  // No key is allowed, so that lse is the sink's logit.
  const auto rule = mha::sinks(9.0) & mha::scale(0.5) & mha::softcap(2) & mha::lengths(0) &
                    mha::score_mod([](auto s, auto, auto, auto, auto) { return 2 * s; });
  CHECK(score_of<double>(1, rule) == 9);
}

TEST_CASE("every query head has its own sink", "[score][sinks]") {
  const Tensor<double> query({2, 4, 1, 1});
  const Tensor<double> key({2, 2, 1, 1});
  const auto lse = [&](const auto& rule) {
    return mha::test::stacked(
        mha::attention_forward(query, key, key, rule & mha::lengths(0), {.need_lse = true}).lse);
  };
  const Eigen::Vector4d logits(1, 2, 3, 4);
  const auto expected = matrix_of<double>({{1}, {2}, {3}, {4}, {1}, {2}, {3}, {4}});
  CHECK(lse(mha::sinks(logits)) == expected);
  CHECK(lse(mha::sinks(logits.transpose())) == expected);
  CHECK(lse(mha::sinks(logits.cast<float>())) == expected);
  CHECK(lse(mha::sinks(5.0)) == Matrix<double>::Constant(8, 1, 5));
}

TEST_CASE("sinks refuse a count of logits that is not the count of heads",
          "[score][sinks][errors]") {
  const Tensor<float> x({1, 4, 2, 3});
  CHECK_THROWS_AS(mha::attention(x, x, x, mha::sinks(Eigen::Vector3f::Ones())),
                  std::invalid_argument);
  CHECK_THROWS_WITH(
      mha::attention(x, x, x, mha::sinks(Eigen::Vector3f::Ones())),
      "mha::attention: sinks must have one logit, or one per query head, got 3 for num_heads 4");
  CHECK_THROWS_AS(mha::attention(x, x, x, mha::sinks(Eigen::VectorXf(0))), std::invalid_argument);
}
