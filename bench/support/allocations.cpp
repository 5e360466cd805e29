// SPDX-License-Identifier: MIT
#include "support/allocations.hpp"

#include <atomic>

#if defined(__GLIBC__)
#include <malloc.h>

#include <cerrno>
#endif

namespace mha_bench {
namespace {

std::atomic<std::int64_t> allocated{0};
std::atomic<std::int64_t> most{0};

}  // namespace

std::int64_t reset_peak_bytes() {
  most.store(allocated.load());
  return most.load();
}

std::int64_t peak_bytes() { return most.load(); }

#if defined(__GLIBC__)
namespace {

void* counted(void* memory) {
  if (memory == nullptr) return nullptr;
  const auto size = static_cast<std::int64_t>(malloc_usable_size(memory));
  const std::int64_t now = allocated.fetch_add(size) + size;
  std::int64_t before = most.load();
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
  return memory;
}

void discounted(void* memory) {
  if (memory != nullptr) allocated.fetch_sub(static_cast<std::int64_t>(malloc_usable_size(memory)));
}

}  // namespace
#endif

}  // namespace mha_bench

#if defined(__GLIBC__)
// glibc's own functions under the names that it keeps for this purpose.
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT: glibc's names
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT
void* __libc_realloc(void*, std::size_t);         // NOLINT
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT
void __libc_free(void*);                          // NOLINT

void* malloc(std::size_t size) { return mha_bench::counted(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) {
  return mha_bench::counted(__libc_calloc(count, size));
}
void* realloc(void* memory, std::size_t size) {
  mha_bench::discounted(memory);
  void* result = __libc_realloc(memory, size);
  // If there was no memory for it, the old block is still there.
  return result == nullptr && size != 0 ? (mha_bench::counted(memory), nullptr)
                                        : mha_bench::counted(result);
}
void* memalign(std::size_t alignment, std::size_t size) {
  return mha_bench::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) {
    return EINVAL;
  }
  void* result = memalign(alignment, size);
  if (result == nullptr) return ENOMEM;
  *memory = result;
  return 0;
}
void free(void* memory) {
  mha_bench::discounted(memory);
  __libc_free(memory);
}
}
#endif
