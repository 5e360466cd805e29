// SPDX-License-Identifier: MIT
//
// What masks promise, in a program that is compiled with -ffast-math, which assumes that neither
// NaN nor infinity exists. So nothing here asks a float whether it is one: bits are compared, and
// special values are made from bits.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::test::HasBitsOf;
using mha::test::random_matrix;
using mha::test::same_bits;

namespace {

enum class Special { minus_inf, plus_inf, nan };

// Makes x a special value by its bits: under -ffast-math clang may drop an infinity that a function
// takes or returns by value. The volatile keeps the compiler from knowing the bits.
template <class Scalar>
void set(Scalar& x, Special special) {
  const auto write = [&](auto minus_inf, auto plus_inf, auto nan) {
    volatile auto hidden = special == Special::minus_inf  ? minus_inf
                           : special == Special::plus_inf ? plus_inf
                                                          : nan;
    const auto bits = hidden;
    static_assert(sizeof(bits) == sizeof(x));
    std::memcpy(static_cast<void*>(&x), &bits, sizeof(x));
  };
  using std::uint16_t;
  using std::uint32_t;
  using std::uint64_t;
  if constexpr (std::is_same_v<Scalar, double>) {
    write(uint64_t{0xFFF0000000000000}, uint64_t{0x7FF0000000000000}, uint64_t{0x7FF8000000000000});
  } else if constexpr (std::is_same_v<Scalar, float>) {
    write(uint32_t{0xFF800000}, uint32_t{0x7F800000}, uint32_t{0x7FC00000});
  } else if constexpr (std::is_same_v<Scalar, Eigen::half>) {
    write(uint16_t{0xFC00}, uint16_t{0x7C00}, uint16_t{0x7E00});
  } else {
    static_assert(std::is_same_v<Scalar, Eigen::bfloat16>);
    write(uint16_t{0xFF80}, uint16_t{0x7F80}, uint16_t{0x7FC0});
  }
}

template <class M>
void set_all(M&& m, Special special) {
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) set(m(i, j), special);
  }
}

template <class Scalar>
bool equal(const Scalar& a, const Scalar& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

template <class Scalar>
bool is(const Scalar& x, Special special) {
  Scalar wanted;
  set(wanted, special);
  return equal(x, wanted);
}

// All bits 0: +0.
template <class M>
bool is_zero(const M& m) {
  using Scalar = typename M::Scalar;
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      if (!equal(m(i, j), Scalar(0))) return false;
    }
  }
  return true;
}

// Five queries, 21 keys (more than a vector register holds, and not a multiple of one). Keys from
// 13 on are masked.
constexpr Index kQueries = 5;
constexpr Index kKeys = 21;
constexpr Index kSeen = 13;

template <class Scalar>
struct Inputs {
  Matrix<Scalar> query = random_matrix<Scalar>(kQueries, 6, 1);
  Matrix<Scalar> key = random_matrix<Scalar>(kKeys, 6, 2);
  Matrix<Scalar> value = random_matrix<Scalar>(kKeys, 7, 3);

  void spoil_masked() {
    constexpr Special specials[] = {Special::nan, Special::plus_inf, Special::minus_inf};
    for (Index j = kSeen; j < kKeys; ++j) {
      set_all(key.row(j), specials[j % 3]);
      set_all(value.row(j), specials[(j + 1) % 3]);
    }
  }
};

// What the rule gives does not change when masked keys and values become NaN and infinite.
template <class Scalar, class RuleType>
void check_masked_do_not_matter(const RuleType& rule) {
  using Acc = mha::accumulator_t<Scalar>;
  Inputs<Scalar> inputs;
  const auto run = [&] {
    return mha::scaled_dot_product_attention_forward(inputs.query, inputs.key, inputs.value, rule,
                                                     {.need_weights = true, .need_lse = true});
  };
  const auto clean = run();
  inputs.spoil_masked();
  const auto dirty = run();
  CHECK_THAT(dirty.output, HasBitsOf(clean.output));
  CHECK_THAT(dirty.weights, HasBitsOf(clean.weights));
  CHECK_THAT(dirty.lse, HasBitsOf(clean.lse));
  CHECK(is_zero(clean.weights.rightCols(kKeys - kSeen)));
  CHECK_FALSE(is_zero(clean.output));
  // The first keys are seen: no weight is 0 there.
  for (Index i = 0; i < kQueries; ++i) CHECK_FALSE(equal(clean.weights(i, 0), Acc(0)));
}

// The rule allows nothing: outputs and weights are 0, lse is -inf.
template <class Scalar, class RuleType>
void check_nothing_allowed(const RuleType& rule) {
  Inputs<Scalar> inputs;
  inputs.spoil_masked();
  const auto result = mha::scaled_dot_product_attention_forward(
      inputs.query, inputs.key, inputs.value, rule, {.need_weights = true, .need_lse = true});
  CHECK(is_zero(result.output));
  CHECK(is_zero(result.weights));
  for (Index i = 0; i < kQueries; ++i) {
    CHECK(is(result.lse(i), Special::minus_inf));
  }
}

Matrix<bool> first_keys_allowed() {
  Matrix<bool> allowed = Matrix<bool>::Constant(kQueries, kKeys, true);
  allowed.rightCols(kKeys - kSeen).setConstant(false);
  return allowed;
}

}  // namespace

TEMPLATE_TEST_CASE("masked NaN and infinity change no bit", "[fast_math][mask]", float, double,
                   Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const Matrix<bool> allowed = first_keys_allowed();
  SECTION("by length") { check_masked_do_not_matter<TestType>(mha::lengths(kSeen)); }
  SECTION("by a boolean matrix") { check_masked_do_not_matter<TestType>(mha::keep(allowed)); }
  SECTION("by a bias of -inf") {
    Matrix<TestType> bias = Matrix<TestType>::Constant(1, kKeys, TestType(0.5F));
    set_all(bias.rightCols(kKeys - kSeen), Special::minus_inf);
    check_masked_do_not_matter<TestType>(mha::bias(bias));
  }
  SECTION("by a score_mod that returns -inf") {
    Acc minus_infinity;
    set(minus_infinity, Special::minus_inf);
    check_masked_do_not_matter<TestType>(
        mha::score_mod([&](const Acc& score, Index, Index, Index, Index j) {
          return j < kSeen ? score : minus_infinity;
        }));
  }
}

TEMPLATE_TEST_CASE("a query that may attend to nothing gives 0, and -inf as lse",
                   "[fast_math][mask]", float, double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  const Matrix<bool> nothing = Matrix<bool>::Constant(kQueries, kKeys, false);
  SECTION("by length") { check_nothing_allowed<TestType>(mha::lengths(0)); }
  SECTION("by a boolean matrix") { check_nothing_allowed<TestType>(mha::keep(nothing)); }
  SECTION("by a bias of -inf") {
    Matrix<TestType> bias(kQueries, kKeys);
    set_all(bias, Special::minus_inf);
    check_nothing_allowed<TestType>(mha::bias(bias));
  }
  SECTION("by a score_mod that returns -inf") {
    Acc minus_infinity;
    set(minus_infinity, Special::minus_inf);
    check_nothing_allowed<TestType>(
        mha::score_mod([&](const Acc&, Index, Index, Index, Index) { return minus_infinity; }));
  }
}

TEST_CASE("one row that may attend to nothing does not disturb its neighbours",
          "[fast_math][mask]") {
  const Inputs<float> inputs;
  Matrix<bool> allowed = Matrix<bool>::Constant(kQueries, kKeys, true);
  allowed.row(2).setConstant(false);
  const auto all =
      mha::scaled_dot_product_attention(inputs.query, inputs.key, inputs.value,
                                        mha::keep(Matrix<bool>::Constant(kQueries, kKeys, true)));
  const auto some =
      mha::scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, mha::keep(allowed));
  CHECK(is_zero(some.row(2)));
  CHECK(same_bits(Matrix<float>(some.topRows(2)), Matrix<float>(all.topRows(2))));
  CHECK(same_bits(Matrix<float>(some.bottomRows(2)), Matrix<float>(all.bottomRows(2))));
}

TEMPLATE_TEST_CASE("a large negative bias is a number, not a mask", "[fast_math][mask]", float,
                   double) {
  // Equal scores of -1e9: weights 1/4 of the values 1, 2, 3, 6, mean 3.
  const Matrix<TestType> q = Matrix<TestType>::Zero(1, 2);
  const Matrix<TestType> k = Matrix<TestType>::Zero(4, 2);
  Matrix<TestType> v(4, 1);
  v << 1, 2, 3, 6;
  const Matrix<TestType> low = Matrix<TestType>::Constant(1, 4, TestType(-1e9));
  const auto result = mha::scaled_dot_product_attention_forward(
      q, k, v, mha::bias(low), {.need_weights = true, .need_lse = true});
  for (Index j = 0; j < 4; ++j) CHECK(equal(result.weights(0, j), TestType(0.25)));
  CHECK(equal(result.output(0, 0), TestType(3)));
  CHECK_FALSE(is(result.lse(0), Special::minus_inf));
}

TEMPLATE_TEST_CASE("biases that overflow together are a number, not a mask", "[fast_math][mask]",
                   float, double) {
  for (const Index query_len : {1, 20}) {
    const Matrix<TestType> q = Matrix<TestType>::Zero(query_len, 2);
    const Matrix<TestType> k = Matrix<TestType>::Zero(4, 2);
    const TestType lowest = std::numeric_limits<TestType>::lowest();
    const Matrix<TestType> low = Matrix<TestType>::Constant(query_len, 4, lowest / 4 * 3);
    const auto result = mha::scaled_dot_product_attention_forward(
        q, k, k, mha::bias(low) & mha::bias(low), {.need_weights = true, .need_lse = true});
    for (Index j = 0; j < 4; ++j) CHECK(equal(result.weights(query_len - 1, j), TestType(0.25)));
    CHECK(equal(result.lse(0), lowest));
  }
}

TEMPLATE_TEST_CASE("valid scores of -1e30 win over masked ones of 1e30", "[fast_math][mask]", float,
                   double) {
  // q = 1; keys -1e30 and 1e30, the second masked: the first has weight 1.
  const Matrix<TestType> q = Matrix<TestType>::Constant(1, 1, TestType(1));
  Matrix<TestType> k(2, 1);
  k << TestType(-1e30), TestType(1e30);
  Matrix<TestType> v(2, 1);
  v << 3, 5;
  const auto result =
      mha::scaled_dot_product_attention_forward(q, k, v, mha::lengths(1), {.need_weights = true});
  CHECK(equal(result.output(0, 0), TestType(3)));
  CHECK(equal(result.weights(0, 0), TestType(1)));
  CHECK(equal(result.weights(0, 1), TestType(0)));
}

TEST_CASE("causal rows before the first key are empty", "[fast_math][mask]") {
  // Lower right: five queries, two keys: rows 0 to 2 see nothing.
  const Matrix<float> q = random_matrix<float>(5, 3, 1);
  const Matrix<float> k = random_matrix<float>(2, 3, 2);
  const Matrix<float> v = random_matrix<float>(2, 3, 3);
  const auto result = mha::scaled_dot_product_attention_forward(
      q, k, v, mha::causal_lower_right(), {.need_weights = true, .need_lse = true});
  CHECK(is_zero(result.output.topRows(3)));
  CHECK(is_zero(result.weights.topRows(3)));
  for (Index i = 0; i < 3; ++i) CHECK(is(result.lse(i), Special::minus_inf));
  CHECK(same_bits(Matrix<float>(result.output.row(3)), Matrix<float>(v.row(0))));
  CHECK_FALSE(is(result.lse(4), Special::minus_inf));
}

TEST_CASE("no key at all gives 0, and -inf as lse", "[fast_math][empty]") {
  const Matrix<double> q = random_matrix<double>(2, 3, 1);
  const Matrix<double> none(0, 3);
  const auto result =
      mha::scaled_dot_product_attention_forward(q, none, none, mha::All{}, {.need_lse = true});
  CHECK(is_zero(result.output));
  CHECK(is(result.lse(1), Special::minus_inf));
}

TEST_CASE("a sink of -inf is no sink", "[fast_math][score]") {
  const Inputs<float> inputs;
  const auto without = mha::scaled_dot_product_attention_forward(
      inputs.query, inputs.key, inputs.value, mha::lengths(kSeen), {.need_lse = true});
  Matrix<float> logits(1, 1);
  set_all(logits, Special::minus_inf);
  const auto with = mha::scaled_dot_product_attention_forward(
      inputs.query, inputs.key, inputs.value, mha::lengths(kSeen) & mha::sinks(logits.row(0)),
      {.need_lse = true});
  CHECK_THAT(with.output, HasBitsOf(without.output));
  CHECK_THAT(with.lse, HasBitsOf(without.lse));
}

TEST_CASE("merging an empty part changes no bit", "[fast_math][merge]") {
  const Inputs<float> inputs;
  const auto part = mha::scaled_dot_product_attention_forward(
      inputs.query, inputs.key, inputs.value, mha::All{}, {.need_lse = true});
  const auto empty = mha::scaled_dot_product_attention_forward(
      inputs.query, inputs.key, inputs.value, mha::lengths(0), {.need_lse = true});
  Matrix<float> rubbish(part.output.rows(), part.output.cols());
  set_all(rubbish, Special::nan);
  for (const Matrix<float>& other : {empty.output, rubbish}) {
    const auto left = mha::merge(other, empty.lse, part.output, part.lse);
    const auto right = mha::merge(part.output, part.lse, other, empty.lse);
    CHECK_THAT(left.output, HasBitsOf(part.output));
    CHECK_THAT(left.lse, HasBitsOf(part.lse));
    CHECK_THAT(right.output, HasBitsOf(part.output));
    CHECK_THAT(right.lse, HasBitsOf(part.lse));
  }
  const auto both = mha::merge(rubbish, empty.lse, rubbish, empty.lse);
  CHECK(is_zero(both.output));
  CHECK(is(both.lse(0), Special::minus_inf));
}

TEMPLATE_TEST_CASE("the layer keeps the promises of its masks", "[fast_math][multi_head]", float,
                   double, Eigen::half, Eigen::bfloat16) {
  MultiHead<TestType, 2> layer({.embed_dim = 6, .kv_heads = 1});
  mha::test::randomise(layer, 3);
  Matrix<TestType> x = random_matrix<TestType>(kKeys, 6, 1);
  const auto clean = layer(x, mha::lengths(kSeen));
  for (Index j = kSeen; j < kKeys; ++j) {
    set_all(x.row(j), j % 2 == 0 ? Special::nan : Special::plus_inf);
  }
  const auto dirty = layer(x, mha::lengths(kSeen));
  CHECK_THAT(Matrix<TestType>(dirty.topRows(kSeen)),
             HasBitsOf(Matrix<TestType>(clean.topRows(kSeen))));

  const auto nothing = layer(x, mha::lengths(0));
  const Matrix<TestType> bias = layer.out_proj.bias.replicate(kKeys, 1);
  CHECK_THAT(nothing, HasBitsOf(bias));
}

TEST_CASE("an infinite value reaches no query that may not see it", "[fast_math][mask]") {
  // Others of its tile see it; what they get is no promise under -ffast-math.
  Inputs<float> inputs;
  Matrix<bool> allowed = Matrix<bool>::Constant(kQueries, kKeys, true);
  allowed(1, 3) = false;
  const auto run = [&] {
    const Matrix<float> y = mha::scaled_dot_product_attention(inputs.query, inputs.key,
                                                              inputs.value, mha::keep(allowed));
    return Matrix<float>(y.row(1));
  };
  const Matrix<float> clean = run();
  set(inputs.value(3, 2), Special::plus_inf);
  CHECK_THAT(run(), HasBitsOf(clean));
}
