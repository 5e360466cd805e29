// SPDX-License-Identifier: MIT
//
// What a transformer needs besides attention in order to learn: linear maps, layer norm, embeddings,
// blocks of them with mha::MultiHead, the cross-entropy loss and Adam. Every module has
//     y = module.forward(x)          keeps what backward needs
//     dx = module.backward(dy)       adds to the gradients of its parameters
//     module.collect(list)           appends its parameters and their gradients
// A row is a token, sequences follow each other.
// Sources: Vaswani et al. 2017, arXiv:1706.03762; Ba et al. 2016, arXiv:1607.06450 (layer norm); Xiong
// et al. 2020, arXiv:2002.04745 (layer norm first); Kingma, Ba 2015, arXiv:1412.6980 (Adam).
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mha/mha.hpp>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace examples {

using mha::Index;
using mha::Matrix;
using mha::RowVector;

/// A parameter and its gradient.
struct Learned {
  std::span<float> values;
  std::span<float> gradient;
};
using LearnedList = std::vector<Learned>;

template <class V, class G>
Learned learned(V& values, G& gradient) {
  return {{values.data(), static_cast<std::size_t>(values.size())},
          {gradient.data(), static_cast<std::size_t>(gradient.size())}};
}

inline void set_gradients_zero(const LearnedList& all) {
  for (const Learned& p : all) std::fill(p.gradient.begin(), p.gradient.end(), 0.0f);
}

/// Uniform in [-limit, limit).
inline void fill_uniform(std::span<float> values, float limit, std::mt19937& random) {
  for (float& x : values) {
    x = limit * (static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f);
  }
}

/// y = x W + b
class Linear {
 public:
  mha::Projection<float> map;

  Linear(Index inputs, Index outputs, std::mt19937& random) {
    map.resize(inputs, outputs, true);
    fill_uniform({map.weight.data(), static_cast<std::size_t>(map.weight.size())},
                 std::sqrt(6.0f / static_cast<float>(inputs + outputs)), random);
    grad_ = map.zero_gradient();
  }
  Matrix<float> forward(const Matrix<float>& x) {
    x_ = x;
    return map(x);
  }
  Matrix<float> backward(const Matrix<float>& grad) { return map.apply_backward(grad_, grad, x_); }
  void collect(LearnedList& all) {
    all.push_back(learned(map.weight, grad_.weight));
    all.push_back(learned(map.bias, grad_.bias));
  }

 private:
  Matrix<float> x_;
  mha::Projection<float>::Gradient grad_;
};

/// Each row: (x - mean) / sqrt(variance + epsilon) * gain + bias.
class LayerNorm {
 public:
  RowVector<float> gain;
  RowVector<float> bias;

  explicit LayerNorm(Index width)
      : gain(RowVector<float>::Ones(width)),
        bias(RowVector<float>::Zero(width)),
        grad_gain_(RowVector<float>::Zero(width)),
        grad_bias_(RowVector<float>::Zero(width)) {}
  Matrix<float> forward(const Matrix<float>& x) {
    normal_ = x.colwise() - x.rowwise().mean();
    inverse_ = (normal_.rowwise().squaredNorm() / static_cast<float>(x.cols())).array() + 1e-5f;
    inverse_ = inverse_.array().rsqrt();
    normal_.array().colwise() *= inverse_.array();
    return (normal_.array().rowwise() * gain.array()).rowwise() + bias.array();
  }
  // With n the normal row and g = grad o gain: dx = (g - mean(g) - n mean(g o n)) / deviation.
  Matrix<float> backward(const Matrix<float>& grad) {
    grad_gain_ += grad.cwiseProduct(normal_).colwise().sum();
    grad_bias_ += grad.colwise().sum();
    Matrix<float> g = grad.array().rowwise() * gain.array();
    const Eigen::VectorXf mean = g.rowwise().mean();
    const Eigen::VectorXf along = g.cwiseProduct(normal_).rowwise().mean();
    g.colwise() -= mean;
    g -= (normal_.array().colwise() * along.array()).matrix();
    g.array().colwise() *= inverse_.array();
    return g;
  }
  void collect(LearnedList& all) {
    all.push_back(learned(gain, grad_gain_));
    all.push_back(learned(bias, grad_bias_));
  }

 private:
  Matrix<float> normal_;
  Eigen::VectorXf inverse_;
  RowVector<float> grad_gain_;
  RowVector<float> grad_bias_;
};

/// A row of the table for each token.
class Embedding {
 public:
  Matrix<float> table;  ///< symbols x width

  Embedding(Index symbols, Index width, std::mt19937& random)
      : table(symbols, width), grad_(Matrix<float>::Zero(symbols, width)) {
    fill_uniform({table.data(), static_cast<std::size_t>(table.size())},
                 std::sqrt(3.0f / static_cast<float>(width)), random);
  }
  Matrix<float> forward(const std::vector<int>& tokens) {
    tokens_ = tokens;
    Matrix<float> y(static_cast<Index>(tokens.size()), table.cols());
    for (Index i = 0; i < y.rows(); ++i) y.row(i) = table.row(tokens[static_cast<std::size_t>(i)]);
    return y;
  }
  void backward(const Matrix<float>& grad) {
    for (Index i = 0; i < grad.rows(); ++i) {
      grad_.row(tokens_[static_cast<std::size_t>(i)]) += grad.row(i);
    }
  }
  void collect(LearnedList& all) { all.push_back(learned(table, grad_)); }

 private:
  std::vector<int> tokens_;
  Matrix<float> grad_;
};

/// mha::MultiHead with its gradients. The rule of forward() must be given to backward() again.
class Attention {
 public:
  using Layer = mha::MultiHead<float, Eigen::Dynamic>;
  Layer layer;

  Attention(Index width, Index heads, std::mt19937& random,
            const std::optional<mha::Rotary>& rotary = {})
      : layer({.embed_dim = width, .num_heads = heads, .rotary = rotary, .seed = random()}),
        grads_(layer) {}

  template <class RuleType = mha::All>
  Matrix<float> forward(const Matrix<float>& x, const RuleType& rule = {},
                        const mha::MultiHeadOptions& options = {}) {
    x_ = x;
    context_.resize(0, 0);
    layer.forward_training(pass_, x_, rule, options);
    return pass_.output;
  }
  template <class RuleType = mha::All>
  Matrix<float> backward(const Matrix<float>& grad, const RuleType& rule = {},
                         const mha::MultiHeadOptions& options = {}) {
    layer.backward(grads_, pass_, grad, rule, options);
    return grads_.query;
  }
  /// Cross-attention: queries from x, keys and values from context.
  template <class RuleType = mha::All>
  Matrix<float> forward_cross(const Matrix<float>& x, const Matrix<float>& context,
                              const RuleType& rule = {},
                              const mha::MultiHeadOptions& options = {}) {
    x_ = x;
    context_ = context;
    layer.forward_training(pass_, x_, context_, rule, options);
    return pass_.output;
  }
  /// The gradient of x; that of the context is added to grad_context.
  template <class RuleType = mha::All>
  Matrix<float> backward_cross(const Matrix<float>& grad, Matrix<float>& grad_context,
                               const RuleType& rule = {},
                               const mha::MultiHeadOptions& options = {}) {
    layer.backward(grads_, pass_, grad, rule, options);
    grad_context += grads_.key;
    return grads_.query;
  }
  /// What looked at what in the last forward pass, given its rule and options again:
  /// [sequence, head, query, key].
  template <class RuleType = mha::All>
  mha::Tensor<float> weights(const RuleType& rule = {}, mha::MultiHeadOptions options = {}) const {
    options.need_weights = true;
    return context_.size() == 0 ? layer.forward(x_, rule, options).weights
                                : layer.forward(x_, context_, rule, options).weights;
  }
  void collect(LearnedList& all) {
    const auto values = layer.parameters();
    const auto gradients = grads_.parameters();
    for (std::size_t n = 0; n < values.size(); ++n) {
      all.push_back({values[n].values, gradients[n].values});
    }
  }

 private:
  Matrix<float> x_;
  Matrix<float> context_;
  mha::TrainingPass<Layer> pass_;
  mha::MultiHeadGradients<Layer> grads_;
};

/// relu(x W1 + b1) W2 + b2
class FeedForward {
 public:
  FeedForward(Index width, Index inner, std::mt19937& random)
      : first_(width, inner, random), second_(inner, width, random) {}
  Matrix<float> forward(const Matrix<float>& x) {
    hidden_ = first_.forward(x).cwiseMax(0.0f);
    return second_.forward(hidden_);
  }
  Matrix<float> backward(const Matrix<float>& grad) {
    Matrix<float> g = second_.backward(grad);
    g = (hidden_.array() > 0.0f).select(g, 0.0f);
    return first_.backward(g);
  }
  void collect(LearnedList& all) {
    first_.collect(all);
    second_.collect(all);
  }

 private:
  Linear first_;
  Linear second_;
  Matrix<float> hidden_;
};

/// x += attention(norm(x)); x += feed_forward(norm(x))
class EncoderBlock {
 public:
  Attention attention;

  EncoderBlock(Index width, Index heads, std::mt19937& random,
               const std::optional<mha::Rotary>& rotary = {})
      : attention(width, heads, random, rotary),
        norm1_(width),
        norm2_(width),
        feed_forward_(width, 4 * width, random) {}
  template <class RuleType = mha::All>
  Matrix<float> forward(const Matrix<float>& x, const RuleType& rule = {},
                        const mha::MultiHeadOptions& options = {}) {
    Matrix<float> y = x + attention.forward(norm1_.forward(x), rule, options);
    y += feed_forward_.forward(norm2_.forward(y));
    return y;
  }
  template <class RuleType = mha::All>
  Matrix<float> backward(const Matrix<float>& grad, const RuleType& rule = {},
                         const mha::MultiHeadOptions& options = {}) {
    const Matrix<float> g = grad + norm2_.backward(feed_forward_.backward(grad));
    return g + norm1_.backward(attention.backward(g, rule, options));
  }
  /// forward() with a causal rule, of the next rows of sequences whose keys are kept: as many of each.
  Matrix<float> decode(const Matrix<float>& x, const mha::KvLayers& caches) {
    Matrix<float> y = x + attention.layer(norm1_.forward(x), caches, mha::causal());
    y += feed_forward_.forward(norm2_.forward(y));
    return y;
  }
  void collect(LearnedList& all) {
    attention.collect(all);
    norm1_.collect(all);
    norm2_.collect(all);
    feed_forward_.collect(all);
  }

 private:
  LayerNorm norm1_;
  LayerNorm norm2_;
  FeedForward feed_forward_;
};

/// x += self(norm(x)); x += cross(norm(x), context); x += feed_forward(norm(x))
class DecoderBlock {
 public:
  Attention self;
  Attention cross;
  LayerNorm norm1;
  LayerNorm norm2;
  LayerNorm norm3;
  FeedForward feed_forward;

  DecoderBlock(Index width, Index heads, std::mt19937& random)
      : self(width, heads, random),
        cross(width, heads, random),
        norm1(width),
        norm2(width),
        norm3(width),
        feed_forward(width, 4 * width, random) {}
  /// Of a ragged batch the two attentions have different options: kv_sequences are the context's.
  template <class SelfRule, class CrossRule>
  Matrix<float> forward(const Matrix<float>& x, const Matrix<float>& context,
                        const SelfRule& self_rule, const CrossRule& cross_rule,
                        const mha::MultiHeadOptions& self_options,
                        const mha::MultiHeadOptions& cross_options) {
    Matrix<float> y = x + self.forward(norm1.forward(x), self_rule, self_options);
    y += cross.forward_cross(norm2.forward(y), context, cross_rule, cross_options);
    y += feed_forward.forward(norm3.forward(y));
    return y;
  }
  template <class SelfRule, class CrossRule>
  Matrix<float> forward(const Matrix<float>& x, const Matrix<float>& context,
                        const SelfRule& self_rule, const CrossRule& cross_rule,
                        const mha::MultiHeadOptions& options = {}) {
    return forward(x, context, self_rule, cross_rule, options, options);
  }
  template <class SelfRule, class CrossRule>
  Matrix<float> backward(const Matrix<float>& grad, Matrix<float>& grad_context,
                         const SelfRule& self_rule, const CrossRule& cross_rule,
                         const mha::MultiHeadOptions& self_options,
                         const mha::MultiHeadOptions& cross_options) {
    Matrix<float> g = grad + norm3.backward(feed_forward.backward(grad));
    g += norm2.backward(cross.backward_cross(g, grad_context, cross_rule, cross_options));
    return g + norm1.backward(self.backward(g, self_rule, self_options));
  }
  template <class SelfRule, class CrossRule>
  Matrix<float> backward(const Matrix<float>& grad, Matrix<float>& grad_context,
                         const SelfRule& self_rule, const CrossRule& cross_rule,
                         const mha::MultiHeadOptions& options = {}) {
    return backward(grad, grad_context, self_rule, cross_rule, options, options);
  }
  void collect(LearnedList& all) {
    self.collect(all);
    cross.collect(all);
    norm1.collect(all);
    norm2.collect(all);
    norm3.collect(all);
    feed_forward.collect(all);
  }
};

/// The mean of -log softmax(logits)[target] over the rows with a target >= 0, and its gradient.
inline float cross_entropy(const Matrix<float>& logits, const std::vector<int>& targets,
                           Matrix<float>& grad) {
  grad.setZero(logits.rows(), logits.cols());
  const auto count = static_cast<float>(std::max<std::ptrdiff_t>(
      1, std::count_if(targets.begin(), targets.end(), [](int target) { return target >= 0; })));
  float loss = 0;
  for (Index i = 0; i < logits.rows(); ++i) {
    const int target = targets[static_cast<std::size_t>(i)];
    if (target < 0) continue;
    const float most = logits.row(i).maxCoeff();
    grad.row(i) = (logits.row(i).array() - most).exp();
    const float sum = grad.row(i).sum();
    loss += (std::log(sum) - (logits(i, target) - most)) / count;
    grad.row(i) /= sum * count;
    grad(i, target) -= 1 / count;
  }
  return loss;
}

/// Adam with decoupled weight decay and gradients clipped to a total norm.
class Adam {
 public:
  float clip = 1.0f;  ///< of the norm of all gradients together
  float weight_decay = 0.0f;

  explicit Adam(LearnedList all) : all_(std::move(all)) {
    std::size_t count = 0;
    for (const Learned& p : all_) count += p.values.size();
    mean_.assign(count, 0.0f);
    square_.assign(count, 0.0f);
  }
  std::size_t count() const { return mean_.size(); }  ///< numbers that are learned

  /// One step down the gradients, which are set to zero.
  void step(float rate) {
    constexpr float kMean = 0.9f;
    constexpr float kSquare = 0.98f;
    ++steps_;
    double norm = 0;
    for (const Learned& p : all_) {
      for (const float g : p.gradient) norm += static_cast<double>(g) * g;
    }
    const float scale = clip / std::max(clip, static_cast<float>(std::sqrt(norm)));
    const float mean_bias = 1 - std::pow(kMean, static_cast<float>(steps_));
    const float square_bias = 1 - std::pow(kSquare, static_cast<float>(steps_));
    std::size_t n = 0;
    for (const Learned& p : all_) {
      for (std::size_t k = 0; k < p.values.size(); ++k, ++n) {
        const float g = scale * p.gradient[k];
        mean_[n] += (1 - kMean) * (g - mean_[n]);
        square_[n] += (1 - kSquare) * (g * g - square_[n]);
        const float along = mean_[n] / mean_bias / (std::sqrt(square_[n] / square_bias) + 1e-8f);
        p.values[k] -= rate * (along + weight_decay * p.values[k]);
        p.gradient[k] = 0;
      }
    }
  }

 private:
  LearnedList all_;
  std::vector<float> mean_;
  std::vector<float> square_;
  int steps_ = 0;
};

/// The rate of step `step` of `steps`: up for the first twentieth, then down to 0 along a cosine.
inline float warm_cosine(float peak, int step, int steps) {
  const int warm = std::max(1, steps / 20);
  if (step < warm) return peak * static_cast<float>(step + 1) / static_cast<float>(warm);
  const float along =
      static_cast<float>(step - warm) / static_cast<float>(std::max(1, steps - warm));
  return peak * 0.5f * (1 + std::cos(3.14159265f * along));
}

}  // namespace examples
