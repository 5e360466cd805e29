// SPDX-License-Identifier: MIT
//
// What fixes the bits of a row: its query, its own keys and values at their places in the sequence, and nothing
// else. A mask that is said differently changes no bit of what it allows, keys that nobody sees may as well not
// be there, and the order of the sums over keys is the one that is written down here.
#include <mha/mha.hpp>

#include <bit>
#include <vector>

#include "support/every_target.hpp"
#include "support/matchers.hpp"
#include "support/slots.hpp"

using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::equal_bits;
using mha::test::HasBitsOf;
using mha::test::on_every_target;
using mha::test::random_tensor;
using mha::test::Slots;
using mha::test::stacked;

namespace {

template <class T>
struct Inputs {
  Tensor<T> query;
  Tensor<T> key;
  Tensor<T> value;
  Inputs(Index query_len, Index kv_len)
      : query(random_tensor<T>({1, 2, query_len, 10}, 1, 2)),
        key(random_tensor<T>({1, 1, kv_len, 10}, 2, 3)),
        value(random_tensor<T>({1, 1, kv_len, 9}, 3)) {}

  mha::AttentionResult<T> operator()(const auto& rule,
                                     const mha::AttentionOptions& options = {}) const {
    mha::AttentionOptions all = options;
    all.need_lse = true;
    all.need_weights = true;
    return attention_forward(query, key, value, rule, all);
  }
};

template <class T>
void check_same(const mha::AttentionResult<T>& actual, const mha::AttentionResult<T>& expected) {
  CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
  CHECK_THAT(stacked(actual.weights), HasBitsOf(stacked(expected.weights)));
}

using Mask = Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic>;

/// The same mask, said in every way there is.
template <class T, class Rule>
void check_ways(const Inputs<T>& inputs, const Rule& rule, const Mask& mask) {
  const auto expected = inputs(rule);
  const Index query_len = mask.rows(), kv_len = mask.cols();
  CAPTURE(query_len, kv_len);
  Matrix<T> bias = Matrix<T>::Zero(query_len, kv_len);
  for (Index i = 0; i < query_len; ++i) {
    for (Index j = 0; j < kv_len; ++j) {
      if (!mask(i, j)) bias(i, j) = mha::test::minus_infinity_of<T>();
    }
  }
  const auto allowed = [&](Index, Index, Index i, Index j) { return mask(i, j); };
  check_same(inputs(mha::keep(mask)), expected);
  check_same(inputs(mha::ignore(!mask)), expected);
  check_same(inputs(mha::bias(bias)), expected);
  check_same(inputs(mha::mask_mod(allowed)), expected);
  check_same(inputs(mha::score_mod([&](T s, Index, Index, Index i, Index j) {
               return mask(i, j) ? s : mha::test::minus_infinity_of<T>();
             })),
             expected);
  check_same(inputs(mha::blocks(mask, 1, 1)), expected);
  check_same(inputs(mha::keep(mask) | mha::keep(mask)), expected);
  check_same(inputs(rule & mha::keep(mask)), expected);
}

template <class F>
Mask drawn(Index query_len, Index kv_len, const F& allowed) {
  Mask mask(query_len, kv_len);
  for (Index i = 0; i < query_len; ++i) {
    for (Index j = 0; j < kv_len; ++j) mask(i, j) = allowed(i, j);
  }
  return mask;
}

/// acc, row_sum of equal keys: all weights are 1 and all corrections 1, so that a state is plain sums.
template <class T>
struct PlainSums {
  std::vector<T> acc;
  T row_sum = T(0);

  void add(const PlainSums& other) {
    for (std::size_t c = 0; c < acc.size(); ++c) acc[c] += other.acc[c];
    row_sum += other.row_sum;
  }
};

template <class T>
PlainSums<T> of_tile(const Tensor<T>& value, Index from, Index to) {
  PlainSums<T> sums{std::vector<T>(static_cast<std::size_t>(value.size(3)), T(0))};
  for (Index j = from; j < to; ++j) {
    for (Index c = 0; c < value.size(3); ++c) {
      sums.acc[static_cast<std::size_t>(c)] += value(0, 0, j, c);
    }
    sums.row_sum += T(1);
  }
  return sums;
}
template <class T>
PlainSums<T> of_chunk(const Tensor<T>& value, Index from, Index to) {
  PlainSums<T> sums = of_tile(value, from, std::min(to, from + 128));
  for (Index j = from + 128; j < to; j += 128) {
    sums.add(of_tile(value, j, std::min(to, j + 128)));
  }
  return sums;
}
/// Node (level, n) of the tree.
template <class T>
PlainSums<T> of_node(const Tensor<T>& value, Index level, Index n) {
  const Index kv_len = value.size(2);
  const Index from = (n << level) * 1024;
  const Index to = std::min(kv_len, ((n + 1) << level) * 1024);
  if (level == 0) return of_chunk(value, from, to);
  PlainSums<T> sums = of_node(value, level - 1, 2 * n);
  const Index middle = ((2 * n + 1) << (level - 1)) * 1024;
  if (middle < kv_len) sums.add(of_node(value, level - 1, 2 * n + 1));
  return sums;
}

}  // namespace

TEMPLATE_TEST_CASE("ranges that jump from query to query have the bits of the same mask",
                   "[law][mask]", float, double) {
  on_every_target([] {
    for (const Index query_len : {4, 64, 70}) {
      const Inputs<TestType> inputs(query_len, 300);
      for (const Index rows : {1, 3, 8, 16, 20}) {
        for (const Index keys : {1, 5, 10}) {
          CAPTURE(query_len, rows, keys);
          const Slots slots(rows, keys);
          const auto expected = inputs(mha::mask_mod([&](Index, Index, Index i, Index j) {
            const mha::KeyRange own = slots.of(i, 300);
            return j >= own.begin && j < own.end;
          }));
          check_same(inputs(slots), expected);
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("a mask changes no bit of what it allows, however it is said", "[law][mask]",
                   float, double) {
  on_every_target([] {
    // Queries as lanes, keys as lanes; within a tile, over several chunks of 1024 keys.
    for (const Index query_len : {3, 70}) {
      for (const Index kv_len : {70, 300, 2500}) {
        const Inputs<TestType> inputs(query_len, kv_len);
        check_ways(inputs, mha::causal(),
                   drawn(query_len, kv_len, [](Index i, Index j) { return j <= i; }));
        check_ways(inputs, mha::causal_offset(kv_len - query_len),
                   drawn(query_len, kv_len,
                         [&](Index i, Index j) { return j <= i + kv_len - query_len; }));
        check_ways(inputs, mha::lengths(kv_len - 30),
                   drawn(query_len, kv_len, [&](Index, Index j) { return j < kv_len - 30; }));
        const Index past = kv_len / 2;
        check_ways(inputs, mha::window(40, 20) & mha::query_offset(past),
                   drawn(query_len, kv_len, [&](Index i, Index j) {
                     return j >= i + past - 40 && j <= i + past + 20;
                   }));
      }
    }
  });
}

TEMPLATE_TEST_CASE("a mask beside score modifiers changes no bit of what it allows", "[law][mask]",
                   float, double) {
  on_every_target([] {
    for (const Index query_len : {3, 70}) {
      for (const Index kv_len : {70, 300, 2500}) {
        CAPTURE(query_len, kv_len);
        const Inputs<TestType> inputs(query_len, kv_len);
        const Mask mask = drawn(query_len, kv_len, [](Index i, Index j) { return j <= i; });
        const Matrix<TestType> bias = mha::test::random_matrix<TestType>(query_len, kv_len, 5);
        const auto same = [&](const auto& modifier) {
          const auto expected = inputs(modifier & mha::causal());
          check_same(inputs(modifier & mha::keep(mask)), expected);
          check_same(inputs(modifier & mha::mask_mod([&](Index, Index, Index i, Index j) {
                              return mask(i, j);
                            })),
                     expected);
          check_same(inputs(mha::keep(mask) & mha::causal() & modifier), expected);
        };
        same(mha::alibi(0.3));
        same(mha::bias(bias));
        same(mha::softcap(2));
        same(mha::scale(3));
        same(mha::softcap(2) & mha::alibi(0.3) & mha::bias(bias) & mha::scale(0.7));
        same(mha::score_mod([](TestType s, Index, Index, Index i, Index j) {
          return s * TestType(0.7) + TestType(0.0123) * static_cast<TestType>(i - j);
        }));
      }
    }
  });
}

TEMPLATE_TEST_CASE("keys that nobody sees may as well not be there", "[law][mask]", float, double) {
  on_every_target([] {
    for (const Index query_len : {2, 40}) {
      const Inputs<TestType> all(query_len, 3000);
      for (const Index length : {1, 100, 128, 1024, 1500, 2999}) {
        CAPTURE(query_len, length);
        Inputs<TestType> fewer(query_len, length);
        for (Index j = 0; j < length; ++j) {
          for (Index d = 0; d < 10; ++d) fewer.key(0, 0, j, d) = all.key(0, 0, j, d);
          for (Index c = 0; c < 9; ++c) fewer.value(0, 0, j, c) = all.value(0, 0, j, c);
        }
        const auto expected = fewer(mha::All{});
        const auto actual = all(mha::lengths(length));
        CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
        CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
      }
    }
  });
}

TEMPLATE_TEST_CASE("a chunk that is left out has the bits of one that is computed for nothing",
                   "[law][tree]", float, double) {
  on_every_target([] {
    // Of the chunks 0 to 5, every choice of those that are seen; said by a mask that knows tiles, which are
    // skipped, and by one that is asked about each pair.
    for (const Index query_len : {2, 9}) {
      const Inputs<TestType> inputs(query_len, 6 * 1024 - 100);
      for (unsigned seen = 1; seen < 64; seen += query_len == 2 ? 1 : 5) {
        CAPTURE(query_len, seen);
        const auto sees = [&](Index j) {
          return (seen >> static_cast<unsigned>(j / 1024) & 1u) != 0;
        };
        const Mask by_blocks = drawn(1, 6, [&](Index, Index n) { return sees(n * 1024); });
        check_same(inputs(mha::blocks(by_blocks, query_len, 1024)),
                   inputs(mha::mask_mod([&](Index, Index, Index, Index j) { return sees(j); })));
      }
    }
  });
}

TEMPLATE_TEST_CASE(
    "sums over keys run through tiles of 128, chunks of 1024, and a binary tree over chunks",
    "[law][tree]", float, double) {
  on_every_target([] {
    for (const Index query_len : {1, 6}) {
      for (const Index kv_len :
           {1, 127, 128, 129, 300, 1024, 1025, 2048, 2500, 3000, 4096, 5000, 7168, 9000}) {
        CAPTURE(query_len, kv_len);
        const Tensor<TestType> query = random_tensor<TestType>({1, 1, query_len, 4}, 1);
        const Tensor<TestType> key({1, 1, kv_len, 4});  // zeros
        const Tensor<TestType> value = random_tensor<TestType>({1, 1, kv_len, 5}, 2);
        const Index chunks = (kv_len + 1023) / 1024;
        const auto level = static_cast<Index>(std::bit_width(static_cast<unsigned>(chunks - 1)));
        const PlainSums<TestType> sums = of_node(value, level, 0);
        REQUIRE(sums.row_sum == static_cast<TestType>(kv_len));
        const Tensor<TestType> output = attention(query, key, value);
        for (Index i = 0; i < query_len; ++i) {
          for (Index c = 0; c < 5; ++c) {
            const TestType expected = sums.acc[static_cast<std::size_t>(c)] *
                                      (TestType(1) / static_cast<TestType>(kv_len));
            REQUIRE(equal_bits(output(0, 0, i, c), expected));
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("a row that sees one key gives its value exactly", "[law]", float, double) {
  on_every_target([] {
    for (const Index query_len : {1, 40}) {
      const Inputs<TestType> inputs(query_len, 2100);
      for (const Index j : {0, 127, 128, 1500, 2099}) {
        CAPTURE(query_len, j);
        const auto result =
            inputs(mha::mask_mod([j](Index, Index, Index, Index k) { return k == j; }));
        for (Index i = 0; i < query_len; ++i) {
          for (Index c = 0; c < 9; ++c) {
            REQUIRE(equal_bits(result.output(0, 1, i, c), inputs.value(0, 0, j, c)));
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE(
    "weights above 2^-63.5 (double: 2^-511.5) of the largest are not 0, those below e^-8 of that "
    "are",
    "[law][weights]", float, double) {
  const double edge = (sizeof(TestType) == 4 ? 63.5 : 511.5) * 0.6931471805599453;
  on_every_target([&] {
    // The largest score first, in the middle and last: the reference stays behind by up to 8.
    for (const Index query_len : {1, 20}) {
      for (const double behind : {0.0, 3.0, 7.9, 9.0}) {
        Tensor<TestType> query({1, 1, query_len, 1});
        for (Index i = 0; i < query_len; ++i) query(0, 0, i, 0) = TestType(1);
        Tensor<TestType> key({1, 1, 300, 1});
        Tensor<TestType> value({1, 1, 300, 1});
        for (Index j = 0; j < 300; ++j) {
          key(0, 0, j, 0) = static_cast<TestType>(j % 2 == 0 ? -edge + 0.01 : -edge - 8.01);
          value(0, 0, j, 0) = TestType(1);
        }
        key(0, 0, 10, 0) = static_cast<TestType>(-behind);
        key(0, 0, 200, 0) = TestType(0);
        const auto result =
            attention_forward(query, key, value, mha::scale(1), {.need_weights = true});
        for (Index j = 0; j < 300; ++j) {
          if (j == 10 || j == 200) continue;
          CAPTURE(query_len, behind, j);
          REQUIRE((result.weights(0, 0, query_len - 1, j) != TestType(0)) == (j % 2 == 0));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("weights from 2^-51.9 (double: 2^-499.9) of the largest on count in the output",
                   "[law][weights]", float, double) {
  // The reference stays behind by up to 8, and what came before the largest score is then shrunk at once.
  const double far = sizeof(TestType) == 4 ? 35.9 : 346.4;
  on_every_target([&] {
    for (const Index query_len : {1, 20}) {
      for (const Index last : {150, 2000}) {  // within a chunk, and beyond
        Tensor<TestType> query({1, 1, query_len, 1});
        for (Index i = 0; i < query_len; ++i) query(0, 0, i, 0) = TestType(1);
        Tensor<TestType> key({1, 1, last + 1, 1});
        Tensor<TestType> value({1, 1, last + 1, 1});
        for (Index j = 0; j <= last; ++j) key(0, 0, j, 0) = TestType(-1000);
        key(0, 0, 0, 0) = TestType(0);
        key(0, 0, 128, 0) = TestType(7.9);
        key(0, 0, last, 0) = static_cast<TestType>(7.9 + far);
        value(0, 0, 128, 0) = TestType(1e20);
        const auto output = attention(query, key, value, mha::scale(1));
        const double expected = 1e20 * std::exp(-far);
        CAPTURE(query_len, last);
        REQUIRE(std::abs(static_cast<double>(output(0, 0, query_len - 1, 0)) / expected - 1) <
                1e-4);
      }
    }
  });
}
