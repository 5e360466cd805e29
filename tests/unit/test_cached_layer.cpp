// SPDX-License-Identifier: MIT
//
// MultiHead over caches: every row has the bits of the uncached call over the whole sequence, however it is cut into
// calls and batched with others; and a call that fails leaves all caches as they were.
#include <mha/mha.hpp>

#include <random>
#include <vector>

#include "support/every_target.hpp"
#include "support/layer_support.hpp"
#include "support/matchers.hpp"

using mha::Index;
using mha::KvCache;
using mha::KvLayer;
using mha::KvPool;
using mha::KvSequence;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::Storage;
using mha::test::HasBitsOf;
using mha::test::message_of;
using mha::test::on_every_target;
using mha::test::random_matrix;

namespace {

template <class T>
constexpr Storage own_storage() {
  return std::is_same_v<T, double> ? Storage::f64 : Storage::f32;
}

template <class Layer>
KvPool pool_for(const Layer& layer, Index pages, Index layers = 1) {
  return KvPool({.layers = layers,
                 .kv_heads = layer.kv_heads(),
                 .head_dim = layer.head_dim(),
                 .value_dim = layer.value_dim(),
                 .pages = pages,
                 .storage = own_storage<typename Layer::Acc>()});
}

MultiHeadConfig config(Index embed_dim) {
  return {.embed_dim = embed_dim,
          .num_heads = 4,
          .kv_heads = 2,
          .head_dim = 10,
          .value_dim = 9,
          .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half, .dim = 8},
          .seed = 5};
}

/// Runs x through the cache in pieces, and compares each row.
template <class Layer, class T, class Rule, class Mask>
void check_pieces(const Layer& layer, const Matrix<T>& x, const Rule& rule, const Mask& whole_rule,
                  KvSequence sequence, const std::vector<Index>& pieces) {
  const auto expected = layer.forward(x, whole_rule, {.need_lse = true});
  Index row = 0;
  for (const Index count : pieces) {
    CAPTURE(row, count);
    const auto result =
        layer.forward(x.middleRows(row, count), sequence.layer(0), rule, {.need_lse = true});
    CHECK_THAT(result.output, HasBitsOf(Matrix<T>(expected.output.middleRows(row, count))));
    CHECK_THAT(result.lse,
               HasBitsOf(Matrix<typename Layer::Acc>(expected.lse.middleRows(row, count))));
    row += count;
    CHECK(sequence.size() == row);
  }
}

const std::vector<Index> kPieces{20, 1, 1, 3, 70, 33, 1, 200, 1};  // 330 rows

}  // namespace

TEMPLATE_TEST_CASE("decoding has the bits of prefilling", "[cache][law]", float, double,
                   Eigen::bfloat16) {
  const Index rows = 330;
  const Matrix<TestType> x = random_matrix<TestType>(rows, 24, 1);
  on_every_target([&] {
    for (const bool extra : {false, true}) {
      MultiHeadConfig c = config(24);
      c.add_bias_kv = extra;
      c.add_zero_attn = extra;
      const MultiHead<TestType, Eigen::Dynamic> layer(c);
      const KvPool pool = pool_for(layer, 8);
      check_pieces(layer, x, mha::causal(), mha::causal(), pool.sequence(), kPieces);
      check_pieces(layer, x, mha::causal() & mha::alibi() & mha::softcap(3.0),
                   mha::causal() & mha::alibi() & mha::softcap(3.0), pool.sequence(), {330});
      check_pieces(layer, x, mha::causal(), mha::causal() & mha::window_keys(50),
                   pool.sequence({.window_keys = 50}), kPieces);
      check_pieces(
          layer, x, mha::causal(),
          mha::causal() & (mha::window_keys(50) |
                           mha::mask_mod([](Index, Index, Index, Index j) { return j < 4; })),
          pool.sequence({.window_keys = 50, .first_keys = 4}), kPieces);
    }
  });
}

TEST_CASE("decoding has the bits of prefilling at widths of users", "[cache][law]") {
  const MultiHead<float, 12> layer(
      {.embed_dim = 768, .kv_heads = 4, .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
  const Matrix<float> x = random_matrix<float>(1300, 768, 3);
  const KvPool pool = pool_for(layer, 12);
  check_pieces(layer, x, mha::causal(), mha::causal(), pool.sequence(), {512, 512, 1, 1, 250, 24});
}

TEMPLATE_TEST_CASE("requests of different lengths in one call have the bits of each by itself",
                   "[cache][law]", float, double) {
  const MultiHead<TestType, Eigen::Dynamic> layer(config(24));
  std::mt19937 random(7);
  const auto draw = [&](Index first, Index last) {
    return first + static_cast<Index>(random() % static_cast<unsigned>(last - first + 1));
  };
  std::vector<Matrix<TestType>> texts, expected;
  for (int n = 0; n < 5; ++n) {
    texts.push_back(random_matrix<TestType>(300, 24, 50 + static_cast<std::uint64_t>(n)));
    expected.push_back(layer(texts.back(), mha::causal()));
  }
  mha::ThreadPool threads(3);
  for (const bool threaded : {false, true}) {
    const KvPool pool = pool_for(layer, 20);
    std::vector<KvSequence> sequences;
    for (std::size_t n = 0; n < texts.size(); ++n) sequences.push_back(pool.sequence());
    for (int step = 0; step < 25; ++step) {
      // Some of the sequences, each with a prompt, a few tokens, or one; now and then with none.
      std::vector<std::size_t> chosen;
      std::vector<Index> lengths;
      std::vector<KvLayer> caches;
      Index rows = 0;
      for (std::size_t n = 0; n < texts.size(); ++n) {
        if (draw(0, 2) == 0) continue;
        const Index left = 300 - sequences[n].size();
        const Index count = std::min(left, draw(0, 3) == 0 ? draw(0, 60) : draw(0, 2));
        chosen.push_back(n);
        lengths.push_back(count);
        caches.push_back(sequences[n].layer(0));
        rows += count;
      }
      Matrix<TestType> x(rows, 24);
      Index row = 0;
      for (std::size_t k = 0; k < chosen.size(); ++k) {
        x.middleRows(row, lengths[k]) =
            texts[chosen[k]].middleRows(sequences[chosen[k]].size(), lengths[k]);
        row += lengths[k];
      }
      mha::MultiHeadOptions options{.sequences = lengths};
      if (threaded) options.executor = mha::Executor(threads);
      if (caches.empty()) continue;
      const Matrix<TestType> y = layer(x, caches, mha::causal(), options);
      row = 0;
      for (std::size_t k = 0; k < chosen.size(); ++k) {
        const Index first = sequences[chosen[k]].size() - lengths[k];
        CHECK_THAT(Matrix<TestType>(y.middleRows(row, lengths[k])),
                   HasBitsOf(Matrix<TestType>(expected[chosen[k]].middleRows(first, lengths[k]))));
        row += lengths[k];
      }
    }
  }
}

TEST_CASE("a list of caches in braces, with as many rows each", "[cache]") {
  const MultiHead<float, Eigen::Dynamic> layer(config(24));
  const KvPool pool = pool_for(layer, 8, 2);
  KvSequence s = pool.sequence(), t = pool.sequence();
  const Matrix<float> x = random_matrix<float>(8, 24, 2);
  const Matrix<float> y = layer(x, {s.layer(1), t.layer(1)}, mha::causal());
  CHECK(s.layer(1).size() == 4);
  CHECK(s.size() == 0);  // layer 0 has not been called
  CHECK_THAT(Matrix<float>(y.topRows(4)),
             HasBitsOf(layer(Matrix<float>(x.topRows(4)), mha::causal())));
  CHECK_THAT(Matrix<float>(y.bottomRows(4)),
             HasBitsOf(layer(Matrix<float>(x.bottomRows(4)), mha::causal())));
}

TEST_CASE("cross-attention projects its context once", "[cache][law]") {
  MultiHeadConfig c = config(24);
  c.kdim = 15;
  c.vdim = 11;
  c.rotary.reset();
  const MultiHead<float, Eigen::Dynamic> layer(c);
  const Matrix<float> key = random_matrix<float>(200, 15, 1),
                      value = random_matrix<float>(200, 11, 2);
  const Matrix<float> x = random_matrix<float>(30, 24, 3);
  KvCache cache({.kv_heads = 2, .head_dim = 10, .value_dim = 9, .capacity = 200});
  layer.append(Matrix<float>(key.topRows(150)), Matrix<float>(value.topRows(150)), cache);
  layer.append(Matrix<float>(key.bottomRows(50)), Matrix<float>(value.bottomRows(50)), cache);
  const auto expected = layer.forward(x, key, value, {.need_weights = true, .need_lse = true});
  for (const Index rows : {30, 1, 7}) {
    const auto result = layer.attend(Matrix<float>(x.topRows(rows)), cache, mha::all(),
                                     {.need_weights = true, .need_lse = true});
    CHECK_THAT(result.output, HasBitsOf(Matrix<float>(expected.output.topRows(rows))));
    CHECK_THAT(result.lse, HasBitsOf(Matrix<float>(expected.lse.topRows(rows))));
    for (Index h = 0; h < 4; ++h) {
      const Matrix<float> weights = result.weights.matrix(0, h);
      CHECK_THAT(weights, HasBitsOf(Matrix<float>(expected.weights.matrix(0, h).topRows(rows))));
    }
  }
  CHECK(cache.size() == 200);
}

TEST_CASE("rows of a tree of guesses: accepted, they have the bits of decoding one by one",
          "[cache][trap]") {
  const MultiHead<float, Eigen::Dynamic> layer(config(24));
  const Matrix<float> x = random_matrix<float>(60, 24, 4), guesses = random_matrix<float>(5, 24, 5);
  const KvPool pool = pool_for(layer, 8);
  KvSequence plain = pool.sequence(), tree = pool.sequence();
  (void)layer(Matrix<float>(x.topRows(50)), plain.layer(0), mha::causal());
  (void)layer(Matrix<float>(x.topRows(50)), tree.layer(0), mha::causal());
  // Rows 0 -> 1 -> 3 are what comes; 2 is another child of 0, and 4 a child of 2.
  Matrix<float> rows(5, 24);
  rows.row(0) = x.row(50);
  rows.row(1) = x.row(51);
  rows.row(2) = guesses.row(2);
  rows.row(3) = x.row(52);
  rows.row(4) = guesses.row(4);
  const bool sees[5][5] = {{true, false, false, false, false},
                           {true, true, false, false, false},
                           {true, false, true, false, false},
                           {true, true, false, true, false},
                           {true, false, true, false, true}};
  const auto ancestors =
      mha::mask_mod([&](Index, Index, Index i, Index j) { return j < 50 || sees[i][j - 50]; });
  const Matrix<float> y =
      layer(rows, tree.layer(0), ancestors, {.positions = {50, 51, 51, 52, 52}});
  tree.accept({0, 1, 3});
  Matrix<float> expected(3, 24);
  for (Index i = 0; i < 3; ++i) {
    expected.row(i) = layer(Matrix<float>(x.row(50 + i)), plain.layer(0), mha::causal());
  }
  // The rows saw their own keys at other places of one tile: equal but for rounding.
  Matrix<float> accepted(3, 24);
  accepted << y.row(0), y.row(1), y.row(3);
  CHECK_THAT(accepted, mha::test::IsClose(expected, 1e-5));
  CHECK_THAT(Matrix<float>(y.topRows(2)), HasBitsOf(Matrix<float>(expected.topRows(2))));
  // And all that follows has its bits.
  CHECK(tree.size() == 53);
  const Matrix<float> next = x.middleRows(53, 7);
  CHECK_THAT(layer(next, tree.layer(0), mha::causal()),
             HasBitsOf(layer(next, plain.layer(0), mha::causal())));
}

TEST_CASE("a function of yours that throws leaves the caches as they were", "[cache][trap]") {
  const MultiHead<float, Eigen::Dynamic> layer(config(24));
  const KvPool pool = pool_for(layer, 8);
  KvSequence s = pool.sequence(), t = pool.sequence();
  const Matrix<float> x = random_matrix<float>(200, 24, 6);
  (void)layer(Matrix<float>(x.topRows(100)), s.layer(0), mha::causal());
  const Index free_pages = pool.free_pages();
  for (const int allowed_calls : {0, 1, 100, 5000}) {
    int calls = 0;
    const auto thrower = mha::mask_mod([&](Index, Index, Index, Index) {
      if (++calls > allowed_calls) throw std::runtime_error("enough");
      return true;
    });
    CHECK_THROWS_WITH(layer(Matrix<float>(x.topRows(90)), {s.layer(0), t.layer(0)}, thrower,
                            {.sequences = {60, 30}}),
                      "enough");
    CHECK(s.size() == 100);
    CHECK(t.size() == 0);
    CHECK(pool.free_pages() == free_pages);
  }
  const Matrix<float> expected = layer(Matrix<float>(x.topRows(120)), mha::causal());
  CHECK_THAT(layer(Matrix<float>(x.middleRows(100, 20)), s.layer(0), mha::causal()),
             HasBitsOf(Matrix<float>(expected.bottomRows(20))));
}

TEST_CASE("a full pool leaves every sequence of the call as it was", "[cache][trap]") {
  const MultiHead<float, Eigen::Dynamic> layer(config(24));
  const KvPool pool = pool_for(layer, 3);
  KvSequence s = pool.sequence(), t = pool.sequence();
  const Matrix<float> x = random_matrix<float>(300, 24, 6);
  (void)layer(Matrix<float>(x.topRows(100)), {s.layer(0), t.layer(0)}, mha::causal());
  CHECK(pool.free_pages() == 1);
  // s would get the last page, and t none.
  CHECK_THROWS_AS(layer(Matrix<float>(x.topRows(200)), {s.layer(0), t.layer(0)}, mha::causal()),
                  std::length_error);
  CHECK(s.size() == 50);
  CHECK(t.size() == 50);
  CHECK(pool.free_pages() == 1);
  (void)layer(Matrix<float>(x.topRows(100)), t.layer(0), mha::causal());
  CHECK(t.size() == 150);
}

TEST_CASE("the layer refuses caches that do not fit", "[cache][misuse]") {
  const MultiHead<float, Eigen::Dynamic> layer(config(24));
  const KvPool pool = pool_for(layer, 8);
  KvSequence s = pool.sequence(), t = pool.sequence();
  const Matrix<float> x = random_matrix<float>(6, 24, 2);
  using Options = mha::MultiHeadOptions;
  const auto with = [&](const Options& options) {
    return message_of([&] {
      (void)layer.forward(x, {s.layer(0), t.layer(0)}, mha::causal(), options);
    });
  };
  CHECK(with({.past_len = 3}) ==
        "mha::MultiHead::forward: with caches past_len, kv_sequences and kv_positions are the "
        "caches' "
        "own, got 1, 0 and 0 numbers");
  CHECK(
      with({.batch = 3}) ==
      "mha::MultiHead::forward: batch must be left out beside caches, or equal their number, got 3 "
      "and 2");
  CHECK(with({.sequences = {1, 2, 3}}) ==
        "mha::MultiHead::forward: there must be one of sequences for each cache, got 3 and 2");
  CHECK(with({.sequences = {1, 2}}) ==
        "mha::MultiHead::forward: sequences must add up to the rows, got 3 and 6");
  CHECK(with({.sequences = {-1, 7}}) ==
        "mha::MultiHead::forward: sequences must lie between 0 and the 6 rows, got -1 for sequence "
        "0");
  CHECK(with({.positions = {1, 2}}) ==
        "mha::MultiHead::forward: positions must be one number, or one per row, got 2 and 6");
  CHECK(message_of([&] {
          (void)layer.forward(x, {s.layer(0), s.layer(0)}, mha::causal());
        }) == "mha::MultiHead::forward: a sequence must be given once, got it again as cache 1");
  CHECK(message_of([&] {
          (void)layer.forward(Matrix<float>(5, 24), {s.layer(0), t.layer(0)}, mha::causal());
        }) ==
        "mha::MultiHead::forward: without sequences the caches must divide the rows, got 2 and 5");
  CHECK(message_of([&] {
          (void)layer.forward(x, s.layer(0), mha::causal_offset(4));
        }).find("past_len and a rule must place the queries alike, got past_len 0 and offset 4") !=
        std::string::npos);
  CHECK(message_of([&] { (void)layer.forward(Matrix<float>(6, 23), s.layer(0), mha::causal()); }) ==
        "mha::MultiHead::forward: x.cols() must equal embed_dim, got 23 and 24");
  // A mask of the whole sequence is none of a step, of which row 0 is the call's first.
  (void)layer(Matrix<float>(x.topRows(1)), t.layer(0), mha::causal());
  const Matrix<bool> square = Matrix<bool>::Constant(6, 6, true);
  CHECK(message_of([&] {
          (void)layer.forward(Matrix<float>(x.row(1)), t.layer(0), mha::keep(square));
        }).find("must have 1 or 1 entries along query_len, got 6") != std::string::npos);
  CHECK(t.size() == 1);
  t.clear();
  KvSequence windowed = pool.sequence({.window_keys = 4});
  CHECK(
      message_of([&] {
        (void)layer.forward(x, windowed.layer(0), mha::causal(), {.positions = {0, 1, 1, 2, 3, 4}});
      }) ==
      "mha::MultiHead::forward: positions must rise by 1 in a sequence with window_keys, got 1 and "
      "1 "
      "in rows 1 and 2 of sequence 0");
  KvCache other({.kv_heads = 2, .head_dim = 10, .capacity = 10});
  CHECK(message_of([&] { (void)layer.forward(x, other, mha::causal()); }) ==
        "mha::MultiHead::forward: a cache must have the layer's kv_heads 2, head_dim 10 and "
        "value_dim "
        "9, got 2, 10 and 10 of cache 0");
  KvCache wide(
      {.kv_heads = 2, .head_dim = 10, .value_dim = 9, .capacity = 10, .storage = Storage::f64});
  CHECK(
      message_of([&] { (void)layer.forward(x, wide, mha::causal()); }) ==
      "mha::MultiHead::forward: a cache of Storage::f64 is for a layer of double, got one as cache "
      "0");
  Matrix<float> narrow(6, 20);
  CHECK(message_of([&] { layer.forward_into(narrow, x, s.layer(0), mha::causal()); }) ==
        "mha::MultiHead::forward_into: output must be 6 x 24, got 6 x 20");
  Matrix<float> y = x;
  CHECK(message_of([&] {
          layer.forward_into(y, y, s.layer(0), mha::causal());
        }).find("output must not overlap") != std::string::npos);
  MultiHeadConfig c = config(24);
  c.kdim = 12;
  const MultiHead<float, Eigen::Dynamic> cross(c);
  CHECK(message_of([&] { (void)cross.forward(x, s.layer(0), mha::causal()); }) ==
        "mha::MultiHead::forward: keys and values come from x, so kdim and vdim must equal "
        "embed_dim, "
        "got 12, 24 and 24");
  CHECK(message_of([&] { cross.append(x, s.layer(0)); }) ==
        "mha::MultiHead::append: key.cols() must equal kdim, got 24 and 12");
  CHECK(message_of([&] { cross.append(Matrix<float>(5, 12), x, s.layer(0)); }) ==
        "mha::MultiHead::append: value.rows() must equal key.rows() (kv_len), got 6 and 5");
  CHECK(s.size() == 0);
  CHECK(pool.free_pages() == 8);
}
