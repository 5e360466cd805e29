// SPDX-License-Identifier: MIT
//
// Results beside or over the inputs: attention may write its output over the query, whatever the
// sizes; into the gaps that the inputs leave; and nowhere else among them.
#include <mha/attention.hpp>

#include "support/catch.hpp"
#include "support/matchers.hpp"
#include "support/targets.hpp"

using mha::AttentionOptions;
using mha::AttentionOutputs;
using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::random_tensor;
using mha::test::stacked;

namespace {

struct Shape {
  Index batch;
  Index num_heads;
  Index kv_heads;
  Index query_len;
  Index kv_len;
  Index head_dim;
};

// Lanes of keys and of queries, ragged tiles, several chunks of keys, fewer tasks than threads.
const std::vector<Shape> kShapes{
    {1, 1, 1, 1, 5, 3},    {2, 4, 2, 1, 300, 16},  {1, 6, 2, 4, 2500, 8},
    {1, 1, 1, 5, 3, 4},    {2, 3, 1, 64, 65, 16},  {1, 1, 1, 65, 2100, 5},
    {1, 1, 1, 1, 4200, 8}, {1, 2, 1, 300, 300, 8}, {1, 1, 1, 70, 5000, 4}};

template <class Scalar>
void check_in_place(const Shape& s, const AttentionOptions& options) {
  using Acc = mha::accumulator_t<Scalar>;
  CAPTURE(s.batch, s.num_heads, s.kv_heads, s.query_len, s.kv_len, s.head_dim);
  const auto query = random_tensor<Scalar>({s.batch, s.num_heads, s.query_len, s.head_dim}, 1);
  const auto key = random_tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, s.head_dim}, 2);
  const auto value = random_tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, s.head_dim}, 3);
  const auto rule = mha::causal_lower_right();
  const auto expected =
      mha::attention_forward(query, key, value, rule, {.need_weights = true, .need_lse = true});
  const auto check = [&](const TensorView<Scalar>& x) {
    for (const bool all : {false, true}) {
      for (Index b = 0; b < s.batch; ++b) {
        for (Index h = 0; h < s.num_heads; ++h) {
          for (Index i = 0; i < s.query_len; ++i) {
            for (Index d = 0; d < s.head_dim; ++d) x(b, h, i, d) = query(b, h, i, d);
          }
        }
      }
      Tensor<Acc> weights({s.batch, s.num_heads, s.query_len, s.kv_len});
      Tensor<Acc> lse({s.batch, s.num_heads, s.query_len, 1});
      if (all) {
        mha::attention_into(AttentionOutputs<Scalar>{x, weights, lse}, x, key, value, rule,
                            options);
        CHECK_THAT(stacked(weights), HasBitsOf(stacked(expected.weights)));
        CHECK_THAT(stacked(lse), HasBitsOf(stacked(expected.lse)));
      } else {
        mha::attention_into(x, x, key, value, rule, options);
      }
      CHECK_THAT(stacked(x), HasBitsOf(stacked(expected.output)));
    }
  };
  Tensor<Scalar> contiguous(query.sizes());
  check(contiguous);
  // Heads side by side, rows padded, and upside down.
  Matrix<Scalar> rows(s.batch * s.query_len, s.num_heads * s.head_dim + 3);
  const Index row = rows.cols();
  check({rows.data(), query.sizes(), {s.query_len * row, s.head_dim, row, 1}});
  check({rows.data() + (s.query_len - 1) * row,
         query.sizes(),
         {s.query_len * row, s.head_dim, -row, 1}});
}

template <class Scalar>
void check_in_place_everywhere() {
  mha::ThreadPool pool(4);
  for (const Shape& shape : kShapes) {
    check_in_place<Scalar>(shape, {});
    check_in_place<Scalar>(shape, {.executor = pool});
  }
}

}  // namespace

TEST_CASE("the output may be the query, on every target and any number of threads", "[overlap]") {
  for (const auto target : mha::test::available_targets()) {
    CAPTURE(mha::kernels::name(target));
    const mha::test::UsingTarget using_target(target);
    check_in_place_everywhere<float>();
  }
}

TEST_CASE("the output may be the query in 16 bits", "[overlap]") {
  check_in_place_everywhere<Eigen::half>();
}

TEST_CASE("the output may be the query for scalars without kernels", "[overlap]") {
  for (const Shape& shape : {Shape{1, 2, 1, 1, 5, 3}, Shape{2, 4, 2, 9, 20, 4}}) {
    check_in_place<long double>(shape, {});
  }
}

TEST_CASE("the output may lie in the columns beside query, key and value", "[overlap]") {
  const Index batch = 2;
  const Index heads = 3;
  const Index tokens = GENERATE(Index{7}, Index{300});
  const Index width = 4;
  const Index row = 4 * heads * width;
  const auto all = random_tensor<float>({1, 1, batch * tokens, row}, 1);
  const auto columns = [&](Tensor<float>& t, Index n) {
    return TensorView<float>(t.data() + n * heads * width, {batch, heads, tokens, width},
                             {tokens * row, width, row, 1});
  };
  Tensor<float> packed = all;
  const Tensor<float> expected =
      mha::attention(columns(packed, 0), columns(packed, 1), columns(packed, 2));
  mha::attention_into(columns(packed, 3), columns(packed, 0), columns(packed, 1),
                      columns(packed, 2));
  CHECK_THAT(stacked(columns(packed, 3)), HasBitsOf(stacked(expected)));
  for (const Index n : {0, 1, 2}) {  // which are as they were
    Tensor<float> before = all;
    CHECK_THAT(stacked(columns(packed, n)), HasBitsOf(stacked(columns(before, n))));
  }
}

TEST_CASE("an output over key or value is refused, whatever the sizes", "[overlap][errors]") {
  const Index tokens = GENERATE(Index{1}, Index{2}, Index{200}, Index{1000});
  CAPTURE(tokens);
  const auto before = random_tensor<float>({1, 1, tokens, 8}, 1);
  const Tensor<float> other = random_tensor<float>({1, 1, tokens, 8}, 2);
  Tensor<float> x = before;
  const std::string name = "mha::attention_into: output must not overlap ";
  CHECK_THROWS_WITH(mha::attention_into(x, other, x, other), ContainsSubstring(name + "key"));
  CHECK_THROWS_WITH(mha::attention_into(x, other, other, x), ContainsSubstring(name + "value"));
  CHECK_THROWS_WITH(mha::attention_into(x, x, x, x), ContainsSubstring(name + "key"));
  CHECK_THAT(stacked(x), HasBitsOf(stacked(before)));
}

TEST_CASE("an output over another part of the query is refused", "[overlap][errors]") {
  const Index tokens = GENERATE(Index{2}, Index{1000});
  Matrix<float> x = Matrix<float>::Ones(tokens + 1, 8);
  const Matrix<float> kv = Matrix<float>::Ones(tokens, 8);
  const auto upper = x.topRows(tokens);
  auto lower = x.bottomRows(tokens);
  CHECK_THROWS_WITH(
      mha::attention_into(lower, upper, kv, kv),
      ContainsSubstring("output must not overlap query") && ContainsSubstring("-32 bytes after"));
  // The query's own memory in another order.
  Matrix<float> square = Matrix<float>::Ones(8, 8);
  const TensorView<float> turned(square.data(), {1, 1, 8, 8}, {0, 0, 1, 8});
  const Matrix<float> keys = Matrix<float>::Ones(3, 8);
  CHECK_THROWS_WITH(mha::attention_into(turned, square, keys, keys),
                    ContainsSubstring("output must not overlap query"));
}
