// SPDX-License-Identifier: MIT
//
// Many requests at once: a decoder whose weights do not fit a cache serves requests that arrive over time, first one
// after the other, then all together, as they come (continuous batching). Each step takes the prompts of the new
// ones and one token of each of the others; every weight is read once for all of them. All requests begin with the same
// system prompt, whose keys are computed once: each request is a fork of that sequence. Both ways give
// the same tokens, since a row has the same bits in any company. The weights are random: what is said means nothing.
//     14_serving [--requests N] [--threads N] [--short]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mha/mha.hpp>
#include <random>
#include <string>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "common/training.hpp"

namespace {

using examples::Index;
using examples::Matrix;
using Tokens = std::vector<int>;

constexpr Index kWidth = 1024, kHeads = 16, kKvHeads = 4, kBlocks = 2, kSymbols = 500;

struct Request {
  double arrives = 0;  // seconds from the beginning
  Tokens prompt;
  Index answer = 0;  // tokens to be said
};

/// A request being served, or served.
struct Served {
  mha::KvSequence sequence;
  Tokens unread;  // its prompt, then the token said last
  Tokens answer;
  double first = 0, end = 0;  // seconds from its arrival to its first and last token
};

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

bool is_terminal() {
#if defined(__unix__) || defined(__APPLE__)
  return isatty(fileno(stdout)) != 0;
#else
  return false;
#endif
}

/// Blocks of attention and feed-forward, as in 13_language_model, with weights that are drawn.
class Decoder {
 public:
  explicit Decoder(mha::Executor executor)
      : executor_(executor), table_(kSymbols, kWidth, random_) {
    for (Index n = 0; n < kBlocks; ++n) {
      const mha::MultiHead<float, kHeads> attention(
          {.embed_dim = kWidth,
           .kv_heads = kKvHeads,
           .rotary = mha::Rotary{.pairs = mha::RotaryPairs::half}});
      blocks_.push_back(
          {mha::Inference(attention), drawn(kWidth, 4 * kWidth), drawn(4 * kWidth, kWidth)});
    }
  }
  static mha::KvPool pool(Index pages) {
    return mha::KvPool(
        {.layers = kBlocks, .kv_heads = kKvHeads, .head_dim = kWidth / kHeads, .pages = pages});
  }
  std::size_t weight_bytes() const {
    std::size_t bytes = 0;
    for (const Block& block : blocks_) {
      bytes +=
          block.attention.memory_bytes() + block.inner.memory_bytes() + block.outer.memory_bytes();
    }
    return bytes;
  }

  /// Reads what each sequence has unread, and returns the token that follows each.
  Tokens next(const std::vector<Served*>& batch) {
    Tokens read;
    std::vector<Index> lengths;
    for (const Served* served : batch) {
      read.insert(read.end(), served->unread.begin(), served->unread.end());
      lengths.push_back(static_cast<Index>(served->unread.size()));
    }
    Matrix<float> x = table_.forward(read);
    for (Index n = 0; n < kBlocks; ++n) {
      std::vector<mha::KvLayer> caches;
      for (const Served* served : batch) caches.push_back(served->sequence.layer(n));
      Block& block = blocks_[static_cast<std::size_t>(n)];
      x += block.attention(normal(x), caches, mha::causal(),
                           {.sequences = lengths, .executor = executor_});
      const Matrix<float> hidden = block.inner(normal(x), {.executor = executor_}).cwiseMax(0.0F);
      x += block.outer(hidden, {.executor = executor_});
    }
    Tokens said;
    Index row = -1;
    for (const Index length : lengths) {
      row += length;
      Index best = 0;
      (x.row(row) * table_.table.transpose()).maxCoeff(&best);
      said.push_back(static_cast<int>(best));
    }
    return said;
  }

 private:
  /// Weights that do not change lie as they are read.
  struct Block {
    mha::Inference<float> attention;
    mha::PackedProjection<float> inner, outer;
  };

  mha::PackedProjection<float> drawn(Index inputs, Index outputs) {
    mha::Projection<float> linear;
    linear.resize(inputs, outputs, true);
    examples::fill_uniform({linear.weight.data(), static_cast<std::size_t>(linear.weight.size())},
                           std::sqrt(3.0F / static_cast<float>(inputs)), random_);
    return mha::PackedProjection<float>(linear);
  }

  /// Each row over the root of its mean square.
  static Matrix<float> normal(const Matrix<float>& x) {
    Matrix<float> y = x;
    for (auto row : y.rowwise()) row /= std::sqrt(row.squaredNorm() / kWidth + 1e-6F);
    return y;
  }

  mha::Executor executor_;
  std::mt19937 random_{3};
  examples::Embedding table_;
  std::vector<Block> blocks_;
};

/// Serves all requests, at most `most` at a time; returns them in their order.
std::vector<Served> serve(Decoder& decoder, const mha::KvSequence& system,
                          const std::vector<Request>& requests, std::size_t most, double& seconds) {
  std::vector<Served> all;
  all.reserve(requests.size());
  std::vector<std::size_t> active;
  std::size_t finished = 0, said = 0;
  const bool shows = is_terminal();
  const double start = now();
  double shown = 0;
  while (finished < requests.size()) {
    while (all.size() < requests.size() && active.size() < most &&
           requests[all.size()].arrives <= now() - start) {
      active.push_back(all.size());
      all.push_back({system.fork(), requests[all.size()].prompt, {}, 0, 0});
    }
    if (active.empty()) continue;  // nobody is there yet
    std::vector<Served*> batch;
    for (const std::size_t n : active) batch.push_back(&all[n]);
    const Tokens next = decoder.next(batch);
    const double at = now() - start;
    said += next.size();
    for (std::size_t k = active.size(); k-- > 0;) {
      Served& served = *batch[k];
      const Request& request = requests[active[k]];
      served.unread = {next[k]};
      served.answer.push_back(next[k]);
      if (served.answer.size() == 1) served.first = at - request.arrives;
      if (static_cast<Index>(served.answer.size()) < request.answer) continue;
      served.end = at - request.arrives;
      served.sequence.clear();
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(k));
      ++finished;
    }
    if (shows && at > shown + 0.2) {
      std::printf("\r%5.1f s  %3zu of %zu finished, %2zu at a time, %zu tokens", at, finished,
                  requests.size(), active.size(), said);
      std::fflush(stdout);
      shown = at;
    }
  }
  seconds = now() - start;
  if (shows) std::printf("\r%70s\r", "");
  return all;
}

void print_row(const char* name, const std::vector<Served>& all, double seconds) {
  std::vector<double> first, end;
  std::size_t tokens = 0;
  for (const Served& served : all) {
    first.push_back(served.first);
    end.push_back(served.end);
    tokens += served.answer.size();
  }
  std::sort(first.begin(), first.end());
  std::sort(end.begin(), end.end());
  const auto part = [](const std::vector<double>& sorted, double share) {
    return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
  };
  std::printf("%-22s %8.2f %10.1f %12.3f %12.3f %12.3f %12.3f\n", name, seconds,
              static_cast<double>(tokens) / seconds, part(first, 0.5), part(first, 0.95),
              part(end, 0.5), part(end, 0.95));
}

int run(std::size_t count, int threads) {
  mha::ThreadPool pool_of_threads(threads);
  Decoder decoder(threads > 1 ? mha::Executor(pool_of_threads) : mha::Executor());
  const mha::KvPool pool = Decoder::pool(static_cast<Index>(count) * 3 + 8);
  std::mt19937 random(11);
  const auto draw = [&](Index low, Index high) {
    return low + static_cast<Index>(random() % static_cast<unsigned>(high - low + 1));
  };
  const auto draw_tokens = [&](Index length) {
    Tokens tokens(static_cast<std::size_t>(length));
    for (int& token : tokens) token = static_cast<int>(draw(0, kSymbols - 1));
    return tokens;
  };
  Served system{pool.sequence(), draw_tokens(200), {}, 0, 0};
  decoder.next({&system});
  std::vector<Request> requests;
  for (std::size_t n = 0; n < count; ++n) {
    requests.push_back({0.02 * static_cast<double>(n), draw_tokens(draw(4, 60)), draw(10, 60)});
  }
  std::printf(
      "%zu requests, a new one every 0.02 s, on %d thread%s; weights of %.0f MB, %.0f MB of "
      "pages, a system prompt of %lld tokens shared\n\n",
      count, threads, threads == 1 ? "" : "s", static_cast<double>(decoder.weight_bytes()) * 1e-6,
      static_cast<double>(pool.memory_bytes()) * 1e-6,
      static_cast<long long>(system.sequence.size()));
  double alone_seconds = 0, together_seconds = 0;
  const auto alone = serve(decoder, system.sequence, requests, 1, alone_seconds);
  const auto together = serve(decoder, system.sequence, requests, count, together_seconds);
  std::printf("%-22s %8s %10s %12s %12s %12s %12s\n", "", "seconds", "tokens/s", "first token",
              "95 %", "last token", "95 %");
  print_row("one after the other", alone, alone_seconds);
  print_row("all together", together, together_seconds);
  bool same = true;
  for (std::size_t n = 0; n < count; ++n) same = same && alone[n].answer == together[n].answer;
  std::printf("\n%.1f times as many tokens a second; the answers are %s\n",
              alone_seconds / together_seconds, same ? "the same" : "different");
  system.sequence.clear();
  std::printf("pages that are free again: %lld of %lld\n",
              static_cast<long long>(pool.free_pages()),
              static_cast<long long>(pool.config().pages));
  return same && pool.free_pages() == pool.config().pages ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  std::size_t requests = 32;
  int threads = 1;
  for (int n = 1; n < count; ++n) {
    const std::string name = arguments[n];
    const int value = n + 1 < count ? std::atoi(arguments[n + 1]) : 0;
    if (name == "--short") {
      requests = 6;
    } else if (name == "--requests" && value > 0 && value <= 1000) {
      requests = static_cast<std::size_t>(value);
      ++n;
    } else if (name == "--threads" && value > 0 && value <= 256) {
      threads = value;
      ++n;
    } else {
      std::fprintf(stderr,
                   "usage: %s [--requests N] [--threads N] [--short]\n"
                   "  --requests  default 32\n"
                   "  --threads   default 1\n"
                   "  --short     6 requests\n",
                   arguments[0]);
      return 2;
    }
  }
  try {
    return run(requests, threads);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
