// SPDX-License-Identifier: MIT
//
// Wrong arguments of the rules' factories, each in every way that its type allows; and positions at
// the ends of their type, against exact arithmetic.
#include <mha/mha.hpp>

#include <functional>
#include <random>

#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::Vector;
using mha::test::ContainsSubstring;
using mha::test::infinity_of;
using mha::test::nan_of;

namespace {

struct Mistake {
  std::string message;
  std::function<void()> make;
};

void check_all(const std::vector<Mistake>& mistakes) {
  for (const Mistake& mistake : mistakes) {
    CAPTURE(mistake.message);
    CHECK_THROWS_AS(mistake.make(), std::invalid_argument);
    CHECK_THROWS_WITH(mistake.make(), ContainsSubstring(mistake.message));
  }
}

constexpr Index kLeast = std::numeric_limits<Index>::min();
constexpr Index kMost = std::numeric_limits<Index>::max();

// A call of 2 sequences, 2 heads, 3 queries and 4 keys, which must leave its output alone.
template <class RuleType>
std::function<void()> call(const RuleType& rule) {
  return [rule] {
    const Tensor<float> q({2, 2, 3, 2});
    const Tensor<float> k({2, 2, 4, 2});
    Tensor<float> output({2, 2, 3, 2});
    output(0, 0, 0, 0) = 7;
    try {
      mha::attention_into(output, q, k, k, rule);
    } catch (...) {
      CHECK(output(0, 0, 0, 0) == 7);
      throw;
    }
  };
}

}  // namespace

TEST_CASE("factories of numbers refuse NaN, infinity and what is out of range", "[rules][errors]") {
  check_all({
      {"mha::scale: the factor must be finite, got nan", [] { (void)mha::scale(nan_of<float>()); }},
      {"mha::scale: the factor must be finite, got inf",
       [] { (void)mha::scale(infinity_of<double>()); }},
      {"mha::scale: the factor must be finite, got -inf",
       [] { (void)mha::scale(-infinity_of<double>()); }},
      {"mha::scale: the factor must be finite, got nan",
       [] { (void)mha::scale(nan_of<Eigen::half>()); }},
      {"mha::scale: the factor must be finite", [] { (void)mha::scale(nan_of<long double>()); }},
      {"mha::scale: the factor must be finite",
       [] { (void)mha::scale(mha::Dual<double>(nan_of<double>())); }},
      {"mha::attention_into: scale must be finite in the accumulator's type, got 1e+300",
       call(mha::scale(1e300))},
      {"mha::softcap: the cap must be 0 or more, got -1", [] { (void)mha::softcap(-1); }},
      {"mha::softcap: the cap must be 0 or more, got -0.5", [] { (void)mha::softcap(-0.5F); }},
      {"mha::softcap: the cap must be 0 or more, got nan",
       [] { (void)mha::softcap(nan_of<float>()); }},
      {"mha::softcap: the cap must be 0 or more, got nan",
       [] { (void)mha::softcap(nan_of<Eigen::bfloat16>()); }},
      {"mha::softcap: the cap must be 0 or more, got -inf",
       [] { (void)mha::softcap(-infinity_of<double>()); }},
      {"mha::softcap: the cap must be 0 or more",
       [] { (void)mha::softcap(mha::Dual<float>(nan_of<float>())); }},
      {"mha::dropout: the probability must lie between 0 and 1, got nan",
       [] { (void)mha::dropout(nan_of<double>(), 1); }},
      {"mha::dropout: the probability must lie between 0 and 1, got -0.1",
       [] { (void)mha::dropout(-0.1, 1); }},
      {"mha::dropout: the probability must lie between 0 and 1, got 1.5",
       [] { (void)mha::Dropout(1.5, 1); }},
      {"mha::dropout: the probability must lie between 0 and 1, got inf",
       [] { (void)mha::dropout(infinity_of<double>(), 1); }},
      {"mha::window: left and right must be -1 (unbounded) or more, got -2 and 0",
       [] { (void)mha::window(-2, 0); }},
      {"got 0 and -9223372036854775808", [] { (void)mha::window(0, kLeast); }},
      {"mha::window_keys: w must be at least 1, got 0", [] { (void)mha::window_keys(0); }},
      {"mha::window_keys: w must be at least 1, got -9223372036854775808",
       [] { (void)mha::window_keys(kLeast); }},
      {"mha::alibi_slope: h must lie between 0 and num_heads - 1, got -1 and 4",
       [] { (void)mha::alibi_slope(-1, 4); }},
      {"mha::alibi_slope: h must lie between 0 and num_heads - 1, got 4 and 4",
       [] { (void)mha::alibi_slope(4, 4); }},
      {"got 0 and 0", [] { (void)mha::alibi_slope(0, 0); }},
      {"got 0 and -3", [] { (void)mha::alibi_slope(0, -3); }},
      {"mha::alibi_slopes: num_heads must lie between 0 and 1073741824, got -1",
       [] { (void)mha::alibi_slopes(-1); }},
  });
  CHECK_NOTHROW(call(mha::scale(2) & mha::softcap(30))());
  CHECK_NOTHROW(call(mha::scale(-3.0) & mha::softcap(infinity_of<float>()))());
  CHECK_NOTHROW(call(mha::softcap(1e300) & mha::dropout(0, 1))());
}

TEST_CASE("lists of numbers of the wrong count or range are refused", "[rules][errors]") {
  const std::vector<Index> none;
  const auto counts = [](const std::string& rule, Index got) {
    return "mha::attention_into: " + rule + " must have one entry, or one per sequence, got " +
           std::to_string(got) + " for a batch of 2";
  };
  check_all({
      {counts("causal_offset", 0), call(mha::causal_offset({}))},
      {counts("causal_offset", 0), call(mha::causal_offset(none))},
      {counts("causal_offset", 3), call(mha::causal_offset({1, 2, 3}))},
      {counts("query_offset", 0), call(mha::query_offset(none))},
      {counts("query_offset", 3), call(mha::query_offset({1, 2, 3}))},
      {counts("lengths", 0), call(mha::lengths(none))},
      {"mha::IndexList: the data of a list must not be null, got 4 numbers",
       [] { (void)mha::lengths(Eigen::Map<const Eigen::VectorXi>(nullptr, 4)); }},
      {"mha::documents: ids must not be null, got 1 x 4",
       [] { (void)mha::documents(Eigen::Map<const Eigen::MatrixXi>(nullptr, 1, 4)); }},
      {"mha::alibi_slopes: num_heads must lie between 0 and 1073741824, got 4611686018427387904",
       [] { (void)mha::alibi_slopes(Index{1} << 62); }},
      {"mha::alibi_slopes: num_heads must lie between 0 and 1073741824, got -1",
       [] { (void)mha::alibi_slopes(-1); }},
      {"mha::attention_into: documents(ids) must be 2 x 4 (batch x kv_len), or have one row for "
       "all, "
       "got 1 x 0",
       call(mha::documents(none))},
      {"got 1 x 5", call(mha::documents({1, 2, 3, 4, 5}))},
      {"got 3 x 4", call(mha::documents(Eigen::MatrixXi::Ones(3, 4)))},
      {"got 2 x 3", call(mha::documents(Eigen::MatrixXi::Ones(2, 3)))},
      {"mha::IndexList: ",
       [] { (void)mha::documents(std::vector<std::uint64_t>{~std::uint64_t{0}}); }},
      {"mha::documents: ids must be at most 9223372036854775807, got 18446744073709551615",
       [] { (void)mha::documents(Eigen::Matrix<std::uint64_t, 1, 1>(~std::uint64_t{0})); }},
      {counts("lengths", 3), call(mha::lengths({1, 2, 3}))},
      {"mha::lengths: lengths must not be negative, got -2 for sequence 1",
       [] {
         (void)mha::lengths({3, -2});
       }},
      {"mha::lengths: lengths must not be negative", [] { (void)mha::lengths(kLeast); }},
      {"mha::attention_into: lengths must lie between 0 and kv_len, got 5 and 4",
       call(mha::lengths({4, 5}))},
      {"mha::IndexList: numbers must be at most 9223372036854775807, got 18446744073709551615",
       [] { (void)mha::lengths(~std::uint64_t{0}); }},
      {"mha::IndexList: numbers must be at most 9223372036854775807, got 9223372036854775808",
       [] {
         (void)mha::causal_offset(std::vector<std::uint64_t>{1, std::uint64_t{1} << 63});
       }},
      {"mha::IndexList: ", [] { (void)mha::IndexList({std::uint64_t{1} << 63}); }},
  });
  static_assert(!std::is_constructible_v<mha::IndexList, bool>);
  static_assert(!std::is_constructible_v<mha::IndexList, std::vector<bool>>);
  static_assert(!std::is_constructible_v<mha::IndexList, std::string>);
}

TEST_CASE("matrices and tensors of rules without memory or of wrong sizes are refused",
          "[rules][errors]") {
  const TensorView<const float> null_bias(nullptr, {1, 1, 3, 4});
  const TensorView<const bool> null_mask(nullptr, {1, 1, 3, 4});
  const float number = 0;
  const bool yes = true;
  TensorView<const float> negative_bias(&number, {1, 1, 3, 4});
  negative_bias.sizes[3] = -4;
  TensorView<const bool> negative_mask(&yes, {1, 1, 3, 4});
  negative_mask.sizes[1] = -1;
  const Eigen::Map<const Matrix<float>> null_map(nullptr, 3, 4);
  static const Matrix<float> bias = Matrix<float>::Zero(3, 5);
  static const Matrix<bool> mask = Matrix<bool>::Constant(4, 4, true);
  check_all({
      {"mha::bias: data must not be null, got [1, 1, 3, 4]", [&] { (void)mha::bias(null_bias); }},
      {"mha::bias: data must not be null, got [1, 1, 3, 4]", [&] { (void)mha::bias(null_map); }},
      {"mha::keep: data must not be null, got [1, 1, 3, 4]", [&] { (void)mha::keep(null_mask); }},
      {"mha::ignore: data must not be null, got [1, 1, 3, 4]",
       [&] { (void)mha::ignore(null_mask); }},
      {"mha::bias: sizes must not be negative, got [1, 1, 3, -4]",
       [&] { (void)mha::bias(negative_bias); }},
      {"mha::key_padding: data must not be null, got [1, 1, 3, 4]",
       [&] { (void)mha::key_padding(null_mask); }},
      {"mha::key_padding: sizes must not be negative, got [1, -1, 3, 4]",
       [&] { (void)mha::key_padding(negative_mask); }},
      {"mha::key_padding: a tensor must be [batch, 1, 1, key], got [1, 1, 3, 4]",
       [&] {
         (void)mha::key_padding(TensorView<const bool>(&mask(0, 0), {1, 1, 3, 4}));
       }},
      {"mha::attention_into: key_padding(m) must be 2 x 4 (batch x kv_len), or have one row for "
       "all, "
       "got 4 x 4",
       call(mha::key_padding(mask))},
      {"got 2 x 3", call(mha::key_padding(mask.topLeftCorner(2, 3)))},
      {"got 0 x 4", call(mha::key_padding(mask.topRows(0)))},
      {"mha::blocks: data must not be null, got [1, 1, 3, 4]",
       [&] { (void)mha::blocks(null_mask, 1, 1); }},
      {"mha::blocks: sizes must not be negative, got [1, -1, 3, 4]",
       [&] { (void)mha::blocks(negative_mask, 1, 1); }},
      {"mha::blocks: block_queries and block_keys must be at least 1, got 0 and 2",
       [&] { (void)mha::blocks(mask, 0, 2); }},
      {"got 1 and -9223372036854775808", [&] { (void)mha::blocks(mask, 1, kLeast); }},
      {"mha::attention_into: blocks(m) must have 1 or 3 entries along query blocks, for 3 queries "
       "and "
       "4 keys in blocks of 1 x 1, got 4",
       call(mha::blocks(mask, 1, 1))},
      {"mha::attention_into: blocks(m) must have 1 or 2 entries along key blocks, for 3 queries "
       "and "
       "4 keys in blocks of 1 x 2, got 4",
       call(mha::blocks(mask.topRows(3), 1, 2))},
      {"mha::attention_into: blocks(m) must have 1 or 1 entries along query blocks, for 3 queries "
       "and "
       "4 keys in blocks of 9223372036854775807 x 1, got 4",
       call(mha::blocks(mask, kMost, 1))},
      {"mha::attention_into: keep(mask) must have 1 or 3 entries along query_len, got 4",
       call(mha::causal() | (mha::lengths(2) & mha::keep(mask)))},
      {"mha::attention_into: key_padding(m) must be 2 x 4 (batch x kv_len), or have one row for "
       "all, "
       "got 4 x 4",
       call(mha::key_padding(mask) | mha::causal())},
      {"mha::keep: sizes must not be negative, got [1, -1, 3, 4]",
       [&] { (void)mha::keep(negative_mask); }},
      {"mha::ignore: sizes must not be negative, got [1, -1, 3, 4]",
       [&] { (void)mha::ignore(negative_mask); }},
      {"mha::attention_into: bias(m) must have 1 or 4 entries along kv_len, got 5",
       call(mha::bias(bias))},
      {"mha::attention_into: keep(mask) must have 1 or 3 entries along query_len, got 4",
       call(mha::keep(mask))},
      {"mha::attention_into: ignore(mask) must have 1 or 3 entries along query_len, got 4",
       call(mha::ignore(mask))},
      {"mha::attention_into: keep(mask) must have 1 or 3 entries along query_len, got 0",
       call(mha::keep(mask.topRows(0)))},
  });
}

TEST_CASE("numbers per head, learned ones and their gradients are refused by name and number",
          "[rules][errors]") {
  const Matrix<float> bias = Matrix<float>::Zero(3, 4);
  const Eigen::Vector2f two(1, 2);
  const Eigen::VectorXf none(0);
  Matrix<float> other = Matrix<float>::Zero(4, 3);
  Matrix<float> row = Matrix<float>::Zero(1, 4);
  Vector<float> three = Vector<float>::Zero(3);
  Vector<float> empty(0);
  Tensor<float> heads({1, 2, 3, 4});
  TensorView<float> null_view(nullptr, {1, 1, 3, 4});
  Eigen::Map<Vector<float>> null_map(nullptr, 2);
  check_all({
      {"mha::bias: the gradient must have the bias's shape [1, 1, 3, 4], got [1, 1, 4, 3]",
       [&] { (void)mha::bias(bias, other); }},
      {"mha::bias: the gradient must have the bias's shape [1, 1, 3, 4], got [1, 1, 1, 4]",
       [&] { (void)mha::bias(bias, row); }},
      {"mha::bias: the gradient must have the bias's shape [1, 1, 3, 4], got [1, 2, 3, 4]",
       [&] { (void)mha::bias(bias, heads); }},
      {"mha::bias: the gradient: data must not be null, got [1, 1, 3, 4]",
       [&] { (void)mha::bias(bias, null_view); }},
      {"mha::alibi: there must be at least one slope, got 0", [&] { (void)mha::alibi(none); }},
      {"mha::alibi: there must be at least one slope, got 0", [&] { (void)mha::alibi(null_map); }},
      {"mha::alibi: there must be at least one slope, got 0",
       [&] { (void)mha::alibi(null_map, three); }},
      {"mha::sinks: there must be at least one logit, got 0", [&] { (void)mha::sinks(null_map); }},
      {"mha::sinks: there must be at least one logit, got 0",
       [&] { (void)mha::sinks(null_map, three); }},
      {"mha::alibi: there must be at least one slope, got 0",
       [&] { (void)mha::alibi(none, empty); }},
      {"mha::alibi: the gradient must have 2 entries, got 3",
       [&] { (void)mha::alibi(two, three); }},
      {"mha::alibi: the gradient must have 2 entries, got 0",
       [&] { (void)mha::alibi(two, null_map); }},
      {"mha::attention_into: alibi must have one slope, or one per query head, got 3 for num_heads "
       "2",
       call(mha::alibi(Eigen::Vector3f(1, 2, 3)))},
      {"mha::sinks: there must be at least one logit, got 0", [&] { (void)mha::sinks(none); }},
      {"mha::sinks: there must be at least one logit, got 0",
       [&] { (void)mha::sinks(none, empty); }},
      {"mha::sinks: the gradient must have 2 entries, got 3",
       [&] { (void)mha::sinks(two, three); }},
      {"mha::sinks: the gradient must have 2 entries, got 0",
       [&] { (void)mha::sinks(two, null_map); }},
      {"mha::attention_into: sinks must have one logit, or one per query head, got 3 for num_heads "
       "2",
       call(mha::sinks(Eigen::Vector3f(1, 2, 3)))},
  });
}

TEST_CASE("an empty function is no rule", "[rules][errors]") {
  using Mask = bool(Index, Index, Index, Index);
  using Score = float(float, Index, Index, Index, Index);
  const auto score = [](float s, Index, Index, Index, Index) { return s; };
  check_all({
      {"mha::mask_mod: the function must not be empty",
       [] { (void)mha::mask_mod(std::function<Mask>()); }},
      {"mha::mask_mod: the function must not be empty",
       [] { (void)mha::mask_mod(static_cast<Mask*>(nullptr)); }},
      {"mha::score_mod: the function must not be empty",
       [] { (void)mha::score_mod(std::function<Score>()); }},
      {"mha::score_mod: the derivative must not be empty",
       [&] { (void)mha::score_mod(score, std::function<Score>()); }},
  });
}

// ---- positions at the ends of their type

namespace {

__extension__ using Exact = __int128;

Index extreme(std::mt19937_64& random) {
  const Index near = static_cast<Index>(random() % 41) - 20;
  switch (random() % 7) {
    case 0:
      return near;
    case 1:
      return kMost - static_cast<Index>(random() % 20);
    case 2:
      return kLeast + static_cast<Index>(random() % 20);
    case 3:
      return (Index{1} << (random() % 62)) + near;
    case 4:
      return -(Index{1} << (random() % 62)) + near;
    case 5:
      return (Index{1} << 60) + near;
    default:
      return static_cast<Index>(random());
  }
}

}  // namespace

TEST_CASE("causal rules and windows are exact for every offset", "[rules][mask][regression]") {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20000; ++round) {
    const Index kv_len = static_cast<Index>(random() % 12);
    const Index query_len = static_cast<Index>(1 + random() % 12);
    const Index offset = extreme(random);
    const Index other = extreme(random);
    const Index left = std::max<Index>(extreme(random), -1);
    const Index right = std::max<Index>(extreme(random), -1);
    const bool is_causal = random() % 2 == 0;
    CAPTURE(kv_len, query_len, offset, other, left, right, is_causal);
    const mha::Extent extent{1, query_len, kv_len, 0};
    const auto check = [&](const auto& rules, const auto& allowed) {
      const mha::Extent placed = rules.placed(extent, 0, 0);
      for (Index i = 0; i < query_len; ++i) {
        const mha::KeyRange range = rules.keys(placed, 0, 0, i);
        CHECK(range.begin >= 0);
        CHECK(range.end <= kv_len);
        for (Index j = 0; j < kv_len; ++j) {
          CHECK((j >= range.begin && j < range.end) == allowed(Exact{i}, Exact{j}));
        }
      }
    };
    const auto in_window = [&](Exact p, Exact j) {
      return (left < 0 || j >= p - left) && (right < 0 || j <= p + right);
    };
    if (is_causal) {  // of two, the tightest
      check(mha::causal_offset(offset) & mha::window(left, right) & mha::causal_offset(other),
            [&](Exact i, Exact j) {
              const Exact p = i + std::min(offset, other);
              return j <= p && in_window(p, j);
            });
    } else {
      check(mha::window(left, right) & mha::query_offset(offset),
            [&](Exact i, Exact j) { return in_window(i + offset, j); });
    }
  }
}

TEST_CASE("a window of any width reaches back as far as it says", "[rules][mask][regression]") {
  const Matrix<float> x = Matrix<float>::Ones(5, 2);
  const auto weights = [&](const auto& rule) {
    return mha::scaled_dot_product_attention_forward(x, x, x, rule, {.need_weights = true}).weights;
  };
  const auto equal = Matrix<float>::Constant(5, 5, 0.2F);
  CHECK(weights(mha::window(kMost, 0) & mha::query_offset(Index{1} << 61)).isApprox(equal));
  CHECK(weights(mha::window(0, kMost) & mha::query_offset(-(Index{1} << 61))).isApprox(equal));
  CHECK(weights(mha::causal_offset(kMost)).isApprox(equal));
  CHECK(weights(mha::causal_offset(kLeast)).isZero(0));
}

// ---- scores at the ends of their type

TEST_CASE("biases saturate in long double too, and leave other numbers alone",
          "[rules][bias][regression]") {
  using Long = long double;
  constexpr Long kHuge = std::numeric_limits<Long>::max();
  const Matrix<Long> huge = Matrix<Long>::Constant(1, 1, -kHuge / 4 * 3);
  const auto rule = mha::bias(huge) & mha::bias(huge);
  CHECK(rule.score(Long(0), {}, 0, 0, 0, 0) == -kHuge);
  CHECK(rule.score(kHuge, {}, 0, 0, 0, 0) == Long(kHuge + huge(0, 0)) + huge(0, 0));
  const Matrix<double> one = Matrix<double>::Ones(1, 1);
  const mha::Dual<double> sum =
      (mha::bias(one) & mha::alibi(2.0)).score(mha::Dual<double>(3, 5), {1, 1, 1}, 0, 0, 0, 0);
  CHECK(sum == mha::Dual<double>(4));
  CHECK(sum.slope == 5);
}

// ---- slopes of alibi

TEST_CASE("alibi's slopes have the precision of their type", "[rules][alibi][regression]") {
  using Long = long double;
  for (const Index heads : {1, 3, 8, 12, 24, 40}) {
    CAPTURE(heads);
    const Vector<Long> slopes = mha::alibi_slopes<Long>(heads);
    const Vector<mha::Dual<Long>> rooted = mha::alibi_slopes<mha::Dual<Long>>(heads);
    for (Index h = 0; h < heads; ++h) {
      Index n = 1;
      while (2 * n <= heads) n *= 2;
      const Index eighths = h < n ? 2 * (h + 1) : 2 * (h - n) + 1;
      const Long exact = std::exp2(-4 * static_cast<Long>(eighths) / static_cast<Long>(n));
      CHECK(slopes(h) == exact);
      CHECK(std::abs(rooted(h).real - exact) <= 4 * mha::test::eps_of<Long>() * exact);
      CHECK(mha::alibi_slope(h, heads) ==
            std::exp2(-4.0 * static_cast<double>(eighths) / static_cast<double>(n)));
      const auto rules = mha::All() & mha::alibi();
      const mha::Extent extent = rules.placed({heads, 2, 9, 0}, 0, h);
      CHECK(rules.score(Long(0), extent, 0, h, 0, 0) == -7 * exact);
    }
  }
}

TEST_CASE("alibi_slope answers for any number of heads", "[rules][alibi][regression]") {
  CHECK(mha::alibi_slope(0, (Index{1} << 62) + 1) == std::exp2(-0x1p-59));
  CHECK(mha::alibi_slope((Index{1} << 62) - 1, kMost) == 1.0 / 256);
  CHECK(mha::alibi_slope(kMost - 1, kMost) == 1.0 / 256);  // rounded
}

TEST_CASE("rules that place the queries differently are refused", "[rules][mask][regression]") {
  check_all({
      {"mha::attention_into: query_offset and other rules must place the queries alike, got offset "
       "5 "
       "and offset 1 for sequence 0",
       call(mha::query_offset(5) & mha::causal_offset(1))},
      {"got offset 5 and offset 3 for sequence 1",
       call(mha::query_offset(5) & mha::query_offset({5, 3}))},
      {"got offset 5 and offset 1 for sequence 0",
       call((mha::query_offset(5) & mha::window(1, 1)) | mha::causal_offset(1))},
      {"got offset 5 and offset 1 for sequence 0",
       call((mha::causal_offset(1) | mha::lengths(1)) & mha::query_offset(5))},
      {"got offset 2 and offset 1 for sequence 0",
       call(mha::causal_lower_right() & mha::query_offset(2))},
  });
  CHECK_NOTHROW(call(mha::query_offset(5) & mha::causal() & mha::causal_offset(5))());
  CHECK_NOTHROW(call(mha::query_offset(1) & mha::causal_lower_right())());
  CHECK_NOTHROW(call(mha::causal_offset(5) & mha::causal_lower_right() & mha::causal())());
}

TEST_CASE("memory of rules that no address reaches, or that is read and written, is refused",
          "[rules][errors][regression]") {
  std::vector<float> numbers(16, 0);
  std::vector<char> answers(16, 1);
  TensorView<const float> bias(numbers.data(), {1, 1, 3, 4});
  TensorView<const bool> mask(reinterpret_cast<const bool*>(answers.data()), {1, 1, 3, 4});
  bias.strides[2] = mask.strides[2] = Index{1} << 61;
  Matrix<float> own = Matrix<float>::Zero(3, 4);
  check_all({
      {"mha::bias: no element may lie farther", [&] { (void)mha::bias(bias); }},
      {"mha::keep: no element may lie farther", [&] { (void)mha::keep(mask); }},
      {"mha::ignore: no element may lie farther", [&] { (void)mha::ignore(mask); }},
      {"mha::key_padding: no element may lie farther", [&] { (void)mha::key_padding(mask); }},
      {"mha::blocks: no element may lie farther", [&] { (void)mha::blocks(mask, 1, 1); }},
      {"mha::bias: the gradient must not overlap the bias", [&] { (void)mha::bias(own, own); }},
  });
}

TEST_CASE("a function object made from a pointer is a function", "[rules][score_mod][regression]") {
  struct Shifted {
    explicit(false) Shifted(std::shared_ptr<float> shift) : by(std::move(shift)) {}
    float operator()(float s, Index, Index, Index, Index) const { return s + *by; }
    std::shared_ptr<float> by;
  };
  CHECK_NOTHROW(call(mha::score_mod(Shifted(std::make_shared<float>(1.0F))))());
}

TEST_CASE("a sink of infinity has the gradient 0", "[rules][sinks][gradient][regression]") {
  const Matrix<double> q = mha::test::random_matrix<double>(3, 2, 1);
  const Matrix<double> k = mha::test::random_matrix<double>(4, 2, 2);
  const Eigen::VectorXd logit = Eigen::VectorXd::Constant(1, infinity_of<double>());
  Eigen::VectorXd gradient = Eigen::VectorXd::Zero(1);
  const auto rule = mha::sinks(logit, gradient);
  const auto forward = mha::scaled_dot_product_attention_forward(q, k, k, rule, {.need_lse = true});
  const auto gradients = mha::scaled_dot_product_attention_backward(q, q, k, k, forward, rule);
  CHECK(gradient(0) == 0);
  CHECK(gradients.value.isZero(0));
}
