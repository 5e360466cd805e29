// SPDX-License-Identifier: MIT
//
// The layer's backward pass: against dual numbers through the whole layer, over a random grid of its
// options, and what it promises about parameters, memory and bits.
#include <mha/gradient_check.hpp>
#include <mha/mha.hpp>

#include <random>

#include "support/matchers.hpp"

using mha::Dual;
using mha::Index;
using mha::Matrix;
using mha::test::HasBitsOf;
using mha::test::random_matrix;

namespace {

template <class T>
using Layer = mha::MultiHead<T, Eigen::Dynamic>;

enum class Inputs { self, context, apart };

struct Case {
  mha::MultiHeadConfig config;
  mha::MultiHeadOptions options;
  Inputs inputs;
  Index query_rows;
  Index key_rows;
  Index causal;
};

Case random_case(std::mt19937_64& random) {
  const auto pick = [&](Index low, Index high) {
    return low + static_cast<Index>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  const auto coin = [&] { return random() % 2 == 0; };
  Case c{};
  c.inputs = static_cast<Inputs>(pick(0, 2));
  c.config.kv_heads = pick(1, 2);
  c.config.num_heads = c.config.kv_heads * pick(1, 2);
  c.config.head_dim = 2 * pick(1, 2);
  c.config.value_dim = pick(1, 3);
  c.config.embed_dim = pick(1, 6);
  if (c.inputs == Inputs::apart) {
    c.config.kdim = pick(1, 4);
    c.config.vdim = pick(1, 4);
  }
  c.config.out_dim = pick(1, 5);
  c.config.bias = coin();
  c.config.add_bias_kv = coin();
  c.config.add_zero_attn = coin();
  if (coin()) {
    c.config.rotary =
        mha::Rotary{.pairs = coin() ? mha::RotaryPairs::half : mha::RotaryPairs::interleaved,
                    .dim = coin() ? 2 : 0,
                    .base = 10};
  }
  c.config.seed = random();
  if (coin()) {
    const std::vector<Index> lengths{pick(0, 3), pick(1, 4)};
    c.options.sequences = lengths;
    c.query_rows = lengths[0] + lengths[1];
    c.key_rows = c.query_rows;
    if (c.inputs != Inputs::self) {
      const std::vector<Index> keys{pick(0, 3), pick(1, 4)};
      c.options.kv_sequences = keys;
      c.key_rows = keys[0] + keys[1];
    }
  } else {
    c.options.batch = pick(1, 2);
    c.query_rows = c.options.batch * pick(1, 4);
    c.key_rows = c.inputs == Inputs::self ? c.query_rows : c.options.batch * pick(1, 4);
  }
  c.causal = coin() ? pick(-1, 3) : 1000;
  return c;
}

template <class T>
Matrix<T> in_type(const Matrix<double>& m, const Matrix<double>& slope) {
  if constexpr (std::is_same_v<T, double>) {
    return m;
  } else {
    Matrix<T> result(m.rows(), m.cols());
    for (Index k = 0; k < m.size(); ++k) result.data()[k] = T(m.data()[k], slope.data()[k]);
    return result;
  }
}

/// f(numbers of a layer, as matrices of one row), in the order of for_each_parameter.
template <class L, class F>
void each_parameter(L& layer, const F& f) {
  mha::detail::for_each_parameter(
      layer, [&](std::string_view name, auto& values) { f(name, values.data(), values.size()); });
}

}  // namespace

TEST_CASE("the layer's gradients equal dual numbers' derivatives under all options",
          "[layer][gradient][dual]") {
  std::mt19937_64 random(3);
  for (int round = 0; round < 220; ++round) {
    const Case c = random_case(random);
    CAPTURE(round, static_cast<int>(c.inputs), c.config.add_bias_kv, c.config.add_zero_attn,
            c.config.rotary.has_value(), c.query_rows, c.key_rows);
    Layer<double> layer(c.config);
    Layer<Dual<double>> duals(c.config);
    // Every parameter random, biases too, and a direction for each.
    std::vector<double> directions;
    std::vector<double> values;
    each_parameter(layer, [&](std::string_view, double* x, Index size) {
      for (Index k = 0; k < size; ++k) {
        x[k] = 2 * (static_cast<double>(random() >> 11) * 0x1p-52 - 1);
        values.push_back(x[k]);
        directions.push_back(2 * (static_cast<double>(random() >> 11) * 0x1p-52 - 1));
      }
    });
    std::size_t n = 0;
    each_parameter(duals, [&](std::string_view, Dual<double>* x, Index size) {
      for (Index k = 0; k < size; ++k, ++n) x[k] = Dual<double>(values[n], directions[n]);
    });
    const Index key_width = c.inputs == Inputs::apart ? layer.config().kdim : c.config.embed_dim;
    const Index value_width = c.inputs == Inputs::apart ? layer.config().vdim : c.config.embed_dim;
    const auto q = random_matrix<double>(c.query_rows, c.config.embed_dim, random());
    const auto k = random_matrix<double>(c.key_rows, key_width, random());
    const auto v = random_matrix<double>(c.key_rows, value_width, random());
    const auto dq = random_matrix<double>(q.rows(), q.cols(), random());
    const auto dk = random_matrix<double>(k.rows(), k.cols(), random());
    const auto dv = random_matrix<double>(v.rows(), v.cols(), random());
    const auto g = random_matrix<double>(c.query_rows, layer.out_dim(), random());
    const auto rule = mha::causal_offset(c.causal) & mha::softcap(3.0) & mha::alibi(0.2);

    const auto with_inputs = [&]<class T>(std::type_identity<T>, const auto& f) {
      const Matrix<T> query = in_type<T>(q, dq);
      const Matrix<T> key = in_type<T>(k, dk);
      const Matrix<T> value = in_type<T>(v, dv);
      if (c.inputs == Inputs::self) {
        f(query);
      } else if (c.inputs == Inputs::context) {
        f(query, key);
      } else {
        f(query, key, value);
      }
    };
    double expected = 0;
    with_inputs(std::type_identity<Dual<double>>(), [&](const auto&... x) {
      const auto y = duals(x..., rule, c.options);
      for (Index i = 0; i < y.size(); ++i) expected += y.data()[i].slope * g.data()[i];
    });
    mha::MultiHeadGradients<Layer<double>> grads(layer);
    with_inputs(std::type_identity<double>(), [&](const auto&... x) {
      mha::TrainingPass<Layer<double>> pass;
      layer.forward_training(pass, x..., rule, c.options);
      CHECK_THAT(pass.output, HasBitsOf(layer(x..., rule, c.options)));
      layer.backward(grads, pass, g, rule, c.options);
    });
    double actual = 0;
    double size = 1;
    const auto add = [&](double gradient, double direction) {
      actual += gradient * direction;
      size += std::abs(gradient * direction);
    };
    n = 0;
    each_parameter(grads, [&](std::string_view, const double* x, Index count) {
      for (Index i = 0; i < count; ++i) add(x[i], directions[n++]);
    });
    CHECK(n == directions.size());
    for (Index i = 0; i < grads.query.size(); ++i) add(grads.query.data()[i], dq.data()[i]);
    for (Index i = 0; i < grads.key.size(); ++i) add(grads.key.data()[i], dk.data()[i]);
    for (Index i = 0; i < grads.value.size(); ++i) add(grads.value.data()[i], dv.data()[i]);
    CHECK(std::abs(actual - expected) <= 1e-10 * size);
  }
}

TEMPLATE_TEST_CASE("parameters and their gradients are listed by the same names",
                   "[layer][gradient]", float, double) {
  const mha::MultiHead<TestType, 2> layer({.embed_dim = 8, .bias = false, .add_bias_kv = true});
  mha::MultiHeadGradients<mha::MultiHead<TestType, 2>> grads(layer);
  const auto values = layer.parameters();
  const auto gradients = grads.parameters();
  REQUIRE(values.size() == 6);  // four weights, bias_k, bias_v
  REQUIRE(gradients.size() == values.size());
  for (std::size_t n = 0; n < values.size(); ++n) {
    CHECK(values[n].name == gradients[n].name);
    CHECK(values[n].values.size() == gradients[n].values.size());
  }
  CHECK(values[0].name == "q_proj.weight");
  CHECK(values[0].values.data() == layer.q_proj.weight.data());
}

TEST_CASE("parameters' gradients add up over passes until they are set to zero",
          "[layer][gradient]") {
  const mha::MultiHead<double, 2> layer(8);
  const auto x = random_matrix<double>(5, 8, 1);
  const auto g = random_matrix<double>(5, 8, 2);
  mha::TrainingPass<mha::MultiHead<double, 2>> pass;
  mha::MultiHeadGradients<mha::MultiHead<double, 2>> grads(layer);
  layer.forward_training(pass, x);
  layer.backward(grads, pass, g);
  const Matrix<double> once = grads.v_proj.weight;
  const Matrix<double> input = grads.query;
  layer.backward(grads, pass, g);
  CHECK_THAT(grads.v_proj.weight, mha::test::IsClose(2 * once, 1e-14));
  CHECK_THAT(grads.query, HasBitsOf(input));  // inputs' are overwritten
  grads.set_zero();
  CHECK(grads.v_proj.weight == Matrix<double>::Zero(8, 8));
}

TEMPLATE_TEST_CASE("any number of threads gives the same gradients of a layer",
                   "[layer][gradient][bits]", float, double) {
  using Own = mha::MultiHead<TestType, Eigen::Dynamic>;
  const Own layer({.embed_dim = 80, .num_heads = 4, .kv_heads = 2});
  const auto x = random_matrix<TestType>(2 * 150, 80, 1);
  const auto g = random_matrix<TestType>(2 * 150, 80, 2);
  const auto gradients = [&](const mha::MultiHeadOptions& options) {
    mha::TrainingPass<Own> pass;
    mha::MultiHeadGradients<Own> grads(layer);
    layer.forward_training(pass, x, mha::causal(), options);
    layer.backward(grads, pass, g, mha::causal(), options);
    return grads;
  };
  const auto serial = gradients({.batch = 2});
  for (const Index threads : {2, 3, 16}) {
    mha::ThreadPool pool(threads);
    const auto grads = gradients({.batch = 2, .executor = pool});
    CHECK_THAT(grads.q_proj.weight, HasBitsOf(serial.q_proj.weight));
    CHECK_THAT(grads.k_proj.weight, HasBitsOf(serial.k_proj.weight));
    CHECK_THAT(grads.v_proj.bias, HasBitsOf(serial.v_proj.bias));
    CHECK_THAT(grads.out_proj.weight, HasBitsOf(serial.out_proj.weight));
    CHECK_THAT(grads.query, HasBitsOf(serial.query));
  }
}

TEMPLATE_TEST_CASE("any number of threads gives the same gradients of a layer of one head",
                   "[layer][gradient][bits]", float, double) {
  // A head is shared out by its keys, the layer's own among them, and then by its queries.
  using Own = mha::MultiHead<TestType, Eigen::Dynamic>;
  const Own layer({.embed_dim = 40, .num_heads = 1, .add_bias_kv = true, .add_zero_attn = true});
  const auto x = random_matrix<TestType>(300, 40, 1);
  const auto context = random_matrix<TestType>(1500, 40, 2);
  const auto g = random_matrix<TestType>(300, 40, 3);
  const auto gradients = [&](const mha::MultiHeadOptions& options) {
    mha::TrainingPass<Own> pass;
    mha::MultiHeadGradients<Own> grads(layer);
    layer.forward_training(pass, x, context, mha::causal_offset(1000), options);
    layer.backward(grads, pass, g, mha::causal_offset(1000), options);
    return grads;
  };
  const auto serial = gradients({});
  for (const Index threads : {2, 3, 16}) {
    mha::ThreadPool pool(threads);
    const auto grads = gradients({.executor = pool});
    CHECK_THAT(grads.q_proj.weight, HasBitsOf(serial.q_proj.weight));
    CHECK_THAT(grads.k_proj.weight, HasBitsOf(serial.k_proj.weight));
    CHECK_THAT(grads.v_proj.bias, HasBitsOf(serial.v_proj.bias));
    CHECK_THAT(grads.bias_k, HasBitsOf(serial.bias_k));
    CHECK_THAT(grads.bias_v, HasBitsOf(serial.bias_v));
    CHECK_THAT(grads.query, HasBitsOf(serial.query));
    CHECK_THAT(grads.key, HasBitsOf(serial.key));
  }
}

TEST_CASE("gradient_check finds a wrong entry, and none where there is none",
          "[layer][gradient][check]") {
  using Own = mha::MultiHead<double, 2>;
  Own layer(6);
  auto x = random_matrix<double>(5, 6, 1);
  const auto g = random_matrix<double>(5, 6, 2);
  mha::TrainingPass<Own> pass;
  mha::MultiHeadGradients<Own> grads(layer);
  layer.forward_training(pass, x, mha::causal());
  layer.backward(grads, pass, g, mha::causal());
  const auto loss = [&] { return layer(x, mha::causal()).cwiseProduct(g).sum(); };
  const Matrix<double> before = x;
  CHECK(mha::gradient_check(x, grads.query, loss).worst < 1e-8);
  CHECK(x == before);
  CHECK(mha::gradient_check(layer.k_proj.weight, grads.k_proj.weight, loss).worst < 1e-8);
  CHECK(mha::gradient_check(layer.out_proj.bias, grads.out_proj.bias, loss).worst < 1e-8);
  Matrix<double> wrong = grads.query;
  wrong(3, 2) += 0.01;
  const mha::GradientCheck check = mha::gradient_check(x, wrong, loss);
  CHECK(check.worst > 1e-4);
  CHECK(check.row == 3);
  CHECK(check.col == 2);
  CHECK_THROWS_AS(mha::gradient_check(x, g.topRows(4), loss), std::invalid_argument);
}

TEST_CASE("an optimiser of a few lines lowers the loss step by step", "[layer][gradient]") {
  // Plain steps down the gradient of the distance to a target: each must lower it.
  using Own = mha::MultiHead<float, 2>;
  Own layer(8);
  const auto x = random_matrix<float>(6, 8, 1);
  const auto target = random_matrix<float>(6, 8, 2);
  mha::TrainingPass<Own> pass;
  mha::MultiHeadGradients<Own> grads(layer);
  float before = std::numeric_limits<float>::infinity();
  for (int step = 0; step < 150; ++step) {
    layer.forward_training(pass, x);
    const Matrix<float> error = pass.output - target;
    CHECK(error.squaredNorm() < before);
    before = error.squaredNorm();
    grads.set_zero();
    layer.backward(grads, pass, error);
    const auto values = layer.parameters();
    const auto gradients = grads.parameters();
    for (std::size_t n = 0; n < values.size(); ++n) {
      for (std::size_t k = 0; k < values[n].values.size(); ++k) {
        values[n].values[k] -= 0.02F * gradients[n].values[k];
      }
    }
  }
  CHECK(before < 0.8F * target.squaredNorm());
}
