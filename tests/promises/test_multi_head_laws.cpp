// SPDX-License-Identifier: MIT
//
// MultiHead: what holds whatever the numbers are (permutations, sizes known at compile time or not,
// threads, storage of the arguments) and the edges (masked rows, NaN in padding, nothing at all).
#include <array>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::test::cast_to;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::layer_tolerance;
using mha::test::plain_layer;
using mha::test::PlainCall;
using mha::test::random_matrix;
using mha::test::randomise;
using mha::test::same_bits;
using mha::test::Tokens;

namespace {

// A layer whose output bias is not 0, as it would be initially.
template <class Scalar>
MultiHead<Scalar, 2> small_layer(MultiHeadConfig config = {}) {
  config.embed_dim = 6;
  MultiHead<Scalar, 2> layer(config);
  randomise(layer, 21);
  return layer;
}

}  // namespace

TEST_CASE("permuting the tokens permutes the output", "[multi_head][law]") {
  const auto layer = small_layer<double>();
  const Tokens x = random_matrix<double>(7, 6, 1);
  Eigen::PermutationMatrix<Eigen::Dynamic> permutation(7);
  permutation.indices() << 3, 0, 6, 1, 5, 2, 4;
  const Tokens permuted = permutation * x;
  const Tokens expected = permutation * layer(x);
  CHECK_THAT(layer(permuted), IsClose(expected, layer_tolerance(layer, 7)));
}

TEST_CASE("permuting keys and values together changes nothing", "[multi_head][law]") {
  const auto layer = small_layer<double>({.add_bias_kv = true, .add_zero_attn = true});
  const Tokens x = random_matrix<double>(3, 6, 1);
  const Tokens k = random_matrix<double>(7, 6, 2);
  const Tokens v = random_matrix<double>(7, 6, 3);
  Eigen::PermutationMatrix<Eigen::Dynamic> permutation(7);
  permutation.indices() << 3, 0, 6, 1, 5, 2, 4;
  const Tokens y = layer(x, permutation * k, permutation * v);
  CHECK_THAT(y, IsClose(layer(x, k, v), layer_tolerance(layer, 7)));
}

TEST_CASE("keys of no effect and no key are the same", "[multi_head][law][mask]") {
  const auto layer = small_layer<double>();
  const Tokens x = random_matrix<double>(3, 6, 1);
  const Tokens context = random_matrix<double>(9, 6, 2);
  const Tokens some = context.topRows(5);
  const double tolerance = layer_tolerance(layer, 9);
  CHECK_THAT(layer(x, context, mha::lengths(5)), IsClose(layer(x, some), tolerance));
}

TEMPLATE_TEST_CASE("sizes known at compile time change no bit", "[multi_head][law]", float,
                   double) {
  const MultiHeadConfig config{.embed_dim = 12, .num_heads = 3, .seed = 8};
  const MultiHead<TestType, 3, 4> fixed(config);
  const MultiHead<TestType, 3> heads(config);
  const MultiHead<TestType, Eigen::Dynamic> any(config);
  const Matrix<TestType> x = random_matrix<TestType>(5, 12, 1);
  const Matrix<TestType> y = any(x, mha::causal());
  CHECK_THAT(heads(x, mha::causal()), HasBitsOf(y));
  CHECK_THAT(fixed(x, mha::causal()), HasBitsOf(y));
}

TEST_CASE("a fixed layer may be larger than Eigen's stack limit", "[multi_head]") {
  const MultiHead<float, 8, 64> fixed;  // 512 x 512 floats are 1 MB, the limit is 128 KB
  const MultiHead<float, 8> any(fixed.config());
  const Matrix<float> x = random_matrix<float>(3, 512, 1);
  CHECK_THAT(fixed(x), HasBitsOf(any(x)));
}

TEST_CASE("a layer of one head of one channel works", "[multi_head]") {
  // One key has weight 1: y = x W_V W_O, 3 * 2 * 5.
  MultiHead<float, 1, 1> layer;
  layer.v_proj.weight << 2;
  layer.out_proj.weight << 5;
  CHECK_THAT(layer(Matrix<float>{{3}}), HasBitsOf(Matrix<float>{{30}}));
}

TEMPLATE_TEST_CASE("a query that may attend to nothing gives the output bias exactly",
                   "[multi_head][mask]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  const auto layer = small_layer<TestType>();
  const Matrix<TestType> x = random_matrix<TestType>(4, 6, 1);
  Matrix<bool> nobody = Matrix<bool>::Constant(4, 4, true);
  nobody.row(2).setConstant(false);
  const auto result = layer.forward(x, mha::keep(nobody), {.need_weights = true, .need_lse = true});
  const Matrix<TestType> bias = layer.out_proj.bias;
  CHECK_THAT(Matrix<TestType>(result.output.row(2)), HasBitsOf(bias));
  using Acc = mha::accumulator_t<TestType>;
  for (Index h = 0; h < 2; ++h) {
    CHECK_THAT(Matrix<Acc>(result.weights.matrix(0, h).row(2)),
               HasBitsOf(Matrix<Acc>(Matrix<Acc>::Zero(1, 4))));
    CHECK(result.lse(2, h) == -Eigen::NumTraits<Acc>::infinity());
  }
  const Matrix<TestType> without = layer(x, mha::keep(nobody));
  CHECK_THAT(without, HasBitsOf(result.output));

  // Every key of every query masked.
  const Matrix<TestType> all = layer(x, mha::lengths(0));
  CHECK_THAT(all, HasBitsOf(Matrix<TestType>(bias.replicate(4, 1))));
}

TEST_CASE("without an output bias a query that may attend to nothing gives 0",
          "[multi_head][mask]") {
  const auto layer = small_layer<float>({.bias = false});
  const Matrix<float> y = layer(random_matrix<float>(4, 6, 1), mha::lengths(0));
  CHECK_THAT(y, HasBitsOf(Matrix<float>(Matrix<float>::Zero(4, 6))));
}

TEST_CASE("extra keys stay when all others are masked", "[multi_head][mask]") {
  const bool zero = GENERATE(false, true);
  const bool by_length = GENERATE(false, true);
  CAPTURE(zero, by_length);
  const auto layer = small_layer<double>({.add_bias_kv = true, .add_zero_attn = zero});
  const Tokens x = random_matrix<double>(4, 6, 1);
  const Matrix<bool> all = Matrix<bool>::Constant(4, 4, true);
  const auto result = by_length ? layer.forward(x, mha::lengths(0), {.need_weights = true})
                                : layer.forward(x, mha::ignore(all), {.need_weights = true});
  PlainCall call;
  call.allowed = [](Index, Index, Index) { return false; };
  const auto expected = plain_layer(layer, x, x, x, call);
  const double tolerance = layer_tolerance(layer, 4);
  CHECK_THAT(result.output, IsClose(expected.output, tolerance));
  for (Index h = 0; h < 2; ++h) {
    const auto head = static_cast<std::size_t>(h);
    CHECK_THAT(result.weights.matrix(0, h), IsClose(expected.weights[head], tolerance));
    CHECK(result.weights.matrix(0, h).leftCols(4).isZero(0));
  }
}

TEST_CASE("masks that need no extra keys and masks that look at each pair agree",
          "[multi_head][mask]") {
  const auto layer = small_layer<double>({.add_bias_kv = true});
  const Tokens x = random_matrix<double>(5, 6, 1);
  Matrix<bool> allowed(5, 5);
  for (Index i = 0; i < 5; ++i) {
    for (Index j = 0; j < 5; ++j) allowed(i, j) = j <= i && j >= i - 2;
  }
  const Tokens by_range = layer(x, mha::causal() & mha::window(2, -1));
  CHECK_THAT(by_range, IsClose(layer(x, mha::keep(allowed)), layer_tolerance(layer, 5)));
  PlainCall call;
  call.allowed = [&](Index, Index i, Index j) { return allowed(i, j); };
  CHECK_THAT(by_range,
             IsClose(plain_layer(layer, x, x, x, call).output, layer_tolerance(layer, 5)));
}

TEMPLATE_TEST_CASE("NaN and infinity in padded tokens change no other token, bit for bit",
                   "[multi_head][mask]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  const bool bias_kv = GENERATE(false, true);
  const bool matrix = GENERATE(false, true);
  CAPTURE(bias_kv, matrix);
  const auto layer = small_layer<TestType>({.add_bias_kv = bias_kv, .add_zero_attn = bias_kv});
  Matrix<TestType> x = random_matrix<TestType>(7, 6, 1);
  Matrix<bool> padding = Matrix<bool>::Constant(1, 7, false);
  padding.rightCols(3).setConstant(true);
  const auto run = [&] {
    const mha::MultiHeadOptions options{.need_weights = true, .need_lse = true};
    return matrix ? layer.forward(x, mha::ignore(padding), options)
                  : layer.forward(x, mha::lengths(4), options);
  };
  const auto clean = run();
  x.row(4).setConstant(Eigen::NumTraits<TestType>::quiet_NaN());
  x.row(5).setConstant(Eigen::NumTraits<TestType>::infinity());
  x.row(6).setConstant(-Eigen::NumTraits<TestType>::infinity());
  const auto dirty = run();
  using Acc = mha::accumulator_t<TestType>;
  const auto top = [](const auto& m) { return Matrix<TestType>(m.topRows(4)); };
  const auto top_acc = [](const auto& m) { return Matrix<Acc>(m.topRows(4)); };
  CHECK_THAT(top(dirty.output), HasBitsOf(top(clean.output)));
  CHECK_THAT(top_acc(dirty.lse), HasBitsOf(top_acc(clean.lse)));
  for (Index h = 0; h < 2; ++h) {
    CHECK_THAT(top_acc(dirty.weights.matrix(0, h)), HasBitsOf(top_acc(clean.weights.matrix(0, h))));
  }
}

TEST_CASE("NaN in one sequence of a batch stays there, bit for bit", "[multi_head][batch]") {
  const auto layer = small_layer<float>({.add_bias_kv = true});
  Matrix<float> x = random_matrix<float>(9, 6, 1);
  const auto clean = layer.forward(x, {.sequences = {4, 2, 3}, .need_weights = true});
  x.middleRows(4, 2).setConstant(std::numeric_limits<float>::quiet_NaN());
  const auto dirty = layer.forward(x, {.sequences = {4, 2, 3}, .need_weights = true});
  for (const Index row : {0, 1, 2, 3, 6, 7, 8}) {
    CAPTURE(row);
    CHECK_THAT(Matrix<float>(dirty.output.row(row)),
               HasBitsOf(Matrix<float>(clean.output.row(row))));
  }
  for (const Index b : {0, 2}) {
    CHECK_THAT(Matrix<float>(dirty.weights.matrix(b, 0)),
               HasBitsOf(Matrix<float>(clean.weights.matrix(b, 0))));
  }
  CHECK(dirty.output.row(4).hasNaN());
}

TEST_CASE("a NaN that may be attended to is seen", "[multi_head]") {
  const auto layer = small_layer<float>();
  Matrix<float> x = random_matrix<float>(3, 6, 1);
  x(2, 0) = std::numeric_limits<float>::quiet_NaN();
  const Matrix<float> y = layer(x, mha::causal());
  CHECK_FALSE(y.topRows(2).hasNaN());
  CHECK(y.row(2).hasNaN());
}

TEST_CASE("sixteen threads may use one const layer", "[multi_head][threads]") {
  const auto layer = small_layer<float>({.add_bias_kv = true});
  constexpr std::size_t kThreads = 16;
  const auto run = [&layer](std::size_t t) {
    const Matrix<float> x = random_matrix<float>(6, 6, static_cast<unsigned>(t));
    return layer(x, mha::causal(), {.sequences = {2, 4}});
  };
  std::array<Matrix<float>, kThreads> together;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int repetition = 0; repetition < 20; ++repetition) together[t] = run(t);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 0; t < kThreads; ++t) {
    CAPTURE(t);
    CHECK_THAT(together[t], HasBitsOf(run(t)));
  }
}

TEMPLATE_TEST_CASE("a ThreadPool gives the bits of the serial run", "[multi_head][threads]", float,
                   long double) {
  MultiHead<TestType, 4> layer({.embed_dim = 8, .kv_heads = 2, .add_bias_kv = true});
  randomise(layer, 2);
  const Index tokens = 300;  // more rows than a projection computes at a time
  const Matrix<TestType> x = random_matrix<TestType>(tokens, 8, 1);
  const std::vector<Index> lengths{1, 0, 150, 49, 100};
  const auto serial = layer.forward(x, mha::causal(),
                                    {.sequences = lengths, .need_weights = true, .need_lse = true});
  for (const Index threads : {1, 2, 5}) {
    CAPTURE(threads);
    mha::ThreadPool pool(threads);
    const auto parallel = layer.forward(
        x, mha::causal(),
        {.sequences = lengths, .need_weights = true, .need_lse = true, .executor = pool});
    CHECK_THAT(parallel.output, HasBitsOf(serial.output));
    CHECK_THAT(parallel.lse, HasBitsOf(serial.lse));
    CHECK(same_bits(parallel.weights, serial.weights));
  }
}

TEST_CASE("Eigen's number of threads is left alone", "[multi_head][threads]") {
  const int before = Eigen::nbThreads();
  mha::ThreadPool pool(3);
  const auto layer = small_layer<float>();
  const Matrix<float> y = layer(random_matrix<float>(4, 6, 1), {.batch = 2, .executor = pool});
  CHECK(y.rows() == 4);
  CHECK(Eigen::nbThreads() == before);
}

TEST_CASE("copies and moves of a layer compute the same, on their own", "[multi_head]") {
  using Layer = MultiHead<float, 2>;
  const Matrix<float> x = random_matrix<float>(4, 6, 1);
  Layer layer = small_layer<float>({.add_bias_kv = true});
  const Matrix<float> y = layer(x);

  Layer copy = layer;
  CHECK_THAT(copy(x), HasBitsOf(y));
  copy.v_proj.weight.setZero();
  CHECK_FALSE(same_bits(copy(x), y));
  CHECK_THAT(layer(x), HasBitsOf(y));
  copy = layer;
  CHECK_THAT(copy(x), HasBitsOf(y));

  const Layer moved = std::move(copy);
  CHECK_THAT(moved(x), HasBitsOf(y));
  copy = Layer(4);
  copy = std::move(layer);
  CHECK_THAT(copy(x), HasBitsOf(y));
}

TEST_CASE("copies and moves of a fixed layer compute the same", "[multi_head]") {
  const MultiHead<float, 2, 3> layer({.seed = 4});
  MultiHead<float, 2, 3> copy = layer;
  const MultiHead<float, 2, 3> moved = std::move(copy);
  const Matrix<float> x = random_matrix<float>(4, 6, 1);
  CHECK_THAT(moved(x), HasBitsOf(layer(x)));
}

TEMPLATE_TEST_CASE("arguments may lie in memory in any way, or be expressions", "[multi_head]",
                   float, long double) {
  const auto layer = small_layer<TestType>();
  const Matrix<TestType> x = random_matrix<TestType>(5, 6, 1);
  const Matrix<TestType> y = layer(x, mha::causal());

  using Columns = Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
  const Columns column_major = x;
  CHECK_THAT(layer(column_major, mha::causal()), HasBitsOf(y));

  Columns spread = Columns::Zero(10, 18);
  using Strided = Eigen::Map<Columns, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  Strided strided(spread.data(), 5, 6, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(30, 2));
  strided = x;
  CHECK_THAT(layer(strided, mha::causal()), HasBitsOf(y));

  Matrix<TestType> wide = Matrix<TestType>::Zero(9, 11);
  wide.block(2, 3, 5, 6) = x;
  CHECK_THAT(layer(wide.block(2, 3, 5, 6), mha::causal()), HasBitsOf(y));

  const Eigen::Matrix<TestType, 5, 6> fixed = x;
  CHECK_THAT(layer(fixed, mha::causal()), HasBitsOf(y));
  CHECK_THAT(layer(Eigen::Ref<const Matrix<TestType>>(x), mha::causal()), HasBitsOf(y));
  CHECK_THAT(layer(x.array(), mha::causal()), HasBitsOf(y));
  CHECK_THAT(layer(x.transpose().transpose(), mha::causal()), HasBitsOf(y));
  const Matrix<TestType> transposed = x.transpose();
  CHECK_THAT(layer(transposed.transpose(), mha::causal()), HasBitsOf(y));

  const Matrix<TestType> half = x * TestType(0.5);
  CHECK_THAT(layer(half + half, mha::causal()), HasBitsOf(y));
  const Matrix<TestType> identity = Matrix<TestType>::Identity(6, 6);
  CHECK_THAT(layer(x * identity, mha::causal()), HasBitsOf(y));
  CHECK_THAT(layer(x.eval(), mha::causal()), HasBitsOf(y));
  CHECK_THAT(layer(half + half, x, column_major, mha::causal()), HasBitsOf(y));
}

TEST_CASE("rows in reverse are read where they lie", "[multi_head]") {
  const auto layer = small_layer<float>();
  const Matrix<float> x = random_matrix<float>(5, 6, 1);
  const Matrix<float> backwards = x.colwise().reverse();
  CHECK_THAT(layer(x.colwise().reverse(), mha::causal()),
             HasBitsOf(layer(backwards, mha::causal())));
}

TEST_CASE("the arguments may be one and the same matrix, and be overwritten by the output",
          "[multi_head]") {
  const auto layer = small_layer<float>();
  Matrix<float> x = random_matrix<float>(5, 6, 1);
  const Matrix<float> copy = x;
  const Matrix<float> y = layer(x);
  CHECK_THAT(layer(x, x), HasBitsOf(y));
  CHECK_THAT(layer(x, copy), HasBitsOf(y));
  x = layer(x, x, x);
  CHECK_THAT(x, HasBitsOf(y));
}

TEST_CASE("no query gives no row", "[multi_head][empty]") {
  const auto layer = small_layer<float>({.add_bias_kv = true});
  const Matrix<float> none(0, 6);
  const auto result = layer.forward(none, random_matrix<float>(4, 6, 1), mha::causal(),
                                    {.need_weights = true, .need_lse = true});
  CHECK(result.output.rows() == 0);
  CHECK(result.output.cols() == 6);
  CHECK(result.weights.sizes() == std::array<Index, 4>{1, 2, 0, 5});
  CHECK(result.lse.rows() == 0);
  CHECK(layer(none).rows() == 0);
}

TEST_CASE("no key gives the output bias", "[multi_head][empty]") {
  const auto layer = small_layer<float>();
  const Matrix<float> none(0, 6);
  const auto result =
      layer.forward(random_matrix<float>(3, 6, 1), none, {.need_weights = true, .need_lse = true});
  CHECK_THAT(result.output, HasBitsOf(Matrix<float>(layer.out_proj.bias.replicate(3, 1))));
  CHECK(result.weights.sizes() == std::array<Index, 4>{1, 2, 3, 0});
  CHECK(result.lse(2, 1) == -std::numeric_limits<float>::infinity());
}

TEST_CASE("a batch of no sequences gives nothing", "[multi_head][empty]") {
  const auto layer = small_layer<float>();
  const Matrix<float> none(0, 6);
  const auto result =
      layer.forward(none, mha::causal(), {.batch = 0, .need_weights = true, .need_lse = true});
  CHECK(result.output.rows() == 0);
  CHECK(result.output.cols() == 6);
  CHECK(result.weights.size(0) == 0);
  CHECK(result.lse.rows() == 0);
  const auto mean = layer.forward(none, {.batch = 0, .average_weights = true}).weights;
  CHECK(mean.sizes() == std::array<Index, 4>{0, 1, 0, 0});
}

TEST_CASE("sequences of no tokens are fine beside others", "[multi_head][empty]") {
  const auto layer = small_layer<float>();
  const Matrix<float> x = random_matrix<float>(3, 6, 1);
  const Matrix<float> y = layer(x, mha::causal(), {.sequences = {0, 3, 0}});
  CHECK_THAT(y, HasBitsOf(layer(x, mha::causal())));
}

TEST_CASE("rows too many for one projection tile or one score tile agree with plain loops",
          "[multi_head][law]") {
  // 256 rows are projected at a time; score tiles are 128 x 512.
  const auto layer = small_layer<float>({.add_zero_attn = true});
  const Index query_len = 259;
  const Index kv_len = 515;
  const Matrix<float> x = random_matrix<float>(query_len, 6, 1);
  const Matrix<float> context = random_matrix<float>(kv_len, 6, 2);
  const Tokens keys = cast_to<double>(context);
  const Tokens expected = plain_layer(layer, cast_to<double>(x), keys, keys).output;
  CHECK_THAT(layer(x, context), IsClose(expected, layer_tolerance(layer, kv_len)));
}

TEMPLATE_TEST_CASE(
    "a prompt has the bits of that part of a longer one, with bias_kv and zero_attn too",
    "[multi_head][law][bits]", float, double) {
  // Rows 1 to 1100 take every way to project, few rows and blocks of them, one and two chunks of keys.
  for (const bool bias_kv : {false, true}) {
    for (const bool zero_attn : {false, true}) {
      MultiHead<TestType, 4> layer({.embed_dim = 16,
                                    .kv_heads = 2,
                                    .add_bias_kv = bias_kv,
                                    .add_zero_attn = zero_attn,
                                    .seed = 3});
      randomise(layer, 4);
      const Matrix<TestType> x = random_matrix<TestType>(1100, 16, 5);
      const Matrix<TestType> all = layer(x, mha::causal());
      for (const Index rows : {1, 2, 4, 5, 64, 127, 128, 129, 1023, 1024, 1025}) {
        CAPTURE(bias_kv, zero_attn, rows);
        const Matrix<TestType> part = layer(x.topRows(rows), mha::causal());
        const Matrix<TestType> expected = all.topRows(rows);
        CHECK_THAT(part, HasBitsOf(expected));
      }
    }
  }
}

TEST_CASE("bias_k's weight and that of the key of zeros stand in the last columns, for every row",
          "[multi_head][law][weights]") {
  for (const Index rows : {1, 3, 9, 70}) {
    for (const bool zero_attn : {false, true}) {
      CAPTURE(rows, zero_attn);
      const auto layer = small_layer<double>({.add_bias_kv = true, .add_zero_attn = zero_attn});
      const Matrix<double> x = random_matrix<double>(rows, 6, 6);
      const auto result = layer.forward(x, mha::causal() & mha::sinks(0.5),
                                        {.need_weights = true, .need_lse = true});
      REQUIRE(result.weights.size(3) == rows + (zero_attn ? 2 : 1));
      for (Index h = 0; h < 2; ++h) {
        for (Index i = 0; i < rows; ++i) {
          double sum = std::exp(0.5 - result.lse(i, h));  // the sink's share
          for (Index j = 0; j < result.weights.size(3); ++j) {
            sum += result.weights(0, h, i, j);
            const bool allowed = j <= i || j >= rows;
            CHECK((result.weights(0, h, i, j) > 0) == allowed);
          }
          CHECK(std::abs(sum - 1) < 100 * std::numeric_limits<double>::epsilon());
          if (zero_attn) {
            CHECK(std::abs(result.weights(0, h, i, rows + 1) - std::exp(-result.lse(i, h))) <
                  1e-15);
          }
        }
      }
    }
  }
}

TEST_CASE("a learned sink has its gradient where a row sees the layer's own keys alone",
          "[multi_head][law][gradient]") {
  const auto gradient_of = [](auto zero) {
    using Scalar = decltype(zero);
    MultiHead<Scalar, 2> layer(
        {.embed_dim = 8, .add_bias_kv = true, .add_zero_attn = true, .seed = 4});
    randomise(layer, 5);
    const Matrix<Scalar> x = cast_to<Scalar>(random_matrix<double>(6, 8, 6));
    const Matrix<Scalar> grad_output = cast_to<Scalar>(random_matrix<double>(6, 8, 7));
    mha::Vector<Scalar> sinks = mha::Vector<Scalar>::Constant(2, Scalar(0.25));
    mha::Vector<Scalar> gradient = mha::Vector<Scalar>::Zero(2);
    const auto rule = mha::causal_offset(-3) & mha::sinks(sinks, gradient);
    mha::TrainingPass<MultiHead<Scalar, 2>> pass;
    mha::MultiHeadGradients<MultiHead<Scalar, 2>> gradients(layer);
    layer.forward_training(pass, x, rule);
    layer.backward(gradients, pass, grad_output, rule);
    return std::array<double, 2>{static_cast<double>(gradient(0)),
                                 static_cast<double>(gradient(1))};
  };
  const auto kernels = gradient_of(0.0);
  const auto formula = gradient_of(0.0L);
  for (std::size_t h = 0; h < 2; ++h) {
    CHECK(std::abs(formula[h]) > 1e-3);
    CHECK(std::abs(kernels[h] - formula[h]) < 1e-13);
  }
}

TEST_CASE("a sink of +infinity takes all, beside a key of zeros too", "[multi_head][law]") {
  const auto layer = small_layer<double>({.add_zero_attn = true});
  const Matrix<double> x = random_matrix<double>(5, 6, 6);
  const mha::Vector<double> sinks =
      mha::Vector<double>::Constant(2, std::numeric_limits<double>::infinity());
  for (const Index rows : {2, 5}) {
    const Matrix<double> y = layer(x.topRows(rows), mha::sinks(sinks));
    CHECK(y.allFinite());
  }
}
