// SPDX-License-Identifier: MIT
//
// What fixes the bits of gradients: as test_law_of_bits.cpp for the backward pass. Sums over queries run through
// blocks of 64 (32 of double), chunks of 1024 and a binary tree over chunks, sums over the heads of a group
// through a tree over the head.
#include <mha/mha.hpp>

#include <bit>
#include <vector>

#include "support/every_target.hpp"
#include "support/matchers.hpp"
#include "support/slots.hpp"

using mha::Index;
using mha::Tensor;
using mha::test::equal_bits;
using mha::test::HasBitsOf;
using mha::test::IsClose;
using mha::test::on_every_target;
using mha::test::random_tensor;
using mha::test::Slots;
using mha::test::stacked;

namespace {

template <class T>
struct Inputs {
  Tensor<T> query, key, value, grad_output;
  Inputs(Index query_len, Index kv_len, Index num_heads = 2, Index kv_heads = 1)
      : query(random_tensor<T>({1, num_heads, query_len, 10}, 1, 2)),
        key(random_tensor<T>({1, kv_heads, kv_len, 10}, 2, 3)),
        value(random_tensor<T>({1, kv_heads, kv_len, 9}, 3)),
        grad_output(random_tensor<T>({1, num_heads, query_len, 9}, 4)) {}

  mha::AttentionGradients<T> operator()(const auto& rule,
                                        const mha::AttentionOptions& options = {}) const {
    mha::AttentionOptions with_lse = options;
    with_lse.need_lse = true;
    return attention_backward(grad_output, query, key, value,
                              attention_forward(query, key, value, rule, with_lse), rule, options);
  }
};

template <class T>
void check_same(const mha::AttentionGradients<T>& actual,
                const mha::AttentionGradients<T>& expected) {
  CHECK_THAT(stacked(actual.query), HasBitsOf(stacked(expected.query)));
  CHECK_THAT(stacked(actual.key), HasBitsOf(stacked(expected.key)));
  CHECK_THAT(stacked(actual.value), HasBitsOf(stacked(expected.value)));
}

template <class To, class From>
Tensor<To> converted(const Tensor<From>& from) {
  Tensor<To> to({from.size(0), from.size(1), from.size(2), from.size(3)});
  for (Index h = 0; h < from.size(1); ++h) {
    for (Index i = 0; i < from.size(2); ++i) {
      for (Index d = 0; d < from.size(3); ++d) to(0, h, i, d) = static_cast<To>(from(0, h, i, d));
    }
  }
  return to;
}

/// Sums of the rows of a tensor's head 0, channel c, as they are said to be.
template <class T>
struct Sums {
  const Tensor<T>& rows;
  Index c;
  static constexpr Index kBlock = sizeof(T) == 4 ? 64 : 32;

  T chunk(Index first, Index end) const {
    T sum(0);
    for (Index from = first; from < end; from += kBlock) {
      T block(0);
      for (Index i = from; i < std::min(end, from + kBlock); ++i) block += rows(0, 0, i, c);
      sum += block;
    }
    return sum;
  }
  T node(Index level, Index n) const {
    const Index first = (n << level) * 1024;
    const Index end = std::min(rows.size(2), ((n + 1) << level) * 1024);
    if (level == 0) return chunk(first, end);
    const T sum = node(level - 1, 2 * n);
    const Index middle = ((2 * n + 1) << (level - 1)) * 1024;
    return middle < rows.size(2) ? T(sum + node(level - 1, 2 * n + 1)) : sum;
  }
  T all() const {
    const Index chunks = (rows.size(2) + 1023) / 1024;
    return node(static_cast<Index>(std::bit_width(static_cast<unsigned>(chunks - 1))), 0);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("ranges that jump from query to query have the gradients of the same mask",
                   "[law][gradient][mask]", float, double) {
  on_every_target([] {
    const Inputs<TestType> inputs(70, 300);
    for (const Index rows : {1, 3, 8, 16, 20}) {
      CAPTURE(rows);
      const Slots slots(rows, 10);
      check_same(inputs(slots), inputs(mha::mask_mod([&](Index, Index, Index i, Index j) {
                   const mha::KeyRange own = slots.of(i, 300);
                   return j >= own.begin && j < own.end;
                 })));
    }
  });
}

TEMPLATE_TEST_CASE(
    "a query that is not finite changes no bit of gradients of keys that it does not see",
    "[law][gradient][poison]", float, double) {
  on_every_target([] {
    const Inputs<TestType> clean(64, 64, 1);
    Inputs<TestType> poisoned(64, 64, 1);
    for (Index d = 0; d < 10; ++d) poisoned.query(0, 0, 5, d) = mha::test::nan_of<TestType>();
    poisoned.grad_output(0, 0, 5, 3) = mha::test::nan_of<TestType>();
    const auto expected = clean(mha::causal());
    const auto actual = poisoned(mha::causal());
    for (Index j = 6; j < 64; ++j) {
      for (Index d = 0; d < 10; ++d) {
        REQUIRE(equal_bits(actual.key(0, 0, j, d), expected.key(0, 0, j, d)));
      }
      for (Index c = 0; c < 9; ++c) {
        REQUIRE(equal_bits(actual.value(0, 0, j, c), expected.value(0, 0, j, c)));
      }
    }
  });
}

TEST_CASE("a backward pass without heads or sequences does nothing", "[law][gradient]") {
  for (const auto& sizes : std::vector<std::array<Index, 4>>{{1, 0, 3, 4}, {0, 2, 3, 4}}) {
    const Tensor<float> x(sizes);
    const auto forward = attention_forward(x, x, x, mha::causal(), {.need_lse = true});
    const auto gradients = attention_backward(x, x, x, x, forward, mha::causal());
    CHECK(gradients.query.size(1) == sizes[1]);
  }
}

TEMPLATE_TEST_CASE(
    "sums over queries run through blocks, chunks of 1024, and a binary tree over chunks",
    "[law][gradient]", float, double) {
  // With one key all weights are 1: grad_value is the sum of the rows of grad_output.
  on_every_target([] {
    for (const Index query_len : {1, 31, 64, 65, 100, 1024, 1025, 2048, 3000, 5000, 7500}) {
      CAPTURE(query_len);
      const Inputs<TestType> inputs(query_len, 1, 1);
      const auto gradients = inputs(mha::All{});
      for (Index c = 0; c < 9; ++c) {
        const TestType expected = Sums<TestType>{inputs.grad_output, c}.all();
        REQUIRE(equal_bits(gradients.value(0, 0, 0, c), expected));
      }
    }
  });
}

TEMPLATE_TEST_CASE("gradients of keys that several heads share are summed by a tree over the head",
                   "[law][gradient]", float, double) {
  on_every_target([] {
    for (const Index group : {1, 2, 3, 5, 8}) {
      CAPTURE(group);
      const Inputs<TestType> shared(70, 150, group, 1);
      Inputs<TestType> apart(70, 150, group, group);
      apart.query = shared.query;
      apart.grad_output = shared.grad_output;
      for (Index h = 0; h < group; ++h) {
        apart.key.matrix(0, h) = shared.key.matrix(0, 0);
        apart.value.matrix(0, h) = shared.value.matrix(0, 0);
      }
      const auto actual = shared(mha::causal_offset(80));
      const auto each = apart(mha::causal_offset(80));
      CHECK_THAT(stacked(actual.query), HasBitsOf(stacked(each.query)));
      for (Index j = 0; j < 150; ++j) {
        for (Index c = 0; c < 9; ++c) {
          std::vector<TestType> level;
          for (Index h = 0; h < group; ++h) level.push_back(each.value(0, h, j, c));
          while (level.size() > 1) {
            std::vector<TestType> next;
            for (std::size_t k = 0; k < level.size(); k += 2) {
              next.push_back(k + 1 < level.size() ? level[k] + level[k + 1] : level[k]);
            }
            level = next;
          }
          REQUIRE(equal_bits(actual.value(0, 0, j, c), level[0]));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("a mask changes no bit of the gradients of what it allows, however it is said",
                   "[law][gradient][mask]", float, double) {
  on_every_target([] {
    for (const auto& [query_len, kv_len] :
         std::vector<std::pair<Index, Index>>{{3, 70}, {100, 300}, {1100, 1300}}) {
      CAPTURE(query_len, kv_len);
      const Inputs<TestType> inputs(query_len, kv_len);
      Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic> mask(query_len, kv_len);
      for (Index i = 0; i < query_len; ++i) {
        for (Index j = 0; j < kv_len; ++j) mask(i, j) = j <= i + 20 && j >= i - 500;
      }
      const auto expected = inputs(mha::causal_offset(20) & mha::window(520, -1));
      check_same(inputs(mha::keep(mask)), expected);
      check_same(inputs(mha::blocks(mask, 1, 1)), expected);
      check_same(inputs(mha::mask_mod([&](Index, Index, Index i, Index j) { return mask(i, j); })),
                 expected);
    }
  });
}

TEMPLATE_TEST_CASE(
    "chunks that nobody sees change no bit of the gradients, whether they are skipped or not",
    "[law][gradient]", float, double) {
  on_every_target([] {
    const Inputs<TestType> inputs(2500, 3500, 1);
    for (const unsigned seen :
         {0xFFFu, 0x001u, 0x842u, 0x3A5u, 0xC30u}) {  // pairs of chunks, 3 x 4
      CAPTURE(seen);
      const auto sees = [seen](Index i, Index j) {
        return (seen >> static_cast<unsigned>(i / 1024 * 4 + j / 1024) & 1u) != 0;
      };
      Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic> blocks(3, 4);
      for (Index q = 0; q < 3; ++q) {
        for (Index k = 0; k < 4; ++k) blocks(q, k) = sees(q * 1024, k * 1024);
      }
      check_same(inputs(mha::blocks(blocks, 1024, 1024)),
                 inputs(mha::mask_mod([&](Index, Index, Index i, Index j) { return sees(i, j); })));
    }
  });
}

TEMPLATE_TEST_CASE("gradients over several chunks are those of the formula", "[law][gradient]",
                   float, double) {
  const auto largest = [](const Tensor<long double>& x) {
    return static_cast<double>(stacked(x).cwiseAbs().maxCoeff());
  };
  for (const auto& [query_len, kv_len] :
       std::vector<std::pair<Index, Index>>{{1, 2100}, {70, 1030}, {1030, 60}, {2100, 1100}}) {
    CAPTURE(query_len, kv_len);
    const Inputs<TestType> inputs(query_len, kv_len, 1);
    Inputs<long double> wide(query_len, kv_len, 1);
    wide.query = converted<long double>(inputs.query);
    wide.key = converted<long double>(inputs.key);
    wide.value = converted<long double>(inputs.value);
    wide.grad_output = converted<long double>(inputs.grad_output);
    const auto rule = mha::window(900, 900);
    const auto expected = wide(rule);
    on_every_target([&] {
      const auto actual = inputs(rule);
      // Scores reach 30; their errors and those of sums over up to 1800 pairs in pieces of 128.
      const double tolerance = 200 * mha::test::eps_of<TestType>();
      CHECK_THAT(stacked(actual.query),
                 IsClose(stacked(expected.query), tolerance * (1 + largest(expected.query))));
      CHECK_THAT(stacked(actual.key),
                 IsClose(stacked(expected.key), tolerance * (1 + largest(expected.key))));
      CHECK_THAT(stacked(actual.value),
                 IsClose(stacked(expected.value), tolerance * (1 + largest(expected.value))));
    });
  }
}

TEMPLATE_TEST_CASE(
    "gradients have the same bits for any number of threads, and in a workspace that was used",
    "[law][gradient][executor]", float, double) {
  on_every_target([] {
    const Inputs<TestType> inputs(1100, 1200, 4, 2);
    const auto expected = inputs(mha::causal());
    for (const Index threads : {2, 3, 7, 16}) {
      CAPTURE(threads);
      mha::ThreadPool pool(threads);
      mha::Workspace workspace;
      check_same(inputs(mha::causal(), {.executor = pool, .workspace = &workspace}), expected);
      check_same(inputs(mha::causal(), {.executor = pool, .workspace = &workspace}), expected);
    }
  });
}
