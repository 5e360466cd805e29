// SPDX-License-Identifier: MIT
//
// What must hold between results of attention, whatever the numbers: no expected values here.
#include <mha/attention.hpp>

#include <numeric>

#include "support/expected_attention.hpp"

using mha::attention_forward;
using mha::Index;
using mha::Matrix;
using mha::scaled_dot_product_attention;
using mha::scaled_dot_product_attention_forward;
using mha::Tensor;
using mha::Vector;
using mha::test::eps_of;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::random_booleans;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::relative_tolerance;

namespace {

constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

constexpr Index kQueryLen = 37;
constexpr Index kKvLen = 560;  // two tiles of keys
constexpr Index kHeadDim = 6;
constexpr double kScoreSize = 2.5;  // sqrt(6), for entries in [-1, 1)

template <class Scalar>
struct Inputs {
  Matrix<Scalar> query = random_matrix<Scalar>(kQueryLen, kHeadDim, 1);
  Matrix<Scalar> key = random_matrix<Scalar>(kKvLen, kHeadDim, 2);
  Matrix<Scalar> value = random_matrix<Scalar>(kKvLen, 5, 3);

  template <class RuleType = mha::All>
  auto attend(const RuleType& rule = {}) const {
    return scaled_dot_product_attention_forward(query, key, value, rule, kEverything);
  }
};

// How far two correct results over these inputs may be apart: each is within the tolerance of the
// formula; values are at most 1. 16-bit outputs are rounded once more each.
template <class Scalar>
double apart() {
  const double each = relative_tolerance<Scalar>(kHeadDim, kKvLen, kScoreSize, 2);
  return 2 * each + (std::is_same_v<mha::accumulator_t<Scalar>, Scalar> ? 0 : eps_of<Scalar>());
}
// The same for lse, whose size is at most kScoreSize + ln 560.
template <class Scalar>
double lse_apart() {
  using Acc = mha::accumulator_t<Scalar>;
  return 2 * relative_tolerance<Scalar>(kHeadDim, kKvLen, kScoreSize, 2) + 18 * eps_of<Acc>();
}

// 0, ..., count - 1 shuffled.
std::vector<Index> permutation(Index count, unsigned seed) {
  std::vector<Index> result(static_cast<std::size_t>(count));
  std::iota(result.begin(), result.end(), Index{0});
  std::mt19937 bits(seed);
  for (std::size_t k = result.size(); k > 1; --k) std::swap(result[k - 1], result[bits() % k]);
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("permuting keys and values together changes nothing", "[attention][law]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  const Inputs<TestType> x;
  const Matrix<bool> mask = random_booleans(kQueryLen, kKvLen, 4, 0.6);
  const std::vector<Index> order = permutation(kKvLen, 5);
  Inputs<TestType> shuffled;
  Matrix<bool> shuffled_mask(kQueryLen, kKvLen);
  for (Index j = 0; j < kKvLen; ++j) {
    const Index from = order[static_cast<std::size_t>(j)];
    shuffled.key.row(j) = x.key.row(from);
    shuffled.value.row(j) = x.value.row(from);
    shuffled_mask.col(j) = mask.col(from);
  }
  const auto expected = x.attend(mha::keep(mask));
  const auto actual = shuffled.attend(mha::keep(shuffled_mask));
  CHECK_THAT(actual.output, IsClose(expected.output, apart<TestType>()));
  CHECK_THAT(actual.lse, IsClose(expected.lse, lse_apart<TestType>()));
}

TEMPLATE_TEST_CASE("permuting queries permutes the rows of the result", "[attention][law]", float,
                   double, long double) {
  const Inputs<TestType> x;
  Inputs<TestType> reversed;
  reversed.query = x.query.colwise().reverse();
  CHECK_THAT(reversed.attend().output,
             IsClose(x.attend().output.colwise().reverse().eval(), apart<TestType>()));
}

TEMPLATE_TEST_CASE("a constant added to a row of scores changes only its lse", "[attention][law]",
                   float, double, long double) {
  const Inputs<TestType> x;
  const Matrix<TestType> constants = random_matrix<TestType>(kQueryLen, 1, 6, 8);
  const auto expected = x.attend(mha::causal_offset(500));
  const auto actual = x.attend(mha::causal_offset(500) & mha::bias(constants));
  // The scores grow to 10.5.
  const double tolerance = 2 * relative_tolerance<TestType>(kHeadDim, kKvLen, 10.5, 2);
  CHECK_THAT(actual.output, IsClose(expected.output, tolerance));
  CHECK_THAT(actual.weights, IsClose(expected.weights, tolerance));
  CHECK_THAT(Matrix<TestType>(actual.lse - expected.lse),
             IsClose(constants, tolerance + 18 * eps_of<TestType>()));
}

TEMPLATE_TEST_CASE("two halves merged by lse equal the whole", "[attention][merge][law]", float,
                   double, long double, Eigen::half, Eigen::bfloat16) {
  const Inputs<TestType> x;
  const Matrix<bool> mask = random_booleans(kQueryLen, kKvLen, 7, 0.5);
  const auto whole = x.attend(mha::keep(mask));
  for (const Index split : {Index{0}, Index{1}, Index{200}, Index{512}, kKvLen - 1, kKvLen}) {
    CAPTURE(split);
    const auto part = [&](Index first, Index count) {
      return scaled_dot_product_attention_forward(
          x.query, x.key.middleRows(first, count), x.value.middleRows(first, count),
          mha::keep(mask.middleCols(first, count)), kEverything);
    };
    const auto left = part(0, split);
    const auto right = part(split, kKvLen - split);
    const auto merged = mha::merge(left.output, left.lse, right.output, right.lse);
    CHECK_THAT(merged.output, IsClose(whole.output, 2 * apart<TestType>()));
    CHECK_THAT(merged.lse, IsClose(whole.lse, lse_apart<TestType>()));
  }
}

TEST_CASE("causal parts merge, those that see nothing included", "[attention][merge][law]") {
  // The second half of the keys is invisible to the first rows: an empty part.
  const Matrix<double> q = random_matrix<double>(40, kHeadDim, 1);
  const Matrix<double> k = random_matrix<double>(40, kHeadDim, 2);
  const auto whole = scaled_dot_product_attention_forward(q, k, k, mha::causal(), kEverything);
  const auto left = scaled_dot_product_attention_forward(q, k.topRows(25), k.topRows(25),
                                                         mha::causal(), kEverything);
  const auto right = scaled_dot_product_attention_forward(q, k.bottomRows(15), k.bottomRows(15),
                                                          mha::causal_offset(-25), kEverything);
  const auto merged = mha::merge(left.output, left.lse, right.output, right.lse);
  CHECK_THAT(merged.output, IsClose(whole.output, 2 * apart<double>()));
  CHECK_THAT(merged.lse, IsClose(whole.lse, lse_apart<double>()));
  CHECK_THAT(merged.output.topRows(25).eval(), HasBitsOf(left.output.topRows(25).eval()));
}

TEMPLATE_TEST_CASE("a cached step equals that row of the full causal run",
                   "[attention][cache][law]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  const Index tokens = 150;
  const auto q = random_matrix<TestType>(tokens, kHeadDim, 1);
  const auto k = random_matrix<TestType>(tokens, kHeadDim, 2);
  const auto v = random_matrix<TestType>(tokens, 5, 3);
  const auto window = mha::window(60, 0);
  const auto full = scaled_dot_product_attention(q, k, v, mha::causal() & window);
  const auto check = [&](Index past, Index count) {
    CAPTURE(past, count);
    const auto step = [&](const auto& rule, const mha::IndexList& past_len) {
      return scaled_dot_product_attention(q.middleRows(past, count), k.topRows(past + count),
                                          v.topRows(past + count), rule & window,
                                          {.past_len = past_len});
    };
    const Matrix<TestType> expected = full.middleRows(past, count);
    CHECK_THAT(step(mha::causal(), past), IsClose(expected, apart<TestType>()));
    CHECK_THAT(step(mha::causal_offset(past), {}), HasBitsOf(step(mha::causal(), past)));
    CHECK_THAT(step(mha::causal_lower_right(), {}), HasBitsOf(step(mha::causal(), past)));
  };
  for (const Index past : {0, 1, 15, 16, 127, 128, 149}) check(past, 1);
  check(0, 150);
  check(7, 20);
  check(100, 50);
}

// Eigen's products sum a few rows in another order than many, so this holds for scalar types without
// tiles alone.
TEMPLATE_TEST_CASE("a cached step has the bits of that row of the full causal run",
                   "[attention][cache][bits]", long double) {
  const Index tokens = 130;
  const auto x = random_matrix<TestType>(tokens, 3, 1);
  const auto full = scaled_dot_product_attention(x, x, x, mha::causal());
  for (Index past = 0; past < tokens; ++past) {
    CHECK_THAT(scaled_dot_product_attention(x.row(past), x.topRows(past + 1), x.topRows(past + 1),
                                            mha::causal(), {.past_len = past}),
               HasBitsOf(full.row(past).eval()));
  }
}

TEMPLATE_TEST_CASE("weights of a row sum to 1", "[attention][law]", float, double, long double,
                   Eigen::half, Eigen::bfloat16) {
  const Inputs<TestType> x;
  const auto weights = x.attend(mha::causal_offset(400)).weights;
  CHECK(weights.minCoeff() >= 0);
  CHECK_THAT(
      mha::test::cast_to<long double>(weights).rowwise().sum().eval(),
      IsClose(Matrix<long double>(Matrix<long double>::Ones(kQueryLen, 1)), apart<TestType>()));
}

TEMPLATE_TEST_CASE("weights of a row sum to 1 - the sink's weight", "[attention][sinks][law]",
                   float, double, long double) {
  const Inputs<TestType> x;
  const TestType sink(5);
  const auto result = x.attend(mha::sinks(sink));
  const Matrix<TestType> expected = TestType(1) - (sink - result.lse.array()).exp();
  CHECK_THAT(Matrix<TestType>(result.weights.rowwise().sum()),
             IsClose(expected, apart<TestType>() + lse_apart<TestType>()));
  CHECK(expected.maxCoeff() < TestType(0.9));
}

TEMPLATE_TEST_CASE("a sink is a further key with a value of 0", "[attention][sinks][law]", float,
                   double, long double) {
  // Channel 0 of the queries is 1, so that a key of (score * sqrt(head_dim), 0, ...) has that
  // score.
  Inputs<TestType> x;
  x.query.col(0).setOnes();
  Inputs<TestType> longer = x;
  longer.key.conservativeResizeLike(Matrix<TestType>::Zero(kKvLen + 1, kHeadDim));
  longer.value.conservativeResizeLike(Matrix<TestType>::Zero(kKvLen + 1, 5));
  longer.key(kKvLen, 0) = TestType(2) * std::sqrt(TestType(kHeadDim));
  const auto expected = longer.attend();
  const auto actual = x.attend(mha::sinks(TestType(2)));
  CHECK_THAT(actual.output, IsClose(expected.output, 2 * apart<TestType>()));
  CHECK_THAT(actual.lse, IsClose(expected.lse, 2 * lse_apart<TestType>()));
}

TEMPLATE_TEST_CASE("the output lies between the least and the greatest value", "[attention][law]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  Inputs<TestType> x;
  x.query *= TestType(20);
  const auto out = x.attend(mha::window(30, 30)).output;
  Index outside = 0;
  for (Index i = 0; i < kQueryLen; ++i) {
    const auto seen = x.value.middleRows(std::max<Index>(i - 30, 0), std::min<Index>(i, 30) + 31);
    for (Index c = 0; c < out.cols(); ++c) {
      const auto value = mha::detail::convert<double>(out(i, c));
      // Weights sum to 1 only up to rounding.
      if (value > mha::detail::convert<double>(seen.col(c).maxCoeff()) + apart<TestType>() ||
          value < mha::detail::convert<double>(seen.col(c).minCoeff()) - apart<TestType>()) {
        ++outside;
      }
    }
  }
  CHECK(outside == 0);
}

TEMPLATE_TEST_CASE("the output is linear in the values", "[attention][law]", float, double,
                   long double) {
  const Inputs<TestType> x;
  Inputs<TestType> y;
  y.value = random_matrix<TestType>(kKvLen, 5, 8);
  Inputs<TestType> both;
  both.value = x.value - TestType(2) * y.value;
  CHECK_THAT(both.attend().output,
             IsClose(Matrix<TestType>(x.attend().output - TestType(2) * y.attend().output),
                     6 * apart<TestType>()));
}

TEMPLATE_TEST_CASE("the output is the weights times the values", "[attention][law]", float, double,
                   long double) {
  const Inputs<TestType> x;
  const auto result = x.attend(mha::causal_offset(300));
  CHECK_THAT(result.output,
             IsClose(Matrix<TestType>(result.weights * x.value), 2 * apart<TestType>()));
}

TEMPLATE_TEST_CASE("keys twice over change only lse, by ln 2", "[attention][law]", float, double,
                   long double) {
  const Inputs<TestType> x;
  Inputs<TestType> twice;
  twice.key = x.key.replicate(2, 1);
  twice.value = x.value.replicate(2, 1);
  const auto expected = x.attend();
  const auto actual = twice.attend();
  CHECK_THAT(actual.output, IsClose(expected.output, 2 * apart<TestType>()));
  CHECK_THAT(Vector<TestType>(actual.lse.array() - std::log(TestType(2))),
             IsClose(expected.lse, 2 * lse_apart<TestType>()));
}

TEMPLATE_TEST_CASE("padding keys is the same as leaving them out", "[attention][lengths][law]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  const Inputs<TestType> x;
  for (const Index length : {0, 1, 100, 512, 513}) {
    CAPTURE(length);
    Inputs<TestType> cut;
    cut.key = x.key.topRows(length);
    cut.value = x.value.topRows(length);
    const auto expected = cut.attend();
    const auto actual = x.attend(mha::lengths(length));
    CHECK_THAT(actual.output, IsClose(expected.output, apart<TestType>()));
    CHECK_THAT(actual.lse, IsClose(expected.lse, lse_apart<TestType>()));
  }
}

TEMPLATE_TEST_CASE("a mask that allows all is no mask", "[attention][law]", float, double,
                   long double, Eigen::half) {
  const Inputs<TestType> x;
  const auto expected = x.attend();
  const auto check = [&](const auto& rule) {
    const auto actual = x.attend(rule);
    CHECK_THAT(actual.output, IsClose(expected.output, apart<TestType>()));
    CHECK_THAT(actual.weights, IsClose(expected.weights, apart<TestType>()));
    CHECK_THAT(actual.lse, IsClose(expected.lse, lse_apart<TestType>()));
  };
  check(mha::causal_offset(kKvLen) & mha::window(-1, -1) & mha::lengths(kKvLen));
  check(mha::keep(Matrix<bool>::Constant(kQueryLen, kKvLen, true)) &
        mha::ignore(Matrix<bool>::Constant(1, kKvLen, false)));
  check(mha::bias(Matrix<TestType>(Matrix<TestType>::Zero(1, kKvLen))) & mha::alibi(TestType(0)));
}

TEMPLATE_TEST_CASE("different rules that say the same give the same result", "[attention][law]",
                   float, double, Eigen::half) {
  const Inputs<TestType> x;
  const auto expected = x.attend(mha::causal_offset(200) & mha::window(150, 0));
  const auto inside = [](Index i, Index j) { return j <= i + 200 && j >= i + 50; };
  const auto check = [&](const auto& rule) {
    const auto actual = x.attend(rule);
    CHECK_THAT(actual.output, IsClose(expected.output, apart<TestType>()));
    CHECK_THAT(actual.weights, IsClose(expected.weights, apart<TestType>()));
  };
  Matrix<bool> mask(kQueryLen, kKvLen);
  Matrix<float> bias(kQueryLen, kKvLen);
  for (Index i = 0; i < kQueryLen; ++i) {
    for (Index j = 0; j < kKvLen; ++j) {
      mask(i, j) = inside(i, j);
      bias(i, j) = inside(i, j) ? 0.0F : mha::test::minus_infinity_of<float>();
    }
  }
  check(mha::keep(mask));
  check(mha::bias(bias));
  check(mha::mask_mod([&](Index, Index, Index i, Index j) { return inside(i, j); }));
  check(mha::score_mod([&](auto s, auto, auto, Index i, Index j) {
    return inside(i, j) ? s : mha::test::minus_infinity_of<decltype(s)>();
  }));
}

TEMPLATE_TEST_CASE("a scale given is a query scaled", "[attention][scale][law]", float, double,
                   long double) {
  const Inputs<TestType> x;
  Inputs<TestType> scaled;
  scaled.query *= TestType(0.7);
  CHECK_THAT(x.attend(mha::scale(TestType(0.7))).output,
             IsClose(scaled.attend(mha::scale(1)).output, apart<TestType>()));
}

TEMPLATE_TEST_CASE("a row of a batch of queries is the row by itself", "[attention][law]", float,
                   double, long double, Eigen::half) {
  const Inputs<TestType> x;
  const auto all = x.attend().output;
  for (const Index i : {Index{0}, Index{1}, Index{20}, kQueryLen - 1}) {
    CHECK_THAT(scaled_dot_product_attention(x.query.row(i), x.key, x.value),
               IsClose(all.row(i).eval(), apart<TestType>()));
  }
}

TEST_CASE("equal calls give equal bits", "[attention][bits][law]") {
  const Inputs<float> x;
  const auto first = x.attend(mha::causal_offset(300) & mha::softcap(3));
  const auto second = x.attend(mha::causal_offset(300) & mha::softcap(3));
  CHECK_THAT(second.output, HasBitsOf(first.output));
  CHECK_THAT(second.weights, HasBitsOf(first.weights));
}

TEST_CASE("what the machine's memory held before changes no bit", "[attention][bits][law]") {
  // Heads of a batch share their memory, larger ones before smaller ones and the other way round.
  const auto q = random_tensor<float>({4, 2, 130, 6}, 1);
  const auto k = random_tensor<float>({4, 2, 600, 6}, 2);
  const auto there = attention_forward(q, k, k, mha::lengths({600, 3, 0, 40}), kEverything);
  const Tensor<float> back_q = [&] {
    Tensor<float> result({4, 2, 130, 6});
    for (Index b = 0; b < 4; ++b) {
      for (Index h = 0; h < 2; ++h) result.matrix(b, h) = q.matrix(3 - b, h);
    }
    return result;
  }();
  const Index head_size = Index{600} * 6;
  const Index entry_size = 2 * head_size;
  const mha::TensorView<const float> back_k(k.data() + 3 * entry_size, {4, 2, 600, 6},
                                            {-entry_size, head_size, 6, 1});
  const auto back =
      attention_forward(back_q, back_k, back_k, mha::lengths({40, 0, 3, 600}), kEverything);
  for (Index b = 0; b < 4; ++b) {
    for (Index h = 0; h < 2; ++h) {
      CHECK_THAT(Matrix<float>(back.output.matrix(3 - b, h)),
                 HasBitsOf(Matrix<float>(there.output.matrix(b, h))));
    }
  }
}
