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

template <class Scalar>
void check_vector(Case& c, const std::string& name, const RowVector<Scalar>& values,
                  const std::string& way) {
  Array<Scalar> array({values.size()});
  array.values = values.transpose();
  c.check(name, array, way);
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
  /// The gradient of x; those of weight and bias are kept.
  Matrix<Scalar> backward(const Matrix<Scalar>& x, const Matrix<Scalar>& grad) {
    grad_weight_.setZero(x.cols());
    grad_bias_ = grad.colwise().sum();
    Matrix<Scalar> grad_x(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      const auto centred = (x.row(i).array() - x.row(i).mean()).eval();
      const Scalar deviation = std::sqrt(centred.square().mean() + eps_);
      const auto normal = (centred / deviation).eval();
      grad_weight_.array() += grad.row(i).array() * normal;
      const auto g = (grad.row(i).array() * weight_.array()).eval();
      grad_x.row(i) = (g - g.mean() - normal * (g * normal).mean()) / deviation;
    }
    return grad_x;
  }
  void check_gradients(Case& c, const std::string& name, const std::string& way) const {
    check_vector(c, "grad." + name + ".weight", grad_weight_, way);
    check_vector(c, "grad." + name + ".bias", grad_bias_, way);
  }

 private:
  RowVector<Scalar> weight_, bias_;
  RowVector<Scalar> grad_weight_, grad_bias_;
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
  /// The gradient of x; those of weight and bias are kept.
  Matrix<Scalar> backward(const Matrix<Scalar>& x, const Matrix<Scalar>& grad) {
    grad_weight_ = grad.transpose() * x;
    grad_bias_ = grad.colwise().sum();
    return grad * weight_;
  }
  void check_gradients(Case& c, const std::string& name, const std::string& way) const {
    Array<Scalar> weight({grad_weight_.rows(), grad_weight_.cols()});
    weight.rows() = grad_weight_;
    c.check("grad." + name + ".weight", weight, way);
    check_vector(c, "grad." + name + ".bias", grad_bias_, way);
  }

 private:
  Matrix<Scalar> weight_, grad_weight_;
  RowVector<Scalar> bias_, grad_bias_;
};

template <class Scalar>
Matrix<Scalar> activate(const Matrix<Scalar>& x, const std::string& name) {
  if (name == "relu") return x.cwiseMax(Scalar(0));
  if (name != "gelu") throw std::runtime_error("activation must be relu or gelu, got " + name);
  return x.unaryExpr([](Scalar t) { return t / 2 * (1 + std::erf(t / std::sqrt(Scalar(2)))); });
}

/// The derivative of activate().
template <class Scalar>
Matrix<Scalar> activation_slope(const Matrix<Scalar>& x, const std::string& name) {
  if (name == "relu") return (x.array() > Scalar(0)).template cast<Scalar>();
  return x.unaryExpr([](Scalar t) {
    constexpr auto kDensity = static_cast<Scalar>(0.39894228040143267794L);  // 1 / sqrt(2 pi)
    return (1 + std::erf(t / std::sqrt(Scalar(2)))) / 2 + t * kDensity * std::exp(-t * t / 2);
  });
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
  LayerNorm<Scalar> norm1(c, "norm1", config.embed_dim, eps);
  LayerNorm<Scalar> norm2(c, "norm2", config.embed_dim, eps);
  Linear<Scalar> linear1(c, "linear1", config.embed_dim, inner);
  Linear<Scalar> linear2(c, "linear2", inner, config.embed_dim);
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
  if (masks.in_short()) {
    check_output(
        [&](const Matrix<Scalar>& z) {
          return forward_short<Scalar>(attention, z, nullptr, nullptr, masks, options)->output;
        },
        "no rule, causal() or lengths(n)");
  }

  if (!c.has("grad_output")) return;
  const Matrix<Scalar> grad_output = layout.rows(c.read<Scalar>("grad_output"));
  const std::string way = "ignore(m) & bias(m)";
  // x -> attention -> x1 -> feed-forward -> y, with the norms before or after; and back.
  const auto attend = [&](const Matrix<Scalar>& z) {
    return forward<Scalar>(attention, z, nullptr, nullptr, masks, options).output;
  };
  const auto attend_back = [&](const Matrix<Scalar>& z, const Matrix<Scalar>& grad) {
    const auto gradients = backward<Scalar>(attention, z, nullptr, nullptr, masks, options, grad);
    check_parameter_gradients<Scalar>(c, "self_attn.", gradients, way);
    return gradients.query;
  };
  const auto feed_forward_back = [&](const Matrix<Scalar>& z, const Matrix<Scalar>& grad) {
    const Matrix<Scalar> inside = linear1(z);
    const Matrix<Scalar> grad_inside = linear2.backward(activate(inside, activation), grad)
                                           .cwiseProduct(activation_slope(inside, activation));
    return linear1.backward(z, grad_inside);
  };
  Matrix<Scalar> grad_x;
  if (norm_first) {
    const Matrix<Scalar> normal = norm1(x);
    const Matrix<Scalar> x1 = x + attend(normal);
    const Matrix<Scalar> grad_x1 =
        grad_output + norm2.backward(x1, feed_forward_back(norm2(x1), grad_output));
    grad_x = grad_x1 + norm1.backward(x, attend_back(normal, grad_x1));
  } else {
    const Matrix<Scalar> sum1 = x + attend(x);
    const Matrix<Scalar> x1 = norm1(sum1);
    const Matrix<Scalar> grad_sum2 = norm2.backward(x1 + feed_forward(x1), grad_output);
    const Matrix<Scalar> grad_x1 = grad_sum2 + feed_forward_back(x1, grad_sum2);
    const Matrix<Scalar> grad_sum1 = norm1.backward(sum1, grad_x1);
    grad_x = grad_sum1 + attend_back(x, grad_sum1);
  }
  c.check("grad.src", layout.array(grad_x, options.batch), way);
  norm1.check_gradients(c, "norm1", way);
  norm2.check_gradients(c, "norm2", way);
  linear1.check_gradients(c, "linear1", way);
  linear2.check_gradients(c, "linear2", way);
}

}  // namespace

void run_torch_encoder_layer(Case& c) {
  const std::string dtype = c.dtype("src");
  if (dtype == "F64") return run<double>(c);
  if (dtype == "F32") return run<float>(c);
  throw std::runtime_error("expected a tensor of F64 or F32, got " + dtype);
}

}  // namespace mha::conformance
