// SPDX-License-Identifier: MIT
//
// A layer whose weights do not change any more, with these in the order in which they are read:
//     const mha::Inference fast(attention);       // of a MultiHead, which is not needed any longer
//     y = fast(x, causal());                      // the layer's bits, in each form of its calls
//     fast.forward_into(y, x, cache, causal());   // with caches too
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/layer_calls.hpp"
#include "mha/multi_head.hpp"
#include "mha/packed_projection.hpp"

namespace mha::inline MHA_ABI {

/// Multi-head attention for inference: a copy of a layer's sizes and parameters, with the calls of LayerCalls and their
/// bits, whatever the number of heads is known by. All weights lie in one piece of memory, see PackedProjection. A copy of
/// it shares that memory.
/// @tparam Scalar  float, double, Eigen::half or Eigen::bfloat16
template <class Scalar_>
class Inference : public LayerCalls<Inference<Scalar_>, Scalar_> {
  using Calls = LayerCalls<Inference, Scalar_>;

 public:
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;
  using Linear = PackedProjection<Scalar>;

  Linear q_proj;             ///< embed_dim -> num_heads * head_dim
  Linear k_proj;             ///< kdim      -> kv_heads * head_dim
  Linear v_proj;             ///< vdim      -> kv_heads * value_dim
  Linear out_proj;           ///< num_heads * value_dim -> out_dim
  RowVector<Scalar> bias_k;  ///< kv_heads * head_dim with add_bias_kv, else empty; never rotated
  RowVector<Scalar> bias_v;  ///< kv_heads * value_dim with add_bias_kv, else empty

  /// Cost: reads and writes every weight once. Memory: that of the weights once more.
  /// @throws std::invalid_argument if a parameter was replaced by one of another shape, std::bad_alloc
  template <int Heads, int HeadDim>
  explicit Inference(const MultiHead<Scalar, Heads, HeadDim>& layer)
      : bias_k(layer.bias_k), bias_v(layer.bias_v), config_(layer.config()) {
    detail::check_parameters("Inference", detail::layer_view(layer));
    using Packed = detail::PackedWeight<Acc>;
    Index numbers = 0;
    for (const auto* map : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.out_proj}) {
      numbers += Packed::numbers_of(*map);
    }
    const auto memory = std::make_shared<const detail::LargeMemory>(
        static_cast<std::size_t>(numbers) * sizeof(Acc));
    Index first = 0;
    const auto next = [&](const auto& map) {
      Linear packed(Packed(map, memory, first));
      first += Packed::numbers_of(map);
      return packed;
    };
    q_proj = next(layer.q_proj);
    k_proj = next(layer.k_proj);
    v_proj = next(layer.v_proj);
    out_proj = next(layer.out_proj);
  }

  /// The layer's.
  const MultiHeadConfig& config() const noexcept { return config_; }
  /// Bytes of the weights and biases of its maps, which all copies share.
  std::size_t memory_bytes() const noexcept {
    return q_proj.memory_bytes() + k_proj.memory_bytes() + v_proj.memory_bytes() +
           out_proj.memory_bytes();
  }

 private:
  friend Calls;
  static constexpr detail::LayerNames kNames = MHA_LAYER_NAMES("Inference");
  MultiHeadConfig config_;
};

}  // namespace mha
