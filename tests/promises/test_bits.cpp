// SPDX-License-Identifier: MIT
//
// The promise of bits: on one instruction set, a query's output, lse and weights have the same bits
// for any number of threads, beside any others in a block or a batch, in one prefill or several,
// with heads grouped or repeated, whatever the layout of its inputs and wherever it is computed. All
// under every kind of rule. Built with -O2, where compilers fuse multiply-adds as they like.
#include <mha/attention_scores.hpp>

#include "support/counting_pool.hpp"
#include "support/matchers.hpp"
#include "support/targets.hpp"

using mha::Index;
using mha::Lanes;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::available_targets;
using mha::test::CountingPool;
using mha::test::equal_bits;
using mha::test::HasBitsOf;
using mha::test::random_tensor;
using mha::test::rows_of;
using mha::test::stacked;

namespace {

// Queries `first`, ..., first + count - 1 of a longer run, in which they come after `past` cached keys
// and one key per query follows.
struct Block {
  Index first;
  Index count;
};

template <class T>
struct Sizes {
  Index batch = 1;
  Index num_heads = 2;
  Index kv_heads = 1;
  Index past = 0;
  Index query_len = 1;
  Index head_dim = 6;
  Index value_dim = 5;
  Index kv_len() const { return past + query_len; }
};

/// A run of queries with everything that its rules refer to.
template <class T>
struct Run {
  Sizes<T> sizes;
  Tensor<T> query;
  Tensor<T> key;
  Tensor<T> value;
  Matrix<T> bias;
  mha::Vector<T> logits;

  explicit Run(const Sizes<T>& s, std::uint64_t seed = 1)
      : sizes(s),
        query(random_tensor<T>({s.batch, s.num_heads, s.query_len, s.head_dim}, seed, 2)),
        key(random_tensor<T>({s.batch, s.kv_heads, s.kv_len(), s.head_dim}, seed + 1, 3)),
        value(random_tensor<T>({s.batch, s.kv_heads, s.kv_len(), s.value_dim}, seed + 2)),
        bias(mha::test::random_matrix<T>(s.query_len, s.kv_len(), seed + 3)),
        logits(mha::Vector<T>::LinSpaced(s.num_heads, T(-1), T(3))) {}

  Block all() const { return {0, sizes.query_len}; }
  // Keys that a block sees when it is computed: those up to its own.
  Index kv_len(const Block& block) const { return sizes.past + block.first + block.count; }
  TensorView<const T> bias_of(const Block& block) const {
    return {bias.data() + block.first * bias.cols(),
            {1, 1, block.count, kv_len(block)},
            {0, 0, bias.cols(), 1}};
  }
};

template <class T>
mha::AttentionResult<T> attend(const TensorView<const T>& query, const TensorView<const T>& key,
                               const TensorView<const T>& value, const auto& rule,
                               mha::AttentionOptions options) {
  options.need_lse = true;
  return attention_forward(query, key, value, rule, options);
}

/// A block of a run, with the keys up to its own.
template <class T, class MakeRule>
mha::AttentionResult<T> attend(const Run<T>& run, const Block& block, const MakeRule& rule,
                               mha::AttentionOptions options = {}) {
  options.past_len = run.sizes.past + block.first;
  return attend<T>(rows_of(run.query, block.first, block.count),
                   rows_of(run.key, 0, run.kv_len(block)), rows_of(run.value, 0, run.kv_len(block)),
                   rule(run, block), options);
}

// Rules of a block: each takes a run and a block, so that rows and keys are counted as in the run.
struct CausalRule {
  static constexpr const char* kName = "causal";
  auto operator()(const auto& /*run*/, const Block& /*block*/) const { return mha::causal(); }
};
struct WindowRule {
  static constexpr const char* kName = "window";
  auto operator()(const auto& /*run*/, const Block& /*block*/) const {
    return mha::causal() & mha::window(150, 0);
  }
};
struct AlibiRule {
  static constexpr const char* kName = "alibi";
  auto operator()(const auto& /*run*/, const Block& /*block*/) const {
    return mha::causal() & mha::alibi(0.3);
  }
};
struct MaskModRule {
  static constexpr const char* kName = "mask_mod";
  auto operator()(const auto& /*run*/, const Block& block) const {
    return mha::causal() & mha::mask_mod([block](Index, Index h, Index i, Index j) {
             return (i + block.first + 2 * j + h) % 5 != 0;
           });
  }
};
struct BiasRule {
  static constexpr const char* kName = "softcap and bias";
  auto operator()(const auto& run, const Block& block) const {
    return mha::causal() & mha::softcap(2) & mha::bias(run.bias_of(block));
  }
};
struct SinksRule {
  static constexpr const char* kName = "sinks";
  auto operator()(const auto& run, const Block& /*block*/) const {
    return mha::causal() & mha::sinks(run.logits);
  }
};
/// Products and sums that a compiler would like to fuse, or to compute outside of a loop.
struct ScoreModRule {
  static constexpr const char* kName = "score_mod";
  template <class T>
  auto operator()(const Run<T>& /*run*/, const Block& block) const {
    return mha::causal() & mha::score_mod([block](T s, Index, Index, Index i, Index j) {
             const T row = static_cast<T>(i + block.first);
             return s + T(0.0123) * static_cast<T>(j) - T(0.0456) * row;
           });
  }
};
struct LanesRule {
  static constexpr const char* kName = "score_mod of lanes";
  template <class T>
  auto operator()(const Run<T>& /*run*/, const Block& block) const {
    const int first = static_cast<int>(block.first);
    return mha::causal() &
           mha::score_mod([first](Lanes<T> s, Index, Index, Lanes<int> i, Lanes<int> j) {
             const Lanes<T> modified = s * T(0.7) + T(0.0123) * Lanes<T>(j);
             return Lanes<T>(modified - T(0.0456) * Lanes<T>(i + first));
           });
  }
};

/// f(rule) for every rule, on every instruction set.
template <class F>
void for_every_rule(const F& f) {
  for (const mha::kernels::Target t : available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    const auto with = [&](const auto& rule) {
      INFO("under " << rule.kName);
      f(rule);
    };
    with(CausalRule{});
    with(WindowRule{});
    with(AlibiRule{});
    with(MaskModRule{});
    with(BiasRule{});
    with(SinksRule{});
    with(ScoreModRule{});
    with(LanesRule{});
  }
}

template <class T>
void check_same(const mha::AttentionResult<T>& actual, const mha::AttentionResult<T>& expected) {
  CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
}

/// The block's rows equal those rows of the whole run.
template <class T>
void check_rows(const mha::AttentionResult<T>& block, const mha::AttentionResult<T>& whole,
                Index first) {
  const auto rows = [&](const Tensor<T>& tensor) {
    return stacked(rows_of(tensor, first, block.output.size(2)));
  };
  CHECK_THAT(stacked(block.output), HasBitsOf(rows(whole.output)));
  CHECK_THAT(stacked(block.lse), HasBitsOf(rows(whole.lse)));
}

}  // namespace

TEMPLATE_TEST_CASE("any number of threads gives the same bits", "[bits][executor]", float, double) {
  // Work for 16 threads, at a million multiply-adds each; in blocks of queries and of few.
  const Run<TestType> blocks({.batch = 2,
                              .num_heads = 4,
                              .kv_heads = 2,
                              .past = 500,
                              .query_len = 130,
                              .head_dim = 13,
                              .value_dim = 14});
  const Run<TestType> few({.batch = 4,
                           .num_heads = 8,
                           .kv_heads = 4,
                           .past = 1200,
                           .query_len = 2,
                           .head_dim = 128,
                           .value_dim = 128});
  for_every_rule([&](const auto& rule) {
    for (const Run<TestType>* run : {&blocks, &few}) {
      const auto serial = attend(*run, run->all(), rule);
      for (const Index threads : {1, 2, 3, 7, 16}) {
        CAPTURE(threads, run->sizes.query_len);
        CountingPool pool(threads);
        check_same(attend(*run, run->all(), rule, {.executor = pool}), serial);
        CHECK(pool.most_workers() == std::min<Index>(threads, 16));
      }
    }
  });
}

TEMPLATE_TEST_CASE("threads that share the keys of a few long rows change no bit",
                   "[bits][executor][long]", float, double) {
  // One key head, one or two tiles of queries: work for several threads only if each takes some of
  // the three and four chunks of 1024 keys. The window ends within one of them.
  const Run<TestType> few(
      {.num_heads = 2, .past = 3300, .query_len = 3, .head_dim = 130, .value_dim = 129});
  const Run<TestType> blocks(
      {.num_heads = 1, .past = 2500, .query_len = 40, .head_dim = 20, .value_dim = 19});
  for_every_rule([&](const auto& rule) {
    for (const Run<TestType>* run : {&few, &blocks}) {
      const auto serial = attend(*run, run->all(), rule);
      for (const Index threads : {2, 3, 16}) {
        CAPTURE(threads, run->sizes.query_len);
        CountingPool pool(threads);
        mha::Workspace workspace;
        check_same(attend(*run, run->all(), rule, {.executor = pool, .workspace = &workspace}),
                   serial);
        CHECK(pool.most_workers() >= 2);
        // Memory that holds other numbers now.
        check_same(attend(*run, run->all(), rule, {.executor = pool, .workspace = &workspace}),
                   serial);
      }
    }
  });
}

TEMPLATE_TEST_CASE("a query has the bits of its row in a block of any size", "[bits][few]", float,
                   double) {
  // Keys reach over two chunks of 1024; 70 queries are two tiles of float and three of double.
  const Run<TestType> run({.past = 970, .query_len = 70});
  for_every_rule([&](const auto& rule) {
    const auto whole = attend(run, run.all(), rule);
    for (const Index count : {1, 2, 3, 4, 5, 7, 15, 16, 17, 32, 33, 64, 65, 69}) {
      CAPTURE(count);
      for (Index first = 0; first < 70; first += count) {
        const Block block{first, std::min(count, 70 - first)};
        check_rows(attend(run, block, rule), whole, first);
      }
    }
  });
}

TEMPLATE_TEST_CASE("prefill in chunks has the bits of prefill in one go", "[bits][past_len]", float,
                   double) {
  const Run<TestType> run({.past = 0, .query_len = 300});
  for_every_rule([&](const auto& rule) {
    const auto whole = attend(run, run.all(), rule);
    for (const Index count : {1, 64, 100, 128, 200, 299}) {
      CAPTURE(count);
      for (Index first = 0; first < 300; first += count) {
        const Block block{first, std::min(count, 300 - first)};
        check_rows(attend(run, block, rule), whole, first);
      }
    }
  });
}

TEMPLATE_TEST_CASE("a query that sees all keys has the same bits in any block", "[bits][few]",
                   float, double) {
  const Run<TestType> run({.past = 1100, .query_len = 70});
  const auto check = [&](const auto& rule) {
    const auto whole =
        attend<TestType>(run.query.view(), run.key.view(), run.value.view(), rule(Index(0)), {});
    for (const Index count : {1, 3, 4, 5, 16, 33, 64}) {
      CAPTURE(count);
      for (Index first = 0; first < 70; first += count) {
        const auto block = attend<TestType>(rows_of(run.query, first, std::min(count, 70 - first)),
                                            run.key.view(), run.value.view(), rule(first), {});
        check_rows(block, whole, first);
      }
    }
  };
  for (const mha::kernels::Target t : available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    check([](Index) { return mha::All{}; });
    check([](Index first) { return mha::query_offset(first) & mha::window(20, 150); });
    check([](Index first) { return mha::query_offset(1020 + first) & mha::window(200, 60); });
    check([](Index) { return mha::lengths(1050) & mha::softcap(1.5); });
  }
}

TEMPLATE_TEST_CASE("a sequence has the same bits in any batch", "[bits][batch]", float, double) {
  for (const Index query_len : {1, 3, 40}) {
    const Run<TestType> run({.batch = 5, .past = 260, .query_len = query_len});
    const std::vector<Index> lengths{300, 1, 0, 129, 250};
    const auto sequences = [&](const std::vector<Index>& order, const auto& tensor) {
      Tensor<TestType> result(
          {static_cast<Index>(order.size()), tensor.size(1), tensor.size(2), tensor.size(3)});
      for (std::size_t b = 0; b < order.size(); ++b) {
        for (Index h = 0; h < tensor.size(1); ++h) {
          result.matrix(static_cast<Index>(b), h) = tensor.matrix(order[b], h);
        }
      }
      return result;
    };
    for_every_rule([&](const auto& rule) {
      const auto attend_in = [&](const std::vector<Index>& order) {
        std::vector<Index> own;
        own.reserve(order.size());
        for (const Index b : order)
          own.push_back(std::min(lengths[static_cast<std::size_t>(b)], run.sizes.kv_len()));
        return attend<TestType>(
            sequences(order, run.query).view(), sequences(order, run.key).view(),
            sequences(order, run.value).view(), rule(run, run.all()) & mha::lengths(own),
            {.past_len = run.sizes.past});
      };
      const auto whole = attend_in({0, 1, 2, 3, 4});
      for (const std::vector<Index>& order :
           {std::vector<Index>{0}, std::vector<Index>{1}, std::vector<Index>{2},
            std::vector<Index>{3}, std::vector<Index>{4, 2}, std::vector<Index>{3, 0, 4},
            std::vector<Index>{4, 3, 2, 1, 0}}) {
        CAPTURE(query_len, order);
        const auto part = attend_in(order);
        CHECK_THAT(stacked(part.output), HasBitsOf(stacked(sequences(order, whole.output))));
        CHECK_THAT(stacked(part.lse), HasBitsOf(stacked(sequences(order, whole.lse))));
      }
    });
  }
}

TEMPLATE_TEST_CASE("heads that share a key have the bits of heads with copies of it",
                   "[bits][grouped]", float, double) {
  for (const Index query_len : {1, 2, 3, 4, 5, 33}) {
    for (const Index kv_heads : {1, 2, 4}) {
      CAPTURE(query_len, kv_heads);
      const Run<TestType> run(
          {.batch = 2, .num_heads = 12, .kv_heads = kv_heads, .past = 140, .query_len = query_len});
      const auto repeated = [&](const Tensor<TestType>& tensor) {
        Tensor<TestType> result({2, 12, tensor.size(2), tensor.size(3)});
        for (Index b = 0; b < 2; ++b) {
          for (Index h = 0; h < 12; ++h) {
            result.matrix(b, h) = tensor.matrix(b, h / (12 / kv_heads));
          }
        }
        return result;
      };
      for_every_rule([&](const auto& rule) {
        const mha::AttentionOptions options{.past_len = run.sizes.past};
        check_same(attend<TestType>(run.query.view(), repeated(run.key).view(),
                                    repeated(run.value).view(), rule(run, run.all()), options),
                   attend(run, run.all(), rule));
      });
    }
  }
}

TEMPLATE_TEST_CASE("asking for weights or lse changes no bit", "[bits][weights]", float, double) {
  for (const Index query_len : {1, 3, 70}) {
    const Run<TestType> run({.past = 1000, .query_len = query_len});
    for_every_rule([&](const auto& rule) {
      CAPTURE(query_len);
      const auto with_lse = attend(run, run.all(), rule);
      const auto with_weights = attend(run, run.all(), rule, {.need_weights = true});
      check_same(with_weights, with_lse);
      const auto alone = attention(run.query, run.key, run.value, rule(run, run.all()),
                                   {.past_len = run.sizes.past});
      CHECK_THAT(stacked(alone), HasBitsOf(stacked(with_lse.output)));
    });
  }
}

TEMPLATE_TEST_CASE("weights have the same bits in any block", "[bits][weights]", float, double) {
  const Run<TestType> run({.past = 1000, .query_len = 40});
  for_every_rule([&](const auto& rule) {
    const mha::AttentionOptions options{.need_weights = true};
    const auto whole = attend(run, run.all(), rule, options);
    for (Index first = 0; first < 40; ++first) {
      const auto one = attend(run, {first, 1}, rule, options);
      for (Index h = 0; h < 2; ++h) {
        const Matrix<TestType> expected =
            whole.weights.matrix(0, h).row(first).leftCols(one.weights.size(3));
        REQUIRE_THAT(Matrix<TestType>(one.weights.matrix(0, h)), HasBitsOf(expected));
      }
    }
  });
}

TEMPLATE_TEST_CASE("a workspace, new or used before, changes no bit", "[bits][workspace]", float,
                   double) {
  for_every_rule([&](const auto& rule) {
    mha::Workspace workspace;
    for (const Index query_len : {70, 1, 5}) {
      for (const Index past : {1000, 3}) {
        CAPTURE(query_len, past);
        const Run<TestType> run({.past = past, .query_len = query_len});
        const auto without = attend(run, run.all(), rule);
        check_same(attend(run, run.all(), rule, {.workspace = &workspace}), without);
        // What an earlier call left behind is not read.
        std::fill_n(workspace.data(), workspace.size(), std::byte{0xFF});
        check_same(attend(run, run.all(), rule, {.workspace = &workspace}), without);
      }
    }
  });
}

namespace {

/// A copy of a tensor in memory of another order, with gaps.
template <class T>
struct Rearranged {
  Tensor<T> memory;
  TensorView<T> view;

  Rearranged(const Tensor<T>& tensor, const std::array<std::size_t, 4>& order, bool backwards)
      : memory({1, 1, 2,
                (tensor.size(0) + 1) * (tensor.size(1) + 1) * (tensor.size(2) + 1) *
                    (tensor.size(3) + 1)}),
        view(memory.data(), tensor.sizes()) {
    Index stride = 2;  // between neighbours, too
    for (const std::size_t axis : order) {
      view.strides[axis] = stride;
      stride *= tensor.size(axis) + 1;
    }
    if (order[0] == 3 || order[0] == 2) {
      for (Index& s : view.strides) s /= 2;
    }
    if (backwards) {
      view.data += (tensor.size(2) - 1) * view.strides[2];
      view.strides[2] = -view.strides[2];
    }
    for (Index b = 0; b < tensor.size(0); ++b) {
      for (Index h = 0; h < tensor.size(1); ++h) {
        for (Index i = 0; i < tensor.size(2); ++i) {
          for (Index d = 0; d < tensor.size(3); ++d) view(b, h, i, d) = tensor(b, h, i, d);
        }
      }
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("inputs and outputs in any order of memory give the same bits",
                   "[bits][strides]", float, double) {
  for (const Index query_len : {1, 4, 37}) {
    for (const Index head_dim : {5, 16}) {
      const Run<TestType> run({.batch = 2,
                               .past = 150,
                               .query_len = query_len,
                               .head_dim = head_dim,
                               .value_dim = head_dim});
      for_every_rule([&](const auto& rule) {
        const auto expected = attend(run, run.all(), rule);
        using Order = std::array<std::size_t, 4>;
        // Rows with gaps, [batch, token, head, channel], columns, channels and tokens both apart.
        for (const Order& order : {Order{3, 2, 1, 0}, Order{3, 1, 2, 0}, Order{2, 3, 1, 0},
                                   Order{0, 3, 1, 2}, Order{1, 2, 3, 0}}) {
          for (const bool backwards : {false, true}) {
            CAPTURE(query_len, head_dim, order, backwards);
            const Rearranged<TestType> query(run.query, order, backwards);
            const Rearranged<TestType> key(run.key, order, backwards);
            const Rearranged<TestType> value(run.value, order, backwards);
            Rearranged<TestType> output(expected.output, order, backwards);
            for (Index k = 0; k < output.memory.size(3); ++k) output.memory(0, 0, 0, k) = -77;
            attention_into(output.view, query.view, key.view, value.view, rule(run, run.all()),
                           {.past_len = run.sizes.past});
            CHECK_THAT(stacked(output.view), HasBitsOf(stacked(expected.output)));
          }
        }
      });
    }
  }
}

TEMPLATE_TEST_CASE("16-bit numbers have the bits of their floats, rounded once", "[bits][half]",
                   Eigen::half, Eigen::bfloat16) {
  for (const Index query_len : {1, 3, 70}) {
    CAPTURE(query_len);
    const auto half = [&](Index tokens, std::uint64_t seed) {
      return random_tensor<TestType>({1, 2, tokens, 9}, seed, 2);
    };
    const auto wide = [](const Tensor<TestType>& tensor) {
      Tensor<float> result(tensor.sizes());
      for (Index h = 0; h < 2; ++h) {
        result.matrix(0, h) = mha::test::cast_to<float>(tensor.matrix(0, h));
      }
      return result;
    };
    const auto query = half(query_len, 1);
    const auto key = half(1100, 2);
    const auto value = half(1100, 3);
    for (const mha::kernels::Target t : available_targets()) {
      INFO("on " << mha::kernels::name(t));
      const mha::test::UsingTarget use(t);
      const auto rule = mha::causal_lower_right() & mha::alibi();
      const mha::AttentionOptions everything{.need_weights = true, .need_lse = true};
      const auto result = attention_forward(query, key, value, rule, everything);
      const auto expected =
          attention_forward(wide(query), wide(key), wide(value), rule, everything);
      CHECK_THAT(stacked(result.output),
                 HasBitsOf(mha::test::cast_to<TestType>(stacked(expected.output))));
      CHECK_THAT(stacked(result.weights), HasBitsOf(stacked(expected.weights)));
      CHECK_THAT(stacked(result.lse), HasBitsOf(stacked(expected.lse)));
    }
  }
}

TEMPLATE_TEST_CASE("NaN and infinity that a query may not see change none of its bits",
                   "[bits][poison]", float, double) {
  for (const Index query_len : {1, 3, 70}) {
    const Run<TestType> run({.past = 200, .query_len = query_len});
    for_every_rule([&](const auto& rule) {
      const auto clean = attend(run, run.all(), rule);
      const auto scores =
          attention_scores(run.query, run.key, rule(run, run.all()), {.past_len = run.sizes.past});
      for (const Index j : {0, 1, 60, 127, 130, 201, 230, 269}) {
        if (j >= run.sizes.kv_len()) continue;
        for (const TestType poison :
             {mha::test::nan_of<TestType>(), mha::test::infinity_of<TestType>(),
              mha::test::minus_infinity_of<TestType>()}) {
          CAPTURE(query_len, j, poison);
          Run<TestType> poisoned = run;
          poisoned.key.matrix(0, 0).row(j).setConstant(poison);
          poisoned.value.matrix(0, 0).row(j).setConstant(poison);
          const auto result = attend(poisoned, run.all(), rule);
          for (Index h = 0; h < 2; ++h) {
            for (Index i = 0; i < query_len; ++i) {
              if (!mha::detail::is_minus_infinity(scores(0, h, i, j))) continue;
              REQUIRE(equal_bits(result.lse(0, h, i, 0), clean.lse(0, h, i, 0)));
              for (Index c = 0; c < run.sizes.value_dim; ++c) {
                REQUIRE(equal_bits(result.output(0, h, i, c), clean.output(0, h, i, c)));
              }
            }
          }
        }
      }
    });
  }
}

TEMPLATE_TEST_CASE("an infinite value changes its own channel alone, in the same way in any block",
                   "[bits][poison][regression]", float, double) {
  for (const Index past : {0, 1000}) {
    const Run<TestType> run({.past = past, .query_len = 70});
    Run<TestType> touched = run;
    for (const Index j : {past + 3, past + 9, past + 40}) {
      touched.value(0, 0, j, 1) = mha::test::infinity_of<TestType>();
    }
    touched.value(0, 0, past + 20, 3) = mha::test::nan_of<TestType>();
    for_every_rule([&](const auto& rule) {
      const auto clean = attend(run, run.all(), rule);
      const auto whole = attend(touched, run.all(), rule);
      CHECK_THAT(stacked(whole.lse), HasBitsOf(stacked(clean.lse)));
      for (const Index c : {0, 2, 4}) {
        CAPTURE(past, c);
        CHECK_THAT(Matrix<TestType>(stacked(whole.output).col(c)),
                   HasBitsOf(Matrix<TestType>(stacked(clean.output).col(c))));
      }
      for (const Index count : {1, 4, 20}) {
        for (Index first = 0; first < 70; first += count) {
          const Block block{first, std::min(count, 70 - first)};
          const auto part = attend(touched, block, rule);
          for (Index h = 0; h < 2; ++h) {
            for (Index i = 0; i < block.count; ++i) {
              for (Index c = 0; c < 5; ++c) {
                const TestType a = part.output(0, h, i, c);
                const TestType b = whole.output(0, h, first + i, c);
                CAPTURE(past, count, first, h, i, c, a, b);
                // Which of several NaN a sum gives is nobody's promise.
                REQUIRE((equal_bits(a, b) || (mha::test::is_nan(a) && mha::test::is_nan(b))));
              }
            }
          }
        }
      }
    });
  }
}

TEMPLATE_TEST_CASE("an output that underflows is +0 in a block and alone", "[bits][regression]",
                   float, double) {
  const auto query = Tensor<TestType>({1, 1, 9, 1});
  const auto key = Tensor<TestType>({1, 1, 2, 1});
  Tensor<TestType> value({1, 1, 2, 1});
  value(0, 0, 0, 0) = -std::numeric_limits<TestType>::denorm_min();
  for (const mha::kernels::Target t : available_targets()) {
    INFO("on " << mha::kernels::name(t));
    const mha::test::UsingTarget use(t);
    const auto block = attention(query, key, value);
    const auto alone = attention(rows_of(query, 0, 1), key, value);
    CHECK(equal_bits(block(0, 0, 0, 0), TestType(0)));
    CHECK(equal_bits(alone(0, 0, 0, 0), TestType(0)));
  }
}
