// SPDX-License-Identifier: MIT
//
// A random history of a pool's sequences: they grow, fork, are cut, forget, accept guesses and end, and now and then
// the pool is full. After each step some sequence is attended to, with the bits of the same keys in a matrix: see
// differential.hpp.
#include <limits>

#include <mha/mha.hpp>

#include "fuzz/compare.hpp"
#include "fuzz/differential.hpp"

namespace mha::fuzz {
namespace {

/// What a sequence should hold: tokens by the number that their keys and values are made from.
struct Story {
  KvSequence sequence;
  std::vector<Index> tokens;
  Index window_keys = 0, first_keys = 0;
  Index first_of_last = 0;  ///< where the tokens of the last step begin
};

template <class T>
class CacheCase {
 public:
  explicit CacheCase(Bytes& bytes)
      : bytes_(bytes),
        layers_(bytes.between(1, 2)),
        kv_heads_(bytes.between(1, 2)),
        group_(bytes.between(1, 3)),
        head_dim_(bytes.between(1, 8)),
        value_dim_(bytes.coin() ? 16 : bytes.between(1, 5)),
        pages_(bytes.between(3, 16)),
        seed_(bytes.seed()),
        pool_({.layers = layers_,
               .kv_heads = kv_heads_,
               .head_dim = head_dim_,
               .value_dim = value_dim_,
               .pages = pages_,
               .storage = std::is_same_v<T, double> ? Storage::f64 : Storage::f32}) {
    poison();
  }

  std::string name() const {
    std::ostringstream text;
    text << " [caches of " << name_of<T>() << ", " << layers_ << " layers, heads "
         << group_ * kv_heads_ << " / " << kv_heads_ << ", head_dim " << head_dim_ << ", value_dim "
         << value_dim_ << ", " << pages_ << " pages; " << history_.str() << "]";
    return text.str();
  }

  void run(Bytes& /*bytes*/) {
    const Index steps = bytes_.between(3, 24);
    for (Index step = 0; step < steps; ++step) {
      step_once();
      if (!stories_.empty()) check(stories_[pick_story()]);
    }
    stories_.clear();
    if (pool_.free_pages() != pages_) fail_case("pages were lost");
  }

 private:
  std::size_t pick_story() {
    return static_cast<std::size_t>(bytes_.pick(static_cast<Index>(stories_.size())));
  }

  /// Every page full of NaN: cells that have not been written must not matter.
  void poison() {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    KvSequence all = pool_.sequence();
    const TensorView<const T> key(&nan, {1, kv_heads_, 128 * pages_, head_dim_}, {0, 0, 0, 0});
    const TensorView<const T> value(&nan, {1, kv_heads_, 128 * pages_, value_dim_}, {0, 0, 0, 0});
    for (Index l = 0; l < layers_; ++l) all.layer(l).append(key, value);
  }

  void step_once() {
    const Index what = stories_.empty() ? 0 : bytes_.pick(12);
    if (what == 0 && stories_.size() < 5) {
      Story story{pool_.sequence({}), {}, 0, 0, 0};
      if (bytes_.coin()) {
        story.window_keys = bytes_.one_of(1, 5, 60, 128, 129, 300);
        story.first_keys = bytes_.coin() ? bytes_.between(1, 200) : 0;
        story.sequence =
            pool_.sequence({.window_keys = story.window_keys, .first_keys = story.first_keys});
      }
      history_ << "new(" << story.window_keys << ", " << story.first_keys << ") ";
      stories_.push_back(std::move(story));
      return;
    }
    const std::size_t which = pick_story();
    Story& story = stories_[which];
    history_ << which << ":";
    const Index size = static_cast<Index>(story.tokens.size());
    switch (what) {
      case 1:
        if (stories_.size() < 5) {
          history_ << "fork ";
          stories_.push_back({story.sequence.fork(), story.tokens, story.window_keys,
                              story.first_keys, story.first_of_last});
        }
        return;
      case 2: {
        const Index n = bytes_.coin() ? bytes_.between(0, size) : std::max<Index>(0, size - 3);
        history_ << "truncate(" << n << ") ";
        const bool can = story.sequence.can_truncate(n);
        if (!can && story.window_keys == 0) fail_case("a sequence without a window cannot be cut");
        try {
          story.sequence.truncate(n);
          if (!can) fail_case("truncate did what cannot be done");
          story.tokens.resize(static_cast<std::size_t>(n));
          story.first_of_last = std::min(story.first_of_last, n);
        } catch (const std::invalid_argument&) {
          if (can) throw;
        }
        return;
      }
      case 3:
        accept(story);
        return;
      case 4:
        history_ << "end ";
        stories_.erase(stories_.begin() + static_cast<std::ptrdiff_t>(which));
        return;
      case 5:
        history_ << "reserve ";
        try {
          story.sequence.reserve(bytes_.between(0, 500));
        } catch (const std::length_error&) {
        }
        return;
      default:
        append(story);
    }
  }

  void append(Story& story) {
    const Index count = bytes_.coin() ? bytes_.between(0, 4) : bytes_.between(0, 255);
    history_ << "+" << count << " ";
    const Index size = static_cast<Index>(story.tokens.size());
    std::vector<Index> tokens = story.tokens;
    for (Index k = 0; k < count; ++k) tokens.push_back(next_token_++);
    const Index free_pages = pool_.free_pages();
    try {
      for (Index l = 0; l < layers_; ++l) {
        const auto [key, value] = table(tokens, l, size, count);
        story.sequence.layer(l).append(key, value);
      }
    } catch (const std::length_error&) {
      history_ << "(full) ";
      // All layers are in the same pages: the first one already found no room.
      if (story.sequence.layer(0).size() != size) fail_case("a full pool left a layer longer");
      if (pool_.free_pages() < free_pages) fail_case("a full pool kept pages");
      return;
    }
    if (count > 0) story.first_of_last = size;  // no tokens are no step that could be taken back
    story.tokens = std::move(tokens);
  }

  void accept(Story& story) {
    const Index size = static_cast<Index>(story.tokens.size());
    std::vector<Index> rows,
        tokens(story.tokens.begin(),
               story.tokens.begin() + static_cast<std::ptrdiff_t>(story.first_of_last));
    for (Index row = 0; story.first_of_last + row < size; ++row) {
      if (!bytes_.coin()) continue;
      rows.push_back(row);
      tokens.push_back(story.tokens[static_cast<std::size_t>(story.first_of_last + row)]);
    }
    history_ << "accept(" << rows.size() << " of " << size - story.first_of_last << ") ";
    try {
      story.sequence.accept(rows);
      story.tokens = std::move(tokens);
    } catch (const std::length_error&) {
      history_ << "(full) ";
    }
  }

  T number(Index token, Index layer, Index head, Index channel, Index kind) const {
    Numbers numbers(seed_ + static_cast<std::uint64_t>(
                                (((token * 4 + layer) * 4 + head) * 32 + channel) * 4 + kind));
    return static_cast<T>(numbers.number());
  }
  /// Keys and values of tokens first, ..., first + count - 1 in a layer.
  std::pair<Tensor<T>, Tensor<T>> table(const std::vector<Index>& tokens, Index layer, Index first,
                                        Index count) const {
    std::pair<Tensor<T>, Tensor<T>> all{Tensor<T>({1, kv_heads_, count, head_dim_}),
                                        Tensor<T>({1, kv_heads_, count, value_dim_})};
    for (Index h = 0; h < kv_heads_; ++h) {
      for (Index i = 0; i < count; ++i) {
        const Index token = tokens[static_cast<std::size_t>(first + i)];
        for (Index d = 0; d < head_dim_; ++d) {
          all.first.view()(0, h, i, d) = number(token, layer, h, d, 0);
        }
        for (Index c = 0; c < value_dim_; ++c) {
          all.second.view()(0, h, i, c) = number(token, layer, h, c, 1);
        }
      }
    }
    return all;
  }

  void check(const Story& story) {
    const Index size = static_cast<Index>(story.tokens.size());
    if (story.sequence.size() != size) fail_case("a sequence has another size than its tokens");
    if (size == 0) return;
    // As decoding asks: the query behind all keys but its own. Earlier ones may see what is forgotten.
    const Index queries = story.window_keys > 0 ? 1 : bytes_.between(1, std::min<Index>(size, 70));
    if (!story.sequence.can_truncate(story.first_of_last)) {
      fail_case("the last step cannot be taken back");
    }
    const Index layer = bytes_.pick(layers_);
    const Index heads = group_ * kv_heads_;
    Tensor<T> query({1, heads, queries, head_dim_});
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < queries; ++i) {
        for (Index d = 0; d < head_dim_; ++d) {
          query.view()(0, h, i, d) = number(size - queries + i, layer, h, d, 2);
        }
      }
    }
    const auto [key, value] = table(story.tokens, layer, 0, size);
    const auto compare = [&](const auto& rule) {
      const Index window = story.window_keys == 0 ? size : story.window_keys;
      const Index first_keys = story.first_keys;
      const auto whole =
          rule & (mha::window(window - 1, -1) |
                  mask_mod([=](Index, Index, Index, Index j) { return j < first_keys; }));
      const Tensor<T> expected = attention(query, key, value, whole, {.past_len = size - queries});
      const Tensor<T> output = attention(query, story.sequence.layer(layer).keys(), rule);
      compare_bits("a history of a cache", tensor_view(output), tensor_view(expected));
    };
    switch (bytes_.pick(4)) {
      case 0:
        return compare(causal());
      case 1:
        return compare(causal() & alibi() & softcap(2.0));
      case 2:
        return compare(causal() & window(100, 0));
      default:
        return compare(mask_mod([](Index, Index, Index i, Index j) { return ((i ^ j) & 1) == 0; }));
    }
  }

  Bytes& bytes_;
  const Index layers_, kv_heads_, group_, head_dim_, value_dim_, pages_;
  const std::uint64_t seed_;
  KvPool pool_;
  std::vector<Story> stories_;
  Index next_token_ = 0;
  std::ostringstream history_;
};

}  // namespace

std::string cache_case(Bytes& bytes) {
  draw_target(bytes);
  if (bytes.coin()) {
    CacheCase<float> random_case(bytes);
    return run_named(random_case, bytes);
  }
  CacheCase<double> random_case(bytes);
  return run_named(random_case, bytes);
}

}  // namespace mha::fuzz
