// SPDX-License-Identifier: MIT
//
// Rotary position embedding: angles computed by hand, both layouts of the pairs, positions in each
// of their forms, tables, and the law that makes it worth having.
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::Rotary;
using mha::rotary;
using mha::rotary_in_place;
using mha::RotaryPairs;
using mha::Tensor;
using mha::test::cast_to;
using mha::test::eps_of;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::plain_rotary;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::same_bits;
using mha::test::Tokens;

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

const Rotary kHalf{.pairs = RotaryPairs::half};
const Rotary kInterleaved{.pairs = RotaryPairs::interleaved};

}  // namespace

TEST_CASE("halves turn by the angles computed by hand", "[rotary]") {
  // dim 4, base 4: frequencies 4^0 = 1 and 4^(-1/2) = 1/2; position 2: angles 2 and 1.
  // Pairs (channel 0, channel 2) = (1, 0) and (channel 1, channel 3) = (0, 1):
  //   (cos 2, sin 2) and (-sin 1, cos 1).
  const Tokens y = rotary(Tokens{{1, 0, 0, 1}}, {.pairs = RotaryPairs::half, .base = 4}, 2);
  const Tokens expected{{std::cos(2.0), -std::sin(1.0), std::sin(2.0), std::cos(1.0)}};
  CHECK_THAT(y, IsClose(expected, 4 * kEps));
}

TEST_CASE("interleaved pairs turn by the angles computed by hand", "[rotary]") {
  // As above with pairs (channel 0, channel 1) = (1, 0) and (channel 2, channel 3) = (0, 1).
  const Tokens y = rotary(Tokens{{1, 0, 0, 1}}, {.pairs = RotaryPairs::interleaved, .base = 4}, 2);
  const Tokens expected{{std::cos(2.0), std::sin(2.0), -std::sin(1.0), std::cos(1.0)}};
  CHECK_THAT(y, IsClose(expected, 4 * kEps));
}

TEST_CASE("the base is 10000 unless given", "[rotary]") {
  // dim 8: frequencies 1, 1/10, 1/100, 1/1000.
  const Tokens y = rotary(Tokens{{1, 1, 1, 1, 0, 0, 0, 0}}, kHalf, 3);
  const Tokens expected{{std::cos(3.0), std::cos(0.3), std::cos(0.03), std::cos(0.003),
                         std::sin(3.0), std::sin(0.3), std::sin(0.03), std::sin(0.003)}};
  CHECK_THAT(y, IsClose(expected, 8 * kEps));
}

TEST_CASE("the two layouts are one rotation of shuffled channels", "[rotary][law]") {
  const Tokens x = random_matrix<double>(5, 8, 1);
  Tokens shuffled(5, 8);
  for (Index k = 0; k < 4; ++k) {
    shuffled.col(2 * k) = x.col(k);
    shuffled.col(2 * k + 1) = x.col(k + 4);
  }
  const Tokens by_half = rotary(x, kHalf);
  const Tokens by_pairs = rotary(shuffled, kInterleaved);
  for (Index k = 0; k < 4; ++k) {
    CHECK_THAT(Tokens(by_pairs.col(2 * k)), HasBitsOf(Tokens(by_half.col(k))));
    CHECK_THAT(Tokens(by_pairs.col(2 * k + 1)), HasBitsOf(Tokens(by_half.col(k + 4))));
  }
}

TEST_CASE("channels from dim on pass through", "[rotary]") {
  const RotaryPairs pairs = GENERATE(RotaryPairs::half, RotaryPairs::interleaved);
  const Tokens x = random_matrix<double>(5, 9, 1);
  const Tokens y = rotary(x, {.pairs = pairs, .dim = 4}, 10);
  CHECK_THAT(Tokens(y.rightCols(5)), HasBitsOf(Tokens(x.rightCols(5))));
  // The frequencies are those of a head of 4 channels.
  const Tokens small = rotary(x.leftCols(4), {.pairs = pairs}, 10);
  CHECK_THAT(Tokens(y.leftCols(4)), HasBitsOf(small));
  CHECK_FALSE(same_bits(small, Tokens(x.leftCols(4))));
}

TEST_CASE("position 0 turns nothing", "[rotary]") {
  const Tokens x = random_matrix<double>(1, 8, 1);
  CHECK_THAT(rotary(x, kHalf), HasBitsOf(x));
  CHECK_THAT(rotary(x, kInterleaved, 0), HasBitsOf(x));
}

TEST_CASE("a position and its negative undo each other", "[rotary][law]") {
  const Tokens x = random_matrix<double>(1, 8, 1);
  CHECK_THAT(rotary(rotary(x, kHalf, 17), kHalf, -17), IsClose(x, 8 * kEps));
}

TEST_CASE("positions are counted from 0, from a first one, or listed", "[rotary]") {
  const Tokens x = random_matrix<double>(3, 4, 1);
  const std::vector<Index> counted{0, 1, 2};
  CHECK_THAT(rotary(x, kHalf), HasBitsOf(rotary(x, kHalf, counted)));
  CHECK_THAT(rotary(x, kHalf, 7), HasBitsOf(rotary(x, kHalf, {7, 8, 9})));
  const Tokens listed = rotary(x, kHalf, {5, 2, 2});
  CHECK_THAT(Tokens(listed.row(0)), HasBitsOf(rotary(x.row(0), kHalf, 5)));
  CHECK_THAT(Tokens(listed.row(1)), HasBitsOf(rotary(x.row(1), kHalf, 2)));
  CHECK_THAT(Tokens(listed.row(2)), HasBitsOf(rotary(x.row(2), kHalf, 2)));
  const Eigen::Vector3i vector(5, 2, 2);
  CHECK_THAT(rotary(x, kHalf, vector), HasBitsOf(listed));
}

TEST_CASE("positions may be per token of each sequence", "[rotary]") {
  Tensor<double> x = random_tensor<double>({2, 3, 2, 4}, 1);
  const Tensor<double> before = x;
  rotary_in_place(x, kInterleaved, {4, 1, 0, 9});
  for (Index h = 0; h < 3; ++h) {
    const Tokens first = rotary(before.matrix(0, h), kInterleaved, {4, 1});
    const Tokens second = rotary(before.matrix(1, h), kInterleaved, {0, 9});
    CHECK_THAT(Tokens(x.matrix(0, h)), HasBitsOf(first));
    CHECK_THAT(Tokens(x.matrix(1, h)), HasBitsOf(second));
  }
}

TEST_CASE("positions per token serve every sequence and every head", "[rotary]") {
  Tensor<double> x = random_tensor<double>({2, 3, 3, 4}, 1);
  const Tensor<double> before = x;
  const auto [given, same_as] = GENERATE(table<std::vector<Index>, std::vector<Index>>(
      {{{}, {0, 1, 2}}, {{6}, {6, 7, 8}}, {{4, 1, 7}, {4, 1, 7}}}));
  rotary_in_place(x, kHalf, given);
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 3; ++h) {
      CHECK_THAT(Tokens(x.matrix(b, h)), HasBitsOf(rotary(before.matrix(b, h), kHalf, same_as)));
    }
  }
}

TEST_CASE("the heads of a matrix are turned where they lie", "[rotary]") {
  Matrix<double> x = random_matrix<double>(3, 8, 1);
  const Matrix<double> before = x;
  rotary_in_place(mha::split_heads(x, 2), kHalf, 5);
  CHECK_THAT(Tokens(x.leftCols(4)), HasBitsOf(rotary(before.leftCols(4), kHalf, 5)));
  CHECK_THAT(Tokens(x.rightCols(4)), HasBitsOf(rotary(before.rightCols(4), kHalf, 5)));
}

TEST_CASE("column-major and strided matrices are turned in place", "[rotary]") {
  Eigen::MatrixXd x = random_matrix<double>(3, 8, 1);
  const Tokens expected = rotary(x.middleCols(2, 4), kHalf, 5);
  const Tokens left = x.leftCols(2);
  rotary_in_place(x.middleCols(2, 4), kHalf, 5);
  CHECK_THAT(Tokens(x.middleCols(2, 4)), HasBitsOf(expected));
  CHECK_THAT(Tokens(x.leftCols(2)), HasBitsOf(left));
}

TEST_CASE("dot products of rotated tokens depend on their distance only", "[rotary][law]") {
  const RotaryPairs pairs = GENERATE(RotaryPairs::half, RotaryPairs::interleaved);
  const Tokens q = random_matrix<double>(1, 16, 1);
  const Tokens k = random_matrix<double>(1, 16, 2);
  const auto dot = [&](Index i, Index j) {
    return rotary(q, {.pairs = pairs}, i).row(0).dot(rotary(k, {.pairs = pairs}, j).row(0));
  };
  // An angle p is off by p eps, so a sum of 16 products by 16 * 2 * (1000 + 4) eps at most.
  constexpr double kTolerance = 32 * 1004 * kEps;
  using Catch::Matchers::WithinAbs;
  CHECK_THAT(dot(1000, 990), WithinAbs(dot(10, 0), kTolerance));
  CHECK_THAT(dot(3, 500), WithinAbs(dot(0, 497), kTolerance));
  CHECK(std::abs(dot(10, 0) - dot(0, 10)) > 1e-3);  // of the signed distance
}

TEST_CASE("a rotation keeps the length of every token", "[rotary][law]") {
  const Tokens x = random_matrix<double>(5, 16, 1);
  CHECK_THAT(Tokens(rotary(x, kHalf, 100).rowwise().squaredNorm()),
             IsClose(Tokens(x.rowwise().squaredNorm()), 16 * 8 * kEps));
}

TEMPLATE_TEST_CASE("every scalar type turns like plain loops in double", "[rotary][scalar]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  const RotaryPairs pairs = GENERATE(RotaryPairs::half, RotaryPairs::interleaved);
  const Rotary how{.pairs = pairs, .dim = 6, .base = 50};
  const Matrix<TestType> x = random_matrix<TestType>(4, 8, 1);
  Tokens expected = cast_to<double>(x);
  plain_rotary(expected, 1, how, {3, 0, 8, 2});
  // Two products and a sum in the accumulator, angles up to 8 in double, one rounding at the end.
  const double tolerance =
      4 * eps_of<mha::accumulator_t<TestType>>() + eps_of<TestType>() + 16 * kEps;
  CHECK_THAT(rotary(x, how, {3, 0, 8, 2}), IsClose(expected, tolerance));
}

TEMPLATE_TEST_CASE("angles stay exact at positions beyond a float's reach", "[rotary]", float,
                   Eigen::half) {
  // At position 10^6 a float angle of 1000000 * 10000^(-1/4) = 10^5 is off by up to 4e-3; in double
  // by 10^6 * eps = 2e-10, so what remains is the rounding of cosine and sine to float.
  const Matrix<TestType> x = cast_to<TestType>(Tokens{{1, 1, 1, 1, 0, 0, 0, 0}});
  const Index position = 1000003;
  const Matrix<TestType> y = rotary(x, kHalf, position);
  Tokens expected(1, 8);
  for (Index k = 0; k < 4; ++k) {
    const long double angle =
        1000003.0L * std::pow(10.0L, -static_cast<long double>(k));  // 10000^(-2k/8)
    expected(0, k) = static_cast<double>(std::cos(angle));
    expected(0, k + 4) = static_cast<double>(std::sin(angle));
  }
  CHECK_THAT(y, IsClose(expected, eps_of<TestType>()));
}

TEMPLATE_TEST_CASE("tables of cosines and sines replace the angles", "[rotary][table]", float,
                   double, Eigen::half) {
  using Acc = mha::accumulator_t<TestType>;
  const RotaryPairs pairs = GENERATE(RotaryPairs::half, RotaryPairs::interleaved);
  const Matrix<TestType> x = random_matrix<TestType>(3, 6, 1);
  Matrix<Acc> cos(10, 2);
  Matrix<Acc> sin(10, 2);
  for (Index p = 0; p < 10; ++p) {
    for (Index k = 0; k < 2; ++k) {
      const double angle = static_cast<double>(p) * std::pow(30, -0.5 * static_cast<double>(k));
      cos(p, k) = static_cast<Acc>(std::cos(angle));
      sin(p, k) = static_cast<Acc>(std::sin(angle));
    }
  }
  const Rotary same{.pairs = pairs, .dim = 4, .base = 30};
  const double tolerance = 8 * eps_of<Acc>() + eps_of<TestType>();
  Matrix<TestType> y = x;
  rotary_in_place(y, cos, sin, pairs, {9, 0, 4});
  CHECK_THAT(y, IsClose(rotary(x, same, {9, 0, 4}), tolerance));
  y = x;
  rotary_in_place(y, cos, sin, pairs);
  CHECK_THAT(y, IsClose(rotary(x, same), tolerance));
}

TEST_CASE("tables may be any numbers, also expressions", "[rotary][table]") {
  // (x1, x2) = (3, 5) with cos 2 and sin 7: (2 * 3 - 7 * 5, 7 * 3 + 2 * 5) = (-29, 31).
  Tokens x{{3, 5}};
  const Tokens one = Tokens::Ones(1, 1);
  rotary_in_place(x, 2 * one, 7 * one, RotaryPairs::half);
  CHECK_THAT(x, HasBitsOf(Tokens{{-29, 31}}));
}

TEST_CASE("no tokens and no channels turn to nothing", "[rotary][empty]") {
  CHECK(rotary(Tokens(0, 4), kHalf).rows() == 0);
  CHECK(rotary(Tokens(3, 0), kHalf).rows() == 3);
  Tensor<double> none({0, 2, 3, 4});
  rotary_in_place(none, kHalf);
  CHECK(none.empty());
}

TEST_CASE("NaN in one token stays there", "[rotary]") {
  Tokens x = random_matrix<double>(3, 4, 1);
  const Tokens clean = rotary(x, kHalf);
  x.row(1).setConstant(std::numeric_limits<double>::quiet_NaN());
  const Tokens dirty = rotary(x, kHalf);
  CHECK_THAT(Tokens(dirty.row(0)), HasBitsOf(Tokens(clean.row(0))));
  CHECK_THAT(Tokens(dirty.row(2)), HasBitsOf(Tokens(clean.row(2))));
}
