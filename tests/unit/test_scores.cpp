// SPDX-License-Identifier: MIT
//
// mha/attention_scores.hpp: the matrix that the softmax sees, at each of its stages.
#include <mha/attention_scores.hpp>

#include <cmath>

#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::ScoreStage;
using mha::Tensor;
using mha::test::eps_of;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::matrix_of;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::stacked;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// scale 2, cap 5, bias 1, causal, on products (1, -1) and (2, 3).
template <class Scalar>
Matrix<mha::accumulator_t<Scalar>> scores_at(ScoreStage stage) {
  const auto query = matrix_of<Scalar>({{1, 0}, {0, 1}});
  const auto key = matrix_of<Scalar>({{1, 2}, {-1, 3}});
  const auto one = matrix_of<Scalar>({{1}});
  return mha::attention_scores(query, key,
                               mha::scale(2) & mha::softcap(5) & mha::bias(one) & mha::causal(),
                               {.stage = stage})
      .matrix(0, 0);
}

}  // namespace

TEMPLATE_TEST_CASE("scaled scores are scale * query * key^T and nothing else", "[scores]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  CHECK(scores_at<TestType>(ScoreStage::scaled) ==
        matrix_of<mha::accumulator_t<TestType>>({{2, -2}, {4, 6}}));
}

TEMPLATE_TEST_CASE("capped scores are the scaled ones through cap tanh(s / cap)", "[scores]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  const auto capped = [](double s) { return 5 * std::tanh(s / 5); };
  CHECK_THAT(scores_at<TestType>(ScoreStage::capped),
             IsClose(matrix_of<double>({{capped(2), capped(-2)}, {capped(4), capped(6)}}),
                     5 * 4 * std::max(eps_of<mha::accumulator_t<TestType>>(), eps_of<double>())));
}

TEMPLATE_TEST_CASE("modified scores have biases added, and -inf where a key is not allowed",
                   "[scores]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  const auto modified = [](double s) { return 5 * std::tanh(s / 5) + 1; };
  CHECK_THAT(scores_at<TestType>(ScoreStage::modified),
             IsClose(matrix_of<double>({{modified(2), -kInfinity}, {modified(4), modified(6)}}),
                     6 * 4 * std::max(eps_of<mha::accumulator_t<TestType>>(), eps_of<double>())));
}

TEST_CASE("the modified scores are what is shown unless another stage is asked for", "[scores]") {
  const auto x = random_matrix<float>(4, 3, 1);
  CHECK_THAT(stacked(mha::attention_scores(x, x, mha::causal())),
             HasBitsOf(stacked(
                 mha::attention_scores(x, x, mha::causal(), {.stage = ScoreStage::modified}))));
  CHECK(mha::attention_scores(x, x).sizes() == std::array<Index, 4>{1, 1, 4, 4});
}

TEST_CASE("scores of a masked pair of NaN are -inf, not NaN", "[scores]") {
  auto x = random_matrix<float>(3, 2, 1);
  x.row(2).setConstant(std::numeric_limits<float>::quiet_NaN());
  const auto scores = mha::attention_scores(x, x, mha::causal());
  CHECK(scores(0, 0, 0, 2) == -std::numeric_limits<float>::infinity());
  CHECK(mha::test::is_nan(scores(0, 0, 2, 2)));
}

TEST_CASE("scores of grouped heads use the key head of the group", "[scores][heads]") {
  const auto query = random_tensor<double>({2, 6, 3, 4}, 1);
  const auto key = random_tensor<double>({2, 2, 5, 4}, 2);
  const auto scores = mha::attention_scores(query, key, mha::scale(1));
  CHECK(scores.sizes() == std::array<Index, 4>{2, 6, 3, 5});
  for (Index h = 0; h < 6; ++h) {
    const Matrix<double> expected = query.matrix(1, h) * key.matrix(1, h / 3).transpose();
    CHECK_THAT(Matrix<double>(scores.matrix(1, h)), IsClose(expected, 4 * 4 * eps_of<double>()));
  }
}

TEST_CASE("the softmax of the scores is the weights", "[scores]") {
  const auto q = random_matrix<double>(6, 4, 1, 2);
  const auto k = random_matrix<double>(9, 4, 2, 2);
  const auto rule = mha::causal_offset(2) & mha::alibi(0.3) & mha::softcap(3.0);
  const auto scores = mha::attention_scores(q, k, rule);
  const auto result =
      mha::scaled_dot_product_attention_forward(q, k, k, rule, {.need_weights = true});
  Matrix<double> expected = scores.matrix(0, 0).array().exp();
  for (Index i = 0; i < 6; ++i) {
    for (Index j = 0; j < 9; ++j) {
      if (mha::detail::is_minus_infinity(scores(0, 0, i, j))) expected(i, j) = 0;
    }
    expected.row(i) /= expected.row(i).sum();
  }
  CHECK_THAT(result.weights, IsClose(expected, 30 * eps_of<double>()));
}

TEST_CASE("scores of cached keys place the queries after them", "[scores][causal]") {
  const Tensor<float> query({1, 1, 2, 1});
  const Tensor<float> key({1, 1, 4, 1});
  const auto scores = mha::attention_scores(query, key, mha::causal(), {.past_len = 2});
  CHECK(stacked(scores) == matrix_of<float>({{0, 0, 0, -kInfinity}, {0, 0, 0, 0}}));
}

TEST_CASE("scores of nothing are empty", "[scores]") {
  CHECK(mha::attention_scores(Matrix<float>(0, 3), Matrix<float>(4, 3)).empty());
  CHECK(mha::attention_scores(Matrix<float>(4, 3), Matrix<float>(0, 3)).empty());
  CHECK(mha::attention_scores(Tensor<float>({0, 2, 3, 4}), Tensor<float>({0, 1, 3, 4})).empty());
  CHECK(stacked(mha::attention_scores(Matrix<float>(2, 0), Matrix<float>(3, 0))).isZero(0));
}

TEST_CASE("attention_scores refuses keys of another head_dim, naming both", "[scores][errors]") {
  CHECK_THROWS_AS(mha::attention_scores(Matrix<float>(2, 3), Matrix<float>(2, 4)),
                  std::invalid_argument);
  CHECK_THROWS_WITH(
      mha::attention_scores(Matrix<float>(2, 3), Matrix<float>(2, 4)),
      "mha::attention_scores: key.cols() must equal query.cols() (head_dim), got 4 and 3");
}
