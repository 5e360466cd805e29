// SPDX-License-Identifier: MIT
//
// Memory of the library's own that is read again and again: the pages of caches, prepacked weights.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "mha/internal/support/language.hpp"

namespace mha::inline MHA_ABI::detail {

/// So many bytes, aligned to a cache line; if there are as many as a large page has, to that. Large pages are asked for
/// then, since fewer addresses are looked up while they are read; where there are none it works as well.
class LargeMemory {
 public:
  explicit LargeMemory(std::size_t bytes)
      : bytes_(bytes + kBehind),
        memory_(static_cast<std::byte*>(::operator new(bytes_, alignment())), Free{alignment()}) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes_ >= kLargePage) (void)::madvise(memory_.get(), bytes_, MADV_HUGEPAGE);
#endif
  }
  std::byte* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kLargePage = std::size_t{1} << 21;
  /// Vectors may be read up to a line beyond the last number.
  static constexpr std::size_t kBehind = 64;
  struct Free {
    std::align_val_t alignment;
    void operator()(std::byte* memory) const noexcept { ::operator delete(memory, alignment); }
  };
  std::align_val_t alignment() const {
    return std::align_val_t{bytes_ >= kLargePage ? kLargePage : std::size_t{64}};
  }

  std::size_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace mha::detail
