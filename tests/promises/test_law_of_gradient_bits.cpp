// SPDX-License-Identifier: MIT
//
// What fixes the bits of gradients: as test_law_of_bits.cpp for the backward pass. Sums over queries run through
// blocks of 64 (32 of double), chunks of 1024 and a binary tree over chunks, sums over the heads of a group
// through a tree over the head; those of a projection's weights and biases through blocks of 128 rows.
#include <mha/mha.hpp>

#include <bit>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <vector>

#include "support/counting_pool.hpp"
#include "support/every_target.hpp"
#include "support/matchers.hpp"
#include "support/slots.hpp"

using mha::Index;
using mha::Tensor;
using mha::test::CountingPool;
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
  Inputs(Index query_len, Index kv_len, Index num_heads = 2, Index kv_heads = 1, Index batch = 1)
      : query(random_tensor<T>({batch, num_heads, query_len, 10}, 1, 2)),
        key(random_tensor<T>({batch, kv_heads, kv_len, 10}, 2, 3)),
        value(random_tensor<T>({batch, kv_heads, kv_len, 9}, 3)),
        grad_output(random_tensor<T>({batch, num_heads, query_len, 9}, 4)) {}

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

/// A sum as it is said to be: blocks, chunks of 1024, and a binary tree over these.
template <class T, class Term>
struct Sums {
  Index count;
  Index block;
  Term term;

  T chunk(Index first, Index end) const {
    T sum(0);
    for (Index from = first; from < end; from += block) {
      T part(0);
      for (Index i = from; i < std::min(end, from + block); ++i) part += term(i);
      sum += part;
    }
    return sum;
  }
  T node(Index level, Index n) const {
    const Index first = (n << level) * 1024;
    const Index end = std::min(count, ((n + 1) << level) * 1024);
    if (level == 0) return chunk(first, end);
    const T sum = node(level - 1, 2 * n);
    const Index middle = ((2 * n + 1) << (level - 1)) * 1024;
    return middle < count ? T(sum + node(level - 1, 2 * n + 1)) : sum;
  }
  T all() const {
    const Index chunks = (count + 1023) / 1024;
    return node(static_cast<Index>(std::bit_width(static_cast<unsigned>(chunks - 1))), 0);
  }
};
template <class T, class Term>
T sum_in_order(Index count, Index block, const Term& term) {
  return Sums<T, Term>{count, block, term}.all();
}

/// Adds up the gradients of all scores, and does not say that it shares anything.
struct SumOfGradients : mha::Rule {
  static constexpr bool kModifiesScore = true;
  static constexpr bool kHasScoreGradient = true;
  static constexpr bool kCollectsGradient = true;
  double* sum;
  explicit SumOfGradients(double& to) : sum(&to) {}
  template <class T>
  T score(const T& s, const mha::Extent& /*extent*/, Index /*b*/, Index /*h*/, Index /*i*/,
          Index /*j*/) const {
    return s;
  }
  template <class T>
  T score_gradient(const T& /*s*/, const T& grad, const mha::Extent& /*extent*/, Index /*b*/,
                   Index /*h*/, Index /*i*/, Index j) const {
    *sum += static_cast<double>(grad) * static_cast<double>(j);
    return grad;
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
        const auto expected =
            sum_in_order<TestType>(query_len, sizeof(TestType) == 4 ? 64 : 32,
                                   [&](Index i) { return inputs.grad_output(0, 0, i, c); });
        REQUIRE(equal_bits(gradients.value(0, 0, 0, c), expected));
      }
    }
  });
}

TEMPLATE_TEST_CASE(
    "gradients of weights and biases are summed over blocks of 128 rows, chunks and a tree, and "
    "then "
    "added",
    "[law][gradient][projection]", float, double) {
  // Where a channel of x is 1, its row of grad_W is the sum of the rows of grad_y, as grad_b is.
  using Matrix = mha::Matrix<TestType>;
  on_every_target([] {
    for (const Index rows : {1, 127, 128, 129, 1024, 1025, 2100, 3500, 5000}) {
      CAPTURE(rows);
      mha::Projection<TestType> linear;
      linear.resize(120, 70, true);
      linear.weight = mha::test::random_matrix<TestType>(120, 70, 5);
      Matrix x = mha::test::random_matrix<TestType>(rows, 120, 1);
      x.col(0).setOnes();
      x.col(119).setOnes();
      const Matrix grad_y = mha::test::random_matrix<TestType>(rows, 70, 2);
      const auto run = [&](const Matrix& grad,
                           const typename mha::Projection<TestType>::Options& options) {
        auto gradient = linear;
        gradient.weight = mha::test::random_matrix<TestType>(120, 70, 3);
        gradient.bias = mha::test::random_matrix<TestType>(1, 70, 4);
        (void)linear.apply_backward(gradient, grad, x, options);
        return gradient;
      };
      const auto gradient = run(grad_y, {});
      const Matrix held = mha::test::random_matrix<TestType>(120, 70, 3);
      const Matrix held_bias = mha::test::random_matrix<TestType>(1, 70, 4);
      for (Index c = 0; c < 70; ++c) {
        const auto sum = sum_in_order<TestType>(rows, 128, [&](Index i) { return grad_y(i, c); });
        REQUIRE(equal_bits(gradient.weight(0, c), TestType(held(0, c) + sum)));
        REQUIRE(equal_bits(gradient.weight(119, c), TestType(held(119, c) + sum)));
        REQUIRE(equal_bits(gradient.bias(c), TestType(held_bias(0, c) + sum)));
      }
      for (const Index threads : {2, 3, 16}) {
        mha::ThreadPool pool(threads);
        const auto other = run(grad_y, {.executor = pool});
        CHECK_THAT(other.weight, HasBitsOf(gradient.weight));
        CHECK_THAT(other.bias, HasBitsOf(gradient.bias));
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

TEMPLATE_TEST_CASE("one head is shared out among threads, its gradients have the same bits",
                   "[law][gradient][executor]", float, double) {
  const auto keep_shape = [](const TestType& s, Index, Index, Index, Index) {
    return TestType(s * s / 8);
  };
  const auto derivative = [](const TestType& s, Index, Index, Index, Index) {
    return TestType(s / 4);
  };
  const auto check = [](const Inputs<TestType>& inputs, const auto& rule) {
    const auto expected = inputs(rule);
    for (const Index threads : {2, 3, 7, 16}) {
      CAPTURE(threads);
      mha::ThreadPool pool(threads);
      mha::Workspace workspace;
      check_same(inputs(rule, {.executor = pool, .workspace = &workspace}), expected);
    }
  };
  on_every_target([&] {
    const Inputs<TestType> inputs(700, 1100, 1);
    check(inputs, mha::causal_lower_right());
    check(inputs, mha::window(100, 30) & mha::sinks(TestType(0.5)));
    check(inputs, mha::softcap(TestType(2)) & mha::score_mod(keep_shape, derivative) &
                      mha::dropout(0.2, 5));
    check(inputs, mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; }));
  });
  check(Inputs<TestType>(2600, 2300, 1), mha::causal());
  check(Inputs<TestType>(70, 3000, 4, 1), mha::All{});  // a group of heads
}

TEST_CASE("a backward pass of one head has work for every thread", "[gradient][executor]") {
  const Inputs<float> inputs(512, 2048, 1);
  CountingPool pool(16);
  const auto forward =
      attention_forward(inputs.query, inputs.key, inputs.value, mha::All{}, {.need_lse = true});
  (void)attention_backward(inputs.grad_output, inputs.query, inputs.key, inputs.value, forward,
                           mha::All{}, {.executor = pool});
  CHECK(pool.most_workers() == 16);
}

TEMPLATE_TEST_CASE("gradients that rules collect have the same bits for any number of threads",
                   "[law][gradient][executor]", float, double, long double) {
  const Index batch = 3;
  const Index heads = 4;
  const Index query_len = std::is_same_v<TestType, long double> ? 20 : 130;
  const Index kv_len = std::is_same_v<TestType, long double> ? 30 : 300;
  const Inputs<TestType> inputs(query_len, kv_len, heads, 2, batch);
  for (Index axes = 0; axes < 16; ++axes) {
    CAPTURE(axes);
    const auto size = [&](Index axis, Index whole) { return (axes >> axis) % 2 == 0 ? 1 : whole; };
    const auto bias = random_tensor<TestType>(
        {size(0, batch), size(1, heads), size(2, query_len), size(3, kv_len)}, 5);
    const auto gradient = [&](const mha::AttentionOptions& options) {
      auto sums = random_tensor<TestType>(bias.sizes(), 6);
      (void)inputs(mha::bias(bias, sums) & mha::causal_lower_right(), options);
      return sums;
    };
    const auto expected = gradient({});
    for (const Index threads : {2, 3, 7, 16}) {
      CAPTURE(threads);
      mha::ThreadPool pool(threads);
      CHECK_THAT(stacked(gradient({.executor = pool})), HasBitsOf(stacked(expected)));
    }
  }
  for (const Index count : {Index{1}, heads}) {
    const mha::Vector<TestType> numbers =
        mha::Vector<TestType>::LinSpaced(count, TestType(0.125), TestType(0.5));
    const auto gradient = [&](const mha::AttentionOptions& options) {
      mha::Matrix<TestType> sums = mha::Matrix<TestType>::Constant(count, 2, TestType(0.25));
      auto slopes = sums.col(0);
      auto sinks = sums.col(1);
      (void)inputs(mha::alibi(numbers, slopes) & mha::sinks(numbers, sinks), options);
      return sums;
    };
    const auto expected = gradient({});
    for (const Index threads : {2, 3, 7, 16}) {
      mha::ThreadPool pool(threads);
      CHECK_THAT(gradient({.executor = pool}), HasBitsOf(expected));
    }
  }
}

TEST_CASE("what adds to the same number of a gradient is one thread's, all else is shared out",
          "[gradient][executor]") {
  const Index batch = 3;
  const Index heads = 4;
  const Inputs<float> inputs(260, 600, heads, 2, batch);
  const auto tasks = [&](const auto& rule) {
    const auto forward =
        attention_forward(inputs.query, inputs.key, inputs.value, rule, {.need_lse = true});
    CountingPool pool(16);
    (void)attention_backward(inputs.grad_output, inputs.query, inputs.key, inputs.value, forward,
                             rule, {.executor = pool});
    return pool.most_workers();
  };
  const auto of_bias = [&](const std::array<Index, 4>& sizes) {
    const auto bias = random_tensor<float>(sizes, 5);
    auto sums = random_tensor<float>(sizes, 6);
    return tasks(mha::bias(bias, sums));
  };
  CHECK(of_bias({batch, heads, 260, 1}) == 6);  // sequences x heads of keys
  CHECK(of_bias({1, heads, 260, 1}) == 2);      // heads of keys
  CHECK(of_bias({1, 1, 260, 1}) == 1);          // one task needs no pool
  CHECK(of_bias({1, 1, 260, 600}) == 16);       // parts of the keys, blocks of queries
  CHECK(of_bias({batch, heads, 260, 600}) == 16);
  double sum = 0;
  CHECK(tasks(SumOfGradients(sum)) == 1);
  CHECK(sum != 0);
}

TEMPLATE_TEST_CASE(
    "a gradient whose view overlaps itself, as of relative positions, is one thread's",
    "[gradient][executor][regression]", float, double) {
  const Index query_len = 128;
  const Index kv_len = 1024;
  const Inputs<TestType> inputs(query_len, kv_len, 2, 2);
  const mha::Vector<TestType> numbers =
      mha::test::random_matrix<TestType>(query_len + kv_len, 1, 5).col(0);
  const auto gradient = [&](const mha::AttentionOptions& options) {
    mha::Vector<TestType> sums = mha::Vector<TestType>::Zero(query_len + kv_len);
    const auto relative = [&](auto* first) {  // entry (i, j) lies at query_len - i + j
      return mha::TensorView<std::remove_pointer_t<decltype(first)>>{
          first + query_len, {1, 1, query_len, kv_len}, {0, 0, -1, 1}};
    };
    auto view = relative(sums.data());
    const auto bias = relative(numbers.data());
    (void)inputs(mha::bias(bias, view), options);
    return sums;
  };
  const auto expected = gradient({});
  mha::ThreadPool pool(4);
  for (int run = 0; run < 5; ++run) {
    CHECK_THAT(gradient({.executor = pool}), HasBitsOf(expected));
  }
}

namespace {

/// As SumOfGradients, of each key; it says so, but has no type that does the same without collecting.
struct SumsOfKeys : SumOfGradients {
  using SumOfGradients::SumOfGradients;
  template <class T>
  T score_gradient(const T& /*s*/, const T& grad, const mha::Extent& /*extent*/, Index /*b*/,
                   Index /*h*/, Index /*i*/, Index j) const {
    sum[j] += static_cast<double>(grad);
    return grad;
  }
  mha::GradientSharing gradient_sharing() const { return {true, true, false}; }
};

}  // namespace

TEST_CASE("a rule that collects is asked once about every pair, for any number of threads",
          "[gradient][executor][regression]") {
  const Inputs<float> inputs(128, 1024, 2, 2);
  const auto sums = [&](const mha::AttentionOptions& options) {
    std::vector<double> all(1024);
    (void)inputs(SumsOfKeys(all[0]), options);
    return all;
  };
  CountingPool pool(16);
  CHECK(sums({.executor = pool}) == sums({}));
}

TEST_CASE("gradients of weights read nothing that has not been written",
          "[gradient][projection][regression]") {
  mha::Projection<float> linear;
  linear.resize(300, 70, false);
  linear.weight.setOnes();
  auto gradient = linear.zero_gradient();
  const Eigen::MatrixXf x = mha::test::random_matrix<float>(2100, 300, 1);
  const Eigen::MatrixXf grad = mha::test::random_matrix<float>(2100, 70, 2);
  mha::Workspace workspace;
  (void)linear.apply_backward(gradient, grad, x, {.workspace = &workspace});
  constexpr std::uint32_t kSignallingNan = 0x7fa00000;
  for (std::size_t k = 0; k + 4 <= workspace.size(); k += 4) {
    std::memcpy(workspace.data() + k, &kSignallingNan, 4);
  }
  std::feclearexcept(FE_ALL_EXCEPT);
  (void)linear.apply_backward(gradient, grad, x, {.workspace = &workspace});
  CHECK(std::fetestexcept(FE_INVALID) == 0);
}
