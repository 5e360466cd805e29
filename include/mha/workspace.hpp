// SPDX-License-Identifier: MIT
//
// Memory that calls work in, owned by you: after the first call of a shape nothing more is
// allocated.
//     mha::Workspace workspace;
//     mha::attention_into(out, q, k, v, mha::causal(), {.workspace = &workspace});
// That holds with a ThreadPool too (what another executor allocates is its own affair) and whatever
// the options say; lists in them, such as `sequences`, are made where you write them: keep the
// options. It grows to the largest call it has served. One call at a time may use it; a call with an
// executor gives each of its workers a part. How much a call will need is told beforehand by
// attention_workspace_bytes() and MultiHead::workspace_bytes().
#pragma once

#include "mha/internal/support/language.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "mha/internal/support/error.hpp"

namespace mha::inline MHA_ABI {

class Workspace {
 public:
  Workspace() = default;
  /// Memory for calls that need no more than this. Throws as reserve() does.
  explicit Workspace(std::size_t bytes) { reserve(bytes); }
  Workspace(Workspace&& other) noexcept
      : block_(std::move(other.block_)), size_(std::exchange(other.size_, 0)) {}
  Workspace& operator=(Workspace&& other) noexcept {
    block_ = std::move(other.block_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  /// Makes room; what was there is lost if it must grow.
  /// @throws std::invalid_argument if no memory can have so many bytes, std::bad_alloc if there is
  ///         none left
  void reserve(std::size_t bytes) {
    if (bytes <= size_) return;
    detail::require(bytes <= kMostBytes, "Workspace: the bytes must be at most ", kMostBytes,
                    ", got ", bytes);
    block_.reset();  // first, so that old and new are never held together
    size_ = 0;
    block_.reset(static_cast<std::byte*>(::operator new(bytes, kAlign)));
    size_ = bytes;
  }
  std::size_t size() const noexcept { return size_; }  ///< bytes
  std::byte* data() noexcept { return block_.get(); }  ///< aligned to 64 bytes

 private:
  static constexpr std::align_val_t kAlign{64};
  static constexpr std::size_t kMostBytes = static_cast<std::size_t>(PTRDIFF_MAX) - 63;
  struct Free {
    void operator()(std::byte* block) const noexcept { ::operator delete(block, kAlign); }
  };
  std::unique_ptr<std::byte, Free> block_;
  std::size_t size_ = 0;
};

namespace detail {

/// `bytes` of memory for one call: of the caller's workspace, else on the stack if little is needed,
/// else from the heap.
class CallMemory {
 public:
  CallMemory(Workspace* workspace, std::size_t bytes) {
    if (workspace == nullptr && bytes <= sizeof(stack_)) {
      data_ = stack_;
      size_ = sizeof(stack_);
      return;
    }
    if (workspace == nullptr) workspace = &own_;
    workspace->reserve(bytes);
    data_ = workspace->data();
    size_ = workspace->size();
  }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }  ///< bytes, at least those asked for

 private:
  static constexpr std::size_t kStackBytes = std::size_t{32} * 1024;
  Workspace own_;
  std::byte* data_;
  std::size_t size_;
  alignas(64) std::byte stack_[kStackBytes];
};

}  // namespace detail
}  // namespace mha
