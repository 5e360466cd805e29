// SPDX-License-Identifier: MIT
//
// See two_units_a.cpp.
#include <mha/mha.hpp>
#if __has_include(<nlohmann/json.hpp>)
#include <mha/io/safetensors.hpp>
#include <mha/io/torch.hpp>
#endif

float from_b(const Eigen::MatrixXf& x);

float from_b(const Eigen::MatrixXf& x) {
  mha::ThreadPool pool(2);
  return mha::scaled_dot_product_attention(x, x, x, mha::causal(), {.executor = pool}).sum();
}
