// SPDX-License-Identifier: MIT
//
// Praise or complaint? A small trained head on the frozen Universal Sentence Encoder lite. The head
// is one attention layer: a learned query looks at the rows of a sentence, one row per token, and
// the output projection makes two numbers of what it gathers, one for each class. All sentences go
// through in one call, as a ragged batch.
//
// The sentences come in pairs such as "The soup was wonderful." and "The soup was awful.", and both
// sentences of a pair are held out together: whoever has learnt "soup" has learnt nothing. The same
// head also reads two other inputs, of one row each: TF-IDF, the words and how rare they are, and
// the vector that the encoder gives for the whole sentence.
//
//   11_sentiment use_lite.safetensors vocab.tsv --picture sentiment.html
//
// The weights are fetched once, see data/README.md. --seed N shuffles and starts otherwise; --short
// trains on two folds of ten, for the test, and ends with 1 below 75 %. In 42 s of one core it printed
//
//   120 pairs of sentences, both of a pair held out together
//   TF-IDF                               fold 10: 167 of 240 right, 69.6 %
//   the encoder's sentence vector        fold 10: 199 of 240 right, 82.9 %
//   its tokens, by a learned query       fold 10: 217 of 240 right, 90.4 %
//
//   some that it got wrong, and the word that its query looks at most:
//     The film put me to sleep after the very first minute.   praise     very
//     The acting is wooden from start to finish.              praise     start
//     My order arrived early and nothing was missing.         complaint  nothing
//     The steak was tough and dry.                            praise     tough
//     The app is easy to use and never crashes.               complaint  never
//     They gave me a full refund without any fuss.            complaint  fu
//
// and with --seed 2 and 3 90.0 and 90.4 %. Expect less on other sentences: how many pairs were written
// (40 gave 88 %), the share of numbers dropped, the steps and the layers read were all chosen looking
// at these figures. With 240 sentences, two per cent either way are chance.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <mha/mha.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/encoder_options.hpp"
#include "common/sentence_encoder.hpp"
#include "common/shaded_text.hpp"
#include "common/texts.hpp"
#include "common/training.hpp"

using examples::Index;
using examples::Matrix;
using examples::RowVector;
using Ids = std::vector<std::size_t>;         // of sentences
using Features = std::vector<Matrix<float>>;  // a matrix for each sentence, one row or more

constexpr std::size_t kFolds = 10;
constexpr int kHeads = 3;         // trained alike from different starts; their numbers are added
constexpr double kFloor = 75;     // per cent, with --short
constexpr float kLength = 22.6f;  // of every row, the square root of 512: entries of about 1

struct Sentences {
  std::vector<std::string> texts;  // sentence 2 p and 2 p + 1 are pair p
  std::vector<int> positive;       // 1, 0, 1, 0, ...
};

Sentences read_sentences() {
  Sentences all;
  for (const auto& pair : examples::read_tsv(MHA_EXAMPLE_DATA_DIR "/sentiment.tsv", 2)) {
    all.texts.insert(all.texts.end(), pair.begin(), pair.end());
    all.positive.insert(all.positive.end(), {1, 0});
  }
  return all;
}

/// A token's embedding and what the two blocks make of it, each normalised, in one row: what a word
/// is by itself beside what it is in its sentence.
Matrix<float> side_by_side(const std::vector<Matrix<float>>& layers) {
  Matrix<float> rows(layers[0].rows(), 0);
  for (const Matrix<float>& layer : layers) {
    const Index before = rows.cols();
    rows.conservativeResize(Eigen::NoChange, before + layer.cols());
    rows.rightCols(layer.cols()) = examples::layer_norm(layer, RowVector<float>::Ones(layer.cols()),
                                                        RowVector<float>::Zero(layer.cols()));
  }
  return rows;
}

/// Sentences one below the other, and where each ends.
struct Batch {
  Matrix<float> rows;
  mha::MultiHeadOptions options;  // one query for each sentence, as many keys as it has rows

  Batch(const Features& features, const Ids& ids) {
    std::vector<Index> lengths;
    for (const std::size_t id : ids) lengths.push_back(features[id].rows());
    rows.resize(std::accumulate(lengths.begin(), lengths.end(), Index{0}), features[0].cols());
    for (Index row = 0; const std::size_t id : ids) {
      rows.middleRows(row, features[id].rows()) = features[id];
      row += features[id].rows();
    }
    options.sequences = std::vector<Index>(ids.size(), 1);
    options.kv_sequences = lengths;
  }
  Index count() const { return static_cast<Index>(options.sequences.size()); }
};

class PoolingHead {
 public:
  PoolingHead(Index row_width, std::mt19937& random)
      : random_(random),
        query_(kWidth),
        grad_query_(RowVector<float>::Zero(kWidth)),
        layer_({.embed_dim = kWidth,
                .num_heads = 4,
                .kdim = row_width,
                .vdim = row_width,
                .out_dim = 2,
                .seed = random()}),
        grads_(layer_) {
    examples::fill_uniform({query_.data(), static_cast<std::size_t>(kWidth)}, 1, random);
  }

  void train(const Batch& batch, const std::vector<int>& labels, int steps) {
    examples::LearnedList all{examples::learned(query_, grad_query_)};
    const auto values = layer_.parameters();
    const auto gradients = grads_.parameters();
    for (std::size_t n = 0; n < values.size(); ++n)
      all.push_back({values[n].values, gradients[n].values});
    examples::Adam adam(all);
    Matrix<float> grad;
    for (int step = 0; step < steps; ++step) {
      const Matrix<float> queries = query_.replicate(batch.count(), 1);
      const Matrix<float> rows = dropped(batch.rows);
      layer_.forward_training(pass_, queries, rows, mha::All{}, batch.options);
      examples::cross_entropy(pass_.output, labels, grad);
      layer_.backward(grads_, pass_, grad, mha::All{}, batch.options);
      grad_query_ += grads_.query.colwise().sum();  // one query, used for every sentence
      adam.step(examples::warm_cosine(3e-3f, step, steps));
    }
  }

  /// A row for each sentence: numbers for negative and for positive; and where the query looks.
  mha::MultiHeadResult<float> operator()(const Batch& batch) const {
    mha::MultiHeadOptions options = batch.options;
    options.average_weights = true;
    return layer_.forward(query_.replicate(batch.count(), 1), batch.rows, options);
  }

 private:
  static constexpr Index kWidth = 16;
  using Layer = mha::MultiHead<float, Eigen::Dynamic>;

  /// Seven numbers of ten set to 0, the rest made larger: the head has more parameters than there
  /// are sentences, and must not rest on a few of them.
  Matrix<float> dropped(const Matrix<float>& rows) {
    Matrix<float> kept = rows;
    std::uint_fast32_t bits = 0;
    for (Index k = 0; k < kept.size(); ++k, bits >>= 8) {
      if (k % 4 == 0) bits = random_();  // a byte for each number
      kept.data()[k] *= (bits & 0xFF) < 77 ? 256.0f / 77 : 0.0f;
    }
    return kept;
  }

  std::mt19937& random_;
  RowVector<float> query_;
  RowVector<float> grad_query_;
  Layer layer_;
  mha::TrainingPass<Layer> pass_;
  mha::MultiHeadGradients<Layer> grads_;
};

/// What heads that have not seen a sentence say of it.
struct Verdicts {
  int right = 0, wrong = 0;
  std::vector<int> said;                 // -1 where it was not asked
  std::vector<RowVector<float>> looked;  // a weight for each row of a sentence

  double percent() const { return 100.0 * right / (right + wrong); }
};

/// @param features_of  the features of all sentences, from the texts that may be looked at
Verdicts cross_validate(const std::string& name, const Sentences& all,
                        const std::function<Features(const std::vector<std::string>&)>& features_of,
                        const examples::EncoderOptions& options) {
  std::mt19937 random(options.seed);
  std::vector<std::size_t> pairs(all.texts.size() / 2);
  std::iota(pairs.begin(), pairs.end(), 0u);
  for (std::size_t n = pairs.size(); n > 1; --n) std::swap(pairs[n - 1], pairs[random() % n]);

  Verdicts verdicts;
  verdicts.said.assign(all.texts.size(), -1);
  verdicts.looked.resize(all.texts.size());
  for (std::size_t fold = 0; fold < (options.brief ? 2 : kFolds); ++fold) {
    Ids seen, held_out;
    std::vector<std::string> seen_texts;
    std::vector<int> seen_labels;
    for (std::size_t n = 0; n < pairs.size(); ++n) {
      Ids& ids = n % kFolds == fold ? held_out : seen;
      ids.insert(ids.end(), {2 * pairs[n], 2 * pairs[n] + 1});
    }
    for (const std::size_t id : seen) {
      seen_texts.push_back(all.texts[id]);
      seen_labels.push_back(all.positive[id]);
    }
    const Features features = features_of(seen_texts);
    const Batch training(features, seen), test(features, held_out);
    Matrix<float> numbers = Matrix<float>::Zero(test.count(), 2);
    std::vector<RowVector<float>> looked(held_out.size());
    for (int h = 0; h < kHeads; ++h) {
      PoolingHead head(features[0].cols(), random);
      head.train(training, seen_labels, 60);
      const auto result = head(test);
      numbers += result.output;
      for (std::size_t n = 0; n < held_out.size(); ++n) {
        const RowVector<float> weights = result.weights.matrix(static_cast<Index>(n), 0).row(0);
        const Index length = features[held_out[n]].rows();
        if (h == 0) looked[n] = RowVector<float>::Zero(length);
        looked[n] += weights.head(length) / kHeads;
      }
    }
    for (std::size_t n = 0; n < held_out.size(); ++n) {
      const std::size_t id = held_out[n];
      const auto row = numbers.row(static_cast<Index>(n));
      verdicts.said[id] = row(1) > row(0) ? 1 : 0;
      verdicts.looked[id] = looked[n];
      ++(verdicts.said[id] == all.positive[id] ? verdicts.right : verdicts.wrong);
    }
    std::printf("\r%-36s fold %2zu: %3d of %3d right", name.c_str(), fold + 1, verdicts.right,
                verdicts.right + verdicts.wrong);
    std::fflush(stdout);
  }
  std::printf(", %.1f %%\n", verdicts.percent());
  return verdicts;
}

int run(const examples::EncoderOptions& options) {
  const Sentences all = read_sentences();
  const examples::SentenceEncoder encode(options.weights, options.vocabulary);
  Features token_rows, meanings;
  std::vector<std::vector<examples::Token>> tokens;
  for (const std::string& text : all.texts) {
    tokens.push_back(encode.tokens(text));
    const auto layers = encode.layers(tokens.back());
    token_rows.push_back(side_by_side(layers));
    meanings.emplace_back(kLength * encode.meaning(layers.back()));
  }
  const auto tf_idf = [&](const std::vector<std::string>& seen) {
    const examples::TfIdf weigh(seen);
    Features features;
    for (const std::string& text : all.texts) features.emplace_back(kLength * weigh(text));
    return features;
  };

  std::printf("%zu pairs of sentences, both of a pair held out together\n", all.texts.size() / 2);
  cross_validate("TF-IDF", all, tf_idf, options);
  cross_validate(
      "the encoder's sentence vector", all, [&](const auto&) { return meanings; }, options);
  const Verdicts verdicts = cross_validate(
      "its tokens, by a learned query", all, [&](const auto&) { return token_rows; }, options);

  std::vector<examples::ShadedText> shaded;
  std::printf("\nsome that it got wrong, and the word that its query looks at most:\n");
  for (std::size_t id = 0, shown = 0; id < all.texts.size(); ++id) {
    if (verdicts.said[id] < 0) continue;
    const bool right = verdicts.said[id] == all.positive[id];
    const std::string said = verdicts.said[id] == 1 ? "praise" : "complaint";
    Index most = 0;
    verdicts.looked[id].maxCoeff(&most);
    examples::ShadedText text{"", {}, said + (right ? "" : ", wrongly")};
    for (Index i = 0; const examples::Token& token : tokens[id]) {
      text.parts.push_back({token.without_space(), verdicts.looked[id](i), i == most});
      ++i;
    }
    if (!right && shown++ < 6) {
      std::printf("  %-55s %-9s  %s\n", all.texts[id].c_str(), said.c_str(),
                  text.parts[static_cast<std::size_t>(most)].text.c_str());
    }
    shaded.push_back(text);
  }
  if (!options.picture.empty()) {
    examples::write_file(
        options.picture,
        examples::shaded_page("Praise or complaint?",
                              "Where the learned query looks in sentences that it has not seen, "
                              "and what follows. The word looked at most is framed.",
                              shaded));
    std::printf("where the query looks: %s\n", options.picture.c_str());
  }
  if (!options.brief) return 0;
  std::printf("floor: %.0f %%\n", kFloor);
  return verdicts.percent() >= kFloor ? 0 : 1;
}

int main(int argc, char** argv) { return examples::encoder_main(argc, argv, "11_sentiment", run); }
