// SPDX-License-Identifier: MIT
//
// What a call of the layer returns: taken before anything is computed, the mean of the weights too, so that a call that
// has changed caches does not fail afterwards.
#pragma once

#include <utility>

#include "mha/internal/layer/layer_view.hpp"
#include "mha/internal/layer/sequences.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI::detail {

/// @tparam Result  MultiHeadResult
template <class Result>
class LayerResult {
 public:
  using Acc = typename Result::Acc;

  LayerResult(const MultiHeadConfig& c, Index rows, const SequenceBatch& batch,
              const MultiHeadOptions& options) {
    result_.output.resize(rows, c.out_dim);
    if (options.need_lse) result_.lse.resize(rows, c.num_heads);
    if (!options.need_weights && !options.average_weights) return;
    const Index columns = batch.kv_len + (c.add_bias_kv ? 1 : 0) + (c.add_zero_attn ? 1 : 0);
    result_.weights = Tensor<Acc>({batch.count, c.num_heads, batch.query_len, columns});
    averages_ = options.average_weights;
    if (averages_) mean_ = Tensor<Acc>({batch.count, 1, batch.query_len, columns});
  }

  LayerOutputs<typename Result::Scalar> outputs() {
    return {rows_of(result_.output), rows_of(result_.lse), result_.weights.view()};
  }

  /// To be called once, when all has been written.
  Result finish() {
    if (averages_) {
      const Tensor<Acc>& weights = result_.weights;
      for (Index b = 0; b < weights.size(0); ++b) {
        for (Index h = 0; h < weights.size(1); ++h) mean_.matrix(b, 0) += weights.matrix(b, h);
        mean_.matrix(b, 0) /= Acc(static_cast<double>(weights.size(1)));
      }
      result_.weights = std::move(mean_);
    }
    return std::move(result_);
  }

 private:
  template <class T>
  static MatrixView<T> rows_of(Matrix<T>& m) {
    return {m.data(), m.rows(), m.cols(), m.cols(), 1};
  }

  Result result_;
  Tensor<Acc> mean_;
  bool averages_ = false;
};

}  // namespace mha::detail
