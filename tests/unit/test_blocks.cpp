// SPDX-License-Identifier: MIT
//
// mha/rules/blocks.hpp: block-sparse masks. A word of a picture is a query row, a letter a key row, x = may
// attend.
#include <mha/mha.hpp>

#include "support/pictures.hpp"
#include "support/same_as_keep.hpp"

using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::check_bits_of_keep;
using mha::test::ContainsSubstring;
using mha::test::picture;
using mha::test::PictureSizes;
using mha::test::random_booleans;

namespace {

Matrix<bool> two_by_three() {
  Matrix<bool> m(2, 3);
  m << true, false, true,  //
      false, true, false;
  return m;
}

}  // namespace

TEST_CASE("a block of pairs may attend where its entry is true", "[mask][blocks]") {
  const Matrix<bool> m = two_by_three();
  CHECK(picture(mha::blocks(m, 2, 3), 4, 9) == "xxx...xxx xxx...xxx ...xxx... ...xxx...");
  CHECK(picture(mha::blocks(m, 1, 2), 2, 6) == "xx..xx ..xx..");
}

TEST_CASE("the last blocks may be smaller", "[mask][blocks]") {
  const Matrix<bool> m = two_by_three();
  CHECK(picture(mha::blocks(m, 2, 3), 3, 7) == "xxx...x xxx...x ...xxx.");
  CHECK(picture(mha::blocks(m, 100, 2), 101, 5).substr(100 * 6) == "..xx.");
}

TEST_CASE("blocks count rows within the call, wherever the queries stand", "[mask][blocks]") {
  const Matrix<bool> m = two_by_three();
  CHECK(picture(mha::blocks(m, 2, 3), 4, 9, 5) == picture(mha::blocks(m, 2, 3), 4, 9));
  CHECK(picture(mha::blocks(m, 2, 3) & mha::causal(), 4, 9, 5) ==
        "xxx...... xxx...x.. ...xxx... ...xxx...");
}

TEST_CASE("blocks take what keep takes, per sequence and head too", "[mask][blocks]") {
  const Matrix<bool> m = two_by_three();
  const std::string expected = "xx..xx ..xx..";
  const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor> col_major = m;
  CHECK(picture(mha::blocks(col_major, 1, 2), 2, 6) == expected);
  CHECK(picture(mha::blocks(!(!m.array()), 1, 2), 2, 6) == expected);
  CHECK(picture(mha::blocks(m.row(0), 2, 2), 2, 6) == "xx..xx xx..xx");
  const Eigen::Matrix<bool, Eigen::Dynamic, 1> column = m.row(0).transpose();
  CHECK(picture(mha::blocks(column, 2, 2), 2, 6) == "xx..xx xx..xx");
  Tensor<bool> heads({1, 2, 2, 3});
  heads.matrix(0, 0) = m;
  heads.matrix(0, 1) = !m.array();
  const PictureSizes sizes{2, 6, 0, 2, 2};
  CHECK(picture(mha::blocks(heads, 1, 2), sizes, 1, 0) == expected);
  CHECK(picture(mha::blocks(heads, 1, 2), sizes, 0, 1) == "..xx.. xx..xx");
}

TEST_CASE("blocks have the bits of keep with the same mask, forward and backward",
          "[mask][blocks]") {
  for (const auto& [query_len, rows, cols] :
       {std::tuple<Index, Index, Index>(300, 64, 128),
        std::tuple<Index, Index, Index>(300, 50, 100), std::tuple<Index, Index, Index>(3, 1, 256),
        std::tuple<Index, Index, Index>(70, 3, 5)}) {
    CAPTURE(rows, cols);
    const Matrix<bool> m =
        random_booleans((query_len + rows - 1) / rows, (1200 + cols - 1) / cols, 3, 0.4);
    const Index own_rows = rows, own_cols = cols;
    check_bits_of_keep<float>(
        mha::blocks(m, rows, cols), {query_len, 1200, 1, 2, 1},
        [&](Index, Index, Index i, Index j) { return m(i / own_rows, j / own_cols); });
  }
}

TEST_CASE("a row's block is exact for every size", "[mask][blocks]") {
  const mha::Extent extent{1, Index{1} << 30, 1, 0};
  const Matrix<bool> m = random_booleans(1000, 1, 9, 0.5);
  for (const Index size : {Index{1}, Index{2}, Index{3}, Index{7}, Index{10}, Index{64}, Index{129},
                           Index{4096}, Index{99991}, (Index{1} << 20) + 1, Index{1} << 29}) {
    const auto rule = mha::blocks(m, size, 1);
    const Index most = std::min<Index>(size * 1000, Index{1} << 30);
    for (Index block = 0; block * size < most; ++block) {
      for (const Index i : {block * size, block * size + size / 2, (block + 1) * size - 1}) {
        if (i < most && rule.allowed(extent, 0, 0, i, 0) != m(i / size, 0)) {
          FAIL("row " << i << " in blocks of " << size);
        }
      }
    }
  }
  CHECK(mha::blocks(m, std::numeric_limits<Index>::max(), 1).allowed(extent, 0, 0, 1 << 29, 0) ==
        m(0, 0));
}

TEST_CASE("blocks of the wrong count or size are refused, naming the numbers",
          "[mask][blocks][errors]") {
  const Matrix<bool> m = two_by_three();
  CHECK_THROWS_WITH(mha::blocks(m, 0, 64),
                    "mha::blocks: block_queries and block_keys must be at least 1, got 0 and 64");
  CHECK_THROWS_WITH(mha::blocks(m, 64, -1), ContainsSubstring("got 64 and -1"));
  CHECK_THROWS_WITH(
      picture(mha::blocks(m, 2, 3), 5, 9),
      "mha::attention_forward: blocks(m) must have 1 or 3 entries along query blocks, for 5 "
      "queries and 9 keys in blocks of 2 x 3, got 2");
  CHECK_THROWS_WITH(
      picture(mha::blocks(m, 2, 3), 4, 10),
      ContainsSubstring("must have 1 or 4 entries along key blocks") && ContainsSubstring("got 3"));
  CHECK_THROWS_WITH(picture(mha::blocks(m, 2, 3), 4, 6), ContainsSubstring("along key blocks"));
  const Tensor<bool> heads({1, 3, 2, 3});
  CHECK_THROWS_WITH(
      picture(mha::blocks(heads, 1, 2), PictureSizes{2, 6, 0, 2, 2}),
      ContainsSubstring("1 or 2 entries along num_heads") && ContainsSubstring("got 3"));
  CHECK_THROWS_WITH(mha::blocks(TensorView<const bool>(nullptr, {1, 1, 2, 3}), 1, 1),
                    "mha::blocks: data must not be null, got [1, 1, 2, 3]");
}

TEST_CASE("a backward pass refuses blocks of other sizes", "[mask][blocks][errors]") {
  mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(6, 4);
  mha::TrainingPass<decltype(layer)> pass;
  mha::MultiHeadGradients<decltype(layer)> gradients(layer);
  const Matrix<bool> m = Matrix<bool>::Constant(2, 2, true);
  layer.forward_training(pass, x, mha::blocks(m, 3, 3));
  CHECK_THROWS_WITH(layer.backward(gradients, pass, x, mha::blocks(m, 3, 4)),
                    ContainsSubstring("rule must have the numbers and sizes"));
  CHECK_NOTHROW(layer.backward(gradients, pass, x, mha::blocks(m, 3, 3)));
}
