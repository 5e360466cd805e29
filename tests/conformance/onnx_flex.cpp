// SPDX-License-Identifier: MIT
//
// ONNX's FlexAttention (preview domain): rank 4, the scores changed by a graph, which becomes an
// mha::score_mod.
#include <cmath>

#include "attend.hpp"
#include "score_graph.hpp"

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
  if (c.has_attribute("scale")) call.scale = c.real("scale");

  const auto check_y = [&](const auto& attend_it) {
    Array<Scalar> y({q.size(0), q.size(1), q.size(2), v.size(3)});
    AttentionOutputs<Scalar> outputs;
    outputs.output = y.view();
    const std::string way = attend_it(outputs);
    if (!way.empty()) c.check("Y", y, way);
  };
  if (c.has_attribute("score_mod")) {
    const ScoreGraph graph(c.attribute("score_mod"), {q.size(0), q.size(1), q.size(2), k.size(2)});
    const auto modify = [&graph](auto score, Index b, Index h, Index i, Index j) {
      return static_cast<decltype(score)>(graph(static_cast<double>(score), b, h, i, j));
    };
    const double factor = call.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
    check_y([&](const AttentionOutputs<Scalar>& outputs) -> std::string {
      attention_into(outputs, call.query, call.key, call.value, scale(factor) & score_mod(modify));
      return "score_mod";
    });
  } else {
    check_y([&](const AttentionOutputs<Scalar>& outputs) -> std::string {
      attend(call, outputs);
      return "general rule";
    });
    check_y([&](const AttentionOutputs<Scalar>& outputs) { return attend_short(call, outputs); });
  }
}

}  // namespace

void run_onnx_flex_attention(Case& c) {
  if (c.has_attribute("prob_mod")) {
    throw Skip("prob_mod: the library has no hook behind the softmax");
  }
  with_scalar(c.dtype("Q"), [&]<class Scalar>() { run<Scalar>(c); });
}

}  // namespace mha::conformance
