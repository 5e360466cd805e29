// SPDX-License-Identifier: MIT
//
// Attention over keys that are not all at hand: each part of the keys is attended to by itself, by whom and when
// it suits, and the parts are joined.
//     auto first = mha::attention_partial(q, k1, v1, rule, {.box = {.kv_len = 8192}});
//     first.join(mha::attention_partial(q, k2, v2, rule, {.box = {.first_key = 4096, .kv_len = 8192}}));
//     auto result = first.finish();                    // the bits of attention_forward() over all keys at once
// A part's keys are whole chunks of 1024 (the last one but for the sequence's end), counted from the sequence's
// first key. Unlike merge(), which takes finished outputs and promises accuracy, parts keep the state of the
// softmax, and are joined in the order of chunk_tree.hpp whatever the order of the calls.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "mha/attention.hpp"
#include "mha/internal/kernels/join_rows.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// Of rows that have attended to the chunks of a subtree: number `number` of those of 2^level chunks.
template <class Acc>
struct PartialNode {
  int level = 0;
  Index number = 0;
  std::vector<Acc> numbers;  ///< acc [row][wide], then row_max, row_sum and seen [row]

  Index first_chunk() const { return number << level; }
  Index last_chunk() const { return first_chunk() + (Index{1} << level) - 1; }
};

}  // namespace detail

/// The softmax of some query rows over some of their keys, not yet divided by its sum.
/// @tparam Scalar  float, double, Eigen::half or Eigen::bfloat16; states are kept in its accumulator's type
template <class Scalar>
class Partial {
 public:
  using Acc = accumulator_t<Scalar>;
  static_assert(detail::has_kernels<Acc>,
                "mha: Partial is for float, double, Eigen::half and Eigen::bfloat16");

  /// Of no rows, as what has been moved from.
  Partial() = default;
  Partial(const Partial&) = default;
  Partial& operator=(const Partial&) = default;
  Partial(Partial&& other) noexcept { *this = std::move(other); }
  Partial& operator=(Partial&& other) noexcept {
    if (this == &other) return *this;
    sizes_ = std::exchange(other.sizes_, {});
    nodes_ = std::exchange(other.nodes_, {});
    ends_ = std::exchange(other.ends_, {});
    dropout_scale_ = other.dropout_scale_;
    return *this;
  }
  ~Partial() = default;

  /// Adds what `other` has attended to: other keys of the same rows, under the same rule.
  /// @throws std::invalid_argument if the rows differ, or both have attended to one chunk; this partial is
  ///         then as before
  void join(const Partial& other);

  /// Output and lse of the rows over all keys that have been joined, as attention_forward() gives them. The
  /// partial stays as it is, and may be joined with others.
  [[nodiscard]] AttentionResult<Scalar> finish() const;

  Index batch() const noexcept { return sizes_[0]; }
  Index num_heads() const noexcept { return sizes_[1]; }
  Index query_len() const noexcept { return sizes_[2]; }
  Index value_dim() const noexcept { return sizes_[3]; }
  /// Subtrees of chunks that are kept apart: at most twice the logarithm of the keys for each run of them.
  Index parts() const noexcept { return static_cast<Index>(nodes_.size()); }
  std::size_t memory_bytes() const noexcept {
    return nodes_.size() * static_cast<std::size_t>(rows() * (wide() + 3)) * sizeof(Acc);
  }

  /// attention_partial(); sizes and rule have been checked.
  template <class RuleSet>
  static Partial compute(const TensorView<const Scalar>& query, const TensorView<const Scalar>& key,
                         const TensorView<const Scalar>& value, const RuleSet& rules,
                         const AttentionOptions& options);

 private:
  using Node = detail::PartialNode<Acc>;
  using State = kernels::SoftmaxState<Acc>;

  Index rows() const { return sizes_[0] * sizes_[1] * sizes_[2]; }
  /// value_dim in whole vectors
  Index wide() const { return kernels::round_up(sizes_[3], 64 / Index{sizeof(Acc)}); }
  State state_of(Node& node) const {
    Acc* const acc = node.numbers.data();
    Acc* const row_max = acc + rows() * wide();
    return {acc, row_max, row_max + rows()};
  }
  void join_nodes(Node& to, Node& from) const {
    kernels::join_rows(kernels::table<Acc>(kernels::target()), state_of(to), state_of(from), rows(),
                       wide());
    Acc* const seen = state_of(to).row_sum + rows();
    const Acc* const other = state_of(from).row_sum + rows();
    for (Index r = 0; r < rows(); ++r) seen[r] = std::max(seen[r], other[r]);
  }
  /// Neighbours that make a larger subtree become it.
  void close();

  std::array<Index, 4> sizes_{};            ///< of the output
  std::vector<Node> nodes_;                 ///< in the order of their keys
  std::vector<kernels::RowEnd<Acc>> ends_;  ///< of each head
  Acc dropout_scale_ = Acc(1);
};

template <class Scalar>
template <class RuleSet>
Partial<Scalar> Partial<Scalar>::compute(const TensorView<const Scalar>& query,
                                         const TensorView<const Scalar>& key,
                                         const TensorView<const Scalar>& value,
                                         const RuleSet& rules, const AttentionOptions& options) {
  Partial result;
  result.sizes_ = {query.size(0), query.size(1), query.size(2), value.size(3)};
  for (Index h = 0; h < query.size(1); ++h) {
    const std::optional<Acc> sink = rules.template sink<Acc>(options.box.first_head + h);
    const bool has_sink = sink && !detail::is_minus_infinity(*sink);
    result.ends_.push_back({has_sink, has_sink ? *sink : Acc(0)});
  }
  if constexpr (RuleSet::kHasDropout) {
    result.dropout_scale_ = rules.dropout()->template dropout_scale<Acc>();
  }
  const Index rows = result.rows();
  const Index wide = result.wide();
  const auto& [batch, num_heads, query_len, value_dim] = result.sizes_;
  const Index end = kernels::chunks_of(options.box.first_key + key.size(2));
  for (Index chunk = options.box.first_key / kernels::kKeyChunk; chunk < end;) {
    // The largest subtree that begins here and is at hand.
    int level = 0;
    while (chunk % (Index{2} << level) == 0 && chunk + (Index{2} << level) <= end) ++level;
    Node node{level, chunk >> level, {}};
    node.numbers.resize(static_cast<std::size_t>(rows * (wide + 3)));
    const Index first = chunk * kernels::kKeyChunk - options.box.first_key;
    const Index count = std::min(key.size(2) - first, (Index{1} << level) * kernels::kKeyChunk);
    const auto part = [&](TensorView<const Scalar> whole) {
      if (whole.data != nullptr) whole.data += first * whole.strides[2];
      whole.sizes[2] = count;
      return whole;
    };
    Acc* const numbers = node.numbers.data();
    const TensorView<Acc> acc{
        numbers, result.sizes_, {num_heads * query_len * wide, query_len * wide, wide, 1}};
    detail::BatchTask<Scalar, Acc> call{query, part(key), part(value), acc, {}, {}};
    call.state = {numbers + rows * wide,
                  {batch, num_heads, query_len, 3},
                  {num_heads * query_len, query_len, 1, rows}};
    call.past_len = &options.past_len;
    call.box = options.box;
    call.box.first_key += first;
    call.box.kv_len = std::max(options.box.kv_len, options.box.first_key + key.size(2));
    detail::attend(call, rules, options.executor, options.workspace);
    result.nodes_.push_back(std::move(node));
    chunk += Index{1} << level;
  }
  return result;
}

template <class Scalar>
void Partial<Scalar>::close() {
  std::vector<Node> closed;
  for (Node& node : nodes_) {
    closed.push_back(std::move(node));
    while (closed.size() >= 2) {
      Node& first = closed[closed.size() - 2];
      Node& second = closed.back();
      if (first.level != second.level || first.number + 1 != second.number ||
          first.number % 2 != 0) {
        break;
      }
      join_nodes(first, second);
      ++first.level;
      first.number /= 2;
      closed.pop_back();
    }
  }
  nodes_ = std::move(closed);
}

template <class Scalar>
void Partial<Scalar>::join(const Partial& other) {
  constexpr const char* kWhere = "Partial::join";
  detail::require(sizes_ == other.sizes_, kWhere, ": both must have rows of the same sizes, got ",
                  detail::list_text(sizes_), " and ", detail::list_text(other.sizes_));
  for (std::size_t h = 0; h < ends_.size(); ++h) {
    const auto& a = ends_[h];
    const auto& b = other.ends_[h];
    detail::require(a.has_sink == b.has_sink && std::bit_cast<kernels::int_of<Acc>>(a.sink) ==
                                                    std::bit_cast<kernels::int_of<Acc>>(b.sink),
                    kWhere, ": both must have the same rule, got other sinks for head ", h);
  }
  detail::require(dropout_scale_ == other.dropout_scale_, kWhere,
                  ": both must have the same rule, got dropout that multiplies by ", dropout_scale_,
                  " and ", other.dropout_scale_);
  std::vector<Node> all = nodes_;
  all.insert(all.end(), other.nodes_.begin(), other.nodes_.end());
  std::sort(all.begin(), all.end(),
            [](const Node& a, const Node& b) { return a.first_chunk() < b.first_chunk(); });
  for (std::size_t n = 1; n < all.size(); ++n) {
    detail::require(all[n].first_chunk() > all[n - 1].last_chunk(), kWhere,
                    ": both have attended to chunk ", all[n].first_chunk(), ", keys ",
                    all[n].first_chunk() * kernels::kKeyChunk, " to ",
                    (all[n].first_chunk() + 1) * kernels::kKeyChunk - 1);
  }
  nodes_ = std::move(all);
  close();
}

template <class Scalar>
AttentionResult<Scalar> Partial<Scalar>::finish() const {
  std::vector<Node> nodes = nodes_;
  // In the order of their keys, as chunks are joined that are computed one after the other.
  std::vector<Node*> places(64);
  std::vector<Index> last(64);
  kernels::ChunkTree<Node*> tree(places.data(), last.data());
  const auto join = [this](Node* to, Node* from) { join_nodes(*to, *from); };
  Node* all = nullptr;
  for (Node& node : nodes) {
    tree.start(node.last_chunk(), all, join);
    all = &node;
  }
  const bool any = tree.finish(all, join);

  AttentionResult<Scalar> result;
  const auto& [batch, num_heads, query_len, value_dim] = sizes_;
  result.output = Tensor<Scalar>(sizes_);
  result.lse = Tensor<Acc>({batch, num_heads, query_len, 1});
  for (Index r = 0; r < rows(); ++r) {
    const Index h = r / query_len % num_heads;
    const State state = any ? state_of(*all) : State{};
    const bool seen = any && state.row_sum[rows() + r] != Acc(0);
    const Acc factor = dropout_scale_ * ends_[static_cast<std::size_t>(h)](
                                            seen, any ? state.row_max[r] : Acc(0),
                                            any ? state.row_sum[r] : Acc(0), result.lse.data() + r);
    for (Index c = 0; any && c < value_dim; ++c) {
      const Acc x = detail::without_sign_of_zero(Acc(state.acc[r * wide() + c] * factor));
      result.output.data()[r * value_dim + c] = detail::convert<Scalar>(x);
    }
  }
  return result;
}

/// Attention to some of the keys of a larger problem, to be joined with that to others.
/// @param query, key, value, rule  as in attention_forward(); the rule is that of the whole
/// @param options  .box says where the keys lie; need_weights must not be set. lse comes without being asked for
/// @throws std::invalid_argument as attention_forward() does, and if the keys end within a chunk before the end
///         of the whole (box.kv_len)
/// Cost: as attention_forward(). Memory: value_dim + 3 numbers for every row and subtree of chunks, of which a
/// run of n chunks has at most 2 log2 n.
template <TensorLike Q, TensorLike K, TensorLike V, class R = AttentionOptions,
          class O = detail::Following<AttentionOptions, R>>
[[nodiscard]] auto attention_partial(const Q& query, const K& key, const V& value,
                                     const R& rule = R{}, const O& options = O{}) {
  constexpr const char* kWhere = "attention_partial";
  using Scalar = detail::element_t<const Q>;
  const auto given = detail::rule_and_options<AttentionOptions>(rule, options);
  static_assert(detail::TypesFit<Scalar, detail::element_t<const K>, detail::element_t<const V>,
                                 detail::rule_t<decltype(given)>>::kChecked);
  decltype(auto) rules = detail::as_rules(given.rule());
  const AttentionOptions& how = given.options();
  const TensorView<const Scalar> q = tensor_view(query);
  const TensorView<const Scalar> k = tensor_view(key);
  const TensorView<const Scalar> v = tensor_view(value);
  using Acc = accumulator_t<Scalar>;
  const CallExtent call = detail::check_attention<Scalar>(
                              kWhere, q, k, v, detail::erased<Acc>(rules), how.past_len, how.box)
                              .first;
  detail::require(!how.need_weights, kWhere,
                  ": need_weights must not be set, since weights are known when all parts are");
  const Index end = how.box.first_key + call.kv_len;
  detail::require(end % kernels::kKeyChunk == 0 || how.box.kv_len <= end, kWhere,
                  ": the keys must end with a chunk of ", kernels::kKeyChunk,
                  " or with the whole, got an end at ", end, " of ", how.box.kv_len);
  const Index wide = kernels::round_up(v.size(3), 64 / Index{sizeof(Acc)});
  detail::check_count(kWhere, "a part's state",
                      {call.batch, call.num_heads, call.query_len, wide + 3}, sizeof(Acc));
  return Partial<Scalar>::compute(q, k, v, rules, how);
}

}  // namespace mha
