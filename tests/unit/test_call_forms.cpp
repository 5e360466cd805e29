// SPDX-License-Identifier: MIT
//
// Every function takes every form of a call: its inputs, then nothing, a rule, options, or a rule and
// options, the options named or in braces. Each form has the bits of the full one: query, key, value,
// rule, options.
#include <mha/mha.hpp>

#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::All;
using mha::AttentionOptions;
using mha::Index;
using mha::Matrix;
using mha::MultiHeadOptions;
using mha::test::HasBitsOf;
using mha::test::random_matrix;
using mha::test::stacked;

namespace {

using Layer = mha::MultiHead<float, 2>;
using Tokens = Matrix<float>;
using Output = Eigen::MatrixXf;  // column-major, to be written to

// Six tokens of two sequences. A rule and options that each change the result.
struct Problem {
  Layer layer{4};
  Tokens x = random_matrix<float>(6, 4, 1);
  Tokens context = random_matrix<float>(6, 4, 2);
  Tokens other = random_matrix<float>(6, 4, 3);
  Tokens grad = random_matrix<float>(6, 4, 4);
  MultiHeadOptions options{.batch = 2};

  Tokens full(const Tokens& key, const Tokens& value, bool with_rule, bool with_options) const {
    const MultiHeadOptions how = with_options ? options : MultiHeadOptions{};
    return with_rule ? layer.forward(x, key, value, mha::causal(), how).output
                     : layer.forward(x, key, value, All{}, how).output;
  }
};

constexpr bool kRule = true;
constexpr bool kOptions = true;

// Every form behind the inputs `in`: f(in..., rule, options) must have the bits that expected(has a
// rule, has options) has. Braced lists are written out in the tests: no function can pass them on.
template <class F, class Expected, class... In>
void each_named_form(const F& f, const Expected& expected, const Problem& p, const In&... in) {
  CHECK_THAT(f(in...), HasBitsOf(expected(!kRule, !kOptions)));
  CHECK_THAT(f(in..., mha::causal()), HasBitsOf(expected(kRule, !kOptions)));
  CHECK_THAT(f(in..., p.options), HasBitsOf(expected(!kRule, kOptions)));
  CHECK_THAT(f(in..., mha::causal(), p.options), HasBitsOf(expected(kRule, kOptions)));
  CHECK_THAT(f(in..., MultiHeadOptions{.batch = 2}), HasBitsOf(expected(!kRule, kOptions)));
  const auto rule = mha::causal() & mha::scale(0.5F);
  CHECK_THAT(f(in..., rule), HasBitsOf(f(in..., rule, MultiHeadOptions{})));
}

template <class F>
void each_form(const F& f) {
  const Problem p;
  CHECK_FALSE(p.full(p.x, p.x, kRule, kOptions) == p.full(p.x, p.x, !kRule, kOptions));
  CHECK_FALSE(p.full(p.x, p.x, kRule, kOptions) == p.full(p.x, p.x, kRule, !kOptions));
  const auto given = [&](const auto&... arguments) { return f(p.layer, arguments...); };
  const auto expecting = [&](const Tokens& key, const Tokens& value) {
    return [&](bool rule, bool options) { return p.full(key, value, rule, options); };
  };
  each_named_form(given, expecting(p.x, p.x), p, p.x);
  each_named_form(given, expecting(p.context, p.context), p, p.x, p.context);
  each_named_form(given, expecting(p.context, p.other), p, p.x, p.context, p.other);
}

}  // namespace

TEST_CASE("forward takes every form of a call", "[forms][layer]") {
  each_form([](const Layer& layer, const auto&... arguments) {
    return layer.forward(arguments...).output;
  });
  const Problem p;
  const auto bits = [&](const auto& result, const Tokens& key, const Tokens& value, bool rule) {
    CHECK_THAT(result.output, HasBitsOf(p.full(key, value, rule, kOptions)));
  };
  bits(p.layer.forward(p.x, {.batch = 2}), p.x, p.x, !kRule);
  bits(p.layer.forward(p.x, mha::causal(), {.batch = 2}), p.x, p.x, kRule);
  bits(p.layer.forward(p.x, p.context, {.batch = 2}), p.context, p.context, !kRule);
  bits(p.layer.forward(p.x, p.context, mha::causal(), {.batch = 2}), p.context, p.context, kRule);
  bits(p.layer.forward(p.x, p.context, p.other, {.batch = 2}), p.context, p.other, !kRule);
  bits(p.layer.forward(p.x, p.context, p.other, mha::causal(), {.batch = 2}), p.context, p.other,
       kRule);
}

TEST_CASE("operator() takes every form of a call", "[forms][layer]") {
  each_form([](const Layer& layer, const auto&... arguments) { return layer(arguments...); });
  const Problem p;
  const auto bits = [&](const Tokens& result, const Tokens& key, const Tokens& value, bool rule) {
    CHECK_THAT(result, HasBitsOf(p.full(key, value, rule, kOptions)));
  };
  bits(p.layer(p.x, {.batch = 2}), p.x, p.x, !kRule);
  bits(p.layer(p.x, mha::causal(), {.batch = 2}), p.x, p.x, kRule);
  bits(p.layer(p.x, p.context, {.batch = 2}), p.context, p.context, !kRule);
  bits(p.layer(p.x, p.context, mha::causal(), {.batch = 2}), p.context, p.context, kRule);
  bits(p.layer(p.x, p.context, p.other, {.batch = 2}), p.context, p.other, !kRule);
  bits(p.layer(p.x, p.context, p.other, mha::causal(), {.batch = 2}), p.context, p.other, kRule);
}

TEST_CASE("forward_into takes every form of a call", "[forms][layer]") {
  each_form([](const Layer& layer, const auto&... arguments) {
    Tokens output = Tokens::Zero(6, 4);
    layer.forward_into(output, arguments...);
    return output;
  });
  const Problem p;
  Output out = Output::Zero(6, 4);
  mha::Workspace workspace;
  const auto bits = [&](const Tokens& key, const Tokens& value, bool rule) {
    CHECK_THAT(Tokens(out), HasBitsOf(p.full(key, value, rule, kOptions)));
    out.setZero();
  };
  p.layer.forward_into(out, p.x, {.batch = 2, .workspace = &workspace});
  bits(p.x, p.x, !kRule);
  p.layer.forward_into(out, p.x, mha::causal(), {.batch = 2});
  bits(p.x, p.x, kRule);
  p.layer.forward_into(out, p.x, p.context, {.batch = 2, .workspace = &workspace});
  bits(p.context, p.context, !kRule);
  p.layer.forward_into(out, p.x, p.context, mha::causal(), {.batch = 2});
  bits(p.context, p.context, kRule);
  p.layer.forward_into(out, p.x, p.context, p.other, {.batch = 2, .workspace = &workspace});
  bits(p.context, p.other, !kRule);
  p.layer.forward_into(out, p.x, p.context, p.other, mha::causal(), {.batch = 2});
  bits(p.context, p.other, kRule);
}

TEST_CASE("forward_training takes every form of a call", "[forms][layer][gradient]") {
  each_form([](const Layer& layer, const auto&... arguments) {
    mha::TrainingPass<Layer> pass;
    layer.forward_training(pass, arguments...);
    return pass.output;
  });
  const Problem p;
  mha::TrainingPass<Layer> pass;
  const auto bits = [&](const Tokens& key, const Tokens& value, bool rule) {
    CHECK_THAT(pass.output, HasBitsOf(p.full(key, value, rule, kOptions)));
  };
  p.layer.forward_training(pass, p.x, {.batch = 2});
  bits(p.x, p.x, !kRule);
  p.layer.forward_training(pass, p.x, mha::causal(), {.batch = 2});
  bits(p.x, p.x, kRule);
  p.layer.forward_training(pass, p.x, p.context, {.batch = 2});
  bits(p.context, p.context, !kRule);
  p.layer.forward_training(pass, p.x, p.context, mha::causal(), {.batch = 2});
  bits(p.context, p.context, kRule);
  p.layer.forward_training(pass, p.x, p.context, p.other, {.batch = 2});
  bits(p.context, p.other, !kRule);
  p.layer.forward_training(pass, p.x, p.context, p.other, mha::causal(), {.batch = 2});
  bits(p.context, p.other, kRule);
}

TEST_CASE("MultiHead::backward takes every form of a call", "[forms][layer][gradient]") {
  const Problem p;
  // Gradients of the pass with this rule and these options, by the form that `undo` calls.
  const auto gradient = [&](const auto& rule, const MultiHeadOptions& options, const auto& undo) {
    mha::TrainingPass<Layer> pass;
    mha::MultiHeadGradients<Layer> gradients(p.layer);
    p.layer.forward_training(pass, p.x, rule, options);
    undo(gradients, pass);
    return gradients;
  };
  const auto check = [&](const auto& rule, const MultiHeadOptions& options, const auto& undo) {
    const auto full = gradient(rule, options, [&](auto& gradients, auto& pass) {
      p.layer.backward(gradients, pass, p.grad, rule, options);
    });
    const auto form = gradient(rule, options, undo);
    CHECK_THAT(form.query, HasBitsOf(full.query));
    CHECK_THAT(form.k_proj.weight, HasBitsOf(full.k_proj.weight));
  };
  check(All{}, {}, [&](auto& g, auto& pass) { p.layer.backward(g, pass, p.grad); });
  check(mha::causal(), {},
        [&](auto& g, auto& pass) { p.layer.backward(g, pass, p.grad, mha::causal()); });
  check(All{}, p.options,
        [&](auto& g, auto& pass) { p.layer.backward(g, pass, p.grad, p.options); });
  check(All{}, p.options,
        [&](auto& g, auto& pass) { p.layer.backward(g, pass, p.grad, {.batch = 2}); });
  check(mha::causal(), p.options,
        [&](auto& g, auto& pass) { p.layer.backward(g, pass, p.grad, mha::causal(), p.options); });
  check(mha::causal(), p.options, [&](auto& g, auto& pass) {
    p.layer.backward(g, pass, p.grad, mha::causal(), {.batch = 2});
  });
}

TEST_CASE(
    "a call's inputs are matrices, maps, blocks, transposes, expressions, arrays, of any size",
    "[forms][layer]") {
  Problem p;
  const auto full = p.full(p.context, p.other, kRule, kOptions);
  const auto check = [&](const Tokens& output) { CHECK_THAT(output, HasBitsOf(full)); };
  const auto& layer = p.layer;
  const auto rule = mha::causal();
  using Fixed = Eigen::Matrix<float, 6, 4, Eigen::RowMajor>;
  const Eigen::MatrixXf turned = p.context.transpose();
  const Tokens half = p.other * 0.5F;
  Eigen::Map<const Tokens> map(p.x.data(), 6, 4);
  check(layer(map, Output(p.context), p.other.block(0, 0, 6, 4), rule, {.batch = 2}));
  check(layer(Fixed(p.x), turned.transpose(), half * 2.0F, rule, {.batch = 2}));
  check(layer(p.x.array(), p.context.topRows(6), Tokens(p.other), rule, {.batch = 2}));
  check(layer(Eigen::Ref<const Tokens>(p.x), p.context + Tokens::Zero(6, 4), p.other, rule,
              {.batch = 2}));
  check(layer(std::as_const(p.x), std::move(p.context), std::move(p.other), rule, {.batch = 2}));
}

TEST_CASE("an output in any layout, of a temporary view too, is written in every form",
          "[forms][layer]") {
  const Problem p;
  Eigen::MatrixXf wide = Eigen::MatrixXf::Zero(6, 8);
  p.layer.forward_into(wide.leftCols(4), p.x, {.batch = 2});
  CHECK_THAT(Tokens(wide.leftCols(4)), HasBitsOf(p.full(p.x, p.x, !kRule, kOptions)));
  p.layer.forward_into(Eigen::Map<Tokens>(wide.data(), 6, 4), p.x, p.context);
  CHECK_THAT(Tokens(Eigen::Map<Tokens>(wide.data(), 6, 4)),
             HasBitsOf(p.full(p.context, p.context, !kRule, !kOptions)));
}

TEST_CASE("one options object, or a class derived from it, serves many calls", "[forms][layer]") {
  struct Mine : MultiHeadOptions {};
  const Problem p;
  Mine mine;
  mine.batch = 2;
  CHECK_THAT(p.layer(p.x, mine), HasBitsOf(p.full(p.x, p.x, !kRule, kOptions)));
  CHECK_THAT(p.layer(p.x, mha::causal(), mine), HasBitsOf(p.full(p.x, p.x, kRule, kOptions)));
}

namespace {

// One head: two queries, behind one key of the cache, which causal() sees.
struct Head {
  Tokens q = random_matrix<float>(2, 3, 1);
  Tokens k = random_matrix<float>(4, 3, 2);
  Tokens v = random_matrix<float>(4, 5, 3);
  Tokens grad = random_matrix<float>(2, 5, 4);
  AttentionOptions past{.past_len = 1, .need_lse = true};
  AttentionOptions lse{.need_lse = true};
};

// The six forms of a function without a layer; each has the bits of f(rule, options).
template <class F>
void each_end(const F& f) {
  const Head h;
  const Tokens neither = f(All{}, h.lse);
  const Tokens ruled = f(mha::causal(), h.lse);
  const Tokens both = f(mha::causal(), h.past);
  CHECK_FALSE(neither == ruled);
  CHECK_FALSE(both == ruled);
  CHECK_THAT(f(h.lse), HasBitsOf(neither));
  CHECK_THAT(f(h.past), HasBitsOf(neither));  // nothing here goes by past_len but causal()
  CHECK_THAT(f(mha::causal() & mha::scale(1)), HasBitsOf(f(mha::causal() & mha::scale(1), h.lse)));
  CHECK_THAT(f(), HasBitsOf(neither));
  CHECK_THAT(f(mha::causal()), HasBitsOf(ruled));
}

}  // namespace

TEST_CASE("attention and scaled_dot_product_attention take every form of a call",
          "[forms][attention]") {
  const Head h;
  each_end([&](const auto&... end) { return stacked(mha::attention(h.q, h.k, h.v, end...)); });
  each_end([&](const auto&... end) {
    return stacked(mha::attention_forward(h.q, h.k, h.v, end...).output);
  });
  each_end(
      [&](const auto&... end) { return mha::scaled_dot_product_attention(h.q, h.k, h.v, end...); });
  each_end([&](const auto&... end) {
    return mha::scaled_dot_product_attention_forward(h.q, h.k, h.v, end...).output;
  });
  const auto expected = mha::attention(h.q, h.k, h.v, mha::causal(), h.past);
  const auto check = [&](const auto& output) {
    CHECK_THAT(stacked(output), HasBitsOf(stacked(expected)));
  };
  check(mha::attention(h.q, h.k, h.v, mha::causal(), {.past_len = 1}));
  check(mha::attention_forward(h.q, h.k, h.v, mha::causal(), {.past_len = 1}).output);
  check(mha::scaled_dot_product_attention(h.q, h.k, h.v, mha::causal(), {.past_len = 1}));
  check(mha::scaled_dot_product_attention_forward(h.q, h.k, h.v, mha::causal(), {.past_len = 1})
            .output);
  CHECK(mha::attention_forward(h.q, h.k, h.v, {.need_lse = true}).lse.size(2) == 2);
  CHECK(mha::scaled_dot_product_attention_forward(h.q, h.k, h.v, {.need_lse = true}).lse.size() ==
        2);
  mha::Workspace workspace;
  check(mha::attention(h.q.topRows(2), h.k, h.v, mha::causal_offset(1), {.workspace = &workspace}));
  const Tokens all = mha::scaled_dot_product_attention(h.q, h.k, h.v, {.workspace = &workspace});
  CHECK_THAT(all, HasBitsOf(stacked(mha::attention(h.q, h.k, h.v, {.workspace = &workspace}))));
}

TEST_CASE("attention_into takes every form of a call", "[forms][attention]") {
  const Head h;
  each_end([&](const auto&... end) {
    Tokens output = Tokens::Zero(2, 5);
    mha::attention_into(output, h.q, h.k, h.v, end...);
    return output;
  });
  each_end([&](const auto&... end) {
    mha::Tensor<float> output({1, 1, 2, 5});
    mha::attention_into(mha::AttentionOutputs<float>{.output = output.view()}, h.q, h.k, h.v,
                        end...);
    return stacked(output);
  });
  const auto expected = mha::scaled_dot_product_attention(h.q, h.k, h.v, mha::causal(), h.past);
  Tokens output = Tokens::Zero(2, 5);
  mha::attention_into(output, h.q, h.k, h.v, mha::causal(), {.past_len = 1});
  CHECK_THAT(output, HasBitsOf(expected));
  mha::Workspace workspace;
  mha::attention_into(output, h.q, h.k, h.v, {.workspace = &workspace});
  CHECK_THAT(output, HasBitsOf(mha::scaled_dot_product_attention(h.q, h.k, h.v)));
}

TEST_CASE("attention_backward takes every form of a call", "[forms][attention][gradient]") {
  const Head h;
  // Each form's backward pass behind its own forward pass.
  const auto result = [&](const auto&... end) {
    if constexpr (sizeof...(end) == 0) {
      return mha::attention_forward(h.q, h.k, h.v, h.lse);
    } else if constexpr ((mha::IsRule<decltype(end)> && ...)) {
      return mha::attention_forward(h.q, h.k, h.v, end..., h.lse);
    } else {
      return mha::attention_forward(h.q, h.k, h.v, end...);
    }
  };
  each_end([&](const auto&... end) {
    const auto forward = result(end...);
    return stacked(mha::attention_backward(h.grad, h.q, h.k, h.v, forward, end...).value);
  });
  each_end([&](const auto&... end) {
    const auto forward = result(end...);
    mha::HeadResult<float> head{forward.output.matrix(0, 0), {}, forward.lse.matrix(0, 0)};
    return mha::scaled_dot_product_attention_backward(h.grad, h.q, h.k, h.v, head, end...).value;
  });
  each_end([&](const auto&... end) {
    auto forward = result(end...);
    mha::Tensor<float> q({1, 1, 2, 3});
    mha::Tensor<float> k({1, 1, 4, 3});
    mha::Tensor<float> v({1, 1, 4, 5});
    mha::attention_backward_into(
        mha::AttentionGradientOutputs<float>{q.view(), k.view(), v.view()}, h.grad, h.q, h.k, h.v,
        mha::AttentionOutputs<float>{.output = forward.output.view(), .lse = forward.lse.view()},
        end...);
    return stacked(v);
  });
  mha::Workspace workspace;
  const auto forward = result(h.lse);
  const auto expected = mha::attention_backward(h.grad, h.q, h.k, h.v, forward);
  const auto braced =
      mha::attention_backward(h.grad, h.q, h.k, h.v, forward, {.workspace = &workspace});
  CHECK_THAT(stacked(braced.query), HasBitsOf(stacked(expected.query)));
  const auto past = result(mha::causal(), h.past);
  const auto behind = mha::attention_backward(h.grad, h.q, h.k, h.v, past, mha::causal(), h.past);
  const auto again =
      mha::attention_backward(h.grad, h.q, h.k, h.v, past, mha::causal(), {.past_len = 1});
  CHECK_THAT(stacked(again.query), HasBitsOf(stacked(behind.query)));
}

TEST_CASE("attention_scores takes every form of a call", "[forms][scores]") {
  using mha::ScoreStage;
  const Head h;
  const mha::AttentionScoresOptions scaled{.stage = ScoreStage::scaled};
  const auto check = [](const mha::Tensor<float>& scores, const mha::Tensor<float>& expected) {
    CHECK_THAT(stacked(scores), HasBitsOf(stacked(expected)));
  };
  const auto& q = h.q;
  const auto& k = h.k;
  check(mha::attention_scores(q, k), mha::attention_scores(q, k, All{}, {}));
  check(mha::attention_scores(q, k, mha::causal()),
        mha::attention_scores(q, k, mha::causal(), {.stage = ScoreStage::modified}));
  check(mha::attention_scores(q, k, scaled), mha::attention_scores(q, k, All{}, scaled));
  check(mha::attention_scores(q, k, {.stage = ScoreStage::scaled}),
        mha::attention_scores(q, k, mha::causal(), scaled));
  check(mha::attention_scores(q, k, mha::causal(), {.past_len = 1}),
        mha::attention_scores(q, k, mha::causal_offset(1)));
}
