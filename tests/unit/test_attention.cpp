// SPDX-License-Identifier: MIT
//
// mha/attention.hpp: the meaning of scaled_dot_product_attention and attention at their edges,
// their errors, and every form in which arguments may come. Sizes and rounding are in
// test_attention_grid.cpp, laws in test_attention_laws.cpp, masked NaN in test_poison.cpp.
#include <mha/attention.hpp>

#include <thread>
#include <unsupported/Eigen/CXX11/Tensor>

#include "support/expected_attention.hpp"

using Catch::Matchers::WithinAbs;
using mha::attention;
using mha::attention_forward;
using mha::attention_into;
using mha::AttentionOutputs;
using mha::Index;
using mha::Matrix;
using mha::scaled_dot_product_attention;
using mha::scaled_dot_product_attention_forward;
using mha::Tensor;
using mha::TensorView;
using mha::test::cast_to;
using mha::test::check_head;
using mha::test::ContainsSubstring;
using mha::test::eps_of;
using mha::test::equal_bits;
using mha::test::expected_attention;
using mha::test::HasBitsOf;
using mha::test::infinity_of;
using mha::test::is_nan;
using mha::test::IsClose;
using mha::test::matrix_of;
using mha::test::nan_of;
using mha::test::random_booleans;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::stacked;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

template <class Scalar>
using Acc = mha::accumulator_t<Scalar>;

template <class Scalar>
using ColMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

// Logs of the numbers as a column, so that a query of 1 makes them scores.
template <class Scalar>
Matrix<Scalar> log_keys(std::initializer_list<double> numbers) {
  Matrix<long double> column(static_cast<Index>(numbers.size()), 1);
  Index j = 0;
  for (const double x : numbers) column(j++, 0) = std::log(static_cast<long double>(x));
  return cast_to<Scalar>(column);
}

// ln of small integers is rounded to Scalar, exp undoes it up to a few roundings.
template <class Scalar>
double few_roundings() {
  return 16 * eps_of<Scalar>();
}

// Output 0, weights 0, lse -inf, exactly.
template <class Scalar>
void check_nothing_seen(const mha::HeadResult<Scalar>& result) {
  CHECK_THAT(
      result.output,
      HasBitsOf(Matrix<Scalar>(Matrix<Scalar>::Zero(result.output.rows(), result.output.cols()))));
  CHECK_THAT(result.weights, HasBitsOf(Matrix<Acc<Scalar>>(Matrix<Acc<Scalar>>::Zero(
                                 result.weights.rows(), result.weights.cols()))));
  for (Index i = 0; i < result.lse.size(); ++i) {
    CHECK(mha::detail::is_minus_infinity(result.lse(i)));
  }
}

// One head of a batch by itself, through scaled_dot_product_attention.
template <class Scalar, class RuleType = mha::All>
Matrix<Scalar> one_head(const Tensor<Scalar>& q, const Tensor<Scalar>& k, const Tensor<Scalar>& v,
                        Index b, Index h, Index kv_head, const RuleType& rule = {}) {
  return scaled_dot_product_attention(q.matrix(b, h), k.matrix(b, kv_head), v.matrix(b, kv_head),
                                      rule);
}

}  // namespace

// ---- by hand

TEMPLATE_TEST_CASE("attention weighs values by the softmax of scores", "[attention]", float, double,
                   long double, Eigen::half, Eigen::bfloat16) {
  // scores (ln 3, ln 1) -> exp (3, 1) -> weights (3/4, 1/4); values 4, 8 -> 3 + 2 = 5; lse = ln 4
  const auto result = scaled_dot_product_attention_forward(
      matrix_of<TestType>({{1}}), log_keys<TestType>({3, 1}), matrix_of<TestType>({{4}, {8}}),
      mha::All(), kEverything);
  CHECK_THAT(result.weights, IsClose(matrix_of<double>({{0.75, 0.25}}), few_roundings<TestType>()));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{5}}), 8 * few_roundings<TestType>()));
  CHECK_THAT(result.lse, IsClose(log_keys<long double>({4}), few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("attention to one key is its value, whatever the score", "[attention]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  const auto q = random_matrix<TestType>(5, 3, 1, 30);
  const auto k = random_matrix<TestType>(1, 3, 2, 30);
  const auto v = random_matrix<TestType>(1, 4, 3);
  CHECK_THAT(scaled_dot_product_attention(q, k, v), HasBitsOf(v.replicate(5, 1).eval()));
}

TEMPLATE_TEST_CASE("the results have the accumulator's type, the output that of the inputs",
                   "[attention]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  using Head = decltype(scaled_dot_product_attention_forward(Matrix<TestType>(), Matrix<TestType>(),
                                                             Matrix<TestType>()));
  STATIC_REQUIRE(std::is_same_v<decltype(Head::output), Matrix<TestType>>);
  STATIC_REQUIRE(std::is_same_v<decltype(Head::weights), Matrix<Acc<TestType>>>);
  STATIC_REQUIRE(std::is_same_v<decltype(Head::lse), mha::Vector<Acc<TestType>>>);
  using All =
      decltype(attention_forward(Tensor<TestType>(), Tensor<TestType>(), Tensor<TestType>()));
  STATIC_REQUIRE(std::is_same_v<decltype(All::output), Tensor<TestType>>);
  STATIC_REQUIRE(std::is_same_v<decltype(All::weights), Tensor<Acc<TestType>>>);
  STATIC_REQUIRE(std::is_same_v<decltype(All::lse), Tensor<Acc<TestType>>>);
}

// ---- what is returned

TEST_CASE("weights and lse are returned only where asked for", "[attention]") {
  const auto x = random_matrix<float>(3, 4, 1);
  const auto head = scaled_dot_product_attention_forward(x, x, x);
  CHECK(head.weights.size() == 0);
  CHECK(head.lse.size() == 0);
  const auto all = attention_forward(x, x, x);
  CHECK(all.weights.empty());
  CHECK(all.lse.empty());
  const auto asked = attention_forward(x, x, x, mha::All(), kEverything);
  CHECK(asked.weights.sizes() == std::array<Index, 4>{1, 1, 3, 3});
  CHECK(asked.lse.sizes() == std::array<Index, 4>{1, 1, 3, 1});
}

TEMPLATE_TEST_CASE("asking for weights or lse changes no other bit", "[attention][regression]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  const Index kv_len = 600;  // two tiles of keys
  const auto q = random_matrix<TestType>(30, 8, 1, 2);
  const auto k = random_matrix<TestType>(kv_len, 8, 2, 2);
  const auto v = random_matrix<TestType>(kv_len, 5, 3);
  const auto rule = mha::causal_offset(560) & mha::softcap(3);
  const auto run = [&](bool weights, bool lse) {
    return scaled_dot_product_attention_forward(q, k, v, rule,
                                                {.need_weights = weights, .need_lse = lse});
  };
  const auto plain = run(false, false);
  const auto everything = run(true, true);
  CHECK_THAT(run(true, false).output, HasBitsOf(plain.output));
  CHECK_THAT(run(false, true).output, HasBitsOf(plain.output));
  CHECK_THAT(everything.output, HasBitsOf(plain.output));
  CHECK_THAT(run(true, false).weights, HasBitsOf(everything.weights));
  CHECK_THAT(run(false, true).lse, HasBitsOf(everything.lse));
}

TEMPLATE_TEST_CASE("a masked score has weight exactly 0", "[attention][regression]", float, double,
                   long double, Eigen::half, Eigen::bfloat16) {
  const auto q = random_matrix<TestType>(20, 4, 1, 4);
  const auto k = random_matrix<TestType>(70, 4, 2, 4);
  const Matrix<bool> mask = random_booleans(20, 70, 3, 0.5);
  const auto weights =
      scaled_dot_product_attention_forward(q, k, k, mha::keep(mask), kEverything).weights;
  Index wrong = 0;
  for (Index i = 0; i < 20; ++i) {
    for (Index j = 0; j < 70; ++j) {
      if (!mask(i, j) && !equal_bits(weights(i, j), Acc<TestType>(0))) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

// ---- nothing allowed

TEMPLATE_TEST_CASE("a row that may attend to nothing is 0, with and without weights",
                   "[attention][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  const auto q = random_matrix<TestType>(6, 3, 1, 5);
  const auto k = random_matrix<TestType>(9, 3, 2, 5);
  const auto none = Matrix<TestType>::Constant(6, 9, mha::test::minus_infinity_of<TestType>());
  const auto check = [&](const auto& rule) {
    CHECK_THAT(scaled_dot_product_attention(q, k, k, rule),
               HasBitsOf(Matrix<TestType>(Matrix<TestType>::Zero(6, 3))));
    check_nothing_seen(scaled_dot_product_attention_forward(q, k, k, rule, kEverything));
  };
  check(mha::lengths(0));
  check(mha::causal_offset(-6));
  check(mha::keep(Matrix<bool>::Constant(6, 9, false)));
  check(mha::bias(none));
}

TEST_CASE("rows that see nothing stand beside rows that see something", "[attention]") {
  // More queries than keys: the first row is empty, the second sees key 0, the third both.
  const auto result = scaled_dot_product_attention_forward(
      matrix_of<double>({{1}, {1}, {1}}), log_keys<double>({3, 1}), matrix_of<double>({{4}, {8}}),
      mha::causal_lower_right(), kEverything);
  CHECK_THAT(result.output,
             IsClose(matrix_of<double>({{0}, {4}, {5}}), 8 * few_roundings<double>()));
  CHECK_THAT(result.weights,
             IsClose(matrix_of<double>({{0, 0}, {1, 0}, {0.75, 0.25}}), few_roundings<double>()));
  CHECK_THAT(result.lse,
             IsClose(matrix_of<double>({{-kInfinity}, {std::log(3.0)}, {std::log(4.0)}}),
                     few_roundings<double>()));
}

TEST_CASE("an empty query tile beside a full one is 0", "[attention]") {
  // 300 queries, 40 keys: the first 260 rows, two whole tiles of queries among them, see nothing.
  const auto q = random_matrix<float>(300, 4, 1);
  const auto k = random_matrix<float>(40, 4, 2);
  const auto result =
      scaled_dot_product_attention_forward(q, k, k, mha::causal_lower_right(), kEverything);
  CHECK(result.output.topRows(260).isZero(0));
  CHECK(result.weights.topRows(260).isZero(0));
  for (Index i = 0; i < 260; ++i) REQUIRE(mha::detail::is_minus_infinity(result.lse(i)));
  check_head(result, expected_attention(q, k, k, mha::causal_lower_right()));
}

// ---- masks together

TEMPLATE_TEST_CASE("a causal mask, a further mask and weights work together",
                   "[attention][regression]", float, double) {
  // Row 2 of a causal mask sees keys 0, 1, 2; key 1 is padding: exp (3, 1) -> weights 3/4, 0, 1/4.
  const Matrix<bool> padding = matrix_of<double>({{0, 1, 0, 0}}).cast<bool>();
  const auto result = scaled_dot_product_attention_forward(
      matrix_of<TestType>({{1}, {1}, {1}, {1}}), log_keys<TestType>({3, 7, 1, 4}),
      matrix_of<TestType>({{4}, {100}, {8}, {16}}), mha::causal() & mha::ignore(padding),
      kEverything);
  const auto weights =
      matrix_of<double>({{1, 0, 0, 0}, {1, 0, 0, 0}, {0.75, 0, 0.25, 0}, {0.375, 0, 0.125, 0.5}});
  CHECK_THAT(result.weights, IsClose(weights, few_roundings<TestType>()));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{4}, {4}, {5}, {1.5 + 1 + 8}}),
                                    16 * few_roundings<TestType>()));
}

// ---- special values

TEMPLATE_TEST_CASE("valid scores of -1e30 beside masked ones of +1e30 are what counts",
                   "[attention][regression]", float, double, long double) {
  const auto q = matrix_of<TestType>({{1}});
  const auto k = matrix_of<TestType>({{1e30}, {-1e30}, {1e30}, {-1e30}});
  const auto v = matrix_of<TestType>({{100}, {4}, {200}, {8}});
  const auto rule = mha::mask_mod([](Index, Index, Index, Index j) { return j % 2 == 1; });
  const auto result = scaled_dot_product_attention_forward(q, k, v, rule, kEverything);
  CHECK(result.output(0, 0) == TestType(6));
  CHECK(result.weights == matrix_of<TestType>({{0, 0.5, 0, 0.5}}));
  CHECK(result.lse(0) == TestType(-1e30));
  const auto one = scaled_dot_product_attention(q, k.bottomRows(2), v.bottomRows(2),
                                                mha::window(0, 0) & mha::causal_offset(1));
  CHECK(one(0, 0) == TestType(8));
}

TEMPLATE_TEST_CASE("scores of the largest 16-bit numbers do not overflow", "[attention]",
                   Eigen::half, Eigen::bfloat16) {
  const auto k = matrix_of<TestType>({{60000}, {-60000}, {60000}});
  const auto v = matrix_of<TestType>({{4}, {100}, {8}});
  CHECK(scaled_dot_product_attention(k.topRows(1), k, v)(0, 0) == TestType(6));
}

TEMPLATE_TEST_CASE("a score far above the others takes all the weight", "[attention]", float,
                   double, long double) {
  const auto result = scaled_dot_product_attention_forward(
      matrix_of<TestType>({{1000}}), matrix_of<TestType>({{1000}, {900}, {-1e20}}),
      matrix_of<TestType>({{4}, {8}, {16}}), mha::All(), kEverything);
  CHECK(result.weights == matrix_of<TestType>({{1, 0, 0}}));
  CHECK(result.output(0, 0) == TestType(4));
  // The scale is rounded once with log2(e), the score once, lse once.
  CHECK_THAT(static_cast<double>(result.lse(0)), WithinAbs(1e6, 1e6 * 3 * eps_of<TestType>()));
}

TEMPLATE_TEST_CASE("a maximum that rises from tile to tile is followed", "[attention]", float,
                   double) {
  // Scores 0, 1, 2, ... over three tiles of keys, then the same downwards: sum of exp(-n).
  const Index kv_len = 1100;
  Matrix<TestType> k(kv_len, 1);
  for (Index j = 0; j < kv_len; ++j) k(j, 0) = static_cast<TestType>(j);
  const Matrix<TestType> v = k;
  const auto one = matrix_of<TestType>({{1}});
  const double e = std::exp(-1.0);
  // Weights (1 - e) e^n for the n-th key from the top; their mean distance from it is e / (1 - e).
  const double expected = static_cast<double>(kv_len - 1) - e / (1 - e);
  const double tolerance = 1100 * 40 * eps_of<TestType>();
  CHECK_THAT(static_cast<double>(scaled_dot_product_attention(one, k, v)(0, 0)),
             WithinAbs(expected, tolerance));
  CHECK_THAT(static_cast<double>(scaled_dot_product_attention(one, k.colwise().reverse(),
                                                              v.colwise().reverse())(0, 0)),
             WithinAbs(expected, tolerance));
}

TEMPLATE_TEST_CASE("subnormal scores and values are numbers like others", "[attention]", float,
                   double, long double) {
  const TestType tiny = std::numeric_limits<TestType>::denorm_min() * TestType(3);
  const TestType root = std::sqrt(std::numeric_limits<TestType>::min()) / TestType(4);
  Matrix<TestType> k(2, 1);
  k << root, TestType(0);  // root * root is subnormal
  Matrix<TestType> q(1, 1);
  q << root;
  CHECK(scaled_dot_product_attention(q, k, matrix_of<TestType>({{4}, {8}}))(0, 0) == TestType(6));
  const auto result = scaled_dot_product_attention_forward(
      Matrix<TestType>(Matrix<TestType>::Constant(1, 1, tiny)), matrix_of<TestType>({{1}}),
      Matrix<TestType>(Matrix<TestType>::Constant(1, 1, tiny)), mha::All(), kEverything);
  CHECK(result.output(0, 0) == tiny);
  CHECK(result.lse(0) == tiny);
}

TEMPLATE_TEST_CASE("an allowed NaN is a value, not an error: its row is NaN, the others are not",
                   "[attention]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  auto q = random_matrix<TestType>(5, 3, 1);
  q(2, 1) = nan_of<TestType>();
  const auto k = random_matrix<TestType>(700, 3, 2);
  const auto result = scaled_dot_product_attention_forward(q, k, k, mha::All(), kEverything);
  for (Index i = 0; i < 5; ++i) {
    CAPTURE(i);
    for (Index c = 0; c < 3; ++c) CHECK(is_nan(result.output(i, c)) == (i == 2));
    CHECK(is_nan(result.lse(i)) == (i == 2));
    CHECK(is_nan(result.weights(i, 699)) == (i == 2));
  }
}

TEMPLATE_TEST_CASE("an allowed NaN in one key makes every row that may see it NaN", "[attention]",
                   float, double, long double) {
  const auto q = random_matrix<TestType>(6, 3, 1);
  auto k = random_matrix<TestType>(6, 3, 2);
  k(3, 0) = nan_of<TestType>();
  const auto out =
      scaled_dot_product_attention(q, k, random_matrix<TestType>(6, 2, 3), mha::causal());
  for (Index i = 0; i < 6; ++i) CHECK(is_nan(out(i, 0)) == (i >= 3));
}

TEMPLATE_TEST_CASE("an allowed infinite or NaN value reaches its column of the rows that see it",
                   "[attention]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  const auto q = random_matrix<TestType>(4, 3, 1);
  auto v = random_matrix<TestType>(4, 3, 2);
  v(1, 0) = infinity_of<TestType>();
  v(2, 1) = nan_of<TestType>();
  const auto out = scaled_dot_product_attention(q, q, v, mha::causal());
  CHECK(mha::detail::is_finite(out(0, 0)));
  for (Index i = 1; i < 4; ++i) CHECK(equal_bits(out(i, 0), infinity_of<TestType>()));
  for (Index i = 0; i < 4; ++i) CHECK(is_nan(out(i, 1)) == (i >= 2));
  for (Index i = 0; i < 4; ++i) CHECK(mha::detail::is_finite(out(i, 2)));
}

TEMPLATE_TEST_CASE("a score of +inf makes its row NaN, as the formula does", "[attention]", float,
                   double, long double) {
  const TestType big = std::numeric_limits<TestType>::max();
  Matrix<TestType> k(2, 1);
  k << big, TestType(1);
  Matrix<TestType> q(2, 1);
  q << big, TestType(0);
  const auto result = scaled_dot_product_attention_forward(q, k, matrix_of<TestType>({{4}, {8}}),
                                                           mha::All(), kEverything);
  CHECK(is_nan(result.output(0, 0)));
  CHECK(is_nan(result.lse(0)));
  CHECK(result.output(1, 0) == TestType(6));
}

TEMPLATE_TEST_CASE("scores that overflow to -inf weigh 0 beside finite ones", "[attention]", float,
                   double, long double) {
  const TestType big = std::numeric_limits<TestType>::max();
  Matrix<TestType> k(700, 1);  // the finite one lies in the second tile
  k.setConstant(-big);
  k(650, 0) = TestType(0.25);
  Matrix<TestType> q(1, 1);
  q << TestType(4);
  auto v = random_matrix<TestType>(700, 2, 1);
  const auto result = scaled_dot_product_attention_forward(q, k, v, mha::All(), kEverything);
  CHECK_THAT(result.output, HasBitsOf(Matrix<TestType>(v.row(650))));
  CHECK(result.lse(0) == TestType(1));
}

TEMPLATE_TEST_CASE(
    "allowed scores that all overflow to -inf make a row of NaN, lse too, as the "
    "formula does",
    "[attention]", float, double, long double) {
  // They are allowed: the row is not empty, and (-inf) - (-inf) is NaN.
  const TestType big = std::numeric_limits<TestType>::max();
  const auto k = Matrix<TestType>::Constant(3, 1, -big).eval();
  const auto q = Matrix<TestType>::Constant(1, 1, TestType(4)).eval();
  const auto result = scaled_dot_product_attention_forward(q, k, k, mha::All(), kEverything);
  CHECK(is_nan(result.output(0, 0)));
  CHECK(is_nan(result.weights(0, 2)));
  CHECK(is_nan(result.lse(0)));
}

TEMPLATE_TEST_CASE("a sink of +inf takes all the weight", "[attention][sinks]", float, double,
                   long double) {
  const auto x = random_matrix<TestType>(2, 2, 1);
  const auto result = scaled_dot_product_attention_forward(
      x, x, x, mha::sinks(infinity_of<TestType>()), kEverything);
  CHECK_THAT(result.output, HasBitsOf(Matrix<TestType>(Matrix<TestType>::Zero(2, 2))));
  CHECK_THAT(result.weights, HasBitsOf(Matrix<TestType>(Matrix<TestType>::Zero(2, 2))));
  CHECK(equal_bits(result.lse(0), infinity_of<TestType>()));
}

TEST_CASE("65,537 keys are attended to, the last as well as the first", "[attention][regression]") {
  const Index kv_len = 65537;
  const Matrix<float> q = Matrix<float>::Zero(2, 2);
  const Matrix<float> k = Matrix<float>::Zero(kv_len, 2);
  Matrix<float> v(kv_len, 1);
  for (Index j = 0; j < kv_len; ++j) v(j, 0) = j % 2 == 0 ? 1.0F : -1.0F;
  const auto all = scaled_dot_product_attention_forward(q, k, v, mha::All(), kEverything);
  // Equal weights: 32,769 values of 1 and 32,768 of -1.
  const double tolerance = std::sqrt(65537.0) * eps_of<float>();
  CHECK_THAT(all.output(1, 0), WithinAbs(1.0 / 65537, tolerance));
  CHECK_THAT(all.lse(1), WithinAbs(std::log(65537.0), 16 * eps_of<float>()));
  CHECK_THAT(all.weights(1, kv_len - 1), WithinAbs(1.0 / 65537, 8 * eps_of<float>() / 65537));
  v(kv_len - 1, 0) = 7;
  v(0, 0) = 5;
  const auto ends =
      scaled_dot_product_attention(q, k, v, mha::mask_mod([&](Index, Index, Index i, Index j) {
                                     return j == (i == 0 ? 0 : kv_len - 1);
                                   }));
  CHECK(ends == matrix_of<float>({{5}, {7}}));
  CHECK(scaled_dot_product_attention(q, k, v, mha::window(0, 0) & mha::causal_offset(65535))(
            1, 0) == 7);
}

// ---- zero sizes

TEMPLATE_TEST_CASE("no queries, no keys, no channels and no values are fine",
                   "[attention][regression]", float, double, long double, Eigen::half) {
  const auto x = random_matrix<TestType>(3, 2, 1);
  const Matrix<TestType> no_tokens(0, 2);
  const Matrix<TestType> no_channels(3, 0);
  const auto no_queries =
      scaled_dot_product_attention_forward(no_tokens, x, x, mha::causal(), kEverything);
  CHECK(no_queries.output.rows() == 0);
  CHECK(no_queries.output.cols() == 2);
  CHECK(no_queries.weights.cols() == 3);
  CHECK(no_queries.lse.size() == 0);
  const auto no_keys =
      scaled_dot_product_attention_forward(x, no_tokens, no_tokens, mha::causal(), kEverything);
  CHECK(no_keys.output.rows() == 3);
  CHECK(no_keys.weights.cols() == 0);
  check_nothing_seen(no_keys);
  const auto no_values =
      scaled_dot_product_attention_forward(x, x, no_channels, mha::causal(), kEverything);
  CHECK(no_values.output.rows() == 3);
  CHECK(no_values.output.cols() == 0);
  CHECK_THAT(
      no_values.weights,
      HasBitsOf(scaled_dot_product_attention_forward(x, x, x, mha::causal(), kEverything).weights));
  // Without channels every score is 0: the mean of the values.
  const auto mean =
      scaled_dot_product_attention(no_channels, no_channels, matrix_of<TestType>({{1}, {2}, {6}}));
  CHECK_THAT(mean, IsClose(matrix_of<double>({{3}, {3}, {3}}), 6 * few_roundings<TestType>()));
  const auto nothing =
      scaled_dot_product_attention_forward(Matrix<TestType>(0, 0), Matrix<TestType>(0, 0),
                                           Matrix<TestType>(0, 0), mha::All(), kEverything);
  CHECK(nothing.output.size() == 0);
}

TEST_CASE("a batch of none, and no heads, are fine", "[attention][regression]") {
  const auto no_batch =
      attention_forward(Tensor<float>({0, 4, 5, 6}), Tensor<float>({0, 2, 7, 6}),
                        Tensor<float>({0, 2, 7, 3}), mha::lengths({}) & mha::causal(), kEverything);
  CHECK(no_batch.output.sizes() == std::array<Index, 4>{0, 4, 5, 3});
  CHECK(no_batch.weights.sizes() == std::array<Index, 4>{0, 4, 5, 7});
  CHECK(no_batch.lse.sizes() == std::array<Index, 4>{0, 4, 5, 1});
  const auto no_heads = attention(Tensor<float>({2, 0, 5, 6}), Tensor<float>({2, 0, 7, 6}),
                                  Tensor<float>({2, 0, 7, 3}), mha::alibi());
  CHECK(no_heads.sizes() == std::array<Index, 4>{2, 0, 5, 3});
  const auto no_tokens = attention(Tensor<float>({2, 3, 0, 6}), Tensor<float>({2, 3, 0, 6}),
                                   Tensor<float>({2, 3, 0, 3}));
  CHECK(no_tokens.sizes() == std::array<Index, 4>{2, 3, 0, 3});
}

TEST_CASE("views without memory are fine where there is nothing to read", "[attention]") {
  const TensorView<const float> none(nullptr, {1, 1, 0, 4}, {28, 28, 4, 1});
  const auto q = random_matrix<float>(3, 4, 1);
  CHECK(stacked(attention(q, none, none)).isZero(0));
  CHECK(attention(none, q, q).empty());
  const TensorView<const float> no_values(nullptr, {1, 1, 3, 0}, {12, 12, 4, 1});
  CHECK(attention(q, q, no_values, mha::causal()).size(3) == 0);
  CHECK_THAT(stacked(attention(no_values, no_values, matrix_of<float>({{1}, {2}, {6}}))),
             IsClose(matrix_of<float>({{3}, {3}, {3}}), 6 * few_roundings<float>()));
}

// ---- wrong shapes

TEST_CASE("keys and values of different length are refused, in release builds too",
          "[attention][errors][regression]") {
  const Matrix<float> q(2, 3);
  const Matrix<float> k(5, 3);
  const Matrix<float> v(4, 3);
  CHECK_THROWS_AS(scaled_dot_product_attention(q, k, v), std::invalid_argument);
  CHECK_THROWS_WITH(scaled_dot_product_attention(q, k, v),
                    "mha::scaled_dot_product_attention: value.rows() must equal key.rows() "
                    "(kv_len), got 4 and 5");
}

TEST_CASE("keys of another head_dim than the queries are refused", "[attention][errors]") {
  CHECK_THROWS_WITH(
      scaled_dot_product_attention(Matrix<float>(2, 2), Matrix<float>(5, 3), Matrix<float>(5, 3)),
      "mha::scaled_dot_product_attention: key.cols() must equal query.cols() (head_dim), got 3 and "
      "2");
}

TEST_CASE("tensors that do not fit each other are refused, naming both numbers",
          "[attention][errors]") {
  const auto check = [](const std::array<Index, 4>& q, const std::array<Index, 4>& k,
                        const std::array<Index, 4>& v, const std::string& message) {
    CHECK_THROWS_AS(attention(Tensor<float>(q), Tensor<float>(k), Tensor<float>(v)),
                    std::invalid_argument);
    CHECK_THROWS_WITH(attention(Tensor<float>(q), Tensor<float>(k), Tensor<float>(v)),
                      "mha::attention: " + message);
  };
  check({2, 4, 5, 6}, {3, 4, 7, 6}, {2, 4, 7, 6}, "key must have query's batch, got 3 and 2");
  check({2, 4, 5, 6}, {2, 4, 7, 6}, {1, 4, 7, 6}, "value must have query's batch, got 1 and 2");
  check({2, 4, 5, 6}, {2, 2, 7, 6}, {2, 4, 7, 6},
        "value must have as many heads as key, got 4 and 2");
  check({2, 4, 5, 6}, {2, 3, 7, 6}, {2, 3, 7, 6},
        "the heads of key must divide those of query, got 3 and 4");
  check({2, 4, 5, 6}, {2, 8, 7, 6}, {2, 8, 7, 6},
        "the heads of key must divide those of query, got 8 and 4");
  check({2, 4, 5, 6}, {2, 0, 7, 6}, {2, 0, 7, 6},
        "the heads of key must divide those of query, got 0 and 4");
  check({2, 4, 5, 6}, {2, 4, 7, 8}, {2, 4, 7, 6},
        "key.cols() must equal query.cols() (head_dim), got 8 and 6");
  check({2, 4, 5, 6}, {2, 4, 7, 6}, {2, 4, 9, 6},
        "value.rows() must equal key.rows() (kv_len), got 9 and 7");
}

TEST_CASE("a past_len that is negative or longer than the keys is refused", "[attention][errors]") {
  const Matrix<float> x = Matrix<float>::Zero(3, 2);
  CHECK_NOTHROW(scaled_dot_product_attention(x, x, x, mha::causal(), {.past_len = 3}));
  CHECK_THROWS_WITH(scaled_dot_product_attention(x, x, x, mha::causal(), {.past_len = 4}),
                    ContainsSubstring("past_len must lie between 0 and kv_len, got 4 and 3"));
  CHECK_THROWS_WITH(scaled_dot_product_attention(x, x, x, mha::causal(), {.past_len = -1}),
                    ContainsSubstring("got -1 and 3"));
}

TEST_CASE("attention_into writes nothing if anything does not fit", "[attention][errors]") {
  const auto x = random_tensor<float>({1, 2, 3, 4}, 1);
  Tensor<float> output({1, 2, 3, 4});
  Tensor<float> weights({1, 2, 3, 3});
  Tensor<float> lse({1, 2, 3, 1});
  const auto refuses = [&](const AttentionOutputs<float>& outputs, const auto& q, const auto& k,
                           const auto& v, const auto& rule, const std::string& message) {
    for (Tensor<float>* t : {&output, &weights, &lse}) {
      for (Index b = 0; b < 1; ++b) {
        for (Index h = 0; h < 2; ++h) t->matrix(b, h).setConstant(42);
      }
    }
    CHECK_THROWS_WITH(attention_into(outputs, q, k, v, rule), "mha::attention_into: " + message);
    CHECK((stacked(output).array() == 42).all());
    CHECK((stacked(weights).array() == 42).all());
    CHECK((stacked(lse).array() == 42).all());
  };
  const AttentionOutputs<float> outputs{output, weights, lse};
  const Tensor<float> longer({1, 2, 4, 4});
  refuses(outputs, x, x, longer, mha::All(),
          "value.rows() must equal key.rows() (kv_len), got 4 and 3");
  refuses(outputs, x, x, x, mha::lengths(9), "lengths must lie between 0 and kv_len, got 9 and 3");
  Tensor<float> long_output({1, 2, 4, 4});
  refuses({long_output, weights, lse}, x, x, x, mha::All(),
          "output must have size 3 along query_len, got 4");
  refuses({output, lse, lse}, x, x, x, mha::All(), "weights must have size 3 along kv_len, got 1");
  refuses({output, weights, weights}, x, x, x, mha::All(),
          "lse must have size 1 along its last axis, got 3");
}

// ---- in whatever form arguments come

TEMPLATE_TEST_CASE("storage order and strides of the arguments change no bit",
                   "[attention][strides]", float, double, long double, Eigen::half) {
  const Index kv_len = 530;  // two tiles of keys
  const auto q = random_matrix<TestType>(40, 6, 1);
  const auto k = random_matrix<TestType>(kv_len, 6, 2);
  const auto v = random_matrix<TestType>(kv_len, 5, 3);
  const auto rule = mha::causal_offset(500);
  const auto expected = scaled_dot_product_attention(q, k, v, rule);
  const auto attend = [&](const auto& q2, const auto& k2, const auto& v2) {
    return scaled_dot_product_attention(q2, k2, v2, rule);
  };
  const ColMajor<TestType> cq = q;
  const ColMajor<TestType> ck = k;
  const ColMajor<TestType> cv = v;
  SECTION("column-major") { CHECK_THAT(attend(cq, ck, cv), HasBitsOf(expected)); }
  SECTION("mixed") { CHECK_THAT(attend(q, ck, v), HasBitsOf(expected)); }
  SECTION("transposed") {
    const Matrix<TestType> kt = k.transpose();
    const Matrix<TestType> vt = v.transpose();
    CHECK_THAT(attend(cq, kt.transpose(), vt.transpose()), HasBitsOf(expected));
  }
  SECTION("blocks") {
    Matrix<TestType> large = random_matrix<TestType>(kv_len + 5, 30, 9);
    ColMajor<TestType> col_large = large;
    large.block(2, 1, 40, 6) = q;
    large.block(3, 8, kv_len, 6) = k;
    col_large.block(4, 20, kv_len, 5) = v;
    CHECK_THAT(attend(large.block(2, 1, 40, 6), large.block(3, 8, kv_len, 6),
                      col_large.block(4, 20, kv_len, 5)),
               HasBitsOf(expected));
  }
  SECTION("maps with an inner and an outer stride") {
    using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    std::vector<TestType> memory(static_cast<std::size_t>(kv_len * 40), nan_of<TestType>());
    Eigen::Map<Matrix<TestType>, 0, Stride> mk(memory.data(), kv_len, 6, Stride(40, 3));
    Eigen::Map<Matrix<TestType>, 0, Stride> mv(memory.data() + 20, kv_len, 5, Stride(40, 2));
    mk = k;
    mv = v;
    CHECK_THAT(attend(q, mk, mv), HasBitsOf(expected));
  }
  SECTION("Ref, Array and expressions") {
    const Eigen::Ref<const ColMajor<TestType>> ref(ck);
    const Eigen::Array<TestType, Eigen::Dynamic, Eigen::Dynamic> array = v.array();
    CHECK_THAT(attend(cq.array(), ref, array), HasBitsOf(expected));
    CHECK_THAT(attend(q + Matrix<TestType>::Zero(40, 6), k.transpose().eval().transpose(),
                      v * TestType(1)),
               HasBitsOf(expected));
    CHECK_THAT(attend(q, -(-k), v.cwiseAbs().cwiseProduct(v.unaryExpr([](TestType x) {
                 return x < TestType(0) ? TestType(-1) : TestType(1);
               }))),
               HasBitsOf(expected));
  }
  SECTION("backwards, through negative strides") {
    const Matrix<TestType> backward_q = q.colwise().reverse();
    const Matrix<TestType> backward_k = k.colwise().reverse();
    const Matrix<TestType> backward_v = v.rowwise().reverse();
    const TensorView<const TestType> vq(backward_q.data() + 39 * 6, {1, 1, 40, 6}, {0, 0, -6, 1});
    const TensorView<const TestType> vk(backward_k.data() + (kv_len - 1) * 6, {1, 1, kv_len, 6},
                                        {0, 0, -6, 1});
    const TensorView<const TestType> vv(backward_v.data() + 4, {1, 1, kv_len, 5}, {0, 0, 5, -1});
    CHECK_THAT(stacked(attention(vq, vk, vv, rule)), HasBitsOf(expected));
  }
}

TEST_CASE("arguments of fixed size and single rows are matrices like others",
          "[attention][strides]") {
  const auto x = random_matrix<double>(4, 3, 1);
  const Eigen::Matrix<double, 4, 3> fixed = x;
  const auto expected = scaled_dot_product_attention(x, x, x);
  CHECK_THAT(scaled_dot_product_attention(fixed, fixed, fixed), HasBitsOf(expected));
  const Eigen::RowVector3d one = x.row(2);
  CHECK_THAT(scaled_dot_product_attention(one, x, x),
             IsClose(expected.row(2), 10 * eps_of<double>()));
  CHECK_THAT(scaled_dot_product_attention(x.row(2), x, x),
             IsClose(expected.row(2), 10 * eps_of<double>()));
  const Eigen::VectorXd column = x.col(0);
  CHECK(scaled_dot_product_attention(column, column, column).cols() == 1);
}

TEST_CASE("keys and values of stride 0 are one sequence for the whole batch",
          "[attention][strides]") {
  const auto q = random_tensor<float>({3, 4, 5, 6}, 1);
  const auto k = random_matrix<float>(7, 6, 2);
  const auto v = random_matrix<float>(7, 2, 3);
  const TensorView<const float> all_k(k.data(), {3, 4, 7, 6}, {0, 0, 6, 1});
  const TensorView<const float> all_v(v.data(), {3, 4, 7, 2}, {0, 0, 2, 1});
  const auto out = attention(q, all_k, all_v, mha::causal());
  for (Index b = 0; b < 3; ++b) {
    for (Index h = 0; h < 4; ++h) {
      CHECK_THAT(Matrix<float>(out.matrix(b, h)),
                 HasBitsOf(scaled_dot_product_attention(q.matrix(b, h), k, v, mha::causal())));
    }
  }
  // Every key row the same row: equal weights.
  const TensorView<const float> same(k.data(), {1, 1, 7, 6}, {0, 0, 0, 1});
  const Matrix<float> mean = v.colwise().mean().replicate(5, 1);
  CHECK_THAT(stacked(attention(Matrix<float>(q.matrix(0, 0)), same, v)),
             IsClose(mean, 16 * eps_of<float>()));
}

TEST_CASE("tensors in any layout give the same bits", "[attention][strides]") {
  const auto q = random_tensor<float>({2, 4, 5, 6}, 1);
  const auto k = random_tensor<float>({2, 2, 7, 6}, 2);
  const auto v = random_tensor<float>({2, 2, 7, 3}, 3);
  const auto expected = stacked(attention(q, k, v, mha::causal()));
  const auto fill = [](auto& to, const Tensor<float>& from) {
    for (Index b = 0; b < from.size(0); ++b) {
      for (Index h = 0; h < from.size(1); ++h) {
        for (Index i = 0; i < from.size(2); ++i) {
          for (Index d = 0; d < from.size(3); ++d) to(b, h, i, d) = from(b, h, i, d);
        }
      }
    }
  };
  Eigen::Tensor<float, 4, Eigen::ColMajor> cq(2, 4, 5, 6);
  Eigen::Tensor<float, 4, Eigen::ColMajor> ck(2, 2, 7, 6);
  Eigen::Tensor<float, 4, Eigen::RowMajor> rv(2, 2, 7, 3);
  fill(cq, q);
  fill(ck, k);
  fill(rv, v);
  CHECK_THAT(stacked(attention(cq, ck, rv, mha::causal())), HasBitsOf(expected));
  const Eigen::TensorMap<Eigen::Tensor<float, 4, Eigen::ColMajor>> map(cq.data(), 2, 4, 5, 6);
  CHECK_THAT(stacked(attention(map, k, v, mha::causal())), HasBitsOf(expected));
  // [batch, token, head, channel] at a raw pointer.
  std::vector<float> memory(std::size_t{2} * 5 * 4 * 6);
  const TensorView<float> raw(memory.data(), {2, 4, 5, 6}, {120, 6, 24, 1});
  fill(raw, q);
  CHECK_THAT(stacked(attention(raw, k, v, mha::causal())), HasBitsOf(expected));
  CHECK_THAT(stacked(attention(TensorView<const float>(q.data(), {2, 4, 5, 6}), k.view(), v,
                               mha::causal())),
             HasBitsOf(expected));
}

TEST_CASE("the arguments are left as they were", "[attention]") {
  const auto q = random_tensor<float>({2, 4, 5, 6}, 1);
  const auto k = random_tensor<float>({2, 2, 7, 6}, 2);
  const auto q_before = stacked(q);
  const auto k_before = stacked(k);
  (void)attention_forward(q, k, k, mha::causal() & mha::softcap(2), kEverything);
  CHECK_THAT(stacked(q), HasBitsOf(q_before));
  CHECK_THAT(stacked(k), HasBitsOf(k_before));
}

TEST_CASE("attention_into writes through any strides and nothing beside", "[attention][strides]") {
  const auto q = random_tensor<double>({2, 3, 5, 4}, 1);
  const auto expected = attention_forward(q, q, q, mha::causal(), kEverything);
  // Output as [batch, token, head, channel] with a gap after each channel row; lse as
  // [batch, token, head].
  std::vector<double> memory(std::size_t{2} * 5 * 3 * 6, 42);
  std::vector<double> lse_memory(std::size_t{2} * 5 * 3, 42);
  AttentionOutputs<double> outputs{{memory.data(), {2, 3, 5, 4}, {90, 6, 18, 1}}};
  outputs.lse = {lse_memory.data(), {2, 3, 5, 1}, {15, 1, 3, 1}};
  Tensor<double> weights({2, 3, 5, 5});
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 3; ++h) weights.matrix(b, h).setConstant(42);
  }
  outputs.weights = weights;
  attention_into(outputs, q, q, q, mha::causal());
  CHECK_THAT(stacked(outputs.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(outputs.lse), HasBitsOf(stacked(expected.lse)));
  CHECK_THAT(stacked(weights), HasBitsOf(stacked(expected.weights)));
  for (std::size_t row = 0; row < 30; ++row) {
    CHECK(memory[6 * row + 4] == 42);
    CHECK(memory[6 * row + 5] == 42);
  }
}

TEST_CASE("attention_into writes no weights and no lse unless given memory for them",
          "[attention]") {
  const auto q = random_tensor<float>({1, 2, 5, 4}, 1);
  Tensor<float> output({1, 2, 5, 4});
  attention_into(AttentionOutputs<float>{output}, q, q, q);
  CHECK_THAT(stacked(output), HasBitsOf(stacked(attention(q, q, q))));
}

// ---- heads and batches

TEST_CASE("query head h reads key head h / (num_heads / kv_heads)",
          "[attention][heads][regression]") {
  const Index kv_heads = GENERATE(1, 2, 3, 6);
  CAPTURE(kv_heads);
  const auto q = random_tensor<double>({2, 6, 5, 4}, 1);
  const auto k = random_tensor<double>({2, kv_heads, 7, 4}, 2);
  const auto v = random_tensor<double>({2, kv_heads, 7, 3}, 3);
  const auto out = attention(q, k, v, mha::causal());
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 6; ++h) {
      CHECK_THAT(Matrix<double>(out.matrix(b, h)),
                 HasBitsOf(one_head(q, k, v, b, h, h / (6 / kv_heads), mha::causal())));
    }
  }
}

TEST_CASE("heads split from the columns of a matrix attend like heads that stand alone",
          "[attention][heads]") {
  // 2 sequences of 4 tokens, 3 heads of 2 channels.
  const auto x = random_matrix<double>(8, 6, 1);
  Matrix<double> out(8, 6);
  attention_into(AttentionOutputs<double>{mha::split_heads(out, 3, 2)}, mha::split_heads(x, 3, 2),
                 mha::split_heads(x, 3, 2), mha::split_heads(x, 3, 2), mha::causal());
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 3; ++h) {
      const auto head = x.block(4 * b, 2 * h, 4, 2);
      CHECK_THAT(Matrix<double>(out.block(4 * b, 2 * h, 4, 2)),
                 HasBitsOf(scaled_dot_product_attention(head, head, head, mha::causal())));
    }
  }
}

TEST_CASE("the company in a batch does not change a bit of a sequence", "[attention][batch]") {
  const auto q = random_tensor<float>({5, 2, 37, 6}, 1);
  const auto k = random_tensor<float>({5, 2, 41, 6}, 2);
  const auto all =
      attention_forward(q, k, k, mha::causal() & mha::lengths({41, 3, 0, 17, 40}), kEverything);
  const std::array<Index, 5> lengths{41, 3, 0, 17, 40};
  for (Index b = 0; b < 5; ++b) {
    const TensorView<const float> qb(q.data() + b * 2 * 37 * 6, {1, 2, 37, 6});
    const TensorView<const float> kb(k.data() + b * 2 * 41 * 6, {1, 2, 41, 6});
    const auto alone = attention_forward(
        qb, kb, kb, mha::causal() & mha::lengths(lengths[static_cast<std::size_t>(b)]),
        kEverything);
    for (Index h = 0; h < 2; ++h) {
      CHECK_THAT(Matrix<float>(all.output.matrix(b, h)),
                 HasBitsOf(Matrix<float>(alone.output.matrix(0, h))));
      CHECK_THAT(Matrix<float>(all.weights.matrix(b, h)),
                 HasBitsOf(Matrix<float>(alone.weights.matrix(0, h))));
      CHECK_THAT(Matrix<float>(all.lse.matrix(b, h)),
                 HasBitsOf(Matrix<float>(alone.lse.matrix(0, h))));
    }
  }
}

// ---- what attention leaves alone

TEST_CASE("without an executor everything runs on the calling thread", "[attention][threads]") {
  const auto x = random_tensor<float>({2, 4, 20, 3}, 1);
  const auto caller = std::this_thread::get_id();
  bool elsewhere = false;
  (void)attention(x, x, x, mha::mask_mod([&](Index, Index, Index, Index) {
                    elsewhere = elsewhere || std::this_thread::get_id() != caller;
                    return true;
                  }));
  CHECK_FALSE(elsewhere);
}

TEST_CASE("Eigen's number of threads stays as it was", "[attention][threads][regression]") {
  const auto x = random_matrix<float>(300, 64, 1);
  const int before = Eigen::nbThreads();
  for (const int count : {1, 3, before}) {
    Eigen::setNbThreads(count);
    const int set = Eigen::nbThreads();  // 1 in builds without OpenMP
    (void)scaled_dot_product_attention(x, x, x);
    CHECK(Eigen::nbThreads() == set);
  }
}

// ---- the calls of the documentation

TEST_CASE("the calls that the documentation shows compile and do what it says", "[attention]") {
  const Eigen::MatrixXf q = random_matrix<float>(6, 4, 1);
  const Eigen::MatrixXf k = random_matrix<float>(9, 4, 2);
  const Eigen::MatrixXf v = random_matrix<float>(9, 3, 3);
  const float slope = 0.25F;
  const Eigen::MatrixXf o = scaled_dot_product_attention(q, k, v, mha::alibi(slope));
  CHECK(o.rows() == 6);
  CHECK(o.cols() == 3);
  const auto windowed = scaled_dot_product_attention(q, k, v, mha::causal() & mha::window(128, 0));
  CHECK_THAT(windowed, HasBitsOf(scaled_dot_product_attention(q, k, v, mha::causal())));
  const auto r = scaled_dot_product_attention_forward(q, k, v, mha::lengths(5),
                                                      {.need_weights = true, .need_lse = true});
  CHECK(r.output.rows() == 6);
  CHECK(r.weights.cols() == 9);
  CHECK(r.lse.size() == 6);
  const auto only_lse = scaled_dot_product_attention_forward(q, k, v, {.need_lse = true});
  CHECK(only_lse.lse.size() == 6);

  const auto q4 = random_tensor<float>({2, 4, 6, 8}, 4);
  const auto k4 = random_tensor<float>({2, 2, 6, 8}, 5);
  const auto t = attention(q4, k4, k4, mha::causal());
  CHECK(t.sizes() == std::array<Index, 4>{2, 4, 6, 8});
  const mha::Vector<float> slopes = mha::alibi_slopes(4);
  const auto s = mha::score_mod([&](auto score, auto, auto h, auto i, auto j) {
    return score - slopes[h] * static_cast<float>(std::abs(i - j));
  });
  CHECK_THAT(stacked(attention(q4, k4, k4, s)),
             IsClose(stacked(attention(q4, k4, k4, mha::alibi())), 100 * eps_of<float>()));
}
