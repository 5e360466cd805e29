// SPDX-License-Identifier: MIT
//
// What a row may not attend to never influences it, bit for bit: NaN and infinities are put into
// keys and values under every kind of mask. Three promises are checked at once:
//   - a row that sees none of the poisoned keys keeps every bit of output, weights and lse;
//   - values alone poisoned: lse and weights of every row keep their bits, outputs change only in
//   the
//     poisoned columns of the rows that see them;
//   - a row that sees poison is not finite there: masks do not hide what is allowed.
#include <mha/attention.hpp>

#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::scaled_dot_product_attention;
using mha::scaled_dot_product_attention_forward;
using mha::test::equal_bits;
using mha::test::infinity_of;
using mha::test::nan_of;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

constexpr mha::AttentionOptions kEverything{.need_weights = true, .need_lse = true};

struct Sizes {
  Index query_len;
  Index kv_len;
};
// One tile with few and with many keys, and across several tiles of queries and of keys.
constexpr Sizes kSmall{7, 9};
constexpr Sizes kOneTile{33, 70};
constexpr Sizes kTiles{131, 530};

template <class Scalar>
struct Inputs {
  Matrix<Scalar> query;
  Matrix<Scalar> key;
  Matrix<Scalar> value;

  explicit Inputs(const Sizes& sizes)
      : query(random_matrix<Scalar>(sizes.query_len, 5, 1, 2)),
        key(random_matrix<Scalar>(sizes.kv_len, 5, 2, 2)),
        value(random_matrix<Scalar>(sizes.kv_len, 4, 3)) {}

  template <class RuleType>
  auto attend(const RuleType& rule) const {
    return scaled_dot_product_attention_forward(query, key, value, rule, kEverything);
  }
};

template <class A, class B>
bool equal_row(const A& a, const B& b, Index i) {
  for (Index c = 0; c < a.cols(); ++c) {
    if (!equal_bits(a(i, c), b(i, c))) return false;
  }
  return true;
}

// Which rows see any of the keys, by the definition of the mask.
template <class Allowed>
std::vector<bool> rows_that_see(const std::vector<Index>& keys, Index query_len,
                                const Allowed& allowed) {
  std::vector<bool> result;
  for (Index i = 0; i < query_len; ++i) {
    result.push_back(std::any_of(keys.begin(), keys.end(), [&](Index j) { return allowed(i, j); }));
  }
  return result;
}

// A row number, or -1: Catch2 then shows which row broke the promise.
using Row = Index;

// Poisons keys and values: the first row that sees none of them and changed, or sees one and is
// finite.
template <class Scalar, class Rule, class Allowed>
Row broken_by_keys(const Inputs<Scalar>& clean, const mha::HeadResult<Scalar>& before,
                   const std::vector<Index>& keys, const Scalar& poison, const Rule& rule,
                   const Allowed& allowed) {
  Inputs<Scalar> poisoned = clean;
  for (const Index j : keys) {
    poisoned.key.row(j).setConstant(poison);
    poisoned.value.row(j).setConstant(poison);
  }
  const auto after = poisoned.attend(rule);
  const std::vector<bool> sees = rows_that_see(keys, clean.query.rows(), allowed);
  for (Index i = 0; i < clean.query.rows(); ++i) {
    if (sees[static_cast<std::size_t>(i)]) {
      for (Index c = 0; c < clean.value.cols(); ++c) {
        if (mha::detail::is_finite(after.output(i, c))) return i;
      }
    } else if (!equal_row(after.output, before.output, i) ||
               !equal_row(after.weights, before.weights, i) ||
               !equal_bits(after.lse(i), before.lse(i))) {
      return i;
    }
  }
  return -1;
}

// Poisons column 1 of the values: the first row where anything but column 1 changed, or where
// column 1 changed though the row sees none of the keys, or is finite though it sees one.
template <class Scalar, class Rule, class Allowed>
Row broken_by_values(const Inputs<Scalar>& clean, const mha::HeadResult<Scalar>& before,
                     const std::vector<Index>& keys, const Scalar& poison, const Rule& rule,
                     const Allowed& allowed) {
  Inputs<Scalar> poisoned = clean;
  for (const Index j : keys) poisoned.value(j, 1) = poison;
  const auto after = poisoned.attend(rule);
  const std::vector<bool> sees = rows_that_see(keys, clean.query.rows(), allowed);
  for (Index i = 0; i < clean.query.rows(); ++i) {
    if (!equal_row(after.weights, before.weights, i)) return i;
    if (!equal_bits(after.lse(i), before.lse(i))) return i;
    for (Index c = 0; c < clean.value.cols(); ++c) {
      const bool reached = c == 1 && sees[static_cast<std::size_t>(i)];
      const bool kept = equal_bits(after.output(i, c), before.output(i, c));
      if (reached ? mha::detail::is_finite(after.output(i, c)) : !kept) return i;
    }
  }
  return -1;
}

// All of it for one rule: `allowed(i, j)` is its definition once more.
template <class Scalar, class Rule, class Allowed>
void check_poison(const Sizes& sizes, const Rule& rule, const Allowed& allowed) {
  const Inputs<Scalar> clean(sizes);
  const auto before = clean.attend(rule);
  const Index last = sizes.kv_len - 1;
  std::vector<Index> scattered;
  std::vector<Index> unseen;  // by any row
  for (Index j = 0; j <= last; ++j) {
    if (j % 5 == 3) scattered.push_back(j);
    bool seen = false;
    for (Index i = 0; i < sizes.query_len && !seen; ++i) seen = allowed(i, j);
    if (!seen) unseen.push_back(j);
  }
  const auto poisoned_values = [&](const std::vector<Index>& keys, const Scalar& poison) {
    CAPTURE(sizes.query_len, sizes.kv_len, keys.size(), mha::detail::convert<double>(poison));
    // Where a weight underflows to 0, its product with an infinite value is NaN: not finite either.
    CHECK(broken_by_values(clean, before, keys, poison, rule, allowed) == -1);
  };
  const auto poisoned_keys = [&](const std::vector<Index>& keys, const Scalar& poison) {
    CAPTURE(sizes.query_len, sizes.kv_len, keys.size(), mha::detail::convert<double>(poison));
    CHECK(broken_by_keys(clean, before, keys, poison, rule, allowed) == -1);
  };
  for (const auto& keys : {std::vector<Index>{last}, {0}, {last / 2}, scattered}) {
    // NaN alone: an infinite key may give scores of -inf, which weigh 0 and leave no trace.
    poisoned_keys(keys, nan_of<Scalar>());
    poisoned_values(keys, nan_of<Scalar>());
  }
  const auto infinity = infinity_of<Scalar>();
  for (const Scalar& poison : {nan_of<Scalar>(), infinity, Scalar(-infinity)}) {
    poisoned_keys(unseen, poison);
    poisoned_values(unseen, poison);
    poisoned_values(scattered, poison);
  }
}

bool causal(Index i, Index j) { return j <= i; }

}  // namespace

TEMPLATE_TEST_CASE("NaN and infinity behind a causal mask change nothing",
                   "[poison][causal][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    check_poison<TestType>(sizes, mha::causal(), causal);
    const Index offset = sizes.kv_len - sizes.query_len;
    check_poison<TestType>(sizes, mha::causal_lower_right(),
                           [&](Index i, Index j) { return j <= i + offset; });
    check_poison<TestType>(sizes, mha::causal_offset(-3),
                           [&](Index i, Index j) { return j <= i - 3; });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity outside of a window change nothing",
                   "[poison][window][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    check_poison<TestType>(sizes, mha::window(2, 1),
                           [](Index i, Index j) { return j >= i - 2 && j <= i + 1; });
    check_poison<TestType>(sizes, mha::window(0, 0), [](Index i, Index j) { return j == i; });
    const Index offset = sizes.kv_len - sizes.query_len;
    check_poison<TestType>(
        sizes, mha::causal_lower_right() & mha::window(sizes.kv_len / 3, 0),
        [&](Index i, Index j) { return j <= i + offset && j >= i + offset - sizes.kv_len / 3; });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity in padding change nothing", "[poison][lengths][regression]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    for (const Index length : {Index{0}, Index{1}, sizes.kv_len / 2, sizes.kv_len - 1}) {
      check_poison<TestType>(sizes, mha::lengths(length),
                             [&](Index, Index j) { return j < length; });
    }
    check_poison<TestType>(sizes, mha::lengths(sizes.kv_len - 2) & mha::causal(),
                           [&](Index i, Index j) { return j < sizes.kv_len - 2 && j <= i; });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity behind a boolean mask change nothing",
                   "[poison][keep][ignore][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    const Matrix<bool> mask = random_booleans(sizes.query_len, sizes.kv_len, 7, 0.4);
    const Matrix<bool> padding = random_booleans(1, sizes.kv_len, 8, 0.4);
    check_poison<TestType>(sizes, mha::keep(mask), [&](Index i, Index j) { return mask(i, j); });
    check_poison<TestType>(sizes, mha::ignore(padding) & mha::causal(),
                           [&](Index i, Index j) { return !padding(0, j) && j <= i; });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity behind a bias of -inf change nothing",
                   "[poison][bias][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    const Matrix<bool> mask = random_booleans(sizes.query_len, sizes.kv_len, 9, 0.4);
    Matrix<TestType> bias = random_matrix<TestType>(sizes.query_len, sizes.kv_len, 10);
    for (Index i = 0; i < sizes.query_len; ++i) {
      for (Index j = 0; j < sizes.kv_len; ++j) {
        if (!mask(i, j)) bias(i, j) = mha::test::minus_infinity_of<TestType>();
      }
    }
    check_poison<TestType>(sizes, mha::bias(bias) & mha::softcap(3),
                           [&](Index i, Index j) { return mask(i, j); });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity behind a mask_mod change nothing",
                   "[poison][mask_mod][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    const auto rule = [](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; };
    check_poison<TestType>(sizes, mha::mask_mod(rule) & mha::sinks(0.5F),
                           [&](Index i, Index j) { return rule(0, 0, i, j); });
  }
}

TEMPLATE_TEST_CASE("NaN and infinity where score_mod returns -inf change nothing",
                   "[poison][score_mod][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    if (std::is_same_v<TestType, long double> && sizes.kv_len > 100) continue;
    const auto allowed = [](Index i, Index j) { return (2 * i + j) % 4 < 2; };
    const auto rule = mha::score_mod([&](auto s, auto, auto, Index i, Index j) {
      return allowed(i, j) ? s : mha::test::minus_infinity_of<decltype(s)>();
    });
    check_poison<TestType>(sizes, rule, allowed);
  }
}

TEMPLATE_TEST_CASE("NaN and infinity behind all kinds of masks at once change nothing",
                   "[poison][regression]", float, double, Eigen::bfloat16) {
  for (const Sizes& sizes : {kSmall, kOneTile, kTiles}) {
    const Matrix<bool> mask = random_booleans(sizes.query_len, sizes.kv_len, 11, 0.8);
    const Index length = sizes.kv_len - sizes.kv_len / 8;
    const auto striped = [](Index, Index, Index i, Index j) { return (i + j) % 7 != 0; };
    check_poison<TestType>(sizes,
                           mha::causal_offset(3) & mha::window(sizes.kv_len / 2, -1) &
                               mha::lengths(length) & mha::keep(mask) & mha::mask_mod(striped) &
                               mha::alibi(0.1F) & mha::softcap(4),
                           [&](Index i, Index j) {
                             return j <= i + 3 && j >= i + 3 - sizes.kv_len / 2 && j < length &&
                                    mask(i, j) && striped(0, 0, i, j);
                           });
  }
}

TEMPLATE_TEST_CASE(
    "NaN and infinity in masked keys and values change nothing, whatever their strides",
    "[poison][strides]", float, double, Eigen::half) {
  using ColMajor = Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
  const Inputs<TestType> x(kOneTile);
  const auto rule = mha::causal();
  const auto attend = [&](const auto& key, const auto& value) {
    return scaled_dot_product_attention(x.query, key, value, rule);
  };
  const auto before = attend(x.key, x.value);
  const Index seen = kOneTile.query_len;  // keys from here on are seen by no row
  ColMajor key = x.key;
  ColMajor value = x.value;
  for (const TestType poison : {nan_of<TestType>(), infinity_of<TestType>()}) {
    key.bottomRows(kOneTile.kv_len - seen).setConstant(poison);
    value.bottomRows(kOneTile.kv_len - seen).setConstant(poison);
    CHECK_THAT(attend(key, value), mha::test::HasBitsOf(before));
    // One entry of a value that the last row alone may see.
    ColMajor touched = value;
    touched(seen - 1, 2) = poison;
    const auto after = attend(key, touched);
    CHECK_FALSE(mha::detail::is_finite(after(seen - 1, 2)));
    for (Index i = 0; i + 1 < seen; ++i) REQUIRE(equal_row(after, before, i));
  }
}

TEMPLATE_TEST_CASE("a NaN query disturbs no other row", "[poison]", float, double, Eigen::half) {
  Inputs<TestType> x(kTiles);
  const auto before = x.attend(mha::causal());
  x.query.row(77).setConstant(nan_of<TestType>());
  const auto after = x.attend(mha::causal());
  for (Index i = 0; i < kTiles.query_len; ++i) {
    REQUIRE(equal_row(after.output, before.output, i) == (i != 77));
    REQUIRE(equal_row(after.weights, before.weights, i) == (i != 77));
  }
}

TEMPLATE_TEST_CASE("a row whose keys are all masked is 0 though everything it does not see is NaN",
                   "[poison][regression]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  const auto q = random_matrix<TestType>(3, 2, 1);
  const auto poison = Matrix<TestType>::Constant(600, 2, nan_of<TestType>()).eval();
  const auto check = [&](const auto& rule) {
    const auto result = scaled_dot_product_attention_forward(q, poison, poison, rule, kEverything);
    for (Index i = 0; i < 3; ++i) {
      CHECK(equal_bits(result.output(i, 0), TestType(0)));
      CHECK(equal_bits(result.weights(i, 599), mha::accumulator_t<TestType>(0)));
      CHECK(mha::detail::is_minus_infinity(result.lse(i)));
    }
  };
  check(mha::lengths(0));
  check(mha::keep(Matrix<bool>::Constant(3, 600, false)));
}
