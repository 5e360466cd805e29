// SPDX-License-Identifier: MIT
//
// What a call of the layer must satisfy. Everything is checked here before anything is written, in
// release builds too; each sentence names the function that was called and the numbers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>

#include "mha/internal/call/erased_rules.hpp"
#include "mha/internal/layer/layer_view.hpp"
#include "mha/internal/layer/sequences.hpp"
#include "mha/internal/support/checks.hpp"
#include "mha/internal/support/matrix_check.hpp"
#include "mha/multi_head_config.hpp"
#include "mha/rules/identity.hpp"

namespace mha::inline MHA_ABI::detail {

/// What errors call a layer's functions.
struct LayerNames {
  const char *forward, *forward_into, *append, *attend, *workspace_bytes;
};
#define MHA_LAYER_NAMES(Class)                                                     \
  {                                                                                \
    Class "::forward", Class "::forward_into", Class "::append", Class "::attend", \
        Class "::workspace_bytes"                                                  \
  }

/// A number that no other object has: a copy draws its own, what is moved keeps it.
class ObjectId {
 public:
  ObjectId() noexcept : value_(next()) {}
  ObjectId(const ObjectId&) noexcept : value_(next()) {}
  ObjectId(ObjectId&& other) noexcept : value_(std::exchange(other.value_, next())) {}
  ObjectId& operator=(const ObjectId& other) noexcept {
    if (this != &other) value_ = next();
    return *this;
  }
  ObjectId& operator=(ObjectId&& other) noexcept {
    if (this != &other) value_ = std::exchange(other.value_, next());
    return *this;
  }
  ~ObjectId() = default;
  std::uint64_t value() const noexcept { return value_; }  ///< never 0

 private:
  static std::uint64_t next() noexcept {
    static std::atomic<std::uint64_t> last{0};
    return last.fetch_add(1, std::memory_order_relaxed) + 1;
  }
  std::uint64_t value_;
};

/// How a pass was made: what its backward() must be called with.
struct PassOrigin {
  std::uint64_t layer = 0;     ///< the ObjectId; 0 = the pass has not been run
  const void* rule = nullptr;  ///< rule_identity()
  std::uint64_t digest = 0;    ///< of the rule
  std::array<Index, 4> biases{};
  IndexList sequences{}, kv_sequences{}, past_len{}, positions{}, kv_positions{};

  PassOrigin() = default;
  /// What has been moved from has not been run.
  PassOrigin(PassOrigin&& other) noexcept { *this = std::move(other); }
  PassOrigin& operator=(PassOrigin&& other) noexcept {
    if (this == &other) return *this;
    layer = std::exchange(other.layer, 0);
    rule = other.rule;
    digest = other.digest;
    biases = other.biases;
    sequences = std::move(other.sequences);
    kv_sequences = std::move(other.kv_sequences);
    past_len = std::move(other.past_len);
    positions = std::move(other.positions);
    kv_positions = std::move(other.kv_positions);
    return *this;
  }
  ~PassOrigin() = default;

  template <class Scalar>
  static std::array<Index, 4> biases_of(const LayerView<Scalar>& layer) {
    return {layer.q_proj.bias.cols, layer.k_proj.bias.cols, layer.v_proj.bias.cols,
            layer.out_proj.bias.cols};
  }
  template <class Scalar>
  void record(const LayerView<Scalar>& of, const void* rule_type, std::uint64_t rule_digest,
              const MultiHeadOptions& options) {
    rule = rule_type;
    digest = rule_digest;
    biases = biases_of(of);
    sequences = options.sequences;
    kv_sequences = options.kv_sequences;
    past_len = options.past_len;
    positions = options.positions;
    kv_positions = options.kv_positions;
  }
};

/// The parameters are public: they may have been replaced by some of another shape.
template <class Scalar>
void check_parameters(const char* where, const LayerView<Scalar>& layer) {
  const MultiHeadConfig& c = layer.config;
  const auto check_one = [where](const char* name, const LinearView<Scalar>& linear, Index inputs,
                                 Index outputs) {
    require(linear.inputs() == inputs && linear.outputs() == outputs, where, ": ", name,
            ".weight must be ", inputs, " x ", outputs, ", got ", linear.inputs(), " x ",
            linear.outputs());
    require(!linear.has_bias() || linear.bias.cols == outputs, where, ": ", name,
            ".bias must have 0 or ", outputs, " entries, got ", linear.bias.cols);
  };
  check_one("q_proj", layer.q_proj, c.embed_dim, c.num_heads * c.head_dim);
  check_one("k_proj", layer.k_proj, c.kdim, c.kv_heads * c.head_dim);
  check_one("v_proj", layer.v_proj, c.vdim, c.kv_heads * c.value_dim);
  check_one("out_proj", layer.out_proj, c.num_heads * c.value_dim, c.out_dim);
  const Index k_size = c.add_bias_kv ? c.kv_heads * c.head_dim : 0;
  const Index v_size = c.add_bias_kv ? c.kv_heads * c.value_dim : 0;
  require(layer.bias_k.cols == k_size && layer.bias_v.cols == v_size, where,
          ": bias_k and bias_v must have ", k_size, " and ", v_size, " entries, got ",
          layer.bias_k.cols, " and ", layer.bias_v.cols);
}

/// Everything of a call lies in memory whose bytes can be counted.
template <class Acc>
void check_total_size(const char* where, const MultiHeadConfig& c, Index query_rows, Index key_rows,
                      const SequenceBatch& batch, bool with_weights) {
  constexpr double kMost = 0x1p60;                             // bytes
  constexpr Index kFew = Index{1} << (sizeof(Index) * 2 + 4);  // 2^20: widths are at most 2^30
  if (query_rows < kFew && key_rows < kFew && batch.count < kFew && !with_weights) return;
  const auto number = [](Index n) { return static_cast<double>(n); };
  const double query_width = number(c.num_heads * (c.head_dim + c.value_dim + 1) + c.out_dim);
  const double key_width = number(c.kv_heads * (c.head_dim + c.value_dim));
  const double entries =
      number(query_rows) * query_width + number(key_rows + batch.count) * key_width;
  require(entries * sizeof(Acc) <= kMost, where,
          ": what is projected from the rows must fit 2^60 bytes, got ", query_rows,
          " query rows and ", key_rows, " key rows for num_heads ", c.num_heads, ", kv_heads ",
          c.kv_heads, ", head_dim ", c.head_dim, " and value_dim ", c.value_dim);
  if (!with_weights) return;
  const double weights = number(batch.count) * number(c.num_heads) * number(batch.query_len) *
                         number(batch.kv_len + 2);
  require(weights * sizeof(Acc) <= kMost, where, ": the weights must fit 2^60 bytes, got ",
          batch.count, " sequences, ", c.num_heads, " heads, ", batch.query_len, " queries and ",
          batch.kv_len, " keys");
}

/// Positions are for rotary, and as many as the rows.
inline void check_call_positions(const char* where, const MultiHeadConfig& c, Index query_rows,
                                 Index key_rows, const MultiHeadOptions& options) {
  const IndexList& positions = options.positions;
  const IndexList& kv_positions = options.kv_positions;
  require(c.rotary || (positions.empty() && kv_positions.empty()), where,
          ": positions are for a layer with rotary, got ", positions.size(), " positions and ",
          kv_positions.size(), " kv_positions");
  require(positions.size() <= 1 || positions.size() == query_rows, where,
          ": positions must be one number, or one per row of query, got ", positions.size(),
          " and ", query_rows);
  require(kv_positions.size() <= 1 || kv_positions.size() == key_rows, where,
          ": kv_positions must be one number, or one per row of key, got ", kv_positions.size(),
          " and ", key_rows);
  require(kv_positions.empty() || !positions.empty(), where,
          ": positions must be given beside kv_positions, got 0 and ", kv_positions.size());
  require(!kv_positions.empty() || positions.size() <= 1 || query_rows == key_rows, where,
          ": kv_positions must be given beside positions, since key.rows() is not query.rows(): ",
          key_rows, " and ", query_rows);
}

/// A rule and the options place the queries alike.
template <class Acc>
void check_places(const char* where, const MultiHeadConfig& c, const ErasedRules<Acc>& rules,
                  const SequenceBatch& batch, const MultiHeadOptions& options) {
  const bool keys_follow = c.rotary && !options.positions.empty() && options.kv_positions.empty();
  const bool said = !options.past_len.empty();
  if (!keys_follow && rules.places + int{said} < 2) return;
  for (Index b = 0; b < batch.count; ++b) {
    const Extent extent{c.num_heads, batch.query_len_of(options, b), batch.kv_len_of(options, b),
                        options.past_len[b]};
    if (rules.places + int{said} > 1) rules.check_place(where, extent, b, said);
    if (!keys_follow) continue;
    const Index place = rules.placed(extent, b, 0).offset;
    require(place == 0, where,
            ": kv_positions must be given beside positions where queries do not stand at the first "
            "key, got offset ",
            place, " for sequence ", b);
  }
}

/// A call whose arguments are right.
template <class Scalar>
struct CheckedCall {
  SequenceBatch batch;
  CheckedMatrix<const Scalar> query, key, value;
};

/// The checks of a call's inputs, rule and options.
template <class Scalar>
CheckedCall<Scalar> check_call(const char* where, const LayerView<Scalar>& layer,
                               const LayerInputs<Scalar>& inputs,
                               const ErasedRules<accumulator_t<Scalar>>& rules,
                               const MultiHeadOptions& options) {
  const MultiHeadConfig& c = layer.config;
  const auto& [query, key, value] = inputs;
  require(query.cols == c.embed_dim, where, ": query.cols() must equal embed_dim, got ", query.cols,
          " and ", c.embed_dim);
  require(key.cols == c.kdim, where, ": key.cols() must equal kdim, got ", key.cols, " and ",
          c.kdim);
  require(value.cols == c.vdim, where, ": value.cols() must equal vdim, got ", value.cols, " and ",
          c.vdim);
  require(value.rows == key.rows, where, ": value.rows() must equal key.rows() (kv_len), got ",
          value.rows, " and ", key.rows);
  CheckedCall<Scalar> call{{},
                           checked(where, "query", query),
                           checked(where, "key", key),
                           checked(where, "value", value)};
  check_parameters(where, layer);
  const SequenceBatch batch = call.batch = cut_sequences(where, query.rows, key.rows, options);
  check_total_size<accumulator_t<Scalar>>(where, c, query.rows, key.rows, batch,
                                          options.need_weights || options.average_weights);
  check_call_positions(where, c, query.rows, key.rows, options);
  rules.check(
      {where, batch.count, c.num_heads, batch.query_len, batch.kv_len, batch.lengths_differ});
  check_places(where, c, rules, batch, options);
  return call;
}

/// An output of yours: its shape, its memory, and that no input or parameter lies there.
template <class Scalar>
void check_output(const char* where, const LayerView<Scalar>& layer,
                  const MatrixView<Scalar>& output, const CheckedCall<Scalar>& call) {
  const Index out_dim = layer.config.out_dim;
  const Index rows = call.query.view.rows;
  require(output.rows == rows && output.cols == out_dim, where, ": output must be ", rows, " x ",
          out_dim, ", got ", output.rows, " x ", output.cols);
  const auto written = checked(where, "output", output);
  if (output.col_stride != 1 || output.row_stride < output.cols) {
    check_own_places(where, PlacedMatrix(where, "output", output).placed());
  }
  for (const auto* read : {&call.query, &call.key, &call.value}) {
    check_apart(where, written, *read);
  }
  for_each_parameter(layer, [&](const char* name, const MatrixView<const Scalar>& parameter) {
    check_apart(where, written, owned(name, parameter));
  });
}

inline void check_output_alone(const char* where, const MultiHeadOptions& options) {
  require(!options.need_weights && !options.average_weights && !options.need_lse, where,
          ": weights and lse come from MultiHead::forward, got need_weights ",
          int{options.need_weights}, ", average_weights ", int{options.average_weights},
          " and need_lse ", int{options.need_lse});
}

/// A list of the backward pass's options, which must be that of the forward pass.
inline void check_same_list(const char* where, const char* name, const IndexList& now,
                            const IndexList& then) {
  require(now.size() == then.size(), where, ": ", name, " must be that of forward_training(), got ",
          now.size(), " entries and ", then.size());
  for (Index k = 0; k < now.size(); ++k) {
    require(now[k] == then[k], where, ": ", name, " must be that of forward_training(), got ",
            now[k], " and ", then[k], " in entry ", k);
  }
}

inline void check_same_options(const char* where, const MultiHeadOptions& options,
                               const SequenceBatch& now, const SequenceBatch& then,
                               const PassOrigin& origin) {
  check_same_list(where, "sequences", options.sequences, origin.sequences);
  check_same_list(where, "kv_sequences", options.kv_sequences, origin.kv_sequences);
  require(now.count == then.count, where, ": batch must be that of forward_training(), got ",
          now.count, " and ", then.count);
  for (Index b = 0; b < now.count; ++b) {
    require(options.past_len[b] == origin.past_len[b], where,
            ": past_len must be that of forward_training(), got ", options.past_len[b], " and ",
            origin.past_len[b], " for sequence ", b);
    if (options.past_len.size() <= 1 && origin.past_len.size() <= 1) break;  // one for all
  }
  check_same_list(where, "positions", options.positions, origin.positions);
  check_same_list(where, "kv_positions", options.kv_positions, origin.kv_positions);
}

/// Gradients of the shapes of this layer's parameters.
template <class Scalar, class Acc>
void check_gradients(const char* where, const LayerView<Scalar>& layer,
                     const LayerGradientView<Acc>& gradients) {
  const auto check_one = [where](const char* name, const LinearParameters<Acc>& gradient,
                                 const LinearView<Scalar>& linear) {
    require(gradient.inputs() == linear.inputs() && gradient.outputs() == linear.outputs(), where,
            ": gradients.", name, ".weight must be ", linear.inputs(), " x ", linear.outputs(),
            ", got ", gradient.inputs(), " x ", gradient.outputs());
    require(gradient.bias.cols == linear.bias.cols, where, ": gradients.", name, ".bias must have ",
            linear.bias.cols, " entries, got ", gradient.bias.cols);
  };
  check_one("q_proj", gradients.q_proj, layer.q_proj);
  check_one("k_proj", gradients.k_proj, layer.k_proj);
  check_one("v_proj", gradients.v_proj, layer.v_proj);
  check_one("out_proj", gradients.out_proj, layer.out_proj);
  require(gradients.bias_k.cols == layer.bias_k.cols && gradients.bias_v.cols == layer.bias_v.cols,
          where, ": gradients.bias_k and bias_v must have ", layer.bias_k.cols, " and ",
          layer.bias_v.cols, " entries, got ", gradients.bias_k.cols, " and ",
          gradients.bias_v.cols);
}

}  // namespace mha::detail
