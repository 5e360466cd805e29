// SPDX-License-Identifier: MIT
//
// mha/rules/key_padding.hpp: which keys of each sequence there are. A word of a picture is a query row, a
// letter a key row, x = may attend.
#include <mha/mha.hpp>

#include "support/pictures.hpp"
#include "support/same_as_keep.hpp"

using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::check_bits_of_keep;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::picture;
using mha::test::PictureSizes;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

Matrix<bool> two_sequences() {
  Matrix<bool> m(2, 4);
  m << true, false, true, true,  //
      false, true, false, false;
  return m;
}
constexpr PictureSizes kSizes{2, 4, 0, 2, 2};

void check_two(const auto& rule) {
  for (const Index h : {0, 1}) {
    CHECK(picture(rule, kSizes, 0, h) == "x.xx x.xx");
    CHECK(picture(rule, kSizes, 1, h) == ".x.. .x..");
  }
}

}  // namespace

TEST_CASE("key_padding: true means that the key may be attended to, by all heads and queries",
          "[mask][key_padding]") {
  const Matrix<bool> m = two_sequences();
  check_two(mha::key_padding(m));
}

TEST_CASE("key_padding takes what keep takes: any order, expressions, blocks, tensors",
          "[mask][key_padding]") {
  const Matrix<bool> m = two_sequences();
  const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor> col_major = m;
  const Eigen::Array<bool, 2, 4> array = m;
  const Matrix<bool> transposed = m.transpose();
  const Eigen::MatrixXi numbers = m.cast<int>();
  Matrix<bool> large = Matrix<bool>::Constant(5, 7, true);
  large.block(2, 1, 2, 4) = m;
  check_two(mha::key_padding(col_major));
  check_two(mha::key_padding(array));
  check_two(mha::key_padding(transposed.transpose()));
  check_two(mha::key_padding(numbers.array() > 0));
  check_two(mha::key_padding(large.block(2, 1, 2, 4)));
  Tensor<bool> tensor({2, 1, 1, 4});
  for (Index b = 0; b < 2; ++b) tensor.matrix(b, 0) = m.row(b);
  check_two(mha::key_padding(tensor));
  check_two(mha::key_padding(TensorView<const bool>(m.data(), {2, 1, 1, 4})));
}

TEST_CASE("a vector, or a matrix of one row, is the padding of every sequence",
          "[mask][key_padding]") {
  const Matrix<bool> m = two_sequences();
  const Eigen::Matrix<bool, 1, Eigen::Dynamic> row = m.row(0);
  const Eigen::Matrix<bool, Eigen::Dynamic, 1> column = row.transpose();
  for (const Index b : {0, 1}) {
    CHECK(picture(mha::key_padding(row), kSizes, b) == "x.xx x.xx");
    CHECK(picture(mha::key_padding(column), kSizes, b) == "x.xx x.xx");
    CHECK(picture(mha::key_padding(m.topRows(1)), kSizes, b) == "x.xx x.xx");
  }
}

TEST_CASE("key_padding refers to a named matrix and owns a temporary", "[mask][key_padding]") {
  auto named = std::make_unique<Matrix<bool>>(two_sequences());
  const auto refers = mha::key_padding(*named);
  const auto owns = mha::key_padding(Matrix<bool>(*named));
  named->setConstant(false);
  CHECK(picture(refers, kSizes, 0) == ".... ....");
  named.reset();
  check_two(owns);
}

TEST_CASE("key_padding joins with other masks", "[mask][key_padding]") {
  const Matrix<bool> m = two_sequences();
  const PictureSizes sizes{4, 4, 0, 2, 2};
  CHECK(picture(mha::key_padding(m) & mha::causal(), sizes, 0) == "x... x... x.x. x.xx");
  CHECK(picture(mha::key_padding(m) | mha::window(0, 0), sizes, 1) == "xx.. .x.. .xx. .x.x");
}

TEST_CASE("key_padding has the bits of keep with the same tensor", "[mask][key_padding]") {
  for (const Index query_len : {2, 70}) {
    Matrix<bool> m = random_booleans(2, 1200, 7, 0.5);
    m.row(0).segment(128, 300).setConstant(false);  // whole tiles of either kind
    m.row(0).segment(600, 300).setConstant(true);
    m.row(1).tail(700).setConstant(false);
    check_bits_of_keep<float>(mha::key_padding(m), {query_len, 1200, 2, 2, 1},
                              [&](Index b, Index, Index, Index j) { return m(b, j); });
  }
}

TEST_CASE("key_padding of the wrong sizes is refused, naming batch and kv_len",
          "[mask][key_padding][errors]") {
  const Matrix<bool> m = Matrix<bool>::Constant(3, 5, true);
  CHECK_THROWS_WITH(picture(mha::key_padding(m), PictureSizes{2, 5, 0, 2, 1}),
                    "mha::attention_forward: key_padding(m) must be 2 x 5 (batch x kv_len), or "
                    "have one row for all, got 3 x 5");
  CHECK_THROWS_WITH(
      picture(mha::key_padding(m), PictureSizes{2, 4, 0, 3, 1}),
      ContainsSubstring("must be 3 x 4 (batch x kv_len)") && ContainsSubstring("got 3 x 5"));
  CHECK_THROWS_WITH(picture(mha::key_padding(m.leftCols(1)), PictureSizes{2, 4, 0, 3, 1}),
                    ContainsSubstring("must be 3 x 4") && ContainsSubstring("got 3 x 1"));
  const Tensor<bool> heads({2, 3, 1, 4});
  CHECK_THROWS_WITH(mha::key_padding(heads),
                    "mha::key_padding: a tensor must be [batch, 1, 1, key], got [2, 3, 1, 4]");
  const Tensor<bool> queries({2, 1, 3, 4});
  CHECK_THROWS_WITH(mha::key_padding(queries), ContainsSubstring("got [2, 1, 3, 4]"));
  CHECK_THROWS_WITH(mha::key_padding(TensorView<const bool>(nullptr, {1, 1, 1, 4})),
                    "mha::key_padding: data must not be null, got [1, 1, 1, 4]");
}

TEST_CASE("key_padding of a ragged batch is as wide as the longest sequence, the rest is ignored",
          "[mask][key_padding][layer]") {
  const mha::MultiHead<float, 2> layer(6);
  const Eigen::MatrixXf x = random_matrix<float>(12, 6, 3);
  const mha::MultiHeadOptions options{.sequences = {4, 5, 3}};
  Matrix<bool> m = random_booleans(3, 5, 6, 0.6);
  m.col(0).setConstant(true);
  const Eigen::MatrixXf y = layer(x, mha::key_padding(m), options);
  Index first = 0;
  for (const Index b : {0, 1, 2}) {
    const Index n = options.sequences[b];
    const Eigen::MatrixXf own = x.middleRows(first, n);
    const Eigen::MatrixXf alone = layer(own, mha::key_padding(m.block(b, 0, 1, n)));
    CHECK_THAT(y.middleRows(first, n), HasBitsOf(alone));
    first += n;
  }
  Matrix<bool> wider = Matrix<bool>::Constant(3, 8, true);
  wider.leftCols(5) = m;
  Matrix<bool> other = wider;
  other(0, 4) = !other(0, 4);  // beyond the 4 keys of sequence 0
  other(2, 3) = !other(2, 3);
  CHECK_THAT(layer(x, mha::key_padding(wider), options), HasBitsOf(y));
  CHECK_THAT(layer(x, mha::key_padding(other), options), HasBitsOf(y));
  CHECK_THROWS_WITH(layer(x, mha::key_padding(m.leftCols(4)), options),
                    ContainsSubstring("key_padding(m) must be 3 x 5 (batch x kv_len of the longest "
                                      "sequence), or have one row for all, got 3 x 4"));
}

TEST_CASE("a backward pass refuses key_padding of other sizes", "[mask][key_padding][errors]") {
  mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(6, 4);
  mha::TrainingPass<decltype(layer)> pass;
  mha::MultiHeadGradients<decltype(layer)> gradients(layer);
  const mha::MultiHeadOptions options{.batch = 2};
  const Matrix<bool> two = Matrix<bool>::Constant(2, 3, true);
  const Matrix<bool> one = Matrix<bool>::Constant(1, 3, true);
  layer.forward_training(pass, x, mha::key_padding(two), options);
  CHECK_THROWS_WITH(layer.backward(gradients, pass, x, mha::key_padding(one), options),
                    ContainsSubstring("rule must have the numbers and sizes"));
  CHECK_NOTHROW(layer.backward(gradients, pass, x, mha::key_padding(two), options));
}
