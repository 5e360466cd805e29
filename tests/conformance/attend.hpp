// SPDX-License-Identifier: MIT
//
// The attention that ONNX's operators and PyTorch's scaled_dot_product_attention describe, as one
// set of data, and its way through mha's public API. Every case takes the general way: one rule
// that has every part, most of them neutral. A case that can be said in fewer words takes the way
// that a user would choose as well (causal() alone, keep(mask) alone, ...), so that the library's
// short cuts are compared too.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "case.hpp"
#include "mha/attention.hpp"
#include "mha/attention_gradient.hpp"
#include "mha/attention_scores.hpp"

namespace mha::conformance {

template <class Scalar>
struct AttentionCall {
  TensorView<const Scalar> query, key, value;
  Index past_len = 0;
  bool causal = false;
  std::vector<Index> offsets{};  ///< key position of query row 0, per sequence; past_len if empty
  Index left = -1;               ///< window; -1: unbounded
  Index right = -1;
  std::vector<Index> lengths{};     ///< valid keys, per sequence; all if empty
  TensorView<const bool> keep{};    ///< true: attend; no memory: no mask
  TensorView<const Scalar> bias{};  ///< added; no memory: none
  double softcap = 0;               ///< 0: none
  std::optional<double> scale{};    ///< 1 / sqrt(head_dim) if not given
};

/// Writes `outputs` by one rule that has every part.
template <class Scalar>
void attend(const AttentionCall<Scalar>& call, const AttentionOutputs<Scalar>& outputs);

/// Writes `outputs` by a rule that has only what the call needs, and says which one that was;
/// says "" and writes nothing if there is no short way, or Scalar has 16 bits.
template <class Scalar>
std::string attend_short(const AttentionCall<Scalar>& call,
                         const AttentionOutputs<Scalar>& outputs);

/// The gradients of the call's inputs, by the same two ways.
template <class Scalar>
void backward(const AttentionCall<Scalar>& call, const TensorView<const Scalar>& grad_output,
              const AttentionGradientOutputs<Scalar>& gradients);
template <class Scalar>
std::string backward_short(const AttentionCall<Scalar>& call,
                           const TensorView<const Scalar>& grad_output,
                           const AttentionGradientOutputs<Scalar>& gradients);

/// The scores at one of their stages, rounded to Scalar.
template <class Scalar>
Array<Scalar> scores(const AttentionCall<Scalar>& call, ScoreStage stage);

/// A float or bool mask of rank 1 to 4, aligned right against [batch, head, query, key]; an axis of
/// size 1 serves all. Its last axis, if shorter than `least_keys`, is extended by "blocked".
template <class Scalar>
class MaskInput {
 public:
  MaskInput(Case& c, const std::string& name, Index least_keys = 0) {
    if (!c.has(name)) return;
    if (c.dtype(name) == "BOOL") {
      allowed_ = extended(c.read<bool>(name), least_keys, false);
    } else {
      added_ = extended(c.read<Scalar>(name), least_keys,
                        static_cast<Scalar>(-std::numeric_limits<float>::infinity()));
    }
  }

  TensorView<const bool> keep() const { return given(allowed_); }
  TensorView<const Scalar> bias() const { return given(added_); }

 private:
  template <class T>
  static TensorView<const T> given(const Array<T>& mask) {
    return mask.rank() == 0 ? TensorView<const T>() : mask.view();
  }
  template <class T>
  static Array<T> extended(Array<T> mask, Index least_keys, T blocked) {
    if (mask.rank() == 0) throw std::runtime_error("the mask must have rank 1 to 4, got 0");
    if (mask.columns() >= least_keys) return mask;
    Shape shape = mask.shape;
    shape.back() = least_keys;
    Array<T> longer(shape, blocked);
    longer.rows().leftCols(mask.columns()) = mask.rows();
    return longer;
  }

  Array<bool> allowed_;
  Array<Scalar> added_;
};

}  // namespace mha::conformance
