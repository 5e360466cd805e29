// SPDX-License-Identifier: MIT
//
// The kernels on other processors than that of the tests (targets.hpp): attention under every kind of rule
// and the layer against the formula of reference/forward.hpp, and that a query has the same bits in any
// block. Cross-compiled and run in an emulator, which is slow: therefore small, without Catch2, and
// with the formula in double, whose rounding the tolerances allow for.
#include <mha/mha.hpp>

#include <cstdio>
#include <string>

#include "support/matrices.hpp"
#include "support/numbers.hpp"

using mha::Index;
using mha::Lanes;
using mha::Matrix;
using mha::Tensor;
using mha::TensorView;
using mha::test::cast_to;
using mha::test::eps_of;
using mha::test::nan_of;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::rows_of;
using mha::test::stacked;

namespace {

/// Tolerances: so many eps of the largest number that is summed. Measured: below 0.3 of that, 0.4
/// for bfloat16, whose output is rounded once more.
constexpr double kUnits = 4;
int num_checks = 0;
int num_failures = 0;

/// One check: each entry within the tolerance, or with the same bits if there is none. Prints the
/// first that is not.
template <class A, class B>
void check(const std::string& what, const A& actual, const B& expected, double tolerance = 0) {
  ++num_checks;
  for (Index i = 0; i < expected.rows(); ++i) {
    for (Index j = 0; j < expected.cols(); ++j) {
      const auto a = mha::detail::convert<double>(actual(i, j));
      const auto b = mha::detail::convert<double>(expected(i, j));
      // An lse may be -infinity.
      if (mha::test::equal_bits(a, b) || (tolerance > 0 && std::abs(a - b) <= tolerance)) continue;
      ++num_failures;
      std::printf("FAILED %s: entry (%d, %d) is %.17g, expected %.17g\n", what.c_str(),
                  static_cast<int>(i), static_cast<int>(j), a, b);
      return;
    }
  }
}

/// The formula for every head of a call.
template <class T, class RuleType>
mha::AttentionResult<double> formula(const TensorView<const T>& query,
                                     const TensorView<const T>& key,
                                     const TensorView<const T>& value, const RuleType& rule,
                                     Index past = 0) {
  const auto [batch, heads, query_len, head_dim] = query.sizes;
  const Index kv_len = key.size(2);
  mha::AttentionResult<double> result{Tensor<double>({batch, heads, query_len, value.size(3)}),
                                      Tensor<double>({batch, heads, query_len, kv_len}),
                                      Tensor<double>({batch, heads, query_len, 1})};
  for (Index b = 0; b < batch; ++b) {
    for (Index h = 0; h < heads; ++h) {
      const Index kv_head = h / (heads / key.size(1));
      const mha::HeadTask<T, double, double> task{query.matrix(b, h),
                                                  key.matrix(b, kv_head),
                                                  value.matrix(b, kv_head),
                                                  result.output.view().matrix(b, h),
                                                  result.weights.view().matrix(b, h),
                                                  result.lse.view().matrix(b, h)};
      mha::reference::attend<double>(mha::detail::as_rules(rule), {heads, query_len, kv_len, past},
                                     b, h, task);
    }
  }
  return result;
}

/// Two sequences: queries that follow `past` others, and what the rules refer to.
template <class T>
struct Run {
  Index past, query_len, kv_len;
  Tensor<T> query, key, value;
  Matrix<T> bias;
  Matrix<bool> kept;

  Run(Index past_len, Index queries, Index head_dim, Index value_dim)
      : past(past_len),
        query_len(queries),
        kv_len(past_len + queries),
        query(random_tensor<T>({2, 4, queries, head_dim}, 1)),
        key(random_tensor<T>({2, 2, kv_len, head_dim}, 2, 2)),
        value(random_tensor<T>({2, 2, kv_len, value_dim}, 3)),
        bias(random_matrix<T>(queries, kv_len, 4)),
        kept(mha::test::random_booleans(queries, kv_len, 5, 0.7)) {}
};

/// Queries first, first + 1, ... of a run, and the leading keys that are given with them.
struct Block {
  Index first, count, kv_len;

  template <class Scalar>
  TensorView<const Scalar> of(const Matrix<Scalar>& m) const {
    return {m.data() + first * m.cols(), {1, 1, count, kv_len}, {0, 0, m.cols(), 1}};
  }
};

/// A whole run against the formula, and blocks of it against the whole, with the keys up to their
/// own or with all. make_rule(block, Acc()) gives the rule of a block for scores of type Acc.
template <class T, class MakeRule>
void check_rule(const std::string& name, const Run<T>& run, bool all_keys,
                const MakeRule& make_rule) {
  using Acc = mha::accumulator_t<T>;
  const std::string what = name + ", " + std::to_string(run.query_len) + " queries, " +
                           std::to_string(run.kv_len) + " keys, ";
  const Block all{0, run.query_len, run.kv_len};
  const auto whole =
      mha::attention_forward(run.query, run.key, run.value, make_rule(all, Acc()),
                             {.past_len = run.past, .need_weights = true, .need_lse = true});
  const auto expected = formula<T>(run.query.view(), run.key.view(), run.value.view(),
                                   make_rule(all, double()), run.past);
  // A score is a sum of head_dim products below 2, over the root of head_dim.
  const double score = 2 * std::sqrt(static_cast<double>(run.query.size(3)));
  const double tolerance = kUnits * eps_of<Acc>() * (1 + score);
  const double rounding = sizeof(T) == 2 ? eps_of<T>() / 2 : 0;
  check(what + "output", stacked(whole.output), stacked(expected.output), tolerance + rounding);
  check(what + "weights", stacked(whole.weights), stacked(expected.weights), tolerance);
  check(what + "lse", stacked(whole.lse), stacked(expected.lse), tolerance);

  for (const Index most : {1, 3, 33}) {
    for (Index first = 0; first < run.query_len; first += most) {
      const Index count = std::min(most, run.query_len - first);
      const Block block{first, count, all_keys ? run.kv_len : run.past + first + count};
      const auto part = mha::attention_forward(
          rows_of(run.query, first, count), rows_of(run.key, 0, block.kv_len),
          rows_of(run.value, 0, block.kv_len), make_rule(block, Acc()),
          {.past_len = run.past + first, .need_lse = true});
      const std::string which =
          what + std::to_string(count) + " from " + std::to_string(first) + " on, ";
      check(which + "output", stacked(part.output), stacked(rows_of(whole.output, first, count)));
      check(which + "lse", stacked(part.lse), stacked(rows_of(whole.lse, first, count)));
    }
  }
}

/// A modifier over lanes for the kernels, over single numbers for the formula.
auto modifier(int first, auto number) {
  using Acc = decltype(number);
  return mha::score_mod([first](Lanes<Acc> s, Index, Index, Lanes<int> i, Lanes<int> j) {
    return s * Acc(0.7) + Acc(0.01) * Lanes<Acc>(j - (i + first));
  });
}

template <class T>
void check_rules(const std::string& type, const Run<T>& run) {
  const auto with = [&](const char* name, bool all_keys, const auto& make_rule) {
    check_rule(type + ", " + name, run, all_keys, make_rule);
  };
  with("no rule", true, [](const Block&, auto) { return mha::All{}; });
  with("window and lengths", true, [&](const Block& block, auto) {
    return mha::query_offset(run.past + block.first) & mha::window(30, 9) &
           mha::lengths(run.kv_len * 9 / 10);
  });
  with("causal", false, [](const Block&, auto) { return mha::causal(); });
  with("alibi", false, [](const Block&, auto) { return mha::causal() & mha::alibi(); });
  with("softcap, bias and sinks", false, [&](const Block& block, auto) {
    return mha::causal() & mha::softcap(2) & mha::bias(block.of(run.bias)) & mha::sinks(0.5);
  });
  Run<T> poisoned = run;  // a key and a value that no query may see are NaN
  const Index hidden = run.kv_len / 2;
  poisoned.kept.col(hidden).setConstant(false);
  for (Tensor<T>* tensor : {&poisoned.key, &poisoned.value}) {
    for (Index k = 0; k < 4; ++k) tensor->matrix(k / 2, k % 2).row(hidden).setConstant(nan_of<T>());
  }
  check_rule(type + ", keep", poisoned, false, [&](const Block& block, auto) {
    return mha::causal() & mha::keep(block.of(poisoned.kept));
  });
  with("score_mod", false, [](const Block& block, auto number) {
    return mha::causal() & modifier(static_cast<int>(block.first), number);
  });
}

/// A layer of 192 channels: from 16 and from 192 tokens on it projects in another way, see
/// project.hpp.
template <class T>
void check_layer(const std::string& type, Index tokens) {
  mha::MultiHead<T, 4> layer({.embed_dim = 192, .kv_heads = 2});
  for (auto* linear : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
    linear->bias = random_matrix<T>(1, linear->outputs(), 6).row(0);
  }
  const Matrix<T> x = random_matrix<T>(tokens, 192, 7);
  const Matrix<T> y = layer(x, mha::causal());

  const auto project = [](const Matrix<double>& in, const auto& linear) -> Matrix<double> {
    const Matrix<double> product = in * cast_to<double>(linear.weight);
    return product.rowwise() + cast_to<double>(linear.bias).row(0);
  };
  const auto heads = [](const Matrix<double>& m) {  // 48 columns each
    return TensorView<const double>(m.data(), {1, m.cols() / 48, m.rows(), 48},
                                    {0, 48, m.cols(), 1});
  };
  const auto wide = cast_to<double>(x);
  const Matrix<double> q = project(wide, layer.q_proj);
  const Matrix<double> k = project(wide, layer.k_proj);
  const Matrix<double> v = project(wide, layer.v_proj);
  const auto attended = formula(heads(q), heads(k), heads(v), mha::causal()).output;
  Matrix<double> joined(tokens, 192);
  for (Index h = 0; h < 4; ++h) joined.middleCols(h * 48, 48) = attended.matrix(0, h);
  const std::string what = type + ", layer, " + std::to_string(tokens) + " tokens";
  check(what, y, project(joined, layer.out_proj), kUnits * eps_of<T>() * std::sqrt(192.0));
  check(what + ", prepacked", mha::Inference<T>(layer)(x, mha::causal()), y);

  for (const Index i : {Index(0), tokens / 2, tokens - 1}) {
    const Matrix<T> row =
        layer(x.middleRows(i, 1), x.topRows(i + 1), mha::causal(), {.past_len = i});
    check(what + ", that of " + std::to_string(i) + " alone", row, y.middleRows(i, 1));
  }
}

template <class T>
void check_all(const std::string& type) {
  // Lengths around those of vectors, of tiles (64 or 32 queries, 128 keys), of a chunk (1024 keys).
  check_rules(type, Run<T>(0, 1, 1, 1));
  check_rules(type, Run<T>(60, 70, 7, 5));
  check_rules(type, Run<T>(1020, 7, 40, 33));
  for (const Index tokens : {3, 70, 200}) check_layer<T>(type, tokens);
}

}  // namespace

int main() {
  check_all<float>("float");
  check_all<double>("double");
  check_rules("bfloat16", Run<Eigen::bfloat16>(60, 70, 7, 5));
  std::printf("%d of %d checks passed on %s\n", num_checks - num_failures, num_checks,
              mha::kernels::name(mha::kernels::target()));
  return num_failures == 0 ? 0 : 1;
}
