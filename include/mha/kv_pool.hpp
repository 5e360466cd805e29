// SPDX-License-Identifier: MIT
//
// Projected keys and values of many sequences, kept between calls: what generation attends to again and again.
//     mha::KvPool pool({.layers = 12, .kv_heads = 8, .head_dim = 64, .pages = 512});
//     mha::KvSequence s = pool.sequence();
//     y = attention.forward(x, s.layer(0), mha::causal());     // x's keys and values are added, then attended to
//     mha::KvSequence b = s.fork();                            // shares its pages until one of the two writes
// Keys live in pages of 128, of all layers together, which sequences take as they grow and give back when they end.
// kv_cache.hpp has the simple case of one layer and one sequence. The kernels read pages where they lie
// (internal/kernels/key_tiles.hpp): results have the bits of a call over the same keys in a matrix.
#pragma once

#include "mha/internal/support/language.hpp"

#include <concepts>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "mha/internal/cache/pages.hpp"
#include "mha/internal/support/checks.hpp"

namespace mha::inline MHA_ABI {

/// The sizes of a KvPool.
struct KvPoolConfig {
  Index layers = 1;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index value_dim = 0;  ///< 0 = head_dim
  Index pages = 0;      ///< of 128 keys of all layers each
  Storage storage = Storage::f32;
};

/// What a sequence remembers.
struct KvSequenceOptions {
  /// The newest keys that a query sees, its own among them, as with window(n - 1, -1); 0 = all. Older ones are
  /// masked, in every call, and their pages given back when the call after theirs has been made.
  Index window_keys = 0;
  Index first_keys =
      0;  ///< keys at the beginning that stay visible beside the window (attention sinks)
};

class KvSequence;

/// Keys and values to be read: what a layer of a sequence holds at the moment. Valid until the sequence changes.
class CachedKeys {
 public:
  Index size() const { return state_->size(layer_); }  ///< keys
  Index kv_heads() const { return state_->shape().kv_heads; }
  Index head_dim() const { return state_->shape().head_dim; }
  Index value_dim() const { return state_->shape().value_dim; }
  Storage storage() const { return state_->shape().storage; }

  /// For the library: where they lie, and what is masked.
  kernels::PagedKeys paged() const { return state_->paged(layer_); }
  const kernels::Retention& retention() const { return state_->retention(); }
  /// Keys that a query at `position` sees have not been forgotten.
  bool has_seen_by(Index position) const { return state_->has_seen_by(position, size()); }

 private:
  friend class KvLayer;
  CachedKeys(const detail::CacheState* state, Index layer) : state_(state), layer_(layer) {}
  const detail::CacheState* state_;
  Index layer_;
};

namespace detail {

/// The first query of a call stands at `position`.
inline void check_remembered(const char* where, const CachedKeys& keys, Index position) {
  if (keys.retention().window == 0) return;
  require(keys.has_seen_by(position), where, ": the keys that a query at position ", position,
          " sees must not have been forgotten: window_keys is ", keys.retention().window, " of ",
          keys.size(), " keys");
}

}  // namespace detail

/// One layer of a sequence: refers to it, and must not outlive it. (The sequence itself may be moved.)
class KvLayer {
 public:
  Index size() const { return state_->size(layer_); }  ///< keys
  CachedKeys keys() const { return {state_, layer_}; }

  /// Adds keys [1, kv_heads, tokens, head_dim] and values [1, kv_heads, tokens, value_dim], at any strides. Numbers
  /// are converted to the pool's storage.
  /// @throws std::invalid_argument if the sizes do not fit, std::length_error if there is no room; nothing has
  ///         changed then
  template <TensorLike K, TensorLike V>
  void append(const K& key, const V& value) const {
    append_as("KvLayer::append", key, value);
  }

  /// For the library.
  detail::CacheState& state() const { return *state_; }
  Index layer() const { return layer_; }

 private:
  friend class KvCache;
  friend class KvSequence;
  friend class KvLayers;
  KvLayer(detail::CacheState* state, Index layer) : state_(state), layer_(layer) {}

  /// @param where  the public function, for messages
  template <TensorLike K, TensorLike V>
  void append_as(const char* where, const K& key, const V& value) const {
    using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(tensor_view(key).data)>>;
    static_assert(
        AttentionScalar<Scalar> &&
            std::is_same_v<
                const Scalar,
                std::add_const_t<std::remove_pointer_t<decltype(tensor_view(value).data)>>>,
        "mha: key and value must share one Scalar, a real floating-point type");
    const TensorView<const Scalar> k = tensor_view(key);
    const TensorView<const Scalar> v = tensor_view(value);
    (void)detail::check_view(where, detail::kKey, k, detail::Memory::needed);
    (void)detail::check_view(where, detail::kValue, v, detail::Memory::needed);
    const detail::PageShape& shape = state_->shape();
    const auto fits = [&](const char* name, const auto& view, Index channels) {
      detail::require(view.size(0) == 1 && view.size(1) == shape.kv_heads &&
                          view.size(2) == k.size(2) && view.size(3) == channels,
                      where, ": ", name, " must be [1, ", shape.kv_heads, ", ", k.size(2), ", ",
                      channels, "], got ", detail::list_text(view.sizes));
    };
    fits("key", k, shape.head_dim);
    fits("value", v, shape.value_dim);
    const Index tokens = k.size(2);
    state_->prepare(where, layer_, tokens);
    for (Index h = 0; h < shape.kv_heads; ++h) {
      state_->write(layer_, h, size(), k.matrix(0, h), v.matrix(0, h));
    }
    state_->commit(layer_, tokens);
  }

  detail::CacheState* state_;
  Index layer_;
};

/// The caches of a call: one, or a list, each of another sequence. Refers to a list, and must not outlive it.
class KvLayers {
 public:
  template <class T>
  requires std::convertible_to<const T&, KvLayer> KvLayers(const T& one)  // NOLINT: one cache
      : one_(one), size_(1) {}
  KvLayers(std::initializer_list<KvLayer> list)  // NOLINT: {s.layer(0), t.layer(0)}
      : size_(static_cast<Index>(list.size())) {
    list_ = list.begin();
  }
  KvLayers(const std::vector<KvLayer>& list MHA_LIFETIMEBOUND)  // NOLINT
      : list_(list.data()), size_(static_cast<Index>(list.size())) {}

  Index size() const { return size_; }
  const KvLayer& operator[](Index b) const { return list_ == nullptr ? one_ : list_[b]; }

 private:
  KvLayer one_{nullptr, 0};
  const KvLayer* list_ = nullptr;
  Index size_ = 0;
};

/// One sequence of a pool: a handle that owns its pages. Different sequences may be used on different threads at
/// once; one sequence by one thread at a time. The pool's memory lives as long as any of its sequences.
class KvSequence {
 public:
  /// Keys that every layer has. During a step, earlier layers have more: truncate(size()) undoes it.
  Index size() const { return state().size(); }
  Index layers() const { return state().shape().layers; }
  /// @throws std::invalid_argument unless 0 <= layer < layers()
  KvLayer layer(Index layer) const MHA_LIFETIMEBOUND {
    detail::require(layer >= 0 && layer < layers(),
                    "KvSequence::layer: layer must lie between 0 and ", layers() - 1, ", got ",
                    layer);
    return {&state(), layer};
  }
  /// The same keys, in all layers; pages are shared until one of the two writes to them.
  [[nodiscard]] KvSequence fork() const {
    return KvSequence(std::make_unique<detail::CacheState>(state()));
  }
  /// Takes pages for so many keys in all at once, which stay reserved for this sequence; but those that its
  /// window gives back, and those that it copies since a fork reads them, leave the reservation.
  /// @throws std::length_error if there are too few; nothing has changed then
  void reserve(Index keys) { state().reserve("KvSequence::reserve", checked(keys)); }
  /// Keys n and behind can be taken back: what a query at position n - 1 would see is still there.
  [[nodiscard]] bool can_truncate(Index n) const { return state().can_truncate(n); }
  /// Takes back keys n and behind, in all layers.
  /// @throws std::invalid_argument unless can_truncate(n)
  void truncate(Index n) { truncate_as("KvSequence::truncate", n); }
  /// After a call over a tree of guesses: of its rows, these stay, in this order behind the keys before; the
  /// others are taken back.
  /// @param rows  of the last call, rising; a row's ancestors must be among them
  /// @throws std::invalid_argument if they are not rows of the last call, or do not rise, or some layer has not
  ///         had that call yet; std::length_error if a page that a fork reads must be copied, and none is free. Nothing has changed then
  void accept(const std::vector<Index>& rows) { state().accept("KvSequence::accept", rows); }
  void clear() { state().truncate(0); }
  /// Pages that it holds, those that it shares among them.
  Index pages() const { return state().pages(); }

 private:
  friend class KvPool;
  friend class KvCache;
  explicit KvSequence(std::unique_ptr<detail::CacheState> state) : state_(std::move(state)) {}
  detail::CacheState& state() const {
    detail::require(state_ != nullptr, "KvSequence: it has been moved from");
    return *state_;
  }
  /// @param where  the public function, for messages
  void truncate_as(const char* where, Index n) {
    detail::require(can_truncate(n), where, ": n must lie between 0 and ", size(),
                    ", and no key of its window be forgotten, got ", n);
    state().truncate(n);
  }
  static Index checked(Index keys) {
    detail::require(keys >= 0 && keys <= detail::kMaxSize,
                    "KvSequence::reserve: keys must lie between 0 and ", detail::kMaxSize, ", got ",
                    keys);
    return keys;
  }
  std::unique_ptr<detail::CacheState> state_;
};

/// Pages for keys and values, and the sequences that live in them.
class KvPool {
 public:
  /// @throws std::invalid_argument if a size is out of range, std::bad_alloc if there is no such memory
  explicit KvPool(const KvPoolConfig& config) : KvPool("KvPool", config) {}

  // A move is a copy: nothing is left without its pages.
  KvPool(const KvPool&) = default;
  KvPool& operator=(const KvPool&) = default;
  ~KvPool() = default;

  const KvPoolConfig& config() const noexcept { return config_; }
  [[nodiscard]] KvSequence sequence(const KvSequenceOptions& options = {}) const {
    constexpr const char* kWhere = "KvPool::sequence";
    const auto check = [&](const char* name, Index n) {
      detail::require(n >= 0 && n <= detail::kMaxSize, kWhere, ": ", name,
                      " must lie between 0 and ", detail::kMaxSize, ", got ", n);
    };
    check("window_keys", options.window_keys);
    check("first_keys", options.first_keys);
    detail::require(options.first_keys == 0 || options.window_keys > 0, kWhere,
                    ": first_keys must come with window_keys, got ", options.first_keys, " and 0");
    return KvSequence(std::make_unique<detail::CacheState>(
        store_, kernels::Retention{options.window_keys, options.first_keys}, detail::kMaxSize));
  }
  Index free_pages() const { return store_->free_pages(); }
  std::size_t memory_bytes() const { return store_->bytes(); }

 private:
  friend class KvCache;
  /// @param where  the public class, for messages
  KvPool(const char* where, const KvPoolConfig& config)
      : config_(resolved(where, config)),
        store_(std::make_shared<detail::PageStore>(
            detail::PageShape{config_.layers, config_.kv_heads, config_.head_dim, config_.value_dim,
                              config_.storage},
            config_.pages)) {}

  static KvPoolConfig resolved(const char* where, KvPoolConfig c) {
    if (c.value_dim == 0) c.value_dim = c.head_dim;
    double bytes = static_cast<double>(detail::bytes_of(c.storage));
    const auto check = [&](const char* name, Index n) {
      detail::require(n >= 1 && n <= detail::kMaxSize, where, ": ", name,
                      " must lie between 1 and ", detail::kMaxSize, ", got ", n);
    };
    detail::require(c.storage == Storage::f32 || c.storage == Storage::f64 ||
                        c.storage == Storage::bf16 || c.storage == Storage::f16,
                    where, ": storage must be one of Storage's, got ", static_cast<int>(c.storage));
    check("layers", c.layers);
    check("kv_heads", c.kv_heads);
    check("head_dim", c.head_dim);
    check("value_dim", c.value_dim);
    check("pages", c.pages);
    for (const Index n : {c.layers, c.kv_heads, c.head_dim + c.value_dim, c.pages}) {
      bytes *= static_cast<double>(n);
    }
    detail::require(bytes * static_cast<double>(detail::kPageKeys) < 0x1p60, where,
                    ": the pages must fit 2^60 bytes, got ", c.pages, " pages of ", c.layers,
                    " layers, ", c.kv_heads, " kv_heads, head_dim ", c.head_dim, " and value_dim ",
                    c.value_dim);
    return c;
  }

  KvPoolConfig config_;
  std::shared_ptr<detail::PageStore> store_;
};

}  // namespace mha
