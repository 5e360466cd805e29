// SPDX-License-Identifier: MIT
//
// Every rule on every engine that computes attention: few queries and many, each instruction set,
// or without kernels (this file is built that way too), forward and backward, against the formula
// in long double. And what rules do at the ends of their numbers.
#include <mha/mha.hpp>

#include "support/expected_attention.hpp"
#include "support/targets.hpp"

using mha::Index;
using mha::Lanes;
using mha::Matrix;
using mha::Tensor;
using mha::Vector;
using mha::test::available_targets;
using mha::test::eps_of;
using mha::test::expected_attention;
using mha::test::ExpectedAttention;
using mha::test::HasBitsOf;
using mha::test::infinity_of;
using mha::test::is_nan;
using mha::test::IsClose;
using mha::test::nan_of;
using mha::test::random_booleans;
using mha::test::random_matrix;
using mha::test::UsingTarget;
using mha::test::Wide;

namespace {

constexpr float kMost = std::numeric_limits<float>::max();
constexpr Index kKeys = 1100;  // two chunks, and some tiles
constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

// f(query_len) for each engine.
template <class F>
void on_every_engine(const F& f) {
  const auto both = [&] {
    for (const Index query_len : {Index{3}, Index{70}}) {
      CAPTURE(query_len);
      f(query_len);
    }
  };
  for (const auto target : available_targets()) {
    CAPTURE(mha::kernels::name(target));
    const UsingTarget use(target);
    both();
  }
}

template <class T>
struct Head {
  Matrix<T> query, key, value, grad_output;
  explicit Head(Index query_len, double size = 1)
      : query(random_matrix<T>(query_len, 5, 1, size)),
        key(random_matrix<T>(kKeys, 5, 2, size)),
        value(random_matrix<T>(kKeys, 4, 3)),
        grad_output(random_matrix<T>(query_len, 4, 4)) {}
  auto forward(const auto& rule) const {
    return mha::scaled_dot_product_attention_forward(query, key, value, rule, kEverything);
  }
  auto backward(const auto& rule) const {
    return mha::scaled_dot_product_attention_backward(grad_output, query, key, value, forward(rule),
                                                      rule);
  }
};

// Gradients by the formula, in long double.
template <class T, class RuleType>
void check_gradients(const Head<T>& x, const RuleType& rule, const ExpectedAttention& expected,
                     double relative) {
  const auto wide = [](const Matrix<T>& m) { return mha::test::cast_to<Wide>(m); };
  const Matrix<Wide> query = wide(x.query), key = wide(x.key), value = wide(x.value),
                     grad_output = wide(x.grad_output);
  Matrix<Wide> grad_query = Matrix<Wide>::Zero(query.rows(), query.cols());
  Matrix<Wide> grad_key = Matrix<Wide>::Zero(key.rows(), key.cols());
  Matrix<Wide> grad_value = Matrix<Wide>::Zero(value.rows(), value.cols());
  using mha::matrix_view;
  const mha::HeadGradientTask<Wide, Wide> task{
      matrix_view(query),           matrix_view(key),          matrix_view(value),
      matrix_view(expected.output), matrix_view(expected.lse), matrix_view(grad_output),
      matrix_view(grad_query),      matrix_view(grad_key),     matrix_view(grad_value)};
  const auto& rules = mha::detail::as_rules(rule);
  mha::reference::backward<Wide>(rules, mha::Extent{1, query.rows(), key.rows(), 0}, 0, 0, task);
  const auto gradients = x.backward(rule);
  const auto close = [&](const auto& m) {
    return IsClose(m, relative * (1 + mha::test::largest(m)));
  };
  CHECK_THAT(gradients.query, close(grad_query));
  CHECK_THAT(gradients.key, close(grad_key));
  CHECK_THAT(gradients.value, close(grad_value));
}

template <class T>
void check_rule(const auto& rule, double size = 1, double modified_by = 0) {
  on_every_engine([&](Index query_len) {
    const Head<T> x(query_len, size);
    const auto expected = expected_attention(x.query, x.key, x.value, rule, {}, modified_by);
    check_head(x.forward(rule), expected);
    check_gradients(x, rule, expected, 2000 * eps_of<T>());
  });
}

auto curved() {
  return mha::score_mod([](auto s, Index, Index, Index i, Index j) {
    using S = decltype(s);
    return s + S(0.25) * s * s * S(static_cast<double>((i + j) % 3));
  });
}

// One row per query of weights, of a head whose scores are all 0.
Matrix<float> weights_of(Index query_len, Index kv_len, const auto& rule) {
  const Matrix<float> q = Matrix<float>::Zero(query_len, 2);
  const Matrix<float> k = Matrix<float>::Zero(kv_len, 2);
  return mha::scaled_dot_product_attention_forward(q, k, k, rule, kEverything).weights;
}

}  // namespace

// ---- every rule on every engine

TEST_CASE("dropout is the formula's on every engine, and weights are those before it",
          "[rules][dropout][regression]") {
  check_rule<float>(mha::dropout(0.3, 7));
  check_rule<float>(mha::dropout(1, 7) & mha::causal());
}

TEST_CASE("dropout, sinks, softcap and masks go together on every engine", "[rules][dropout]") {
  static const Matrix<bool> mask = random_booleans(70, kKeys, 9, 0.8);
  on_every_engine([&](Index query_len) {
    const Head<double> x(query_len);
    const auto rule = mha::keep(mask.topRows(query_len)) & mha::softcap(0.7) & curved() &
                      mha::sinks(2.0) & mha::dropout(0.4, 3) & mha::lengths(1050);
    const auto expected = expected_attention(x.query, x.key, x.value, rule, {}, 1);
    check_head(x.forward(rule), expected);
    check_gradients(x, rule, expected, 2000 * eps_of<double>());
  });
}

TEST_CASE("a scale above 1 is the formula's on every engine", "[rules][scale]") {
  check_rule<float>(mha::scale(3.0), 0.7);
  check_rule<float>(mha::scale(-8) & mha::causal_lower_right(), 0.4);
  check_rule<float>(mha::scale(5.0F) & mha::softcap(2) & curved() & mha::sinks(0.5), 0.4, 2);
  check_rule<Eigen::bfloat16>(mha::scale(3.0) & mha::dropout(0.2, 1), 0.7);
}

TEST_CASE("alibi and biases are the formula's on every engine", "[rules][alibi][bias]") {
  static const Matrix<float> bias = random_matrix<float>(1, kKeys, 8);
  check_rule<float>(mha::alibi(0.01F) & mha::causal_lower_right(), 1, 12);
  check_rule<float>(mha::bias(bias) & mha::softcap(1.5), 1, 1);
}

TEST_CASE("a scale above 1 keeps the bits of cut queries and their weights", "[rules][scale]") {
  for (const auto target : available_targets()) {
    const UsingTarget use(target);
    const Head<float> all(70);
    Head<float> few(3);
    few.query = all.query.bottomRows(3);
    const auto rule = mha::scale(2.5F) & mha::lengths(1090);
    const auto whole = all.forward(rule);
    const auto part = few.forward(rule);
    CHECK_THAT(part.output, HasBitsOf(whole.output.bottomRows(3)));
    CHECK_THAT(part.weights, HasBitsOf(whole.weights.bottomRows(3)));
    CHECK_THAT(part.lse, HasBitsOf(whole.lse.bottomRows(3)));
  }
}

// ---- the ends of the numbers

TEST_CASE("a scale may be large where queries are: only scores must be representable",
          "[rules][scale][regression]") {
  // q . k = 1e30 (1e-30 or 5e-31) -> 1 or 1/2, times 1e10: every third key shares the weight.
  on_every_engine([&](Index query_len) {
    Head<float> x(query_len);
    x.query.setZero();
    x.query.col(0).setConstant(1e30F);
    x.key.setZero();
    for (Index j = 0; j < kKeys; ++j) x.key(j, 0) = j % 3 == 0 ? 1e-30F : 5e-31F;
    const auto rule = mha::scale(1e10);
    const auto result = x.forward(rule);
    Matrix<float> weights = Matrix<float>::Zero(query_len, kKeys);
    for (Index j = 0; j < kKeys; j += 3) weights.col(j).setConstant(3.0F / 1101);  // 367 keys
    CHECK_THAT(result.weights, IsClose(weights, 1e-7));
    CHECK_THAT(result.output, IsClose(Matrix<float>(weights * x.value), 1e-5));
    CHECK_THAT(result.lse, IsClose(Matrix<float>::Constant(query_len, 1, 1e10F), 2048));
    const auto gradients = x.backward(rule);
    CHECK(gradients.value.allFinite());
    CHECK(gradients.query.allFinite());
  });
}

TEST_CASE("finite biases saturate: only an entry of -inf masks", "[rules][bias][regression]") {
  const float huge = -3e38F;
  on_every_engine([&](Index query_len) {
    const Index kv_len = 40;
    Matrix<float> bias = Matrix<float>::Constant(query_len, kv_len, huge);
    mha::detail::set_minus_infinity(bias(0, 1));
    bias.row(1).setZero();
    bias(1, 7) = 3e38F;
    const auto weights = weights_of(query_len, kv_len, mha::bias(bias) & mha::bias(bias));
    Matrix<float> expected = Matrix<float>::Constant(query_len, kv_len, 1.0F / 40);
    expected.row(0).setConstant(1.0F / 39);
    expected(0, 1) = 0;
    expected.row(1).setZero();
    expected(1, 7) = 1;
    CHECK_THAT(weights, IsClose(expected, 1e-8));
    // As doubles that float cannot hold.
    const Matrix<double> wide = bias.cast<double>() * 1e100;
    CHECK_THAT(weights_of(query_len, kv_len, mha::bias(wide)), IsClose(expected, 1e-8));
    // Gradients stay numbers.
    Matrix<float> q = Matrix<float>::Zero(query_len, 2), k = Matrix<float>::Zero(kv_len, 2);
    const auto rule = mha::bias(bias) & mha::bias(bias);
    const auto forward = mha::scaled_dot_product_attention_forward(q, k, k, rule, kEverything);
    CHECK(forward.lse(2) == -kMost);
    const auto gradients = mha::scaled_dot_product_attention_backward(q, q, k, k, forward, rule);
    CHECK(gradients.key.allFinite());
  });
}

TEST_CASE("alibi's slopes times distances saturate", "[rules][alibi][regression]") {
  on_every_engine([&](Index query_len) {
    const Index kv_len = 80;
    const auto check = [&](const Matrix<float>& weights) {
      // The last query stands at the last key; every other key is out of reach.
      CHECK(weights(query_len - 1, kv_len - 1) == 1);
      CHECK(weights.row(query_len - 1).head(kv_len - 1).isZero(0));
      CHECK(weights.allFinite());
    };
    check(weights_of(query_len, kv_len, mha::alibi(1e38F)));
    check(weights_of(query_len, kv_len, mha::alibi(1e300)));
    // What is masked stays so, whatever is added afterwards, by lanes and one by one.
    const auto lanes = mha::score_mod([](Lanes<float> s, Index, Index, Lanes<int>, Lanes<int> j) {
      Lanes<float> masked;
      for (float& x : masked.v) mha::detail::set_minus_infinity(x);
      return select(j < 4, masked, s);
    });
    const auto plain = mha::score_mod([](float s, Index, Index, Index, Index j) {
      if (j < 4) mha::detail::set_minus_infinity(s);
      return s;
    });
    const auto masked = [&](const Matrix<float>& weights) {
      CHECK(weights.leftCols(4).isZero(0));
      CHECK(weights.allFinite());
      CHECK(weights.rowwise().sum().isOnes(1e-6F));
    };
    masked(weights_of(query_len, kv_len, lanes & mha::alibi(-1e38F)));
    masked(weights_of(query_len, kv_len, lanes & mha::alibi(0.5F)));
    masked(weights_of(query_len, kv_len, plain & mha::alibi(-1e38F)));
  });
}

TEST_CASE("NaN or +inf from biases and score functions stays in its row",
          "[rules][bias][score_mod]") {
  on_every_engine([&](Index query_len) {
    const Index kv_len = 40;
    for (const float bad : {nan_of<float>(), infinity_of<float>()}) {
      Matrix<float> bias = random_matrix<float>(query_len, kv_len, 5);
      const auto before = weights_of(query_len, kv_len, mha::bias(bias));
      bias(1, 3) = bad;
      const auto check = [&](const Matrix<float>& weights) {
        CHECK(is_nan(weights(1, 3)));
        CHECK_THAT(weights.row(0), HasBitsOf(before.row(0)));
        CHECK_THAT(weights.bottomRows(query_len - 2), HasBitsOf(before.bottomRows(query_len - 2)));
      };
      check(weights_of(query_len, kv_len, mha::bias(bias)));
      check(weights_of(
          query_len, kv_len,
          mha::score_mod([&](float s, Index, Index, Index i, Index j) { return s + bias(i, j); })));
      // Where a mask hides it, it does nothing.
      Matrix<bool> keep = Matrix<bool>::Constant(query_len, kv_len, true);
      keep(1, 3) = false;
      CHECK(weights_of(query_len, kv_len, mha::bias(bias) & mha::keep(keep)).allFinite());
      // Other rows' gradients.
      const Matrix<float> q = random_matrix<float>(query_len, 2, 6);
      const Matrix<float> k = random_matrix<float>(kv_len, 2, 7);
      const auto rule = mha::bias(bias);
      const auto gradients = mha::scaled_dot_product_attention_backward(
          q, q, k, k, mha::scaled_dot_product_attention_forward(q, k, k, rule, kEverything), rule);
      CHECK(gradients.query.bottomRows(query_len - 2).allFinite());
      CHECK_FALSE(gradients.query.row(1).allFinite());
    }
  });
}

TEST_CASE("a slope of NaN stays in its head, and infinity counts as a large slope",
          "[rules][alibi]") {
  on_every_engine([&](Index query_len) {
    for (const float bad : {nan_of<float>(), infinity_of<float>(), -infinity_of<float>()}) {
      const auto q = mha::test::random_tensor<float>({1, 2, query_len, 4}, 3);
      const auto k = mha::test::random_tensor<float>({1, 1, 40, 4}, 4);
      const auto good = mha::attention(q, k, k, mha::alibi(Eigen::Vector2f(0.5F, 0.25F)));
      const auto output = mha::attention(q, k, k, mha::alibi(Eigen::Vector2f(0.5F, bad)));
      CHECK_THAT(Matrix<float>(output.matrix(0, 0)), HasBitsOf(good.matrix(0, 0)));
      if (is_nan(bad)) {
        CHECK(is_nan(output(0, 1, 0, 0)));
        continue;
      }
      // All the weight goes to the nearest key, or to the farthest.
      const Index row = query_len - 1;
      const Index nearest = bad > 0 ? 39 : 0;
      CHECK(output.matrix(0, 1).row(row) == k.matrix(0, 0).row(nearest));
    }
  });
}

TEST_CASE("a sink may be any number", "[rules][sinks]") {
  on_every_engine([&](Index query_len) {
    const Head<float> x(query_len);
    const auto none = x.forward(mha::All());
    const auto with = [&](const auto& logit) { return x.forward(mha::sinks(logit)); };
    CHECK_THAT(with(-infinity_of<float>()).weights, HasBitsOf(none.weights));
    CHECK_THAT(with(-1e300).weights, HasBitsOf(none.weights));  // too small for float
    for (const auto& all : {with(infinity_of<float>()), with(1e300)}) {
      CHECK(all.weights.isZero(0));
      CHECK(all.output.isZero(0));
    }
    CHECK(with(infinity_of<float>()).lse(0) == infinity_of<float>());
    CHECK(with(1e300).lse(0) == kMost);
    CHECK(is_nan(with(nan_of<float>()).output(0, 0)));
    // Without a key: lse is the sink.
    for (const double sink : {0.75, -1e300}) {
      const auto alone = x.forward(mha::sinks(sink) & mha::lengths(0));
      CHECK(alone.output.isZero(0));
      CHECK(alone.weights.isZero(0));
      CHECK(alone.lse(0) == (sink > 0 ? 0.75F : -kMost));
    }
    CHECK(x.forward(mha::sinks(nan_of<float>()) & mha::lengths(0)).output.isZero(0));
    CHECK(is_nan(x.forward(mha::sinks(nan_of<float>()) & mha::lengths(0)).lse(0)));
  });
}

TEST_CASE("a softcap that the accumulator cannot hold is none, one too small its smallest number",
          "[rules][softcap][regression]") {
  on_every_engine([&](Index query_len) {
    const Head<float> x(query_len);
    const auto none = x.forward(mha::softcap(0));
    CHECK_THAT(x.forward(mha::softcap(1e300)).weights, HasBitsOf(none.weights));
    CHECK_THAT(x.forward(mha::softcap(infinity_of<double>())).weights, HasBitsOf(none.weights));
    // Scores of at most 1e-38: equal weights.
    const auto tiny = x.forward(mha::softcap(1e-300));
    CHECK_THAT(tiny.weights,
               IsClose(Matrix<float>::Constant(query_len, kKeys, 1.0F / kKeys), 1e-9));
  });
}

TEST_CASE("values may be as large as their sum over the keys times 256 allows", "[rules][values]") {
  // attention.hpp states the limit. Weights are taken from a reference that may lag by a factor of
  // 2^8: the later keys' scores are ln(200) above the first ones'.
  on_every_engine([&](Index query_len) {
    Head<float> x(query_len);
    x.query.setOnes();
    x.key.setZero();
    x.key.bottomRows(500).col(0).setConstant(std::log(200.0F));
    const float value = kMost / (256.0F * kKeys) * 0.99F;
    x.value.setConstant(value);
    const auto output = x.forward(mha::scale(1)).output;
    CHECK_THAT(output, IsClose(x.value.topRows(query_len), 1e-4 * static_cast<double>(value)));
  });
}
