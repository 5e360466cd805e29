// SPDX-License-Identifier: MIT
//
// MultiHead: numbers computed by hand, then every field of the configuration and every option of a
// call against the plain loops of layer_support.hpp. Laws and edges: test_multi_head_laws.cpp;
// parameters and their first values: test_projection.cpp.
#include <cmath>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::Tensor;
using mha::test::cast_to;
using mha::test::HasBitsOf;
using mha::test::inner_tolerance;
using mha::test::IsClose;
using mha::test::layer_tolerance;
using mha::test::plain_layer;
using mha::test::PlainCall;
using mha::test::PlainResult;
using mha::test::random_matrix;
using mha::test::randomise;
using mha::test::same_bits;
using mha::test::Tokens;

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

using AnyHeads = MultiHead<double, Eigen::Dynamic>;

// Checks the weights of every head of sequence b.
void check_weights(const Tensor<double>& actual, Index b, const std::vector<Tokens>& expected,
                   double tolerance) {
  REQUIRE(actual.size(1) == static_cast<Index>(expected.size()));
  for (Index h = 0; h < actual.size(1); ++h) {
    CAPTURE(h);
    CHECK_THAT(actual.matrix(b, h), IsClose(expected[static_cast<std::size_t>(h)], tolerance));
  }
}

// Two heads of one channel; queries are x, keys x scaled by ln 3 and ln 2, values by 8 and 6.
MultiHead<double, 2> layer_by_hand() {
  MultiHead<double, 2> layer(2);
  layer.q_proj.weight << 1, 0, 0, 1;
  layer.k_proj.weight << std::log(3.0), 0, 0, std::log(2.0);
  layer.v_proj.weight << 8, 0, 0, 6;
  layer.out_proj.weight << 0, 1, 1, 0;  // swaps the heads
  layer.out_proj.bias << 10, 20;
  return layer;
}

}  // namespace

TEST_CASE("a layer of two heads gives the output computed by hand", "[multi_head]") {
  // Tokens (1, 0) and (0, 1); scale 1 / sqrt(1) = 1.
  // Head 1: q = (1, 0), k = (ln 3, 0), v = (8, 0).
  //   Row 0: scores (ln 3, 0) -> exp (3, 1) -> weights (3/4, 1/4) -> 6; lse = ln 4
  //   Row 1: scores (0, 0)    -> exp (1, 1) -> weights (1/2, 1/2) -> 4; lse = ln 2
  // Head 2: q = (0, 1), k = (0, ln 2), v = (0, 6).
  //   Row 0: scores (0, 0)    -> weights (1/2, 1/2) -> 3;               lse = ln 2
  //   Row 1: scores (0, ln 2) -> exp (1, 2) -> weights (1/3, 2/3) -> 4; lse = ln 3
  // Concatenated (6, 3) and (4, 4), swapped by W_O, plus (10, 20).
  const MultiHead<double, 2> layer = layer_by_hand();
  const Tokens x{{1, 0}, {0, 1}};
  const auto result = layer.forward(x, {.need_weights = true, .need_lse = true});
  constexpr double kTolerance = 8 * kEps * 24;  // a few roundings of numbers up to 24
  CHECK_THAT(result.output, IsClose(Tokens{{13, 26}, {14, 24}}, kTolerance));
  CHECK_THAT(result.weights.matrix(0, 0), IsClose(Tokens{{0.75, 0.25}, {0.5, 0.5}}, 8 * kEps));
  CHECK_THAT(result.weights.matrix(0, 1),
             IsClose(Tokens{{0.5, 0.5}, {1 / 3.0, 2 / 3.0}}, 8 * kEps));
  const double ln2 = std::log(2.0);
  CHECK_THAT(result.lse, IsClose(Tokens{{std::log(4.0), ln2}, {ln2, std::log(3.0)}}, 8 * kEps));
}

TEST_CASE("a causal layer gives the output computed by hand", "[multi_head][mask]") {
  // As above, but row 0 sees itself alone: values 8 and 0, swapped, plus (10, 20).
  const MultiHead<double, 2> layer = layer_by_hand();
  const Tokens x{{1, 0}, {0, 1}};
  const Tokens y = layer(x, mha::causal());
  CHECK_THAT(y, IsClose(Tokens{{10, 28}, {14, 24}}, 8 * kEps * 28));
}

TEST_CASE("add_bias_kv and add_zero_attn join the softmax as computed by hand", "[multi_head]") {
  // One token 1: q = 1, k = ln 3, v = 8; bias_k = 0 and bias_v = 4; then a key and a value of 0.
  // Scores (ln 3, 0, 0) -> exp (3, 1, 1) -> weights (3/5, 1/5, 1/5) -> 24/5 + 4/5 + 0 = 28/5.
  MultiHead<double, 1> layer({.embed_dim = 1, .add_bias_kv = true, .add_zero_attn = true});
  layer.q_proj.weight << 1;
  layer.k_proj.weight << std::log(3.0);
  layer.v_proj.weight << 8;
  layer.out_proj.weight << 1;
  layer.bias_k << 0;
  layer.bias_v << 4;
  const auto result = layer.forward(Tokens{{1}}, {.need_weights = true, .need_lse = true});
  CHECK_THAT(result.output, IsClose(Tokens{{5.6}}, 8 * kEps * 5.6));
  CHECK_THAT(result.weights.matrix(0, 0), IsClose(Tokens{{0.6, 0.2, 0.2}}, 8 * kEps));
  CHECK_THAT(result.lse, IsClose(Tokens{{std::log(5.0)}}, 8 * kEps));
}

TEST_CASE("query head h reads key and value head h / (num_heads / kv_heads)", "[multi_head][gqa]") {
  // Every score is 0, so a head's output is the mean of its values: 1 and 3 in kv head 0, mean 2;
  // 10 and 30 in kv head 1, mean 20. Four query heads: 0 and 1 read kv head 0, 2 and 3 kv head 1.
  MultiHead<double, 4> layer({.embed_dim = 4, .kv_heads = 2});
  layer.q_proj.weight.setZero();
  layer.v_proj.weight.setZero();
  layer.v_proj.weight(0, 0) = 1;
  layer.v_proj.weight(0, 1) = 10;
  layer.out_proj.weight.setIdentity();
  const Tokens x{{1, 0, 0, 0}, {3, 0, 0, 0}};
  CHECK_THAT(layer(x), IsClose(Tokens{{2, 2, 20, 20}, {2, 2, 20, 20}}, 8 * kEps * 20));
}

TEST_CASE("every configuration agrees with plain loops", "[multi_head][law]") {
  using Named = std::pair<const char*, MultiHeadConfig>;
  const mha::Rotary half{.pairs = mha::RotaryPairs::half};
  const mha::Rotary interleaved{.pairs = mha::RotaryPairs::interleaved, .dim = 2, .base = 100};
  const auto [name, config] = GENERATE_COPY(
      Named{"heads", {.embed_dim = 12, .num_heads = 3}},
      Named{"one head", {.embed_dim = 5, .num_heads = 1}},
      Named{"heads of one channel", {.embed_dim = 6, .num_heads = 6}},
      Named{"grouped queries", {.embed_dim = 12, .num_heads = 6, .kv_heads = 2}},
      Named{"one kv head", {.embed_dim = 12, .num_heads = 3, .kv_heads = 1}},
      Named{"head_dim", {.embed_dim = 10, .num_heads = 3, .head_dim = 4}},
      Named{"value_dim", {.embed_dim = 8, .num_heads = 2, .value_dim = 7}},
      Named{"kdim", {.embed_dim = 8, .num_heads = 2, .kdim = 5}},
      Named{"vdim", {.embed_dim = 8, .num_heads = 2, .vdim = 3}},
      Named{"out_dim", {.embed_dim = 8, .num_heads = 2, .out_dim = 11}},
      Named{"out_dim of one", {.embed_dim = 8, .num_heads = 2, .out_dim = 1}},
      Named{"no bias", {.embed_dim = 8, .num_heads = 2, .bias = false}},
      Named{"add_bias_kv", {.embed_dim = 8, .num_heads = 2, .add_bias_kv = true}},
      Named{"add_zero_attn", {.embed_dim = 8, .num_heads = 2, .add_zero_attn = true}},
      Named{"both extra keys",
            {.embed_dim = 8, .num_heads = 2, .add_bias_kv = true, .add_zero_attn = true}},
      Named{"rotary halves", {.embed_dim = 12, .num_heads = 3, .rotary = half}},
      Named{"rotary pairs, two channels", {.embed_dim = 12, .num_heads = 3, .rotary = interleaved}},
      Named{"everything",
            {.embed_dim = 10,
             .num_heads = 6,
             .kv_heads = 3,
             .head_dim = 4,
             .value_dim = 5,
             .kdim = 7,
             .vdim = 9,
             .out_dim = 3,
             .add_bias_kv = true,
             .add_zero_attn = true,
             .rotary = interleaved,
             .seed = 5}});
  CAPTURE(name);
  AnyHeads layer(config);
  randomise(layer, 7);
  if (!config.bias) {
    CHECK(layer.q_proj.bias.size() + layer.k_proj.bias.size() + layer.v_proj.bias.size() +
              layer.out_proj.bias.size() ==
          0);
  }
  const MultiHeadConfig& c = layer.config();
  const Tokens query = random_matrix<double>(6, c.embed_dim, 1);
  const Tokens key = random_matrix<double>(9, c.kdim, 2);
  const Tokens value = random_matrix<double>(9, c.vdim, 3);
  const double tolerance = layer_tolerance(layer, 9);

  SECTION("without a mask") {
    const auto result = layer.forward(query, key, value, {.need_weights = true, .need_lse = true});
    const PlainResult expected = plain_layer(layer, query, key, value);
    CHECK_THAT(result.output, IsClose(expected.output, tolerance));
    CHECK_THAT(result.lse, IsClose(expected.lse, tolerance));
    check_weights(result.weights, 0, expected.weights, tolerance);
  }
  SECTION("masked and modified") {
    // Extra keys are neither masked nor modified.
    const auto rule = mha::causal() & mha::score_mod([](auto s, auto, auto h, auto i, auto j) {
                        return s + 0.25 * static_cast<double>(h) + 0.5 * static_cast<double>(i - j);
                      });
    PlainCall call;
    call.allowed = [](Index, Index i, Index j) { return j <= i; };
    call.score = [](double s, Index h, Index i, Index j) {
      return s + 0.25 * static_cast<double>(h) + 0.5 * static_cast<double>(i - j);
    };
    const auto result =
        layer.forward(query, key, value, rule, {.need_weights = true, .need_lse = true});
    const PlainResult expected = plain_layer(layer, query, key, value, call);
    CHECK_THAT(result.output, IsClose(expected.output, tolerance));
    CHECK_THAT(result.lse, IsClose(expected.lse, tolerance));
    check_weights(result.weights, 0, expected.weights, tolerance);
  }
}

TEMPLATE_TEST_CASE("every scalar type agrees with plain loops in double", "[multi_head][scalar]",
                   float, double, long double, Eigen::half, Eigen::bfloat16) {
  MultiHead<TestType, 2> layer({.embed_dim = 8, .kv_heads = 1, .add_bias_kv = true});
  randomise(layer, 3);
  const Matrix<TestType> x = cast_to<TestType>(random_matrix<double>(5, 8, 1));
  const PlainResult expected =
      plain_layer(layer, cast_to<double>(x), cast_to<double>(x), cast_to<double>(x));
  const auto result = layer.forward(x, {.need_weights = true, .need_lse = true});
  STATIC_REQUIRE(std::is_same_v<typename decltype(result.output)::Scalar, TestType>);
  STATIC_REQUIRE(
      std::is_same_v<typename decltype(result.lse)::Scalar, mha::accumulator_t<TestType>>);
  CHECK_THAT(result.output, IsClose(expected.output, layer_tolerance(layer, 5)));
  // Neither weights nor lse are rounded to the 16-bit type.
  const double inner = inner_tolerance(layer, 5);
  CHECK_THAT(result.lse, IsClose(expected.lse, inner));
  CHECK_THAT(result.weights.matrix(0, 0), IsClose(expected.weights[0], inner));
  CHECK_THAT(result.weights.matrix(0, 1), IsClose(expected.weights[1], inner));
}

TEST_CASE("self- and cross-attention are general attention with equal arguments", "[multi_head]") {
  MultiHead<double, 2> layer(6);
  randomise(layer, 11);
  const Tokens x = random_matrix<double>(4, 6, 1);
  const Tokens context = random_matrix<double>(7, 6, 2);
  CHECK_THAT(layer(x), HasBitsOf(layer(x, x, x)));
  CHECK_THAT(layer(x, context), HasBitsOf(layer(x, context, context)));
}

TEST_CASE("every form of a call means the same", "[multi_head]") {
  // q, k and v have four rows in two sequences of two, so that rule and options both matter.
  MultiHead<double, 2> layer(6);
  randomise(layer, 11);
  const Tokens q = random_matrix<double>(4, 6, 1);
  const Tokens k = random_matrix<double>(4, 6, 2);
  const Tokens v = random_matrix<double>(4, 6, 3);
  const mha::MultiHeadOptions options{.batch = 2};
  const auto rule = mha::causal();

  SECTION("general attention") {
    const Tokens expected = layer.forward(q, k, v, rule, options).output;
    CHECK_THAT(layer(q, k, v, rule, {.batch = 2}), HasBitsOf(expected));
    CHECK_THAT(layer.forward(q, k, v, rule, {.batch = 2}).output, HasBitsOf(expected));
    CHECK_THAT(layer(q, k, v, {.batch = 2}), HasBitsOf(layer(q, k, v, mha::All{}, options)));
    CHECK_THAT(layer.forward(q, k, v, {.batch = 2}).output, HasBitsOf(layer(q, k, v, options)));
    CHECK_THAT(layer(q, k, v, rule), HasBitsOf(layer(q, k, v, rule, {})));
    CHECK_THAT(layer.forward(q, k, v).output, HasBitsOf(layer(q, k, v)));
    CHECK_FALSE(same_bits(layer(q, k, v, rule), expected));
    CHECK_FALSE(same_bits(layer(q, k, v, options), expected));
    CHECK_FALSE(same_bits(layer(q, k, v), expected));
  }
  SECTION("cross-attention") {
    const Tokens expected = layer(q, k, k, rule, options);
    CHECK_THAT(layer(q, k, rule, {.batch = 2}), HasBitsOf(expected));
    CHECK_THAT(layer.forward(q, k, rule, options).output, HasBitsOf(expected));
    CHECK_THAT(layer(q, k, {.batch = 2}), HasBitsOf(layer(q, k, k, options)));
    CHECK_THAT(layer.forward(q, k, {.batch = 2}).output, HasBitsOf(layer(q, k, options)));
    CHECK_THAT(layer(q, k, rule), HasBitsOf(layer(q, k, k, rule)));
    CHECK_THAT(layer.forward(q, k).output, HasBitsOf(layer(q, k, k)));
  }
  SECTION("self-attention") {
    const Tokens expected = layer(q, q, q, rule, options);
    CHECK_THAT(layer(q, rule, {.batch = 2}), HasBitsOf(expected));
    CHECK_THAT(layer.forward(q, rule, options).output, HasBitsOf(expected));
    CHECK_THAT(layer(q, {.batch = 2}), HasBitsOf(layer(q, q, q, options)));
    CHECK_THAT(layer.forward(q, {.batch = 2}).output, HasBitsOf(layer(q, options)));
    CHECK_THAT(layer(q, rule), HasBitsOf(layer(q, q, q, rule)));
    CHECK_THAT(layer.forward(q).output, HasBitsOf(layer(q, q, q)));
  }
}

TEST_CASE("results that were not asked for are empty, and asking changes no output bit",
          "[multi_head]") {
  MultiHead<float, 2> layer({.embed_dim = 6, .add_bias_kv = true, .add_zero_attn = true});
  randomise(layer, 11);
  const Matrix<float> x = cast_to<float>(random_matrix<double>(5, 6, 1));
  const auto plain = layer.forward(x, mha::causal());
  CHECK(plain.weights.empty());
  CHECK(plain.lse.size() == 0);
  const auto all = layer.forward(x, mha::causal(), {.need_weights = true, .need_lse = true});
  CHECK_THAT(all.output, HasBitsOf(plain.output));
  const auto weights = layer.forward(x, mha::causal(), {.need_weights = true});
  CHECK_THAT(weights.output, HasBitsOf(plain.output));
  CHECK(same_bits(weights.weights, all.weights));
  CHECK(weights.lse.size() == 0);
  const auto lse = layer.forward(x, mha::causal(), {.need_lse = true});
  CHECK_THAT(lse.lse, HasBitsOf(all.lse));
  CHECK(lse.weights.empty());
}

TEST_CASE("weights come per head, and averaged only if asked", "[multi_head]") {
  MultiHead<double, 3> layer({.embed_dim = 6, .add_zero_attn = true});
  randomise(layer, 5);
  const Tokens x = random_matrix<double>(8, 6, 1);
  const auto each = layer.forward(x, {.batch = 2, .need_weights = true}).weights;
  CHECK(each.sizes() == std::array<Index, 4>{2, 3, 4, 5});
  const auto mean = layer.forward(x, {.batch = 2, .average_weights = true}).weights;
  CHECK(same_bits(
      layer.forward(x, {.batch = 2, .need_weights = true, .average_weights = true}).weights, mean));
  CHECK(mean.sizes() == std::array<Index, 4>{2, 1, 4, 5});
  for (Index b = 0; b < 2; ++b) {
    const Tokens expected = (each.matrix(b, 0) + each.matrix(b, 1) + each.matrix(b, 2)) / 3;
    CHECK_THAT(mean.matrix(b, 0), IsClose(expected, 4 * kEps));
  }
}

TEST_CASE("a row of weights sums to 1, extra keys included", "[multi_head][law]") {
  const bool bias_kv = GENERATE(false, true);
  const bool zero = GENERATE(false, true);
  CAPTURE(bias_kv, zero);
  MultiHead<double, 2> layer(
      {.embed_dim = 6, .add_bias_kv = bias_kv, .add_zero_attn = zero, .seed = 3});
  const Index kv_len = 7;
  const Tokens x = random_matrix<double>(kv_len, 6, 1);
  const auto weights = layer.forward(x, mha::causal(), {.need_weights = true}).weights;
  const Index columns = kv_len + (bias_kv ? 1 : 0) + (zero ? 1 : 0);
  REQUIRE(weights.size(3) == columns);
  const Tokens ones = Tokens::Ones(kv_len, 1);
  const double tolerance = kEps * static_cast<double>(2 * columns);
  for (Index h = 0; h < 2; ++h) {
    CHECK_THAT(weights.matrix(0, h).rowwise().sum(), IsClose(ones, tolerance));
    CHECK(weights(0, h, 0, 1) == 0);  // masked, while the extra keys are not
    if (bias_kv || zero) CHECK(weights(0, h, 0, kv_len) > 0);
  }
}

TEST_CASE("a batch equals its sequences one by one", "[multi_head][batch]") {
  AnyHeads layer(
      {.embed_dim = 8, .num_heads = 4, .kv_heads = 2, .add_bias_kv = true, .add_zero_attn = true});
  randomise(layer, 9);
  const Index sequences = 3;
  const Index query_len = 4;
  const Index kv_len = 6;
  const Tokens x = random_matrix<double>(sequences * query_len, 8, 1);
  const Tokens context = random_matrix<double>(sequences * kv_len, 8, 2);
  const auto together = layer.forward(x, context, mha::causal(),
                                      {.batch = sequences, .need_weights = true, .need_lse = true});
  const double tolerance = layer_tolerance(layer, kv_len);
  PlainCall call;
  call.allowed = [](Index, Index i, Index j) { return j <= i; };
  for (Index b = 0; b < sequences; ++b) {
    CAPTURE(b);
    const Tokens one = x.middleRows(b * query_len, query_len);
    const Tokens keys = context.middleRows(b * kv_len, kv_len);
    const PlainResult expected = plain_layer(layer, one, keys, keys, call);
    CHECK_THAT(together.output.middleRows(b * query_len, query_len),
               IsClose(expected.output, tolerance));
    CHECK_THAT(together.lse.middleRows(b * query_len, query_len), IsClose(expected.lse, tolerance));
    check_weights(together.weights, b, expected.weights, tolerance);
  }
}

TEST_CASE("a ragged batch equals its sequences one by one", "[multi_head][batch]") {
  const bool bias_kv = GENERATE(false, true);
  const bool zero = GENERATE(false, true);
  CAPTURE(bias_kv, zero);
  AnyHeads layer({.embed_dim = 8,
                  .num_heads = 4,
                  .kv_heads = 2,
                  .add_bias_kv = bias_kv,
                  .add_zero_attn = zero});
  randomise(layer, 9);
  const std::vector<Index> query_lens{4, 1, 0, 6};
  const std::vector<Index> kv_lens{3, 5, 2, 0};
  const Tokens x = random_matrix<double>(11, 8, 1);
  const Tokens context = random_matrix<double>(10, 8, 2);
  const std::vector<Index> lengths{3, 4, 1, 0};  // of the second and third, one key is padding
  const auto rule = mha::lengths(lengths);
  const auto together = layer.forward(
      x, context, rule,
      {.sequences = query_lens, .kv_sequences = kv_lens, .need_weights = true, .need_lse = true});
  REQUIRE(together.output.rows() == 11);
  const Index extra = (bias_kv ? 1 : 0) + (zero ? 1 : 0);
  CHECK(together.weights.sizes() == std::array<Index, 4>{4, 4, 6, 5 + extra});
  Index row = 0;
  Index kv_row = 0;
  for (Index b = 0; b < 4; ++b) {
    CAPTURE(b);
    const Index query_len = query_lens[static_cast<std::size_t>(b)];
    const Index kv_len = kv_lens[static_cast<std::size_t>(b)];
    const Tokens one = x.middleRows(row, query_len);
    const Tokens keys = context.middleRows(kv_row, kv_len);
    PlainCall call;
    call.allowed = [n = lengths[static_cast<std::size_t>(b)]](Index, Index, Index j) {
      return j < n;
    };
    const PlainResult expected = plain_layer(layer, one, keys, keys, call);
    const double tolerance = layer_tolerance(layer, kv_len);
    CHECK_THAT(together.output.middleRows(row, query_len), IsClose(expected.output, tolerance));
    CHECK_THAT(together.lse.middleRows(row, query_len), IsClose(expected.lse, tolerance));
    // The caller's keys first, then zeros up to the longest, then the extra keys.
    for (Index h = 0; h < 4; ++h) {
      CAPTURE(h);
      const Tokens& plain = expected.weights[static_cast<std::size_t>(h)];
      Tokens padded = Tokens::Zero(6, 5 + extra);
      for (Index i = 0; i < query_len; ++i) {
        padded.row(i).head(kv_len) = plain.row(i).head(kv_len);
        padded.row(i).tail(extra) = plain.row(i).tail(extra);
      }
      CHECK_THAT(together.weights.matrix(b, h), IsClose(padded, tolerance));
    }
    row += query_len;
    kv_row += kv_len;
  }
}

TEST_CASE("sequences alone cut keys and queries alike", "[multi_head][batch]") {
  MultiHead<double, 2> layer(6);
  const Tokens x = random_matrix<double>(9, 6, 1);
  const Tokens y = layer(x, mha::causal(), {.sequences = {2, 7}});
  const double tolerance = layer_tolerance(layer, 9);
  CHECK_THAT(y.topRows(2), IsClose(layer(x.topRows(2), mha::causal()), tolerance));
  CHECK_THAT(y.bottomRows(7), IsClose(layer(x.bottomRows(7), mha::causal()), tolerance));
}

TEST_CASE("sequences are given as any list of integers", "[multi_head][batch]") {
  MultiHead<double, 2> layer(6);
  const Tokens x = random_matrix<double>(9, 6, 1);
  const Tokens y = layer(x, {.sequences = {2, 7}});
  CHECK_THAT(layer(x, {.sequences = std::vector<int>{2, 7}}), HasBitsOf(y));
  CHECK_THAT(layer(x, {.sequences = Eigen::Vector2i(2, 7)}), HasBitsOf(y));
  CHECK_THAT(layer(x, {.sequences = 9}), HasBitsOf(layer(x)));
}

TEST_CASE("equal lengths in sequences are the same as batch", "[multi_head][batch]") {
  MultiHead<double, 2> layer(6);
  const Tokens x = random_matrix<double>(9, 6, 1);
  CHECK_THAT(layer(x, mha::causal(), {.sequences = {3, 3, 3}}),
             HasBitsOf(layer(x, mha::causal(), {.batch = 3})));
}

TEST_CASE("rules count sequences, heads, queries and keys from 0 in every sequence",
          "[multi_head][batch]") {
  MultiHead<double, 2> layer(6);
  randomise(layer, 2);
  const Tokens x = random_matrix<double>(5, 6, 1);
  const auto allowed = [](Index b, Index h, Index i, Index j) {
    return (b + h + i + j) % 2 == 0 || j == 0;
  };
  const auto result =
      layer.forward(x, mha::mask_mod(allowed), {.sequences = {2, 3}, .need_weights = true});
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 2; ++h) {
      for (Index i = 0; i < 2 + b; ++i) {
        for (Index j = 0; j < 2 + b; ++j) {
          CAPTURE(b, h, i, j);
          CHECK((result.weights(b, h, i, j) != 0) == allowed(b, h, i, j));
        }
      }
    }
  }
}

TEST_CASE("with past_len the queries stand after the cached keys", "[multi_head][mask]") {
  // The last three tokens as queries over all seven, causal: the last three rows of the full run.
  const bool rotary = GENERATE(false, true);
  CAPTURE(rotary);
  MultiHeadConfig config{.embed_dim = 8};
  if (rotary) config.rotary = mha::Rotary{.pairs = mha::RotaryPairs::half};
  MultiHead<double, 2> layer(config);
  randomise(layer, 4);
  const Tokens x = random_matrix<double>(7, 8, 1);
  const Tokens y = layer(x.bottomRows(3), x, mha::causal(), {.past_len = 4});
  CHECK_THAT(y, IsClose(layer(x, mha::causal()).bottomRows(3), layer_tolerance(layer, 7)));
}

TEST_CASE("rotary positions are those of the call", "[multi_head][rotary]") {
  MultiHead<double, 2> layer(
      {.embed_dim = 8, .rotary = mha::Rotary{.pairs = mha::RotaryPairs::interleaved}});
  randomise(layer, 4);
  const Tokens x = random_matrix<double>(4, 8, 1);
  const Tokens context = random_matrix<double>(3, 8, 2);
  const double tolerance = layer_tolerance(layer, 4);

  SECTION("one per row of query, for the keys too") {
    PlainCall call;
    call.positions = call.kv_positions = {3, 0, 2, 9};
    CHECK_THAT(layer(x, {.positions = {3, 0, 2, 9}}),
               IsClose(plain_layer(layer, x, x, x, call).output, tolerance));
  }
  SECTION("keys at positions of their own") {
    PlainCall call;
    call.positions = {3, 0, 2, 9};
    call.kv_positions = {7, 1, 5};
    CHECK_THAT(layer(x, context, {.positions = {3, 0, 2, 9}, .kv_positions = {7, 1, 5}}),
               IsClose(plain_layer(layer, x, context, context, call).output, tolerance));
  }
  SECTION("a single number is the first position of every sequence") {
    PlainCall call;
    call.positions = {6, 7};
    call.kv_positions = {2, 3};
    const Tokens y = layer(x, x, {.batch = 2, .positions = {6}, .kv_positions = {2}});
    for (Index b = 0; b < 2; ++b) {
      const Tokens one = x.middleRows(2 * b, 2);
      CHECK_THAT(y.middleRows(2 * b, 2),
                 IsClose(plain_layer(layer, one, one, one, call).output, tolerance));
    }
  }
  SECTION("counted from 0 in every sequence of a ragged batch") {
    const Tokens y = layer(x, {.sequences = {1, 3}});
    CHECK_THAT(y.topRows(1), IsClose(layer(x.topRows(1)), tolerance));
    CHECK_THAT(y.bottomRows(3), IsClose(layer(x.bottomRows(3)), tolerance));
  }
  SECTION("given per row of a ragged batch") {
    PlainCall call;
    call.positions = call.kv_positions = {0, 2, 9};
    const Tokens y = layer(x, {.sequences = {1, 3}, .positions = {3, 0, 2, 9}});
    const Tokens last = x.bottomRows(3);
    CHECK_THAT(y.bottomRows(3),
               IsClose(plain_layer(layer, last, last, last, call).output, tolerance));
  }
  SECTION("only their differences matter") {
    const Tokens there = layer(x, {.positions = {103, 100, 102, 109}});
    // Angles up to 109 rounded to eps: 109 eps in each of two factors.
    CHECK_THAT(there, IsClose(layer(x, {.positions = {3, 0, 2, 9}}), tolerance + 8 * 109 * kEps));
  }
}

TEST_CASE("a rotated layer leaves the added bias key alone", "[multi_head][rotary]") {
  // At position 0 nothing turns; were bias_k turned as the key after the last, the output of a
  // single token at position 0 would differ from the layer without rotary.
  MultiHeadConfig config{.embed_dim = 8, .add_bias_kv = true};
  MultiHead<double, 2> still(config);
  config.rotary = mha::Rotary{.pairs = mha::RotaryPairs::half};
  MultiHead<double, 2> turned(config);
  randomise(still, 4);
  randomise(turned, 4);
  const Tokens x = random_matrix<double>(1, 8, 1);
  CHECK_THAT(turned(x), HasBitsOf(still(x)));
}
