// SPDX-License-Identifier: MIT
//
// The ways in which attention can be called, and mistakes that once passed silently.
#include <mha/mha.hpp>

#include "support/catch.hpp"

using mha::Index;
using mha::test::ContainsSubstring;

namespace plain {

/// A dual number that only has Eigen's generic NumTraits: no std::numeric_limits, no value().
struct Dual {
  double real = 0;
  double slope = 0;
  Dual() = default;
  explicit Dual(double x) : real(x) {}
  Dual(double x, double dx) : real(x), slope(dx) {}
  Dual& operator+=(const Dual& b) { return *this = Dual(real + b.real, slope + b.slope); }
  friend Dual operator+(Dual a, const Dual& b) { return a += b; }
  friend Dual operator-(const Dual& a, const Dual& b) {
    return {a.real - b.real, a.slope - b.slope};
  }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.real * b.real, a.slope * b.real + a.real * b.slope};
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    return {a.real / b.real, (a.slope - a.real / b.real * b.slope) / b.real};
  }
  friend bool operator<(const Dual& a, const Dual& b) { return a.real < b.real; }
  friend bool operator>(const Dual& a, const Dual& b) { return a.real > b.real; }
  friend Dual exp(const Dual& x) { return {std::exp(x.real), std::exp(x.real) * x.slope}; }
  friend Dual log(const Dual& x) { return {std::log(x.real), x.slope / x.real}; }
  friend Dual tanh(const Dual& x) {
    const double t = std::tanh(x.real);
    return {t, (1 - t * t) * x.slope};
  }
  friend Dual sqrt(const Dual& x) { return {std::sqrt(x.real), x.slope / 2 / std::sqrt(x.real)}; }
};

}  // namespace plain

template <>
struct Eigen::NumTraits<plain::Dual> : Eigen::GenericNumTraits<plain::Dual> {
  enum { IsInteger = 0, IsSigned = 1, IsComplex = 0, RequireInitialization = 1 };
  enum { ReadCost = 2, AddCost = 2, MulCost = 4 };
};

namespace {

const Eigen::MatrixXf kQuery = Eigen::MatrixXf::Random(3, 4);
const Eigen::MatrixXf kKey = Eigen::MatrixXf::Random(6, 4);
const Eigen::MatrixXf kValue = Eigen::MatrixXf::Random(6, 2);

}  // namespace

TEST_CASE("negative scores of a number without numeric_limits are not masked", "[scalars]") {
  using plain::Dual;
  using Matrix = mha::Matrix<Dual>;
  // Scores are 0 + bias = (ln 3 - 5, ln 1 - 5): weights (3/4, 1/4); values 4, 8 -> 5.
  const Matrix q = Matrix::Constant(1, 1, Dual(0));
  Matrix v(2, 1);
  v << Dual(4), Dual(8);
  Matrix negative(1, 2);
  negative << Dual(std::log(3.0) - 5, 1), Dual(-5);
  const Matrix k = Matrix::Constant(2, 1, Dual(0));
  const auto result =
      mha::scaled_dot_product_attention_forward(q, k, v, mha::bias(negative), {.need_lse = true});
  CHECK(std::abs(result.output(0, 0).real - 5) < 1e-14);
  // d output / d bias_0 = p_0 (v_0 - output) = 3/4 (4 - 5)
  CHECK(std::abs(result.output(0, 0).slope + 0.75) < 1e-14);
  CHECK(std::abs(result.lse(0).real - (std::log(4.0) - 5)) < 1e-14);
  const auto nothing =
      mha::scaled_dot_product_attention_forward(q, k, v, mha::lengths(0), {.need_lse = true});
  CHECK(nothing.lse(0).real == -std::numeric_limits<double>::infinity());
}

TEST_CASE("options may be given without a rule", "[attention]") {
  const mha::AttentionOptions options{.need_weights = true, .need_lse = true};
  const auto head = mha::scaled_dot_product_attention_forward(kQuery, kKey, kValue, options);
  CHECK(head.lse.size() == 3);
  const auto all =
      mha::attention_forward(kQuery, kKey, kValue, {.need_weights = true, .need_lse = true});
  CHECK(all.weights.matrix(0, 0) == head.weights);
  CHECK(mha::scaled_dot_product_attention(kQuery, kKey, kValue, options) == head.output);
  CHECK(mha::attention(kQuery, kKey, kValue, options).matrix(0, 0) == head.output);
}

TEST_CASE("attention_into writes to a view, a tensor or a matrix", "[attention]") {
  const mha::Matrix<float> expected = mha::scaled_dot_product_attention(kQuery, kKey, kValue);
  mha::Tensor<float> tensor({1, 1, 3, 2});
  mha::attention_into(tensor, kQuery, kKey, kValue);
  CHECK(tensor.matrix(0, 0) == expected);
  Eigen::MatrixXf matrix(3, 2);
  mha::attention_into(matrix, kQuery, kKey, kValue, mha::All{});
  CHECK(matrix == expected);
  matrix.setZero();
  mha::attention_into(mha::tensor_view(matrix), kQuery, kKey, kValue, mha::AttentionOptions{});
  CHECK(matrix == expected);
  Eigen::MatrixXf wrong(2, 2);
  CHECK_THROWS_WITH(mha::attention_into(wrong, kQuery, kKey, kValue),
                    ContainsSubstring("output must have size 3 along query_len, got 2"));
}

TEST_CASE("an expression that claims direct access but has no pointer is evaluated", "[types]") {
  const auto every_other = kKey(Eigen::seqN(0, 3, Eigen::fix<2>), Eigen::all);
  const Eigen::MatrixXf copy = every_other;
  CHECK(mha::scaled_dot_product_attention(kQuery, every_other, copy) ==
        mha::scaled_dot_product_attention(kQuery, copy, copy));
}

TEST_CASE("query_offset places causal and window alike, in any order", "[mask]") {
  // Query row i stands at key i + 3 and sees that key alone.
  const Eigen::MatrixXf value = Eigen::VectorXf::LinSpaced(6, 0, 5);
  const auto check = [&](const auto& rule) {
    const auto output = mha::scaled_dot_product_attention(kQuery, kKey, value, rule);
    for (Index i = 0; i < 3; ++i) CHECK(output(i, 0) == static_cast<float>(i + 3));
  };
  check(mha::query_offset(3) & mha::window(0, 0));
  check(mha::query_offset(3) & mha::causal() & mha::window(0, 0));
  check(mha::causal() & mha::window(0, 0) & mha::query_offset(3));
  check(mha::window(0, 0) & mha::causal_offset(3));
}

TEST_CASE("of several causal rules the tightest places the window", "[mask]") {
  const auto output = [&](const auto& rule) {
    return mha::scaled_dot_product_attention(kQuery, kKey, kValue, rule);
  };
  const auto expected = output(mha::causal() & mha::window(1, 0));
  CHECK(output(mha::causal() & mha::causal_lower_right() & mha::window(1, 0)) == expected);
  CHECK(output(mha::causal_lower_right() & mha::causal() & mha::window(1, 0)) == expected);
}

TEST_CASE("a finite bias too large for the scores' type does not mask", "[score]") {
  // All biases equal: they change nothing but lse.
  const Eigen::MatrixXd lowest =
      Eigen::MatrixXd::Constant(3, 6, std::numeric_limits<double>::lowest());
  const auto output =
      mha::scaled_dot_product_attention(kQuery, kKey, kValue, mha::bias(lowest) & mha::scale(0.0f));
  const Eigen::RowVectorXf mean = kValue.colwise().mean();
  for (Index i = 0; i < 3; ++i) CHECK((output.row(i) - mean).cwiseAbs().maxCoeff() < 1e-6f);
}

TEST_CASE("whole results merge to attention over all keys", "[softmax]") {
  const mha::AttentionOptions lse{.need_lse = true};
  const Eigen::MatrixXf key1 = kKey.topRows(2), key2 = kKey.bottomRows(4);
  const Eigen::MatrixXf value1 = kValue.topRows(2), value2 = kValue.bottomRows(4);
  const auto part1 = mha::attention_forward(kQuery, key1, value1, lse);
  const auto part2 = mha::attention_forward(kQuery, key2, value2, lse);
  const auto whole = mha::attention_forward(kQuery, kKey, kValue, lse);
  const auto merged = mha::merge(part1, part2);
  CHECK((merged.output.matrix(0, 0) - whole.output.matrix(0, 0)).cwiseAbs().maxCoeff() < 1e-6f);
  CHECK((merged.lse.matrix(0, 0) - whole.lse.matrix(0, 0)).cwiseAbs().maxCoeff() < 1e-6f);
  const auto without = mha::attention_forward(kQuery, key1, value1);
  CHECK_THROWS_AS(mha::merge(part1, without), std::invalid_argument);
}

TEST_CASE("merge takes vectors of lse, not matrices", "[softmax]") {
  const Eigen::MatrixXf output = Eigen::MatrixXf::Zero(4, 3);
  const Eigen::MatrixXf square = Eigen::MatrixXf::Zero(2, 2);
  CHECK_THROWS_WITH(mha::merge(output, square, output, square),
                    "mha::merge: lse1 and lse2 must be vectors, got 2 x 2 and 2 x 2");
}

TEST_CASE("a layer too large to exist is an error", "[errors]") {
  using Layer = mha::MultiHead<float, 4>;
  CHECK_THROWS_WITH(
      Layer({.embed_dim = 1, .head_dim = Index{1} << 62}),
      ContainsSubstring("mha::MultiHead: head_dim must lie between 0 (the default) and "));
}

TEST_CASE("averaging the weights implies returning them", "[multi_head]") {
  const mha::MultiHead<float, 2> layer(4);
  const auto result = layer.forward(kQuery, {.average_weights = true});
  REQUIRE(result.weights.size(1) == 1);
  CHECK((result.weights.matrix(0, 0).rowwise().sum().array() - 1).abs().maxCoeff() < 1e-6f);
}

TEST_CASE("lists of any integer type are taken", "[mask]") {
  const mha::MultiHead<float, 2> layer(4);
  const std::vector<int> lens{1, 2};
  const std::vector<Index> wide{1, 2};
  const auto expected = layer(kQuery, {.sequences = {1, 2}});
  CHECK(layer(kQuery, {.sequences = lens}) == expected);
  CHECK(layer(kQuery, {.sequences = wide}) == expected);
  CHECK(layer(kQuery, {.sequences = {lens.size() - 1, lens.size()}}) == expected);
}
