// SPDX-License-Identifier: MIT
//
// Who allocates: every call of malloc and operator new in this program is counted, on any thread.
// With a workspace that has served a call of the same shape, attention and the layer allocate
// nothing; small shapes need none.
#include <mha/mha.hpp>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "support/matchers.hpp"
#include "support/targets.hpp"

#include "support/catch.hpp"

namespace {

std::atomic<long> allocations{0};
/// Allocations that still succeed, while it is not negative.
std::atomic<long> left{-1};

/// The block that allocate() gives, unless it is to fail.
template <class F>
void* counted(const F& allocate) {
  ++allocations;
  if (left >= 0 && left-- == 0) return nullptr;
  return allocate();
}

}  // namespace

// glibc's allocator by its own names; elsewhere operator new alone, which misses Eigen's matrices.
// Sanitizers bring an allocator of theirs: this program is not built with them.
#if defined(__GLIBC__)
#define MHA_TEST_COUNTS_MALLOC 1
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* block, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

void* malloc(std::size_t size) {
  return counted([=] { return __libc_malloc(size); });
}
void* calloc(std::size_t count, std::size_t size) {
  return counted([=] { return __libc_calloc(count, size); });
}
void* realloc(void* block, std::size_t size) {
  return counted([=] { return __libc_realloc(block, size); });
}
void* memalign(std::size_t alignment, std::size_t size) {
  return counted([=] { return __libc_memalign(alignment, size); });
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  return counted([=] { return __libc_memalign(alignment, size); });
}
int posix_memalign(void** block, std::size_t alignment, std::size_t size) {
  *block = counted([=] { return __libc_memalign(alignment, size); });
  return *block == nullptr ? 12 : 0;
}
}
#else
void* operator new(std::size_t size) {
  void* const block = counted([=] { return std::malloc(size == 0 ? 1 : size); });
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }
#endif

using mha::Index;
using mha::Lanes;
using mha::Matrix;
using mha::Tensor;
using mha::test::random_tensor;

namespace {

/// How often f allocates, on all threads together.
template <class F>
long allocations_of(const F& f) {
  const long before = allocations;
  f();
  return allocations - before;
}

template <class Scalar>
struct Inputs {
  Tensor<Scalar> query;
  Tensor<Scalar> key;
  Tensor<Scalar> value;
  mha::AttentionResult<Scalar> result;

  Inputs(Index query_len, Index kv_len, Index head_dim, Index value_dim)
      : query(random_tensor<Scalar>({2, 4, query_len, head_dim}, 1)),
        key(random_tensor<Scalar>({2, 2, kv_len, head_dim}, 2)),
        value(random_tensor<Scalar>({2, 2, kv_len, value_dim}, 3)) {
    result.output = Tensor<Scalar>({2, 4, query_len, value_dim});
    result.weights = Tensor<mha::accumulator_t<Scalar>>({2, 4, query_len, kv_len});
    result.lse = Tensor<mha::accumulator_t<Scalar>>({2, 4, query_len, 1});
  }
};

/// f(rule) for every kind of rule, alone and combined.
template <class Scalar, class F>
void for_every_rule(const Inputs<Scalar>& x, const F& f) {
  using Acc = mha::accumulator_t<Scalar>;
  const Index query_len = x.query.size(2);
  const Index kv_len = x.key.size(2);
  const Matrix<bool> kept = mha::test::random_booleans(query_len, kv_len, 4, 0.7);
  const Matrix<Scalar> bias = mha::test::random_matrix<Scalar>(query_len, kv_len, 5);
  const mha::Vector<double> slopes = mha::alibi_slopes<double>(4);
  const auto with = [&](const char* name, const auto& rule) {
    INFO("under " << name);
    f(rule);
  };
  with("no rule", mha::All{});
  with("causal", mha::causal());
  with("causal_lower_right", mha::causal_lower_right());
  with("an offset per sequence", mha::causal_offset({kv_len - query_len, Index(0)}));
  with("window", mha::window(3, 1));
  with("a query_offset per sequence", mha::query_offset({Index(0), kv_len / 2}));
  with("one length", mha::lengths(kv_len / 2));
  with("a length per sequence", mha::lengths({kv_len, kv_len / 3}));
  with("keep", mha::keep(kept));
  with("ignore", mha::ignore(kept));
  with("a mask that the rule owns", mha::keep(Matrix<bool>(kept)));
  with("mask_mod", mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; }));
  with("bias", mha::bias(bias));
  with("scale", mha::scale(0.5F));
  with("softcap", mha::softcap(2.0));
  with("alibi", mha::alibi());
  with("alibi with one slope", mha::alibi(0.5));
  with("alibi with slopes", mha::alibi(slopes));
  with("one sink", mha::sinks(0.5));
  with("a sink per head", mha::sinks(slopes));
  const auto slope = [](Acc, Index, Index, Index i, Index j) { return i == j ? Acc(1) : Acc(0.5); };
  with("score_mod",
       mha::score_mod([](Acc s, Index, Index, Index i, Index j) { return i == j ? s : s / 2; },
                      slope));
  with("score_mod of lanes", mha::score_mod([](Lanes<Acc> s, Index, Index, Lanes<int> i,
                                               Lanes<int> j) { return select(i == j, s, s / 2); },
                                            slope));
  with("many", mha::causal() & mha::window(900, -1) & mha::lengths({kv_len, kv_len / 3}) &
                   mha::keep(kept) & mha::bias(bias) & mha::alibi(slopes) & mha::softcap(20.0) &
                   mha::sinks(slopes));
}

}  // namespace

TEST_CASE("the counter counts what matrices, operator new and workspaces allocate",
          "[allocations]") {
#if defined(MHA_TEST_COUNTS_MALLOC)
  CHECK(allocations_of([] { const Matrix<float> m = Matrix<float>::Zero(100, 100); }) == 1);
  CHECK(allocations_of([] { mha::Workspace(1000).data()[0] = std::byte{1}; }) == 1);
#endif
  // By name: a compiler may leave out a new-expression, and clang does.
  CHECK(allocations_of([] { ::operator delete(::operator new(10)); }) == 1);
  CHECK(allocations_of([] { mha::Workspace(0).size(); }) == 0);
  // On other threads too: one of the two tasks is done by the pool's own thread, since each waits
  // for the other.
  mha::ThreadPool pool(2);
  std::atomic<int> begun{0};
  CHECK(allocations_of([&] {
          pool.parallel_for(2, [&](Index) {
            for (++begun; begun < 2;) std::this_thread::yield();
            ::operator delete(::operator new(10));
          });
        }) >= 2);
}

TEST_CASE("a pool's parallel_for allocates nothing, from inside its own tasks neither",
          "[allocations][executor]") {
  for (const Index threads : {1, 2, 3}) {
    CAPTURE(threads);
    mha::ThreadPool pool(threads);
    std::atomic<Index> sum{0};
    CHECK(allocations_of([&] {
            for (int n = 0; n < 2000; ++n) {
              pool.parallel_for(n % 7, [&](Index k) { sum += k; });
            }
            for (int n = 0; n < 50; ++n) {
              pool.parallel_for(4,
                                [&](Index) { pool.parallel_for(3, [&](Index k) { sum += k; }); });
            }
          }) == 0);
  }
}

TEMPLATE_TEST_CASE("with a workspace, only the first call of a shape allocates", "[allocations]",
                   float, double, Eigen::half, Eigen::bfloat16) {
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    for (const Index query_len : {1, 3, 4, 5, 70}) {
      for (const Index kv_len : {70, 1100}) {
        CAPTURE(query_len, kv_len);
        Inputs<TestType> x(query_len, kv_len, 9, 5);
        for_every_rule(x, [&](const auto& rule) {
          const mha::AttentionOutputs<TestType> everything{
              x.result.output.view(), x.result.weights.view(), x.result.lse.view()};
          const mha::AttentionOutputs<TestType> output{.output = x.result.output.view()};
          mha::Workspace workspace;
          const mha::AttentionOptions options{.workspace = &workspace};
          CHECK(allocations_of(
                    [&] { attention_into(output, x.query, x.key, x.value, rule, options); }) <= 1);
          CHECK(allocations_of([&] {
                  for (const auto& outputs : {output, everything}) {
                    attention_into(outputs, x.query, x.key, x.value, rule, options);
                  }
                }) == 0);
        });
      }
    }
  }
}

TEMPLATE_TEST_CASE("with a pool too, only the first call of a shape allocates",
                   "[allocations][executor]", float, double, Eigen::half) {
  // Work for three threads and more, with few queries, one tile of them, and several.
  for (const Index threads : {2, 3}) {
    mha::ThreadPool pool(threads);
    for (const Index query_len : {4, 30, 150}) {
      CAPTURE(threads, query_len);
      Inputs<TestType> x(query_len, query_len == 4 ? 1300 : 300, 40, 40);
      for_every_rule(x, [&](const auto& rule) {
        mha::Workspace workspace;
        const mha::AttentionOptions options{.executor = pool, .workspace = &workspace};
        const auto attend = [&] {
          attention_into(x.result.output, x.query, x.key, x.value, rule, options);
        };
        CHECK(allocations_of(attend) <= 1);
        CHECK(allocations_of([&] {
                for (int n = 0; n < 3; ++n) attend();
              }) == 0);
      });
    }
  }
}

TEMPLATE_TEST_CASE("a workspace that served a larger call serves a smaller one without allocating",
                   "[allocations]", float, double, Eigen::half) {
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    mha::Workspace workspace;
    const auto attend = [&](Inputs<TestType>& x) {
      return allocations_of([&] {
        attention_into(x.result.output, x.query, x.key, x.value, mha::causal_lower_right(),
                       {.workspace = &workspace});
      });
    };
    Inputs<TestType> large(150, 1500, 64, 64);
    attend(large);
    for (const Index query_len : {150, 65, 20, 5}) {
      for (const Index kv_len : {1500, 1024, 129, 7}) {
        CAPTURE(query_len, kv_len);
        Inputs<TestType> x(query_len, kv_len, 64, 64);
        CHECK(attend(x) == 0);
      }
    }
  }
}

TEMPLATE_TEST_CASE("small shapes allocate nothing without a workspace either", "[allocations]",
                   float, double, Eigen::half) {
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    for (const Index query_len : {1, 2, 4, 8, 32}) {
      for (const Index head_dim : {8, 16}) {
        CAPTURE(query_len, head_dim);
        Inputs<TestType> x(query_len, 32, head_dim, head_dim);
        for_every_rule(x, [&](const auto& rule) {
          CHECK(allocations_of(
                    [&] { attention_into(x.result.output, x.query, x.key, x.value, rule); }) == 0);
        });
      }
    }
  }
}

namespace {

/// Calls of a layer: what its rows are told, apart from executor and workspace.
struct LayerCall {
  const char* name;
  mha::MultiHeadOptions options;
};

/// Every way to cut 120 rows of the query, and as many or 120 others of the context, into sequences.
std::vector<LayerCall> layer_calls(bool rotary) {
  std::vector<Index> positions(120);
  for (Index i = 0; i < 120; ++i) positions[static_cast<std::size_t>(i)] = (7 * i) % 100;
  std::vector<LayerCall> calls{
      {"one sequence", {}},
      {"a batch", {.batch = 4}},
      {"sequences", {.sequences = {1, 70, 0, 40, 9}}},
      {"sequences and kv_sequences",
       {.sequences = {1, 70, 0, 40, 9}, .kv_sequences = {60, 20, 10, 10, 20}}},
      {"many sequences", {.sequences = std::vector<Index>(120, 1)}},
      {"past_len", {.sequences = {10, 70, 40}, .kv_sequences = {30, 60, 30}, .past_len = 20}},
      {"past_len per sequence",
       {.sequences = {10, 70, 40}, .kv_sequences = {30, 60, 30}, .past_len = {20, 0, 5}}}};
  if (rotary) {
    calls.push_back({"a first position", {.batch = 4, .positions = 5}});
    calls.push_back({"positions", {.sequences = {1, 70, 0, 40, 9}, .positions = positions}});
    calls.push_back({"positions and kv_positions",
                     {.sequences = {100, 20}, .positions = positions, .kv_positions = 3}});
  }
  return calls;
}

}  // namespace

TEMPLATE_TEST_CASE("a layer with a workspace allocates for the first call of a shape alone",
                   "[allocations][multi_head]", float, double, Eigen::half) {
  const auto x = mha::test::random_matrix<TestType>(120, 96, 1);
  const auto context = mha::test::random_matrix<TestType>(120, 96, 2);
  mha::Matrix<TestType> y(120, 96);
  mha::ThreadPool two(2);
  mha::ThreadPool three(3);
  for (const bool rotary : {false, true}) {
    for (const bool extra_keys : {false, true}) {
      mha::MultiHeadConfig config{
          .embed_dim = 96, .kv_heads = 2, .add_bias_kv = extra_keys, .add_zero_attn = extra_keys};
      if (rotary) config.rotary = mha::Rotary{.pairs = mha::RotaryPairs::half, .dim = 16};
      const mha::MultiHead<TestType, 4> layer(config);
      for (const LayerCall& call : layer_calls(rotary)) {
        for (const mha::Executor& executor :
             {mha::Executor(), mha::Executor(two), mha::Executor(three)}) {
          CAPTURE(rotary, extra_keys, call.name, executor.concurrency());
          mha::Workspace workspace;
          mha::MultiHeadOptions options = call.options;
          options.executor = executor;
          options.workspace = &workspace;
          const auto rule = mha::causal() & mha::window(50, -1);
          const auto cross = [&] { layer.forward_into(y, x, context, rule, options); };
          CHECK(allocations_of(cross) <= 1);
          CHECK(workspace.size() <= layer.workspace_bytes(120, 120, options));
          CHECK(allocations_of([&] {
                  for (int n = 0; n < 2; ++n) cross();
                }) == 0);
          if (!options.kv_sequences.empty()) continue;
          const auto self = [&] { layer.forward_into(y, x, rule, options); };
          self();
          CHECK(allocations_of(self) == 0);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("with a workspace, a projection allocates nothing", "[allocations][projection]",
                   float, double, Eigen::half) {
  mha::ThreadPool pool(3);
  mha::Projection<TestType> linear;
  linear.resize(200, 170, true);
  for (const Index rows : {1, 20, 300, 2500}) {
    CAPTURE(rows);
    const Matrix<TestType> x = Matrix<TestType>::Zero(rows, 200);
    Matrix<TestType> y = Matrix<TestType>::Zero(rows, 170);
    mha::ProjectionOptions options{.executor = pool};
    mha::Workspace workspace(std::max(linear.workspace_bytes(rows, options),
                                      linear.backward_workspace_bytes(rows, options)));
    options.workspace = &workspace;
    CHECK(allocations_of([&] { linear.apply_into(y, x, options); }) == 0);
    if (std::is_same_v<TestType, Eigen::half>) continue;  // the backward pass widens what it reads
    auto gradient = linear.zero_gradient();
    Matrix<mha::accumulator_t<TestType>> grad_x(rows, 200);
    CHECK(allocations_of([&] { linear.apply_backward_into(grad_x, gradient, y, x, options); }) ==
          0);
  }
}

TEMPLATE_TEST_CASE("with a workspace, only the first backward pass of a shape allocates",
                   "[allocations][gradient]", float, double, Eigen::half) {
  using Scalar = TestType;
  Inputs<Scalar> x(70, 140, 20, 12);
  const auto grad_output = random_tensor<Scalar>(x.result.output.sizes(), 6);
  Tensor<Scalar> grad_query(x.query.sizes());
  Tensor<Scalar> grad_key(x.key.sizes());
  Tensor<Scalar> grad_value(x.value.sizes());
  mha::ThreadPool pool(2);
  for (const bool threads : {false, true}) {
    for_every_rule(x, [&](const auto& rule) {
      mha::Workspace workspace;
      mha::AttentionOptions options;
      options.workspace = &workspace;
      if (threads) options.executor = pool;
      const auto both = [&] {
        const mha::AttentionOutputs<Scalar> forward{.output = x.result.output.view(),
                                                    .lse = x.result.lse.view()};
        mha::attention_into(forward, x.query, x.key, x.value, rule, options);
        mha::attention_backward_into(
            mha::AttentionGradientOutputs<Scalar>{grad_query.view(), grad_key.view(),
                                                  grad_value.view()},
            grad_output, x.query, x.key, x.value, forward, rule, options);
      };
      both();
      CHECK(allocations_of(both) == 0);
    });
  }
}

TEMPLATE_TEST_CASE("a layer's training pass allocates in the first step alone",
                   "[allocations][gradient]", float, double) {
  using Layer = mha::MultiHead<TestType, Eigen::Dynamic>;
  for (const bool extra : {false, true}) {
    mha::MultiHeadConfig config{.embed_dim = 24, .num_heads = 4, .kv_heads = 2};
    config.add_bias_kv = config.add_zero_attn = extra;
    config.rotary = mha::Rotary{.pairs = mha::RotaryPairs::half};
    const Layer layer(config);
    const auto x = mha::test::random_matrix<TestType>(2 * 70, 24, 1);
    const auto grad = mha::test::random_matrix<TestType>(2 * 70, 24, 2);
    mha::TrainingPass<Layer> pass;
    mha::MultiHeadGradients<Layer> gradients(layer);
    const mha::MultiHeadOptions options{.batch = 2};
    const auto step = [&] {
      gradients.set_zero();
      layer.forward_training(pass, x, mha::causal(), options);
      layer.backward(gradients, pass, grad, mha::causal(), options);
    };
    step();
    CHECK(allocations_of(step) == 0);
  }
}

TEST_CASE("attention of a matrix allocates its result and nothing else", "[allocations]") {
  const Matrix<float> x = mha::test::random_matrix<float>(20, 16, 1);
  for (const mha::kernels::Target t : mha::test::available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
#if defined(MHA_TEST_COUNTS_MALLOC)
    CHECK(allocations_of([&] {
            const Matrix<float> result = scaled_dot_product_attention(x, x, x, mha::causal());
          }) == 1);
#endif
    CHECK(allocations_of([&] {
            const Matrix<float> result = scaled_dot_product_attention(x, x, x, mha::causal());
          }) <= 1);
  }
}

#if defined(MHA_TEST_COUNTS_MALLOC)
TEST_CASE("decoding with a workspace and reserved pages allocates nothing",
          "[allocations][cache]") {
  const mha::MultiHead<float, 4> layer(
      {.embed_dim = 64, .kv_heads = 2, .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
  mha::KvPool pool({.kv_heads = 2, .head_dim = 16, .pages = 20});
  mha::KvSequence s = pool.sequence(), t = pool.sequence({.window_keys = 50, .first_keys = 2});
  s.reserve(1000);
  t.reserve(1000);
  mha::Workspace workspace;
  const mha::MultiHeadOptions options{.workspace = &workspace};
  const std::vector<mha::KvLayer> caches{s.layer(0), t.layer(0)};
  const Matrix<float> prompt = mha::test::random_matrix<float>(400, 64, 1);
  const Matrix<float> token = mha::test::random_matrix<float>(2, 64, 2);
  Matrix<float> output(400, 64), row(2, 64);
  layer.forward_into(output, prompt, caches, mha::causal(), options);
  const mha::Inference fast(layer);
  for (int step = 0; step < 300; ++step) {
    CHECK(allocations_of([&] { layer.forward_into(row, token, caches, mha::causal(), options); }) ==
          0);
    CHECK(allocations_of([&] { fast.forward_into(row, token, caches, mha::causal(), options); }) ==
          0);
  }
  // Growing beyond what is reserved takes pages of the pool, and room for their numbers.
  mha::Tensor<float> query({1, 4, 1, 16}), result({1, 4, 1, 16});
  mha::attention_into(result, query, s.layer(0).keys(), mha::causal(), {.workspace = &workspace});
  CHECK(allocations_of([&] {
          mha::attention_into(result, query, s.layer(0).keys(), mha::causal(),
                              {.workspace = &workspace});
        }) == 0);
}

TEST_CASE("an allocation that fails leaves every cache as it was, whichever it is",
          "[allocations][cache][trap]") {
  const mha::MultiHead<float, 4> layer({.embed_dim = 64, .kv_heads = 2});
  mha::KvPool pool({.layers = 2, .kv_heads = 2, .head_dim = 16, .pages = 20});
  mha::KvSequence s = pool.sequence(), t = pool.sequence();
  const Matrix<float> x = mha::test::random_matrix<float>(300, 64, 1);
  const Matrix<float> prompt = x.topRows(100), chunk = x.middleRows(100, 200);
  for (const Index l : {0, 1}) (void)layer(prompt, s.layer(l), mha::causal());
  const mha::KvSequence before = s.fork();
  const Matrix<float> expected = layer(Matrix<float>(x), mha::causal());
  for (const bool fork : {false, true}) {
    const Index free_pages = pool.free_pages(), size = s.layer(0).size(), other = t.layer(0).size();
    long needed = 0;
    for (bool failed = true; failed; ++needed) {
      REQUIRE(needed < 1000);
      failed = false;
      left = needed;
      try {
        if (fork) {
          const mha::KvSequence copy = s.fork();
        } else {
          (void)layer.forward(chunk, {s.layer(0), t.layer(0)}, mha::causal(),
                              {.sequences = {150, 50}});
        }
        left = -1;
      } catch (const std::bad_alloc&) {
        left = -1;
        failed = true;
        CHECK(s.layer(0).size() == size);
        CHECK(s.layer(1).size() == 100);
        CHECK(t.layer(0).size() == other);
        CHECK(pool.free_pages() >= free_pages - 1);  // a page that the fork shared may be copied
      }
    }
    CHECK(needed > 3);
  }
  CHECK(s.layer(0).size() == 250);
  const Matrix<float> rest = layer(Matrix<float>(x.bottomRows(50)), s.layer(0), mha::causal());
  CHECK_THAT(rest, mha::test::HasBitsOf(Matrix<float>(expected.bottomRows(50))));
}
#endif
