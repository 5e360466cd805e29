// SPDX-License-Identifier: MIT
//
// A weight and a bias in the order in which the kernels read them: kernels::Weight with a panel_stride.
#pragma once

#include <algorithm>
#include <memory>

#include "mha/internal/projection/linear_view.hpp"
#include "mha/internal/support/large_memory.hpp"
#include "mha/internal/support/matrix_check.hpp"

namespace mha::inline MHA_ABI::detail {

/// A copy of a map's weight and bias. Copies of it share the memory, which nobody writes to.
template <class Acc>
class PackedWeight {
 public:
  PackedWeight() = default;
  // A move is a copy: nothing is left without its memory.
  PackedWeight(const PackedWeight&) noexcept = default;
  PackedWeight& operator=(const PackedWeight&) noexcept = default;
  ~PackedWeight() = default;
  /// @param memory  with room for numbers_of(linear) from number `first` on
  template <class Linear>
  PackedWeight(const Linear& linear, std::shared_ptr<const LargeMemory> memory, Index first)
      : memory_(std::move(memory)), inputs_(linear.inputs()), outputs_(linear.outputs()) {
    Acc* const numbers = reinterpret_cast<Acc*>(memory_->data()) + first;
    weight_ = {numbers, 0, nullptr, inputs_ * kernels::kLanes<Acc>};
    Acc* const behind = pack(memory_of(linear.weight), numbers);
    if (!linear.has_bias()) return;
    weight_.bias = behind;
    for (Index c = 0; c < outputs_; ++c) behind[c] = convert<Acc>(linear.bias(c));
    std::fill(behind + outputs_, behind + kernels::whole_vectors<Acc>(outputs_), Acc(0));
  }

  /// Numbers that a map takes.
  template <class Linear>
  static Index numbers_of(const Linear& linear) {
    return kernels::whole_vectors<Acc>(linear.outputs()) *
           (linear.inputs() + Index{linear.has_bias()});
  }

  Index inputs() const { return inputs_; }
  Index outputs() const { return outputs_; }
  bool has_bias() const { return weight_.bias != nullptr; }
  std::size_t bytes() const { return static_cast<std::size_t>(numbers_of(*this)) * sizeof(Acc); }
  /// @tparam Scalar  of the map that it is of
  template <class Scalar>
  LinearView<Scalar> view() const {
    LinearView<Scalar> view;
    view.weight = {nullptr, inputs_, outputs_, outputs_, 1};
    view.bias = {nullptr, 1, has_bias() ? outputs_ : 0, outputs_, 1};
    view.prepacked = true;
    view.packed = weight_;
    return view;
  }

 private:
  /// Panel after panel; returns what lies behind them.
  template <class Scalar>
  static Acc* pack(const MatrixView<Scalar>& weight, Acc* to) {
    for (Index first = 0; first < weight.cols; first += kernels::kLanes<Acc>) {
      const Index outputs = std::min(kernels::kLanes<Acc>, weight.cols - first);
      const Index lanes = kernels::whole_vectors<Acc>(outputs);
      for (Index k = 0; k < weight.rows; ++k, to += lanes) {
        for (Index c = 0; c < outputs; ++c) to[c] = convert<Acc>(weight(k, first + c));
        std::fill(to + outputs, to + lanes, Acc(0));
      }
    }
    return to;
  }

  std::shared_ptr<const LargeMemory> memory_;
  kernels::Weight<Acc> weight_;
  Index inputs_ = 0;
  Index outputs_ = 0;
};

}  // namespace mha::detail
