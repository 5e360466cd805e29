// SPDX-License-Identifier: MIT
//
// Where the queries of a layer's call stand among the keys, said by past_len or by a rule, what rotary
// makes of it, and with which parameters a layer begins.
#include <mha/mha.hpp>

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::IndexList;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadOptions;
using mha::Rotary;
using mha::RotaryPairs;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::layer_tolerance;
using mha::test::message_of;
using mha::test::random_matrix;
using mha::test::Tokens;

namespace {

MultiHead<double, 2> rotary_layer(bool add_bias_kv = false) {
  MultiHead<double, 2> layer(
      {.embed_dim = 8, .add_bias_kv = add_bias_kv, .rotary = Rotary{.pairs = RotaryPairs::half}});
  mha::test::randomise(layer, 4);
  return layer;
}

// Two sequences of 7 and 5 tokens, of which the last 3 and 1 are queries.
struct Cached {
  Tokens first = random_matrix<double>(7, 8, 1);
  Tokens second = random_matrix<double>(5, 8, 2);
  Tokens keys{12, 8};
  Tokens queries{4, 8};
  std::vector<Index> past{4, 4};
  MultiHeadOptions options{.sequences = {3, 1}, .kv_sequences = {7, 5}};
  Cached() {
    keys << first, second;
    queries << first.bottomRows(3), second.bottomRows(1);
  }
};

}  // namespace

TEST_CASE("queries behind cached keys are the last rows of the full run, however that is said",
          "[layer][past_len][rotary]") {
  const bool add_bias_kv = GENERATE(false, true);
  const auto layer = rotary_layer(add_bias_kv);
  Cached c;
  c.second.conservativeResize(3, 8);
  c.keys.conservativeResize(10, 8);
  c.queries.row(3) = c.second.row(2);
  c.options.kv_sequences = {7, 3};
  const std::vector<Index> past{4, 2};
  Tokens expected(4, 8);
  expected << layer(c.first, mha::causal()).bottomRows(3),
      layer(c.second, mha::causal()).bottomRows(1);
  const double tolerance = layer_tolerance(layer, 8);
  const auto check = [&](const auto& rule, const IndexList& past_len) {
    MultiHeadOptions options = c.options;
    options.past_len = past_len;
    CHECK_THAT(layer(c.queries, c.keys, rule, options), IsClose(expected, tolerance));
    // Forward and backward agree on the place: training has the bits of forward().
    mha::TrainingPass<MultiHead<double, 2>> pass;
    layer.forward_training(pass, c.queries, c.keys, rule, options);
    CHECK_THAT(pass.output, HasBitsOf(Tokens(layer(c.queries, c.keys, rule, options))));
  };
  check(mha::causal(), past);
  check(mha::causal_offset(past), {});
  check(mha::causal_offset(past), past);
  check(mha::causal_lower_right(), {});
  check(mha::causal_lower_right(), past);
  check(mha::query_offset(past) & mha::window(-1, 0), {});
  check(mha::query_offset(past) & mha::causal(), past);
}

TEST_CASE("one past_len serves all sequences, a list gives each its own", "[layer][past_len]") {
  const auto layer = rotary_layer();
  const Cached c;
  const auto with = [&](const IndexList& past_len) {
    MultiHeadOptions options = c.options;
    options.past_len = past_len;
    return layer(c.queries, c.keys, mha::causal(), options);
  };
  CHECK_THAT(with(4), HasBitsOf(with({4, 4})));
  CHECK_THAT(with({}), HasBitsOf(with(0)));
  CHECK_THAT(with({4, 2}).topRows(3).eval(), HasBitsOf(with(4).topRows(3).eval()));
  CHECK_THAT(with({4, 2}).bottomRows(1).eval(), HasBitsOf(with(2).bottomRows(1).eval()));
}

TEST_CASE("attention takes one past_len per sequence", "[attention][past_len]") {
  const auto q = mha::test::random_tensor<float>({2, 4, 3, 5}, 1);
  const auto kv = mha::test::random_tensor<float>({2, 2, 9, 5}, 2);
  const std::vector<Index> past{6, 1};
  const auto expected = mha::attention_forward(q, kv, kv, mha::causal_offset(past),
                                               {.need_weights = true, .need_lse = true});
  const auto actual = mha::attention_forward(
      q, kv, kv, mha::causal(), {.past_len = past, .need_weights = true, .need_lse = true});
  CHECK(mha::test::same_bits(actual.output, expected.output));
  CHECK(mha::test::same_bits(actual.weights, expected.weights));
  CHECK(mha::test::same_bits(actual.lse, expected.lse));
  CHECK(mha::test::same_bits(mha::attention_scores(q, kv, mha::causal(), {.past_len = past}),
                             mha::attention_scores(q, kv, mha::causal_offset(past))));
  const auto grad = mha::test::random_tensor<float>({2, 4, 3, 5}, 3);
  const auto a =
      mha::attention_backward(grad, q, kv, kv, actual, mha::causal(), {.past_len = past});
  const auto b = mha::attention_backward(grad, q, kv, kv, expected, mha::causal_offset(past));
  CHECK(mha::test::same_bits(a.query, b.query));
  CHECK(mha::test::same_bits(a.key, b.key));
  CHECK(mha::test::same_bits(a.value, b.value));
}

TEST_CASE("a past_len and a rule that place the queries elsewhere are refused",
          "[layer][attention][past_len]") {
  const auto q = mha::test::random_tensor<float>({2, 4, 3, 5}, 1);
  const auto kv = mha::test::random_tensor<float>({2, 2, 9, 5}, 2);
  const auto message = [&](const auto& rule, const IndexList& past_len) {
    return message_of([&] { (void)mha::attention(q, kv, kv, rule, {.past_len = past_len}); });
  };
  const std::string text = "mha::attention: past_len and a rule must place the queries alike, got ";
  CHECK(message(mha::causal_offset(3), 0) == text + "past_len 0 and offset 3 for sequence 0");
  CHECK(message(mha::causal_offset({2, 3}), 2) == text + "past_len 2 and offset 3 for sequence 1");
  CHECK(message(mha::causal_lower_right(), {6, 5}) ==
        text + "past_len 5 and offset 6 for sequence 1");
  CHECK(message(mha::query_offset(3) & mha::causal(), 2) ==
        text + "past_len 2 and offset 3 for sequence 0");
  // Not even the looser of two.
  CHECK(message(mha::causal() & mha::causal_offset(5), 2) ==
        text + "past_len 2 and offset 5 for sequence 0");
  CHECK_NOTHROW(mha::attention(q, kv, kv, mha::causal_offset(3) & mha::alibi(), {.past_len = 3}));
  const MultiHead<double, 2> layer(8);
  const Cached c;
  MultiHeadOptions options = c.options;
  options.past_len = {4, 3};
  CHECK(message_of([&] { (void)layer(c.queries, c.keys, mha::causal_offset(4), options); }) ==
        "mha::MultiHead::forward: past_len and a rule must place the queries alike, got past_len 3 "
        "and offset 4 for sequence 1");
}

TEST_CASE("of several causal rules the tightest places the queries", "[layer][rotary]") {
  const auto layer = rotary_layer();
  const Cached c;
  CHECK_THAT(layer(c.queries, c.keys, mha::causal_offset(4) & mha::causal_offset(2), c.options),
             HasBitsOf(Tokens(layer(c.queries, c.keys, mha::causal_offset(2), c.options))));
}

TEST_CASE("a first position serves keys of another number too", "[layer][rotary]") {
  const auto layer = rotary_layer();
  const Tokens x = random_matrix<double>(4, 8, 1);
  const Tokens context = random_matrix<double>(6, 8, 2);
  CHECK_THAT(layer(x, context, {.positions = 3}),
             HasBitsOf(Tokens(layer(x, context, {.positions = 3, .kv_positions = 3}))));
  // Where that would put queries and keys elsewhere than the call says, the keys' must be given.
  CHECK(message_of(
            [&] { (void)layer(x, context, mha::causal(), {.positions = 2, .past_len = 2}); }) ==
        "mha::MultiHead::forward: kv_positions must be given beside positions where queries do "
        "not stand at the first key, got offset 2 for sequence 0");
  CHECK_THAT(layer(x, context, mha::causal(), {.positions = 2, .kv_positions = 0, .past_len = 2}),
             HasBitsOf(Tokens(layer(x, context, mha::causal(), {.past_len = 2}))));
}

TEST_CASE("layers made without a seed differ, and each can be made again", "[layer][seed]") {
  using Layer = MultiHead<float, 2>;
  const Layer a(8);
  const Layer b(8);
  REQUIRE(a.config().seed.has_value());
  CHECK(a.config().seed != b.config().seed);
  CHECK(*a.config().seed > 1000000);
  CHECK(a.q_proj.weight != b.q_proj.weight);
  CHECK(a.out_proj.weight != b.out_proj.weight);
  CHECK_THAT(Layer(a.config()).q_proj.weight, HasBitsOf(a.q_proj.weight));
  CHECK_THAT(Layer({.embed_dim = 8, .seed = 0}).q_proj.weight,
             HasBitsOf(Layer({.embed_dim = 8, .seed = 0}).q_proj.weight));
}

TEST_CASE("the weights of added keys stand in the last columns for every sequence", "[layer]") {
  MultiHead<double, 2> layer({.embed_dim = 8, .add_bias_kv = true, .add_zero_attn = true});
  mha::test::randomise(layer, 4);
  const Tokens x = random_matrix<double>(6, 8, 1);
  const auto all = layer.forward(x, {.sequences = {2, 4}, .need_weights = true}).weights;
  const auto one = layer.forward(x.topRows(2), {.need_weights = true}).weights;
  REQUIRE(all.size(3) == 6);
  REQUIRE(one.size(3) == 4);
  for (Index h = 0; h < 2; ++h) {
    for (Index i = 0; i < 2; ++i) {
      for (Index j = 0; j < 2; ++j) CHECK(all(0, h, i, j) == one(0, h, i, j));
      for (Index j = 2; j < 4; ++j) CHECK(all(0, h, i, j) == 0);  // padding
      CHECK(all(0, h, i, 4) == one(0, h, i, 2));                  // bias_k
      CHECK(all(0, h, i, 5) == one(0, h, i, 3));                  // the key of zeros
    }
  }
}
