// SPDX-License-Identifier: MIT
//
// Projection as a linear map of its own, on the layer's code: its numbers, its bits, its gradients, its
// mistakes. Sizes lie on both sides of every way to project: few tokens, tokens as lanes, panels.
#include <mha/mha.hpp>

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/every_target.hpp"
#include "support/layer_support.hpp"
#include "support/misuse.hpp"

using mha::Index;
using mha::Matrix;
using mha::Projection;
using mha::ProjectionOptions;
using mha::test::eps_of;
using mha::test::HasBitsOf;
using mha::test::on_every_target;
using mha::test::random_matrix;
using mha::test::refuses;
using mha::test::Sentinel;
using mha::test::Wide;

namespace {

struct Sizes {
  Index rows, inputs, outputs;
};

const std::vector<Sizes> kSizes{{1, 1, 1},      {3, 5, 7},       {15, 200, 170},  {16, 200, 170},
                                {17, 1100, 33}, {191, 190, 180}, {192, 190, 180}, {300, 1030, 70}};

template <class Scalar>
Projection<Scalar> random_projection(Index inputs, Index outputs, bool with_bias = true) {
  Projection<Scalar> linear;
  linear.resize(inputs, outputs, with_bias);
  linear.weight = random_matrix<Scalar>(inputs, outputs, 11);
  if (with_bias) linear.bias = random_matrix<Scalar>(1, outputs, 12);
  return linear;
}

template <class Scalar>
Wide wide(const Scalar& x) {
  return mha::detail::convert<Wide>(x);
}

// The largest |got - expected| over its bound, where expected is `start` + the sum of the `length`
// products, by long double. A chain of n multiply-adds, fused or not, errs by at most (2 n + 1) / 2 eps
// times the sum of the magnitudes, the rounding to the result's type by half of its eps more.
template <class Acc, class Out, class Product>
double excess_of(const Out& got, Wide start, Index length, const Product& product) {
  Wide sum = start;
  Wide magnitude = start < 0 ? -start : start;
  for (Index d = 0; d < length; ++d) {
    const Wide term = product(d);
    sum += term;
    magnitude += term < 0 ? -term : term;
  }
  const Wide rounding = static_cast<Wide>(eps_of<Out>()) / 2 * (sum < 0 ? -sum : sum);
  const Wide bound =
      static_cast<Wide>(eps_of<Acc>() * static_cast<double>(length + 1)) * magnitude + 2 * rounding;
  const Wide error = wide(got) - sum;
  return static_cast<double>((error < 0 ? -error : error) / (bound == 0 ? Wide(1) : bound));
}

// Of how many entries one is compared, so that the loops in long double stay affordable; a prime.
Index step_of(const Sizes& n) { return n.rows * n.inputs * n.outputs > 1000000 ? 53 : 1; }

// Entries of y = x W + b.
template <class Scalar, class X, class Y>
void check_numbers(const Projection<Scalar>& linear, const X& x, const Y& y) {
  const Index step = step_of({x.rows(), x.cols(), y.cols()});
  double worst = 0;
  for (Index i = 0; i < y.rows(); ++i) {
    for (Index c = i % step; c < y.cols(); c += step) {
      const Wide start = linear.has_bias() ? wide(linear.bias(c)) : Wide(0);
      const auto product = [&](Index d) { return wide(x(i, d)) * wide(linear.weight(d, c)); };
      worst =
          std::max(worst, excess_of<mha::accumulator_t<Scalar>>(y(i, c), start, x.cols(), product));
    }
  }
  CHECK(worst <= 1);
}

}  // namespace

TEMPLATE_TEST_CASE("a projection is x W + b", "[projection]", float, double, Eigen::half,
                   Eigen::bfloat16, long double) {
  on_every_target([] {
    for (const Sizes& n : kSizes) {
      if (std::is_same_v<TestType, long double> && n.inputs * n.rows > 40000) continue;
      CAPTURE(n.rows, n.inputs, n.outputs);
      const bool with_bias = n.rows != 16;
      const auto linear = random_projection<TestType>(n.inputs, n.outputs, with_bias);
      const auto x = random_matrix<TestType>(n.rows, n.inputs, 1);
      check_numbers(linear, x, linear(x));
    }
  });
}

TEST_CASE("a projection of hand-computed numbers", "[projection]") {
  // (1, 2) [1 10 100; 2 20 200] + (7, 8, 9) = (1 + 4 + 7, 10 + 40 + 8, 100 + 400 + 9)
  Projection<float> linear;
  linear.resize(2, 3, true);
  linear.weight << 1, 10, 100, 2, 20, 200;
  linear.bias << 7, 8, 9;
  const Matrix<float> x{{1, 2}};
  CHECK_THAT(linear(x), HasBitsOf(Matrix<float>{{12, 58, 509}}));
  // dx = dy W^T = (1 + 100, 2 + 200), dW = x^T dy, db = dy, for dy = (1, 0, 1); added to what was there
  auto gradient = linear.zero_gradient();
  gradient.bias(1) = 5;
  const Matrix<float> grad{{1, 0, 1}};
  CHECK_THAT(linear.apply_backward(gradient, grad, x), HasBitsOf(Matrix<float>{{101, 202}}));
  CHECK(gradient.weight == Matrix<float>{{1, 0, 1}, {2, 0, 2}});
  CHECK(gradient.bias == Matrix<float>{{1, 5, 1}});
}

TEMPLATE_TEST_CASE("a projection takes any expression and writes to any layout, with the same bits",
                   "[projection][bits]", float, double, Eigen::half, Eigen::bfloat16) {
  using Acc = mha::accumulator_t<TestType>;
  for (const Sizes& n : kSizes) {
    CAPTURE(n.rows, n.inputs, n.outputs);
    const auto linear = random_projection<TestType>(n.inputs, n.outputs);
    const auto x = random_matrix<TestType>(n.rows, n.inputs, 1);
    const Matrix<TestType> y = linear(x);
    using Columns = Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic>;
    const Columns turned = x;
    CHECK_THAT(linear(turned), HasBitsOf(y));
    CHECK_THAT(linear(x + Matrix<TestType>::Zero(n.rows, n.inputs)), HasBitsOf(y));
    CHECK_THAT(linear(mha::test::cast_to<Acc>(x)), HasBitsOf(y));
    Columns out(n.rows, n.outputs);
    linear.apply_into(out, x);
    CHECK_THAT(Matrix<TestType>(out), HasBitsOf(y));
    Matrix<TestType> room = Matrix<TestType>::Zero(n.rows, 2 * n.outputs);
    linear.apply_into(room.rightCols(n.outputs), x);
    CHECK_THAT(Matrix<TestType>(room.rightCols(n.outputs)), HasBitsOf(y));
    CHECK(room.leftCols(n.outputs).isZero(TestType(0)));
    // In the accumulator, from where the result is rounded.
    Matrix<Acc> kept(n.rows, n.outputs);
    linear.apply_into(kept, x);
    CHECK_THAT(mha::test::cast_to<TestType>(kept), HasBitsOf(y));
    check_numbers(linear, x, kept);
  }
}

TEMPLATE_TEST_CASE("a projected row has its bits for any threads and alone", "[projection][bits]",
                   float, double, Eigen::half, Eigen::bfloat16, long double) {
  mha::ThreadPool two(2);
  mha::ThreadPool three(3);
  on_every_target([&] {
    for (const Sizes& n : kSizes) {
      if (std::is_same_v<TestType, long double> && n.inputs * n.rows > 40000) continue;
      CAPTURE(n.rows, n.inputs, n.outputs);
      const auto linear = random_projection<TestType>(n.inputs, n.outputs);
      const auto x = random_matrix<TestType>(n.rows, n.inputs, 1);
      const Matrix<TestType> y = linear(x);
      CHECK_THAT(linear(x, {.executor = two}), HasBitsOf(y));
      CHECK_THAT(linear(x, {.executor = three}), HasBitsOf(y));
      for (const Index rows : {Index{1}, n.rows / 3, n.rows / 2 + 1}) {
        CHECK_THAT(linear(x.bottomRows(rows)), HasBitsOf(Matrix<TestType>(y.bottomRows(rows))));
      }
    }
  });
}

namespace {

// A call of a layer put together by hand: projections in the accumulator, attention over views of the
// heads, the projection of the concatenation.
template <class Scalar>
struct ByHand {
  using Acc = mha::accumulator_t<Scalar>;
  using Layer = mha::MultiHead<Scalar, Eigen::Dynamic>;
  Matrix<Acc> q, k, v, concat;
  mha::Tensor<Acc> lse;
  Matrix<Scalar> output;

  ByHand(const Layer& layer, const Matrix<Scalar>& x, const Matrix<Scalar>& context) {
    q.resize(x.rows(), layer.q_proj.outputs());
    k.resize(context.rows(), layer.k_proj.outputs());
    v.resize(context.rows(), layer.v_proj.outputs());
    layer.q_proj.apply_into(q, x);
    layer.k_proj.apply_into(k, context);
    layer.v_proj.apply_into(v, context);
    concat.resize(x.rows(), layer.out_proj.inputs());
    lse = mha::Tensor<Acc>({1, layer.num_heads(), x.rows(), 1});
    mha::attention_into(
        mha::AttentionOutputs<Acc>{.output = heads(concat, layer.num_heads()), .lse = lse.view()},
        heads(q, layer.num_heads()), heads(k, layer.kv_heads()), heads(v, layer.kv_heads()),
        mha::causal());
    output.resize(x.rows(), layer.out_dim());
    layer.out_proj.apply_into(output, concat);
  }
  static mha::TensorView<Acc> heads(Matrix<Acc>& m, Index num_heads) {
    return mha::split_heads(m, num_heads);
  }
};

// The layer's projections take each of their ways at these numbers of rows.
const std::vector<Index> kRows{1, 15, 17, 200};

template <class Scalar>
auto layer_by_hand() {
  typename ByHand<Scalar>::Layer layer(
      {.embed_dim = 200, .num_heads = 4, .kv_heads = 2, .value_dim = 48, .out_dim = 190});
  mha::test::randomise(layer, 3);
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("a layer has the bits of its projections and attention composed by hand",
                   "[projection][layer][bits]", float, double, Eigen::half, Eigen::bfloat16,
                   long double) {
  const auto layer = layer_by_hand<TestType>();
  for (const Index rows : kRows) {
    if (std::is_same_v<TestType, long double> && rows > 20) continue;
    CAPTURE(rows);
    const auto x = random_matrix<TestType>(rows, 200, 1);
    const auto context = random_matrix<TestType>(rows + 1, 200, 2);
    CHECK_THAT((ByHand<TestType>(layer, x, x).output), HasBitsOf(layer(x, mha::causal())));
    CHECK_THAT((ByHand<TestType>(layer, x, context).output),
               HasBitsOf(layer(x, context, mha::causal())));
  }
}

TEMPLATE_TEST_CASE("a layer's gradients have the bits of those composed by hand",
                   "[projection][layer][gradient][bits]", float, double, Eigen::half,
                   Eigen::bfloat16, long double) {
  using Acc = mha::accumulator_t<TestType>;
  using Layer = typename ByHand<TestType>::Layer;
  const auto layer = layer_by_hand<TestType>();
  for (const Index rows : kRows) {
    if (std::is_same_v<TestType, long double> && rows > 20) continue;
    CAPTURE(rows);
    const auto x = random_matrix<TestType>(rows, 200, 1);
    const auto grad = random_matrix<TestType>(rows, 190, 2);
    mha::TrainingPass<Layer> pass;
    mha::MultiHeadGradients<Layer> expected(layer);
    layer.forward_training(pass, x, mha::causal());
    layer.backward(expected, pass, grad, mha::causal());

    ByHand<TestType> forward(layer, x, x);
    mha::MultiHeadGradients<Layer> got(layer);
    Matrix<Acc> grad_concat = layer.out_proj.apply_backward(got.out_proj, grad, forward.concat);
    Matrix<Acc> grad_q(rows, forward.q.cols());
    Matrix<Acc> grad_k(rows, forward.k.cols());
    Matrix<Acc> grad_v(rows, forward.v.cols());
    const auto heads = [](Matrix<Acc>& m, Index n) { return ByHand<TestType>::heads(m, n); };
    mha::attention_backward_into(
        mha::AttentionGradientOutputs<Acc>{heads(grad_q, 4), heads(grad_k, 2), heads(grad_v, 2)},
        heads(grad_concat, 4), heads(forward.q, 4), heads(forward.k, 2), heads(forward.v, 2),
        mha::AttentionOutputs<Acc>{.output = heads(forward.concat, 4), .lse = forward.lse.view()},
        mha::causal());
    const Matrix<Acc> of_q = layer.q_proj.apply_backward(got.q_proj, grad_q, x);
    const Matrix<Acc> of_k = layer.k_proj.apply_backward(got.k_proj, grad_k, x);
    const Matrix<Acc> of_v = layer.v_proj.apply_backward(got.v_proj, grad_v, x);
    const auto same = [](const auto& a, const auto& b) {
      CHECK_THAT(Matrix<Acc>(a.weight), HasBitsOf(Matrix<Acc>(b.weight)));
      CHECK_THAT(Matrix<Acc>(a.bias), HasBitsOf(Matrix<Acc>(b.bias)));
    };
    same(got.out_proj, expected.out_proj);
    same(got.q_proj, expected.q_proj);
    same(got.k_proj, expected.k_proj);
    same(got.v_proj, expected.v_proj);
    // The layer adds those of x up as it goes: the same but for rounding.
    const Matrix<Acc> sum = of_q + of_k + of_v;
    CHECK_THAT(sum, mha::test::IsClose(expected.query, 1000 * eps_of<Acc>()));
  }
}

TEST_CASE("a projection's gradients are those of central differences", "[projection][gradient]") {
  for (const Index rows : {Index{3}, Index{20}}) {
    Projection<double> linear = random_projection<double>(7, 5);
    Matrix<double> x = random_matrix<double>(rows, 7, 1);
    const Matrix<double> grad = random_matrix<double>(rows, 5, 2);
    const auto loss = [&] { return linear(x).cwiseProduct(grad).sum(); };
    auto gradient = linear.zero_gradient();
    const Matrix<double> grad_x = linear.apply_backward(gradient, grad, x);
    CHECK(mha::gradient_check(x, grad_x, loss).worst < 1e-8);
    CHECK(mha::gradient_check(linear.weight, gradient.weight, loss).worst < 1e-8);
    CHECK(mha::gradient_check(linear.bias, gradient.bias, loss).worst < 1e-8);
  }
}

TEMPLATE_TEST_CASE("a projection's gradients are x^T dy, dy W^T and sums of rows, added up",
                   "[projection][gradient]", float, double, Eigen::half, Eigen::bfloat16,
                   long double) {
  using Acc = mha::accumulator_t<TestType>;
  mha::ThreadPool pool(3);
  for (const Sizes& n : kSizes) {
    if (std::is_same_v<TestType, long double> && n.inputs * n.rows > 40000) continue;
    CAPTURE(n.rows, n.inputs, n.outputs);
    const auto linear = random_projection<TestType>(n.inputs, n.outputs);
    const auto x = random_matrix<TestType>(n.rows, n.inputs, 1);
    const auto grad = random_matrix<TestType>(n.rows, n.outputs, 2);
    auto gradient = linear.zero_gradient();
    gradient.weight.setConstant(Acc(0.5));
    gradient.bias.setConstant(Acc(0.25));
    auto again = gradient;
    const Matrix<Acc> grad_x = linear.apply_backward(gradient, grad, x);
    const Index step = step_of(n);
    double worst = 0;
    for (Index d = 0; d < n.inputs; ++d) {
      for (Index i = d % step; i < n.rows; i += step) {
        worst = std::max(worst, excess_of<Acc>(grad_x(i, d), 0, n.outputs, [&](Index c) {
                           return wide(grad(i, c)) * wide(linear.weight(d, c));
                         }));
      }
      for (Index c = d % step; c < n.outputs; c += step) {
        worst = std::max(worst,
                         excess_of<Acc>(gradient.weight(d, c), Wide(0.5), n.rows,
                                        [&](Index i) { return wide(x(i, d)) * wide(grad(i, c)); }));
      }
    }
    for (Index c = 0; c < n.outputs; ++c) {
      worst = std::max(worst, excess_of<Acc>(gradient.bias(c), Wide(0.25), n.rows,
                                             [&](Index i) { return wide(grad(i, c)); }));
    }
    CHECK(worst <= 1);
    // By three threads, in a workspace, into a matrix of the other order, from the accumulator's type.
    mha::Workspace workspace;
    Eigen::Matrix<Acc, Eigen::Dynamic, Eigen::Dynamic> other(n.rows, n.inputs);
    linear.apply_backward_into(other, again, mha::test::cast_to<Acc>(grad), x,
                               {.executor = pool, .workspace = &workspace});
    CHECK_THAT(Matrix<Acc>(other), HasBitsOf(grad_x));
    CHECK_THAT(again.weight, HasBitsOf(gradient.weight));
    CHECK_THAT(again.bias, HasBitsOf(gradient.bias));
  }
}

TEMPLATE_TEST_CASE("a projection's workspace is as large as it says", "[projection][workspace]",
                   float, double, Eigen::half, long double) {
  mha::ThreadPool pool(3);
  for (const bool parallel : {false, true}) {
    for (const Sizes& n : kSizes) {
      CAPTURE(parallel, n.rows, n.inputs, n.outputs);
      const auto linear = random_projection<TestType>(n.inputs, n.outputs);
      ProjectionOptions options;
      if (parallel) options.executor = pool;
      if (std::is_same_v<TestType, long double>) {
        CHECK(linear.workspace_bytes(n.rows, options) == 0);
        CHECK(linear.backward_workspace_bytes(n.rows, options) == 0);
        continue;
      }
      const auto x = random_matrix<TestType>(n.rows, n.inputs, 1);
      mha::Workspace forward(linear.workspace_bytes(n.rows, options));
      const std::size_t bytes = forward.size();
      options.workspace = &forward;
      Matrix<TestType> rows(n.rows, n.outputs);
      Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic> columns(n.rows, n.outputs);
      linear.apply_into(rows, x, options);
      linear.apply_into(columns, x, options);
      CHECK(forward.size() == bytes);
      mha::Workspace backward(linear.backward_workspace_bytes(n.rows, options));
      const std::size_t most = backward.size();
      options.workspace = &backward;
      auto gradient = linear.zero_gradient();
      (void)linear.apply_backward(gradient, rows, x, options);
      CHECK(backward.size() == most);
    }
  }
}

TEMPLATE_TEST_CASE("a projection without rows, inputs or outputs is what the formula says",
                   "[projection]", float, Eigen::half, long double) {
  using Acc = mha::accumulator_t<TestType>;
  using M = Matrix<TestType>;
  const auto linear = random_projection<TestType>(3, 4);
  auto gradient = linear.zero_gradient();
  CHECK(linear(M(0, 3)).rows() == 0);
  CHECK(linear.apply_backward(gradient, M(0, 4), M(0, 3)).rows() == 0);
  CHECK(gradient.weight.isZero(0));

  const auto constant = random_projection<TestType>(0, 4);
  CHECK_THAT(constant(M(2, 0)), HasBitsOf(M(constant.bias.replicate(2, 1))));
  auto of_bias = constant.zero_gradient();
  const M grad = random_matrix<TestType>(2, 4, 1);
  CHECK(constant.apply_backward(of_bias, grad, M(2, 0)).size() == 0);
  const Matrix<Acc> wide_grad = mha::test::cast_to<Acc>(grad);
  CHECK_THAT(Matrix<Acc>(of_bias.bias),
             HasBitsOf(Matrix<Acc>(wide_grad.row(0) + wide_grad.row(1))));

  const auto nothing = random_projection<TestType>(3, 0);
  CHECK(nothing(M::Ones(2, 3)).size() == 0);
  auto empty = nothing.zero_gradient();
  CHECK_THAT(nothing.apply_backward(empty, M(2, 0), M::Ones(2, 3)),
             HasBitsOf(Matrix<Acc>(Matrix<Acc>::Zero(2, 3))));
}

TEST_CASE("projections of fixed sizes, of one column and of one row are projections",
          "[projection]") {
  Projection<float, 3, 1> column;
  column.resize(3, 1, true);
  column.weight << 4, 5, 6;
  column.bias << 7;
  const Matrix<float> x{{1, 2, 3}};
  CHECK_THAT(column(x), HasBitsOf(Matrix<float>{{39}}));
  auto gradient = column.zero_gradient();
  CHECK_THAT(column.apply_backward(gradient, Matrix<float>{{2}}, x),
             HasBitsOf(Matrix<float>{{8, 10, 12}}));
  CHECK(gradient.weight == Eigen::Vector3f(2, 4, 6));
  Projection<float, 1, 3> row;
  row.resize(1, 3, false);
  row.weight << 4, 5, 6;
  CHECK_THAT(row(Matrix<float>{{2}}), HasBitsOf(Matrix<float>{{8, 10, 12}}));
  const auto layer = mha::MultiHead<float, 2, 4>();
  const Matrix<float> tokens = random_matrix<float>(5, 8, 1);
  check_numbers(
      [&] {
        Projection<float> same;
        same.weight = layer.q_proj.weight;
        same.bias = layer.q_proj.bias;
        return same;
      }(),
      tokens, layer.q_proj(tokens));
}

TEST_CASE("one projection serves many threads at once", "[projection]") {
  const auto linear = random_projection<float>(200, 170);
  const auto x = random_matrix<float>(40, 200, 1);
  const Matrix<float> y = linear(x);
  std::vector<Matrix<float>> all(8);
  mha::ThreadPool pool(3);
  pool.parallel_for(8, [&](Index k) { all[static_cast<std::size_t>(k)] = linear(x); });
  for (const Matrix<float>& one : all) CHECK_THAT(one, HasBitsOf(y));
}

// ---- mistakes

namespace {

using Map = Eigen::Map<Matrix<float>>;
using Strided = Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;

Map nowhere(Index rows, Index cols) { return {nullptr, rows, cols}; }

// f(parts of the message, x) for each x that does not fit 3 inputs.
template <class F>
void each_wrong_x(const F& f) {
  f({"x.cols() must equal weight.rows() (inputs), got 4 and 3"}, Matrix<float>(2, 4));
  f({"x.cols() must equal weight.rows() (inputs), got 0 and 3"}, Matrix<float>(2, 0));
  f({"x.data must not be null, got sizes [1, 1, 2, 3]"}, nowhere(2, 3));
  static const float one = 0;
  using Endless = Eigen::Map<const Matrix<float>, 0, Stride>;
  f({"x must have between 0 and 1073741824 entries along rows, got 1073741825"},
    Endless(&one, (Index{1} << 30) + 1, 3, Stride(0, 0)));
}

// f(parts of the message, projection of 3 inputs and 4 outputs) for each that cannot be one.
template <class F>
void each_wrong_projection(const F& f) {
  auto linear = random_projection<float>(3, 4);
  linear.bias.resize(3);
  f({"bias must have 0 or 4 entries, got 3"}, linear);
  linear.bias.resize(5);
  f({"bias must have 0 or 4 entries, got 5"}, linear);
}

}  // namespace

TEST_CASE("misuse of Projection::operator()", "[misuse][projection]") {
  const auto linear = random_projection<float>(3, 4);
  each_wrong_x([&](const std::vector<std::string>& parts, const auto& x) {
    refuses("Projection::operator()", parts, [&] { (void)linear(x); });
  });
  each_wrong_projection([](const std::vector<std::string>& parts, const auto& wrong) {
    refuses("Projection::operator()", parts, [&] { (void)wrong(Matrix<float>(2, 3)); });
  });
}

TEST_CASE("misuse of Projection::resize", "[misuse][projection]") {
  Projection<float> linear = random_projection<float>(3, 4);
  for (const Index size : {Index{-1}, std::numeric_limits<Index>::min(), (Index{1} << 30) + 1,
                           std::numeric_limits<Index>::max()}) {
    refuses("Projection::resize", {"inputs must lie between 0 and", "got " + std::to_string(size)},
            [&] { linear.resize(size, 2, true); });
    refuses("Projection::resize", {"outputs must lie between 0 and", "got " + std::to_string(size)},
            [&] { linear.resize(2, size, true); });
  }
  CHECK(linear.inputs() == 3);
  mha::Projection<float, 4, 5> fixed;
  fixed.resize(4, 5, true);
  refuses("Projection::resize", {"inputs must be 4, as known at compile time, got 5"},
          [&] { fixed.resize(5, 5, true); });
  refuses("Projection::resize", {"outputs must be 5, as known at compile time, got 4"},
          [&] { fixed.resize(4, 4, true); });
}

TEST_CASE("misuse of Projection::apply_into", "[misuse][projection]") {
  const std::string function = "Projection::apply_into";
  auto linear = random_projection<float>(3, 4);
  Matrix<float> x = random_matrix<float>(2, 3, 1);
  Sentinel<float> memory(100);
  const Map output(memory.data(), 2, 4);
  each_wrong_x([&](const std::vector<std::string>& parts, const auto& wrong) {
    refuses(function, parts, memory, [&] { linear.apply_into(Map(output), wrong); });
  });
  each_wrong_projection([&](const std::vector<std::string>& parts, const auto& wrong) {
    refuses(function, parts, memory, [&] { wrong.apply_into(Map(output), x); });
  });
  const auto refused = [&](const std::vector<std::string>& parts, auto to) {
    refuses(function, parts, memory, [&] { linear.apply_into(to, x); });
  };
  refused({"output must be 2 x 4, got 3 x 4"}, Map(memory.data(), 3, 4));
  refused({"output must be 2 x 4, got 2 x 3"}, Map(memory.data(), 2, 3));
  refused({"output.data must not be null, got sizes [1, 1, 2, 4]"}, nowhere(2, 4));
  refused({"output must have a place of its own", "strides [0, 0, 0, 1]"},
          Strided(memory.data(), 2, 4, Stride(0, 1)));
  refused({"output must have a place of its own", "strides [0, 0, 4, 0]"},
          Strided(memory.data(), 2, 4, Stride(4, 0)));
  const Matrix<float> before = x;
  const auto kept = linear;
  refused({"output must not overlap x"}, Map(x.data(), 2, 4));
  refused({"output must not overlap x"}, Map(x.data() + 5, 2, 4));
  refused({"output must not overlap weight"}, Map(linear.weight.data() + 4, 2, 4));
  refused({"output must not overlap bias"}, Map(linear.bias.data() + 3, 2, 4));
  CHECK(x == before);
  CHECK(linear.weight == kept.weight);
  CHECK(linear.bias == kept.bias);
}

TEST_CASE("misuse of Projection::apply_backward", "[misuse][projection][gradient]") {
  auto linear = random_projection<float>(3, 4);
  const auto kept = linear;
  const Matrix<float> x = random_matrix<float>(2, 3, 1);
  const Matrix<float> grad = random_matrix<float>(2, 4, 2);
  auto gradient = linear.zero_gradient();
  Sentinel<float> memory(100);
  // Both functions, with everything that can be wrong in either.
  const auto refused = [&](const std::vector<std::string>& parts, auto& of, const auto& map,
                           const auto& grad_output, const auto& tokens) {
    refuses("Projection::apply_backward", parts, memory,
            [&] { (void)map.apply_backward(of, grad_output, tokens); });
    refuses("Projection::apply_backward_into", parts, memory,
            [&] { map.apply_backward_into(Map(memory.data(), 2, 3), of, grad_output, tokens); });
  };
  each_wrong_x([&](const std::vector<std::string>& parts, const auto& wrong) {
    refused(parts, gradient, linear, grad, wrong);
  });
  each_wrong_projection([&](const std::vector<std::string>& parts, const auto& wrong) {
    refused(parts, gradient, wrong, grad, x);
  });
  using M = Matrix<float>;
  refused({"grad_output must be 2 x 4, got 1 x 4"}, gradient, linear, M(1, 4), x);
  refused({"grad_output must be 2 x 4, got 2 x 3"}, gradient, linear, M(2, 3), x);
  refused({"grad_output.data must not be null"}, gradient, linear, nowhere(2, 4), x);
  auto wrong = random_projection<float>(4, 3);
  refused({"gradient.weight must be 3 x 4, got 4 x 3"}, wrong, linear, grad, x);
  wrong = random_projection<float>(3, 4, false);
  refused({"gradient.bias must have 4 entries, got 0"}, wrong, linear, grad, x);
  refused({"gradient.weight must not overlap weight"}, linear, linear, grad, x);
  refused({"gradient.weight must not overlap x"}, gradient, linear, grad,
          Map(gradient.weight.data(), 2, 3));
  refused({"gradient.weight must not overlap grad_output"}, gradient, linear,
          Map(gradient.weight.data(), 2, 4), x);
  refused({"gradient.bias must not overlap x"}, gradient, linear, grad.topRows(1),
          Map(gradient.bias.data(), 1, 3));
  CHECK(gradient.weight.isZero(0));
  CHECK(gradient.bias.isZero(0));
  CHECK(linear.weight == kept.weight);

  const auto refused_result = [&](const std::vector<std::string>& parts, auto to) {
    refuses("Projection::apply_backward_into", parts, memory,
            [&] { linear.apply_backward_into(to, gradient, grad, x); });
  };
  refused_result({"grad_x must be 2 x 3, got 2 x 4"}, Map(memory.data(), 2, 4));
  refused_result({"grad_x.data must not be null"}, nowhere(2, 3));
  refused_result({"grad_x must have a place of its own"},
                 Strided(memory.data(), 2, 3, Stride(0, 1)));
  Matrix<float> own_x = x;
  Matrix<float> own_grad = grad;
  refuses("Projection::apply_backward_into", {"grad_x must not overlap x"},
          [&] { linear.apply_backward_into(own_x, gradient, grad, own_x); });
  refuses("Projection::apply_backward_into", {"grad_x must not overlap grad_output"},
          [&] { linear.apply_backward_into(Map(own_grad.data(), 2, 3), gradient, own_grad, x); });
  refused_result({"grad_x must not overlap weight"}, Map(linear.weight.data(), 2, 3));
  refused_result({"grad_x must not overlap gradient.weight"}, Map(gradient.weight.data(), 2, 3));
  CHECK(own_x == x);
  CHECK(own_grad == grad);
  CHECK(gradient.weight.isZero(0));
  CHECK(linear.weight == kept.weight);
}

TEST_CASE("misuse of a projection's workspace_bytes", "[misuse][projection]") {
  const auto linear = random_projection<float>(3, 4);
  for (const Index rows : {Index{-1}, (Index{1} << 30) + 1, Index{1} << 62}) {
    const std::string got = "got " + std::to_string(rows);
    refuses("Projection::workspace_bytes", {"the rows must lie between 0 and 1073741824", got},
            [&] { (void)linear.workspace_bytes(rows); });
    refuses("Projection::backward_workspace_bytes", {"the rows must lie between 0", got},
            [&] { (void)linear.backward_workspace_bytes(rows); });
  }
  each_wrong_projection([](const std::vector<std::string>& parts, const auto& wrong) {
    refuses("Projection::workspace_bytes", parts, [&] { (void)wrong.workspace_bytes(2); });
    refuses("Projection::backward_workspace_bytes", parts,
            [&] { (void)wrong.backward_workspace_bytes(2); });
  });
  // A weight without outputs has no memory, whatever its inputs.
  Projection<float> endless;
  endless.weight.resize((Index{1} << 30) + 1, 0);
  refuses("Projection::workspace_bytes", {"weight must be at most", "got 1073741825 x 0"},
          [&] { (void)endless.workspace_bytes(1); });
  endless.resize(Index{1} << 30, 0, false);
  refuses("Projection::backward_workspace_bytes",
          {"must fit 2^60 bytes", "got 1073741824 rows, 1073741824 inputs and 0 outputs"},
          [&] { (void)endless.backward_workspace_bytes(Index{1} << 30); });
}
