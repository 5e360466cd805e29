// SPDX-License-Identifier: MIT
#include <mha/attention.hpp>

#include "support/matchers.hpp"
#include "support/targets.hpp"

using mha::Index;
using mha::LaneMask;
using mha::Lanes;
using mha::Matrix;
using mha::test::HasBitsOf;
using mha::test::random_matrix;

namespace {

constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

/// first, first + step, ...
template <class T>
Lanes<T> counting(T first, T step) {
  Lanes<T> result;
  for (int l = 0; l < 16; ++l) result[l] = first + step * static_cast<T>(l);
  return result;
}

/// Lane l of `lanes` is f(l).
template <class L, class F>
void check_lanes(const L& lanes, const F& f) {
  for (int l = 0; l < 16; ++l) {
    CAPTURE(l);
    CHECK(lanes[l] == f(l));
  }
}

template <class T>
Matrix<T> matrix_of_lanes(const Lanes<T>& lanes) {
  return Eigen::Map<const Matrix<T>>(lanes.v, 1, 16);
}

}  // namespace

TEMPLATE_TEST_CASE("arithmetic on lanes is arithmetic on each of them", "[lanes]", float, double,
                   int) {
  const auto a = counting<TestType>(-7, 3);
  const auto b = counting<TestType>(1, 2);
  const auto at = [](TestType first, TestType step, int l) {
    return static_cast<TestType>(first + step * static_cast<TestType>(l));
  };
  check_lanes(a + b, [&](int l) { return at(-7, 3, l) + at(1, 2, l); });
  check_lanes(a - b, [&](int l) { return at(-7, 3, l) - at(1, 2, l); });
  check_lanes(a * b, [&](int l) { return at(-7, 3, l) * at(1, 2, l); });
  check_lanes(a / b, [&](int l) { return at(-7, 3, l) / at(1, 2, l); });
  check_lanes(-a, [&](int l) { return -at(-7, 3, l); });
  check_lanes(abs(a), [&](int l) { return std::abs(at(-7, 3, l)); });
}

TEMPLATE_TEST_CASE("a number beside lanes stands for sixteen, on either side", "[lanes]", float,
                   double, int) {
  const auto a = counting<TestType>(1, 1);
  const TestType two(2);
  check_lanes(a + two, [&](int l) { return a[l] + two; });
  check_lanes(two + a, [&](int l) { return two + a[l]; });
  check_lanes(a - two, [&](int l) { return a[l] - two; });
  check_lanes(two - a, [&](int l) { return two - a[l]; });
  check_lanes(a * two, [&](int l) { return a[l] * two; });
  check_lanes(two / a, [&](int l) { return two / a[l]; });
  check_lanes(Lanes<TestType>(5), [](int) { return TestType(5); });
}

TEST_CASE("lanes of scores keep their type beside positions and numbers of another", "[lanes]") {
  const auto scores = counting<float>(0.5F, 1);
  const auto keys = counting<int>(-3, 1);
  STATIC_REQUIRE(std::is_same_v<decltype(scores + keys), Lanes<float>>);
  STATIC_REQUIRE(std::is_same_v<decltype(keys * scores), Lanes<float>>);
  STATIC_REQUIRE(std::is_same_v<decltype(scores * 0.25), Lanes<float>>);
  STATIC_REQUIRE(std::is_same_v<decltype(2 - scores), Lanes<float>>);
  STATIC_REQUIRE(std::is_same_v<decltype(keys - 1), Lanes<int>>);
  STATIC_REQUIRE(std::is_same_v<decltype(keys * 0.5F), Lanes<float>>);
  STATIC_REQUIRE(std::is_same_v<decltype(counting<double>(0, 1) - keys), Lanes<double>>);
  check_lanes(scores + keys, [](int l) { return 0.5F + static_cast<float>(2 * l - 3); });
  check_lanes(keys * 0.5F, [](int l) { return 0.5F * static_cast<float>(l - 3); });
  check_lanes(Lanes<double>(keys), [](int l) { return static_cast<double>(l - 3); });
}

TEMPLATE_TEST_CASE("a comparison of lanes answers for each of them", "[lanes]", float, double,
                   int) {
  const auto a = counting<TestType>(0, 1);
  const TestType five(5);
  const Lanes<TestType> b(five);
  check_lanes(a < b, [](int l) { return l < 5; });
  check_lanes(a <= b, [](int l) { return l <= 5; });
  check_lanes(a > b, [](int l) { return l > 5; });
  check_lanes(a >= five, [](int l) { return l >= 5; });
  check_lanes(a == five, [](int l) { return l == 5; });
  check_lanes(five != a, [](int l) { return l != 5; });
  STATIC_REQUIRE(std::is_same_v<decltype(a < b), LaneMask>);
}

TEST_CASE("no comparison with NaN holds but !=", "[lanes]") {
  const auto a = counting<float>(0, 1);
  const auto nan = mha::test::nan_of<float>();
  check_lanes(a < nan, [](int) { return false; });
  check_lanes(a >= nan, [](int) { return false; });
  check_lanes(a == nan, [](int) { return false; });
  check_lanes(a != nan, [](int) { return true; });
}

TEMPLATE_TEST_CASE("select, min and max choose lane by lane", "[lanes]", float, double, int) {
  const auto a = counting<TestType>(0, 1);
  const auto b = counting<TestType>(15, -1);
  check_lanes(select(a < b, a, b),
              [](int l) { return static_cast<TestType>(std::min(l, 15 - l)); });
  check_lanes(select(a == TestType(3), TestType(-1), a),
              [](int l) { return static_cast<TestType>(l == 3 ? -1 : l); });
  check_lanes(min(a, b), [](int l) { return static_cast<TestType>(std::min(l, 15 - l)); });
  check_lanes(max(a, b), [](int l) { return static_cast<TestType>(std::max(l, 15 - l)); });
  check_lanes(min(a, TestType(4)), [](int l) { return static_cast<TestType>(std::min(l, 4)); });
  check_lanes(max(TestType(4), a), [](int l) { return static_cast<TestType>(std::max(l, 4)); });
}

TEST_CASE("select takes nothing from the lanes that it leaves", "[lanes]") {
  const auto a = counting<float>(0, 1);
  const auto selected = select(a < 8, a, Lanes<float>(mha::test::minus_infinity_of<float>()));
  check_lanes(selected, [](int l) {
    return l < 8 ? static_cast<float>(l) : mha::test::minus_infinity_of<float>();
  });
  const auto from_nan = select(a < 100, a, Lanes<float>(mha::test::nan_of<float>()));
  CHECK_THAT(matrix_of_lanes(from_nan), HasBitsOf(matrix_of_lanes(a)));
}

namespace {

struct Generic {
  template <class A, class I, class J>
  auto operator()(A s, Index /*b*/, Index /*h*/, I /*i*/, J /*j*/) const {
    static_assert(!mha::detail::is_lanes<A>, "a generic function is asked for numbers alone");
    return s;
  }
};

}  // namespace

TEST_CASE("a function is taken for one of lanes by its parameters alone", "[lanes][score_mod]") {
  using mha::detail::TakesLanes;
  const auto of_lanes = [](Lanes<float> s, Index, Index, Lanes<int>, Lanes<int>) { return s; };
  const auto by_reference = [](const Lanes<float>& s, Index, Index, const Lanes<int>&,
                               const Lanes<int>&) { return s; };
  const auto generic = [](auto s, auto, auto, auto, auto) { return s; };
  const auto of_numbers = [](float s, Index, Index, Index, Index) { return s; };
  STATIC_REQUIRE(TakesLanes<decltype(of_lanes), float>);
  STATIC_REQUIRE(TakesLanes<decltype(by_reference), float>);
  STATIC_REQUIRE_FALSE(TakesLanes<decltype(of_lanes), double>);
  STATIC_REQUIRE_FALSE(TakesLanes<decltype(generic), float>);
  STATIC_REQUIRE_FALSE(TakesLanes<Generic, float>);
  STATIC_REQUIRE_FALSE(TakesLanes<decltype(of_numbers), float>);
}

TEMPLATE_TEST_CASE("a score_mod of lanes gives what the same over numbers gives",
                   "[lanes][score_mod]", float, double, Eigen::half) {
  using Acc = mha::accumulator_t<TestType>;
  // Exact operations only, so that compilers have nothing to round differently.
  const auto of_lanes =
      mha::score_mod([](Lanes<Acc> s, Index b, Index h, Lanes<int> i, Lanes<int> j) {
        const Lanes<int> distance = abs(i - j);
        const Lanes<Acc> halved = select(distance > 3, s / 2, max(s, Acc(-1)));
        const Lanes<int> period = (i + j) - (i + j) / 7 * 7;
        return select(period == 2 + static_cast<int>(b + h),
                      Lanes<Acc>(mha::test::minus_infinity_of<Acc>()), halved);
      });
  const auto of_numbers = mha::score_mod([](Acc s, Index b, Index h, Index i, Index j) {
    const Acc halved = std::abs(i - j) > 3 ? s / 2 : std::max(s, Acc(-1));
    return (i + j) % 7 == 2 + b + h ? mha::test::minus_infinity_of<Acc>() : halved;
  });
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    for (const Index query_len : {1, 3, 4, 5, 17, 40, 70}) {
      for (const Index kv_len : {1, 15, 17, 130, 1030}) {
        CAPTURE(query_len, kv_len);
        const auto query = mha::test::random_tensor<TestType>({2, 2, query_len, 3}, 1, 2);
        const auto key = mha::test::random_tensor<TestType>({2, 2, kv_len, 3}, 2, 2);
        const auto value = mha::test::random_tensor<TestType>({2, 2, kv_len, 2}, 3);
        const auto beside = mha::causal_lower_right() & mha::window(900, -1);
        const auto a = attention_forward(query, key, value, beside & of_lanes, kEverything);
        const auto b = attention_forward(query, key, value, beside & of_numbers, kEverything);
        CHECK_THAT(mha::test::stacked(a.output), HasBitsOf(mha::test::stacked(b.output)));
        CHECK_THAT(mha::test::stacked(a.weights), HasBitsOf(mha::test::stacked(b.weights)));
        CHECK_THAT(mha::test::stacked(a.lse), HasBitsOf(mha::test::stacked(b.lse)));
      }
    }
  }
}

TEST_CASE("beside a mask of single pairs a score_mod of lanes is asked pair by pair",
          "[lanes][score_mod]") {
  const auto of_lanes = mha::score_mod([](Lanes<float> s, Index, Index, Lanes<int> i,
                                          Lanes<int> j) { return s - 0.25F * abs(i - j); });
  const auto of_numbers = mha::score_mod([](float s, Index, Index, Index i, Index j) {
    return s - 0.25F * static_cast<float>(std::abs(i - j));
  });
  for (const Index query_len : {2, 40}) {
    const auto x = random_matrix<float>(query_len, 4, 1);
    const auto y = random_matrix<float>(150, 4, 2);
    const Matrix<bool> kept = mha::test::random_booleans(query_len, 150, 3, 0.5);
    const auto attend = [&](const auto& rule) {
      return scaled_dot_product_attention_forward(x, y, y, mha::keep(kept) & rule, kEverything);
    };
    CHECK_THAT(attend(of_lanes).weights, HasBitsOf(attend(of_numbers).weights));
    CHECK_THAT(attend(of_lanes).output, HasBitsOf(attend(of_numbers).output));
  }
}

TEST_CASE("a score_mod of lanes sees every position of the call, and none beyond",
          "[lanes][score_mod]") {
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    for (const Index query_len : {1, 4, 5, 18, 70}) {
      for (const Index kv_len : {1, 5, 140}) {
        CAPTURE(query_len, kv_len);
        Matrix<float> table = random_matrix<float>(query_len, kv_len, 4);
        const auto rule =
            mha::score_mod([&](Lanes<float> s, Index, Index, Lanes<int> i, Lanes<int> j) {
              Lanes<float> result;
              for (int l = 0; l < 16; ++l) result[l] = s[l] + table(i[l], j[l]);  // asserts
              return result;
            });
        const auto x = random_matrix<float>(query_len, 4, 1);
        const auto y = random_matrix<float>(kv_len, 4, 2);
        const auto result = scaled_dot_product_attention_forward(x, y, y, rule, kEverything);
        const auto expected =
            scaled_dot_product_attention_forward(x, y, y, mha::bias(table), kEverything);
        CHECK_THAT(result.output, HasBitsOf(expected.output));
        CHECK_THAT(result.weights, HasBitsOf(expected.weights));
      }
    }
  }
}
