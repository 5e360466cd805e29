// SPDX-License-Identifier: MIT
//
// Inference and PackedProjection: the bits of MultiHead and Projection, in every form of a call, from memory of their
// own. Widths lie on both sides of whole panels and vectors; rows on both sides of every way to go through them.
#include <mha/mha.hpp>

#include <memory>
#include <string>
#include <vector>

#include "support/every_target.hpp"
#include "support/layer_support.hpp"
#include "support/misuse.hpp"

using mha::Index;
using mha::Inference;
using mha::KvCache;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::PackedProjection;
using mha::Projection;
using mha::test::HasBitsOf;
using mha::test::on_every_target;
using mha::test::random_matrix;
using mha::test::randomise;
using mha::test::refuses;
using mha::test::same_bits;

namespace {

template <class Scalar>
Projection<Scalar> random_projection(Index inputs, Index outputs, bool with_bias) {
  Projection<Scalar> linear;
  linear.resize(inputs, outputs, with_bias);
  linear.weight = random_matrix<Scalar>(inputs, outputs, 11);
  if (with_bias) linear.bias = random_matrix<Scalar>(1, outputs, 12);
  return linear;
}

struct Sizes {
  Index rows, inputs, outputs;
};

const std::vector<Sizes> kSizes{
    {0, 5, 7},    {1, 1, 1},      {3, 5, 7},        {1, 300, 64},    {2, 97, 65},     {6, 1100, 80},
    {7, 96, 128}, {23, 193, 129}, {24, 200, 170},   {95, 64, 31},    {97, 70, 63},    {4, 0, 70},
    {4, 70, 0},   {1, 768, 768},  {200, 768, 2304}, {700, 300, 192}, {300, 2048, 70}, {30, 0, 3},
};

}  // namespace

TEMPLATE_TEST_CASE("a packed projection has the bits of the projection", "[inference][law]", float,
                   double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  mha::ThreadPool threads(3);
  on_every_target([&] {
    for (const Sizes& n : kSizes) {
      for (const bool with_bias : {true, false}) {
        CAPTURE(n.rows, n.inputs, n.outputs, with_bias);
        const auto linear = random_projection<TestType>(n.inputs, n.outputs, with_bias);
        const PackedProjection<TestType> packed(linear);
        CHECK(packed.inputs() == n.inputs);
        CHECK(packed.outputs() == n.outputs);
        CHECK(packed.has_bias() == (with_bias && n.outputs > 0));
        const Matrix<TestType> x = random_matrix<TestType>(n.rows, n.inputs, 13);
        const Matrix<TestType> expected = linear(x);
        CHECK_THAT(packed(x), HasBitsOf(expected));
        CHECK_THAT(packed(x, {.executor = mha::Executor(threads)}), HasBitsOf(expected));
        // Inputs and outputs that are not rows of the sums' type, each contiguous.
        Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic> by_columns(n.rows, n.outputs);
        const Matrix<Acc> wide = x.template cast<Acc>();
        packed.apply_into(by_columns, wide);
        CHECK_THAT(Matrix<TestType>(by_columns), HasBitsOf(expected));
        Matrix<Acc> sums(n.rows, n.outputs), expected_sums(n.rows, n.outputs);
        linear.apply_into(expected_sums, x);
        mha::Workspace workspace(packed.workspace_bytes(n.rows));
        const std::size_t bytes = workspace.size();
        packed.apply_into(sums, x, {.workspace = &workspace});
        CHECK_THAT(sums, HasBitsOf(expected_sums));
        CHECK(workspace.size() == bytes);
      }
    }
  });
}

TEMPLATE_TEST_CASE("inference has the layer's bits in each form of a call", "[inference][law]",
                   float, double, Eigen::bfloat16) {
  MultiHeadConfig c{.embed_dim = 72,
                    .num_heads = 6,
                    .kv_heads = 2,
                    .head_dim = 40,
                    .value_dim = 9,
                    .out_dim = 100,
                    .add_bias_kv = true,
                    .add_zero_attn = true,
                    .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}};
  MultiHead<TestType, 6> layer(c);
  randomise(layer, 3);
  const Inference fast(layer);
  static_assert(std::is_same_v<decltype(fast), const Inference<TestType>>);
  mha::ThreadPool threads(3);
  on_every_target([&] {
    for (const Index rows : {1, 5, 23, 24, 120, 300}) {
      CAPTURE(rows);
      const Matrix<TestType> x = random_matrix<TestType>(2 * rows, 72, 1);
      const Matrix<TestType> context = random_matrix<TestType>(rows + 1, 72, 2);
      CHECK_THAT(fast(x), HasBitsOf(layer(x)));
      CHECK_THAT(fast(x, context), HasBitsOf(layer(x, context)));
      CHECK_THAT(fast(x, context, context.cwiseAbs()),
                 HasBitsOf(layer(x, context, context.cwiseAbs())));
      mha::MultiHeadOptions options{.batch = 2, .need_weights = true, .need_lse = true};
      const auto expected = layer.forward(x, mha::causal() & mha::alibi(), options);
      options.executor = mha::Executor(threads);
      const auto result = fast.forward(x, mha::causal() & mha::alibi(), options);
      CHECK_THAT(result.output, HasBitsOf(expected.output));
      CHECK_THAT(result.lse, HasBitsOf(expected.lse));
      CHECK(same_bits(result.weights, expected.weights));
      mha::MultiHeadOptions ragged{.sequences = {rows, 0, rows}};
      mha::Workspace workspace(fast.workspace_bytes(2 * rows, 2 * rows, ragged));
      const std::size_t bytes = workspace.size();
      Matrix<TestType> output(2 * rows, 100);
      ragged.workspace = &workspace;
      fast.forward_into(output, x, mha::window(7, 3), ragged);
      CHECK(workspace.size() == bytes);
      ragged.workspace = nullptr;
      CHECK_THAT(output, HasBitsOf(layer(x, mha::window(7, 3), ragged)));
    }
  });
}

TEST_CASE("inference has the layer's bits at widths of users", "[inference][law]") {
  MultiHead<float, 12> layer({.embed_dim = 768, .kv_heads = 4});
  randomise(layer, 4);
  const Inference fast(layer);
  mha::ThreadPool threads(2);
  for (const Index rows : {1, 15, 16, 191, 300, 1000}) {
    const Matrix<float> x = random_matrix<float>(rows, 768, 5);
    const Matrix<float> expected = layer(x, mha::causal());
    CHECK_THAT(fast(x, mha::causal()), HasBitsOf(expected));
    CHECK_THAT(fast(x, mha::causal(), {.executor = mha::Executor(threads)}), HasBitsOf(expected));
  }
}

TEMPLATE_TEST_CASE("inference over caches has the bits of prefilling", "[inference][cache][law]",
                   float, double, Eigen::bfloat16) {
  MultiHead<TestType, 4> layer({.embed_dim = 48,
                                .kv_heads = 2,
                                .rotary = mha::Rotary{.pairs = mha::RotaryPairs::interleaved}});
  randomise(layer, 5);
  const Inference fast(layer);
  constexpr auto kStorage =
      std::is_same_v<TestType, double> ? mha::Storage::f64 : mha::Storage::f32;
  const Matrix<TestType> x = random_matrix<TestType>(200, 48, 6);
  const Matrix<TestType> expected = layer(x, mha::causal());
  const mha::KvPool pool(
      {.layers = 1, .kv_heads = 2, .head_dim = 12, .pages = 6, .storage = kStorage});
  auto a = pool.sequence();
  auto b = pool.sequence();
  Index row = 0;
  for (const Index count : {100, 1, 30, 69}) {
    const Matrix<TestType> part = x.middleRows(row, count);
    const Matrix<TestType> wanted = expected.middleRows(row, count);
    CHECK_THAT(fast(part, a.layer(0), mha::causal()), HasBitsOf(wanted));
    fast.append(part, b.layer(0));
    row += count;
  }
  const Matrix<TestType> last = x.bottomRows(3);
  const Matrix<TestType> wanted = expected.bottomRows(3);
  CHECK_THAT(fast.attend(last, b.layer(0), mha::causal(), {.positions = {197, 198, 199}}).output,
             HasBitsOf(wanted));
}

TEST_CASE("inference needs its layer no longer, and its copies share the weights", "[inference]") {
  auto layer = std::make_unique<MultiHead<float, 4>>(64);
  const Matrix<float> x = random_matrix<float>(20, 64, 7);
  const Matrix<float> expected = (*layer)(x);
  auto first = std::make_unique<Inference<float>>(*layer);
  const Inference copy(*first);
  layer->q_proj.weight.setZero();
  layer.reset();
  CHECK_THAT((*first)(x), HasBitsOf(expected));
  first.reset();
  CHECK_THAT(copy(x), HasBitsOf(expected));
  // What has been moved from has the weights still.
  Inference<float> from(copy);
  {
    const Inference<float> moved(std::move(from));
    CHECK_THAT(moved(x), HasBitsOf(expected));
  }
  CHECK_THAT(from(x), HasBitsOf(expected));  // NOLINT: that is the promise
  Inference<float> changed(copy);
  changed.q_proj = PackedProjection<float>();
  CHECK(changed.memory_bytes() == 3 * (64 * 64 + 64) * 4);
  CHECK(copy.config().embed_dim == 64);
  CHECK(copy.num_heads() == 4);
  // Four weights of 64 x 64 and biases, of 4 bytes.
  CHECK(copy.memory_bytes() == 4 * (64 * 64 + 64) * 4);
  CHECK(copy.v_proj.memory_bytes() == (64 * 64 + 64) * 4);
  CHECK(PackedProjection<float>().memory_bytes() == 0);
  CHECK(PackedProjection<float>()(Matrix<float>(3, 0)).rows() == 3);
}

TEST_CASE("workspace_bytes() with caches is what such calls need", "[inference][cache]") {
  MultiHead<float, 4> layer({.embed_dim = 96, .kv_heads = 2});
  const Inference fast(layer);
  mha::ThreadPool threads(2);
  for (const auto storage : {mha::Storage::f32, mha::Storage::bf16}) {
    const mha::KvPool pool(
        {.layers = 1, .kv_heads = 2, .head_dim = 24, .pages = 100, .storage = storage});
    auto s = pool.sequence();
    auto t = pool.sequence();
    const std::vector<mha::KvLayer> caches{s.layer(0), t.layer(0)};
    for (const Index rows : {2, 40, 400, 1400, 2, 6}) {
      for (const auto& executor : {mha::Executor(), mha::Executor(threads)}) {
        CAPTURE(rows, executor.concurrency());
        const Matrix<float> x = random_matrix<float>(rows, 96, 8);
        Matrix<float> y(rows, 96);
        const auto check = [&](const auto& called) {
          mha::MultiHeadOptions options{.executor = executor};
          mha::Workspace workspace(called.workspace_bytes(rows, caches, options));
          const std::size_t bytes = workspace.size();
          options.workspace = &workspace;
          called.forward_into(y, x, caches, mha::causal(), options);
          Eigen::MatrixXf by_columns(rows, 96);
          s.truncate(s.size() - rows / 2);
          t.truncate(t.size() - rows / 2);
          called.forward_into(by_columns, x, caches, mha::causal(), options);
          (void)called.attend(x, caches, mha::causal(), options);
          s.truncate(s.size() - rows / 2);
          t.truncate(t.size() - rows / 2);
          called.append(x, caches, options);
          CHECK(workspace.size() == bytes);
        };
        check(layer);
        check(fast);
      }
    }
  }
}

TEST_CASE("misuse of inference", "[inference][misuse]") {
  MultiHead<float, 4> layer({.embed_dim = 16, .kv_heads = 2});
  const Inference fast(layer);
  const Matrix<float> x = random_matrix<float>(6, 16, 1);
  const Matrix<float> wide = random_matrix<float>(6, 17, 1);
  KvCache cache({.kv_heads = 2, .head_dim = 4, .capacity = 8});
  KvCache other({.kv_heads = 4, .head_dim = 4, .capacity = 8});
  refuses("Inference::forward", {"embed_dim, got 17 and 16"}, [&] { (void)fast(wide); });
  refuses("Inference::forward_into", {"6 x 16, got 6 x 17"}, [&] {
    Matrix<float> y(6, 17);
    fast.forward_into(y, x);
  });
  refuses("Inference::forward", {"kv_heads 2", "got 4"},
          [&] { (void)fast(x, other, mha::causal()); });
  refuses("Inference::append", {"kdim, got 17 and 16"}, [&] { fast.append(wide, cache); });
  refuses("Inference::attend", {"embed_dim, got 17 and 16"},
          [&] { (void)fast.attend(wide, cache, mha::all()); });
  refuses("Inference::workspace_bytes", {"got 4 and 6"},
          [&] { (void)fast.workspace_bytes(6, 6, {.batch = 4}); });
  refuses("Inference::workspace_bytes", {"the rows of query must lie", "got -3"},
          [&] { (void)fast.workspace_bytes(-3, cache); });
  refuses("MultiHead::workspace_bytes", {"kv_heads 2", "got 4"},
          [&] { (void)layer.workspace_bytes(3, other); });
  CHECK(cache.size() == 0);
  // Parameters that were replaced by some of another shape.
  MultiHead<float, 4> changed = layer;
  changed.k_proj.weight.resize(16, 9);
  refuses("Inference", {"k_proj.weight must be 16 x 8, got 16 x 9"},
          [&] { (void)Inference<float>(changed); });
  Inference<float> swapped = fast;
  swapped.v_proj = swapped.q_proj;
  refuses("Inference::forward", {"v_proj.weight must be 16 x 8, got 16 x 16"},
          [&] { (void)swapped(x); });
  auto linear = random_projection<float>(5, 7, true);
  const PackedProjection<float> packed(linear);
  refuses("PackedProjection::operator()", {"got 16 and 5"}, [&] { (void)packed(x); });
  refuses("PackedProjection::apply_into", {"must be 6 x 7, got 6 x 16"}, [&] {
    Matrix<float> y(6, 16);
    packed.apply_into(y, random_matrix<float>(6, 5, 1));
  });
  refuses("PackedProjection::apply_into", {"overlap"}, [&] {
    Matrix<float> both(6, 12);
    packed.apply_into(both.leftCols(7), both.rightCols(7).leftCols(5));
  });
  const Eigen::Map<Matrix<float>> none(nullptr, 6, 5);
  refuses("PackedProjection::operator()", {"x.data must not be null"}, [&] { (void)packed(none); });
  refuses("PackedProjection::apply_into", {"output.data must not be null"}, [&] {
    Eigen::Map<Matrix<float>> y(nullptr, 6, 7);
    packed.apply_into(y, random_matrix<float>(6, 5, 1));
  });
  refuses("PackedProjection::workspace_bytes", {"got -1"},
          [&] { (void)packed.workspace_bytes(-1); });
  linear.bias.resize(6);
  refuses("PackedProjection", {"0 or 7", "got 6"}, [&] { (void)PackedProjection<float>(linear); });
}
