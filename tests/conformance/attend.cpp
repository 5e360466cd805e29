// SPDX-License-Identifier: MIT
#include "attend.hpp"

#include <cmath>

namespace mha::conformance {
namespace {

/// What the call's options say of the place of queries, unless its rule says it.
template <class Scalar>
IndexList past_of(const AttentionCall<Scalar>& call) {
  return call.offsets.empty() ? IndexList(call.past_len) : IndexList();
}

template <class Scalar>
Causal causal_of(const AttentionCall<Scalar>& call) {
  return call.offsets.empty() ? causal() : causal_offset(call.offsets);
}

template <class T>
TensorView<const T> given_or(const TensorView<const T>& mask, const T& neutral) {
  return mask.data != nullptr ? mask : TensorView<const T>(&neutral, {1, 1, 1, 1});
}

/// Calls f with the rule that has every part.
template <class Scalar, class F>
void with_general_rule(const AttentionCall<Scalar>& call, const F& f) {
  const bool allowed = true;
  const Scalar nothing(0);
  const auto head_dim = static_cast<double>(call.query.size(3));
  const auto rest =
      window(call.left, call.right) &
      lengths(call.lengths.empty() ? IndexList(call.key.size(2)) : IndexList(call.lengths)) &
      keep(given_or(call.keep, allowed)) & bias(given_or(call.bias, nothing)) &
      softcap(call.softcap) & scale(call.scale.value_or(1 / std::sqrt(head_dim)));
  if (call.causal) {
    f(causal_of(call) & rest);
  } else {
    f(query_offset(call.offsets.empty() ? IndexList(call.past_len) : IndexList(call.offsets)) &
      rest);
  }
}

/// Calls f with a rule that has only what the call needs, and says which one that was; or says "".
template <class Scalar, class F>
std::string with_short_rule(const AttentionCall<Scalar>& call, const F& f) {
  // The 16-bit types take the general way only: behind their conversion is the code for float.
  if constexpr (!std::is_same_v<Scalar, accumulator_t<Scalar>>) {
    return "";
  } else {
    if (call.softcap != 0 || call.scale) return "";
    const auto by = [&](const char* name, const auto& rule) -> std::string {
      f(rule);
      return name;
    };
    const bool has_window = call.left >= 0 || call.right >= 0;
    const bool has_lengths = !call.lengths.empty();
    const bool has_keep = call.keep.data != nullptr;
    const bool has_bias = call.bias.data != nullptr;
    const int parts =
        int{call.causal} + int{has_window} + int{has_lengths} + int{has_keep} + int{has_bias};
    if (parts == 2 && call.causal && has_lengths) {
      return by("causal_offset(n) & lengths(n)", causal_of(call) & lengths(call.lengths));
    }
    if (parts == 2 && call.causal && has_window) {
      return by("causal() & window(l, r)", causal() & window(call.left, call.right));
    }
    if (parts > 1) return "";
    if (call.causal) return by("causal()", causal());
    if (has_window) return by("window(l, r)", window(call.left, call.right));
    if (has_lengths) return by("lengths(n)", lengths(call.lengths));
    if (has_keep) return by("keep(mask)", keep(call.keep));
    if (has_bias) return by("bias(mask)", bias(call.bias));
    return by("no rule", All());
  }
}

template <class Scalar, class RuleType>
void backward_by(const AttentionCall<Scalar>& call, const RuleType& rule,
                 const TensorView<const Scalar>& grad_output,
                 const AttentionGradientOutputs<Scalar>& gradients) {
  const auto forward = attention_forward(call.query, call.key, call.value, rule,
                                         {.past_len = past_of(call), .need_lse = true});
  Tensor<Scalar> output = forward.output;
  Tensor<accumulator_t<Scalar>> lse = forward.lse;
  attention_backward_into(gradients, grad_output, call.query, call.key, call.value,
                          AttentionOutputs<Scalar>{.output = output.view(), .lse = lse.view()},
                          rule, {.past_len = past_of(call)});
}

}  // namespace

template <class Scalar>
void attend(const AttentionCall<Scalar>& call, const AttentionOutputs<Scalar>& outputs) {
  const AttentionOptions options{.past_len = past_of(call)};
  with_general_rule(call, [&](const auto& rule) {
    attention_into(outputs, call.query, call.key, call.value, rule, options);
  });
}

template <class Scalar>
std::string attend_short(const AttentionCall<Scalar>& call,
                         const AttentionOutputs<Scalar>& outputs) {
  return with_short_rule(call, [&](const auto& rule) {
    attention_into(outputs, call.query, call.key, call.value, rule, {.past_len = past_of(call)});
  });
}

template <class Scalar>
void backward(const AttentionCall<Scalar>& call, const TensorView<const Scalar>& grad_output,
              const AttentionGradientOutputs<Scalar>& gradients) {
  with_general_rule(call,
                    [&](const auto& rule) { backward_by(call, rule, grad_output, gradients); });
}

template <class Scalar>
std::string backward_short(const AttentionCall<Scalar>& call,
                           const TensorView<const Scalar>& grad_output,
                           const AttentionGradientOutputs<Scalar>& gradients) {
  return with_short_rule(
      call, [&](const auto& rule) { backward_by(call, rule, grad_output, gradients); });
}
template <class Scalar>
Array<Scalar> scores(const AttentionCall<Scalar>& call, ScoreStage stage) {
  Array<Scalar> result;
  with_general_rule(call, [&](const auto& rule) {
    result = rounded<Scalar>(
        attention_scores(call.query, call.key, rule, {.stage = stage, .past_len = past_of(call)}));
  });
  return result;
}

template void attend(const AttentionCall<double>&, const AttentionOutputs<double>&);
template void attend(const AttentionCall<float>&, const AttentionOutputs<float>&);
template void attend(const AttentionCall<Eigen::half>&, const AttentionOutputs<Eigen::half>&);
template void attend(const AttentionCall<Eigen::bfloat16>&,
                     const AttentionOutputs<Eigen::bfloat16>&);
template std::string attend_short(const AttentionCall<double>&, const AttentionOutputs<double>&);
template std::string attend_short(const AttentionCall<float>&, const AttentionOutputs<float>&);
template std::string attend_short(const AttentionCall<Eigen::half>&,
                                  const AttentionOutputs<Eigen::half>&);
template std::string attend_short(const AttentionCall<Eigen::bfloat16>&,
                                  const AttentionOutputs<Eigen::bfloat16>&);
template Array<double> scores(const AttentionCall<double>&, ScoreStage);
template Array<float> scores(const AttentionCall<float>&, ScoreStage);
template Array<Eigen::half> scores(const AttentionCall<Eigen::half>&, ScoreStage);
template Array<Eigen::bfloat16> scores(const AttentionCall<Eigen::bfloat16>&, ScoreStage);

template void backward(const AttentionCall<double>&, const TensorView<const double>&,
                       const AttentionGradientOutputs<double>&);
template std::string backward_short(const AttentionCall<double>&, const TensorView<const double>&,
                                    const AttentionGradientOutputs<double>&);
template void backward(const AttentionCall<float>&, const TensorView<const float>&,
                       const AttentionGradientOutputs<float>&);
template std::string backward_short(const AttentionCall<float>&, const TensorView<const float>&,
                                    const AttentionGradientOutputs<float>&);
template void backward(const AttentionCall<Eigen::half>&, const TensorView<const Eigen::half>&,
                       const AttentionGradientOutputs<Eigen::half>&);
template std::string backward_short(const AttentionCall<Eigen::half>&,
                                    const TensorView<const Eigen::half>&,
                                    const AttentionGradientOutputs<Eigen::half>&);
template void backward(const AttentionCall<Eigen::bfloat16>&,
                       const TensorView<const Eigen::bfloat16>&,
                       const AttentionGradientOutputs<Eigen::bfloat16>&);
template std::string backward_short(const AttentionCall<Eigen::bfloat16>&,
                                    const TensorView<const Eigen::bfloat16>&,
                                    const AttentionGradientOutputs<Eigen::bfloat16>&);

}  // namespace mha::conformance
