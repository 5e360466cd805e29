// SPDX-License-Identifier: MIT
//
// What rules say about whole tiles (rule.hpp: tile, TileMask): true of every pair, used by every
// engine of the kernels, and without a trace in any bit.
#include <mha/mha.hpp>

#include <random>

#include "support/same_as_keep.hpp"

using mha::Extent;
using mha::Index;
using mha::KeyRange;
using mha::Matrix;
using mha::PairTile;
using mha::TileMask;
using mha::test::available_targets;
using mha::test::check_bits_of_keep;
using mha::test::HasBitsOf;
using mha::test::random_booleans;
using mha::test::random_matrix;
using mha::test::UsingTarget;

namespace {

constexpr Index kQueries = 90, kKeys = 200;

TileMask true_answer(const auto& rules, const Extent& extent, Index b, Index h,
                     const PairTile& tile) {
  bool any = false;
  bool all = true;
  for (Index i = tile.first_query; i < tile.first_query + tile.queries; ++i) {
    const KeyRange range = rules.keys(extent, b, h, i);
    for (Index j = tile.first_key; j < tile.first_key + tile.keys; ++j) {
      const bool yes = j >= range.begin && j < range.end && rules.allowed(extent, b, h, i, j);
      any = any || yes;
      all = all && yes;
    }
  }
  return all ? TileMask::all : any ? TileMask::some : TileMask::none;
}

struct Count {
  int all = 0, none = 0;  // that are so
  int said_all = 0, said_none = 0;
};

// Random tiles: an answer other than `some` must be true.
Count check_answers(const auto& rule, std::uint32_t seed) {
  const auto& rules = mha::detail::as_rules(rule);
  std::mt19937 random(seed);
  const auto pick = [&](Index n) { return static_cast<Index>(random() % std::uint32_t(n)); };
  Count count;
  for (int round = 0; round < 400; ++round) {
    const Index b = pick(2);
    const Index h = pick(2);
    const Extent extent = rules.placed({2, kQueries, kKeys, 0}, b, h);
    PairTile tile;
    tile.first_query = pick(kQueries);
    tile.queries = 1 + pick(std::min<Index>(kQueries - tile.first_query, 1 + pick(64)));
    tile.first_key = pick(kKeys);
    tile.keys = 1 + pick(std::min<Index>(kKeys - tile.first_key, 1 + pick(128)));
    const TileMask truth = true_answer(rules, extent, b, h, tile);
    const TileMask answer = rules.tile(extent, b, h, tile);
    const TileMask of_pairs = rules.tile_of_pairs(extent, b, h, tile);
    CAPTURE(b, h, tile.first_query, tile.queries, tile.first_key, tile.keys);
    if (answer != TileMask::some && answer != truth) FAIL("a wrong answer");
    if (of_pairs == TileMask::none && truth != TileMask::none) FAIL("a wrong none of pairs");
    if (of_pairs == TileMask::all) {
      for (Index i = tile.first_query; i < tile.first_query + tile.queries; ++i) {
        const KeyRange range = rules.keys(extent, b, h, i);
        for (Index j = std::max(range.begin, tile.first_key);
             j < std::min(range.end, tile.first_key + tile.keys); ++j) {
          if (!rules.allowed(extent, b, h, i, j)) FAIL("a wrong all of pairs");
        }
      }
    }
    count.all += truth == TileMask::all ? 1 : 0;
    count.none += truth == TileMask::none ? 1 : 0;
    count.said_all += answer == TileMask::all ? 1 : 0;
    count.said_none += answer == TileMask::none ? 1 : 0;
  }
  return count;
}
// And none is missed.
void check_exact(const auto& rule, std::uint32_t seed) {
  const Count count = check_answers(rule, seed);
  CHECK(count.said_all == count.all);
  CHECK(count.said_none == count.none);
  CHECK(count.all + count.none > 0);
}

std::vector<int> some_documents(int last = 1) {
  std::vector<int> ids;
  for (Index j = 0; j < kKeys; ++j) {
    ids.push_back(j < 70 ? 1 : j < 75 ? 2 : j < 110 ? 3 : j < 190 ? 4 : last);
  }
  return ids;
}

// A mask with large areas of either kind.
Matrix<bool> areas() {
  Matrix<bool> m = random_booleans(kQueries, kKeys, 3, 0.5);
  m.topLeftCorner(60, 90).setConstant(true);
  m.bottomRightCorner(50, 100).setConstant(false);
  return m;
}

// Keys of a user's own rule that move down with the query, in steps, and now and then are none.
struct Falling : mha::Rule {
  KeyRange keys(const Extent& extent, Index /*b*/, Index /*h*/, Index i) const {
    if (i % 30 == 7) return {5, 5};
    return {100 - i, extent.kv_len - i / 2};
  }
};

// A mask of a user's own that speaks of tiles, or does not.
template <bool kSpeaks>
struct Stripes : mha::Rule {
  static bool in_stripe(Index i, Index j) { return (i / 60 + j / 150) % 2 == 0; }
  bool allowed(const Extent& /*extent*/, Index /*b*/, Index /*h*/, Index i, Index j) const {
    return in_stripe(i, j);
  }
  TileMask tile(const Extent& extent, Index b, Index h, const PairTile& t) const requires(kSpeaks) {
    const bool one = t.first_query / 60 == (t.first_query + t.queries - 1) / 60 &&
                     t.first_key / 150 == (t.first_key + t.keys - 1) / 150;
    if (!one) return TileMask::some;
    return allowed(extent, b, h, t.first_query, t.first_key) ? TileMask::all : TileMask::none;
  }
};

template <class F>
void on_every_target(const F& f) {
  for (const auto target : available_targets()) {
    CAPTURE(mha::kernels::name(target));
    const UsingTarget use(target);
    f();
  }
}

}  // namespace

TEST_CASE("what a mask says about a tile is true, and nothing that it can know is missed",
          "[rules][tiles]") {
  const Matrix<bool> m = areas();
  const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor> by_columns = m;
  const Matrix<bool> coarse = random_booleans(5, 6, 4, 0.5);
  check_exact(mha::causal_offset({40, 110}), 1);
  check_exact(mha::window(20, 30), 2);
  check_exact(mha::lengths({120, 30}), 3);
  check_exact(Falling(), 4);
  check_exact(mha::keep(m), 5);
  check_exact(mha::ignore(m), 6);
  check_exact(mha::keep(by_columns), 7);
  check_exact(mha::key_padding(m.topRows(2)), 8);
  check_exact(mha::keep(m.row(70)), 9);
  check_exact(mha::blocks(coarse, 20, 40), 10);
  check_exact(mha::blocks(coarse, 18, 34), 11);
  check_exact(mha::documents(some_documents(5)), 12);
  check_answers(mha::documents(some_documents()), 12);  // ids apart may look like neighbours
  check_answers(mha::documents(some_documents()) & mha::query_offset({-20, 150}), 13);
  // Far apart in memory: only small tiles are looked through.
  Matrix<bool> scattered = Matrix<bool>::Constant(2 * kQueries, 2 * kKeys, true);
  const Eigen::Map<const Matrix<bool>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>
      every_other(scattered.data(), kQueries, kKeys, {4 * kKeys, 2});
  const Count count = check_answers(mha::keep(every_other), 14);
  CHECK(count.said_all > 0);
  CHECK(count.said_all < count.all);
}

TEST_CASE("what masks joined by & and | say about a tile is true", "[rules][tiles][either]") {
  const Matrix<bool> m = areas();
  const auto documents = mha::documents(some_documents());
  const auto sieve = mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 9 < 8; });
  check_answers(mha::causal() | mha::lengths(50), 1);
  check_answers(mha::window(10, 3) | mha::keep(m), 2);
  check_answers((mha::window(10, 3) | documents) & mha::causal_offset(30), 3);
  check_answers((documents & mha::keep(m)) | (mha::lengths(60) & mha::ignore(m)), 4);
  check_answers(sieve | documents, 5);
  check_answers(sieve & documents & mha::causal_offset(60), 6);
  check_answers((sieve & mha::causal_offset(60)) | Falling() | mha::window(0, 0), 7);
  check_answers(mha::All(), 8);
  const Count local = check_answers((mha::window(20, 20) | mha::lengths(30)) & mha::causal(), 9);
  CHECK(local.said_none > 0);
  CHECK(local.said_all > 0);
}

TEST_CASE("a rule of one's own may speak of tiles, which changes no bit", "[rules][tiles]") {
  const auto stripes = [](Index, Index, Index i, Index j) {
    return Stripes<true>::in_stripe(i, j);
  };
  for (const Index query_len : {3, 70, 300}) {
    check_bits_of_keep<float>(Stripes<true>(), {query_len, 1300, 2, 2, 1}, stripes);
  }
  check_bits_of_keep<Eigen::bfloat16>(Stripes<true>(), {130, 700, 1, 2, 1}, stripes);
}

TEST_CASE("a tile's answer goes with score modifiers, sinks and dropout, and changes no bit",
          "[rules][tiles]") {
  const auto curved = mha::score_mod([](auto s, Index, Index, Index i, Index j) {
    using S = decltype(s);
    return s + S(0.25) * s * s * S(static_cast<double>((i + j) % 3));
  });
  static const Matrix<double> bias = random_matrix<double>(1, 1300, 8);
  for (const Index query_len : {3, 300}) {
    const Matrix<double> query = random_matrix<double>(query_len, 5, 1);
    const Matrix<double> key = random_matrix<double>(1300, 5, 2);
    const Matrix<double> value = random_matrix<double>(1300, 4, 3);
    const Matrix<double> grad = random_matrix<double>(query_len, 4, 4);
    const auto everything = [&](const auto& mask) {
      return mask & mha::window(-1, 900) & mha::bias(bias) & curved & mha::softcap(1.5) &
             mha::sinks(0.3) & mha::dropout(0.3, 4) & mha::scale(2.0);
    };
    on_every_target([&] {
      const auto forward = [&](const auto& rule) {
        return mha::scaled_dot_product_attention_forward(query, key, value, rule,
                                                         {.need_weights = true, .need_lse = true});
      };
      const auto speaks = everything(Stripes<true>());
      const auto silent = everything(Stripes<false>());
      const auto result = forward(speaks);
      const auto expected = forward(silent);
      CHECK_THAT(result.output, HasBitsOf(expected.output));
      CHECK_THAT(result.weights, HasBitsOf(expected.weights));
      CHECK_THAT(result.lse, HasBitsOf(expected.lse));
      const auto gradients = [&](const auto& of, const auto& rule) {
        return mha::scaled_dot_product_attention_backward(grad, query, key, value, of, rule);
      };
      const auto got = gradients(result, speaks);
      const auto wanted = gradients(expected, silent);
      CHECK_THAT(got.query, HasBitsOf(wanted.query));
      CHECK_THAT(got.key, HasBitsOf(wanted.key));
      CHECK_THAT(got.value, HasBitsOf(wanted.value));
    });
  }
}

TEST_CASE("keys of the layer's own keep tiles apart from those of the caller, and change no bit",
          "[rules][tiles][layer]") {
  mha::MultiHead<float, 2> layer({.embed_dim = 8, .add_bias_kv = true, .add_zero_attn = true});
  for (const Index n : {128, 300}) {
    const Eigen::MatrixXf x = random_matrix<float>(n, 8, 3);
    const auto run = [&](const auto& rule) {
      mha::TrainingPass<decltype(layer)> pass;
      mha::MultiHeadGradients<decltype(layer)> gradients(layer);
      layer.forward_training(pass, x, rule);
      layer.backward(gradients, pass, x, rule);
      Eigen::MatrixXf all(2 * n + 1, 8);
      all << pass.output, gradients.query, gradients.bias_k;
      return all;
    };
    on_every_target([&] {
      CHECK_THAT(run(Stripes<true>()), HasBitsOf(run(Stripes<false>())));
      CHECK_THAT(run(mha::causal() & mha::window(100, 0)),
                 HasBitsOf(run(mha::mask_mod(
                     [](Index, Index, Index i, Index j) { return j <= i && j >= i - 100; }))));
    });
  }
}

TEST_CASE("scores of -infinity by overflow are what they are without tiles", "[rules][tiles]") {
  // q . k = -4e38 beyond float: an element-wise mask takes such a score for masked.
  for (const Index query_len : {3, 70}) {
    Matrix<float> query = Matrix<float>::Constant(query_len, 1, 2e19F);
    query(0, 0) = 1;
    const Matrix<float> key = Matrix<float>::Constant(300, 1, -2e19F);
    const Matrix<float> value = random_matrix<float>(300, 4, 3);
    on_every_target([&] {
      const auto run = [&](const auto& rule) {
        return mha::scaled_dot_product_attention_forward(query, key, value, rule & mha::scale(1),
                                                         {.need_lse = true});
      };
      const auto result = run(Stripes<true>());
      const auto expected = run(Stripes<false>());
      CHECK_THAT(result.output, HasBitsOf(expected.output));
      CHECK_THAT(result.lse, HasBitsOf(expected.lse));
    });
  }
}

namespace {

// Counts the pairs that are asked about.
struct Counting : Stripes<true> {
  std::shared_ptr<std::int64_t> asked = std::make_shared<std::int64_t>(0);
  bool allowed(const Extent& extent, Index b, Index h, Index i, Index j) const {
    ++*asked;
    return Stripes<true>::allowed(extent, b, h, i, j);
  }
  TileMask tile(const Extent& /*extent*/, Index /*b*/, Index /*h*/, const PairTile& t) const {
    const bool one = t.first_query / 60 == (t.first_query + t.queries - 1) / 60 &&
                     t.first_key / 150 == (t.first_key + t.keys - 1) / 150;
    if (!one) return TileMask::some;
    return in_stripe(t.first_query, t.first_key) ? TileMask::all : TileMask::none;
  }
};

}  // namespace

TEST_CASE("no pair of a tile that a rule answers for is asked about", "[rules][tiles]") {
  const Matrix<float> value = random_matrix<float>(150, 4, 3);
  for (const Index query_len : {1, 4, 5, 60}) {
    const Matrix<float> query = random_matrix<float>(query_len, 4, 1);
    const Counting rule;
    const auto forward = mha::scaled_dot_product_attention_forward(
        query, value, value, rule, {.need_weights = true, .need_lse = true});
    (void)mha::scaled_dot_product_attention_backward(query, query, value, value, forward, rule);
    CHECK(*rule.asked == 0);
    CHECK(forward.weights.minCoeff() > 0);
    // Another stripe begins within the second key tile.
    const Matrix<float> longer = random_matrix<float>(200, 4, 5);
    (void)mha::scaled_dot_product_attention(query, longer, longer, rule);
    CHECK(*rule.asked <= query_len * 80);
    CHECK(*rule.asked > 0);
  }
}
