// SPDX-License-Identifier: MIT
//
// mha/softmax.hpp: merging partial results.
#include <mha/softmax.hpp>

#include <cmath>

#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::Vector;
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

namespace {

// The logs of the numbers, in the accumulator type of Scalar.
template <class Scalar>
Vector<mha::accumulator_t<Scalar>> logs(std::initializer_list<double> numbers) {
  Vector<mha::accumulator_t<Scalar>> result(static_cast<Index>(numbers.size()));
  Index i = 0;
  for (const double x : numbers) {
    const long double log = std::log(static_cast<long double>(x));  // ln 0 = -inf
    result(i++) = static_cast<mha::accumulator_t<Scalar>>(log);
  }
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("merged parts weigh by the exponentials of their lse", "[softmax][merge]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  // Row 0: sums 3 and 1 -> (3 * 4 + 1 * 8) / 4 = 5, lse = ln 4.
  // Row 1: sums 1 and 4 -> (1 * 5 + 4 * 10) / 5 = 9, lse = ln 5.
  const auto merged = mha::merge(matrix_of<TestType>({{4}, {5}}), logs<TestType>({3, 1}),
                                 matrix_of<TestType>({{8}, {10}}), logs<TestType>({1, 4}));
  const double eps = eps_of<mha::accumulator_t<TestType>>();
  // 16-bit outputs hold 5 and 9 exactly, rounding the accumulator's error away.
  CHECK_THAT(merged.output, IsClose(matrix_of<TestType>({{5}, {9}}), 9 * 4 * eps));
  CHECK_THAT(merged.lse, IsClose(logs<TestType>({4, 5}), 4 * eps));
}

TEMPLATE_TEST_CASE("an empty part leaves the other one bit for bit, whatever its output holds",
                   "[softmax][merge][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const Matrix<TestType> output = random_matrix<TestType>(3, 5, 1);
  const Vector<Acc> lse = random_matrix<Acc>(3, 1, 2, 100);
  const Vector<Acc> empty_lse = Vector<Acc>::Constant(3, -infinity_of<Acc>());
  const auto garbage = GENERATE(std::numeric_limits<double>::quiet_NaN(),
                                std::numeric_limits<double>::infinity(), 0.0, 1e30);
  const Matrix<TestType> empty =
      Matrix<TestType>::Constant(3, 5, mha::detail::convert<TestType>(garbage));
  const auto after = mha::merge(output, lse, empty, empty_lse);
  CHECK_THAT(after.output, HasBitsOf(output));
  CHECK_THAT(after.lse, HasBitsOf(lse));
  const auto before = mha::merge(empty, empty_lse, output, lse);
  CHECK_THAT(before.output, HasBitsOf(output));
  CHECK_THAT(before.lse, HasBitsOf(lse));
}

TEMPLATE_TEST_CASE("two empty parts merge into an empty one: output 0, lse -inf",
                   "[softmax][merge][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const Matrix<TestType> garbage = Matrix<TestType>::Constant(2, 3, nan_of<TestType>());
  const Vector<Acc> empty = Vector<Acc>::Constant(2, -infinity_of<Acc>());
  const auto merged = mha::merge(garbage, empty, garbage, empty);
  CHECK_THAT(merged.output, HasBitsOf(Matrix<TestType>(Matrix<TestType>::Zero(2, 3))));
  CHECK_THAT(merged.lse, HasBitsOf(empty));
}

TEST_CASE("each row decides by itself whether its part is empty", "[softmax][merge]") {
  // Row 0 is empty in part 1, row 1 in part 2, row 2 in neither: (1 * 1 + 1 * 3) / 2 = 2.
  const auto merged = mha::merge(matrix_of<double>({{7}, {1}, {1}}), logs<double>({0, 2, 1}),
                                 matrix_of<double>({{3}, {9}, {3}}), logs<double>({5, 0, 1}));
  CHECK(merged.output(0, 0) == 3);
  CHECK(merged.output(1, 0) == 1);
  CHECK(merged.output(2, 0) == 2);
  CHECK(merged.lse(0) == std::log(5.0));
  CHECK(merged.lse(1) == std::log(2.0));
}

TEMPLATE_TEST_CASE("parts far apart merge without overflow", "[softmax][merge]", float, double) {
  const Vector<TestType> huge = Vector<TestType>::Constant(1, TestType(1e30));
  const Vector<TestType> tiny = Vector<TestType>::Constant(1, TestType(-1e30));
  const auto merged =
      mha::merge(matrix_of<TestType>({{2}}), tiny, matrix_of<TestType>({{5}}), huge);
  CHECK(merged.output(0, 0) == TestType(5));
  CHECK(merged.lse(0) == TestType(1e30));
  const auto equal = mha::merge(matrix_of<TestType>({{2}}), tiny, matrix_of<TestType>({{4}}), tiny);
  CHECK(equal.output(0, 0) == TestType(3));
  CHECK(equal.lse(0) == TestType(-1e30));  // + ln 2, lost in rounding
}

TEST_CASE("merging is associative up to rounding", "[softmax][merge][law]") {
  const Index rows = 20;
  const Matrix<double> o1 = random_matrix<double>(rows, 4, 1);
  const Matrix<double> o2 = random_matrix<double>(rows, 4, 2);
  const Matrix<double> o3 = random_matrix<double>(rows, 4, 3);
  const Vector<double> l1 = random_matrix<double>(rows, 1, 4, 5);
  const Vector<double> l2 = random_matrix<double>(rows, 1, 5, 5);
  const Vector<double> l3 = random_matrix<double>(rows, 1, 6, 5);
  const auto left = mha::merge(o1, l1, o2, l2);
  const auto left_first = mha::merge(left.output, left.lse, o3, l3);
  const auto right = mha::merge(o2, l2, o3, l3);
  const auto right_first = mha::merge(o1, l1, right.output, right.lse);
  // lse differences of at most 10 carry eps * 10 / 2 each into two exponentials; 8 further
  // roundings.
  const double tolerance = (2 * 10 + 8) * eps_of<double>();
  CHECK_THAT(left_first.output, IsClose(right_first.output, tolerance));
  CHECK_THAT(left_first.lse, IsClose(right_first.lse, tolerance));
}

TEST_CASE("merge takes expressions, column-major matrices and row vectors", "[softmax][merge]") {
  const Eigen::Matrix<double, 2, 2, Eigen::ColMajor> o = matrix_of<double>({{1, 2}, {3, 4}});
  const Eigen::RowVector2d lse(0.0, 0.0);
  const auto merged = mha::merge(2 * o, lse, o.transpose(), (lse + lse).eval());
  // Equal weights: the mean of {{2, 4}, {6, 8}} and {{1, 3}, {2, 4}}.
  CHECK(merged.output == matrix_of<double>({{1.5, 3.5}, {4, 6}}));
}

TEST_CASE("merge of no rows, or of no channels, is fine", "[softmax][merge]") {
  const auto no_rows =
      mha::merge(Matrix<float>(0, 3), Vector<float>(0), Matrix<float>(0, 3), Vector<float>(0));
  CHECK(no_rows.output.rows() == 0);
  CHECK(no_rows.output.cols() == 3);
  CHECK(no_rows.lse.size() == 0);
  const auto no_channels =
      mha::merge(Matrix<float>(1, 0), logs<float>({3}), Matrix<float>(1, 0), logs<float>({1}));
  CHECK(no_channels.output.cols() == 0);
  CHECK_THAT(no_channels.lse(0), Catch::Matchers::WithinAbs(std::log(4.0), 4 * eps_of<float>()));
}

TEST_CASE("merge refuses parts of different shapes and names both numbers",
          "[softmax][merge][errors]") {
  const Matrix<float> o(3, 2);
  const Vector<float> lse = Vector<float>::Zero(3);
  CHECK_THROWS_AS(mha::merge(o, lse, Matrix<float>(4, 2), lse), std::invalid_argument);
  CHECK_THROWS_WITH(
      mha::merge(o, lse, Matrix<float>(4, 2), Vector<float>(Vector<float>::Zero(4))),
      "mha::merge: output1.rows() must equal output2.rows() (query_len), got 3 and 4");
  CHECK_THROWS_WITH(
      mha::merge(o, lse, Matrix<float>(3, 5), lse),
      "mha::merge: output1.cols() must equal output2.cols() (value_dim), got 2 and 5");
  CHECK_THROWS_WITH(mha::merge(o, Vector<float>(Vector<float>::Zero(7)), o, lse),
                    ContainsSubstring("mha::merge: ") && ContainsSubstring("got 7, 3 and 3"));
  CHECK_THROWS_WITH(mha::merge(o, lse, o, Vector<float>(Vector<float>::Zero(2))),
                    ContainsSubstring("got 3, 2 and 3"));
}
