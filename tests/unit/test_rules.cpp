// SPDX-License-Identifier: MIT
//
// mha/rules/combine.hpp: what a rule may say, and how `&` joins several.
#include <mha/attention_scores.hpp>

#include "support/matchers.hpp"

using mha::Extent;
using mha::Index;
using mha::KeyRange;
using mha::Matrix;
using mha::Tensor;
using mha::test::HasBitsOf;
using mha::test::matrix_of;
using mha::test::random_matrix;

namespace {

// A user's rules: any of the members that mha/rules/combine.hpp names.
struct EvenKeys : mha::Rule {
  bool allowed(const Extent& /*extent*/, Index /*b*/, Index /*h*/, Index /*i*/, Index j) const {
    return j % 2 == 0;
  }
};
struct FirstKeys : mha::Rule {
  Index count = 0;
  explicit FirstKeys(Index n) : count(n) {}
  KeyRange keys(const Extent& /*extent*/, Index /*b*/, Index /*h*/, Index /*i*/) const {
    return {-5, count};
  }
};
struct Plus : mha::Rule {
  static constexpr bool kModifiesScore = true;
  double term = 0;
  explicit Plus(double t) : term(t) {}
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& /*extent*/, Index, Index, Index, Index) const {
    return s + static_cast<Scalar>(term);
  }
};
struct Times : mha::Rule {
  static constexpr bool kModifiesScore = true;
  double factor = 1;
  explicit Times(double f) : factor(f) {}
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& /*extent*/, Index, Index, Index, Index) const {
    return s * static_cast<Scalar>(factor);
  }
};
struct HideOdd : mha::Rule {
  static constexpr bool kModifiesScore = true;
  static constexpr bool kScoreMayMask = true;
  template <class Scalar>
  Scalar score(const Scalar& s, const Extent& /*extent*/, Index, Index, Index, Index j) const {
    return j % 2 == 0 ? s : mha::test::minus_infinity_of<Scalar>();
  }
};
struct StandsAt : mha::Rule {
  Index position = 0;
  explicit StandsAt(Index p) : position(p) {}
  Index offset(const Extent& /*extent*/, Index /*b*/) const { return position; }
};
struct WantsOneSequence : mha::Rule {
  void check(const mha::CallExtent& call) const {
    mha::detail::require(call.batch == 1, call.where, ": this rule is for one sequence, got ",
                         call.batch, " and ", call.num_heads);
  }
};

}  // namespace

TEST_CASE("Rules<> allows every key and changes no score", "[rules]") {
  const mha::All all;
  const Extent extent{1, 3, 5, 0};
  for (Index i = 0; i < 3; ++i) {
    CHECK(all.keys(extent, 0, 0, i).begin == 0);
    CHECK(all.keys(extent, 0, 0, i).end == 5);
    for (Index j = 0; j < 5; ++j) CHECK(all.allowed(extent, 0, 0, i, j));
  }
  CHECK(all.score(2.5, extent, 0, 0, 1, 1) == 2.5);
  CHECK_FALSE(all.sink<double>(0).has_value());
  CHECK(all.softcap<double>() == 0);
  CHECK(mha::All::only_ranges());
}

TEST_CASE("a key range is clipped to the keys that exist", "[rules]") {
  const auto rules = FirstKeys(9) & mha::All();
  const KeyRange some = rules.keys(Extent{1, 1, 5, 0}, 0, 0, 0);
  CHECK(some.begin == 0);
  CHECK(some.end == 5);
  const KeyRange none = (FirstKeys(-3) & mha::All()).keys(Extent{1, 1, 5, 0}, 0, 0, 0);
  CHECK(none.begin == none.end);
}

TEST_CASE("a rule of one's own decides like the library's", "[rules]") {
  // One query against 5 equal keys: equal weights over the allowed ones.
  const Matrix<float> q = Matrix<float>::Zero(1, 1);
  const Matrix<float> k = Matrix<float>::Zero(5, 1);
  const Matrix<float> v = matrix_of<float>({{1}, {2}, {3}, {4}, {5}});
  const auto mean = [&](const auto& rule) {
    return mha::scaled_dot_product_attention(q, k, v, rule)(0, 0);
  };
  CHECK(mean(EvenKeys()) == 3);                 // (1 + 3 + 5) / 3
  CHECK(mean(FirstKeys(2)) == 1.5F);            // (1 + 2) / 2
  CHECK(mean(HideOdd()) == 3);                  // (1 + 3 + 5) / 3
  CHECK(mean(EvenKeys() & FirstKeys(3)) == 2);  // (1 + 3) / 2
  CHECK(mean(FirstKeys(3) & HideOdd()) == 2);
  CHECK(mean(FirstKeys(0)) == 0);
}

TEST_CASE("all of the joined rules must allow a key, in any order of joining", "[rules]") {
  const Matrix<float> q = random_matrix<float>(6, 3, 1);
  const Matrix<float> k = random_matrix<float>(9, 3, 2);
  const Matrix<float> v = random_matrix<float>(9, 2, 3);
  const auto attend = [&](const auto& rule) {
    return mha::scaled_dot_product_attention(q, k, v, rule);
  };
  const EvenKeys even;
  const FirstKeys first(5);
  const auto causal = mha::causal();
  const auto expected = attend(even & first & causal);
  CHECK_THAT(attend(causal & first & even), HasBitsOf(expected));
  CHECK_THAT(attend(first & (causal & even)), HasBitsOf(expected));
  CHECK_THAT(attend((even & causal) & (first & even)), HasBitsOf(expected));
}

TEST_CASE("score modifiers apply in the order in which they are joined", "[rules][score]") {
  const Extent extent{1, 1, 1, 0};
  CHECK((Plus(1) & Times(3)).score(2.0, extent, 0, 0, 0, 0) == 9);  // (2 + 1) * 3
  CHECK((Times(3) & Plus(1)).score(2.0, extent, 0, 0, 0, 0) == 7);  // 2 * 3 + 1
  // (2 * 3 + 1) * 3 + 1
  CHECK(((Times(3) & Plus(1)) & (Times(3) & Plus(1))).score(2.0, extent, 0, 0, 0, 0) == 22);
}

TEST_CASE("the first rule that aligns the queries places them, else the cached keys do",
          "[rules]") {
  const Extent extent{1, 2, 8, 3};
  CHECK((mha::All() & EvenKeys()).placed(extent, 0, 0).offset == 3);
  CHECK((EvenKeys() & StandsAt(5)).placed(extent, 0, 0).offset == 5);
  CHECK((StandsAt(5) & StandsAt(6)).placed(extent, 0, 0).offset == 5);
  CHECK((mha::causal_lower_right() & EvenKeys()).placed(extent, 0, 0).offset == 6);  // 8 - 2
  CHECK((mha::causal() & EvenKeys()).placed(extent, 0, 0).offset == 3);
}

TEST_CASE("a rule may refuse a call before anything is computed, naming the function", "[rules]") {
  const Tensor<float> two({2, 3, 4, 5});
  CHECK_THROWS_WITH(mha::attention(two, two, two, mha::causal() & WantsOneSequence()),
                    "mha::attention: this rule is for one sequence, got 2 and 3");
  CHECK_THROWS_WITH(mha::attention_scores(two, two, WantsOneSequence()),
                    "mha::attention_scores: this rule is for one sequence, got 2 and 3");
  const Tensor<float> one({1, 3, 4, 5});
  CHECK_NOTHROW(mha::attention(one, one, one, WantsOneSequence()));
}

TEST_CASE("rules joined from variables leave the variables as they were", "[rules]") {
  const auto a = mha::lengths({2, 3});
  const auto b = mha::causal();
  const auto joined = a & b;
  const auto twice = joined & joined;  // NOLINT(misc-redundant-expression): a rule with itself
  const Extent extent{1, 4, 4, 0};
  CHECK(joined.keys(extent, 0, 0, 3).end == 2);
  CHECK(joined.keys(extent, 1, 0, 3).end == 3);
  CHECK(joined.keys(extent, 1, 0, 0).end == 1);
  CHECK(twice.keys(extent, 1, 0, 3).end == 3);
  CHECK(a.keys(extent, 1, 0, 0).end == 3);
}

TEMPLATE_TEST_CASE("the default scale is 1 / sqrt(head_dim)", "[rules][scale]", float, double,
                   long double) {
  const mha::All all;
  CHECK(all.scale<TestType>(1) == TestType(1));
  CHECK(all.scale<TestType>(16) == TestType(0.25));
  CHECK(all.scale<TestType>(64) == TestType(0.125));
  for (const Index head_dim : {2, 3, 5, 80, 96, 1000}) {
    const long double exact = 1 / std::sqrt(static_cast<long double>(head_dim));
    const long double error =
        std::abs(static_cast<long double>(all.scale<TestType>(head_dim)) - exact);
    CHECK(error <= exact * static_cast<long double>(mha::test::eps_of<TestType>()));
  }
  // In float it is the nearest number, as everybody's 1.0 / sqrt(d) computed in double is.
  CHECK(all.scale<float>(96) == static_cast<float>(1 / std::sqrt(96.0)));
}

TEST_CASE("without channels the default scale is a number all the same", "[rules][scale]") {
  CHECK(mha::All().scale<double>(0) == 1);
}
