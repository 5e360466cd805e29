// SPDX-License-Identifier: MIT
//
// attention_into() on a random call: see differential.hpp.
#include "fuzz/attention_case.hpp"

namespace mha::fuzz {
namespace {

template <class Scalar>
class AttentionCase : public AttentionInputs<Scalar> {
 public:
  using Inputs = AttentionInputs<Scalar>;
  using Acc = accumulator_t<Scalar>;

  AttentionCase(Bytes& bytes, const Budget& budget) : Inputs(bytes, budget, false) {
    const auto& s = this->shape;
    need_weights = bytes.pick(3) == 2;
    need_lse = bytes.pick(3) == 2;
    output = Stored<Scalar>(bytes, {s.batch, s.num_heads, s.query_len, s.value_dim}, false);
    weights = Stored<Acc>(bytes, {s.batch, s.num_heads, s.query_len, s.kv_len}, false);
    lse = Stored<Acc>(bytes, {s.batch, s.num_heads, s.query_len, 1}, false);
  }

  void run(Bytes& bytes) {
    call(outputs(need_weights, need_lse), {}, {});
    check_numbers();
    if (!output.surroundings_untouched() || !weights.surroundings_untouched() ||
        !lse.surroundings_untouched()) {
      fail_case("attention_into wrote beside its outputs");
    }
    const Index laws = bytes.pick(256);
    if ((laws & 1) != 0) other_company(bytes);
    if ((laws & 2) != 0) other_outputs();
    if ((laws & 4) != 0) alone_in_batch(bytes);
    if ((laws & 8) != 0) cut_queries(bytes);
    if ((laws & 16) != 0) poisoned_behind_masks();
    if ((laws & 32) != 0) as_matrices();
    if ((laws & 128) != 0) {
      in_box(bytes);
      in_parts(bytes);
      in_cache(bytes);
    }
    if ((laws & 64) != 0) over_query();  // the last one: the query is gone then
  }

 private:
  AttentionOutputs<Scalar> outputs(bool with_weights, bool with_lse) const {
    return {output.view(), with_weights ? weights.view() : TensorView<Acc>(),
            with_lse ? lse.view() : TensorView<Acc>()};
  }

  /// The box of the call, computed into `out`.
  void call(const AttentionOutputs<Scalar>& out, const Shift& box, AttentionOptions options,
            Index batch = -1) const {
    const auto& s = this->shape;
    if (batch < 0) batch = s.batch - box.first_batch;
    const auto part = [&](const Stored<Scalar>& x, Index first, Index tokens) {
      return part_of(x.view(), box.first_batch, batch, first, tokens);
    };
    const auto q = part(this->query, box.first_query, s.query_len - box.first_query);
    const auto k = part(this->key, 0, s.kv_len);
    const auto v = part(this->value, 0, s.kv_len);
    RuleData data = this->rule;
    data.sizes.batch = box.first_batch + batch;
    for (auto* list : {&data.offsets, &data.lengths}) {
      list->resize(static_cast<std::size_t>(data.sizes.batch));
    }
    options.past_len = data.past_len(box);
    with_rule_of<Scalar>(data, box,
                         [&](const auto& rules) { attention_into(out, q, k, v, rules, options); });
  }

  void check_numbers() const {
    const auto& s = this->shape;
    for (Index b = 0; b < s.batch; ++b) {
      for (Index h = 0; h < s.num_heads; ++h) {
        const HeadTruth truth = this->truth(b, h);
        compare("output", output.view(), b, h, truth.output);
        if (need_weights) compare("weights", weights.view(), b, h, truth.weights, false);
        if (need_lse) compare("lse", lse.view(), b, h, truth.lse, false);
      }
    }
  }

  /// A fresh place for an output.
  Tensor<Scalar> plain_output(Index batch, Index query_len) const {
    return Tensor<Scalar>({batch, this->shape.num_heads, query_len, this->shape.value_dim});
  }

  void other_company(Bytes& bytes) const {
    const auto& s = this->shape;
    Tensor<Scalar> again = plain_output(s.batch, s.query_len);
    Workspace workspace;
    const Index threads = bytes.pick(4);
    AttentionOptions options;
    if (threads < 3) options.executor = pool_of(threads);
    if (bytes.coin()) {
      options.workspace = &workspace;
      const std::size_t bytes_needed = attention_workspace_bytes(
          this->query.view(), this->key.view(), this->value.view(), options);
      workspace.reserve(bytes_needed);
      call({again.view()}, {}, options);
      if (workspace.size() != bytes_needed) fail_case("attention_workspace_bytes() is too small");
    } else {
      call({again.view()}, {}, options);
    }
    compare_bits("other threads or workspace", again.view(), output.view());
  }

  void other_outputs() const {
    const auto& s = this->shape;
    Tensor<Scalar> again = plain_output(s.batch, s.query_len);
    Tensor<Acc> all_weights({s.batch, s.num_heads, s.query_len, s.kv_len});
    Tensor<Acc> all_lse({s.batch, s.num_heads, s.query_len, 1});
    AttentionOutputs<Scalar> out{again.view()};
    if (!need_weights) out.weights = all_weights.view();
    if (!need_lse) out.lse = all_lse.view();
    call(out, {}, {});
    compare_bits("other outputs asked for", again.view(), output.view());
  }

  void alone_in_batch(Bytes& bytes) const {
    const auto& s = this->shape;
    if (s.batch < 2 || this->rule.has_dropout || !kKernelScalar) return;
    const Index b = bytes.pick(s.batch);
    Tensor<Scalar> again = plain_output(1, s.query_len);
    call({again.view()}, {b, 0}, {}, 1);
    compare_bits("a sequence alone", again.view(), part_of(output.view(), b, 1, 0, s.query_len));
  }

  /// The last queries alone; at times the last one, as in decoding.
  void cut_queries(Bytes& bytes) const {
    const auto& s = this->shape;
    if (s.query_len < 2 || this->rule.has_dropout || !kKernelScalar) return;
    const Index first = bytes.coin() ? s.query_len - 1 : bytes.between(1, s.query_len - 1);
    Tensor<Scalar> again = plain_output(s.batch, s.query_len - first);
    call({again.view()}, {0, first}, {});
    compare_bits("the last queries alone", again.view(),
                 part_of(output.view(), 0, s.batch, first, s.query_len - first));
  }

  /// Keys and values that no query may see become NaN: nothing changes.
  void poisoned_behind_masks() {
    const auto& s = this->shape;
    if (!this->poison_hidden_keys()) return;
    Tensor<Scalar> again = plain_output(s.batch, s.query_len);
    call({again.view()}, {}, {});
    compare_bits("poison behind masks", again.view(), output.view());
  }

  /// Some sequences, heads and queries, called with the rule of the whole and told where they lie.
  void in_box(Bytes& bytes) const {
    const auto& s = this->shape;
    if (s.batch == 0 || s.kv_heads == 0 || s.query_len == 0) return;
    const Index b = bytes.pick(s.batch), kv_head = bytes.pick(s.kv_heads);
    const Index first = bytes.pick(s.query_len);
    const Index count = bytes.between(1, s.query_len - first);
    const Index group = s.num_heads / s.kv_heads;
    const auto part = [&](auto view, Index head, Index heads, Index token, Index tokens) {
      view = part_of(view, b, 1, token, tokens);
      if (tokens > 0) view.data += head * view.strides[1];
      view.sizes[1] = heads;
      return view;
    };
    AttentionOptions options;
    options.box = {.first_batch = b,
                   .first_head = kv_head * group,
                   .first_query = first,
                   .batch = s.batch,
                   .num_heads = s.num_heads,
                   .query_len = s.query_len};
    options.past_len = this->rule.past_len();
    if (options.past_len.size() > 1) options.past_len = options.past_len[b];
    const auto q = part(this->query.view(), kv_head * group, group, first, count);
    const auto k = part(this->key.view(), kv_head, 1, 0, s.kv_len);
    const auto v = part(this->value.view(), kv_head, 1, 0, s.kv_len);
    Tensor<Scalar> again({1, group, count, s.value_dim});
    with_rule_of<Scalar>(this->rule, {}, [&](const auto& rules) {
      attention_into(again.view(), q, k, v, rules, options);
    });
    compare_bits("a box of the call", again.view(),
                 part(output.view(), kv_head * group, group, first, count));
  }

  /// The keys in two parts, cut at a chunk, the second one first.
  void in_parts(Bytes& bytes) const {
    if constexpr (kKernelScalar) {
      const auto& s = this->shape;
      const Index cut = 1024 * bytes.pick(s.kv_len / 1024 + 1);
      with_rule_of<Scalar>(this->rule, {}, [&](const auto& rules) {
        const auto part = [&](Index first, Index count) {
          AttentionOptions options;
          options.past_len = this->rule.past_len();
          options.box = {.first_key = first, .kv_len = s.kv_len};
          return attention_partial(
              this->query.view(), part_of(this->key.view(), 0, s.batch, first, count),
              part_of(this->value.view(), 0, s.batch, first, count), rules, options);
        };
        auto all = part(cut, s.kv_len - cut);
        if (cut > 0) all.join(part(0, cut));
        compare_bits("the keys in two parts", tensor_view(all.finish().output), output.view());
      });
    }
  }

  /// One sequence, its keys and values in pages, added in pieces.
  void in_cache(Bytes& bytes) const {
    if constexpr (kKernelScalar) {
      const auto& s = this->shape;
      const bool placed = this->rule.place == Place::past_len || this->rule.place == Place::nothing;
      if (s.batch == 0 || s.head_dim == 0 || s.value_dim == 0 || !placed) return;
      const Index b = bytes.pick(s.batch);
      Storage storage = std::is_same_v<Acc, double> ? Storage::f64 : Storage::f32;
      if (std::is_same_v<Scalar, Eigen::half> && bytes.coin()) storage = Storage::f16;
      if (std::is_same_v<Scalar, Eigen::bfloat16> && bytes.coin()) storage = Storage::bf16;
      const KvPool pool({.kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .value_dim = s.value_dim,
                         .pages = s.kv_len / 128 + 1,
                         .storage = storage});
      const KvSequence sequence = pool.sequence();
      for (Index done = 0; done < s.kv_len;) {
        const Index count = bytes.between(1, s.kv_len - done);
        sequence.layer(0).append(part_of(this->key.view(), b, 1, done, count),
                                 part_of(this->value.view(), b, 1, done, count));
        done += count;
      }
      AttentionOptions options;
      options.box = {.first_batch = b, .batch = s.batch};
      options.past_len = this->rule.past_len();
      if (options.past_len.empty()) options.past_len = 0;
      if (options.past_len.size() > 1) options.past_len = options.past_len[b];
      Tensor<Scalar> again = plain_output(1, s.query_len);
      with_rule_of<Scalar>(this->rule, {}, [&](const auto& rules) {
        attention_into(again.view(), part_of(this->query.view(), b, 1, 0, s.query_len),
                       sequence.layer(0).keys(), rules, options);
      });
      compare_bits("keys in a cache", again.view(), part_of(output.view(), b, 1, 0, s.query_len));
    }
  }

  /// In place: the output written over the query, which is gone then.
  void over_query() const {
    const auto& s = this->shape;
    if (s.head_dim != s.value_dim || !this->query.is_apart()) return;
    call({this->query.view()}, {}, {});
    compare_bits("output over query", this->query.view(), output.view());
    if (!this->query.surroundings_untouched()) fail_case("attention_into wrote beside the query");
  }

  /// The entry over Eigen matrices, which has one head.
  void as_matrices() const {
    const auto& s = this->shape;
    if (s.batch != 1 || s.num_heads != 1 || s.head_dim == 0 || s.value_dim == 0) return;
    const auto matrix = [](const Stored<Scalar>& x) {
      Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> m(x.view().sizes[2], x.view().sizes[3]);
      for (Index i = 0; i < m.rows(); ++i) {
        for (Index d = 0; d < m.cols(); ++d) m(i, d) = x(0, 0, i, d);
      }
      return m;
    };
    const auto q = matrix(this->query), k = matrix(this->key), v = matrix(this->value);
    with_rule_of<Scalar>(this->rule, {}, [&](const auto& rules) {
      AttentionOptions options;
      options.past_len = this->rule.past_len();
      const Matrix<Scalar> again = scaled_dot_product_attention(q, k, v, rules, options);
      compare_bits("matrices",
                   TensorView<const Scalar>(again.data(), {1, 1, again.rows(), again.cols()}),
                   TensorView<const Scalar>(output.view()));
    });
  }

  static constexpr bool kKernelScalar = !std::is_same_v<Scalar, long double>;

  bool need_weights = false, need_lse = false;
  Stored<Scalar> output;
  Stored<Acc> weights, lse;
};

template <class Scalar>
std::string run_case(Bytes& bytes, const Budget& budget) {
  AttentionCase<Scalar> random_case(bytes, budget);
  return run_named(random_case, bytes);
}

}  // namespace

std::string attention_case(Bytes& bytes, const Budget& budget) {
  draw_target(bytes);
  switch (bytes.pick(8)) {
    case 0:
    case 1:
    case 2:
      return run_case<float>(bytes, budget);
    case 3:
    case 4:
      return run_case<double>(bytes, budget);
    case 5:
      return run_case<Eigen::half>(bytes, budget);
    case 6:
      return run_case<Eigen::bfloat16>(bytes, budget);
    default:
      return run_case<long double>(bytes, budget);
  }
}

}  // namespace mha::fuzz
