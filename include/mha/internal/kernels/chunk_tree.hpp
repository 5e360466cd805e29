// SPDX-License-Identifier: MIT
//
// The order in which chunks of keys are joined: a binary tree over the chunk's number, counted from the
// sequence's first key. Node (level, n) is the join of (level - 1, 2 n) and (level - 1, 2 n + 1); where one of
// them has no keys, it is the other. So the bits of a row depend on its keys alone: not on which chunks are
// computed together, by whom, or what a mask leaves out.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>

#include "mha/internal/kernels/tables.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Chunks of so many keys.
constexpr Index chunks_of(Index kv_len) { return (kv_len + kKeyChunk - 1) / kKeyChunk; }

/// States that wait for their neighbours at the most, while `chunks` chunks are joined one after the other.
constexpr Index waiting_states(Index chunks) {
  return chunks <= 1 ? 0
                     : static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(chunks - 1)));
}

/// Joins states of chunks that come in order; some may be absent. States are swapped, never copied. The
/// caller fills `current`, gives it to start() before it begins another chunk, and gets all of them back in it
/// from finish(). join(a, b) turns a into the join of a and b, keys of a before those of b.
template <class State>
class ChunkTree {
 public:
  /// @param waiting, last  places for waiting_states(chunks) states, with memory to swap with `current`, and
  ///                       for as many numbers
  ChunkTree(State* waiting, Index* last) : waiting_(waiting), last_(last) {}

  /// `current` becomes free for chunk `chunk`, which lies behind all before.
  template <class Join>
  void start(Index chunk, State& current, const Join& join) {
    if (any_) {
      close(chunk, current, join);
      std::swap(current, waiting_[count_]);
      last_[count_++] = chunk_;
    }
    any_ = true;
    chunk_ = chunk;
  }

  /// The join of all chunks in `current`; false if there was none. The tree is then as new.
  template <class Join>
  bool finish(State& current, const Join& join) {
    while (count_ > 0) join_last(current, join);
    return std::exchange(any_, false);
  }

  bool in_chunk(Index chunk) const { return any_ && chunk == chunk_; }

 private:
  /// Joins what no chunk from `next` on belongs to.
  template <class Join>
  void close(Index next, State& current, const Join& join) {
    while (count_ > 0) {
      // The smallest subtree with both ends where the differing bits of the two numbers end.
      const auto a = static_cast<std::uint64_t>(last_[count_ - 1]);
      const auto b = static_cast<std::uint64_t>(chunk_);
      const int level = static_cast<int>(std::bit_width(a ^ b));
      const Index end = static_cast<Index>(((b >> level) + 1) << level);
      if (end > next) return;
      join_last(current, join);
    }
  }
  template <class Join>
  void join_last(State& current, const Join& join) {
    State& earlier = waiting_[--count_];
    join(earlier, current);
    std::swap(earlier, current);
  }

  State* waiting_;
  Index* last_;  ///< the last chunk of each
  int count_ = 0;
  Index chunk_ = 0;  ///< that of `current`
  bool any_ = false;
};

}  // namespace mha::kernels
