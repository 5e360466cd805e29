// SPDX-License-Identifier: MIT
//
// attention_backward_into() on a random call: see differential.hpp.
#include "fuzz/attention_case.hpp"

namespace mha::fuzz {
namespace {

template <class Scalar>
class GradientCase : public AttentionInputs<Scalar> {
 public:
  using Acc = accumulator_t<Scalar>;

  GradientCase(Bytes& bytes, const Budget& budget) : AttentionInputs<Scalar>(bytes, budget, true) {
    const auto& s = this->shape;
    output = Stored<Scalar>(bytes, {s.batch, s.num_heads, s.query_len, s.value_dim}, false);
    lse = Stored<Acc>(bytes, {s.batch, s.num_heads, s.query_len, 1}, false);
    grad_output = Stored<Scalar>(bytes, {s.batch, s.num_heads, s.query_len, s.value_dim}, true);
    Numbers numbers(bytes.seed());
    grad_output.fill(numbers, 1);
    grad_query = Stored<Scalar>(bytes, {s.batch, s.num_heads, s.query_len, s.head_dim}, false);
    grad_key = Stored<Scalar>(bytes, {s.batch, s.kv_heads, s.kv_len, s.head_dim}, false);
    grad_value = Stored<Scalar>(bytes, {s.batch, s.kv_heads, s.kv_len, s.value_dim}, false);
    learned = LearnedGradients<Acc>(this->rule);
  }

  void run(Bytes& bytes) {
    AttentionOptions options;
    options.past_len = this->rule.past_len();
    with_rule_of<Scalar>(
        this->rule, {},
        [&](const auto& rules) {
          attention_into(AttentionOutputs<Scalar>{output.view(), {}, lse.view()},
                         this->query.view(), this->key.view(), this->value.view(), rules, options);
        },
        &learned);
    call({grad_query.view(), grad_key.view(), grad_value.view()}, {});
    check_numbers();
    for (const auto* x : {&grad_query, &grad_key, &grad_value}) {
      if (!x->surroundings_untouched()) fail_case("attention_backward_into wrote beside");
    }
    if (bytes.coin()) other_company(bytes);
    if (bytes.coin()) poisoned_behind_masks();
  }

 private:
  void call(const AttentionGradientOutputs<Scalar>& gradients, AttentionOptions options) {
    options.past_len = this->rule.past_len();
    with_rule_of<Scalar>(
        this->rule, {},
        [&](const auto& rules) {
          attention_backward_into(gradients, grad_output.view(), this->query.view(),
                                  this->key.view(), this->value.view(),
                                  AttentionOutputs<Scalar>{output.view(), {}, lse.view()}, rules,
                                  options);
        },
        &learned);
  }

  static void add(std::vector<BoundedSum>& sums, const Table& table) {
    for (std::size_t k = 0; k < sums.size(); ++k) sums[k].add(table.entries[k]);
  }
  Table table_of(const std::vector<BoundedSum>& sums, Index rows, Index cols) const {
    Table table(rows, cols);
    for (std::size_t k = 0; k < sums.size(); ++k) table.entries[k] = sums[k].result(this->with);
    return table;
  }

  void check_numbers() const {
    const auto& s = this->shape;
    const PlainRule plain = plain_rule(this->rule, this->with);
    const Index group = s.kv_heads == 0 ? 1 : s.num_heads / s.kv_heads;
    std::vector<BoundedSum> bias(this->rule.bias1.numbers.size());
    std::vector<BoundedSum> slopes(this->rule.slopes.size()), sinks(this->rule.sinks.size());
    for (Index b = 0; b < s.batch; ++b) {
      for (Index kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
        std::vector<BoundedSum> key_sum(static_cast<std::size_t>(s.kv_len * s.head_dim));
        std::vector<BoundedSum> value_sum(static_cast<std::size_t>(s.kv_len * s.value_dim));
        for (Index h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          const HeadTruth forward = this->truth(b, h);
          const HeadGradientTruth truth =
              backward(this->with, this->query.table(b, h), this->key.table(b, kv_head),
                       this->value.table(b, kv_head), grad_output.table(b, h), forward, plain, b, h,
                       output_roundoff<Scalar>(), output_step<Scalar>());
          compare("grad_query", grad_query.view(), b, h, truth.query);
          add(key_sum, truth.key);
          add(value_sum, truth.value);
          if (this->rule.set == kLearnedSet) {
            collect(forward, truth, b, h, bias, slopes, sinks);
          }
        }
        compare("grad_key", grad_key.view(), b, kv_head, table_of(key_sum, s.kv_len, s.head_dim));
        compare("grad_value", grad_value.view(), b, kv_head,
                table_of(value_sum, s.kv_len, s.value_dim));
      }
    }
    if (this->rule.set != kLearnedSet) return;
    const auto compare_all = [&](const char* what, const Acc* got,
                                 const std::vector<BoundedSum>& wanted) {
      const auto count = static_cast<Index>(wanted.size());
      compare(what, TensorView<const Acc>(got, {1, 1, 1, count}), 0, 0, table_of(wanted, 1, count),
              false);
    };
    compare_all("gradient of the bias", learned.bias.data(), bias);
    compare_all("gradient of the slopes", learned.slopes.data(), slopes);
    compare_all("gradient of the sinks", learned.sinks.data(), sinks);
  }

  /// What the learned set's numbers gain from one head.
  void collect(const HeadTruth& forward, const HeadGradientTruth& truth, Index b, Index h,
               std::vector<BoundedSum>& bias, std::vector<BoundedSum>& slopes,
               std::vector<BoundedSum>& sinks) const {
    const auto of_head = [h](std::vector<BoundedSum>& all) -> BoundedSum& {
      return all[static_cast<std::size_t>(all.size() == 1 ? 0 : h)];
    };
    const auto& s = this->shape;
    for (Index i = 0; i < s.query_len; ++i) {
      for (Index j = 0; j < s.kv_len; ++j) {
        if (!forward.is_allowed(i, j)) continue;
        const Bounded& grad = truth.scores(i, j);
        bias[static_cast<std::size_t>(this->rule.bias1.place(b, h, i, j))].add(grad);
        const auto distance = static_cast<long double>(std::abs(i + s.kv_len - s.query_len - j));
        of_head(slopes).add(this->with.multiply(grad, {-distance, 0}));
      }
    }
    of_head(sinks).add(truth.sink);
  }

  struct Copies {
    Tensor<Scalar> query, key, value;
  };
  Copies again(const AttentionOptions& options) {
    const auto& s = this->shape;
    Copies copies{Tensor<Scalar>({s.batch, s.num_heads, s.query_len, s.head_dim}),
                  Tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, s.head_dim}),
                  Tensor<Scalar>({s.batch, s.kv_heads, s.kv_len, s.value_dim})};
    learned = LearnedGradients<Acc>(this->rule);
    call({copies.query.view(), copies.key.view(), copies.value.view()}, options);
    return copies;
  }
  void compare_bits_of(const char* what, const Copies& copies) const {
    compare_bits(what, copies.query.view(), grad_query.view());
    compare_bits(what, copies.key.view(), grad_key.view());
    compare_bits(what, copies.value.view(), grad_value.view());
  }

  void other_company(Bytes& bytes) {
    AttentionOptions options;
    Workspace workspace;
    options.executor = pool_of(bytes.pick(3));
    if (bytes.coin()) options.workspace = &workspace;
    const LearnedGradients<Acc> before = learned;
    compare_bits_of("gradients with other threads or workspace", again(options));
    if (before.bias != learned.bias || before.slopes != learned.slopes ||
        before.sinks != learned.sinks) {
      fail_case("the bits of gradients of rules differ");
    }
  }

  /// Keys and values that no query may see become NaN: nothing changes but that theirs are 0.
  void poisoned_behind_masks() {
    if (!this->poison_hidden_keys()) return;
    compare_bits_of("gradients with poison behind masks", again({}));
  }

  Stored<Scalar> output, grad_output, grad_query, grad_key, grad_value;
  Stored<Acc> lse;
  LearnedGradients<Acc> learned;
};

template <class Scalar>
std::string run_case(Bytes& bytes, const Budget& budget) {
  GradientCase<Scalar> random_case(bytes,
                                   {budget.usual / 4, budget.now_and_then / 4, budget.seldom / 4});
  return run_named(random_case, bytes);
}

}  // namespace

std::string gradient_case(Bytes& bytes, const Budget& budget) {
  draw_target(bytes);
  return with_drawn_scalar(bytes, [&]<class Scalar>() { return run_case<Scalar>(bytes, budget); });
}

}  // namespace mha::fuzz
