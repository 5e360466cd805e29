// SPDX-License-Identifier: MIT
//
// mha/reference/forward.hpp, against numbers worked out by hand: it is what everything else is compared
// with.
#include <mha/reference/forward.hpp>
#include <mha/score.hpp>

#include "support/matchers.hpp"

using mha::Extent;
using mha::Index;
using mha::Matrix;
using mha::test::cast_to;
using mha::test::eps_of;
using mha::test::equal_bits;
using mha::test::HasBitsOf;
using mha::test::infinity_of;
using mha::test::is_nan;
using mha::test::IsClose;
using mha::test::matrix_of;
using mha::test::nan_of;
using mha::test::random_matrix;

namespace {

template <class Scalar>
struct Result {
  Matrix<Scalar> output;
  Matrix<mha::accumulator_t<Scalar>> weights;
  Matrix<mha::accumulator_t<Scalar>> lse;
};

template <class Scalar, class RuleType = mha::All>
Result<Scalar> attend(const Matrix<Scalar>& query, const Matrix<Scalar>& key,
                      const Matrix<Scalar>& value, const RuleType& rule = {}, Index h = 0) {
  using Acc = mha::accumulator_t<Scalar>;
  Result<Scalar> result{Matrix<Scalar>(query.rows(), value.cols()),
                        Matrix<Acc>(query.rows(), key.rows()), Matrix<Acc>(query.rows(), 1)};
  const mha::HeadTask<Scalar, Scalar> task{
      mha::matrix_view(query),          mha::matrix_view(key),
      mha::matrix_view(value),          mha::matrix_view(result.output),
      mha::matrix_view(result.weights), mha::matrix_view(result.lse)};
  mha::reference::attend(mha::detail::as_rules(rule), Extent{2, query.rows(), key.rows(), 0}, 0, h,
                         task);
  return result;
}

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

}  // namespace

TEMPLATE_TEST_CASE("weights are exponentials of scores over their sum", "[reference]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  // scores (ln 3, ln 1) -> exp (3, 1) -> weights (3/4, 1/4); values 4, 8 -> 3 + 2 = 5; lse = ln 4
  const auto result = attend<TestType>(matrix_of<TestType>({{1}}), log_keys<TestType>({3, 1}),
                                       matrix_of<TestType>({{4}, {8}}));
  CHECK_THAT(result.weights, IsClose(matrix_of<double>({{0.75, 0.25}}), few_roundings<TestType>()));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{5}}), 8 * few_roundings<TestType>()));
  CHECK_THAT(result.lse, IsClose(log_keys<long double>({4}), few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("the scores of two channels are divided by sqrt(2)", "[reference]", float,
                   double, long double) {
  // q = (sqrt 2, sqrt 2), k = (ln 2, ln 3) -> score ln 2 + ln 3 = ln 6; the zero key has ln 1.
  // weights (6/7, 1/7); values (7, 0), (0, 7) -> (6, 1); lse = ln 7.
  const auto ln2 = log_keys<TestType>({2})(0, 0);
  const auto ln3 = log_keys<TestType>({3})(0, 0);
  Matrix<TestType> key(2, 2);
  key << ln2, ln3, TestType(0), TestType(0);
  const TestType root = std::sqrt(TestType(2));
  Matrix<TestType> query(1, 2);
  query << root, root;
  const auto result = attend<TestType>(query, key, matrix_of<TestType>({{7, 0}, {0, 7}}));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{6, 1}}), 7 * few_roundings<TestType>()));
  CHECK_THAT(result.lse, IsClose(log_keys<long double>({7}), few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("every query row has its own softmax", "[reference]", float, double,
                   long double) {
  // Row 0 has scores (ln 3, 0), row 1 (0, 0), row 2 (-ln 3, 0).
  const auto result = attend<TestType>(matrix_of<TestType>({{1}, {0}, {-1}}),
                                       log_keys<TestType>({3, 1}), matrix_of<TestType>({{4}, {8}}));
  CHECK_THAT(result.output,
             IsClose(matrix_of<double>({{5}, {6}, {7}}), 8 * few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("a masked key has weight exactly 0, the others share the whole", "[reference]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  // Of the weights 3, 2, 1 the second is masked: 3/4, 0, 1/4.
  const auto rule = mha::mask_mod([](Index, Index, Index, Index j) { return j != 1; });
  const auto result = attend<TestType>(matrix_of<TestType>({{1}}), log_keys<TestType>({3, 2, 1}),
                                       matrix_of<TestType>({{4}, {100}, {8}}), rule);
  CHECK_THAT(result.weights,
             IsClose(matrix_of<double>({{0.75, 0, 0.25}}), few_roundings<TestType>()));
  CHECK(equal_bits(result.weights(0, 1), mha::accumulator_t<TestType>(0)));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{5}}), 8 * few_roundings<TestType>()));
}

TEMPLATE_TEST_CASE("a row without allowed keys has output 0, weights 0 and lse -inf", "[reference]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const auto result = attend<TestType>(matrix_of<TestType>({{1}, {1}}), log_keys<TestType>({3, 1}),
                                       matrix_of<TestType>({{4}, {8}}), mha::causal_offset(-1));
  CHECK_THAT(result.output, HasBitsOf(matrix_of<TestType>({{0}, {4}})));
  CHECK_THAT(result.weights, HasBitsOf(matrix_of<Acc>({{0, 0}, {1, 0}})));
  CHECK(mha::detail::is_minus_infinity(result.lse(0, 0)));
}

TEMPLATE_TEST_CASE("what stands in masked keys and values is never read into a sum", "[reference]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  const TestType poison = GENERATE(nan_of<TestType>(), infinity_of<TestType>());
  Matrix<TestType> key = random_matrix<TestType>(4, 2, 1);
  Matrix<TestType> value = random_matrix<TestType>(4, 3, 2);
  const auto query = random_matrix<TestType>(3, 2, 3);
  const auto before = attend<TestType>(query, key, value, mha::lengths(2));
  key.bottomRows(2).setConstant(poison);
  value.bottomRows(2).setConstant(poison);
  const auto after = attend<TestType>(query, key, value, mha::lengths(2));
  CHECK_THAT(after.output, HasBitsOf(before.output));
  CHECK_THAT(after.weights, HasBitsOf(before.weights));
  CHECK_THAT(after.lse, HasBitsOf(before.lse));
}

TEMPLATE_TEST_CASE("scores too large for the exponential are fine", "[reference]", float, double,
                   long double) {
  // Differences count: (1e6, 1e6 - 1e4) -> weights (1, 0).
  const auto result =
      attend<TestType>(matrix_of<TestType>({{1000}}), matrix_of<TestType>({{1000}, {990}}),
                       matrix_of<TestType>({{4}, {8}}));
  CHECK(result.output(0, 0) == TestType(4));
  CHECK(result.lse(0, 0) == TestType(1e6));
  const auto low =
      attend<TestType>(matrix_of<TestType>({{-1000}}), matrix_of<TestType>({{1000}, {1000}}),
                       matrix_of<TestType>({{4}, {8}}));
  CHECK(low.output(0, 0) == TestType(6));
}

TEMPLATE_TEST_CASE("softcap, modifiers and a sink come in their order", "[reference]", double,
                   long double) {
  // q k = 10 ln 3, 0; scale 1/2: 5 ln 3, 0; cap 5: 5 * 4/5 = 4, 0; minus 4 on key 0: 0, 0.
  // With a sink of ln 2: weights 1/4, 1/4; values 4, 8 -> 3; lse = ln 4.
  const TestType s = 10 * log_keys<TestType>({3})(0, 0);
  Matrix<TestType> key(2, 1);
  key << s, TestType(0);
  const auto down = mha::score_mod(
      [](auto x, auto, auto, auto, Index j) { return j == 0 ? x - decltype(x)(4) : x; });
  const auto rule = mha::sinks(log_keys<TestType>({2})(0, 0)) & down & mha::softcap(5) &
                    mha::scale(TestType(0.5));
  const auto result =
      attend<TestType>(matrix_of<TestType>({{1}}), key, matrix_of<TestType>({{4}, {8}}), rule);
  CHECK_THAT(result.weights, IsClose(matrix_of<double>({{0.25, 0.25}}), few_roundings<TestType>()));
  CHECK_THAT(result.output, IsClose(matrix_of<double>({{3}}), 8 * few_roundings<TestType>()));
  CHECK_THAT(result.lse, IsClose(log_keys<long double>({4}), few_roundings<TestType>()));
}

TEST_CASE("the head at hand chooses among the sinks", "[reference]") {
  const auto zero = matrix_of<double>({{0}});
  const auto sinks = mha::sinks(Eigen::Vector2d(0, std::log(3.0)));
  const auto one = matrix_of<double>({{8}});
  CHECK_THAT(attend<double>(zero, zero, one, sinks, 0).output,
             IsClose(matrix_of<double>({{4}}), few_roundings<double>()));  // 1 / (1 + 1)
  CHECK_THAT(attend<double>(zero, zero, one, sinks, 1).output,
             IsClose(matrix_of<double>({{2}}), few_roundings<double>()));  // 1 / (1 + 3)
}

TEST_CASE("weights and lse are written only where they are wanted", "[reference]") {
  const auto x = matrix_of<double>({{1, 2}, {3, 4}});
  Matrix<double> output(2, 2);
  const mha::HeadTask<double, double> task{mha::matrix_view(x),
                                           mha::matrix_view(x),
                                           mha::matrix_view(x),
                                           mha::matrix_view(output),
                                           {},
                                           {}};
  mha::reference::attend(mha::All(), Extent{1, 2, 2, 0}, 0, 0, task);
  CHECK_THAT(output, HasBitsOf(attend<double>(x, x, x).output));
}

TEST_CASE("another accumulator may be asked for: float data summed in long double", "[reference]") {
  const auto x = random_matrix<float>(5, 3, 1);
  const auto wide = cast_to<long double>(x);
  Matrix<long double> output(5, 3);
  const mha::HeadTask<float, long double, long double> task{mha::matrix_view(x),
                                                            mha::matrix_view(x),
                                                            mha::matrix_view(x),
                                                            mha::matrix_view(output),
                                                            {},
                                                            {}};
  mha::reference::attend<long double>(mha::All(), Extent{1, 5, 5, 0}, 0, 0, task);
  CHECK_THAT(output, HasBitsOf(attend<long double>(wide, wide, wide).output));
}

TEMPLATE_TEST_CASE("an allowed NaN is a value: its row is NaN, the others are not", "[reference]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  auto query = random_matrix<TestType>(3, 2, 1);
  query(1, 0) = nan_of<TestType>();
  const auto key = random_matrix<TestType>(4, 2, 2);
  const auto result = attend<TestType>(query, key, key);
  CHECK(mha::detail::is_finite(result.output(0, 0)));
  CHECK(is_nan(result.output(1, 0)));
  CHECK(is_nan(result.output(1, 1)));
  CHECK(is_nan(result.lse(1, 0)));
  CHECK(mha::detail::is_finite(result.output(2, 0)));
}

TEST_CASE("no keys, no channels, no queries", "[reference]") {
  const Matrix<double> none(0, 2);
  const auto q = random_matrix<double>(3, 2, 1);
  CHECK(attend<double>(q, none, none).output.isZero(0));
  CHECK(attend<double>(none, q, q).output.rows() == 0);
  CHECK(attend<double>(q, q, Matrix<double>(3, 0)).output.cols() == 0);
  // Without channels every score is 0: the mean of the values.
  const auto mean =
      attend<double>(Matrix<double>(1, 0), Matrix<double>(2, 0), matrix_of<double>({{4}, {8}}));
  CHECK(mean.output(0, 0) == 6);
}
