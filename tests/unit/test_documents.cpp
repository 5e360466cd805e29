// SPDX-License-Identifier: MIT
//
// mha/rules/documents.hpp: documents packed into one sequence. A word of a picture is a query row, a letter
// a key row, x = may attend.
#include <mha/mha.hpp>

#include "support/pictures.hpp"
#include "support/same_as_keep.hpp"

using mha::Index;
using mha::Matrix;
using mha::test::check_bits_of_keep;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::picture;
using mha::test::PictureSizes;
using mha::test::random_matrix;

namespace {

// Documents of these lengths, one after the other.
std::vector<int> documents_of(std::initializer_list<Index> lengths) {
  std::vector<int> ids;
  int id = 5;
  for (const Index n : lengths) ids.insert(ids.end(), static_cast<std::size_t>(n), id++);
  return ids;
}

}  // namespace

TEST_CASE("tokens of a document see each other and nobody else", "[mask][documents]") {
  CHECK(picture(mha::documents({7, 7, 8, 8, 8}), 5, 5) == "xx... xx... ..xxx ..xxx ..xxx");
  CHECK(picture(mha::documents({7, 7, 8, 8, 8}) & mha::causal(), 5, 5) ==
        "x.... xx... ..x.. ..xx. ..xxx");
  CHECK(picture(mha::documents({1, 1, 1}), 2, 3) == "xxx xxx");
}

TEST_CASE("ids of documents need not be sorted, nor stand together", "[mask][documents]") {
  CHECK(picture(mha::documents({9, -1, 9, 4, -1}), 5, 5) == "x.x.. .x..x x.x.. ...x. .x..x");
}

TEST_CASE("ids of documents come from any list of whole numbers, one for all or one per sequence",
          "[mask][documents]") {
  const std::string expected = "xx.. xx.. ..x. ...x";
  const std::vector<std::int8_t> list{3, 3, 2, 5};
  const std::vector<std::uint64_t> large{9, 9, std::uint64_t{1} << 62, 5};
  const Eigen::Vector4i column(3, 3, 2, 5);
  const Eigen::Matrix<Index, 1, 4> row(3, 3, 2, 5);
  CHECK(picture(mha::documents(list), 4, 4) == expected);
  CHECK(picture(mha::documents(large), 4, 4) == expected);
  CHECK(picture(mha::documents(column), 4, 4) == expected);
  CHECK(picture(mha::documents(row), 4, 4) == expected);
  CHECK(picture(mha::documents(column.array() + 1), 4, 4) == expected);
  Eigen::MatrixXi ids(2, 4);
  ids << 3, 3, 2, 5,  //
      1, 2, 2, 1;
  const PictureSizes sizes{4, 4, 0, 2, 2};
  CHECK(picture(mha::documents(ids), sizes, 0, 1) == expected);
  CHECK(picture(mha::documents(ids), sizes, 1, 0) == "x..x .xx. .xx. x..x");
  CHECK(picture(mha::documents(list), sizes, 1, 1) == expected);
  CHECK_THROWS_WITH(mha::documents(Eigen::Matrix<std::uint64_t, 1, 1>(~std::uint64_t{0})),
                    ContainsSubstring("mha::documents: ids must be at most"));
}

TEST_CASE("documents keeps its own copy of the ids", "[mask][documents]") {
  std::vector<int> ids{1, 1, 2};
  const auto rule = mha::documents(ids);
  ids = {1, 2, 3};
  CHECK(picture(rule, 3, 3) == "xx. xx. ..x");
}

TEST_CASE("a query's document is that of the place where it stands", "[mask][documents][places]") {
  const auto ids = mha::documents({7, 7, 8, 8, 8});
  CHECK(picture(ids, 2, 5, 3) == "..xxx ..xxx");
  CHECK(picture(ids & mha::causal(), 2, 5, 1) == "xx... ..x..");
  CHECK(picture(ids & mha::query_offset(1), 2, 5) == "xx... ..xxx");
  CHECK(picture(ids & mha::causal_lower_right(), 2, 5) == "..xx. ..xxx");
  CHECK(picture(ids & mha::causal_offset({1, 3}), {2, 5, 0, 2, 1}, 1) == "..xx. ..xxx");
}

TEST_CASE("a query that stands before or beyond the keys attends to nothing",
          "[mask][documents][places]") {
  const auto ids = mha::documents({7, 7, 8});
  CHECK(picture(ids & mha::query_offset(-1), 3, 3) == "... xx. xx.");
  CHECK(picture(ids & mha::query_offset(2), 3, 3) == "..x ... ...");
  constexpr Index kMost = std::numeric_limits<Index>::max();
  for (const Index far : {kMost, kMost - 1, -kMost, Index{1} << 62, Index{3}, Index{-3}}) {
    CHECK(picture(ids & mha::query_offset(far), 3, 3) == "... ... ...");
  }
}

TEST_CASE("documents have the bits of keep with the same mask, forward and backward",
          "[mask][documents]") {
  const std::vector<int> ids = documents_of({130, 200, 1, 2, 300, 256, 311});  // 1200
  const auto same = [&](Index p, Index j) {
    return ids[static_cast<std::size_t>(p)] == ids[static_cast<std::size_t>(j)];
  };
  for (const Index query_len : {3, 70, 300}) {
    for (const Index past_len : {Index{100}, 1200 - query_len}) {
      check_bits_of_keep<float>(
          mha::documents(ids), {query_len, 1200, 1, 2, 1, past_len},
          [&](Index, Index, Index i, Index j) { return same(i + past_len, j); });
    }
    check_bits_of_keep<double>(
        mha::documents(ids) & mha::causal_offset(500), {query_len, 1200, 1, 2, 2, 0},
        [&](Index, Index, Index i, Index j) { return j <= i + 500 && same(i + 500, j); });
  }
}

TEST_CASE("documents of the wrong sizes are refused, naming batch and kv_len",
          "[mask][documents][errors]") {
  CHECK_THROWS_WITH(picture(mha::documents({1, 2, 3}), 2, 4),
                    "mha::attention_forward: documents(ids) must be 1 x 4 (batch x kv_len), or "
                    "have one row for all, got 1 x 3");
  CHECK_THROWS_WITH(picture(mha::documents({1, 2, 3, 4, 5}), 2, 4), ContainsSubstring("got 1 x 5"));
  CHECK_THROWS_WITH(picture(mha::documents(Eigen::MatrixXi::Ones(3, 4)), {2, 4, 0, 2, 1}),
                    ContainsSubstring("must be 2 x 4") && ContainsSubstring("got 3 x 4"));
  CHECK_THROWS_WITH(picture(mha::documents(std::vector<int>{}), 2, 4),
                    ContainsSubstring("got 1 x 0"));
  CHECK(picture(mha::documents(std::vector<int>{}), 2, 0) == " ");
}

TEST_CASE("documents of a ragged batch count within each sequence, the rest is ignored",
          "[mask][documents][layer]") {
  const mha::MultiHead<float, 2> layer(6);
  const Eigen::MatrixXf x = random_matrix<float>(12, 6, 3);
  const mha::MultiHeadOptions options{.sequences = {4, 5, 3}};
  Eigen::MatrixXi ids(3, 5);
  ids << 1, 1, 2, 2, 1,  //
      1, 2, 2, 2, 2,     //
      4, 3, 4, 4, 4;
  const Eigen::MatrixXf y = layer(x, mha::documents(ids), options);
  Index first = 0;
  for (const Index b : {0, 1, 2}) {
    const Index n = options.sequences[b];
    const Eigen::MatrixXf own = x.middleRows(first, n);
    CHECK_THAT(y.middleRows(first, n),
               HasBitsOf(Eigen::MatrixXf(layer(own, mha::documents(ids.block(b, 0, 1, n))))));
    first += n;
  }
  CHECK_THROWS_WITH(layer(x, mha::documents(ids.leftCols(4)), options),
                    ContainsSubstring("documents(ids) must be 3 x 5 (batch x kv_len of the longest "
                                      "sequence), or have one row for all, got 3 x 4"));
}

TEST_CASE("packed documents have the gradients of each document alone",
          "[mask][documents][gradient]") {
  const Matrix<double> x = random_matrix<double>(9, 4, 1);
  const Matrix<double> grad = random_matrix<double>(9, 4, 2);
  const auto gradients_of = [](const Matrix<double>& rows, const Matrix<double>& g,
                               const auto& rule) {
    const auto forward =
        mha::scaled_dot_product_attention_forward(rows, rows, rows, rule, {.need_lse = true});
    return mha::scaled_dot_product_attention_backward(g, rows, rows, rows, forward, rule);
  };
  const auto packed =
      gradients_of(x, grad, mha::documents({0, 0, 0, 0, 1, 1, 1, 1, 1}) & mha::causal());
  for (const auto& [first, n] : {std::pair<Index, Index>(0, 4), std::pair<Index, Index>(4, 5)}) {
    const auto alone =
        gradients_of(x.middleRows(first, n), grad.middleRows(first, n), mha::causal());
    const auto close = [](const auto& m) { return mha::test::IsClose(m, 1e-14); };
    CHECK_THAT(packed.query.middleRows(first, n), close(alone.query));
    CHECK_THAT(packed.key.middleRows(first, n), close(alone.key));
    CHECK_THAT(packed.value.middleRows(first, n), close(alone.value));
  }
}

TEST_CASE("a backward pass refuses other documents", "[mask][documents][errors]") {
  mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(3, 4);
  mha::TrainingPass<decltype(layer)> pass;
  mha::MultiHeadGradients<decltype(layer)> gradients(layer);
  layer.forward_training(pass, x, mha::documents({1, 1, 2}));
  CHECK_THROWS_WITH(layer.backward(gradients, pass, x, mha::documents({1, 2, 2})),
                    ContainsSubstring("rule must have the numbers and sizes"));
  CHECK_NOTHROW(layer.backward(gradients, pass, x, mha::documents({1, 1, 2})));
}

TEST_CASE("the class of documents refuses ids that do not fill its rows",
          "[mask][documents][errors]") {
  using mha::Documents;
  const std::string message = "documents: ids must be rows * tokens numbers, got ";
  CHECK_THROWS_WITH(Documents({1, 2, 3}, 2, 4), ContainsSubstring(message + "3 for 2 x 4"));
  CHECK_THROWS_WITH(Documents({1, 2, 3}, 1, 2), ContainsSubstring(message + "3 for 1 x 2"));
  CHECK_THROWS_WITH(Documents({1, 2}, -1, -2), ContainsSubstring(message + "2 for -1 x -2"));
  CHECK_THROWS_WITH(Documents({}, Index{1} << 40, Index{1} << 40), ContainsSubstring(message));
  CHECK_NOTHROW(Documents({1, 2, 3, 4}, 2, 2));
}
