// SPDX-License-Identifier: MIT
//
// Numbers that carry derivatives through attention and the layer: a dual number of our own and
// Eigen::AutoDiffScalar. Their derivatives must equal central differences in double, which the
// kernels compute. And 16-bit numbers, whose sums are kept in float.
#include <Eigen/Core>  // before AutoDiff, which does not include it
#include <cmath>
#include <limits>
#include <string>
#include <unsupported/Eigen/AutoDiff>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::test::cast_to;
using Dual = mha::Dual<double>;
using mha::test::random_matrix;
using mha::test::Tokens;

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

// A central difference (f(x + h) - f(x - h)) / 2h is off by h^2 / 6 |f'''| + |error of f| / h. With
// h = cbrt(eps) that is eps^(2/3) (|f'''| / 6 + |error of f| / eps), and 300 and 50 eps are ample
// for the functions below, whose numbers are of order 1.
const double kStep = std::cbrt(kEps);
const double kTolerance = 100 * kStep * kStep;

// Two ways of exact differentiation differ by the rounding of some hundred operations.
constexpr double kRounding = 200 * kEps;

using Numbers = std::vector<double>;
using AnyDerivatives = Eigen::AutoDiffScalar<Eigen::VectorXd>;
using FourDerivatives = Eigen::AutoDiffScalar<Eigen::Vector4d>;

// Hands out parameters one after the other.
template <class Scalar>
class Parameters {
 public:
  explicit Parameters(const std::vector<Scalar>& numbers) : numbers_(numbers) {}
  const Scalar& next() { return numbers_.at(at_++); }
  Matrix<Scalar> matrix(Index rows, Index cols) {
    Matrix<Scalar> result(rows, cols);
    fill(result);
    return result;
  }
  template <class M>
  void fill(M& m) {
    for (Index i = 0; i < m.rows(); ++i) {
      for (Index j = 0; j < m.cols(); ++j) m(i, j) = next();
    }
  }
  bool all_used() const { return at_ == numbers_.size(); }

 private:
  const std::vector<Scalar>& numbers_;
  std::size_t at_ = 0;
};

// Some number that depends on every entry, differently.
template <class M>
auto blend(const M& m) {
  using Scalar = typename M::Scalar;
  Scalar sum(0);
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      sum += Scalar(m(i, j) * Scalar(std::cos(static_cast<double>(1 + i + 3 * j))));
    }
  }
  return sum;
}

// The four numbers of the rules come first, so that FourDerivatives are theirs.
Numbers attention_numbers() {
  Numbers numbers{0.6, 2.0, 0.3, 0.4};  // scale, cap, slope, sink
  const Matrix<double> rest = random_matrix<double>(1, 6 + 8 + 8 + 12, 3);
  numbers.insert(numbers.end(), rest.data(), rest.data() + rest.size());
  return numbers;
}

// Every rule that has a number of its own, under a mask: row 0 sees one key, row 2 three.
template <class Scalar>
Scalar attention_value(const std::vector<Scalar>& numbers) {
  Parameters<Scalar> parameters(numbers);
  const Scalar scale = parameters.next();
  const Scalar cap = parameters.next();
  const Scalar slope = parameters.next();
  const Scalar sink = parameters.next();
  const Matrix<Scalar> q = parameters.matrix(3, 2);
  const Matrix<Scalar> k = parameters.matrix(4, 2);
  const Matrix<Scalar> v = parameters.matrix(4, 2);
  const Matrix<Scalar> bias = parameters.matrix(3, 4);
  REQUIRE(parameters.all_used());
  Matrix<bool> allowed = Matrix<bool>::Constant(3, 4, true);
  allowed(1, 0) = false;
  const auto rule = mha::scale(scale) & mha::softcap(cap) & mha::bias(bias) & mha::alibi(slope) &
                    mha::sinks(sink) & mha::keep(allowed) & mha::causal();
  const auto result = mha::scaled_dot_product_attention_forward(
      q, k, v, rule, {.need_weights = true, .need_lse = true});
  Scalar sum = blend(result.output);
  sum += Scalar(blend(result.weights) * Scalar(0.5));
  sum += blend(result.lse);
  return sum;
}

// A score_mod whose own constant is a parameter, and which masks; the default scale.
template <class Scalar>
Scalar score_mod_value(const std::vector<Scalar>& numbers) {
  Parameters<Scalar> parameters(numbers);
  const Scalar factor = parameters.next();
  const Matrix<Scalar> q = parameters.matrix(3, 2);
  const Matrix<Scalar> k = parameters.matrix(4, 2);
  const Matrix<Scalar> v = parameters.matrix(4, 2);
  REQUIRE(parameters.all_used());
  const auto rule = mha::score_mod([&](const Scalar& score, Index, Index, Index i, Index j) {
    if ((i + j) % 3 == 1) return Scalar(-std::numeric_limits<double>::infinity());
    return Scalar(score * factor);
  });
  return blend(mha::scaled_dot_product_attention(q, k, v, rule));
}

constexpr Index kLayerNumbers = 3 * 4 + 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 4 + 2 + 2 + 4 + 2 + 2;

template <class Scalar>
Scalar layer_value(const std::vector<Scalar>& numbers) {
  Parameters<Scalar> parameters(numbers);
  MultiHead<Scalar, 2> layer({.embed_dim = 4,
                              .kv_heads = 1,
                              .add_bias_kv = true,
                              .add_zero_attn = true,
                              .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
  const Matrix<Scalar> x = parameters.matrix(3, 4);
  for (auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
    parameters.fill(linear->weight);
    parameters.fill(linear->bias);
  }
  parameters.fill(layer.bias_k);
  parameters.fill(layer.bias_v);
  REQUIRE(parameters.all_used());
  const auto result = layer.forward(x, mha::causal(),
                                    {.sequences = {1, 2}, .need_weights = true, .need_lse = true});
  Scalar sum = blend(result.output);
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 2; ++h) sum += blend(result.weights.matrix(b, h));
  }
  sum += blend(result.lse);
  return sum;
}

// The functions as values that take any scalar type.
struct AttentionValue {
  template <class Scalar>
  Scalar operator()(const std::vector<Scalar>& numbers) const {
    return attention_value(numbers);
  }
};
struct ScoreModValue {
  template <class Scalar>
  Scalar operator()(const std::vector<Scalar>& numbers) const {
    return score_mod_value(numbers);
  }
};
struct LayerValue {
  template <class Scalar>
  Scalar operator()(const std::vector<Scalar>& numbers) const {
    return layer_value(numbers);
  }
};

template <class F>
Numbers central_differences(const F& f, Numbers numbers) {
  Numbers gradient;
  for (double& number : numbers) {
    const double here = number;
    number = here + kStep;
    const double above = f(numbers);
    number = here - kStep;
    const double below = f(numbers);
    number = here;
    gradient.push_back((above - below) / (2 * kStep));
  }
  return gradient;
}

template <class F>
Numbers dual_gradient(const F& f, const Numbers& numbers) {
  std::vector<Dual> duals(numbers.begin(), numbers.end());
  Numbers gradient;
  for (Dual& number : duals) {
    number.slope = 1;
    gradient.push_back(f(duals).slope);
    number.slope = 0;
  }
  return gradient;
}

// The derivatives by the first `count` numbers.
template <class Scalar, class F>
Numbers autodiff_gradient(const F& f, const Numbers& numbers, int count) {
  std::vector<Scalar> active;
  for (std::size_t n = 0; n < numbers.size(); ++n) {
    Scalar number(numbers[n]);
    const auto k = static_cast<int>(n);
    if (k < count) number = Scalar(numbers[n], count, k);
    active.push_back(number);
  }
  const Scalar value = f(active);
  CHECK(std::abs(value.value() - f(numbers)) <= kRounding);
  REQUIRE(value.derivatives().size() == count);
  return {value.derivatives().data(), value.derivatives().data() + count};
}

void check_gradients(const Numbers& actual, const Numbers& expected, double tolerance) {
  REQUIRE(actual.size() <= expected.size());
  for (std::size_t n = 0; n < actual.size(); ++n) {
    CAPTURE(n);
    CHECK_THAT(actual[n], Catch::Matchers::WithinAbs(expected[n], tolerance));
  }
}

template <class F>
void check_all_ways(const F& f, const Numbers& numbers) {
  const Numbers duals = dual_gradient(f, numbers);
  check_gradients(duals, central_differences(f, numbers), kTolerance);
  const auto count = static_cast<int>(numbers.size());
  check_gradients(autodiff_gradient<AnyDerivatives>(f, numbers, count), duals, kRounding);
  check_gradients(autodiff_gradient<FourDerivatives>(f, numbers, 4), duals, kRounding);
}

}  // namespace

TEST_CASE("derivatives of attention by inputs, bias, scale, cap, slope and sink are exact",
          "[scalars][autodiff]") {
  check_all_ways(AttentionValue{}, attention_numbers());
}

TEST_CASE("derivatives of attention by a score_mod's own number are exact", "[scalars][autodiff]") {
  Numbers numbers{0.7};
  const Matrix<double> rest = random_matrix<double>(1, 6 + 8 + 8, 4);
  numbers.insert(numbers.end(), rest.data(), rest.data() + rest.size());
  check_all_ways(ScoreModValue{}, numbers);
}

TEST_CASE("derivatives of the layer by tokens, weights and biases are exact",
          "[scalars][autodiff]") {
  const Matrix<double> numbers = random_matrix<double>(1, kLayerNumbers, 5);
  check_all_ways(LayerValue{}, Numbers(numbers.data(), numbers.data() + numbers.size()));
}

TEST_CASE("derivatives do not pass a mask, not even those of NaN", "[scalars][mask]") {
  // Row 0 sees key 0 alone; row 1 sees nothing.
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Matrix<Dual> q = cast_to<Dual>(random_matrix<double>(2, 2, 1));
  Matrix<Dual> k = cast_to<Dual>(random_matrix<double>(2, 2, 2));
  Matrix<Dual> v = cast_to<Dual>(random_matrix<double>(2, 2, 3));
  for (Index d = 0; d < 2; ++d) {
    k(1, d) = Dual(nan, nan);
    v(1, d) = Dual(nan, nan);
    v(0, d).slope = 3;
  }
  Matrix<bool> allowed(2, 2);
  allowed << true, false, false, false;
  const auto minus_infinity = Dual(-std::numeric_limits<double>::infinity());
  Matrix<Dual> bias = Matrix<Dual>::Constant(2, 2, minus_infinity);
  bias(0, 0) = Dual(1);
  const auto check = [&](const Matrix<Dual>& output) {
    for (Index d = 0; d < 2; ++d) {
      CHECK(output(0, d).real == v(0, d).real);  // the only weight is 1
      CHECK(output(0, d).slope == 3);
      CHECK(output(1, d).real == 0);
      CHECK(output(1, d).slope == 0);
    }
  };
  SECTION("a boolean mask") {
    check(mha::scaled_dot_product_attention(q, k, v, mha::keep(allowed)));
  }
  SECTION("a bias of -inf") { check(mha::scaled_dot_product_attention(q, k, v, mha::bias(bias))); }
  SECTION("a score_mod that returns -inf") {
    check(mha::scaled_dot_product_attention(
        q, k, v, mha::score_mod([&](const Dual& score, Index, Index, Index i, Index j) {
          return allowed(i, j) ? score : minus_infinity;
        })));
  }
}

TEST_CASE("autodiff scalars without derivatives are plain numbers", "[scalars][autodiff]") {
  const Numbers numbers = attention_numbers();
  const std::vector<AnyDerivatives> constants(numbers.begin(), numbers.end());
  const AnyDerivatives value = attention_value(constants);
  CHECK_THAT(value.value(), Catch::Matchers::WithinAbs(attention_value(numbers), kRounding));
  CHECK(value.derivatives().isZero(0));
}

TEST_CASE("a layer of dual numbers starts with the parameters of a layer of double", "[scalars]") {
  const MultiHead<Dual, 2> duals(4);
  const MultiHead<double, 2> doubles(duals.config());
  for (Index i = 0; i < 4; ++i) {
    for (Index j = 0; j < 4; ++j) {
      CHECK(duals.k_proj.weight(i, j).real == doubles.k_proj.weight(i, j));
      CHECK(duals.k_proj.weight(i, j).slope == 0);
    }
  }
}

TEMPLATE_TEST_CASE("16-bit scores are summed in float", "[scalars][16 bit]", Eigen::half,
                   Eigen::bfloat16) {
  // Products 1 * 1 summed over 4096 and 2048 channels; times ln 3 / 2048: scores 2 ln 3 and ln 3,
  // weights 3/4 and 1/4, of values 8 and 0: 6. A half's sum would stop at 2048 in both, a
  // bfloat16's at 256: weights 1/2.
  const Matrix<TestType> q = Matrix<TestType>::Constant(1, 4096, TestType(1));
  Matrix<TestType> k = Matrix<TestType>::Constant(2, 4096, TestType(1));
  k.row(1).tail(2048).setConstant(TestType(0));
  const Matrix<TestType> v = cast_to<TestType>(Tokens{{8}, {0}});
  const double scale = std::log(3.0) / 2048;
  const Matrix<TestType> y = mha::scaled_dot_product_attention(q, k, v, mha::scale(scale));
  CHECK(static_cast<float>(y(0, 0)) == 6);
}

TEMPLATE_TEST_CASE("16-bit weights and values are summed in float", "[scalars][16 bit]",
                   Eigen::half, Eigen::bfloat16) {
  // 16384 equal weights; the last 12288 values are 1, the others 0: 3/4. A half's sums would stop
  // at 2048, a bfloat16's at 256, both in numerator and denominator: 1.
  const Matrix<TestType> q = Matrix<TestType>::Constant(1, 1, TestType(1));
  const Matrix<TestType> k = Matrix<TestType>::Constant(16384, 1, TestType(0));
  Matrix<TestType> v = Matrix<TestType>::Constant(16384, 1, TestType(1));
  v.topRows(4096).setConstant(TestType(0));
  const Matrix<TestType> y = mha::scaled_dot_product_attention(q, k, v);
  CHECK(static_cast<float>(y(0, 0)) == 0.75F);
}

TEMPLATE_TEST_CASE("16-bit projections are summed in float", "[scalars][16 bit]", Eigen::half,
                   Eigen::bfloat16) {
  // One token of 4096 ones through weights of 1: 4096, at which neither type's own sum arrives.
  MultiHead<TestType, 1> layer({.embed_dim = 4096, .head_dim = 1, .out_dim = 1, .bias = false});
  layer.v_proj.weight.setConstant(TestType(1));
  layer.out_proj.weight.setConstant(TestType(1));
  const Matrix<TestType> x = Matrix<TestType>::Constant(1, 4096, TestType(1));
  CHECK(static_cast<float>(layer(x)(0, 0)) == 4096);
}

TEMPLATE_TEST_CASE("16-bit layers round nothing between input and output", "[scalars][16 bit]",
                   Eigen::half, Eigen::bfloat16) {
  // v = 1 + 2^-13 is no 16-bit number; minus 1 in the output bias, times 2^12: 0.5. Rounded in
  // between it would be 0.
  MultiHead<TestType, 1> layer(2);
  layer.v_proj.weight.setConstant(TestType(0));
  layer.v_proj.weight(0, 0) = TestType(1);
  layer.v_proj.weight(1, 0) = TestType(0x1p-13F);
  layer.out_proj.weight.setConstant(TestType(0));
  layer.out_proj.weight(0, 0) = TestType(4096);
  layer.out_proj.bias(0) = TestType(-4096);
  const Matrix<TestType> x = Matrix<TestType>::Constant(1, 2, TestType(1));
  CHECK(static_cast<float>(layer(x)(0, 0)) == 0.5F);
}
