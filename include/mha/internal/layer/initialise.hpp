// SPDX-License-Identifier: MIT
//
// The parameters that a layer starts with: see MultiHead's constructor.
#pragma once

#include <cmath>

#include "mha/internal/support/initialise.hpp"
#include "mha/multi_head_config.hpp"
#include "mha/projection.hpp"

namespace mha::inline MHA_ABI::detail {

template <class Layer>
void initialise(Layer& layer) {
  const MultiHeadConfig& c = layer.config();
  Random random(*c.seed);
  const Index outputs[] = {layer.q_proj.outputs(), layer.k_proj.outputs(), layer.v_proj.outputs()};
  const bool packed = c.kdim == c.embed_dim && c.vdim == c.embed_dim;
  const auto xavier = [&](typename Layer::Linear& linear, Index outs) {
    const auto fans = static_cast<double>(linear.inputs() + outs);
    fill_uniform(linear.weight, std::sqrt(6 / fans), random);
  };
  const Index all = outputs[0] + outputs[1] + outputs[2];
  xavier(layer.q_proj, packed ? all : outputs[0]);
  xavier(layer.k_proj, packed ? all : outputs[1]);
  xavier(layer.v_proj, packed ? all : outputs[2]);
  fill_uniform(layer.out_proj.weight, 1 / std::sqrt(static_cast<double>(layer.out_proj.inputs())),
               random);
  if (!c.add_bias_kv) return;
  layer.bias_k.resize(c.kv_heads * c.head_dim);
  layer.bias_v.resize(c.kv_heads * c.value_dim);
  fill_normal(layer.bias_k, 1 / std::sqrt(static_cast<double>(layer.bias_k.size())), random);
  fill_normal(layer.bias_v, 1 / std::sqrt(static_cast<double>(layer.bias_v.size())), random);
}

}  // namespace mha::detail
