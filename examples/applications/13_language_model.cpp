// SPDX-License-Identifier: MIT
//
// A small language model: a decoder-only transformer that learns to write, letter by letter, like the texts it is
// given (this project's own documentation, if none are), and then continues a prompt. Each step reads one letter:
// the keys and values of those before it are kept in caches, a layer's each. For comparison it writes the same
// again without them, reading everything anew for every letter.
//     13_language_model [--text FILE]... [--prompt TEXT] [--seconds N] [--seed N] [--short]
// Source: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, arXiv:2104.09864 (rotary positions).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <mha/mha.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/training.hpp"

namespace {

using examples::Index;
using examples::Matrix;

struct Settings {
  std::vector<std::string> files;
  std::string prompt = "The layer ";
  double seconds = 100;  // of learning
  unsigned seed = 1;
  bool is_short = false;
};

constexpr Index kWidth = 96, kHeads = 4, kBlocks = 3;
constexpr Index kContext = 128, kBatch = 16;  // letters of a piece, pieces of a step

/// The letters of a text, as numbers.
class Alphabet {
 public:
  explicit Alphabet(const std::string& text) {
    std::vector<bool> used(256, false);
    for (const char c : text) used[static_cast<unsigned char>(c)] = true;
    for (std::size_t c = 0; c < used.size(); ++c) {
      if (!used[c]) continue;
      numbers_[c] = static_cast<int>(letters_.size());
      letters_.push_back(static_cast<char>(c));
    }
  }
  Index size() const { return static_cast<Index>(letters_.size()); }
  char letter(int number) const { return letters_[static_cast<std::size_t>(number)]; }
  /// Letters that the text does not have become its first one.
  std::vector<int> numbers(const std::string& text) const {
    std::vector<int> result;
    for (const char c : text) result.push_back(numbers_[static_cast<unsigned char>(c)]);
    return result;
  }

 private:
  std::string letters_;
  int numbers_[256] = {};
};

class LanguageModel {
 public:
  LanguageModel(Index letters, std::mt19937& random)
      : letters_(letters, kWidth, random), norm_(kWidth), next_(kWidth, letters, random) {
    for (Index n = 0; n < kBlocks; ++n) {
      blocks_.emplace_back(kWidth, kHeads, random, mha::Rotary{.pairs = mha::RotaryPairs::half});
    }
  }
  examples::LearnedList parameters() {
    examples::LearnedList all;
    letters_.collect(all);
    for (auto& block : blocks_) block.collect(all);
    norm_.collect(all);
    next_.collect(all);
    return all;
  }

  /// The loss of guessing each next letter of `pieces` pieces; with gradients, if it is to learn.
  float loss(const std::vector<int>& read, const std::vector<int>& wanted, Index pieces,
             bool learns) {
    const mha::MultiHeadOptions options{.batch = pieces};
    Matrix<float> x = letters_.forward(read);
    for (auto& block : blocks_) x = block.forward(x, mha::causal(), options);
    Matrix<float> grad;
    const float loss = examples::cross_entropy(next_.forward(norm_.forward(x)), wanted, grad);
    if (!learns) return loss;
    grad = norm_.backward(next_.backward(grad));
    for (std::size_t n = blocks_.size(); n-- > 0;) {
      grad = blocks_[n].backward(grad, mha::causal(), options);
    }
    letters_.backward(grad);
    return loss;
  }

  /// What may follow the last of these letters: a number for each letter, the larger the likelier.
  Matrix<float> follow(const std::vector<int>& text) {
    Matrix<float> x = letters_.forward(text);
    for (auto& block : blocks_) x = block.forward(x, mha::causal());
    return next_.forward(norm_.forward(x.bottomRows(1)));
  }
  /// The same for letters behind those whose keys are in the sequence, which get theirs there.
  Matrix<float> follow(const std::vector<int>& text, const mha::KvSequence& sequence) {
    Matrix<float> x = letters_.forward(text);
    for (std::size_t n = 0; n < blocks_.size(); ++n) {
      x = blocks_[n].decode(x, sequence.layer(static_cast<Index>(n)));
    }
    return next_.forward(norm_.forward(x.bottomRows(1)));
  }

 private:
  examples::Embedding letters_;
  std::vector<examples::EncoderBlock> blocks_;
  examples::LayerNorm norm_;
  examples::Linear next_;
};

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

/// One of the letters, the likelier the more often: e^(logit / temperature), of the best few.
int draw(const Matrix<float>& logits, std::mt19937& random) {
  constexpr float kTemperature = 0.7F;
  std::vector<double> weights;
  const float most = logits.maxCoeff();
  for (Index c = 0; c < logits.cols(); ++c) {
    weights.push_back(std::exp(static_cast<double>((logits(0, c) - most) / kTemperature)));
  }
  return std::discrete_distribution<int>(weights.begin(), weights.end())(random);
}

std::string read_files(std::vector<std::string> files) {
  const std::string docs = std::string(MHA_EXAMPLE_DATA_DIR) + "/../../";
  if (files.empty()) {
    for (const char* name : {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md",
                             "docs/decisions/bits.md", "docs/decisions/one_engine.md"}) {
      files.push_back(docs + name);
    }
  }
  std::string all;
  for (const std::string& name : files) {
    std::ifstream file(name, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + name);
    all.append(std::istreambuf_iterator<char>(file), {});
  }
  if (all.size() < 4 * static_cast<std::size_t>(kContext)) {
    throw std::runtime_error("there is too little text to learn from");
  }
  return all;
}

/// Pieces of the text, and the letters that follow each of theirs.
void draw_pieces(const std::vector<int>& text, std::size_t begin, std::size_t end, Index pieces,
                 std::mt19937& random, std::vector<int>& read, std::vector<int>& wanted) {
  read.clear();
  wanted.clear();
  for (Index n = 0; n < pieces; ++n) {
    const std::size_t first = begin + random() % (end - begin - static_cast<std::size_t>(kContext));
    const auto from = text.begin() + static_cast<std::ptrdiff_t>(first);
    read.insert(read.end(), from, from + kContext);
    wanted.insert(wanted.end(), from + 1, from + kContext + 1);
  }
}

/// Returns the loss on text that it has not read.
float learn(LanguageModel& model, const std::vector<int>& text, const Settings& settings,
            std::mt19937& random) {
  examples::Adam adam(model.parameters());
  const std::size_t split = text.size() * 9 / 10;
  std::printf("%zu letters to learn from, %zu numbers to learn, %.0f seconds\n", split,
              adam.count(), settings.seconds);
  std::vector<int> read, wanted, held_read, held_wanted;
  std::mt19937 other(7);
  draw_pieces(text, split, text.size(), 2 * kBatch, other, held_read, held_wanted);
  const double start = now();
  double next_report = 0;
  float mean = 0;
  for (int step = 0;; ++step) {
    const double along = (now() - start) / settings.seconds;
    if (along >= 1) break;
    draw_pieces(text, 0, split, kBatch, random, read, wanted);
    const float loss = model.loss(read, wanted, kBatch, true);
    mean = step == 0 ? loss : 0.95F * mean + 0.05F * loss;
    // The rate by the clock: up for the first twentieth, then down to 0.
    const auto permille = static_cast<int>(1000 * along);
    adam.step(examples::warm_cosine(3e-3F, permille, 1000));
    if (along >= next_report) {
      std::printf("%4.0f s  step %5d  loss %.3f, of text not seen %.3f\n", now() - start, step,
                  static_cast<double>(mean),
                  static_cast<double>(model.loss(held_read, held_wanted, 2 * kBatch, false)));
      std::fflush(stdout);
      next_report += 0.1;
    }
  }
  return model.loss(held_read, held_wanted, 2 * kBatch, false);
}

/// Writes `count` letters behind the prompt, with keys kept or without, and says how fast.
std::vector<int> write(LanguageModel& model, std::vector<int> text, Index count, unsigned seed,
                       bool keeps, double& seconds) {
  const mha::KvPool pool({.layers = kBlocks,
                          .kv_heads = kHeads,
                          .head_dim = kWidth / kHeads,
                          .pages = (static_cast<Index>(text.size()) + count) / 128 + 1});
  const mha::KvSequence sequence = pool.sequence();
  std::mt19937 random(seed);
  const double start = now();
  std::vector<int> unread = text;
  for (Index k = 0; k < count; ++k) {
    const int letter = draw(keeps ? model.follow(unread, sequence) : model.follow(text), random);
    unread = {letter};
    text.push_back(letter);
  }
  seconds = now() - start;
  return text;
}

int run(const Settings& settings) {
  const std::string whole = read_files(settings.files);
  const Alphabet alphabet(whole);
  std::mt19937 random(settings.seed);
  LanguageModel model(alphabet.size(), random);
  const float loss = learn(model, alphabet.numbers(whole), settings, random);
  const auto uniform = static_cast<double>(std::log(static_cast<float>(alphabet.size())));
  std::printf("loss on text not seen: %.3f nats a letter; knowing nothing: %.3f\n\n",
              static_cast<double>(loss), uniform);

  const Index count = settings.is_short ? 200 : 600;
  double with = 0, without = 0;
  const auto text =
      write(model, alphabet.numbers(settings.prompt), count, settings.seed, true, with);
  for (const int number : text) std::putchar(alphabet.letter(number));
  const auto again =
      write(model, alphabet.numbers(settings.prompt), count, settings.seed, false, without);
  std::printf("\n\n%lld letters: %8.0f a second with kept keys, %8.0f without: %.1f times\n",
              static_cast<long long>(count), static_cast<double>(count) / with,
              static_cast<double>(count) / without, without / with);
  std::printf("both ways wrote %s\n", text == again ? "the same" : "different texts");
  if (text != again) return 1;
  return static_cast<double>(loss) < (settings.is_short ? 0.75 : 0.6) * uniform ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  Settings settings;
  for (int n = 1; n < count; ++n) {
    const std::string name = arguments[n];
    const std::string value = n + 1 < count ? arguments[n + 1] : "";
    if (name == "--short") {
      settings.is_short = true;
      settings.seconds = std::min(settings.seconds, 5.0);
    } else if (n + 1 < count && name == "--text") {
      settings.files.push_back(value);
      ++n;
    } else if (n + 1 < count && name == "--prompt" && !value.empty()) {
      settings.prompt = value;
      ++n;
    } else if (n + 1 < count && name == "--seconds" && std::atof(value.c_str()) > 0) {
      settings.seconds = std::atof(value.c_str());
      ++n;
    } else if (n + 1 < count && name == "--seed" &&
               value.find_first_not_of("0123456789") == std::string::npos) {
      settings.seed = static_cast<unsigned>(std::strtoul(value.c_str(), nullptr, 10));
      ++n;
    } else {
      std::fprintf(stderr,
                   "usage: %s [--text FILE]... [--prompt TEXT] [--seconds N] [--seed N] [--short]\n"
                   "  --text     to learn from, default: the documentation of this project\n"
                   "  --prompt   what it continues\n"
                   "  --seconds  of learning, default 100\n"
                   "  --short    learn for 5 seconds; exit code 1 if too little is learned\n",
                   arguments[0]);
      return 2;
    }
  }
  try {
    return run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
