// SPDX-License-Identifier: MIT
//
// The layer's parameters: their shapes, where they live, and the numbers they start with.
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::Projection;
using mha::RowVector;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::Tokens;

namespace {

using AnyHeads = MultiHead<double, Eigen::Dynamic>;

constexpr double kEps = std::numeric_limits<double>::epsilon();

// Does the matrix lie inside the object?
template <class Object, class M>
bool lives_in(const Object& object, const M& m) {
  const auto first = reinterpret_cast<std::uintptr_t>(&object);
  const auto data = reinterpret_cast<std::uintptr_t>(m.data());
  return data >= first && data < first + sizeof(object);
}

// Mean of f over all entries.
template <class M, class F>
double mean_of(const M& m, const F& f) {
  double sum = 0;
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) sum += f(static_cast<double>(m(i, j)));
  }
  return sum / static_cast<double>(m.size());
}

// n uniform numbers in [-bound, bound) have mean 0 +- bound / sqrt(3 n), mean square bound^2 / 3 +-
// 2 bound^2 / sqrt(45 n); five deviations are allowed. The largest of n is within 10 bound / n of
// the bound but for a chance of exp(-10).
template <class M>
void check_uniform(const M& weight, double bound) {
  CAPTURE(bound);
  const auto n = static_cast<double>(weight.size());
  const double mean = mean_of(weight, [](double w) { return w; });
  const double square = mean_of(weight, [](double w) { return w * w; });
  const auto largest = static_cast<double>(weight.cwiseAbs().maxCoeff());
  CHECK(largest <= bound);
  CHECK(largest >= bound * (1 - 10 / n));
  CHECK_THAT(mean, Catch::Matchers::WithinAbs(0, 5 * bound / std::sqrt(3 * n)));
  CHECK_THAT(square,
             Catch::Matchers::WithinAbs(bound * bound / 3, 10 * bound * bound / std::sqrt(45 * n)));
}

// n normal numbers have mean 0 +- s / sqrt(n), mean square s^2 (1 +- sqrt(2 / n)), mean fourth
// power s^4 (3 +- sqrt(96 / n)); five deviations are allowed.
template <class M>
void check_normal(const M& vector, double deviation) {
  const auto n = static_cast<double>(vector.size());
  const double s2 = deviation * deviation;
  using Catch::Matchers::WithinAbs;
  CHECK_THAT(mean_of(vector, [](double w) { return w; }),
             WithinAbs(0, 5 * deviation / std::sqrt(n)));
  CHECK_THAT(mean_of(vector, [](double w) { return w * w; }),
             WithinAbs(s2, 5 * s2 * std::sqrt(2 / n)));
  CHECK_THAT(mean_of(vector, [](double w) { return w * w * w * w; }),
             WithinAbs(3 * s2 * s2, 5 * s2 * s2 * std::sqrt(96 / n)));
}

}  // namespace

TEST_CASE("weights are inputs x outputs, biases a row of outputs", "[projection]") {
  const AnyHeads layer({.embed_dim = 10,
                        .num_heads = 6,
                        .kv_heads = 3,
                        .head_dim = 4,
                        .value_dim = 5,
                        .kdim = 7,
                        .vdim = 9,
                        .out_dim = 2,
                        .add_bias_kv = true});
  const auto check_shape = [](const auto& linear, Index inputs, Index outputs) {
    CHECK(linear.weight.rows() == inputs);
    CHECK(linear.weight.cols() == outputs);
    CHECK(linear.inputs() == inputs);
    CHECK(linear.outputs() == outputs);
    CHECK(linear.bias.size() == outputs);
    CHECK(linear.has_bias());
  };
  check_shape(layer.q_proj, 10, Index{6} * 4);
  check_shape(layer.k_proj, 7, Index{3} * 4);
  check_shape(layer.v_proj, 9, Index{3} * 5);
  check_shape(layer.out_proj, Index{6} * 5, 2);
  CHECK(layer.bias_k.size() == Index{3} * 4);
  CHECK(layer.bias_v.size() == Index{3} * 5);
}

TEST_CASE("sizes that are not given come from those that are", "[projection]") {
  SECTION("the usual layer") {
    const MultiHead<double, 3> layer(12);
    const MultiHeadConfig& c = layer.config();
    CHECK(c.embed_dim == 12);
    CHECK(c.num_heads == 3);
    CHECK(c.kv_heads == 3);
    CHECK(c.head_dim == 4);
    CHECK(c.value_dim == 4);
    CHECK(c.kdim == 12);
    CHECK(c.vdim == 12);
    CHECK(c.out_dim == 12);
  }
  SECTION("value_dim follows head_dim") {
    const AnyHeads layer({.embed_dim = 12, .num_heads = 3, .head_dim = 7});
    CHECK(layer.value_dim() == 7);
    CHECK(layer.out_dim() == 12);
  }
  SECTION("everything fixed at compile time") {
    const MultiHead<double, 3, 5> layer;
    CHECK(layer.embed_dim() == 15);
    CHECK(layer.num_heads() == 3);
    CHECK(layer.kv_heads() == 3);
    CHECK(layer.head_dim() == 5);
    CHECK(layer.value_dim() == 5);
    CHECK(layer.out_dim() == 15);
  }
  SECTION("rotary turns every channel") {
    const AnyHeads layer(
        {.embed_dim = 12, .num_heads = 3, .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
    CHECK(layer.config().rotary->dim == 4);
  }
}

TEST_CASE("a layer without bias has none", "[projection]") {
  const MultiHead<double, 2> layer({.embed_dim = 4, .bias = false});
  for (const auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
    CHECK_FALSE(linear->has_bias());
    CHECK(linear->bias.size() == 0);
  }
  CHECK(layer.bias_k.size() == 0);
  CHECK(layer.bias_v.size() == 0);
}

TEST_CASE("the parameters of MultiHead<float, 4, 16> have compile-time size and live in the object",
          "[projection]") {
  using Layer = MultiHead<float, 4, 16>;
  STATIC_REQUIRE(Layer::kWidth == 64);
  STATIC_REQUIRE(Layer::Linear::Weight::SizeAtCompileTime == 64 * 64);
  STATIC_REQUIRE(Layer::Linear::Bias::SizeAtCompileTime == 64);
  STATIC_REQUIRE(sizeof(Layer) >= sizeof(float) * 4 * (64 * 64 + 64));
  const auto layer = std::make_unique<Layer>();
  for (const auto* linear : {&layer->q_proj, &layer->k_proj, &layer->v_proj, &layer->out_proj}) {
    CHECK(lives_in(*layer, linear->weight));
    CHECK(lives_in(*layer, linear->bias));
  }
}

TEST_CASE("a fixed layer beyond Eigen's stack limit keeps its parameters on the heap",
          "[projection]") {
  using Layer = MultiHead<float, 8, 64>;
  STATIC_REQUIRE(Layer::kWidth == Eigen::Dynamic);
  STATIC_REQUIRE(sizeof(Layer) < 4096);
  const Layer layer;
  CHECK(layer.q_proj.weight.rows() == 512);
  CHECK(layer.q_proj.weight.cols() == 512);
  CHECK_FALSE(lives_in(layer, layer.q_proj.weight));
}

TEST_CASE("the smallest and the one-column projections are what they say", "[projection]") {
  STATIC_REQUIRE(MultiHead<float, 1, 1>::Linear::Weight::SizeAtCompileTime == 1);
  using Column = Projection<float, 3, 1>;
  Column column;
  column.resize(3, 1, true);
  CHECK(column.weight.rows() == 3);
  CHECK(column.weight.cols() == 1);
  CHECK(column.bias.size() == 1);
}

TEST_CASE("a projection of one column multiplies by it", "[projection]") {
  // (1, 2, 3) . (4, 5, 6) + 7 = 39
  AnyHeads layer({.embed_dim = 3, .num_heads = 1, .head_dim = 1, .out_dim = 3});
  layer.v_proj.weight << 4, 5, 6;
  layer.v_proj.bias << 7;
  layer.out_proj.weight << 1, 10, 100;
  CHECK_THAT(layer(Tokens{{1, 2, 3}}), IsClose(Tokens{{39, 390, 3900}}, 4 * kEps * 3900));
}

TEST_CASE("input weights of one width are uniform by Xavier's rule over all three",
          "[projection][init]") {
  // PyTorch keeps q, k and v in one weight of 3 * 64 x 64: sqrt(6 / (64 + 192)).
  const MultiHead<double, 4> layer({.embed_dim = 64, .seed = 3});
  const double bound = std::sqrt(6.0 / 256);
  check_uniform(layer.q_proj.weight, bound);
  check_uniform(layer.k_proj.weight, bound);
  check_uniform(layer.v_proj.weight, bound);
}

TEST_CASE("input weights of different widths are uniform by Xavier's rule each",
          "[projection][init]") {
  const MultiHead<double, 4> layer({.embed_dim = 64, .kdim = 40, .vdim = 90, .seed = 3});
  check_uniform(layer.q_proj.weight, std::sqrt(6.0 / (64 + 64)));
  check_uniform(layer.k_proj.weight, std::sqrt(6.0 / (40 + 64)));
  check_uniform(layer.v_proj.weight, std::sqrt(6.0 / (90 + 64)));
}

TEST_CASE("output weights are uniform within 1 / sqrt(inputs)", "[projection][init]") {
  const MultiHead<double, 4> layer({.embed_dim = 64, .value_dim = 25, .seed = 3});
  check_uniform(layer.out_proj.weight, 0.1);
}

TEST_CASE("biases start as 0", "[projection][init]") {
  const MultiHead<double, 4> layer({.embed_dim = 64, .seed = 3});
  for (const auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
    CHECK(linear->bias.size() == 64);
    CHECK(linear->bias.isZero(0));
  }
}

TEST_CASE("bias_k and bias_v start normal by Xavier's rule", "[projection][init]") {
  // PyTorch's bias_k is 1 x 1 x 4096: both fans are 4096, the deviation sqrt(2 / 8192) = 1 / 64.
  const MultiHead<double, 1> layer(
      {.embed_dim = 1, .head_dim = 4096, .add_bias_kv = true, .seed = 3});
  check_normal(layer.bias_k, 1 / 64.0);
  check_normal(layer.bias_v, 1 / 64.0);
}

TEST_CASE("the same seed gives the same parameters, another seed others", "[projection][init]") {
  const MultiHeadConfig config{.embed_dim = 8, .add_bias_kv = true, .seed = 7};
  const MultiHead<float, 2> layer(config);
  const MultiHead<float, 2> again(config);
  CHECK_THAT(again.q_proj.weight, HasBitsOf(layer.q_proj.weight));
  CHECK_THAT(again.out_proj.weight, HasBitsOf(layer.out_proj.weight));
  CHECK_THAT(again.bias_v, HasBitsOf(layer.bias_v));
  MultiHeadConfig other = config;
  other.seed = 8;
  const MultiHead<float, 2> different(other);
  CHECK((different.q_proj.weight.array() != layer.q_proj.weight.array()).all());
  CHECK((different.bias_k.array() != layer.bias_k.array()).all());
}

TEST_CASE("no two weights of a layer start with the same numbers", "[projection][init]") {
  const MultiHead<float, 2> layer({.embed_dim = 8, .seed = 7});
  CHECK((layer.q_proj.weight.array() != layer.k_proj.weight.array()).all());
  CHECK((layer.k_proj.weight.array() != layer.v_proj.weight.array()).all());
  CHECK((layer.v_proj.weight.array() != layer.out_proj.weight.array()).all());
}

TEST_CASE("the first parameters of seed 0 are those of SplitMix64", "[projection][init]") {
  // SplitMix64 from 0 gives 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4 (as published with xoshiro);
  // a weight is bound * (2 bits / 2^64 - 1), here with bound sqrt(6 / (2 + 6)).
  const MultiHead<double, 1> layer({.embed_dim = 2, .seed = 0});
  const double bound = std::sqrt(6.0 / 8);
  const double first = 0xE220A8397B1DCDAFp0;
  const double second = 0x6E789E6AA1B965F4p0;
  const Tokens expected{{bound * (first * 0x1p-63 - 1), bound * (second * 0x1p-63 - 1)}};
  CHECK_THAT(Tokens(layer.q_proj.weight.row(0)), IsClose(expected, 4 * kEps));
  // The same in decimal.
  CHECK_THAT(Tokens(layer.q_proj.weight.row(0)),
             IsClose(Tokens{{0.663913794916, -0.118596988008}}, 1e-12));
}

TEST_CASE("the scalar type only rounds the initial parameters", "[projection][init]") {
  const MultiHeadConfig config{.embed_dim = 8, .add_bias_kv = true, .seed = 7};
  const MultiHead<double, 2> wide(config);
  const MultiHead<float, 2> narrow(config);
  const MultiHead<Eigen::bfloat16, 2> sixteen(config);
  CHECK_THAT(narrow.k_proj.weight, IsClose(wide.k_proj.weight, 0x1p-24));
  CHECK_THAT(narrow.bias_k, IsClose(wide.bias_k, 0x1p-23));
  CHECK_THAT(sixteen.k_proj.weight, IsClose(wide.k_proj.weight, 0x1p-9));
}

TEST_CASE("parameters may be written and replaced", "[projection]") {
  MultiHead<float, 2> layer({.embed_dim = 4, .bias = false});
  layer.v_proj.weight.setIdentity();
  layer.out_proj.weight = Matrix<float>::Identity(4, 4);
  const Matrix<float> x{{1, 2, 3, 4}};
  CHECK_THAT(layer(x), HasBitsOf(x));                          // one token attends to itself alone
  layer.out_proj.bias = RowVector<float>::Constant(4, 10.0F);  // one bias of four may be there
  CHECK_THAT(layer(x), HasBitsOf(Matrix<float>(x.array() + 10)));
}
