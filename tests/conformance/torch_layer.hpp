// SPDX-License-Identifier: MIT
//
// What the two PyTorch layers share: token layouts, the masks of nn.MultiheadAttention (True means
// blocked there), its parameters, and the call of mha::MultiHead.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "case.hpp"
#include "mha/multi_head.hpp"

namespace mha::conformance {

template <class Scalar>
using TorchLayer = MultiHead<Scalar, Eigen::Dynamic>;

/// Where batch and tokens stand: "BNE", "NBE" or "NE" (one sequence, no batch axis).
class TokenLayout {
 public:
  explicit TokenLayout(const std::string& name);

  bool has_batch() const { return batch_axis_.has_value(); }
  Index batch(const Shape& shape) const { return batch_axis_ ? shape.at(*batch_axis_) : 1; }
  Index tokens(const Shape& shape) const { return shape.at(token_axis_); }

  /// The tokens as rows, sequence after sequence.
  template <class T>
  Matrix<T> rows(const Array<T>& x) const {
    if (x.rank() != (has_batch() ? 3U : 2U)) {
      throw std::runtime_error("a tensor of shape " + shape_text(x.shape) +
                               " does not have the layout's axes");
    }
    Matrix<T> result(x.rows().rows(), x.columns());
    for (Index r = 0; r < result.rows(); ++r) result.row(r) = x.rows().row(row_of(x.shape, r));
    return result;
  }
  /// The way back; `batch` is the number of sequences.
  template <class T>
  Array<T> array(const Matrix<T>& rows, Index batch) const {
    const Index tokens = batch == 0 ? 0 : rows.rows() / batch;
    Shape shape{tokens, rows.cols()};
    if (batch_axis_) shape.insert(shape.begin() + static_cast<Index>(*batch_axis_), batch);
    Array<T> result(shape);
    for (Index r = 0; r < rows.rows(); ++r) result.rows().row(row_of(shape, r)) = rows.row(r);
    return result;
  }

 private:
  /// Which row of the array row r of the matrix is.
  Index row_of(const Shape& shape, Index r) const {
    if (!batch_axis_ || *batch_axis_ == 0) return r;
    const Index tokens = shape[0];
    return r % tokens * shape[1] + r / tokens;
  }

  std::optional<std::size_t> batch_axis_;
  std::size_t token_axis_ = 0;
};

/// attn_mask and key_padding_mask. A float one is added; of a bool one True means blocked.
template <class Scalar>
class TorchMasks {
 public:
  TorchMasks(Case& c, const std::string& attn_mask, const std::string& key_padding_mask,
             Index num_heads);

  /// Every mask as it is, neutral where there is none.
  auto rule() const {
    return ignore(pairs_.blocked.view()) & ignore(keys_.blocked.view()) &
           bias(pairs_.added.view()) & bias(keys_.added.view());
  }
  /// The masks in fewer words, if they can be said so: attn_mask none or exactly causal, the
  /// key_padding_mask none or exactly "the last keys".
  struct Short {
    bool causal = false;
    std::vector<Index> lengths{};  ///< all keys if empty
  };
  std::optional<Short> in_short() const;

 private:
  /// One mask: at most one of the two arrays says something, the other is neutral.
  struct Mask {
    bool given = false;
    Array<bool> blocked{{1, 1, 1, 1}, false};
    Array<Scalar> added{{1, 1, 1, 1}, Scalar(0)};

    /// Is element (i, j) plainly allowed or plainly blocked? Nothing for a number in between.
    std::optional<bool> allows(Index b, Index i, Index j) const;
  };

  Mask pairs_;  ///< attn_mask, [N or 1, H or 1, Nq, Nk]
  Mask keys_;   ///< key_padding_mask, [N, 1, 1, Nk]
};

/// Sets the parameters stored under PyTorch's state_dict names, `prefix` in front.
template <class Scalar>
void read_parameters(Case& c, const std::string& prefix, TorchLayer<Scalar>& layer);

/// forward() with each mask as it is; and in short, if there is a short way, else nothing. What is
/// null of key and value is shared: value with key, key with query.
template <class Scalar>
MultiHeadResult<Scalar> forward(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                const TorchMasks<Scalar>& masks, const MultiHeadOptions& options);
template <class Scalar>
std::optional<MultiHeadResult<Scalar>> forward_short(
    const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query, const Matrix<Scalar>* key,
    const Matrix<Scalar>* value, const TorchMasks<Scalar>& masks, const MultiHeadOptions& options);

/// The layer's gradients by the same two ways, from that of the output.
template <class Scalar>
using TorchGradients = MultiHeadGradients<TorchLayer<Scalar>>;
template <class Scalar>
TorchGradients<Scalar> backward(const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query,
                                const Matrix<Scalar>* key, const Matrix<Scalar>* value,
                                const TorchMasks<Scalar>& masks, const MultiHeadOptions& options,
                                const Matrix<Scalar>& grad_output);
template <class Scalar>
std::optional<TorchGradients<Scalar>> backward_short(
    const TorchLayer<Scalar>& layer, const Matrix<Scalar>& query, const Matrix<Scalar>* key,
    const Matrix<Scalar>* value, const TorchMasks<Scalar>& masks, const MultiHeadOptions& options,
    const Matrix<Scalar>& grad_output);

/// Checks the gradients of the parameters against those stored under PyTorch's names.
template <class Scalar>
void check_parameter_gradients(Case& c, const std::string& prefix,
                               const TorchGradients<Scalar>& gradients, const std::string& way);

}  // namespace mha::conformance
