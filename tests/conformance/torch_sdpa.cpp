// SPDX-License-Identifier: MIT
//
// PyTorch's scaled_dot_product_attention: rank 4, mostly inputs that are hard on the numbers.
#include <cmath>

#include "attend.hpp"

namespace mha::conformance {
namespace {

template <class Scalar>
void run(Case& c) {
  const Array<Scalar> q = c.read<Scalar>("Q");
  const Array<Scalar> k = c.read<Scalar>("K");
  const Array<Scalar> v = c.read<Scalar>("V");
  AttentionCall<Scalar> call;
  call.query = q.view();
  call.key = k.view();
  call.value = v.view();
  const MaskInput<Scalar> mask(c, "attn_mask");
  call.keep = mask.keep();
  call.bias = mask.bias();
  call.causal = c.flag("is_causal", false);
  if (c.has_attribute("scale") && c.attribute("scale") != "1/sqrt(head_size)") {
    call.scale = c.real("scale");
  }

  const bool wants_weights = c.has("attn_weights");
  const auto sized = [&](Index channels) {
    return Shape{call.query.size(0), call.query.size(1), call.query.size(2), channels};
  };
  const auto check_outputs = [&](const auto& attend_it) {
    Array<Scalar> y(sized(call.value.size(3)));
    Array<accumulator_t<Scalar>> weights(sized(call.key.size(2)));
    AttentionOutputs<Scalar> outputs;
    outputs.output = y.view();
    if (wants_weights) outputs.weights = weights.view();
    const std::string way = attend_it(outputs);
    if (way.empty()) return;
    c.check("Y", y, way);
    if (wants_weights) c.check("attn_weights", weights, way);
  };
  check_outputs([&](const AttentionOutputs<Scalar>& outputs) -> std::string {
    attend(call, outputs);
    return "general rule";
  });
  check_outputs(
      [&](const AttentionOutputs<Scalar>& outputs) { return attend_short(call, outputs); });

  if (!c.has("grad_output")) return;
  const Array<Scalar> grad_output = c.read<Scalar>("grad_output");
  const auto check_gradients = [&](const auto& backward_it) {
    Array<Scalar> grad_q(q.shape);
    Array<Scalar> grad_k(k.shape);
    Array<Scalar> grad_v(v.shape);
    const std::string way =
        backward_it(AttentionGradientOutputs<Scalar>{grad_q.view(), grad_k.view(), grad_v.view()});
    if (way.empty()) return;
    c.check("grad.Q", grad_q, way);
    c.check("grad.K", grad_k, way);
    c.check("grad.V", grad_v, way);
  };
  check_gradients([&](const AttentionGradientOutputs<Scalar>& gradients) -> std::string {
    backward(call, std::as_const(grad_output).view(), gradients);
    return "general rule";
  });
  check_gradients([&](const AttentionGradientOutputs<Scalar>& gradients) {
    return backward_short(call, std::as_const(grad_output).view(), gradients);
  });
}

}  // namespace

void run_torch_sdpa(Case& c) {
  with_scalar(c.dtype("Q"), [&]<class Scalar>() { run<Scalar>(c); });
}

}  // namespace mha::conformance
