// SPDX-License-Identifier: MIT
//
// kv_pool.hpp, kv_cache.hpp and cached_attention.hpp: a cache changes no bit of what is attended to, whatever has
// happened to it before, and what fails leaves it as it was.
#include <mha/mha.hpp>

#include <random>
#include <thread>
#include <vector>

#include "support/every_target.hpp"
#include "support/layer_support.hpp"
#include "support/matchers.hpp"

using mha::Index;
using mha::KvCache;
using mha::KvPool;
using mha::KvSequence;
using mha::Matrix;
using mha::Storage;
using mha::Tensor;
using mha::TensorView;
using mha::test::HasBitsOf;
using mha::test::message_of;
using mha::test::on_every_target;
using mha::test::random_tensor;
using mha::test::rows_of;
using mha::test::stacked;

namespace {

constexpr Index kHeads = 4, kKvHeads = 2, kHeadDim = 10, kValueDim = 9;

/// Keys and values of one sequence, and queries that stand at each of them.
template <class T>
struct Text {
  Tensor<T> query, key, value;
  explicit Text(Index tokens, std::uint64_t seed = 1)
      : query(random_tensor<T>({1, kHeads, tokens, kHeadDim}, seed, 2)),
        key(random_tensor<T>({1, kKvHeads, tokens, kHeadDim}, seed + 1, 3)),
        value(random_tensor<T>({1, kKvHeads, tokens, kValueDim}, seed + 2)) {}
  Index size() const { return key.size(2); }
};

template <class T>
void append(const mha::KvLayer& layer, const Text<T>& text, Index first, Index count) {
  layer.append(rows_of(text.key, first, count), rows_of(text.value, first, count));
}

template <class T>
constexpr Storage own_storage() {
  return std::is_same_v<T, double> ? Storage::f64 : Storage::f32;
}

KvPool pool_of(Index pages, Storage storage, Index layers = 1) {
  return KvPool({.layers = layers,
                 .kv_heads = kKvHeads,
                 .head_dim = kHeadDim,
                 .value_dim = kValueDim,
                 .pages = pages,
                 .storage = storage});
}

/// A pool whose pages are full of NaN: what has not been written must not matter.
KvPool poisoned_pool(Index pages, Storage storage, Index layers = 1) {
  KvPool pool = pool_of(pages, storage, layers);
  Tensor<float> nan_key({1, kKvHeads, pages * 128, kHeadDim});
  Tensor<float> nan_value({1, kKvHeads, pages * 128, kValueDim});
  for (Tensor<float>* tensor : {&nan_key, &nan_value}) {
    std::fill_n(tensor->data(), tensor->view().sizes[1] * pages * 128 * tensor->view().sizes[3],
                std::numeric_limits<float>::quiet_NaN());
  }
  KvSequence all = pool.sequence();
  for (Index l = 0; l < layers; ++l) all.layer(l).append(nan_key, nan_value);
  return pool;
}

/// Queries of the last `count` of `size` keys, without a cache.
template <class T, class Rule>
auto uncached(const Text<T>& text, Index size, Index count, const Rule& rule,
              bool need_weights = false) {
  return attention_forward(
      rows_of(text.query, size - count, count), rows_of(text.key, 0, size),
      rows_of(text.value, 0, size), rule,
      {.past_len = size - count, .need_weights = need_weights, .need_lse = true});
}
template <class T, class Rule>
auto cached(const mha::CachedKeys& keys, const Text<T>& text, Index count, const Rule& rule,
            const mha::AttentionOptions& options = {}) {
  mha::AttentionOptions all = options;
  all.need_lse = true;
  return attention_forward(rows_of(text.query, keys.size() - count, count), keys, rule, all);
}

template <class Result>
void check_same(const Result& actual, const Result& expected) {
  CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
  if (actual.weights.empty()) return;
  CHECK_THAT(stacked(actual.weights), HasBitsOf(stacked(expected.weights)));
}

}  // namespace

TEMPLATE_TEST_CASE("cached keys have the bits of keys in a matrix", "[cache][law]", float, double) {
  const Text<TestType> text(2400);
  on_every_target([&] {
    KvSequence s = poisoned_pool(20, own_storage<TestType>()).sequence();
    Index size = 0;
    // Prompts, chunks and single tokens, across the borders of pages and chunks.
    for (const Index count : {1, 3, 70, 54, 1, 127, 300, 500, 2, 1, 1000, 130, 4}) {
      append(s.layer(0), text, size, count);
      size += count;
      CAPTURE(size, count);
      CHECK(s.size() == size);
      for (const Index queries : {Index{1}, std::min<Index>(count, 70)}) {
        check_same(cached(s.layer(0).keys(), text, queries, mha::causal(), {.need_weights = true}),
                   uncached(text, size, queries, mha::causal(), true));
        check_same(
            cached(s.layer(0).keys(), text, queries,
                   mha::window(100, 0) & mha::alibi() & mha::softcap(4.0)),
            uncached(text, size, queries, mha::window(100, 0) & mha::alibi() & mha::softcap(4.0)));
        const auto odd =
            mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; });
        check_same(cached(s.layer(0).keys(), text, queries, odd),
                   uncached(text, size, queries, odd));
      }
    }
  });
}

TEMPLATE_TEST_CASE(
    "a cache in another type has the bits of a call over values rounded the same way",
    "[cache][law]", Eigen::half, Eigen::bfloat16, float) {
  const Text<float> text(700);
  const Storage storage = std::is_same_v<TestType, Eigen::half> ? Storage::f16
                          : std::is_same_v<TestType, float>     ? Storage::f32
                                                                : Storage::bf16;
  Text<double> rounded(700);
  for (const auto& [from, to] :
       {std::pair(&text.query, &rounded.query), std::pair(&text.key, &rounded.key),
        std::pair(&text.value, &rounded.value)}) {
    const Index count = from->size(1) * from->size(2) * from->size(3);
    for (Index k = 0; k < count; ++k) {
      const float x = from->data()[k];
      to->data()[k] = from == &text.query ? x : static_cast<float>(TestType(x));
    }
  }
  on_every_target([&] {
    KvSequence s = poisoned_pool(6, storage).sequence();
    append(s.layer(0), text, 0, 640);
    append(s.layer(0), text, 640, 60);
    for (const Index queries : {1, 3, 70}) {
      // In float from rounded keys, and in double from the same pages.
      Text<float> narrow(700);
      for (const auto& [from, to] :
           {std::pair(&rounded.query, &narrow.query), std::pair(&rounded.key, &narrow.key),
            std::pair(&rounded.value, &narrow.value)}) {
        const Index count = from->size(1) * from->size(2) * from->size(3);
        for (Index k = 0; k < count; ++k) to->data()[k] = static_cast<float>(from->data()[k]);
      }
      const auto rule = mha::causal() & mha::softcap(5.0);
      check_same(cached(s.layer(0).keys(), narrow, queries, rule),
                 uncached(narrow, 700, queries, rule));
      check_same(cached(s.layer(0).keys(), rounded, queries, rule),
                 uncached(rounded, 700, queries, rule));
    }
  });
}

TEST_CASE("16-bit queries attend to caches of every type", "[cache]") {
  const Text<Eigen::bfloat16> text(300);
  for (const Storage storage : {Storage::f32, Storage::bf16}) {
    KvSequence s = poisoned_pool(3, storage).sequence();
    append(s.layer(0), text, 0, 300);
    for (const Index queries : {2, 40}) {
      check_same(cached(s.layer(0).keys(), text, queries, mha::causal()),
                 uncached(text, 300, queries, mha::causal()));
    }
  }
}

TEMPLATE_TEST_CASE("a fork has all keys of all layers, and neither sees what the other adds",
                   "[cache][trap]", float, double) {
  const Text<TestType> text(500), left(500, 20), right(500, 30);
  const auto joined = [](const Text<TestType>& a, const Text<TestType>& b, Index cut) {
    Text<TestType> all = a;
    for (const auto& [to, from] : {std::pair(&all.query, &b.query), std::pair(&all.key, &b.key),
                                   std::pair(&all.value, &b.value)}) {
      for (Index h = 0; h < to->size(1); ++h) {
        for (Index i = cut; i < 500; ++i) {
          for (Index d = 0; d < to->size(3); ++d) to->view()(0, h, i, d) = from->view()(0, h, i, d);
        }
      }
    }
    return all;
  };
  KvPool pool = poisoned_pool(16, own_storage<TestType>(), 2);
  KvSequence a = pool.sequence();
  for (const Index l : {0, 1}) append(a.layer(l), text, 0, 200);
  CHECK(pool.free_pages() == 14);
  KvSequence b = a.fork();
  CHECK(pool.free_pages() == 14);  // shared
  for (const Index l : {0, 1}) append(a.layer(l), left, 200, 100);
  CHECK(pool.free_pages() == 12);  // its second page copied, and a third
  for (const Index l : {0, 1}) append(b.layer(l), right, 200, 60);
  CHECK(pool.free_pages() == 11);  // the second page is b's alone by now; and a third
  for (const Index l : {0, 1}) {
    check_same(cached(a.layer(l).keys(), joined(text, left, 200), 100, mha::causal()),
               uncached(joined(text, left, 200), 300, 100, mha::causal()));
    check_same(cached(b.layer(l).keys(), joined(text, right, 200), 60, mha::causal()),
               uncached(joined(text, right, 200), 260, 60, mha::causal()));
  }
  { const KvSequence gone = std::move(a); }
  CHECK(pool.free_pages() == 13);  // the first page is still b's
  b.clear();
  CHECK(pool.free_pages() == 16);
}

TEST_CASE("truncate takes back the last keys of every layer, and gives back their pages",
          "[cache][trap]") {
  const Text<float> text(400), other(400, 9);
  KvPool pool = poisoned_pool(8, Storage::f32, 2);
  KvSequence s = pool.sequence();
  for (const Index l : {0, 1}) append(s.layer(l), text, 0, 390);
  CHECK(s.pages() == 4);
  CHECK_FALSE(s.can_truncate(391));
  CHECK_FALSE(s.can_truncate(-1));
  s.truncate(130);
  CHECK(s.size() == 130);
  CHECK(s.layer(0).size() == 130);
  CHECK(s.pages() == 2);
  CHECK(pool.free_pages() == 6);
  check_same(cached(s.layer(1).keys(), text, 70, mha::causal()),
             uncached(text, 130, 70, mha::causal()));
  CHECK(message_of([&] { s.truncate(131); }) ==
        "mha::KvSequence::truncate: n must lie between 0 and 130, and no key of its window be "
        "forgotten, got 131");
}

TEST_CASE("a step that stopped between two layers is undone by truncate(size())", "[cache][trap]") {
  const Text<float> text(10);
  KvSequence s = pool_of(4, Storage::f32, 3).sequence();
  for (const Index l : {0, 1, 2}) append(s.layer(l), text, 0, 5);
  append(s.layer(0), text, 5, 2);
  append(s.layer(1), text, 5, 2);
  CHECK(s.size() == 5);
  CHECK(s.layer(1).size() == 7);
  s.truncate(s.size());
  for (const Index l : {0, 1, 2}) CHECK(s.layer(l).size() == 5);
}

TEMPLATE_TEST_CASE("a sequence with a window has the bits of that window's mask, forgotten or not",
                   "[cache][law][trap]", float, double) {
  const Text<TestType> text(1500);
  on_every_target([&] {
    for (const Index first_keys : {0, 3, 130}) {
      for (const Index window : {1, 40, 200, 2000}) {
        CAPTURE(first_keys, window);
        const KvPool pool = poisoned_pool(14, own_storage<TestType>());
        KvSequence s = pool.sequence({.window_keys = window, .first_keys = first_keys});
        const auto mask =
            mha::window_keys(window) |
            mha::mask_mod([=](Index, Index, Index, Index j) { return j < first_keys; });
        Index size = 0;
        // A prompt of more keys than the window, then chunks and single tokens.
        for (const Index count : {300, 1, 2, 100, 1, 600, 129, 3, 1}) {
          append(s.layer(0), text, size, count);
          size += count;
          // Before the next keys push more out of sight: what these rows see is there still.
          for (const Index queries : {Index{1}, std::min<Index>(count, 3)}) {
            check_same(cached(s.layer(0).keys(), text, queries, mha::causal()),
                       uncached(text, size, queries, mha::causal() & mask));
          }
          const auto rule =
              mha::causal() & mha::alibi() &
              mha::mask_mod([](Index, Index, Index i, Index j) { return (i ^ j) & 3; });
          check_same(cached(s.layer(0).keys(), text, 1, rule),
                     uncached(text, size, 1, rule & mask));
        }
        const Index kept = (std::min(window, size) + 127) / 128 + (first_keys + 127) / 128 + 1;
        CHECK(s.pages() <=
              kept + 1);  // beside what the last call, of one token, may have pushed out
        CHECK(pool.free_pages() == 14 - s.pages());
      }
    }
  });
}

TEST_CASE("truncate is refused where the window of the last key is gone", "[cache][trap]") {
  const Text<float> text(1000);
  KvSequence s = pool_of(8, Storage::f32).sequence({.window_keys = 100});
  append(s.layer(0), text, 0, 900);
  append(s.layer(0), text, 900, 100);
  // The last call could be taken back: a query at 900 sees keys from 801 on. Pages 0 to 5 (keys 0 to 767) are
  // gone, 6 and 7 are there.
  CHECK(s.pages() == 2);
  CHECK(s.can_truncate(1000));
  CHECK(s.can_truncate(900));
  // With 868 keys the last query, at 867, sees keys from 768 on; with 867 it would see key 767.
  CHECK(s.can_truncate(868));
  CHECK_FALSE(s.can_truncate(867));
  CHECK(s.can_truncate(0));  // sees nothing
  CHECK(message_of([&] { s.truncate(500); }) ==
        "mha::KvSequence::truncate: n must lie between 0 and 1000, and no key of its window be "
        "forgotten, got 500");
  CHECK(s.size() == 1000);
  // Queries that would see what is gone are refused, wherever they come from.
  CHECK(cached(s.layer(0).keys(), text, 133, mha::causal()).output.size(2) == 133);
  CHECK(message_of([&] { (void)cached(s.layer(0).keys(), text, 134, mha::causal()); }) ==
        "mha::attention_forward: the keys that a query at position 866 sees must not have been "
        "forgotten: window_keys is 100 of 1000 keys");
  CHECK(message_of([&] {
          (void)attention(rows_of(text.query, 0, 2), s.layer(0).keys(), mha::query_offset(3));
        }).find("a query at position 3 sees") != std::string::npos);
}

TEST_CASE("reserved pages that were forgotten are there again after truncate", "[cache][trap]") {
  const Text<float> text(900);
  KvSequence s = poisoned_pool(8, Storage::f32).sequence({.window_keys = 100});
  s.reserve(900);
  append(s.layer(0), text, 0, 890);
  append(s.layer(0), text, 890, 1);
  s.truncate(0);
  append(s.layer(0), text, 0, 200);
  check_same(cached(s.layer(0).keys(), text, 1, mha::causal()),
             uncached(text, 200, 1, mha::causal() & mha::window_keys(100)));
}

TEST_CASE("of a tree of guesses the accepted rows have the bits of plain decoding",
          "[cache][trap]") {
  // Behind 130 keys: rows 0, 1 and 3 are a path, rows 2 and 4 other guesses.
  const Text<float> text(200), other(200, 40);
  Tensor<float> key({1, kKvHeads, 5, kHeadDim}), value({1, kKvHeads, 5, kValueDim});
  const Index from[] = {126, 127, 10, 128, 11};
  for (Index row = 0; row < 5; ++row) {
    const Text<float>& source = row == 2 || row == 4 ? other : text;
    for (Index h = 0; h < kKvHeads; ++h) {
      for (Index d = 0; d < kHeadDim; ++d) {
        key.view()(0, h, row, d) = source.key.view()(0, h, from[row], d);
      }
      for (Index c = 0; c < kValueDim; ++c) {
        value.view()(0, h, row, c) = source.value.view()(0, h, from[row], c);
      }
    }
  }
  const KvPool pool = poisoned_pool(6, Storage::f32, 2);
  KvSequence s = pool.sequence();
  for (const Index l : {0, 1}) append(s.layer(l), text, 0, 126);
  for (const Index l : {0, 1}) s.layer(l).append(key, value);
  const KvSequence all = s.fork();
  CHECK(message_of([&] { s.accept({5}); }) ==
        "mha::KvSequence::accept: a row must be one of the 5 of the last call, got 5");
  CHECK(message_of([&] {
          s.accept({1, 1});
        }) == "mha::KvSequence::accept: rows must rise, got 1 behind 1");
  CHECK(s.size() == 131);
  s.accept({0, 1, 3});
  CHECK(s.size() == 129);
  for (const Index l : {0, 1}) {
    check_same(cached(s.layer(l).keys(), text, 3, mha::causal()),
               uncached(text, 129, 3, mha::causal()));
    // The fork still has all five: its third row is that of the other text.
    CHECK(all.layer(l).size() == 131);
  }
  KvSequence none = all.fork();
  none.accept({});
  CHECK(none.size() == 126);
  check_same(cached(none.layer(1).keys(), text, 3, mha::causal()),
             uncached(text, 126, 3, mha::causal()));
}

namespace {

/// ONNX's TensorScatter-24 along the tokens, from its specification: cell write_index + s of the cache becomes
/// row s of the update; in circular mode that number counts modulo the cache's length.
void tensor_scatter(Tensor<float>& cache, const TensorView<const float>& update, Index write_index,
                    bool circular) {
  for (Index h = 0; h < update.size(1); ++h) {
    for (Index s = 0; s < update.size(2); ++s) {
      Index cell = write_index + s;
      if (circular) cell %= cache.size(2);
      for (Index d = 0; d < update.size(3); ++d) cache.view()(0, h, cell, d) = update(0, h, s, d);
    }
  }
}

}  // namespace

TEST_CASE("linear TensorScatter-24: a cache that is appended to is the one that it writes",
          "[cache][onnx]") {
  // Its write_indices are the keys that are there; attention then takes so many cells, nonpad_kv_seqlen.
  const Text<float> text(300);
  Tensor<float> key({1, kKvHeads, 300, kHeadDim}), value({1, kKvHeads, 300, kValueDim});
  KvCache cache(
      {.kv_heads = kKvHeads, .head_dim = kHeadDim, .value_dim = kValueDim, .capacity = 300});
  Index size = 0;
  for (const Index count : {7, 1, 130, 1, 2, 100, 59}) {
    tensor_scatter(key, rows_of(text.key, size, count), size, false);
    tensor_scatter(value, rows_of(text.value, size, count), size, false);
    append(cache.layer(), text, size, count);
    size += count;
    const auto query = rows_of(text.query, size - count, count);
    CHECK_THAT(stacked(attention(query, cache.keys(), mha::causal())),
               HasBitsOf(stacked(attention(
                   query, key, value, mha::lengths(size) & mha::causal_offset(size - count)))));
  }
}

TEST_CASE("circular TensorScatter-24: a window of as many keys sees what its cells hold",
          "[cache][onnx]") {
  // The cells are the same keys in another order: sums of 100 terms below 1 in two orders differ by at most
  // 2 * 100 roundings of 2^-24 each, and those of the softmax's denominator likewise: 400 * 2^-24 = 2.4e-5.
  constexpr Index kCells = 100;
  const Text<float> text(420);
  Tensor<float> key({1, kKvHeads, kCells, kHeadDim}), value({1, kKvHeads, kCells, kValueDim});
  KvSequence s = pool_of(6, Storage::f32).sequence({.window_keys = kCells});
  Index size = 0;
  for (const Index count : {60, 40, 1, 1, 99, 100, 37, 1, 1, 80}) {
    tensor_scatter(key, rows_of(text.key, size, count), size, true);
    tensor_scatter(value, rows_of(text.value, size, count), size, true);
    append(s.layer(0), text, size, count);
    size += count;
    if (size < kCells) continue;  // some cells hold nothing yet
    const auto query = rows_of(text.query, size - 1, 1);
    CHECK_THAT(stacked(attention(query, s.layer(0).keys(), mha::causal())),
               mha::test::IsClose(stacked(attention(query, key, value)), 2.4e-5));
  }
  CHECK(s.pages() <= 2 + 1);
}

TEST_CASE("a cache refuses keys beyond its capacity, and a pool beyond its pages; nothing changes",
          "[cache][misuse]") {
  const Text<float> text(300);
  KvCache cache(
      {.kv_heads = kKvHeads, .head_dim = kHeadDim, .value_dim = kValueDim, .capacity = 200});
  append(cache.layer(), text, 0, 150);
  CHECK_THROWS_AS(append(cache.layer(), text, 150, 51), std::length_error);
  CHECK_THROWS_WITH(append(cache.layer(), text, 150, 51),
                    "mha::KvLayer::append: the cache holds at most 200 keys, got 150 and 51 more");
  CHECK(cache.size() == 150);
  append(cache, text, 150, 50);
  check_same(cached(cache.keys(), text, 50, mha::causal()), uncached(text, 200, 50, mha::causal()));

  KvPool pool = pool_of(4, Storage::f32);
  KvSequence a = pool.sequence(), b = pool.sequence();
  append(a.layer(0), text, 0, 200);
  append(b.layer(0), text, 0, 100);
  CHECK_THROWS_WITH(append(b.layer(0), text, 0, 300),
                    "mha::KvLayer::append: the pool has no page left: 3 are needed, 1 were free");
  CHECK(b.size() == 100);
  CHECK(pool.free_pages() == 1);
  // A fork that must copy a page, and finds none.
  append(b.layer(0), text, 100, 50);
  CHECK(pool.free_pages() == 0);
  KvSequence c = b.fork();
  CHECK_THROWS_WITH(append(c.layer(0), text, 150, 1),
                    "mha::KvLayer::append: the pool has no page left: 1 are needed, 0 were free");
  CHECK(c.size() == 150);
  check_same(cached(c.layer(0).keys(), text, 20, mha::causal()),
             uncached(text, 150, 20, mha::causal()));
  CHECK_THROWS_WITH(
      c.reserve(129 * 128),
      "mha::KvSequence::reserve: the pool has no page left: 127 are needed, 0 were free");
}

TEST_CASE("reserved pages stay the sequence's own", "[cache]") {
  const Text<float> text(300);
  KvPool pool = pool_of(8, Storage::f32);
  KvSequence s = pool.sequence();
  s.reserve(500);
  CHECK(pool.free_pages() == 4);
  append(s.layer(0), text, 0, 300);
  CHECK(pool.free_pages() == 4);
  s.clear();
  CHECK(pool.free_pages() == 4);
  // A fork shares what is written, not what is reserved.
  append(s.layer(0), text, 0, 100);
  KvSequence fork = s.fork();
  CHECK(fork.pages() == 1);
}

TEST_CASE("different sequences of a pool on different threads", "[cache][threads]") {
  const Text<float> text(700);
  KvPool pool = poisoned_pool(40, Storage::f32);
  KvSequence prompt = pool.sequence();
  append(prompt.layer(0), text, 0, 100);
  std::vector<KvSequence> sequences;
  for (int n = 0; n < 4; ++n) sequences.push_back(prompt.fork());
  std::vector<std::thread> threads;
  for (KvSequence& s : sequences) {
    threads.emplace_back([&] {
      for (Index round = 0; round < 20; ++round) {
        for (Index size = 100; size < 700; size += 60) append(s.layer(0), text, size, 60);
        s.truncate(100 + round);
        while (s.size() > 100) s.truncate(s.size() - 1);
      }
      append(s.layer(0), text, 100, 500);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const KvSequence& s : sequences) {
    check_same(cached(s.layer(0).keys(), text, 5, mha::causal()),
               uncached(text, 600, 5, mha::causal()));
  }
}

TEST_CASE("a window goes by where rules place the queries, and by its own sequence in a batch",
          "[cache][trap]") {
  const Text<float> text(300);
  KvSequence s = pool_of(4, Storage::f32).sequence({.window_keys = 4});
  append(s.layer(0), text, 0, 20);
  const auto query = rows_of(text.query, 0, 1);
  const auto key = rows_of(text.key, 0, 20), value = rows_of(text.value, 0, 20);
  const auto window = mha::window(3, -1);
  CHECK_THAT(stacked(attention(query, s.layer(0).keys(), mha::causal_offset(2))),
             HasBitsOf(stacked(attention(query, key, value, mha::causal_offset(2) & window))));
  CHECK_THAT(stacked(attention(query, s.layer(0).keys(), mha::query_offset(2) & mha::causal())),
             HasBitsOf(stacked(attention(query, key, value, mha::causal_offset(2) & window))));
  // Sequence 1000 of a larger problem.
  CHECK_THAT(
      stacked(attention(query, s.layer(0).keys(), mha::causal(), {.box = {.first_batch = 1000}})),
      HasBitsOf(stacked(attention(query, s.layer(0).keys(), mha::causal()))));
  for (Index size = 20; size < 300; size += 20) append(s.layer(0), text, size, 20);
  CHECK(message_of([&] {
          (void)attention(query, s.layer(0).keys(), mha::causal_offset(2));
        }).find("a query at position 2 sees must not have been forgotten") != std::string::npos);
}

TEST_CASE("no tokens are no call that could be taken back", "[cache][trap]") {
  const Text<float> text(20);
  KvSequence s = pool_of(2, Storage::f32).sequence();
  append(s.layer(0), text, 0, 5);
  append(s.layer(0), text, 5, 3);
  append(s.layer(0), text, 8, 0);
  s.accept({});
  CHECK(s.size() == 5);
}

TEST_CASE("a copy of a shared page comes from the sequence's own reserve first", "[cache]") {
  const Text<float> text(300);
  const KvPool pool = pool_of(2, Storage::f32);
  KvSequence s = pool.sequence();
  s.reserve(256);
  append(s.layer(0), text, 0, 10);
  const KvSequence fork = s.fork();
  append(s.layer(0), text, 10, 1);
  CHECK(s.size() == 11);
  CHECK(fork.size() == 10);
  check_same(cached(s.layer(0).keys(), text, 2, mha::causal()),
             uncached(text, 11, 2, mha::causal()));
}

TEST_CASE("rows are accepted across pages that a fork shares", "[cache][trap]") {
  // Rows 100 to 199 of 200 become keys 0 to 99: page 0 is copied, page 1 is read all the while.
  const Text<float> text(200);
  const KvPool pool = poisoned_pool(5, Storage::f32);
  KvSequence s = pool.sequence(), expected = pool.sequence();
  append(s.layer(0), text, 0, 200);
  const KvSequence fork = s.fork();
  std::vector<Index> rows;
  for (Index row = 100; row < 200; ++row) rows.push_back(row);
  s.accept(rows);
  append(expected.layer(0), text, 100, 100);
  const auto query = rows_of(text.query, 0, 3);
  check_same(attention_forward(query, s.layer(0).keys(), mha::causal(), {.need_lse = true}),
             attention_forward(query, expected.layer(0).keys(), mha::causal(), {.need_lse = true}));
  check_same(cached(fork.layer(0).keys(), text, 3, mha::causal()),
             uncached(text, 200, 3, mha::causal()));
}

TEST_CASE("a reserve that a fork reads is not written over", "[cache][trap]") {
  const Text<float> text(500);
  const KvPool pool = poisoned_pool(10, Storage::f32);
  KvSequence s = pool.sequence();
  s.reserve(500);
  append(s.layer(0), text, 0, 412);
  const KvSequence fork = s.fork();
  s.truncate(16);
  append(s.layer(0), text, 16, 3);
  append(s.layer(0), text, 19, 300);
  check_same(cached(fork.layer(0).keys(), text, 3, mha::causal()),
             uncached(text, 412, 3, mha::causal()));
  check_same(cached(s.layer(0).keys(), text, 3, mha::causal()),
             uncached(text, 319, 3, mha::causal()));
}

TEST_CASE("attention_workspace_bytes() over a cache is what such calls need", "[cache]") {
  mha::ThreadPool threads(2);
  for (const Storage storage : {Storage::f32, Storage::bf16}) {
    const Text<float> text(1500);
    KvSequence s = pool_of(12, storage).sequence();
    Index size = 0;
    for (const Index count : {Index{1}, Index{130}, Index{1369}}) {
      append(s.layer(0), text, size, count);
      size += count;
      for (const Index rows : {Index{1}, Index{3}, std::min<Index>(size, 300)}) {
        for (const auto& executor : {mha::Executor(), mha::Executor(threads)}) {
          CAPTURE(size, rows, executor.concurrency());
          const auto query = rows_of(text.query, 0, rows);
          mha::AttentionOptions options{.executor = executor};
          mha::Workspace workspace(attention_workspace_bytes(query, s.layer(0).keys(), options));
          const std::size_t bytes = workspace.size();
          options.workspace = &workspace;
          Tensor<float> output({1, query.size(1), rows, text.value.size(3)});
          attention_into(output, query, s.layer(0).keys(), mha::causal() & mha::softcap(2),
                         options);
          CHECK(workspace.size() == bytes);
        }
      }
    }
  }
  const KvCache cache({.kv_heads = 2, .head_dim = 4, .capacity = 8});
  CHECK(message_of([&] {
          (void)attention_workspace_bytes(Tensor<float>({1, 3, 1, 4}), cache.keys());
        }).find("mha::attention_workspace_bytes: the heads of key must divide") == 0);
}

TEST_CASE("a sequence that has been moved from says so", "[cache][misuse]") {
  KvSequence s = pool_of(2, Storage::f32).sequence();
  const KvSequence t = std::move(s);
  CHECK(t.size() == 0);
  CHECK(message_of([&] { (void)s.size(); }) ==  // NOLINT: that is what is tested
        "mha::KvSequence: it has been moved from");
  CHECK(message_of([&] { (void)s.layer(0); }) == "mha::KvSequence: it has been moved from");
  CHECK(message_of([&] { (void)s.fork(); }) == "mha::KvSequence: it has been moved from");
}

TEST_CASE("calls over a cache refuse what does not fit", "[cache][misuse]") {
  const Text<float> text(20);
  KvSequence s = pool_of(4, Storage::f32, 2).sequence();
  append(s.layer(0), text, 0, 20);
  const auto query = [](Index batch, Index heads, Index dim) {
    return random_tensor<float>({batch, heads, 3, dim}, 1);
  };
  const auto call = [&](const Tensor<float>& q, const mha::AttentionOptions& options = {}) {
    return message_of([&] { (void)attention(q, s.layer(0).keys(), mha::causal(), options); });
  };
  CHECK(call(query(2, 4, kHeadDim)).find("key must have query's batch, got 1 and 2") !=
        std::string::npos);
  CHECK(call(query(1, 3, kHeadDim))
            .find("the heads of key must divide those of query, got 2 and 3") != std::string::npos);
  CHECK(call(query(1, 4, 8)).find("key.cols() must equal query.cols() (head_dim), got 10 and 8") !=
        std::string::npos);
  CHECK(call(query(1, 4, kHeadDim), {.past_len = 21})
            .find("past_len must lie between 0 and kv_len, got 21 and 20") != std::string::npos);
  CHECK(call(query(1, 4, kHeadDim), {.box = {.first_query = 3}}) ==
        "mha::attention: box must not cut the queries or keys of a cache");
  Tensor<float> output({1, 4, 3, kHeadDim});
  CHECK(message_of([&] {
          attention_into(output, query(1, 4, kHeadDim), s.layer(0).keys(), mha::all());
        }).find("output must have size 9 along") != std::string::npos);
  CHECK(message_of([&] { (void)s.layer(2); }) ==
        "mha::KvSequence::layer: layer must lie between 0 and 1, got 2");
  CHECK(message_of([&] { s.layer(0).append(text.key, text.key); }) ==
        "mha::KvLayer::append: value must be [1, 2, 20, 9], got [1, 2, 20, 10]");
  CHECK(message_of([&] { s.layer(0).append(text.query, text.value); }) ==
        "mha::KvLayer::append: key must be [1, 2, 20, 10], got [1, 4, 20, 10]");
  CHECK(s.layer(0).size() == 20);
  KvSequence wide = pool_of(1, Storage::f64).sequence();
  CHECK(message_of([&] {
          (void)attention(query(1, 4, kHeadDim), wide.layer(0).keys(), mha::all());
        }) == "mha::attention: a cache of Storage::f64 is for double");
  CHECK(message_of([&] { (void)pool_of(0, Storage::f32); }) ==
        "mha::KvPool: pages must lie between 1 and 1073741824, got 0");
  CHECK(message_of([&] { (void)pool_of(1, static_cast<Storage>(7)); }) ==
        "mha::KvPool: storage must be one of Storage's, got 7");
  CHECK(message_of([&] {
          (void)pool_of(Index{1} << 30, Storage::f64, Index{1} << 20);
        }).find("the pages must fit 2^60 bytes") != std::string::npos);
  CHECK(message_of([&] { (void)pool_of(1, Storage::f32).sequence({.first_keys = 4}); }) ==
        "mha::KvPool::sequence: first_keys must come with window_keys, got 4 and 0");
  CHECK(message_of([&] { (void)pool_of(1, Storage::f32).sequence({.window_keys = -1}); }) ==
        "mha::KvPool::sequence: window_keys must lie between 0 and 1073741824, got -1");
  CHECK(message_of([&] { KvCache({.kv_heads = 1, .head_dim = 4}); }) ==
        "mha::KvCache: capacity must lie between 1 and 1073741824, got 0");
}
