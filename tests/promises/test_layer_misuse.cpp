// SPDX-License-Identifier: MIT
//
// Every public function of the layer with each argument wrong in turn, in every way that its type
// allows: each must throw std::invalid_argument whose sentence begins with the function and has the
// numbers, before anything is written. That nothing is read which must not be is what the sanitizers
// say of this program.
#include <mha/mha.hpp>

#include <functional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHeadConfig;
using mha::MultiHeadOptions;
using mha::Rotary;
using mha::RotaryPairs;
using mha::test::HasBitsOf;
using mha::test::message_of;
using mha::test::random_matrix;

namespace {

using Layer = mha::MultiHead<float, Eigen::Dynamic>;
using Pass = mha::TrainingPass<Layer>;
using Gradients = mha::MultiHeadGradients<Layer>;
using Options = MultiHeadOptions;
using Map = Eigen::Map<Matrix<float>>;

constexpr float kSentinel = 12345;

struct Mistake {
  std::string part;  ///< of the message
  std::function<void()> call;
};

void check(const std::string& function, const std::vector<Mistake>& mistakes) {
  for (const Mistake& mistake : mistakes) {
    const std::string message = message_of(mistake.call);
    CAPTURE(mistake.part, message);
    CHECK(message.rfind("mha::" + function + ": ", 0) == 0);
    CHECK(message.find(mistake.part) != std::string::npos);
  }
}

// Six query rows of 8, eight key rows of 5 and 6; every extra that a layer has.
const MultiHeadConfig kConfig{.embed_dim = 8,
                              .num_heads = 4,
                              .kv_heads = 2,
                              .value_dim = 3,
                              .kdim = 5,
                              .vdim = 6,
                              .out_dim = 7,
                              .add_bias_kv = true,
                              .add_zero_attn = true,
                              .rotary = Rotary{.pairs = RotaryPairs::half}};

struct Inputs {
  Matrix<float> query = random_matrix<float>(6, 8, 1);
  Matrix<float> key = random_matrix<float>(8, 5, 2);
  Matrix<float> value = random_matrix<float>(8, 6, 3);
};

Map nowhere(Index rows, Index cols) { return {nullptr, rows, cols}; }

// Wrong options of a call over six query rows and eight key rows.
struct WrongOptions {
  std::string part;
  Options options;
};

std::vector<WrongOptions> wrong_options() {
  constexpr Index kHuge = Index{1} << 62;
  return {
      {"batch must lie between 0 and 1073741824, got -1", {.batch = -1}},
      {"batch must lie between 0 and 1073741824, got 4611686018427387904", {.batch = kHuge}},
      {"batch must divide query.rows(), got 0 and 6", {.batch = 0}},
      {"batch must divide query.rows(), got 4 and 6", {.batch = 4}},
      {"batch must divide key.rows(), got 3 and 8", {.batch = 3}},
      {"got 3 and 2", {.batch = 3, .sequences = {2, 4}, .kv_sequences = {4, 4}}},
      {"got 2 and 3", {.sequences = {2, 4}, .kv_sequences = {4, 2, 2}}},
      {"got 1 and 0", {.kv_sequences = 8}},
      {"got -1 and 4 for sequence 0", {.sequences = {-1, 7}, .kv_sequences = {4, 4}}},
      {"got 4 and -1 for sequence 1", {.sequences = {2, 4}, .kv_sequences = {4, -1}}},
      {"got 9 of 6 query rows and 4 of 8 key rows", {.sequences = {9, 2}, .kv_sequences = {4, 4}}},
      {"got 2 of 6 query rows and 9 of 8 key rows", {.sequences = {2, 4}, .kv_sequences = {9, 4}}},
      {"got 4611686018427387904 of 6", {.sequences = {kHuge, kHuge}, .kv_sequences = {4, 4}}},
      {"must add up to query.rows(), got 5 and 6", {.sequences = {2, 3}, .kv_sequences = {4, 4}}},
      {"must add up to key.rows(), got 7 and 8", {.sequences = {2, 4}, .kv_sequences = {4, 3}}},
      {"must add up to key.rows(), got 6 and 8", {.sequences = {2, 4}}},
      {"past_len must lie between 0 and kv_len, got -1 and 8", {.past_len = -1}},
      {"past_len must lie between 0 and kv_len, got 9 and 8", {.past_len = 9}},
      {"past_len must lie between 0 and kv_len, got 5 and 4", {.batch = 2, .past_len = {4, 5}}},
      {"got 3 for a batch of 2", {.batch = 2, .past_len = {1, 1, 1}}},
      {"got 2 for a batch of 1", {.past_len = {1, 1}}},
      {"got 4 and 3", {.sequences = {2, 4}, .kv_sequences = {5, 3}, .past_len = 4}},
  };
}

// Wrong positions of a layer with rotary.
std::vector<WrongOptions> wrong_positions() {
  return {
      {"one per row of query, got 5 and 6", {.positions = {1, 2, 3, 4, 5}}},
      {"one per row of key, got 6 and 8", {.positions = 0, .kv_positions = {1, 2, 3, 4, 5, 6}}},
      {"key.rows() is not query.rows(): 8 and 6", {.positions = {1, 2, 3, 4, 5, 6}}},
      {"got offset 2 for sequence 0", {.positions = 2, .past_len = 2}},
  };
}

// Wrong parameters, which are public.
struct WrongLayer {
  std::string part;
  std::function<void(Layer&)> change;
};

std::vector<WrongLayer> wrong_layers() {
  return {
      {"q_proj.weight must be 8 x 8, got 8 x 9", [](Layer& l) { l.q_proj.weight.resize(8, 9); }},
      {"k_proj.weight must be 5 x 4, got 4 x 5", [](Layer& l) { l.k_proj.weight.resize(4, 5); }},
      {"v_proj.weight must be 6 x 6, got 0 x 0", [](Layer& l) { l.v_proj.weight.resize(0, 0); }},
      {"out_proj.weight must be 12 x 7, got 12 x 6",
       [](Layer& l) { l.out_proj.weight.resize(12, 6); }},
      {"q_proj.bias must have 0 or 8 entries, got 7", [](Layer& l) { l.q_proj.bias.resize(7); }},
      {"k_proj.bias must have 0 or 4 entries, got 1", [](Layer& l) { l.k_proj.bias.resize(1); }},
      {"v_proj.bias must have 0 or 6 entries, got 7", [](Layer& l) { l.v_proj.bias.resize(7); }},
      {"out_proj.bias must have 0 or 7 entries, got 8",
       [](Layer& l) { l.out_proj.bias.resize(8); }},
      {"must have 4 and 6 entries, got 0 and 6", [](Layer& l) { l.bias_k.resize(0); }},
      {"must have 4 and 6 entries, got 4 and 7", [](Layer& l) { l.bias_v.resize(7); }},
  };
}

// Rules that do not fit four heads, six queries and eight keys: f(part of the message, rule).
template <class F>
void each_wrong_rule(const F& f) {
  static const Matrix<float> small = Matrix<float>::Zero(3, 3);
  static const Matrix<bool> mask = Matrix<bool>::Constant(6, 7, true);
  static const mha::Tensor<float> heads({1, 3, 6, 8});
  f("entries along query_len, got 3", mha::bias(small));
  f("entries along kv_len, got 7", mha::keep(mask));
  f("entries along num_heads, got 3", mha::bias(heads));
  f("lengths must have one entry, or one per sequence, got 2", mha::lengths({1, 2}));
  f("lengths must lie between 0 and kv_len, got 9 and 8", mha::lengths(9));
  f("got 2 for a batch of 1", mha::causal_offset({1, 2}));
  f("sinks must have one logit", mha::causal() & mha::sinks(Eigen::Vector3f(1, 2, 3)));
}

// Every mistake that forward(), forward_into() and forward_training() share. call(layer, query, key,
// value, rule, options).
template <class Call>
void check_shared_mistakes(const std::string& function, const Call& call) {
  const Layer layer(kConfig);
  const Inputs in;
  std::vector<Mistake> mistakes;
  const auto add = [&](const std::string& part, auto query, auto key, auto value) {
    mistakes.push_back(
        {part, [=, &layer, &call] { call(layer, query, key, value, mha::All{}, Options{}); }});
  };
  using M = Matrix<float>;
  add("query.cols() must equal embed_dim, got 7 and 8", M(6, 7), in.key, in.value);
  add("query.cols() must equal embed_dim, got 0 and 8", M(6, 0), in.key, in.value);
  add("key.cols() must equal kdim, got 8 and 5", in.query, M(8, 8), in.value);
  add("value.cols() must equal vdim, got 5 and 6", in.query, in.key, M(8, 5));
  add("value.rows() must equal key.rows() (kv_len), got 7 and 8", in.query, in.key, M(7, 6));
  mistakes.push_back({"query.data must not be null, got sizes [1, 1, 6, 8]", [&] {
                        call(layer, nowhere(6, 8), in.key, in.value, mha::All{}, Options{});
                      }});
  mistakes.push_back({"key.data must not be null, got sizes [1, 1, 8, 5]", [&] {
                        call(layer, in.query, nowhere(8, 5), in.value, mha::All{}, Options{});
                      }});
  mistakes.push_back({"value.data must not be null, got sizes [1, 1, 8, 6]", [&] {
                        call(layer, in.query, in.key, nowhere(8, 6), mha::All{}, Options{});
                      }});
  // Rows without memory of their own reach any number.
  float one = 0;
  using Endless = Eigen::Map<const Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  const Endless endless(&one, (Index{1} << 30) + 1, 8,
                        Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(0, 0));
  mistakes.push_back({"query must have between 0 and 1073741824 entries along rows, got 1073741825",
                      [&] { call(layer, endless, in.key, in.value, mha::All{}, Options{}); }});
  for (const auto& wrong : {wrong_options(), wrong_positions()}) {
    for (const auto& [part, given] : wrong) {
      mistakes.push_back({part, [&in, &layer, &call, options = given] {
                            call(layer, in.query, in.key, in.value, mha::All{}, options);
                          }});
    }
  }
  for (const WrongLayer& wrong : wrong_layers()) {
    mistakes.push_back({wrong.part, [&in, &call, wrong] {
                          Layer changed(kConfig);
                          wrong.change(changed);
                          call(changed, in.query, in.key, in.value, mha::All{}, Options{});
                        }});
  }
  check(function, mistakes);
  each_wrong_rule([&](const char* part, const auto& rule) {
    check(function, {{part, [&] { call(layer, in.query, in.key, in.value, rule, Options{}); }}});
  });
}

void check_untouched(const Gradients& gradients) {
  const auto untouched = [](const auto& m) { return (m.array() == kSentinel).all(); };
  mha::detail::for_each_parameter(gradients, [&](std::string_view name, const auto& values) {
    CAPTURE(std::string(name));
    CHECK(untouched(values));
  });
  CHECK(untouched(gradients.query));
  CHECK(untouched(gradients.key));
  CHECK(untouched(gradients.value));
}

Gradients sentinels(const Layer& layer) {
  Gradients gradients(layer);
  mha::detail::for_each_parameter(
      gradients, [](std::string_view, auto& values) { values.setConstant(kSentinel); });
  gradients.query.setConstant(2, 2, kSentinel);
  gradients.key.setConstant(2, 2, kSentinel);
  gradients.value.setConstant(2, 2, kSentinel);
  return gradients;
}

}  // namespace

TEST_CASE("misuse of a layer's config", "[misuse][layer]") {
  const std::vector<std::pair<const char*, Index MultiHeadConfig::*>> sizes{
      {"embed_dim", &MultiHeadConfig::embed_dim}, {"num_heads", &MultiHeadConfig::num_heads},
      {"kv_heads", &MultiHeadConfig::kv_heads},   {"head_dim", &MultiHeadConfig::head_dim},
      {"value_dim", &MultiHeadConfig::value_dim}, {"kdim", &MultiHeadConfig::kdim},
      {"vdim", &MultiHeadConfig::vdim},           {"out_dim", &MultiHeadConfig::out_dim}};
  for (const auto& [name, size] : sizes) {
    for (const Index wrong : {Index{-1}, (Index{1} << 30) + 1, Index{1} << 62, -(Index{1} << 62)}) {
      MultiHeadConfig config = kConfig;
      config.*size = wrong;
      check("MultiHead",
            {{std::string(name) + " must lie between 0 (the default) and 1073741824, got " +
                  std::to_string(wrong),
              [&] { (void)Layer(config); }}});
    }
  }
  const Index most = Index{1} << 30;
  const auto with_rotary = [](const Rotary& rotary) {
    return [=] { (void)Layer({.embed_dim = 8, .num_heads = 2, .rotary = rotary}); };
  };
  check("MultiHead",
        {{"embed_dim must be at least 1, got 0", [] { (void)Layer({.num_heads = 2}); }},
         {"num_heads must be at least 1, got 0", [] { (void)Layer(8); }},
         {"kv_heads must divide num_heads, got 3 and 4",
          [] { (void)Layer({.embed_dim = 8, .num_heads = 4, .kv_heads = 3}); }},
         {"got 3 and 8", [] { (void)Layer({.embed_dim = 8, .num_heads = 3}); }},
         {"got num_heads 1073741824, head_dim 1073741824",
          [=] { (void)Layer({.embed_dim = 8, .num_heads = most, .head_dim = most}); }}});
  const double inf = mha::test::infinity_of<double>();
  check("MultiHead: rotary",
        {{"pairs must be", with_rotary({})},
         {"pairs must be", with_rotary({.pairs = static_cast<RotaryPairs>(7)})},
         {"got 6 and 4", with_rotary({.pairs = RotaryPairs::half, .dim = 6})},
         {"got -2 and 4", with_rotary({.pairs = RotaryPairs::half, .dim = -2})},
         {"dim must be even, got 3", with_rotary({.pairs = RotaryPairs::half, .dim = 3})},
         {"finite, got 0", with_rotary({.pairs = RotaryPairs::half, .base = 0})},
         {"got inf", with_rotary({.pairs = RotaryPairs::half, .base = inf})},
         {"got nan",
          with_rotary({.pairs = RotaryPairs::half, .base = mha::test::nan_of<double>()})}});
}

TEST_CASE("misuse of forward", "[misuse][layer]") {
  check_shared_mistakes("MultiHead::forward", [](const Layer& layer, const auto&... arguments) {
    (void)layer.forward(arguments...);
  });
  // The short forms come to the same place.
  const Layer layer(kConfig);
  const Inputs in;
  check("MultiHead::forward",
        {{"key.cols() must equal kdim, got 8 and 5", [&] { (void)layer.forward(in.query); }},
         {"value.cols() must equal vdim, got 5 and 6",
          [&] { (void)layer.forward(in.query, in.key); }},
         {"value.cols() must equal vdim, got 5 and 6", [&] { (void)layer(in.query, in.key); }},
         {"value.rows() must equal key.rows() (kv_len), got 6 and 8",
          [&] { (void)layer(in.query, in.key, in.value.topRows(6)); }}});
}

TEST_CASE("misuse of positions without rotary", "[misuse][layer]") {
  const mha::MultiHead<float, 2> layer(4);
  const Matrix<float> x = random_matrix<float>(3, 4, 1);
  check("MultiHead::forward",
        {{"got 1 positions and 0 kv_positions", [&] { (void)layer(x, Options{.positions = 0}); }},
         {"got 0 positions and 3 kv_positions", [&] {
            (void)layer(x, Options{.kv_positions = {1, 2, 3}});
          }}});
}

TEST_CASE("misuse of forward_into", "[misuse][layer]") {
  const std::string function = "MultiHead::forward_into";
  Matrix<float> output = Matrix<float>::Constant(6, 7, kSentinel);
  check_shared_mistakes(function, [&](const Layer& layer, const auto&... arguments) {
    layer.forward_into(output, arguments...);
  });
  const Layer layer(kConfig);
  Inputs in;
  std::vector<Mistake> mistakes;
  const auto add = [&](const std::string& part, auto to, const Options& options = {}) {
    mistakes.push_back({part, [=, &layer, &in]() mutable {
                          layer.forward_into(to, in.query, in.key, in.value, mha::All{}, options);
                        }});
  };
  using Strided = Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  add("output must be 6 x 7, got 5 x 7", Map(output.data(), 5, 7));
  add("output must be 6 x 7, got 6 x 6", Map(output.data(), 6, 6));
  add("output.data must not be null, got sizes [1, 1, 6, 7]", nowhere(6, 7));
  add("got sizes [1, 1, 6, 7] and strides [0, 0, 0, 1]",
      Strided(output.data(), 6, 7, Stride(0, 1)));
  add("got sizes [1, 1, 6, 7] and strides [0, 0, 7, 0]",
      Strided(output.data(), 6, 7, Stride(7, 0)));
  add("got sizes [1, 1, 6, 7] and strides [0, 0, 4, 1]",
      Strided(output.data(), 6, 7, Stride(4, 1)));
  add("got sizes [1, 1, 6, 7] and strides [0, 0, 2, 4]",
      Strided(output.data(), 6, 7, Stride(2, 4)));
  add("output must not overlap query, got", Map(in.query.data(), 6, 7));
  add("output must not overlap query", Map(in.query.data() + 47, 6, 7));
  add("output must not overlap", Map(in.key.data() + 39, 6, 7));  // and what lies behind it
  add("output must not overlap", Map(in.value.data() + 47, 6, 7));
  const Map free(output.data(), 6, 7);
  add("got need_weights 1", free, {.need_weights = true});
  add("average_weights 1", free, {.average_weights = true});
  add("need_lse 1", free, {.need_lse = true});
  const Inputs before;
  check(function, mistakes);
  CHECK((output.array() == kSentinel).all());
  CHECK_THAT(in.query, HasBitsOf(before.query));
  CHECK_THAT(in.key, HasBitsOf(before.key));
  CHECK_THAT(in.value, HasBitsOf(before.value));
  // Entries that interleave without meeting are fine, and a single row may have any stride.
  Matrix<float> room = Matrix<float>::Constant(6, 50, kSentinel);
  CHECK_NOTHROW(
      layer.forward_into(Strided(room.data(), 6, 7, Stride(2, 12)), in.query, in.key, in.value));
  CHECK_NOTHROW(layer.forward_into(Strided(room.data(), 1, 7, Stride(0, 1)), in.query.topRows(1),
                                   in.key, in.value));
}

TEST_CASE("misuse of workspace_bytes", "[misuse][layer]") {
  const std::string function = "MultiHead::workspace_bytes";
  const Layer layer(kConfig);
  constexpr Index kHuge = Index{1} << 62;
  std::vector<Mistake> mistakes{
      {"the rows of query must lie between 0 and 1073741824, got -6",
       [&] { (void)layer.workspace_bytes(-6, -6); }},
      {"the rows of key must lie between 0 and 1073741824, got -8",
       [&] { (void)layer.workspace_bytes(6, -8); }},
      {"got 4611686018427387904", [&] { (void)layer.workspace_bytes(kHuge, kHuge); }},
      {"got 1073741825", [&] { (void)layer.workspace_bytes(6, (Index{1} << 30) + 1); }}};
  for (const auto& [part, given] : wrong_options()) {
    mistakes.push_back(
        {part, [&layer, options = given] { (void)layer.workspace_bytes(6, 8, options); }});
  }
  for (const WrongLayer& wrong : wrong_layers()) {
    mistakes.push_back({wrong.part, [wrong] {
                          Layer changed(kConfig);
                          wrong.change(changed);
                          (void)changed.workspace_bytes(6, 8);
                        }});
  }
  check(function, mistakes);
}

TEST_CASE("misuse of forward_training", "[misuse][layer][gradient]") {
  const std::string function = "MultiHead::forward_training";
  Pass pass;
  check_shared_mistakes(function, [&](const Layer& layer, const auto&... arguments) {
    layer.forward_training(pass, arguments...);
  });
  CHECK(pass.output.size() == 0);
  // A pass's own output as an input of the same pass.
  const Layer square({.embed_dim = 8, .num_heads = 2});
  const Matrix<float> x = random_matrix<float>(6, 8, 1);
  square.forward_training(pass, x);
  const Matrix<float> before = pass.output;
  check(
      function,
      {{"pass.output must not overlap query, got",
        [&] { square.forward_training(pass, pass.output); }},
       {"pass.output must not overlap key", [&] { square.forward_training(pass, x, pass.output); }},
       {"pass.output must not overlap value",
        [&] { square.forward_training(pass, x, x, Map(pass.output.data(), 6, 8)); }},
       {"got need_weights 1",
        [&] { square.forward_training(pass, x, mha::All{}, {.need_weights = true}); }},
       {"need_lse 1", [&] { square.forward_training(pass, x, mha::All{}, {.need_lse = true}); }}});
  CHECK_THAT(pass.output, HasBitsOf(before));
  // A call that was refused leaves the pass as it was: it can still be undone.
  Gradients gradients(square);
  CHECK_NOTHROW(square.backward(gradients, pass, x));
}

TEST_CASE("misuse of backward", "[misuse][layer][gradient]") {
  const std::string function = "MultiHead::backward";
  const Layer layer(kConfig);
  Inputs in;
  const Options options{.sequences = {2, 4},
                        .kv_sequences = {3, 5},
                        .positions = 1,
                        .kv_positions = {0, 1, 2, 3, 4, 5, 6, 7},
                        .past_len = {1, 2}};
  const auto rule = mha::causal() & mha::lengths({3, 4});
  Pass pass;
  layer.forward_training(pass, in.query, in.key, in.value, rule, options);
  const Matrix<float> grad = random_matrix<float>(6, 7, 4);
  Gradients gradients = sentinels(layer);
  const auto refused = [&](const std::string& part, const std::function<void()>& call) {
    check(function, {{part, call}});
    check_untouched(gradients);
  };

  // The pass.
  refused("has not been run", [&] {
    Pass never;
    layer.backward(gradients, never, grad, rule, options);
  });
  refused("has not been run", [&] {
    Pass moved;
    layer.forward_training(moved, in.query, in.key, in.value, rule, options);
    const Pass taken = std::move(moved);
    layer.backward(gradients, moved, grad, rule, options);  // NOLINT(bugprone-use-after-move)
  });
  refused("got one of layer", [&] {
    const Layer copy = layer;
    copy.backward(gradients, pass, grad, rule, options);
  });
  refused("got one of layer", [&] {
    Layer other(kConfig);
    Pass of_other;
    other.forward_training(of_other, in.query, in.key, in.value, rule, options);
    other = layer;  // other numbers: not the layer that ran
    other.backward(gradients, of_other, grad, rule, options);
  });

  // The rule: of another type, or one that does not fit.
  refused("rule must be of the type", [&] { layer.backward(gradients, pass, grad); });
  refused("rule must be of the type",
          [&] { layer.backward(gradients, pass, grad, mha::causal(), options); });
  refused("rule must be of the type", [&] {
    layer.backward(gradients, pass, grad, mha::lengths({3, 4}) & mha::causal(), options);
  });
  refused("lengths must have one entry, or one per sequence, got 3", [&] {
    layer.backward(gradients, pass, grad, mha::causal() & mha::lengths({1, 2, 3}), options);
  });
  refused("lengths must lie between 0 and kv_len, got 9 and 5", [&] {
    layer.backward(gradients, pass, grad, mha::causal() & mha::lengths({3, 9}), options);
  });

  // The gradient of the output.
  const auto with_grad = [&](const auto& wrong) {
    return [&, wrong] { layer.backward(gradients, pass, wrong, rule, options); };
  };
  refused("grad_output must be 6 x 7, got 5 x 7", with_grad(Matrix<float>(5, 7)));
  refused("grad_output must be 6 x 7, got 6 x 8", with_grad(Matrix<float>(6, 8)));
  refused("grad_output must be 6 x 7, got 0 x 0", with_grad(Matrix<float>()));
  refused("grad_output.data must not be null, got sizes [1, 1, 6, 7]", with_grad(nowhere(6, 7)));

  // The options.
  const auto with_options = [&](const auto& change) {
    Options changed = options;
    change(changed);
    return [&, changed] { layer.backward(gradients, pass, grad, rule, changed); };
  };
  const auto no_lists = [](Options& o) { o.sequences = o.kv_sequences = o.past_len = {}; };
  refused("sequences must be that of forward_training(), got 0 entries and 2",
          with_options(no_lists));
  refused("got 3 and 2 in entry 0", with_options([](Options& o) { o.sequences = {3, 3}; }));
  refused("kv_sequences must be that of forward_training(), got 4 and 3 in entry 0",
          with_options([](Options& o) {
            o.kv_sequences = {4, 4};
          }));
  refused("past_len must be that of forward_training(), got 0 and 1 for sequence 0",
          with_options([](Options& o) { o.past_len = {}; }));
  refused("past_len must be that of forward_training(), got 1 and 2 for sequence 1",
          with_options([](Options& o) { o.past_len = 1; }));
  refused("past_len must lie between 0 and kv_len, got -1 and 3",
          with_options([](Options& o) { o.past_len = -1; }));
  refused("positions must be that of forward_training(), got 0 entries and 1",
          with_options([](Options& o) { o.positions = {}; }));
  refused("positions must be that of forward_training(), got 2 and 1 in entry 0",
          with_options([](Options& o) { o.positions = 2; }));
  refused("kv_positions must be that of forward_training(), got 1 entries and 8",
          with_options([](Options& o) { o.kv_positions = 0; }));
  refused("got need_weights 1", with_options([](Options& o) { o.need_weights = true; }));
  for (const auto& [part, given] : wrong_options()) {
    refused("", [&, wrong = given] { layer.backward(gradients, pass, grad, rule, wrong); });
  }

  // Equal sequences of another number.
  {
    const Layer plain({.embed_dim = 8, .num_heads = 2});
    const Matrix<float> x = random_matrix<float>(6, 8, 1);
    Pass equal;
    plain.forward_training(equal, x, mha::All{}, {.batch = 2});
    Gradients own(plain);
    check(function, {{"batch must be that of forward_training(), got 3 and 2",
                      [&] { plain.backward(own, equal, x, mha::All{}, {.batch = 3}); }}});
    const Matrix<float> bias = random_matrix<float>(3, 3, 5);
    const Matrix<float> small = random_matrix<float>(2, 2, 5);
    plain.forward_training(equal, x, mha::bias(bias), {.batch = 2});
    check(function, {{"bias(m) must have 1 or 3 entries along query_len, got 2",
                      [&] { plain.backward(own, equal, x, mha::bias(small), {.batch = 2}); }}});
    // One that collects a gradient is the same rule, and so is one that was named elsewhere.
    Matrix<float> learned = Matrix<float>::Zero(3, 3);
    const auto collecting = mha::bias(bias, learned);
    CHECK_NOTHROW(plain.backward(own, equal, x, collecting, {.batch = 2}));
    CHECK(learned.cwiseAbs().maxCoeff() > 0);
    Layer moved = Layer({.embed_dim = 8, .num_heads = 2});
    moved.forward_training(equal, x);
    const Layer same = std::move(moved);
    CHECK_NOTHROW(same.backward(own, equal, x));
  }
}

TEST_CASE("misuse of backward's gradients and of parameters in between",
          "[misuse][layer][gradient]") {
  const std::string function = "MultiHead::backward";
  Layer layer(kConfig);
  Inputs in;
  Pass pass;
  layer.forward_training(pass, in.query, in.key, in.value);
  const Matrix<float> grad = random_matrix<float>(6, 7, 4);
  const Layer before = layer;

  for (const WrongLayer& wrong : wrong_layers()) {
    Gradients gradients = sentinels(before);
    wrong.change(layer);
    check(function, {{wrong.part, [&] { layer.backward(gradients, pass, grad); }}});
    check_untouched(gradients);
    mha::detail::for_each_parameter(before, [&](std::string_view name, const auto& values) {
      mha::detail::for_each_parameter(layer, [&](std::string_view own, auto& to) {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(to)>,
                                     std::remove_cvref_t<decltype(values)>>) {
          if (own == name) to = values;
        }
      });
    });
  }
  {
    Gradients gradients = sentinels(layer);
    layer.q_proj.bias.resize(0);
    check(function, {{"q_proj.bias must be as large as in forward_training(), got 0 and 8",
                      [&] { layer.backward(gradients, pass, grad); }}});
    check_untouched(gradients);
    layer.q_proj.bias = before.q_proj.bias;
  }

  using Change = std::function<void(Gradients&)>;
  const std::vector<std::pair<std::string, Change>> wrong_gradients{
      {"q_proj.weight must be 8 x 8, got 0 x 0", [](Gradients& g) { g = Gradients(); }},
      {"q_proj.weight must be 8 x 8, got 4 x 16",
       [](Gradients& g) { g.q_proj.weight.resize(4, 16); }},
      {"k_proj.weight must be 5 x 4, got 4 x 5",
       [](Gradients& g) { g.k_proj.weight.resize(4, 5); }},
      {"v_proj.weight must be 6 x 6, got 6 x 5",
       [](Gradients& g) { g.v_proj.weight.resize(6, 5); }},
      {"out_proj.weight must be 12 x 7, got 7 x 12",
       [](Gradients& g) { g.out_proj.weight.resize(7, 12); }},
      {"q_proj.bias must have 8 entries, got 0", [](Gradients& g) { g.q_proj.bias.resize(0); }},
      {"k_proj.bias must have 4 entries, got 3", [](Gradients& g) { g.k_proj.bias.resize(3); }},
      {"v_proj.bias must have 6 entries, got 7", [](Gradients& g) { g.v_proj.bias.resize(7); }},
      {"out_proj.bias must have 7 entries, got 1", [](Gradients& g) { g.out_proj.bias.resize(1); }},
      {"must have 4 and 6 entries, got 0 and 6", [](Gradients& g) { g.bias_k.resize(0); }},
      {"must have 4 and 6 entries, got 4 and 5", [](Gradients& g) { g.bias_v.resize(5); }}};
  for (const auto& [part, change] : wrong_gradients) {
    Gradients gradients(layer);
    change(gradients);
    mha::detail::for_each_parameter(
        gradients, [](std::string_view, auto& values) { values.setConstant(kSentinel); });
    check(function, {{part, [&] { layer.backward(gradients, pass, grad); }}});
    check_untouched(gradients);
  }
}

TEST_CASE("misuse of gradients as inputs", "[misuse][layer][gradient]") {
  const std::string function = "MultiHead::backward";
  const Layer square({.embed_dim = 8, .num_heads = 2});
  const Matrix<float> x = random_matrix<float>(8, 8, 1);
  Pass pass;
  Gradients gradients(square);
  square.forward_training(pass, x);
  square.backward(gradients, pass, x);
  const Matrix<float> before = gradients.query;
  check(function, {{"gradients.query must not overlap grad_output, got",
                    [&] { square.backward(gradients, pass, gradients.query); }},
                   {"gradients.query must not overlap the pass's query",
                    [&] {
                      Pass chained;
                      square.forward_training(chained, gradients.query);
                      square.backward(gradients, chained, x);
                    }},
                   {"gradients.query must not overlap the pass's value",
                    [&] {
                      Pass chained;
                      square.forward_training(chained, x, x, gradients.query);
                      square.backward(gradients, chained, x);
                    }},
                   {"k_proj.weight must not overlap the pass's key",
                    [&] {
                      Pass chained;
                      square.forward_training(chained, x, gradients.k_proj.weight);
                      square.backward(gradients, chained, x);
                    }},
                   {"out_proj.weight must not overlap grad_output",
                    [&] { square.backward(gradients, pass, gradients.out_proj.weight); }}});
  CHECK_THAT(gradients.query, HasBitsOf(before));
}

TEST_CASE("misuse of strides, of positions and of the layer's own memory",
          "[misuse][layer][regression]") {
  Layer layer({.embed_dim = 8, .num_heads = 2, .rotary = Rotary{.pairs = RotaryPairs::half}});
  std::vector<float> memory(64, kSentinel);
  const Matrix<float> x = random_matrix<float>(4, 8, 1);
  using Strided = Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>>;
  const Strided far(memory.data(), 4, 8, Eigen::OuterStride<>(Index{1} << 60));
  const auto into = [&](Index stride) {
    return [&, stride] {
      layer.forward_into(Strided(memory.data(), 4, 8, Eigen::OuterStride<>(stride)), x);
    };
  };
  check("MultiHead::forward", {{"no element of query may lie farther than an address reaches",
                                [&] { (void)layer.forward(far); }},
                               {"positions must be given beside kv_positions, got 0 and 1", [&] {
                                  (void)layer.forward(x, mha::All{}, {.kv_positions = 100});
                                }}});
  check("MultiHead::forward_into",
        {{"no element of output may lie farther than an address reaches", into(Index{1} << 62)},
         {"output must have a place of its own for every element", into(4)},
         {"output must not overlap out_proj.weight",
          [&] { layer.forward_into(layer.out_proj.weight, random_matrix<float>(8, 8, 1)); }}});
  Pass pass;
  Gradients gradients(layer);
  layer.forward_training(pass, x);
  const auto backward = [&](const auto& grad) {
    return [&] { layer.backward(gradients, pass, grad); };
  };
  check("MultiHead::forward_training",
        {{"no element of query may lie farther", [&] { layer.forward_training(pass, far); }}});
  layer.forward_training(pass, x);
  check("MultiHead::backward", {{"no element of grad_output may lie farther", backward(far)}});
  for (const float number : memory) CHECK(number == kSentinel);
}

TEST_CASE("misuse of a rule of other numbers or sizes than in the forward pass",
          "[misuse][layer][gradient][regression]") {
  Layer heads({.embed_dim = 8, .num_heads = 2});
  const Matrix<float> x = random_matrix<float>(4, 8, 1);
  Pass pass;
  Gradients gradients(heads);
  const auto refused = [&](const auto& then, const auto& now) {
    heads.forward_training(pass, x, then);
    heads.backward(gradients, pass, x, then);
    const Matrix<float> before = gradients.query;
    check("MultiHead::backward", {{"rule must have the numbers and sizes",
                                   [&] { heads.backward(gradients, pass, x, now); }}});
    CHECK_THAT(gradients.query, HasBitsOf(before));
  };
  const Matrix<float> whole = random_matrix<float>(4, 4, 2);
  const Matrix<float> row = random_matrix<float>(1, 4, 2);
  const Eigen::Vector2f two(0.5F, 0.25F);
  const Eigen::Vector2f others(0.5F, 0.125F);
  refused(mha::bias(whole), mha::bias(row));
  refused(mha::causal(), mha::causal_lower_right());
  refused(mha::causal(), mha::causal_offset(0));
  refused(mha::alibi(two), mha::alibi(others));
  refused(mha::sinks(two), mha::sinks(others));
  refused(mha::window(1, 0), mha::window(2, 0));
  refused(mha::lengths(3), mha::lengths(4));
  refused(mha::dropout(0.1, 1), mha::dropout(0.1, 2));
  refused(mha::softcap(3), mha::softcap(4));
  refused(mha::scale(0.5) & mha::causal(), mha::scale(0.25) & mha::causal());
  // One that collects a gradient is the same rule.
  Matrix<float> collected = Matrix<float>::Zero(4, 4);
  heads.forward_training(pass, x, mha::bias(whole));
  CHECK_NOTHROW(heads.backward(gradients, pass, x, mha::bias(whole, collected)));
  CHECK(collected.norm() > 0);
}

TEST_CASE("a matrix of more than 2^30 entries is seen by rows, each axis within the limit",
          "[misuse][layer][regression]") {
  const Matrix<float> x = random_matrix<float>(3, 4, 1);
  const auto view = mha::detail::memory_of(x);
  CHECK((view.rows == 3 && view.cols == 4 && view.row_stride == 4 && view.col_stride == 1));
}
