// SPDX-License-Identifier: MIT
//
// The simple cache: one layer, one sequence, a capacity known beforehand.
//     mha::KvCache cache({.kv_heads = 8, .head_dim = 64, .capacity = 4096});
//     y = attention.forward(x, cache, mha::causal());          // adds x's keys and values, and attends to all
// kv_pool.hpp has caches of many layers and sequences, of which this is one.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/kv_pool.hpp"

namespace mha::inline MHA_ABI {

/// The sizes of a KvCache.
struct KvCacheConfig {
  Index kv_heads = 0;
  Index head_dim = 0;
  Index value_dim = 0;  ///< 0 = head_dim
  Index capacity = 0;   ///< keys
  Storage storage = Storage::f32;
};

/// Keys and values of one layer and sequence. All memory is taken when it is made.
class KvCache {
 public:
  /// @throws std::invalid_argument if a size is out of range, std::bad_alloc if there is no such memory
  explicit KvCache(const KvCacheConfig& config) : sequence_(made(config)) {
    sequence_.reserve(config.capacity);
  }

  Index size() const { return sequence_.size(); }  ///< keys
  Index capacity() const { return sequence_.state().capacity(); }
  /// Adds keys and values, see KvLayer::append().
  /// @throws std::length_error beyond the capacity; nothing has changed then
  template <TensorLike K, TensorLike V>
  void append(const K& key, const V& value) {
    layer().append_as("KvCache::append", key, value);
  }
  CachedKeys keys() const MHA_LIFETIMEBOUND { return layer().keys(); }
  KvLayer layer() const MHA_LIFETIMEBOUND { return sequence_.layer(0); }
  operator KvLayer() const { return layer(); }  // NOLINT: a cache stands for its only layer
  [[nodiscard]] bool can_truncate(Index n) const { return sequence_.can_truncate(n); }
  void truncate(Index n) {
    sequence_.truncate_as("KvCache::truncate", n);
  }  ///< see KvSequence::truncate()
  void accept(const std::vector<Index>& rows) { sequence_.state().accept("KvCache::accept", rows); }
  void clear() { sequence_.clear(); }
  std::size_t memory_bytes() const { return sequence_.state().store()->bytes(); }

 private:
  static KvSequence made(const KvCacheConfig& c) {
    detail::require(c.capacity >= 1 && c.capacity <= detail::kMaxSize,
                    "KvCache: capacity must lie between 1 and ", detail::kMaxSize, ", got ",
                    c.capacity);
    const KvPool pool("KvCache",
                      {1, c.kv_heads, c.head_dim, c.value_dim,
                       (c.capacity + detail::kPageKeys - 1) / detail::kPageKeys, c.storage});
    KvSequence sequence = pool.sequence();
    sequence.state_ = std::make_unique<detail::CacheState>(
        sequence.state_->store(), sequence.state_->retention(), c.capacity);
    return sequence;
  }

  KvSequence sequence_;
};

}  // namespace mha
