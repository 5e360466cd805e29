// SPDX-License-Identifier: MIT
//
// ONNX's Attention, opset 23 to 25: inputs of rank 3 (batch, token, head * channel) or 4 (batch,
// head, token, channel), cached keys and values, padded caches, every mask, every stage of the
// scores.
#include <cstdint>

#include "attend.hpp"

namespace mha::conformance {
namespace {

/// An input as [batch, head, token, channel]: rank 4 as it is, the heads of rank 3 as a view.
template <class T, class A>
TensorView<T> split(A& x, Index num_heads, const char* attribute) {
  if (x.rank() == 4) {
    if (num_heads != 0 && num_heads != x.size(1)) {
      throw std::runtime_error(std::string(attribute) + " contradicts the shape");
    }
    return x.view();
  }
  if (x.rank() != 3) throw std::runtime_error("Q, K and V must have rank 3 or 4");
  if (num_heads == 0)
    throw std::runtime_error(std::string(attribute) + " must be given for rank 3");
  auto rows = x.rows();
  return split_heads(rows, num_heads, x.size(0));
}

/// The cached tokens, then the new ones: [batch, head, token, channel].
template <class Scalar>
Array<Scalar> join(const TensorView<const Scalar>& past, const TensorView<const Scalar>& now) {
  for (const std::size_t axis : {0U, 1U, 3U}) {
    if (past.size(axis) != now.size(axis)) {
      throw std::runtime_error("past_key and past_value must fit K and V");
    }
  }
  Array<Scalar> joined({now.size(0), now.size(1), past.size(2) + now.size(2), now.size(3)});
  const TensorView<Scalar> view = joined.view();
  for (Index b = 0; b < view.size(0); ++b) {
    for (Index h = 0; h < view.size(1); ++h) {
      for (Index j = 0; j < view.size(2); ++j) {
        for (Index d = 0; d < view.size(3); ++d) {
          view(b, h, j, d) = j < past.size(2) ? past(b, h, j, d) : now(b, h, j - past.size(2), d);
        }
      }
    }
  }
  return joined;
}

void check_softmax_precision(Case& c) {
  // The library's softmax runs in double for double, else in float: no less than any of these asks
  // for that the tolerances can see.
  const Index type = c.integer("softmax_precision", 1);
  constexpr Index kFloat = 1;
  constexpr Index kFloat16 = 10;
  constexpr Index kDouble = 11;
  constexpr Index kBfloat16 = 16;
  if (type != kFloat && type != kFloat16 && type != kDouble && type != kBfloat16) {
    throw std::runtime_error("softmax_precision must be 1, 10, 11 or 16");
  }
}

template <class Scalar>
void run(Case& c) {
  const Array<Scalar> q = c.read<Scalar>("Q");
  const Array<Scalar> k = c.read<Scalar>("K");
  const Array<Scalar> v = c.read<Scalar>("V");
  const Index q_num_heads = c.integer("q_num_heads", 0);
  const Index kv_num_heads = c.integer("kv_num_heads", 0);

  AttentionCall<Scalar> call;
  call.query = split<const Scalar>(q, q_num_heads, "q_num_heads");
  call.key = split<const Scalar>(k, kv_num_heads, "kv_num_heads");
  call.value = split<const Scalar>(v, kv_num_heads, "kv_num_heads");

  // Cache. Without one, keys and values are read where they lie.
  const bool has_past = c.has("past_key") || c.has("past_value");
  Array<Scalar> past_key({0, 0, 0, 0});
  Array<Scalar> past_value({0, 0, 0, 0});
  if (has_past) {
    past_key = c.read<Scalar>("past_key");
    past_value = c.read<Scalar>("past_value");
    call.past_len = past_key.size(2);
  } else {
    past_key.shape = {call.key.size(0), call.key.size(1), 0, call.key.size(3)};
    past_value.shape = {call.value.size(0), call.value.size(1), 0, call.value.size(3)};
  }
  const Array<Scalar> present_key = join<Scalar>(std::as_const(past_key).view(), call.key);
  const Array<Scalar> present_value = join<Scalar>(std::as_const(past_value).view(), call.value);
  if (has_past) {
    call.key = present_key.view();
    call.value = present_value.view();
  }
  if (c.has("present_key")) c.check("present_key", present_key, "copied");
  if (c.has("present_value")) c.check("present_value", present_value, "copied");

  // Rules.
  const Index query_len = call.query.size(2);
  const MaskInput<Scalar> mask(c, "attn_mask", call.key.size(2));
  call.keep = mask.keep();
  call.bias = mask.bias();
  call.causal = c.flag("is_causal", false);
  call.left = c.integer("left_window_size", -1);
  call.right = c.integer("right_window_size", -1);
  call.softcap = c.real("softcap", 0);
  if (c.has_attribute("scale")) call.scale = c.real("scale");
  if (c.has("nonpad_kv_seqlen")) {
    if (has_past) throw std::runtime_error("nonpad_kv_seqlen must not come with a cache");
    for (const std::int64_t n : c.read<std::int64_t>("nonpad_kv_seqlen").values) {
      call.lengths.push_back(static_cast<Index>(n));
      call.offsets.push_back(static_cast<Index>(n) - query_len);
    }
  }
  check_softmax_precision(c);

  // Y, by one way or two, written into the layout of Q; and the weights for mode 3.
  const Index mode = c.integer("qk_matmul_output_mode", 0);
  if (mode < 0 || mode > 3) throw std::runtime_error("qk_matmul_output_mode must be 0 to 3");
  const bool wants_scores = c.has("qk_matmul_output");
  const Index batch = call.query.size(0);
  const Index num_heads = call.query.size(1);
  const Shape y_shape = q.rank() == 3 ? Shape{batch, query_len, num_heads * call.value.size(3)}
                                      : Shape{batch, num_heads, query_len, call.value.size(3)};
  Tensor<accumulator_t<Scalar>> weights({batch, num_heads, query_len, call.key.size(2)});
  const auto check_outputs = [&](const auto& attend_it) {
    Array<Scalar> y(y_shape);
    AttentionOutputs<Scalar> outputs;
    outputs.output = split<Scalar>(y, num_heads, "q_num_heads");
    if (wants_scores && mode == 3) outputs.weights = weights.view();
    const std::string way = attend_it(outputs);
    if (way.empty()) return;
    c.check("Y", y, way);
    if (wants_scores && mode == 3) c.check("qk_matmul_output", rounded<Scalar>(weights), way);
  };
  check_outputs([&](const AttentionOutputs<Scalar>& outputs) -> std::string {
    attend(call, outputs);
    return "general rule";
  });
  check_outputs(
      [&](const AttentionOutputs<Scalar>& outputs) { return attend_short(call, outputs); });

  if (wants_scores && mode < 3) {
    constexpr ScoreStage kStages[] = {ScoreStage::scaled, ScoreStage::capped, ScoreStage::modified};
    c.check("qk_matmul_output", scores(call, kStages[mode]), "attention_scores");
  }
}

}  // namespace

void run_onnx_attention(Case& c) {
  with_scalar(c.dtype("Q"), [&]<class Scalar>() { run<Scalar>(c); });
}

}  // namespace mha::conformance
