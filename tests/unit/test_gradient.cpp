// SPDX-License-Identifier: MIT
//
// The backward pass: against hand-computed gradients, central differences and dual numbers over a
// random grid of all options at once, and what it promises about masks and bits.
#include <mha/attention_gradient.hpp>
#include <mha/rules/dropout.hpp>

#include <random>

#include "support/matchers.hpp"
#include "support/targets.hpp"

using mha::Dual;
using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::Vector;
using mha::test::available_targets;
using mha::test::eps_of;
using mha::test::HasBitsOf;
using mha::test::infinity_of;
using mha::test::IsClose;
using mha::test::matrix_of;
using mha::test::nan_of;
using mha::test::random_tensor;
using mha::test::UsingTarget;

namespace {

/// Every number that a call of attention depends on, and the options that are numbers. Neutral
/// options stand for those that are not there.
template <class T>
struct Problem {
  Tensor<T> query, key, value;
  Tensor<T> bias;    // [1 or batch, 1 or heads, query_len, kv_len]
  Vector<T> slopes;  // of ALiBi
  Vector<T> sinks;   // one per head
};

struct Options {
  Index batch, heads, kv_heads, query_len, kv_len, head_dim, value_dim;
  bool bias_per_head;
  bool has_sinks;
  double scale;
  double softcap;
  double curve;       // of the score function
  Index causal;       // offset; large: none
  Index window;       // -1: none
  Matrix<bool> keep;  // query_len x kv_len
  std::vector<Index> lengths;
  Tensor<double> grad_output;
};

Options random_options(std::mt19937_64& random) {
  const auto pick = [&](Index low, Index high) {
    return low + static_cast<Index>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  const auto coin = [&] { return random() % 2 == 0; };
  Options o{};
  o.batch = pick(1, 2);
  o.kv_heads = pick(1, 2);
  o.heads = o.kv_heads * pick(1, 3);
  o.query_len = pick(1, 7);
  o.kv_len = pick(1, 8);
  o.head_dim = pick(1, 5);
  o.value_dim = pick(1, 4);
  o.bias_per_head = coin();
  o.has_sinks = coin();
  o.scale = coin() ? 0.7 : -0.4;
  o.softcap = coin() ? 1.5 : 0;
  o.curve = coin() ? 0.3 : 0;
  o.causal = coin() ? pick(-2, o.kv_len) : 1000;
  o.window = coin() ? pick(0, 4) : -1;
  o.keep = mha::test::random_booleans(o.query_len, o.kv_len, random(), coin() ? 0.7 : 1.0);
  for (Index b = 0; b < o.batch; ++b) o.lengths.push_back(coin() ? pick(0, o.kv_len) : o.kv_len);
  o.grad_output = random_tensor<double>({o.batch, o.heads, o.query_len, o.value_dim}, random());
  return o;
}

/// The numbers of a problem, one after the other.
template <class T, class F>
void for_each_number(Problem<T>& p, const F& f) {
  for (Tensor<T>* tensor : {&p.query, &p.key, &p.value, &p.bias}) {
    const auto& s = tensor->sizes();
    for (Index k = 0; k < s[0] * s[1] * s[2] * s[3]; ++k) f(tensor->data()[k]);
  }
  for (Vector<T>* vector : {&p.slopes, &p.sinks}) {
    for (Index k = 0; k < vector->size(); ++k) f((*vector)(k));
  }
}

template <class T>
Problem<T> empty_problem(const Options& o) {
  return {Tensor<T>({o.batch, o.heads, o.query_len, o.head_dim}),
          Tensor<T>({o.batch, o.kv_heads, o.kv_len, o.head_dim}),
          Tensor<T>({o.batch, o.kv_heads, o.kv_len, o.value_dim}),
          Tensor<T>({1, o.bias_per_head ? o.heads : 1, o.query_len, o.kv_len}),
          Vector<T>::Constant(o.heads, T(0)),
          Vector<T>::Constant(o.heads, T(0))};
}

Problem<double> random_problem(const Options& o, std::uint64_t seed) {
  Problem<double> p = empty_problem<double>(o);
  std::mt19937_64 random(seed);
  for_each_number(p,
                  [&](double& x) { x = 2 * (static_cast<double>(random() >> 11) * 0x1p-52 - 1); });
  return p;
}

/// A curve whose derivative is easily got wrong: it depends on the score and on where it stands.
struct Curve {
  double curve;
  template <class S>
  S operator()(const S& s, Index /*b*/, Index h, Index i, Index j) const {
    return s + S(curve) * s * s * S(1.0 / static_cast<double>(1 + h + i + j));
  }
};

/// f(rule) with all options as one rule; gradients of what it learns go to `grads`, if given.
template <class T, class F>
void with_rule(const Options& o, const Problem<T>& p, Problem<T>* grads, const F& f) {
  const auto fixed = mha::causal_offset(o.causal) & mha::window(o.window, -1) & mha::keep(o.keep) &
                     mha::lengths(o.lengths) & mha::scale(T(o.scale)) & mha::softcap(T(o.softcap)) &
                     mha::score_mod(Curve{o.curve});
  const auto view = p.bias.view();
  if (grads == nullptr) {
    const auto learned = fixed & mha::bias(view) & mha::alibi(p.slopes);
    if (o.has_sinks) {
      f(learned & mha::sinks(p.sinks));
    } else {
      f(learned);
    }
  } else {
    const auto learned = fixed & mha::bias(view, grads->bias) & mha::alibi(p.slopes, grads->slopes);
    if (o.has_sinks) {
      f(learned & mha::sinks(p.sinks, grads->sinks));
    } else {
      f(learned);
    }
  }
}

template <class T>
mha::AttentionResult<T> forward(const Options& o, const Problem<T>& p) {
  mha::AttentionResult<T> result;
  with_rule<T>(o, p, nullptr, [&](const auto& rule) {
    result = mha::attention_forward(p.query, p.key, p.value, rule, {.need_lse = true});
  });
  return result;
}

/// The loss, sum of output * grad_output.
template <class T>
T loss(const Options& o, const Problem<T>& p) {
  const Tensor<T> output = forward(o, p).output;
  T sum(0);
  for (Index k = 0; k < o.batch * o.heads * o.query_len * o.value_dim; ++k) {
    sum += output.data()[k] * T(o.grad_output.data()[k]);
  }
  return sum;
}

Problem<double> backward(const Options& o, const Problem<double>& p,
                         const mha::AttentionOptions& options = {}) {
  Problem<double> grads = empty_problem<double>(o);
  with_rule<double>(o, p, &grads, [&](const auto& rule) {
    const auto g = mha::attention_backward(o.grad_output, p.query, p.key, p.value, forward(o, p),
                                           rule, options);
    grads.query = g.query;
    grads.key = g.key;
    grads.value = g.value;
  });
  return grads;
}

std::vector<double> numbers_of(Problem<double> p) {
  std::vector<double> all;
  for_each_number(p, [&](double& x) { all.push_back(x); });
  return all;
}

}  // namespace

TEST_CASE("gradients of two keys are what is computed by hand", "[gradient][hand]") {
  // One query of one channel, q = 1, scale 1; keys ln 3 and 0, so that the weights are 3/4 and 1/4.
  // Values 4 and 8, grad_output 2: output 5, dP = (8, 16), delta = 3/4 * 8 + 1/4 * 16 = 10,
  // dS = (3/4 * -2, 1/4 * 6) = (-3/2, 3/2).
  //   dQ = -3/2 ln 3 + 3/2 * 0,   dK = (-3/2, 3/2),   dV = 2 * (3/4, 1/4)
  constexpr double kEps = 0x1p-52;
  const double ln3 = std::log(3.0);
  const auto q = matrix_of<double>({{1}});
  const auto k = matrix_of<double>({{ln3}, {0}});
  const auto v = matrix_of<double>({{4}, {8}});
  const auto g = matrix_of<double>({{2}});
  const auto rule = mha::scale(1.0);
  const auto forward = mha::scaled_dot_product_attention_forward(q, k, v, rule, {.need_lse = true});
  const auto grads = mha::scaled_dot_product_attention_backward(g, q, k, v, forward, rule);
  CHECK_THAT(grads.query, IsClose(matrix_of<double>({{-1.5 * ln3}}), 8 * kEps));
  CHECK_THAT(grads.key, IsClose(matrix_of<double>({{-1.5}, {1.5}}), 16 * kEps));
  CHECK_THAT(grads.value, IsClose(matrix_of<double>({{1.5}, {0.5}}), 4 * kEps));
}

TEST_CASE("gradients equal dual numbers' derivatives under all options at once",
          "[gradient][dual]") {
  // Along a random direction, forward mode: exact but for rounding.
  std::mt19937_64 random(1);
  for (int round = 0; round < 250; ++round) {
    const Options o = random_options(random);
    const Problem<double> p = random_problem(o, random());
    const Problem<double> direction = random_problem(o, random());
    const std::vector<double> x = numbers_of(p);
    const std::vector<double> dx = numbers_of(direction);
    Problem<Dual<double>> duals = empty_problem<Dual<double>>(o);
    std::size_t n = 0;
    for_each_number(duals, [&](Dual<double>& number) {
      number = Dual<double>(x[n], dx[n]);
      ++n;
    });
    const double expected = loss(o, duals).slope;
    const std::vector<double> grads = numbers_of(backward(o, p));
    double actual = 0;
    double size = 1;
    for (std::size_t i = 0; i < n; ++i) {
      actual += grads[i] * dx[i];
      size += std::abs(grads[i] * dx[i]);
    }
    CAPTURE(round, o.heads, o.kv_heads, o.query_len, o.kv_len, o.has_sinks, o.softcap, o.curve);
    CHECK(std::abs(actual - expected) <= 1e-10 * size);
  }
}

TEST_CASE("gradients equal central differences under all options at once",
          "[gradient][differences]") {
  // Number by number for a few of each problem. Steps of 1e-5 leave an error of 1e-10 times the
  // third derivative, and rounding of 1e-16 / 1e-5.
  std::mt19937_64 random(2);
  for (int round = 0; round < 220; ++round) {
    const Options o = random_options(random);
    Problem<double> p = random_problem(o, random());
    const std::vector<double> grads = numbers_of(backward(o, p));
    double largest = 1;
    for (const double g : grads) largest = std::max(largest, std::abs(g));
    constexpr double kStep = 1e-5;
    for (int sample = 0; sample < 6; ++sample) {
      const std::size_t which = random() % grads.size();
      double values[2];
      for (const int side : {0, 1}) {
        Problem<double> moved = p;
        std::size_t n = 0;
        for_each_number(moved, [&](double& x) {
          if (n++ == which) x += side == 0 ? -kStep : kStep;
        });
        values[side] = loss(o, moved);
      }
      CAPTURE(round, which, o.heads, o.query_len, o.kv_len);
      CHECK(std::abs((values[1] - values[0]) / (2 * kStep) - grads[which]) <= 1e-7 * largest);
    }
  }
}

TEMPLATE_TEST_CASE("no NaN or infinity behind a mask reaches a gradient", "[gradient][poison]",
                   float, double) {
  // Keys 1 and 3 are masked, query 2 sees nothing; what stands there is poison, in one case.
  using T = TestType;
  Matrix<bool> keep = Matrix<bool>::Constant(4, 5, true);
  keep.col(1).setConstant(false);
  keep.col(3).setConstant(false);
  keep.row(2).setConstant(false);
  const auto gradients = [&](T poison) {
    Tensor<T> q = random_tensor<T>({1, 2, 4, 3}, 1);
    Tensor<T> k = random_tensor<T>({1, 1, 5, 3}, 2);
    Tensor<T> v = random_tensor<T>({1, 1, 5, 2}, 3);
    Tensor<T> g = random_tensor<T>({1, 2, 4, 2}, 4);
    for (const Index j : {Index(1), Index(3)}) {
      k.matrix(0, 0).row(j).setConstant(poison);
      v.matrix(0, 0).row(j).setConstant(poison);
    }
    for (const Index h : {Index(0), Index(1)}) {
      q.matrix(0, h).row(2).setConstant(poison);
      g.matrix(0, h).row(2).setConstant(poison);
    }
    const auto rule = mha::keep(keep);
    const auto forward = mha::attention_forward(q, k, v, rule, {.need_lse = true});
    return mha::attention_backward(g, q, k, v, forward, rule);
  };
  const auto clean = gradients(T(0.5));
  for (const T poison : {nan_of<T>(), infinity_of<T>()}) {
    const auto grads = gradients(poison);
    for (const Index h : {Index(0), Index(1)}) {
      CHECK_THAT(grads.query.matrix(0, h), HasBitsOf(clean.query.matrix(0, h)));
      CHECK(grads.query.matrix(0, h).row(2) == Matrix<T>::Zero(1, 3));
    }
    CHECK_THAT(grads.key.matrix(0, 0), HasBitsOf(clean.key.matrix(0, 0)));
    CHECK_THAT(grads.value.matrix(0, 0), HasBitsOf(clean.value.matrix(0, 0)));
    for (const Index j : {Index(1), Index(3)}) {
      CHECK(grads.key.matrix(0, 0).row(j) == Matrix<T>::Zero(1, 3));
      CHECK(grads.value.matrix(0, 0).row(j) == Matrix<T>::Zero(1, 2));
    }
  }
}

namespace {

/// Gradients under one of several rules, in any scalar; the inputs are those of `double`.
template <class T, class RuleType>
mha::AttentionGradients<T> gradients_as(const std::array<Index, 7>& sizes, const RuleType& rule,
                                        const mha::AttentionOptions& options = {}) {
  const auto [batch, heads, kv_heads, query_len, kv_len, head_dim, value_dim] = sizes;
  const auto q = random_tensor<T>({batch, heads, query_len, head_dim}, 1);
  const auto k = random_tensor<T>({batch, kv_heads, kv_len, head_dim}, 2);
  const auto v = random_tensor<T>({batch, kv_heads, kv_len, value_dim}, 3);
  const auto g = random_tensor<T>({batch, heads, query_len, value_dim}, 4);
  mha::AttentionOptions with_lse = options;
  with_lse.need_lse = true;
  const auto forward = mha::attention_forward(q, k, v, rule, with_lse);
  return mha::attention_backward(g, q, k, v, forward, rule, options);
}

template <class T, class F>
void for_each_gradient(const mha::AttentionGradients<T>& a,
                       const mha::AttentionGradients<long double>& b, const F& f) {
  f("query", a.query, b.query);
  f("key", a.key, b.key);
  f("value", a.value, b.value);
}

/// A sum of n products of numbers up to m errs by n eps m at the most; scores, weights and gradients
/// are such sums.
template <class T>
void check_gradients(const mha::AttentionGradients<T>& actual,
                     const mha::AttentionGradients<long double>& expected) {
  for_each_gradient(actual, expected, [&](const char* name, const auto& a, const auto& b) {
    CAPTURE(name);
    long double largest = 0;
    long double worst = 0;
    for (Index n = 0; n < b.sizes()[0] * b.sizes()[1] * b.sizes()[2] * b.sizes()[3]; ++n) {
      largest = std::max(largest, std::abs(b.data()[n]));
      worst = std::max(worst, std::abs(b.data()[n] - static_cast<long double>(a.data()[n])));
    }
    CHECK(worst <= 32 * static_cast<long double>(eps_of<T>()) * largest);
  });
}

}  // namespace

TEMPLATE_TEST_CASE("the kernels' gradients are those of the formula at any size",
                   "[gradient][kernels]", float, double) {
  // Around the tiles of 64 (32) queries and 128 keys, on every instruction set.
  using T = TestType;
  const auto check = [](const std::array<Index, 7>& sizes, const auto& rule) {
    const auto expected = gradients_as<long double>(sizes, rule);
    for (const mha::kernels::Target t : available_targets()) {
      const UsingTarget use(t);
      CAPTURE(mha::kernels::name(t), sizes[3], sizes[4], sizes[5]);
      check_gradients(gradients_as<T>(sizes, rule), expected);
    }
  };
  const std::array<Index, 7> all_sizes[] = {{1, 1, 1, 1, 1, 1, 1},       {1, 2, 1, 33, 65, 8, 8},
                                            {2, 2, 2, 64, 128, 16, 16},  {1, 4, 2, 70, 130, 17, 15},
                                            {1, 1, 1, 200, 300, 64, 40}, {1, 3, 1, 5, 1100, 5, 3}};
  for (const auto& sizes : all_sizes) {
    check(sizes, mha::All{});
    check(sizes, mha::causal());
    check(sizes, mha::causal_lower_right() & mha::window(40, 0));
    check(sizes, mha::alibi() & mha::softcap(2.0));
    check(sizes,
          mha::mask_mod([](Index, Index h, Index i, Index j) { return (i + j + h) % 3 > 0; }));
    check(sizes, mha::sinks(0.5) & mha::score_mod([](auto s, Index, Index, Index i, Index j) {
                   return s * decltype(s)(0.8) + decltype(s)(static_cast<double>(i - j) * 0.01);
                 }));
  }
}

TEMPLATE_TEST_CASE("any number of threads gives the same gradients", "[gradient][bits]", float,
                   double) {
  const std::array<Index, 7> sizes{2, 4, 2, 130, 200, 20, 24};
  const auto serial = gradients_as<TestType>(sizes, mha::causal_lower_right());
  for (const Index threads : {1, 2, 3, 16}) {
    mha::ThreadPool pool(threads);
    mha::Workspace workspace;
    for (int round = 0; round < 2; ++round) {
      const auto grads = gradients_as<TestType>(sizes, mha::causal_lower_right(),
                                                {.executor = pool, .workspace = &workspace});
      const auto same = [](const auto& a, const auto& b) {
        CHECK_THAT(mha::test::stacked(a), HasBitsOf(mha::test::stacked(b)));
      };
      same(grads.query, serial.query);
      same(grads.key, serial.key);
      same(grads.value, serial.value);
    }
  }
}

namespace {

/// A head of ones: query and key 0, so that all weights are 1 / kv_len, and values of a column of
/// ones, so that the output counts the kept weights.
template <class T>
Matrix<T> dropout_counts(Index query_len, Index kv_len, double p, std::uint64_t seed,
                         const mha::AttentionOptions& options = {}) {
  const Matrix<T> q = Matrix<T>::Zero(query_len, 2);
  const Matrix<T> k = Matrix<T>::Zero(kv_len, 2);
  const Matrix<T> v = Matrix<T>::Identity(kv_len, kv_len) * T(static_cast<double>(kv_len));
  return mha::scaled_dot_product_attention(q, k, v, mha::dropout(p, seed), options);
}

}  // namespace

TEMPLATE_TEST_CASE("dropout keeps weights at its rate and divides them by 1 - p", "[dropout]",
                   float, double, long double) {
  for (const double p : {0.1, 0.5, 0.9}) {
    const Matrix<TestType> kept = dropout_counts<TestType>(300, 200, p, 7);
    Index count = 0;
    for (Index k = 0; k < kept.size(); ++k) {
      const auto weight = static_cast<double>(kept.data()[k]);
      const bool is_kept = weight != 0;
      count += is_kept ? 1 : 0;
      if (is_kept) CHECK(std::abs(weight - 1 / (1 - p)) < 1e-5);
    }
    // 60,000 draws: the rate's deviation is sqrt(p (1 - p) / 60000) <= 0.0021.
    CHECK(std::abs(static_cast<double>(count) / 60000 - (1 - p)) < 4 * 0.0021);
  }
  CHECK(dropout_counts<TestType>(5, 9, 0, 1) == Matrix<TestType>::Ones(5, 9));
  CHECK(dropout_counts<TestType>(5, 9, 1, 1) == Matrix<TestType>::Zero(5, 9));
  CHECK_THROWS_AS(mha::dropout(1.5, 1), std::invalid_argument);
}

TEST_CASE("gradients of slopes and sinks are collected at the stride of their memory",
          "[gradient][alibi][sinks][regression]") {
  const auto q = random_tensor<double>({1, 3, 5, 4}, 1);
  const auto k = random_tensor<double>({1, 3, 6, 4}, 2);
  const auto grad = random_tensor<double>({1, 3, 5, 4}, 3);
  const Eigen::Vector3d numbers(0.5, 0.25, 0.125);
  Eigen::Vector3d slopes = Eigen::Vector3d::Zero();
  Eigen::Vector3d sinks = Eigen::Vector3d::Zero();
  const auto run = [&](auto& to_slopes, auto& to_sinks) {
    const auto rule = mha::alibi(numbers, to_slopes) & mha::sinks(numbers, to_sinks);
    const auto forward = mha::attention_forward(q, k, k, rule, {.need_lse = true});
    (void)mha::attention_backward(grad, q, k, k, forward, rule);
  };
  run(slopes, sinks);
  Eigen::MatrixXd table = Eigen::MatrixXd::Zero(2, 3);  // its rows are strided
  auto first = table.row(0);
  auto second = table.row(1);
  run(first, second);
  CHECK(slopes.norm() > 0);
  CHECK(table.row(0).transpose() == slopes);
  CHECK(table.row(1).transpose() == sinks);
}

TEST_CASE("dropout's mask depends on seed, head and position alone", "[dropout]") {
  const Matrix<double> whole = dropout_counts<double>(300, 200, 0.4, 3);
  CHECK(dropout_counts<double>(3, 200, 0.4, 3) == whole.topRows(3));  // few rows: other kernels
  CHECK(dropout_counts<float>(300, 200, 0.4, 3).cast<bool>() == whole.cast<bool>());
  CHECK(dropout_counts<long double>(300, 200, 0.4, 3).cast<bool>() == whole.cast<bool>());
  CHECK(dropout_counts<double>(300, 200, 0.4, 4).cast<bool>() != whole.cast<bool>());
  for (const mha::kernels::Target t : available_targets()) {
    const UsingTarget use(t);
    CHECK(dropout_counts<float>(300, 200, 0.4, 3).cast<bool>() == whole.cast<bool>());
  }
}

TEMPLATE_TEST_CASE("gradients through dropout are those of the formula", "[dropout][gradient]",
                   float, double) {
  using T = TestType;
  const std::array<Index, 7> sizes{2, 4, 2, 70, 140, 12, 9};
  const auto rule = mha::causal_lower_right() & mha::dropout(0.3, 11) & mha::softcap(3.0);
  const auto expected = gradients_as<long double>(sizes, rule);
  check_gradients(gradients_as<T>(sizes, rule), expected);
}

TEST_CASE("wrong shapes of a backward pass are named before anything is written",
          "[gradient][errors]") {
  using mha::test::ContainsSubstring;
  const auto q = random_tensor<float>({1, 2, 3, 4}, 1);
  const auto k = random_tensor<float>({1, 1, 5, 4}, 2);
  const auto v = random_tensor<float>({1, 1, 5, 6}, 3);
  const auto g = random_tensor<float>({1, 2, 3, 6}, 4);
  const auto forward = mha::attention_forward(q, k, v, {.need_lse = true});
  CHECK_NOTHROW(mha::attention_backward(g, q, k, v, forward));
  const auto wrong = random_tensor<float>({1, 2, 4, 6}, 4);
  CHECK_THROWS_WITH(mha::attention_backward(wrong, q, k, v, forward),
                    ContainsSubstring("grad_output must have size 3 along query_len, got 4"));
  const auto without_lse = mha::attention_forward(q, k, v);
  CHECK_THROWS_WITH(mha::attention_backward(g, q, k, v, without_lse),
                    ContainsSubstring("forward.lse must be there (need_lse = true"));
  Tensor<float> bias_gradient({1, 1, 3, 4});
  const auto bias = random_tensor<float>({1, 1, 3, 5}, 5);
  CHECK_THROWS_WITH(mha::bias(bias, bias_gradient), ContainsSubstring("the bias's shape"));
}
