// SPDX-License-Identifier: MIT
//
// Counts what the process allocates: allocations.cpp defines the functions of the malloc family
// (operator new calls them), in front of glibc's own. Linked into bench_memory alone, since counting
// costs a little time.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace mha_bench {

#if defined(__GLIBC__)
inline constexpr bool kCountsAllocations = true;
#else
inline constexpr bool kCountsAllocations = false;  // the functions below return 0
#endif

/// Sets the peak to what is allocated now, and returns that.
std::int64_t reset_peak_bytes();

/// The most bytes that were allocated at a time since.
std::int64_t peak_bytes();

}  // namespace mha_bench
