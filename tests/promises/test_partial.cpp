// SPDX-License-Identifier: MIT
//
// Parts of a larger problem: a call that lies in a box of it has the bits of that box, and keys that are attended to
// part by part, in any order, those of all at once.
#include <mha/mha.hpp>

#include <algorithm>
#include <vector>

#include "support/every_target.hpp"
#include "support/layer_support.hpp"
#include "support/matchers.hpp"

using mha::AttentionOptions;
using mha::Box;
using mha::Index;
using mha::Matrix;
using mha::Partial;
using mha::Tensor;
using mha::TensorView;
using mha::Vector;
using mha::test::HasBitsOf;
using mha::test::message_of;
using mha::test::on_every_target;
using mha::test::random_tensor;
using mha::test::some_of;
using mha::test::stacked;

namespace {

template <class T>
struct Problem {
  Tensor<T> query, key, value, grad_output;
  Problem(Index batch, Index num_heads, Index kv_heads, Index query_len, Index kv_len)
      : query(random_tensor<T>({batch, num_heads, query_len, 10}, 1, 2)),
        key(random_tensor<T>({batch, kv_heads, kv_len, 10}, 2, 3)),
        value(random_tensor<T>({batch, kv_heads, kv_len, 9}, 3)),
        grad_output(random_tensor<T>({batch, num_heads, query_len, 9}, 4)) {}
};

/// The rules that look at places, each told apart from another place by what it does.
template <class F>
void for_rules(Index query_len, Index kv_len, const F& f) {
  const Index past = kv_len - query_len;
  f(mha::All());
  f(mha::causal_offset(past));
  f(mha::window(1500, 0) & mha::query_offset(past));
  f(mha::causal_lower_right() & mha::alibi() & mha::dropout(0.25, 7));
  const Matrix<bool> allowed = mha::test::random_booleans(query_len, kv_len, 5, 0.6);
  f(mha::keep(allowed) & mha::sinks(Vector<float>::LinSpaced(4, -1.0F, 2.0F)) & mha::softcap(3.0));
  const Matrix<double> bias = mha::test::random_matrix<double>(query_len, kv_len, 6);
  f(mha::bias(bias) & mha::score_mod([](auto s, Index b, Index h, Index i, Index j) {
      return s + decltype(s)(static_cast<double>((b + 3 * h + 5 * i + 7 * j) % 4) / 8);
    }));
}

template <class T, class Rule>
Partial<T> part_of(const Problem<T>& p, const Rule& rule, Index first, Index count,
                   AttentionOptions options = {}) {
  options.box = {.first_key = first, .kv_len = p.key.size(2)};
  return attention_partial(p.query, some_of(p.key, 2, first, count),
                           some_of(p.value, 2, first, count), rule, options);
}

template <class T>
void check_same(const mha::AttentionResult<T>& actual, const mha::AttentionResult<T>& expected) {
  CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
}

}  // namespace

TEMPLATE_TEST_CASE("parts of the keys, joined in any order, have the bits of all keys at once",
                   "[law][partial]", float, double) {
  on_every_target([] {
    for (const Index query_len : {3, 70}) {
      const Index kv_len = 4096 + 1024 + 300;
      const Problem<TestType> p(1, 4, 2, query_len, kv_len);
      for_rules(query_len, kv_len, [&](const auto& rule) {
        const auto expected = attention_forward(p.query, p.key, p.value, rule, {.need_lse = true});
        check_same(part_of(p, rule, 0, kv_len).finish(), expected);
        // Cut at chunks 1, 2, 3, 4, 5, as the bits of `cuts` say; joined forwards, backwards, and every
        // other one first.
        for (const unsigned cuts : {1U, 4U, 8U, 9U, 22U, 31U}) {
          std::vector<Partial<TestType>> parts;
          Index first = 0;
          for (unsigned chunk = 1; chunk <= 6; ++chunk) {
            const bool cut = chunk == 6 || ((cuts >> (chunk - 1)) & 1U) != 0;
            if (!cut) continue;
            const Index end = std::min<Index>(chunk * 1024, kv_len);
            parts.push_back(part_of(p, rule, first, end - first));
            first = end;
          }
          CAPTURE(query_len, cuts, parts.size());
          auto forwards = parts.front();
          for (std::size_t n = 1; n < parts.size(); ++n) forwards.join(parts[n]);
          check_same(forwards.finish(), expected);
          auto backwards = parts.back();
          for (std::size_t n = parts.size() - 1; n-- > 0;) backwards.join(parts[n]);
          check_same(backwards.finish(), expected);
          auto even = parts[0];
          for (std::size_t n = 2; n < parts.size(); n += 2) even.join(parts[n]);
          if (parts.size() > 1) {
            auto odd = parts[1];
            for (std::size_t n = 3; n < parts.size(); n += 2) odd.join(parts[n]);
            even.join(odd);
          }
          check_same(even.finish(), expected);
        }
      });
    }
  });
}

TEMPLATE_TEST_CASE("a part that nobody sees may be left out", "[law][partial]", float, double) {
  // Window of 1500 keys at the end of 5420: chunks 0 to 2 are seen by no row.
  const Index kv_len = 5420;
  const Problem<TestType> p(1, 4, 2, 5, kv_len);
  const auto rule = mha::window(1500, 0) & mha::query_offset(kv_len - 5);
  const auto expected = attention_forward(p.query, p.key, p.value, rule, {.need_lse = true});
  auto seen = part_of(p, rule, 3072, kv_len - 3072);
  check_same(seen.finish(), expected);
  seen.join(part_of(p, rule, 0, 3072));
  check_same(seen.finish(), expected);
}

TEMPLATE_TEST_CASE("16-bit parts have the bits of all keys at once", "[law][partial]", Eigen::half,
                   Eigen::bfloat16) {
  const Problem<TestType> p(2, 4, 2, 70, 2300);
  const auto rule = mha::causal_offset(2230);
  auto parts = part_of(p, rule, 1024, 1276);
  parts.join(part_of(p, rule, 0, 1024));
  check_same(parts.finish(), attention_forward(p.query, p.key, p.value, rule, {.need_lse = true}));
}

TEST_CASE("parts have the same bits for any number of threads", "[law][partial][threads]") {
  const Problem<float> p(1, 4, 2, 3, 5420);
  const auto expected = part_of(p, mha::causal_offset(5417), 0, 5420).finish();
  for (const int threads : {2, 3, 7}) {
    mha::ThreadPool pool(threads);
    const AttentionOptions options{.executor = mha::Executor(pool)};
    check_same(part_of(p, mha::causal_offset(5417), 0, 5420, options).finish(), expected);
  }
}

TEST_CASE("a part keeps a state for each subtree of chunks", "[partial]") {
  // Chunks 1 ... 6 of 8: subtrees {1}, {2, 3}, {4, 5}, {6}; with 0 and 7 they are one.
  const Problem<float> p(1, 4, 2, 3, 8192);
  auto part = part_of(p, mha::All(), 1024, 6 * 1024);
  CHECK(part.parts() == 4);
  // 12 rows, 9 channels in whole vectors of 16, and row_max, row_sum, seen.
  CHECK(part.memory_bytes() == 4 * 12 * (16 + 3) * sizeof(float));
  part.join(part_of(p, mha::All(), 0, 1024));
  CHECK(part.parts() == 3);
  part.join(part_of(p, mha::All(), 7168, 1024));
  CHECK(part.parts() == 1);
}

TEST_CASE("rows without any keys are 0, with a lse of -inf, or of the sink", "[partial]") {
  const Problem<float> p(1, 4, 2, 3, 0);
  const auto none = attention_partial(p.query, p.key, p.value).finish();
  CHECK(stacked(none.output).isZero(0));
  CHECK((stacked(none.lse).array() == -std::numeric_limits<float>::infinity()).all());
  const auto sink = attention_partial(p.query, p.key, p.value, mha::sinks(2.5F)).finish();
  CHECK((stacked(sink.lse).array() == 2.5F).all());
}

TEMPLATE_TEST_CASE("a box of queries, heads and sequences has the bits of those rows of the whole",
                   "[law][box]", float, double, long double) {
  const Index query_len = 90, kv_len = 200;
  const Problem<TestType> p(2, 4, 2, query_len, kv_len);
  for_rules(query_len, kv_len, [&](const auto& rule) {
    const AttentionOptions whole{.need_weights = true, .need_lse = true};
    const auto expected = attention_forward(p.query, p.key, p.value, rule, whole);
    AttentionOptions options = whole;
    options.box = {.first_batch = 1,
                   .first_head = 2,
                   .first_query = 17,
                   .batch = 2,
                   .num_heads = 4,
                   .query_len = query_len};
    const auto rows = [&](const auto& tensor, Index count) {
      return some_of(some_of(some_of(tensor, 0, 1, 1), 1, 2, 2), 2, 17, count);
    };
    for (const Index count : {2, 70}) {
      const auto query = rows(p.query, count);
      const auto key = some_of(some_of(p.key, 0, 1, 1), 1, 1, 1);
      const auto value = some_of(some_of(p.value, 0, 1, 1), 1, 1, 1);
      const auto result = attention_forward(query, key, value, rule, options);
      CHECK_THAT(stacked(result.output), HasBitsOf(stacked(rows(expected.output, count))));
      CHECK_THAT(stacked(result.weights), HasBitsOf(stacked(rows(expected.weights, count))));
      CHECK_THAT(stacked(result.lse), HasBitsOf(stacked(rows(expected.lse, count))));
      const auto scores = attention_scores(query, key, rule, {.box = options.box});
      CHECK_THAT(stacked(scores),
                 HasBitsOf(stacked(rows(attention_scores(p.query, p.key, rule), count))));
    }
  });
}

TEMPLATE_TEST_CASE("gradients of a box have the bits of its place in the whole", "[law][box]",
                   float, double, long double) {
  const Index query_len = 1100, kv_len = 130;
  const Problem<TestType> p(2, 4, 2, query_len, kv_len);
  const auto rule =
      mha::alibi() & mha::dropout(0.25, 3) & mha::window(1200, 5) & mha::lengths({100, 130});
  const auto forward = attention_forward(p.query, p.key, p.value, rule, {.need_lse = true});
  const auto expected = attention_backward(p.grad_output, p.query, p.key, p.value, forward, rule);
  const auto backward = [&](const auto& cut_queries, const auto& cut_keys, const Box& box) {
    const auto query = cut_queries(p.query);
    const auto key = cut_keys(p.key);
    const auto value = cut_keys(p.value);
    const auto result = attention_forward(query, key, value, rule, {.need_lse = true, .box = box});
    return attention_backward(cut_queries(p.grad_output), query, key, value, result, rule,
                              {.box = box});
  };
  // Heads 2 and 3 of sequence 1, which are those of key head 1.
  const auto heads = [](const auto& t) {
    return some_of(some_of(t, 0, 1, 1), 1, t.size(1) / 2, t.size(1) / 2);
  };
  const auto of_heads =
      backward(heads, heads, {.first_batch = 1, .first_head = 2, .batch = 2, .num_heads = 4});
  CHECK_THAT(stacked(of_heads.query), HasBitsOf(stacked(heads(expected.query))));
  CHECK_THAT(stacked(of_heads.key), HasBitsOf(stacked(heads(expected.key))));
  CHECK_THAT(stacked(of_heads.value), HasBitsOf(stacked(heads(expected.value))));
  // The queries of the second chunk: their own gradients.
  const auto rows = [](const auto& t) { return some_of(t, 2, 1024, 76); };
  const auto all = [](const auto& t) { return some_of(t, 2, 0, t.size(2)); };
  const auto of_rows = backward(rows, all, {.first_query = 1024});
  CHECK_THAT(stacked(of_rows.query), HasBitsOf(stacked(rows(expected.query))));
}

TEST_CASE("a box that begins at a later key is the whole with the keys before it masked",
          "[law][box]") {
  // Chunks 1, 2, 3 of the whole: 1 by itself, then 2 and 3.
  const Problem<float> p(1, 4, 2, 70, 4096);
  const auto rule = mha::causal_offset(4026);
  const auto expected = attention_forward(
      p.query, p.key, p.value,
      rule & mha::mask_mod([](Index, Index, Index, Index j) { return j >= 1024; }),
      {.need_lse = true});
  check_same(
      attention_forward(p.query, some_of(p.key, 2, 1024, 3072), some_of(p.value, 2, 1024, 3072),
                        rule, {.need_lse = true, .box = {.first_key = 1024}}),
      expected);
}

TEST_CASE("a box or a part that does not fit is refused", "[misuse][box][partial]") {
  const Problem<float> p(1, 4, 2, 3, 2048);
  const auto box = [&](const Box& b) {
    return message_of([&] { (void)attention_forward(p.query, p.key, p.value, {.box = b}); });
  };
  CHECK(box({.first_batch = -1}) ==
        "mha::attention_forward: box.first_batch must lie between 0 and 1073741823, got -1");
  CHECK(box({.first_head = -2}) ==
        "mha::attention_forward: box.first_head must lie between 0 and 1073741820, got -2");
  CHECK(
      box({.first_query = Index{1} << 31}) ==
      "mha::attention_forward: box.first_query must lie between 0 and 1073741821, got 2147483648");
  CHECK(box({.first_key = 1000}) ==
        "mha::attention_forward: box.first_key must be a multiple of 1024, got 1000");
  CHECK(
      box({.first_query = 10, .query_len = 12}) ==
      "mha::attention_forward: box.query_len must be 0 or lie between 13, where the part ends, and "
      "1073741824, got 12");
  CHECK(
      box({.kv_len = -4}) ==
      "mha::attention_forward: box.kv_len must be 0 or lie between 2048, where the part ends, and "
      "1073741824, got -4");
  // A mask of the part's size is not one of the whole's.
  const Matrix<bool> mask = Matrix<bool>::Constant(3, 2048, true);
  CHECK(message_of([&] {
          (void)attention_forward(p.query, p.key, p.value, mha::keep(mask),
                                  {.box = {.first_key = 1024}});
        }).find("3072") != std::string::npos);
  const auto forward = attention_forward(p.query, p.key, p.value, {.need_lse = true});
  CHECK(message_of([&] {
          (void)attention_backward(p.query, p.query, p.key, p.key,
                                   attention_forward(p.query, p.key, p.key, {.need_lse = true}),
                                   {.box = {.first_query = 64}});
        }) == "mha::attention_backward: box.first_query must be a multiple of 1024, got 64");
  CHECK(message_of(
            [&] { (void)attention_partial(p.query, p.key, p.value, {.need_weights = true}); }) ==
        "mha::attention_partial: need_weights must not be set, since weights are known when all "
        "parts "
        "are");
  CHECK(message_of([&] {
          (void)attention_partial(p.query, some_of(p.key, 2, 0, 1500), some_of(p.value, 2, 0, 1500),
                                  {.box = {.kv_len = 2048}});
        }) ==
        "mha::attention_partial: the keys must end with a chunk of 1024 or with the whole, got an "
        "end "
        "at 1500 of 2048");

  auto part = part_of(p, mha::All(), 0, 1024);
  CHECK(message_of([&] { part.join(part); }) ==
        "mha::Partial::join: both have attended to chunk 0, keys 0 to 1023");
  const Problem<float> other(1, 4, 2, 4, 2048);
  CHECK(message_of([&] {
          part.join(part_of(other, mha::All(), 1024, 1024));
        }).find("both must have rows of the same sizes") != std::string::npos);
  CHECK(message_of([&] { part.join(part_of(p, mha::sinks(1.0F), 1024, 1024)); }) ==
        "mha::Partial::join: both must have the same rule, got other sinks for head 0");
  CHECK(message_of([&] {
          part.join(part_of(p, mha::dropout(0.5, 1), 1024, 1024));
        }).find("dropout that multiplies by 1 and 2") != std::string::npos);
  CHECK(part.parts() == 1);
}
