// SPDX-License-Identifier: MIT
//
// mha/mask.hpp: who may attend to whom. The expected pictures are written by hand; a word is a
// query row, a letter a key row, x = may attend. These tests hold under -ffast-math too.
#include <mha/mask.hpp>

#include <functional>
#include <memory>
#include <span>
#include <unsupported/Eigen/CXX11/Tensor>

#include "support/matchers.hpp"
#include "support/pictures.hpp"

using mha::Index;
using mha::IndexList;
using mha::Matrix;
using mha::Tensor;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::picture;
using mha::test::PictureSizes;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

using ColMajorBool = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

// The boolean matrix of a picture.
Matrix<bool> booleans(const std::string& text) {
  const auto cols = static_cast<Index>(std::min(text.find(' '), text.size()));
  const Index rows = (static_cast<Index>(text.size()) + 1) / (cols + 1);
  Matrix<bool> result(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      result(i, j) = text[static_cast<std::size_t>(i * (cols + 1) + j)] == 'x';
    }
  }
  return result;
}

// What both pictures allow.
std::string both(const std::string& a, const std::string& b) {
  std::string result = a;
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (b[k] == '.') result[k] = '.';
  }
  return result;
}

}  // namespace

TEST_CASE("a causal mask hides every later key", "[mask][causal]") {
  CHECK(picture(mha::causal(), 4, 4) == "x... xx.. xxx. xxxx");
}

TEST_CASE("a causal mask is aligned at the upper left when lengths differ", "[mask][causal]") {
  CHECK(picture(mha::causal(), 3, 5) == "x.... xx... xxx..");
  CHECK(picture(mha::causal(), 5, 3) == "x.. xx. xxx xxx xxx");
}

TEST_CASE("a causal mask lets queries see the keys of the cache before them", "[mask][causal]") {
  CHECK(picture(mha::causal(), 2, 5, 3) == "xxxx. xxxxx");
  CHECK(picture(mha::causal(), 1, 5, 4) == "xxxxx");
  CHECK(picture(mha::causal(), 2, 5, 5) == "xxxxx xxxxx");
}

TEST_CASE("a lower-right causal mask lets the last query see the last key", "[mask][causal]") {
  CHECK(picture(mha::causal_lower_right(), 3, 3) == "x.. xx. xxx");
  CHECK(picture(mha::causal_lower_right(), 2, 5) == "xxxx. xxxxx");
}

TEST_CASE("a lower-right causal mask with more queries than keys hides all from the first",
          "[mask][causal][regression]") {
  CHECK(picture(mha::causal_lower_right(), 5, 2) == ".. .. .. x. xx");
}

TEST_CASE("a lower-right causal mask does not ask for the length of the cache", "[mask][causal]") {
  CHECK(picture(mha::causal_lower_right(), 2, 5, 3) == "xxxx. xxxxx");
  CHECK_THROWS_WITH(picture(mha::causal_lower_right(), 2, 5, 1),
                    ContainsSubstring("got past_len 1 and offset 3"));
}

TEST_CASE("causal_offset says at which key query row 0 stands", "[mask][causal]") {
  CHECK(picture(mha::causal_offset(1), 3, 4) == "xx.. xxx. xxxx");
  CHECK(picture(mha::causal_offset(0), 3, 4) == picture(mha::causal(), 3, 4));
  CHECK(picture(mha::causal_offset(-2), 4, 2) == ".. .. x. xx");
  CHECK(picture(mha::causal_offset(1), 2, 4, 1) == "xx.. xxx.");  // said twice: nothing is added
  CHECK_THROWS_WITH(picture(mha::causal_offset(1), 2, 4, 3),
                    ContainsSubstring("got past_len 3 and offset 1"));
}

TEST_CASE("a causal offset beyond all keys allows all of them, far before them none",
          "[mask][causal]") {
  CHECK(picture(mha::causal_offset(std::numeric_limits<Index>::max()), 2, 3) == "xxx xxx");
  CHECK(picture(mha::causal_offset(std::numeric_limits<Index>::min()), 2, 3) == "... ...");
}

TEST_CASE("causal_offset takes one number per sequence", "[mask][causal]") {
  const auto rule = mha::causal_offset({0, 2, -1});
  const PictureSizes sizes{2, 4, 0, 3, 1};
  CHECK(picture(rule, sizes, 0) == "x... xx..");
  CHECK(picture(rule, sizes, 1) == "xxx. xxxx");
  CHECK(picture(rule, sizes, 2) == ".... x...");
}

TEST_CASE("a window counts the keys on either side, the query's own not among them",
          "[mask][window]") {
  CHECK(picture(mha::window(1, 1), 5, 5) == "xx... xxx.. .xxx. ..xxx ...xx");
  CHECK(picture(mha::window(2, 0), 5, 5) == "x.... xx... xxx.. .xxx. ..xxx");
  CHECK(picture(mha::window(0, 2), 5, 5) == "xxx.. .xxx. ..xxx ...xx ....x");
}

TEST_CASE("a window of one key is the query's own", "[mask][window][regression]") {
  CHECK(picture(mha::window(0, 0), 4, 4) == "x... .x.. ..x. ...x");
  CHECK(picture(mha::window_keys(1), 4, 4) == "x... .x.. ..x. ...x");
}

TEST_CASE("a window side of -1 is open", "[mask][window]") {
  CHECK(picture(mha::window(-1, 0), 3, 3) == "x.. xx. xxx");
  CHECK(picture(mha::window(0, -1), 3, 3) == "xxx .xx ..x");
  CHECK(picture(mha::window(-1, -1), 2, 3) == "xxx xxx");
  CHECK(picture(mha::window(1, -1), 4, 4) == "xxxx xxxx .xxx ..xx");
}

TEST_CASE("window_keys(w) is the query's own key and the w - 1 before it", "[mask][window]") {
  CHECK(picture(mha::window_keys(3), 5, 5) == picture(mha::window(2, 0), 5, 5));
}

TEST_CASE("a window wider than everything allows everything", "[mask][window]") {
  const Index huge = std::numeric_limits<Index>::max();
  CHECK(picture(mha::window(huge, huge), 3, 3) == "xxx xxx xxx");
  CHECK(picture(mha::window(100, 100) & mha::causal_offset(50), 2, 3) == "xxx xxx");
}

TEST_CASE("a window past the last key shows nothing", "[mask][window]") {
  CHECK(picture(mha::window(1, 0), 5, 2) == "x. xx .x .. ..");
}

TEST_CASE("a window moves with the cached keys", "[mask][window][regression]") {
  CHECK(picture(mha::window(1, 0), 2, 5, 3) == "..xx. ...xx");
}

TEST_CASE("a window moves with the causal rule that it is joined with, on either side",
          "[mask][window][causal][regression]") {
  CHECK(picture(mha::causal() & mha::window(1, 0), 4, 4) == "x... xx.. .xx. ..xx");
  CHECK(picture(mha::window(1, 0) & mha::causal_offset(2), 3, 5) == ".xx.. ..xx. ...xx");
  CHECK(picture(mha::causal_offset(2) & mha::window(1, 0), 3, 5) == ".xx.. ..xx. ...xx");
  CHECK(picture(mha::causal_lower_right() & mha::window(1, 0), 2, 5) == "..xx. ...xx");
  CHECK(picture(mha::causal_lower_right() & mha::window(1, 0), 4, 2) == ".. .. x. xx");
  CHECK(picture(mha::causal() & mha::window(1, 0), 2, 5, 3) == "..xx. ...xx");
  // The window looks ahead, the causal rule does not.
  CHECK(picture(mha::window(1, 2) & mha::causal_offset(1), 3, 5) == "xx... .xx.. ..xx.");
}

TEST_CASE("a window moves by each sequence's own offset", "[mask][window][causal]") {
  const auto rule = mha::window(1, 0) & mha::causal_offset({0, 2});
  const PictureSizes sizes{2, 4, 0, 2, 1};
  CHECK(picture(rule, sizes, 0) == "x... xx..");
  CHECK(picture(rule, sizes, 1) == ".xx. ..xx");
}

TEST_CASE("query_offset says where a window's queries stand and hides nothing by itself",
          "[mask][window]") {
  CHECK(picture(mha::query_offset(2), 2, 4) == "xxxx xxxx");
  CHECK(picture(mha::query_offset(2) & mha::window(1, 0), 2, 4) == ".xx. ..xx");
  CHECK(picture(mha::window(0, 1) & mha::query_offset(-1), 3, 4) == "x... xx.. .xx.");
  CHECK(picture(mha::window(0, 0) & mha::query_offset(1), 2, 4, 1) == ".x.. ..x.");
  CHECK_THROWS_WITH(picture(mha::window(0, 0) & mha::query_offset(1), 2, 4, 2),
                    ContainsSubstring("got past_len 2 and offset 1"));
  const auto rule = mha::window(1, 0) & mha::query_offset({0, 2});
  const PictureSizes sizes{2, 4, 0, 2, 1};
  CHECK(picture(rule, sizes, 0) == "x... xx..");
  CHECK(picture(rule, sizes, 1) == ".xx. ..xx");
}

TEST_CASE("query_offset places causal too, in either order", "[mask][window][causal]") {
  CHECK(picture(mha::query_offset(2) & mha::causal() & mha::window(2, 0), 4, 4) ==
        "xxx. .xxx ..xx ...x");
  CHECK(picture(mha::causal() & mha::query_offset(2) & mha::window(1, 0), 4, 4) ==
        ".xx. ..xx ...x ....");
  CHECK(picture(mha::causal() & mha::query_offset(2), 2, 4) == "xxx. xxxx");
}

TEST_CASE("a window refuses sizes below -1", "[mask][window][errors]") {
  CHECK_THROWS_AS(mha::window(-2, 0), std::invalid_argument);
  CHECK_THROWS_WITH(mha::window(3, -2),
                    "mha::window: left and right must be -1 (unbounded) or more, got 3 and -2");
  CHECK_THROWS_WITH(mha::window_keys(0), "mha::window_keys: w must be at least 1, got 0");
}

TEST_CASE("lengths hides the keys from n on", "[mask][lengths]") {
  CHECK(picture(mha::lengths(2), 2, 4) == "xx.. xx..");
  CHECK(picture(mha::lengths(0), 2, 4) == ".... ....");
  CHECK(picture(mha::lengths(4), 2, 4) == "xxxx xxxx");
}

TEST_CASE("lengths takes one number per sequence, from any list", "[mask][lengths]") {
  const PictureSizes sizes{1, 4, 0, 3, 1};
  const auto check = [&](const auto& rule) {
    CHECK(picture(rule, sizes, 0) == "xxx.");
    CHECK(picture(rule, sizes, 1) == "....");
    CHECK(picture(rule, sizes, 2) == "xxxx");
  };
  const std::vector<int> ints{3, 0, 4};
  const std::vector<std::size_t> sizes_list{3, 0, 4};
  const std::array<std::int64_t, 3> array{3, 0, 4};
  Eigen::VectorXi eigen(3);
  eigen << 3, 0, 4;
  check(mha::lengths({3, 0, 4}));
  check(mha::lengths(ints));
  check(mha::lengths(sizes_list));
  check(mha::lengths(array));
  check(mha::lengths(std::span(ints)));
  check(mha::lengths(eigen));
}

TEST_CASE("a list of one length serves every sequence", "[mask][lengths]") {
  const PictureSizes sizes{1, 3, 0, 2, 1};
  CHECK(picture(mha::lengths({2}), sizes, 1) == "xx.");
  CHECK(picture(mha::lengths(2), sizes, 1) == "xx.");
}

TEST_CASE("lengths keeps its own copy of the list", "[mask][lengths]") {
  std::vector<Index> list{1, 2};
  const auto rule = mha::lengths(list);
  list = {3, 3};
  CHECK(picture(rule, {1, 3, 0, 2, 1}, 1) == "xx.");
}

TEST_CASE("lengths outside of 0 ... kv_len, or of the wrong count, are refused",
          "[mask][lengths][errors]") {
  CHECK_THROWS_AS(picture(mha::lengths(5), 2, 4), std::invalid_argument);
  CHECK_THROWS_WITH(picture(mha::lengths(5), 2, 4),
                    "mha::attention_forward: lengths must lie between 0 and kv_len, got 5 and 4");
  CHECK_THROWS_WITH(picture(mha::lengths(-1), 2, 4),
                    ContainsSubstring("mha::lengths: lengths must not be negative, got -1"));
  CHECK_THROWS_WITH(
      picture(mha::lengths({1, 2}), PictureSizes{1, 4, 0, 3, 1}),
      "mha::attention_forward: lengths must have one entry, or one per sequence, got 2 for a "
      "batch of 3");
  CHECK_THROWS_WITH(picture(mha::causal_offset({1, 2}), PictureSizes{1, 4, 0, 3, 1}),
                    ContainsSubstring("causal_offset") && ContainsSubstring("got 2") &&
                        ContainsSubstring("batch of 3"));
  CHECK_THROWS_WITH(picture(mha::query_offset({1, 2}), PictureSizes{1, 4, 0, 3, 1}),
                    ContainsSubstring("query_offset") && ContainsSubstring("got 2") &&
                        ContainsSubstring("batch of 3"));
  CHECK_THROWS_AS(picture(mha::lengths({}), 2, 4), std::invalid_argument);
}

TEST_CASE("an IndexList holds what it was made from", "[mask][lengths]") {
  CHECK(IndexList().empty());
  CHECK(IndexList(7).size() == 1);
  // Numbers of several types, as in {.sequences = {prompt.rows(), 1, 2}}.
  const std::size_t last = 2;
  const IndexList mixed = {Index{9}, 1, last};
  CHECK(mixed.size() == 3);
  CHECK((mixed[0] == 9 && mixed[1] == 1 && mixed[2] == 2));
  CHECK_THROWS_AS((IndexList{1, std::numeric_limits<std::uint64_t>::max()}), std::invalid_argument);
  CHECK(IndexList(7)[0] == 7);
  CHECK(IndexList(7)[5] == 7);
  CHECK(IndexList({3, 4}).size() == 2);
  CHECK(IndexList({3, 4})[1] == 4);
  CHECK(IndexList(std::vector<short>{8, 9})[0] == 8);
  CHECK(IndexList(std::vector<int>{8})[3] == 8);
  CHECK(IndexList(std::vector<int>{}).empty());
}

TEST_CASE("keep: true means may attend", "[mask][keep][regression]") {
  const Matrix<bool> mask = booleans("x.x .xx ...");
  CHECK(picture(mha::keep(mask), 3, 3) == "x.x .xx ...");
}

TEST_CASE("ignore: true means may not attend", "[mask][ignore][regression]") {
  const Matrix<bool> mask = booleans("x.x .xx ...");
  CHECK(picture(mha::ignore(mask), 3, 3) == ".x. x.. xxx");
}

TEST_CASE("keep(m) and ignore(!m) are the same bits", "[mask][keep][ignore]") {
  const Matrix<bool> mask = random_booleans(9, 30, 1, 0.5);
  const Matrix<bool> opposite = !mask.array();
  const auto x = random_matrix<double>(30, 4, 2);
  CHECK_THAT(
      mha::scaled_dot_product_attention(x.topRows(9), x, x, mha::keep(mask)),
      HasBitsOf(mha::scaled_dot_product_attention(x.topRows(9), x, x, mha::ignore(opposite))));
}

TEST_CASE("a vector of booleans is one per key, whichever way it lies", "[mask][keep]") {
  const Eigen::Matrix<bool, 1, Eigen::Dynamic> row = booleans("x.xx").row(0);
  const Eigen::Matrix<bool, Eigen::Dynamic, 1> column = row.transpose();
  CHECK(picture(mha::keep(row), 3, 4) == "x.xx x.xx x.xx");
  CHECK(picture(mha::keep(column), 3, 4) == "x.xx x.xx x.xx");
  CHECK(picture(mha::ignore(column), 2, 4) == ".x.. .x..");
  CHECK(picture(mha::keep(row.transpose()), 2, 4) == "x.xx x.xx");
  CHECK(picture(mha::keep(column.array()), 2, 4) == "x.xx x.xx");
  CHECK(picture(mha::keep(row.array() != row.array()(0)), 2, 4) == ".x.. .x..");
  CHECK(picture(mha::keep(!column.array()), 2, 4) == ".x.. .x..");
  CHECK(picture(mha::keep(booleans("x.xx").row(0)), 2, 4) == "x.xx x.xx");
}

TEST_CASE("a mask matrix may be an expression, a block, or of either storage order",
          "[mask][keep]") {
  const Matrix<bool> mask = booleans("x.x. .xx. ..xx");
  const std::string expected = "x.x. .xx. ..xx";
  const ColMajorBool col_major = mask;
  const Matrix<bool> transposed = mask.transpose();
  Matrix<bool> large = Matrix<bool>::Constant(6, 9, true);
  large.block(2, 3, 3, 4) = mask;
  const Eigen::MatrixXi numbers = mask.cast<int>();
  CHECK(picture(mha::keep(col_major), 3, 4) == expected);
  CHECK(picture(mha::keep(transposed.transpose()), 3, 4) == expected);
  CHECK(picture(mha::keep(large.block(2, 3, 3, 4)), 3, 4) == expected);
  const auto block = large.block(2, 3, 3, 4);
  CHECK(picture(mha::keep(block), 3, 4) == expected);
  CHECK(picture(mha::keep(numbers.array() > 0), 3, 4) == expected);
  CHECK(picture(mha::ignore(numbers.array() == 0), 3, 4) == expected);
  const Eigen::Array<bool, 3, 4> fixed = mask;
  CHECK(picture(mha::keep(fixed), 3, 4) == expected);
}

TEST_CASE("a mask refers to a named matrix and owns a temporary", "[mask][keep]") {
  auto named = std::make_unique<Matrix<bool>>(booleans("x. xx"));
  const auto refers = mha::keep(*named);
  const auto owns = mha::keep(Matrix<bool>(*named));
  const auto owns_expression = mha::keep(named->array() || named->array());
  named->setConstant(false);
  (*named)(0, 1) = true;
  CHECK(picture(refers, 2, 2) == ".x ..");
  CHECK(picture(owns, 2, 2) == "x. xx");
  CHECK(picture(owns_expression, 2, 2) == "x. xx");
  named.reset();
  CHECK(picture(owns, 2, 2) == "x. xx");
  CHECK(picture(owns_expression & mha::causal(), 2, 2) == "x. xx");
}

TEST_CASE("a mask tensor speaks per sequence and per head, an axis of size 1 for all",
          "[mask][keep]") {
  const PictureSizes sizes{2, 3, 0, 2, 2};
  Tensor<bool> full({2, 2, 2, 3});
  full.matrix(0, 0) = booleans("x.. xx.");
  full.matrix(0, 1) = booleans("..x .xx");
  full.matrix(1, 0) = booleans("xxx ...");
  full.matrix(1, 1) = booleans("x.x .x.");
  CHECK(picture(mha::keep(full), sizes, 0, 0) == "x.. xx.");
  CHECK(picture(mha::keep(full), sizes, 0, 1) == "..x .xx");
  CHECK(picture(mha::keep(full), sizes, 1, 0) == "xxx ...");
  CHECK(picture(mha::keep(full), sizes, 1, 1) == "x.x .x.");
  CHECK(picture(mha::ignore(full.view()), sizes, 1, 1) == ".x. x.x");

  Tensor<bool> per_sequence({2, 1, 1, 3});
  per_sequence.matrix(0, 0) = booleans("x.x");
  per_sequence.matrix(1, 0) = booleans(".xx");
  CHECK(picture(mha::keep(per_sequence), sizes, 0, 1) == "x.x x.x");
  CHECK(picture(mha::keep(per_sequence), sizes, 1, 0) == ".xx .xx");

  Tensor<bool> per_head({1, 2, 2, 1});
  per_head.matrix(0, 0) = booleans("x .");
  per_head.matrix(0, 1) = booleans(". x");
  CHECK(picture(mha::keep(per_head), sizes, 1, 0) == "xxx ...");
  CHECK(picture(mha::keep(per_head), sizes, 1, 1) == "... xxx");
}

TEST_CASE("an Eigen::Tensor of booleans of either layout is a mask", "[mask][keep]") {
  const PictureSizes sizes{2, 3, 0, 1, 2};
  Eigen::Tensor<bool, 4, Eigen::ColMajor> col_major(1, 2, 2, 3);
  Eigen::Tensor<bool, 4, Eigen::RowMajor> row_major(1, 2, 2, 3);
  const Matrix<bool> mask = booleans("x.. .xx xx. ..x");  // head 0 above head 1
  for (Index h = 0; h < 2; ++h) {
    for (Index i = 0; i < 2; ++i) {
      for (Index j = 0; j < 3; ++j) {
        col_major(0, h, i, j) = row_major(0, h, i, j) = mask(2 * h + i, j);
      }
    }
  }
  CHECK(picture(mha::keep(col_major), sizes, 0, 1) == "xx. ..x");
  CHECK(picture(mha::keep(row_major), sizes, 0, 1) == "xx. ..x");
  CHECK(picture(mha::ignore(col_major), sizes, 0, 0) == ".xx x..");
}

TEST_CASE("a mask of the wrong size is refused, naming the rule and both numbers",
          "[mask][keep][errors]") {
  const Matrix<bool> mask = booleans("x.x .xx");
  CHECK_THROWS_AS(picture(mha::keep(mask), 3, 3), std::invalid_argument);
  CHECK_THROWS_WITH(
      picture(mha::keep(mask), 3, 3),
      "mha::attention_forward: keep(mask) must have 1 or 3 entries along query_len, got 2");
  CHECK_THROWS_WITH(
      picture(mha::ignore(mask), 2, 5),
      "mha::attention_forward: ignore(mask) must have 1 or 5 entries along kv_len, got 3");
  const Tensor<bool> heads({1, 3, 2, 3});
  CHECK_THROWS_WITH(picture(mha::keep(heads), PictureSizes{2, 3, 0, 1, 2}),
                    ContainsSubstring("1 or 2 entries along num_heads, got 3"));
  const Tensor<bool> batch({3, 1, 2, 3});
  CHECK_THROWS_WITH(picture(mha::keep(batch), PictureSizes{2, 3, 0, 2, 2}),
                    ContainsSubstring("1 or 2 entries along batch, got 3"));
  const Eigen::Matrix<bool, Eigen::Dynamic, 1> too_long = booleans("xxxx").row(0).transpose();
  CHECK_THROWS_WITH(picture(mha::keep(too_long), 4, 3), ContainsSubstring("along kv_len, got 4"));
}

TEST_CASE("mask_mod asks a function of sequence, head, query row and key row", "[mask][mask_mod]") {
  CHECK(picture(mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 2 == 0; }), 3,
                4) == "x.x. .x.x x.x.");
  const auto by_place =
      mha::mask_mod([](Index b, Index h, Index i, Index j) { return j == (b + 2 * h + i) % 4; });
  const PictureSizes sizes{2, 4, 0, 2, 2};
  CHECK(picture(by_place, sizes, 0, 0) == "x... .x..");
  CHECK(picture(by_place, sizes, 1, 0) == ".x.. ..x.");
  CHECK(picture(by_place, sizes, 0, 1) == "..x. ...x");
  CHECK(picture(by_place, sizes, 1, 1) == "...x x...");
}

TEST_CASE("mask_mod takes any function object", "[mask][mask_mod]") {
  const std::vector<Index> document{0, 0, 1, 1, 1};
  const auto same = [&document](auto, auto, auto i, auto j) {
    return document[static_cast<std::size_t>(i)] == document[static_cast<std::size_t>(j)];
  };
  const std::string expected = "xx... xx... ..xxx ..xxx ..xxx";
  CHECK(picture(mha::mask_mod(same), 5, 5) == expected);
  CHECK(picture(mha::mask_mod(std::function<bool(Index, Index, Index, Index)>(same)), 5, 5) ==
        expected);
}

TEST_CASE("mask_mod is asked only about keys that the ranges of the other masks leave",
          "[mask][mask_mod]") {
  // Beyond the causal rule the function would index out of its table.
  const std::vector<bool> table{true, false, true};
  bool outside = false;
  const auto rule = mha::causal() & mha::mask_mod([&](Index, Index, Index, Index j) {
                      outside = outside || j >= 3;
                      return j < 3 && table[static_cast<std::size_t>(j)];
                    });
  CHECK(picture(rule, 3, 40).substr(0, 3) == "x..");
  CHECK_FALSE(outside);
}

TEST_CASE("joined masks must all allow", "[mask][combining]") {
  const Matrix<bool> mask = booleans("xxx.x x.xxx xx.xx xxx.x .xxxx");
  const std::string kept = "xxx.x x.xxx xx.xx xxx.x .xxxx";
  const auto even = mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 2 == 0; });
  const std::string causal = picture(mha::causal(), 5, 5);
  const std::string window = picture(mha::window(2, 1), 5, 5);
  const std::string lengths = picture(mha::lengths(4), 5, 5);
  const std::string checkered = picture(even, 5, 5);
  CHECK(picture(mha::causal() & mha::keep(mask), 5, 5) == both(causal, kept));
  CHECK(picture(mha::keep(mask) & mha::lengths(4), 5, 5) == both(kept, lengths));
  CHECK(picture(mha::window(2, 1) & even, 5, 5) == both(window, checkered));
  CHECK(picture(mha::causal() & mha::window(2, 1) & mha::lengths(4) & mha::keep(mask) & even, 5,
                5) == both(both(both(causal, window), both(lengths, kept)), checkered));
}

TEST_CASE("two masks of one kind are both in force", "[mask][combining]") {
  const Matrix<bool> a = booleans("xx. .xx");
  const Matrix<bool> b = booleans("x.x .x.");
  CHECK(picture(mha::keep(a) & mha::keep(b), 2, 3) == "x.. .x.");
  CHECK(picture(mha::keep(a) & mha::ignore(b), 2, 3) == ".x. ..x");
  CHECK(picture(mha::lengths(3) & mha::lengths(1), 2, 4) == "x... x...");
  CHECK(picture(mha::window(2, 0) & mha::window(1, 1), 4, 4) == "x... xx.. .xx. ..xx");
  CHECK(picture(mha::causal() & mha::causal_lower_right(), 2, 4) == "x... xx..");
  CHECK(picture(mha::causal_lower_right() & mha::causal(), 2, 4) == "x... xx..");
}

TEST_CASE("a mask that contradicts another allows nothing, and that is 0",
          "[mask][combining][regression]") {
  CHECK(picture(mha::causal() & mha::ignore(Matrix<bool>::Constant(3, 3, true)), 3, 3) ==
        "... ... ...");
  CHECK(picture(mha::window(0, 0) & mha::lengths(1), 3, 3) == "x.. ... ...");
}

TEST_CASE("masks of no queries, or of no keys, are fine", "[mask]") {
  CHECK(picture(mha::causal() & mha::window(1, 1) & mha::lengths(0), 0, 0).empty());
  CHECK(picture(mha::causal_lower_right() & mha::keep(Matrix<bool>(2, 0)), 2, 0) == " ");
  CHECK(picture(mha::mask_mod([](Index, Index, Index, Index) { return true; }), 0, 3).empty());
}

TEST_CASE("masks mean the same in long sequences, where whole tiles are skipped", "[mask]") {
  // Against a picture drawn by the definition, across several tiles of queries and keys.
  const Index query_len = 300;
  const Index kv_len = 1100;
  const auto drawn = [&](const auto& allowed) {
    std::string text;
    for (Index i = 0; i < query_len; ++i) {
      if (i > 0) text += ' ';
      for (Index j = 0; j < kv_len; ++j) text += allowed(i, j) ? 'x' : '.';
    }
    return text;
  };
  const auto same = [&](const auto& rule, const auto& allowed) {
    return picture(rule, query_len, kv_len) == drawn(allowed);
  };
  CHECK(same(mha::causal(), [](Index i, Index j) { return j <= i; }));
  CHECK(same(mha::causal_offset(700), [](Index i, Index j) { return j <= i + 700; }));
  CHECK(same(mha::causal_lower_right() & mha::window(40, 0),
             [](Index i, Index j) { return j <= i + 800 && j >= i + 760; }));
  CHECK(same(mha::window(17, 600), [](Index i, Index j) { return j >= i - 17 && j <= i + 600; }));
  CHECK(same(mha::window(3, 3) & mha::causal_offset(-150),
             [](Index i, Index j) { return j >= i - 153 && j <= i - 150; }));
  CHECK(same(mha::lengths(513), [](Index, Index j) { return j < 513; }));
  const auto sparse = [](Index, Index, Index i, Index j) { return (7 * i + j) % 401 == 0; };
  CHECK(same(mha::mask_mod(sparse), [&](Index i, Index j) { return sparse(0, 0, i, j); }));
  CHECK(same(mha::mask_mod(sparse) & mha::window(400, 100),
             [&](Index i, Index j) { return sparse(0, 0, i, j) && j >= i - 400 && j <= i + 100; }));
}
