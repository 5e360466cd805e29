// SPDX-License-Identifier: MIT
//
// PyTorch's nn.TransformerEncoderLayer: attention by mha::MultiHead, layer norm and feed-forward
// here.
//     post-norm:  x1 = norm1(x + SA(x))      y = norm2(x1 + FF(x1))
//     pre-norm:   x1 = x + SA(norm1(x))      y = x1 + FF(norm2(x1))
//     FF(x) = linear2(act(linear1(x)))
#include <cmath>

#include "torch_layer.hpp"

namespace mha::conformance {
namespace {

/// A parameter, which must have this shape.
template <class Scalar>
Array<Scalar> parameter(Case& c, const std::string& name, const Shape& shape) {
  Array<Scalar> result = c.read<Scalar>(name);
  if (result.shape == shape) return result;
  throw std::runtime_error(name + ": expected the shape " + shape_text(shape) + ", got " +
                           shape_text(result.shape));
}

/// weight * (x - mean) / sqrt(variance + eps) + bias, row by row; the variance is the biased one.
template <class Scalar>
class LayerNorm {
 public:
  LayerNorm(Case& c, const std::string& name, Index width, Scalar eps)
      : weight_(parameter<Scalar>(c, name + ".weight", {width}).values.transpose()),
        bias_(parameter<Scalar>(c, name + ".bias", {width}).values.transpose()),
        eps_(eps) {}

  Matrix<Scalar> operator()(const Matrix<Scalar>& x) const {
    Matrix<Scalar> y(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      const auto centred = (x.row(i).array() - x.row(i).mean()).eval();
      const Scalar deviation = std::sqrt(centred.square().mean() + eps_);
      y.row(i) = centred / deviation * weight_.array() + bias_.array();
    }
    return y;
  }

 private:
  RowVector<Scalar> weight_, bias_;
  Scalar eps_;
};

template <class Scalar>
class Linear {
 public:
  Linear(Case& c, const std::string& name, Index inputs, Index outputs)
      : weight_(parameter<Scalar>(c, name + ".weight", {outputs, inputs}).rows()),
        bias_(parameter<Scalar>(c, name + ".bias", {outputs}).values.transpose()) {}

  Matrix<Scalar> operator()(const Matrix<Scalar>& x) const {
    return (x * weight_.transpose()).rowwise() + bias_;
  }

 private:
  Matrix<Scalar> weight_;
  RowVector<Scalar> bias_;
};

template <class Scalar>
Matrix<Scalar> activate(const Matrix<Scalar>& x, const std::string& name) {
  if (name == "relu") return x.cwiseMax(Scalar(0));
  if (name != "gelu") throw std::runtime_error("activation must be relu or gelu, got " + name);
  return x.unaryExpr([](Scalar t) { return t / 2 * (1 + std::erf(t / std::sqrt(Scalar(2)))); });
}

template <class Scalar>
void run(Case& c) {
  if (c.real("dropout", 0) != 0) throw std::runtime_error("dropout must be 0");
  const std::string layout_name = c.metadata("layout");
  const TokenLayout layout(layout_name);
  if (layout.has_batch() && c.flag("batch_first", false) != (layout_name == "BNE")) {
    throw std::runtime_error("batch_first contradicts the layout");
  }
  const Array<Scalar> src = c.read<Scalar>("src");
  const Matrix<Scalar> x = layout.rows(src);
  MultiHeadConfig config;
  config.embed_dim = c.integer("d_model");
  config.num_heads = c.integer("nhead");
  TorchLayer<Scalar> attention(config);
  read_parameters(c, "self_attn.", attention);
  const TorchMasks<Scalar> masks(c, "src_mask", "src_key_padding_mask", config.num_heads);
  const auto eps = static_cast<Scalar>(c.real("layer_norm_eps", 1e-5));
  const Index inner = c.integer("dim_feedforward");
  const LayerNorm<Scalar> norm1(c, "norm1", config.embed_dim, eps);
  const LayerNorm<Scalar> norm2(c, "norm2", config.embed_dim, eps);
  const Linear<Scalar> linear1(c, "linear1", config.embed_dim, inner);
  const Linear<Scalar> linear2(c, "linear2", inner, config.embed_dim);
  const std::string activation = c.attribute("activation");
  const bool norm_first = c.flag("norm_first", false);
  if (x.cols() != config.embed_dim) throw std::runtime_error("src must be d_model wide");

  MultiHeadOptions options;
  options.batch = layout.batch(src.shape);
  const auto feed_forward = [&](const Matrix<Scalar>& z) -> Matrix<Scalar> {
    return linear2(activate(linear1(z), activation));
  };
  const auto check_output = [&](const auto& attend, const std::string& way) {
    Matrix<Scalar> y;
    if (norm_first) {
      const Matrix<Scalar> x1 = x + attend(norm1(x));
      y = x1 + feed_forward(norm2(x1));
    } else {
      const Matrix<Scalar> x1 = norm1(x + attend(x));
      y = norm2(x1 + feed_forward(x1));
    }
    c.check("output", layout.array(y, options.batch), way);
  };
  check_output(
      [&](const Matrix<Scalar>& z) {
        return forward<Scalar>(attention, z, nullptr, nullptr, masks, options).output;
      },
      "ignore(m) & bias(m)");
  if (!masks.in_short()) return;
  check_output(
      [&](const Matrix<Scalar>& z) {
        return forward_short<Scalar>(attention, z, nullptr, nullptr, masks, options)->output;
      },
      "no rule, causal() or lengths(n)");
}

}  // namespace

void run_torch_encoder_layer(Case& c) {
  const std::string dtype = c.dtype("src");
  if (dtype == "F64") return run<double>(c);
  if (dtype == "F32") return run<float>(c);
  throw std::runtime_error("expected a tensor of F64 or F32, got " + dtype);
}

}  // namespace mha::conformance
