// SPDX-License-Identifier: MIT
//
// The layer at real widths, where its projections take each of their ways: rows of W in place, tokens
// as lanes (from 16 rows on), panels of W (from 192 rows on). Expected numbers come from the plain
// loops of layer_support.hpp, and for gradients from long double, which no kernel computes in.
#include <mha/mha.hpp>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/every_target.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::IndexList;
using mha::Matrix;
using mha::MultiHeadConfig;
using mha::MultiHeadOptions;
using mha::test::HasBitsOf;
using mha::test::inner_tolerance;
using mha::test::IsClose;
using mha::test::layer_tolerance;
using mha::test::on_every_target;
using mha::test::PlainCall;
using mha::test::random_matrix;
using mha::test::Tokens;

namespace {

template <class T>
using Layer = mha::MultiHead<T, Eigen::Dynamic>;
using Lengths = std::vector<Index>;

// On both sides of every row count at which the way to project changes.
const Lengths kQueries{1, 15, 16, 17, 191, 192, 193, 300};
const Lengths kKeys{300, 193, 17, 192, 16, 1, 191, 15};

struct Problem {
  std::string name;
  MultiHeadConfig config;
  bool cross = false;  // key and value from elsewhere, each of its own; no mask
};

// Products of more than 32768 entries, which are not mapped in place; few heads, so that the plain
// loops stay affordable.
std::vector<Problem> problems() {
  using mha::Rotary;
  using mha::RotaryPairs;
  return {
      {"768 wide, extra keys",
       {.embed_dim = 768,
        .num_heads = 3,
        .head_dim = 16,
        .add_bias_kv = true,
        .add_zero_attn = true}},
      {"195 wide, rotary",
       {.embed_dim = 195, .num_heads = 3, .rotary = Rotary{.pairs = RotaryPairs::half, .dim = 64}}},
      {"grouped, own widths, extra keys, rotary, no bias",
       {.embed_dim = 400,
        .num_heads = 6,
        .kv_heads = 3,
        .head_dim = 14,
        .value_dim = 16,
        .kdim = 1100,
        .vdim = 768,
        .out_dim = 350,
        .bias = false,
        .add_bias_kv = true,
        .rotary = Rotary{.pairs = RotaryPairs::interleaved}},
       true},
  };
}

Index sum_of(const Lengths& lengths) {
  Index sum = 0;
  for (const Index n : lengths) sum += n;
  return sum;
}

template <class T>
Matrix<T> in_type(const Matrix<Eigen::half>& m) {
  return m.unaryExpr([](Eigen::half x) { return mha::detail::convert<T>(x); });
}

// The same parameters in every type: those of half.
template <class T>
Layer<T> layer_of(const MultiHeadConfig& config) {
  Layer<Eigen::half> source(config);
  mha::test::randomise(source, 7);
  Layer<T> layer(config);
  const auto from = source.parameters();
  const auto to = layer.parameters();
  REQUIRE(from.size() == to.size());
  for (std::size_t n = 0; n < to.size(); ++n) {
    for (std::size_t k = 0; k < to[n].values.size(); ++k) {
      to[n].values[k] = mha::detail::convert<T>(from[n].values[k]);
    }
  }
  return layer;
}

template <class T>
struct Inputs {
  Matrix<T> query, key, value;
  Inputs(const MultiHeadConfig& c, bool cross, Index query_rows, Index key_rows)
      : query(in_type<T>(random_matrix<Eigen::half>(query_rows, c.embed_dim, 1))) {
    if (!cross) return;
    key = in_type<T>(random_matrix<Eigen::half>(key_rows, c.kdim, 2));
    value = in_type<T>(random_matrix<Eigen::half>(key_rows, c.vdim, 3));
  }
};

// f(inputs..., rule): of a self-attention causal, of cross-attention without a mask.
template <class T, class F>
auto with_arguments(const Problem& problem, const Inputs<T>& inputs, const F& f) {
  if (problem.cross) return f(inputs.query, inputs.key, inputs.value, mha::All{});
  return f(inputs.query, inputs.query, inputs.query, mha::causal());
}

// Rows of one sequence.
template <class T>
Inputs<T> sequence(const Problem& problem, const Inputs<T>& all, const Lengths& queries,
                   const Lengths& keys, std::size_t n) {
  Index query_row = 0;
  Index key_row = 0;
  for (std::size_t k = 0; k < n; ++k) {
    query_row += queries[k];
    key_row += keys[k];
  }
  Inputs<T> one = all;
  one.query = all.query.middleRows(query_row, queries[n]);
  if (problem.cross) {
    one.key = all.key.middleRows(key_row, keys[n]);
    one.value = all.value.middleRows(key_row, keys[n]);
  }
  return one;
}

// Of all of kQueries, sequence after sequence; computed once.
const Tokens& plain_output(const Problem& problem) {
  static std::map<std::string, Tokens> known;
  Tokens& output = known[problem.name];
  if (output.size() != 0) return output;
  const Layer<double> layer = layer_of<double>(problem.config);
  const Inputs<double> all(layer.config(), problem.cross, sum_of(kQueries), sum_of(kKeys));
  PlainCall call;
  if (!problem.cross) call.allowed = [](Index, Index i, Index j) { return j <= i; };
  output.resize(sum_of(kQueries), layer.out_dim());
  Index row = 0;
  for (std::size_t n = 0; n < kQueries.size(); ++n) {
    const Inputs<double> one = sequence(problem, all, kQueries, kKeys, n);
    const auto& key = problem.cross ? one.key : one.query;
    const auto& value = problem.cross ? one.value : one.query;
    output.middleRows(row, kQueries[n]) = plain_layer(layer, one.query, key, value, call).output;
    row += kQueries[n];
  }
  return output;
}

template <class T, class Options>
Matrix<T> output_of(const Layer<T>& layer, const Problem& problem, const Inputs<T>& inputs,
                    const Options& options) {
  return with_arguments(problem, inputs, [&](const auto&... arguments) {
    return layer.forward(arguments..., options).output;
  });
}

MultiHeadOptions cut_into(const Problem& problem, const Lengths& queries, const Lengths& keys) {
  MultiHeadOptions options;
  options.sequences = queries;
  if (problem.cross) options.kv_sequences = keys;
  return options;
}

}  // namespace

TEMPLATE_TEST_CASE(
    "every way to project gives the layer's numbers, in the same bits in any company",
    "[layer][projection]", float, double, Eigen::half) {
  mha::ThreadPool three(3);
  for (const Problem& problem : problems()) {
    CAPTURE(problem.name);
    const Tokens& expected = plain_output(problem);
    const auto layer = layer_of<TestType>(problem.config);
    const Inputs<TestType> all(layer.config(), problem.cross, sum_of(kQueries), sum_of(kKeys));
    on_every_target([&] {
      MultiHeadOptions options = cut_into(problem, kQueries, kKeys);
      const Matrix<TestType> output = output_of(layer, problem, all, options);
      CHECK_THAT(output, IsClose(expected, layer_tolerance(layer, 301)));
      options.executor = three;
      CHECK_THAT(output_of(layer, problem, all, options), HasBitsOf(output));
      Index row = 0;
      for (std::size_t n = 0; n < kQueries.size(); ++n) {
        CAPTURE(kQueries[n], kKeys[n]);
        const auto one = sequence(problem, all, kQueries, kKeys, n);
        CHECK_THAT(output_of(layer, problem, one, MultiHeadOptions{}),
                   HasBitsOf(Matrix<TestType>(output.middleRows(row, kQueries[n]))));
        row += kQueries[n];
      }
    });
  }
}

TEMPLATE_TEST_CASE("equal sequences of any length are projected as each would be by itself",
                   "[layer][projection]", float, Eigen::half) {
  const Problem problem = problems()[0];
  const auto layer = layer_of<TestType>(problem.config);
  const Index rows = GENERATE(1, 8, 15, 16, 64, 96);
  const Inputs<TestType> both(layer.config(), false, 2 * rows, 0);
  const Matrix<TestType> output = output_of(layer, problem, both, MultiHeadOptions{.batch = 2});
  for (std::size_t n = 0; n < 2; ++n) {
    const auto one = sequence(problem, both, {rows, rows}, {0, 0}, n);
    CHECK_THAT(output_of(layer, problem, one, MultiHeadOptions{}),
               HasBitsOf(Matrix<TestType>(output.middleRows(static_cast<Index>(n) * rows, rows))));
  }
}

TEMPLATE_TEST_CASE("an output of any strides gets the bits of a contiguous one",
                   "[layer][projection]", float, double, Eigen::half) {
  const Index rows = GENERATE(15, 100, 200);
  const Problem problem = problems()[0];
  const auto layer = layer_of<TestType>(problem.config);
  const Inputs<TestType> x(layer.config(), false, rows, 0);
  on_every_target([&] {
    const Matrix<TestType> expected = output_of(layer, problem, x, MultiHeadOptions{});
    Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor> columns(rows, 768);
    layer.forward_into(columns, x.query, mha::causal());
    CHECK_THAT(Matrix<TestType>(columns), HasBitsOf(expected));
    Matrix<TestType> wide = Matrix<TestType>::Constant(rows, 1600, TestType(7));
    using Strided = Eigen::Map<Matrix<TestType>, 0, Eigen::Stride<Eigen::Dynamic, 2>>;
    Strided strided(wide.data() + 1, rows, 768, Eigen::Stride<Eigen::Dynamic, 2>(1600, 2));
    layer.forward_into(strided, x.query, mha::causal());
    CHECK_THAT(Matrix<TestType>(strided), HasBitsOf(expected));
    strided.setConstant(TestType(7));  // and nothing between or beside its entries
    CHECK_THAT(wide,
               HasBitsOf(Matrix<TestType>(Matrix<TestType>::Constant(rows, 1600, TestType(7)))));
  });
}

TEMPLATE_TEST_CASE("a call writes nothing past the workspace that it was told to bring",
                   "[layer][projection][workspace]", float, double, Eigen::half) {
  mha::ThreadPool three(3);
  const std::vector<std::pair<Lengths, Lengths>> cuts{
      {{200, 100}, {200, 100}}, {{1, 300, 20}, {16, 193, 15}}, {{40, 3}, {12, 192}}};
  for (const Problem& problem : problems()) {
    const auto layer = layer_of<TestType>(problem.config);
    for (const auto& [queries, cross_keys] : cuts) {
      const Lengths& keys = problem.cross ? cross_keys : queries;
      for (const mha::Executor& executor : {mha::Executor(), mha::Executor(three)}) {
        CAPTURE(problem.name, queries, keys, executor.concurrency());
        const Inputs<TestType> all(layer.config(), problem.cross, sum_of(queries), sum_of(keys));
        MultiHeadOptions options = cut_into(problem, queries, keys);
        options.executor = executor;
        const std::size_t bytes = layer.workspace_bytes(sum_of(queries), sum_of(keys), options);
        // The memory behind what is needed keeps its pattern.
        const std::vector<unsigned char> pattern(std::size_t{1} << 21, 0xA5);
        mha::Workspace workspace(bytes + pattern.size());
        std::memcpy(workspace.data() + bytes, pattern.data(), pattern.size());
        options.workspace = &workspace;
        const Matrix<TestType> output = output_of(layer, problem, all, options);
        REQUIRE(std::memcmp(workspace.data() + bytes, pattern.data(), pattern.size()) == 0);
        // And one of that size suffices.
        mha::Workspace exact(bytes);
        options.workspace = &exact;
        CHECK_THAT(output_of(layer, problem, all, options), HasBitsOf(output));
        CHECK(exact.size() == bytes);
        options.workspace = nullptr;
        CHECK_THAT(output_of(layer, problem, all, options), HasBitsOf(output));
      }
    }
  }
}

namespace {

template <class T>
using Gradients = mha::MultiHeadGradients<Layer<T>>;

// All gradients of a pass, for a gradient of the output that is the same in every type.
template <class T>
Gradients<T> gradients_of(const Layer<T>& layer, const Problem& problem, const Inputs<T>& inputs,
                          const MultiHeadOptions& options) {
  Gradients<T> gradients(layer);
  mha::TrainingPass<Layer<T>> pass;
  const Matrix<T> grad =
      in_type<T>(random_matrix<Eigen::half>(inputs.query.rows(), layer.out_dim(), 9));
  if (problem.cross) {
    layer.forward_training(pass, inputs.query, inputs.key, inputs.value, mha::All{}, options);
    layer.backward(gradients, pass, grad, mha::All{}, options);
  } else {
    layer.forward_training(pass, inputs.query, mha::causal(), options);
    layer.backward(gradients, pass, grad, mha::causal(), options);
  }
  return gradients;
}

// f(name, one of a, the same of b).
template <class T, class U, class F>
void each_pair(Gradients<T>& a, Gradients<U>& b, const F& f) {
  const auto pa = a.parameters();
  const auto pb = b.parameters();
  REQUIRE(pa.size() == pb.size());
  const auto row = [](const auto& p) {
    using Scalar = typename std::remove_cvref_t<decltype(p.values)>::value_type;
    return Matrix<Scalar>(
        Eigen::Map<const Matrix<Scalar>>(p.values.data(), 1, static_cast<Index>(p.values.size())));
  };
  for (std::size_t n = 0; n < pa.size(); ++n) f(std::string(pa[n].name), row(pa[n]), row(pb[n]));
  f("query", a.query, b.query);
  f("key", a.key, b.key);
  f("value", a.value, b.value);
}

}  // namespace

TEST_CASE("every way to project has the gradients of long double",
          "[layer][projection][gradient]") {
  const Lengths queries{16, 193, 1};
  const Lengths keys{15, 17, 192};
  mha::ThreadPool three(3);
  for (const Problem& problem : problems()) {
    CAPTURE(problem.name);
    const auto exact_layer = layer_of<long double>(problem.config);
    const Inputs<long double> exact_inputs(exact_layer.config(), problem.cross, sum_of(queries),
                                           sum_of(keys));
    MultiHeadOptions options = cut_into(problem, queries, keys);
    Gradients<long double> expected = gradients_of(exact_layer, problem, exact_inputs, options);
    const auto compare = [&]<class T>(std::type_identity<T>) {
      const auto layer = layer_of<T>(problem.config);
      const Inputs<T> inputs(layer.config(), problem.cross, sum_of(queries), sum_of(keys));
      on_every_target([&] {
        options.executor = {};
        Gradients<T> actual = gradients_of(layer, problem, inputs, options);
        each_pair(actual, expected, [&](const std::string& name, const auto& a, const auto& e) {
          if (e.size() == 0) return;
          CAPTURE(name);
          // Sums over rows, inputs, keys and channels, of products of order 1 that mostly cancel.
          const double size = 1 + static_cast<double>(e.cwiseAbs().maxCoeff());
          CHECK_THAT(a, IsClose(e, inner_tolerance(layer, 230) * size));
        });
        options.executor = three;
        Gradients<T> threaded = gradients_of(layer, problem, inputs, options);
        each_pair(threaded, actual, [&](const std::string& name, const auto& a, const auto& e) {
          CAPTURE(name);
          CHECK_THAT(a, HasBitsOf(e));
        });
      });
    };
    compare(std::type_identity<float>());
    compare(std::type_identity<double>());
    compare(std::type_identity<Eigen::half>());
  }
}

namespace {

/// Two workers, one after the other: the first does everything.
struct InTurn {
  template <class F>
  void parallel_for(Index count, const F& f) const {
    for (Index k = 0; k < count; ++k) f(k);
  }
  static Index num_threads() { return 2; }
};

}  // namespace

TEST_CASE("a worker whose first task has nothing to compute packs the tokens for the next",
          "[projection][threads][regression]") {
  const Matrix<float> x = random_matrix<float>(69, 182, 1);
  const Matrix<float> weight = random_matrix<float>(182, 192, 2);
  Matrix<float> y = Matrix<float>::Zero(69, 192);
  Matrix<float> none(69, 0);
  mha::kernels::ProjectJob<float, float, float> jobs[2];
  for (auto& job : jobs) job.weight = {weight.data(), 192, nullptr};
  jobs[0].y = mha::matrix_view(none);
  jobs[1].y = mha::matrix_view(y);
  InTurn pool;
  const mha::Executor executor(pool);
  const mha::kernels::ProjectPlan<float> plan(69, 182, 192, 2, false, false, executor);
  REQUIRE(plan.way == mha::kernels::ProjectWay::tokens);
  REQUIRE(plan.workers == 2);
  mha::Workspace memory(plan.bytes());
  std::fill_n(memory.data(), memory.size(), std::byte{0xFF});  // NaN
  mha::kernels::project(mha::MatrixView<const float>(mha::matrix_view(x)), jobs, 2, plan, executor,
                        {memory.data(), memory.size()});
  const Tokens expected = x.cast<double>() * weight.cast<double>();
  CHECK_THAT(y, IsClose(expected, 182 * mha::test::eps_of<float>() * 182));
}

TEST_CASE("keys narrower than queries are projected alike by any number of threads",
          "[layer][threads][regression]") {
  // Grouped heads: of the 192 outputs that a task may have, keys and values have 64. A thread whose
  // first task had nothing to compute took the tokens for packed.
  mha::MultiHead<float, 3> layer({.embed_dim = 182, .kv_heads = 1, .head_dim = 64, .seed = 5});
  const Matrix<float> x = random_matrix<float>(69, 182, 1);
  const Matrix<float> expected = layer(x);
  for (const Index threads : {2, 3, 7}) {
    mha::ThreadPool pool(threads);
    for (int n = 0; n < 100; ++n) {
      const Matrix<float> got = layer(x, mha::All{}, {.executor = pool});
      REQUIRE_THAT(got, HasBitsOf(expected));
    }
  }
}
