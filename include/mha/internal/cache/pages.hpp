// SPDX-License-Identifier: MIT
//
// The memory behind kv_pool.hpp: pages that sequences take, share and give back, and what one sequence knows of its
// own. A page holds 128 keys and values of all heads and layers (kernels/key_tiles.hpp says in which order); one that
// several sequences share is copied before any of them writes to it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "mha/internal/kernels/retention.hpp"
#include "mha/internal/support/large_memory.hpp"

namespace mha::inline MHA_ABI::detail {

inline constexpr Index kPageKeys = kernels::kKeyTile;

/// What the keys and values of a pool look like.
struct PageShape {
  Index layers = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index value_dim = 0;
  Storage storage = Storage::f32;

  std::size_t head_bytes() const {
    return kernels::page_bytes_of_head(head_dim, value_dim, storage);
  }
  std::size_t layer_bytes() const { return static_cast<std::size_t>(kv_heads) * head_bytes(); }
  std::size_t page_bytes() const { return static_cast<std::size_t>(layers) * layer_bytes(); }
};

/// Pages, some of them free. Sequences on different threads may take and give back at once.
class PageStore {
 public:
  PageStore(const PageShape& shape, Index pages)
      : shape_(shape),
        memory_(static_cast<std::size_t>(pages) * shape.page_bytes()),
        owners_(static_cast<std::size_t>(pages)) {
    free_.reserve(owners_.size());
    for (Index page = pages - 1; page >= 0; --page) free_.push_back(page);
  }

  const PageShape& shape() const { return shape_; }
  std::size_t bytes() const { return memory_.bytes(); }
  Index pages() const { return static_cast<Index>(owners_.size()); }
  Index free_pages() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<Index>(free_.size());
  }
  std::byte* at(Index page) const {
    return memory_.data() + static_cast<std::size_t>(page) * shape_.page_bytes();
  }

  /// A page of one owner; -1 if none is free.
  Index take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return -1;
    const Index page = free_.back();
    free_.pop_back();
    owners_of(page).store(1, std::memory_order_relaxed);
    return page;
  }
  void share(Index page) { owners_of(page).fetch_add(1, std::memory_order_relaxed); }
  void give_back(Index page) noexcept {
    if (owners_of(page).fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(page);  // its place is reserved
  }
  bool is_shared(Index page) const {
    return owners_[static_cast<std::size_t>(page)].load(std::memory_order_acquire) > 1;
  }

 private:
  std::atomic<int>& owners_of(Index page) { return owners_[static_cast<std::size_t>(page)]; }

  PageShape shape_;
  LargeMemory memory_;
  std::vector<std::atomic<int>> owners_;
  std::vector<Index> free_;
  mutable std::mutex mutex_;
};

/// One sequence: its pages, and how many keys of each layer they hold. Every change is made whole or not at all.
class CacheState {
 public:
  CacheState(std::shared_ptr<PageStore> store, const kernels::Retention& retention, Index capacity)
      : store_(std::move(store)),
        retention_(retention),
        capacity_(capacity),
        sizes_(static_cast<std::size_t>(store_->shape().layers), 0) {}
  /// A fork: the same keys, whose pages are shared.
  CacheState(const CacheState& other)
      : store_(other.store_),
        retention_(other.retention_),
        capacity_(other.capacity_),
        sizes_(other.sizes_),
        first_of_last_(other.first_of_last_) {
    const auto used = static_cast<std::ptrdiff_t>(pages_for(most()));
    pages_.assign(other.pages_.begin(), other.pages_.begin() + used);
    addresses_.assign(other.addresses_.begin(), other.addresses_.begin() + used);
    for (const Index page : pages_) {
      if (page >= 0) store_->share(page);
    }
  }
  CacheState& operator=(const CacheState&) = delete;
  ~CacheState() { keep_pages(0); }

  const PageShape& shape() const { return store_->shape(); }
  const kernels::Retention& retention() const { return retention_; }
  const std::shared_ptr<PageStore>& store() const { return store_; }
  Index capacity() const { return capacity_; }
  /// Keys that every layer has.
  Index size() const { return *std::min_element(sizes_.begin(), sizes_.end()); }
  Index size(Index layer) const { return sizes_[static_cast<std::size_t>(layer)]; }
  Index pages() const {
    return static_cast<Index>(
        std::count_if(pages_.begin(), pages_.end(), [](Index page) { return page >= 0; }));
  }

  kernels::PagedKeys paged(Index layer) const {
    return {addresses_.data(), shape().storage,
            static_cast<std::size_t>(layer) * shape().layer_bytes(), shape().head_bytes()};
  }

  /// Makes room for `tokens` more keys of a layer, in pages that nobody else reads.
  /// @throws std::length_error beyond the capacity or if the pool has no page left; nothing has changed then
  void prepare(const char* where, Index layer, Index tokens) {
    const Index first = size(layer);
    require_room(tokens <= capacity_ - first, where, ": the cache holds at most ", capacity_,
                 " keys, got ", first, " and ", tokens, " more");
    make_writable(where, first, first + tokens);
  }

  /// Rows of keys and values, behind those of the layer: keys first, first + 1, ...
  template <class In>
  void write(Index layer, Index kv_head, Index first, const MatrixView<const In>& key,
             const MatrixView<const In>& value) const {
    with_stored_type(shape().storage, [&](auto x) {
      using Stored = decltype(x);
      for (Index done = 0; done < key.rows;) {
        const Index place = first + done;
        const Index slot = place % kPageKeys;
        const Index count = std::min(kPageKeys - slot, key.rows - done);
        Stored* const keys = head_of<Stored>(layer, kv_head, place / kPageKeys);
        for (Index d = 0; d < key.cols; ++d) {
          for (Index t = 0; t < count; ++t) {
            keys[d * kPageKeys + slot + t] = convert<Stored>(key(done + t, d));
          }
        }
        Stored* const values = keys + kPageKeys * key.cols + slot * value.cols;
        for (Index t = 0; t < count; ++t) {
          for (Index c = 0; c < value.cols; ++c) {
            values[t * value.cols + c] = convert<Stored>(value(done + t, c));
          }
        }
        done += count;
      }
    });
  }

  /// The layer has `tokens` more keys; what no later query can see is given back.
  void commit(Index layer, Index tokens) noexcept {
    if (tokens == 0) return;  // not a call that could be taken back
    Index& size_now = sizes_[static_cast<std::size_t>(layer)];
    first_of_last_ = size_now;
    size_now += tokens;
    forget();
  }

  /// Gives back room that was made and not used.
  void release_unused() noexcept { trim(); }
  /// False if it has been asked for the same call before.
  bool is_first_in(std::uint64_t call) { return std::exchange(last_call_, call) != call; }

  /// Pages for so many keys in all.
  void reserve(const char* where, Index keys) {
    require_room(keys <= capacity_, where, ": the cache holds at most ", capacity_, " keys, got ",
                 keys);
    grow(where, pages_for(keys));
    reserved_ = std::max(reserved_, pages_for(keys));
  }

  /// Of keys 0, ..., keys - 1 all are still there that a query at `position` sees.
  bool has_seen_by(Index position, Index keys) const {
    const KeyRange gone = retention_.forgotten(position);
    for (Index page = 0; page * kPageKeys < keys; ++page) {
      const Index end = std::min((page + 1) * kPageKeys, keys);
      const bool seen = page * kPageKeys < gone.begin || end > gone.end;
      if (seen && pages_[static_cast<std::size_t>(page)] < 0) return false;
    }
    return true;
  }
  bool can_truncate(Index n) const {
    return n >= 0 && n <= size() && (n == 0 || has_seen_by(n - 1, n));
  }
  /// Keys n and behind are gone, in every layer; can_truncate(n).
  void truncate(Index n) noexcept {
    for (Index& size_now : sizes_) size_now = std::min(size_now, n);
    first_of_last_ = std::min(first_of_last_, n);
    trim();
  }

  /// Of the keys of the last call, rows[0], rows[1], ... stay, moved together.
  void accept(const char* where, const std::vector<Index>& rows) {
    require(most() == size(), where, ": every layer must have had the last call, got ", size(),
            " keys in one and ", most(), " in another");
    const Index first = first_of_last_;
    const Index count = size() - first;
    for (std::size_t k = 0; k < rows.size(); ++k) {
      require(rows[k] >= 0 && rows[k] < count, where, ": a row must be one of the ", count,
              " of the last call, got ", rows[k]);
      require(k == 0 || rows[k] > rows[k - 1], where, ": rows must rise, got ", rows[k], " behind ",
              k == 0 ? -1 : rows[k - 1]);
    }
    const Index end = first + static_cast<Index>(rows.size());
    make_writable(where, first, end);
    for (std::size_t k = 0; k < rows.size(); ++k) {
      move_key(first + rows[k], first + static_cast<Index>(k));
    }
    truncate(end);
  }

 private:
  static Index pages_for(Index keys) { return (keys + kPageKeys - 1) / kPageKeys; }
  /// Keys that some layer has.
  Index most() const { return *std::max_element(sizes_.begin(), sizes_.end()); }
  template <class Stored>
  Stored* head_of(Index layer, Index kv_head, Index page) const {
    return reinterpret_cast<Stored*>(addresses_[static_cast<std::size_t>(page)] +
                                     static_cast<std::size_t>(layer) * shape().layer_bytes() +
                                     static_cast<std::size_t>(kv_head) * shape().head_bytes());
  }

  /// At least so many places for pages, each with a page.
  void grow(const char* where, Index count) {
    const auto had = static_cast<Index>(pages_.size());
    if (count <= had) return;
    pages_.reserve(static_cast<std::size_t>(count));
    addresses_.reserve(static_cast<std::size_t>(count));
    for (Index page = had; page < count; ++page) {
      const Index taken = store_->take();
      if (taken < 0) {
        const auto got = static_cast<Index>(pages_.size()) - had;
        keep_pages(had);
        require_room(false, where, ": the pool has no page left: ", count - had, " are needed, ",
                     got, " were free");
      }
      pages_.push_back(taken);
      addresses_.push_back(store_->at(taken));
    }
  }

  /// Keys first, ..., end - 1 have pages of this sequence alone.
  void make_writable(const char* where, Index first, Index end) {
    if (first >= end) return;
    const auto had = static_cast<Index>(pages_.size());
    const Index last = std::min(had, pages_for(end));
    // One that was forgotten, and whose keys were then truncated: nothing is left in it.
    const auto is_forgotten = [](Index page) { return page < 0; };
    Index replaced = 0;
    for (Index page = first / kPageKeys; page < last; ++page) {
      const Index own = pages_[static_cast<std::size_t>(page)];
      if (is_forgotten(own) || store_->is_shared(own)) ++replaced;
    }
    // Copies go to pages behind all that is used, which are there already if they were reserved.
    const Index used = pages_for(std::max(end, most()));
    grow(where, std::max(had, used + replaced));  // all of them, or none
    for (Index page = first / kPageKeys; page < last; ++page) {
      Index& own = pages_[static_cast<std::size_t>(page)];
      // Shared no longer, if another thread's sequence has let go of it meanwhile.
      if (!is_forgotten(own) && !store_->is_shared(own)) continue;
      if (!is_forgotten(own)) {
        std::memcpy(addresses_.back(), store_->at(own), shape().page_bytes());
        store_->give_back(own);
      }
      own = pages_.back();
      addresses_[static_cast<std::size_t>(page)] = addresses_.back();
      pages_.pop_back();
      addresses_.pop_back();
    }
    keep_pages(std::max(had - replaced, used));
  }

  /// Gives back all but the first `count` pages.
  void keep_pages(Index count) noexcept {
    while (static_cast<Index>(pages_.size()) > count) {
      if (pages_.back() >= 0) store_->give_back(pages_.back());
      pages_.pop_back();
      addresses_.pop_back();
    }
  }

  /// Gives back the pages behind all keys, but for those that are reserved and this sequence's alone.
  void trim() noexcept {
    const auto used = static_cast<std::size_t>(pages_for(most()));
    std::size_t kept = std::min(used, pages_.size());
    for (std::size_t page = kept; page < pages_.size(); ++page) {
      const Index own = pages_[page];
      if (own < 0) continue;
      if (static_cast<Index>(kept) < reserved_ && !store_->is_shared(own)) {
        pages_[kept] = own;
        addresses_[kept++] = store_->at(own);
      } else {
        store_->give_back(own);
      }
    }
    pages_.resize(kept);
    addresses_.resize(kept);
  }

  /// Gives back pages all of whose keys no later query can see, also if the last call is taken back.
  void forget() noexcept {
    const KeyRange gone = retention_.forgotten(std::min(size(), first_of_last_) - 1);
    const Index first = (gone.begin + kPageKeys - 1) / kPageKeys;
    // The newest first: before one that is gone all are.
    for (Index page = gone.end / kPageKeys - 1; page >= first; --page) {
      Index& own = pages_[static_cast<std::size_t>(page)];
      if (own < 0) break;
      store_->give_back(own);
      own = -1;
      addresses_[static_cast<std::size_t>(page)] = nullptr;
    }
  }

  /// Key `from` of every layer and head, with its value, over key `to`.
  void move_key(Index from, Index to) const {
    if (from == to) return;
    with_stored_type(shape().storage, [&](auto x) {
      using Stored = decltype(x);
      for (Index layer = 0; layer < shape().layers; ++layer) {
        for (Index head = 0; head < shape().kv_heads; ++head) {
          const Stored* const source = head_of<Stored>(layer, head, from / kPageKeys);
          Stored* const target = head_of<Stored>(layer, head, to / kPageKeys);
          for (Index d = 0; d < shape().head_dim; ++d) {
            target[d * kPageKeys + to % kPageKeys] = source[d * kPageKeys + from % kPageKeys];
          }
          const Index values = kPageKeys * shape().head_dim;
          std::copy_n(source + values + from % kPageKeys * shape().value_dim, shape().value_dim,
                      target + values + to % kPageKeys * shape().value_dim);
        }
      }
    });
  }

  std::shared_ptr<PageStore> store_;
  kernels::Retention retention_;
  Index capacity_;
  std::vector<Index> sizes_;  ///< of each layer
  Index first_of_last_ = 0;   ///< where the keys of the last call begin
  std::uint64_t last_call_ = 0;
  Index reserved_ = 0;        ///< pages that are kept, whatever is truncated
  std::vector<Index> pages_;  ///< -1: given back, since no query can see its keys
  std::vector<std::byte*> addresses_;
};

}  // namespace mha::detail
