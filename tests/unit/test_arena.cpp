// SPDX-License-Identifier: MIT
//
// The memory of a call's steps: parts are cut from a block that knows its size. That a part never
// leaves the block is asserted; here the assertion throws.
#include <stdexcept>

#define eigen_assert(condition)                           \
  do {                                                    \
    if (!(condition)) throw std::logic_error(#condition); \
  } while (false)

#include <mha/internal/kernels/tile_memory.hpp>
#include <mha/internal/support/large_memory.hpp>

#include <vector>

#include "support/catch.hpp"

using mha::kernels::Arena;
using mha::kernels::MemoryBlock;

TEST_CASE("what is counted is what is needed", "[memory]") {
  Arena counter;
  CHECK(counter.take<float>(3) == nullptr);
  CHECK(counter.take<double>(9) == nullptr);
  CHECK(counter.used() == 64 + 128);
  std::vector<std::byte> memory(counter.used());
  Arena arena(MemoryBlock{memory.data(), memory.size()});
  CHECK(reinterpret_cast<std::byte*>(arena.take<float>(3)) == memory.data());
  CHECK(reinterpret_cast<std::byte*>(arena.take<double>(9)) == memory.data() + 64);
  CHECK(arena.used() == memory.size());
}

TEST_CASE("large memory begins at a large page, little at a cache line", "[memory]") {
  const auto is_multiple = [](const std::byte* place, std::uintptr_t of) {
    return reinterpret_cast<std::uintptr_t>(place) % of == 0;
  };
  const mha::detail::LargeMemory little(100), large(std::size_t{5} << 20);
  CHECK(is_multiple(little.data(), 64));
  CHECK(is_multiple(large.data(), std::uintptr_t{1} << 21));
  // A line behind it may be read.
  CHECK(little.bytes() == 164);
  CHECK(large.bytes() == (std::size_t{5} << 20) + 64);
}

TEST_CASE("a part that reaches beyond its block is an assertion", "[memory]") {
  std::vector<std::byte> memory(192);
  const MemoryBlock block{memory.data(), memory.size()};
  Arena arena(block);
  CHECK(arena.take<float>(32) != nullptr);
  CHECK_THROWS_AS(arena.take<float>(17), std::logic_error);
  Arena small(block.of_worker(1, 64));
  CHECK(reinterpret_cast<std::byte*>(small.take<float>(16)) == memory.data() + 64);
  CHECK_THROWS_AS(small.take<float>(1), std::logic_error);
  CHECK_NOTHROW(block.of_worker(2, 64));
  CHECK_THROWS_AS(block.of_worker(3, 64), std::logic_error);
  CHECK_THROWS_AS(block.part(100, 93), std::logic_error);
}
