// SPDX-License-Identifier: MIT
//
// Attention to keys and values in a cache, without the layer's projections:
//     s.layer(0).append(k, v);                                             // kv_pool.hpp
//     y = mha::attention(q, s.layer(0).keys(), mha::causal());
// The rule must be said, mha::all() to mean none: a causal rule that is forgotten goes unnoticed. The last query
// stands at the last key (of more queries than keys the first at the first), unless past_len or the rule place the
// queries elsewhere.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/attention.hpp"
#include "mha/kv_pool.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// The checks of a call over cached keys, and its BatchTask, without outputs.
template <class Scalar>
struct CachedCall {
  using Acc = accumulator_t<Scalar>;
  static_assert(has_kernels<Acc>,
                "mha: caches are for float, double, Eigen::half and Eigen::bfloat16");
  kernels::PagedKeys paged;
  kernels::Retention retention;
  IndexList past_len;
  CallExtent extent;
  BatchTask<Scalar> task;

  CachedCall(const CachedCall&) = delete;
  CachedCall& operator=(const CachedCall&) = delete;

  CachedCall(const char* where, const TensorView<const Scalar>& query, const CachedKeys& keys,
             const ErasedRules<Acc>& rules, const AttentionOptions& options,
             Memory memory = Memory::needed)
      : paged(keys.paged()), retention(keys.retention()) {
    require(std::is_same_v<Acc, double> || keys.storage() != Storage::f64, where,
            ": a cache of Storage::f64 is for double");
    query_range_ = check_view(where, kQuery, query, memory);
    const TensorView<const Scalar> key{nullptr, {1, keys.kv_heads(), keys.size(), keys.head_dim()}};
    const TensorView<const Scalar> value{nullptr,
                                         {1, keys.kv_heads(), keys.size(), keys.value_dim()}};
    const bool is_part = options.box.first_key != 0 || options.box.first_query != 0 ||
                         options.box.query_len != 0 || options.box.kv_len != 0;
    require(!is_part, where, ": box must not cut the queries or keys of a cache");
    past_len = options.past_len.empty() ? std::max<Index>(0, keys.size() - query.size(2))
                                        : options.past_len;
    extent = check_attention<Scalar>(where, query, key, value, rules, options.past_len, options.box,
                                     Memory::unused)
                 .first;
    task = BatchTask<Scalar>{query, key, value, {}, {}, {}, &past_len, options.box};
    task.paged = &paged;
    check_remembered(where, keys, rules.placed(task.extent(0), options.box.first_batch, 0).offset);
    if (retention.window > 0) task.retention = &retention;
  }

  void check(const AttentionOutputs<Scalar>& outputs) const {
    check_outputs(extent, {query_range_, {}, {}}, outputs, task.query, task.key, task.value);
  }
  void run(const AttentionOutputs<Scalar>& outputs, const CallRules<Scalar>& rules,
           const AttentionOptions& options) {
    task.output = outputs.output;
    task.weights = outputs.weights;
    task.lse = outputs.lse;
    rules.attend(task, options.executor, options.workspace);
  }

 private:
  AddressRange query_range_;
};

/// What attention() and attention_forward() return.
template <class Scalar>
AttentionResult<Scalar> cached_attention_result(const char* where,
                                                const TensorView<const Scalar>& query,
                                                const CachedKeys& keys,
                                                const CallRules<Scalar>& rules,
                                                const AttentionOptions& options) {
  CachedCall<Scalar> call(where, query, keys, rules, options);
  AttentionResult<Scalar> result = allocate_result<Scalar>(call.extent, keys.value_dim(), options);
  call.run({result.output.view(), result.weights.view(), result.lse.view()}, rules, options);
  return result;
}

}  // namespace detail

/// Every key may be attended to: what a call without a rule means, said.
[[nodiscard]] inline All all() { return {}; }

/// attention_into() over cached keys.
/// @param query  [1, num_heads, query_len, head_dim]
/// @param rule   required; mha::all() if every query may attend to every key
/// The other parameters and errors are those of attention_into().
template <class Scalar, TensorLike Q, IsRule R, class O = AttentionOptions>
void attention_into(const AttentionOutputs<Scalar>& outputs, const Q& query, const CachedKeys& keys,
                    const R& rule, const O& options = {}) {
  static_assert(std::is_same_v<O, AttentionOptions>,
                "mha: after the rule come AttentionOptions, or nothing");
  static_assert(std::is_same_v<Scalar, detail::element_t<const Q>>,
                "mha: query and output must share one Scalar");
  decltype(auto) rule_set = detail::as_rules(rule);
  const auto rules = detail::call_rules<Scalar>(rule_set);
  const TensorView<const Scalar> q = tensor_view(query);
  detail::CachedCall<Scalar> call("attention_into", q, keys, rules, options);
  call.check(outputs);
  call.run(outputs, rules, options);
}

/// The same for the output alone.
template <TensorLike Output, TensorLike Q, IsRule R, class O = AttentionOptions>
void attention_into(Output&& output, const Q& query, const CachedKeys& keys, const R& rule,
                    const O& options = {}) {
  const auto view = tensor_view(output);
  using Element = std::remove_pointer_t<decltype(view.data)>;
  static_assert(!std::is_const_v<Element>, "mha::attention_into: the output must not be const");
  attention_into(AttentionOutputs<Element>{.output = view}, query, keys, rule, options);
}

/// attention_forward() over cached keys: with weights and lse, as the options ask.
template <TensorLike Q, IsRule R, class O = AttentionOptions>
[[nodiscard]] auto attention_forward(const Q& query, const CachedKeys& keys, const R& rule,
                                     const O& options = {}) {
  using Scalar = detail::element_t<const Q>;
  return detail::cached_attention_result<Scalar>("attention_forward", tensor_view(query), keys,
                                                 detail::call_rules<Scalar>(detail::as_rules(rule)),
                                                 options);
}

/// attention() over cached keys.
template <TensorLike Q, IsRule R, class O = AttentionOptions>
[[nodiscard]] auto attention(const Q& query, const CachedKeys& keys, const R& rule,
                             const O& options = {}) {
  using Scalar = detail::element_t<const Q>;
  return detail::cached_attention_result<Scalar>("attention", tensor_view(query), keys,
                                                 detail::call_rules<Scalar>(detail::as_rules(rule)),
                                                 options)
      .output;
}

/// Bytes of Workspace that a call over as many cached keys needs, whatever its rule: it grows with the keys. Of the
/// query only sizes count.
/// @throws std::invalid_argument if the sizes do not fit each other
template <TensorLike Q>
[[nodiscard]] std::size_t attention_workspace_bytes(const Q& query, const CachedKeys& keys,
                                                    const AttentionOptions& options = {}) {
  using Scalar = detail::element_t<const Q>;
  const TensorView<const Scalar> q = tensor_view(query);
  const detail::CachedCall<Scalar> call("attention_workspace_bytes", q, keys,
                                        detail::erased<accumulator_t<Scalar>>(All{}), options,
                                        detail::Memory::unused);
  return kernels::plan_of<Scalar, accumulator_t<Scalar>>(call.task, options.executor).bytes();
}

}  // namespace mha
