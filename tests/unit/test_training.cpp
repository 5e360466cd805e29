// SPDX-License-Identifier: MIT
//
// The examples' training code: its gradients against central differences, and that Adam learns.
#include "common/training.hpp"

#include "support/catch.hpp"

using examples::Index;
using examples::Learned;
using examples::LearnedList;
using examples::Matrix;

namespace {

Matrix<float> random_rows(Index rows, Index cols, std::mt19937& random) {
  Matrix<float> m(rows, cols);
  examples::fill_uniform({m.data(), static_cast<std::size_t>(m.size())}, 1, random);
  return m;
}

/// Central differences of loss() by some numbers of `values` against `gradient`, in float: steps of
/// 2e-3 rarely cross a kink of relu, and leave rounding of 1e-7 / 2e-3.
template <class Loss>
void check_differences(const Learned& p, const Loss& loss) {
  for (std::size_t k = 0; k < p.values.size(); k += 1 + p.values.size() / 7) {
    constexpr float kStep = 2e-3f;
    const float before = p.values[k];
    p.values[k] = before + kStep;
    const double above = loss();
    p.values[k] = before - kStep;
    const double below = loss();
    p.values[k] = before;
    CAPTURE(k, p.values.size());
    CHECK(std::abs((above - below) / (2 * kStep) - p.gradient[k]) <=
          1e-3 + 2e-2 * std::abs(p.gradient[k]));
  }
}

}  // namespace

TEST_CASE("the training code's gradients equal central differences", "[training]") {
  std::mt19937 random(1);
  constexpr Index kWidth = 8;
  examples::Embedding embedding(5, kWidth, random);
  examples::EncoderBlock encoder(kWidth, 2, random);
  examples::DecoderBlock decoder(kWidth, 2, random);
  examples::LayerNorm norm(kWidth);
  examples::Linear head(kWidth, 4, random);
  LearnedList all;
  embedding.collect(all);
  encoder.collect(all);
  decoder.collect(all);
  norm.collect(all);
  head.collect(all);
  const std::vector<int> tokens{0, 3, 1, 4, 4, 2};
  Matrix<float> target = random_rows(4, kWidth, random);
  const std::vector<int> labels{2, -1, 0, 3};
  const mha::MultiHeadOptions encoder_options{.batch = 2};
  const mha::MultiHeadOptions decoder_options{.batch = 2};
  Matrix<float> grad;
  const auto loss = [&] {
    const Matrix<float> context =
        encoder.forward(embedding.forward(tokens), mha::All{}, encoder_options);
    const Matrix<float> y =
        decoder.forward(target, context, mha::causal(), mha::lengths({3, 2}), decoder_options);
    return static_cast<double>(
        examples::cross_entropy(head.forward(norm.forward(y)), labels, grad));
  };
  loss();
  examples::set_gradients_zero(all);
  Matrix<float> grad_context = Matrix<float>::Zero(6, kWidth);
  Matrix<float> grad_target =
      decoder.backward(norm.backward(head.backward(grad)), grad_context, mha::causal(),
                       mha::lengths({3, 2}), decoder_options);
  embedding.backward(encoder.backward(grad_context, mha::All{}, encoder_options));
  for (const Learned& p : all) check_differences(p, loss);
  check_differences(examples::learned(target, grad_target), loss);
}

TEST_CASE("a decoder block of a ragged batch equals one call for each sequence", "[training]") {
  std::mt19937 random(3);
  examples::DecoderBlock decoder(8, 2, random);
  const Matrix<float> x = random_rows(5, 8, random);
  const Matrix<float> context = random_rows(6, 8, random);
  const Matrix<float> grad = random_rows(5, 8, random);
  const std::vector<Index> rows{2, 3};
  const std::vector<Index> context_rows{4, 2};
  const auto run = [&](const Matrix<float>& one_x, const Matrix<float>& one_context,
                       const Matrix<float>& one_grad, const mha::MultiHeadOptions& self_options,
                       const mha::MultiHeadOptions& cross_options) {
    Matrix<float> result(2 * one_x.rows() + one_context.rows(), 8);
    Matrix<float> grad_context = Matrix<float>::Zero(one_context.rows(), 8);
    result.topRows(one_x.rows()) =
        decoder.forward(one_x, one_context, mha::causal(), mha::All{}, self_options, cross_options);
    result.middleRows(one_x.rows(), one_x.rows()) = decoder.backward(
        one_grad, grad_context, mha::causal(), mha::All{}, self_options, cross_options);
    result.bottomRows(one_context.rows()) = grad_context;
    return result;
  };
  const Matrix<float> whole =
      run(x, context, grad, {.sequences = rows}, {.sequences = rows, .kv_sequences = context_rows});
  const Matrix<float> first = run(x.topRows(2), context.topRows(4), grad.topRows(2), {}, {});
  const Matrix<float> second =
      run(x.bottomRows(3), context.bottomRows(2), grad.bottomRows(3), {}, {});
  Matrix<float> parts(16, 8);
  parts << first.topRows(2), second.topRows(3), first.middleRows(2, 2), second.middleRows(3, 3),
      first.bottomRows(4), second.bottomRows(2);
  CHECK((whole - parts).cwiseAbs().maxCoeff() < 1e-5f);
}

TEST_CASE("Adam learns a permutation by attention", "[training]") {
  // Six tokens are to be read backwards: only attention over positions can do that.
  std::mt19937 random(2);
  examples::Embedding embedding(4, 16, random);
  examples::Embedding positions(6, 16, random);
  examples::EncoderBlock block(16, 2, random);
  examples::Linear head(16, 4, random);
  LearnedList all;
  embedding.collect(all);
  positions.collect(all);
  block.collect(all);
  head.collect(all);
  examples::Adam adam(all);
  float loss = 0;
  for (int step = 0; step < 300; ++step) {
    constexpr int kBatch = 16;
    std::vector<int> tokens;
    std::vector<int> places;
    std::vector<int> targets(6 * kBatch);
    for (int i = 0; i < 6 * kBatch; ++i) {
      tokens.push_back(static_cast<int>(random() % 4));
      places.push_back(i % 6);
    }
    for (int i = 0; i < 6 * kBatch; ++i) {
      targets[static_cast<std::size_t>(i)] =
          tokens[static_cast<std::size_t>(i - i % 6 + 5 - i % 6)];
    }
    const mha::MultiHeadOptions options{.batch = kBatch};
    const Matrix<float> x = embedding.forward(tokens) + positions.forward(places);
    Matrix<float> grad;
    loss =
        examples::cross_entropy(head.forward(block.forward(x, mha::All{}, options)), targets, grad);
    const Matrix<float> grad_x = block.backward(head.backward(grad), mha::All{}, options);
    embedding.backward(grad_x);
    positions.backward(grad_x);
    adam.step(examples::warm_cosine(0.01f, step, 300));
  }
  CHECK(loss < 0.05f);  // log 4 = 1.39 where nothing is learned
}

TEST_CASE("the weights of the last forward pass are those of the layer on its input",
          "[training]") {
  std::mt19937 random(3);
  examples::Attention attention(8, 2, random);
  const Matrix<float> x = random_rows(6, 8, random);
  const Matrix<float> context = random_rows(4, 8, random);
  const mha::MultiHeadOptions options{.batch = 2};
  const auto check = [&](const mha::Tensor<float>& weights, const mha::Tensor<float>& expected) {
    REQUIRE(weights.sizes() == expected.sizes());
    for (Index b = 0; b < 2; ++b) {
      for (Index h = 0; h < 2; ++h) CHECK(weights.matrix(b, h) == expected.matrix(b, h));
    }
  };
  const auto expected = [&](const auto&... inputs) {
    return attention.layer.forward(inputs..., mha::causal(), {.batch = 2, .need_weights = true})
        .weights;
  };
  attention.forward_cross(x, context, mha::causal(), options);
  check(attention.weights(mha::causal(), options), expected(x, context));
  attention.forward(x, mha::causal(), options);
  check(attention.weights(mha::causal(), options), expected(x));
}
