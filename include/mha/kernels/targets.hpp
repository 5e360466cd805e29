// SPDX-License-Identifier: MIT
//
// The kernels, compiled once per instruction set. On x86-64 these are SSE2 (every processor has
// it), AVX2 with FMA, and AVX-512; elsewhere the compiler's own vectors of 16 bytes. Which of them
// runs is chosen once, at run time, see dispatch.hpp. When the including program is itself compiled
// for a higher set (-march), the lower ones are not generated.
//
// How it works: the files tile_*.hpp hold the code. They have no `#pragma once`: this file includes
// them once per target, each time inside a region in which the compiler may use that instruction
// set and with MHA_TARGET as the name of an own namespace. Inside the regions there are raw
// pointers, the compiler's vector types and templates of these files alone: an inline function of
// Eigen or of the standard library compiled here would be merged by the linker with the same
// function of another translation unit, and crash on an older processor.
//
// MHA_KERNELS=0 leaves all of this out: then everything runs through Eigen (tiled.hpp).
#pragma once

#if !defined(MHA_KERNELS)
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))
#define MHA_KERNELS 1
#else
#define MHA_KERNELS 0
#endif
#endif

#if MHA_KERNELS

#include "mha/floating.hpp"
#include "mha/kernels/tables.hpp"
#include "mha/lanes.hpp"

#define MHA_INLINE [[gnu::always_inline]] inline
#define MHA_UNROLL _Pragma("GCC unroll 16")
// What runs a user's function over a tile. It is inlined, whatever its size: by itself it would be
// compiled for another instruction set, and round differently. GCC turns loops into vectors at -O2
// too, but only the simplest. And it fuses a product with a sum wherever the two end up side by side:
// s + c * j is fused where the key varies within the loop, but not where j stands still and c * j is
// computed outside. Off, therefore, so that a score has the same bits on every path. (clang fuses
// what stands in one expression, on every path alike.)
#if defined(__clang__)
#define MHA_RUNS_USER_CODE [[gnu::flatten]]
#else
#define MHA_RUNS_USER_CODE [[gnu::flatten, gnu::optimize("O3", "fp-contract=off")]]
#endif

#if defined(__x86_64__)

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define MHA_HAS_SSE2 0
#define MHA_HAS_AVX2 0
#elif defined(__AVX2__) && defined(__FMA__)
#define MHA_HAS_SSE2 0
#define MHA_HAS_AVX2 1
#else
#define MHA_HAS_SSE2 1
#define MHA_HAS_AVX2 1
#endif
#define MHA_HAS_AVX512 1

#if MHA_HAS_SSE2
#define MHA_TARGET sse2
#define MHA_VECTOR_BYTES 16
#define MHA_TILE_ROWS 4
#define MHA_TILE_VECTORS 2
#include "mha/kernels/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS
#endif

#if MHA_HAS_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define MHA_TARGET avx2
#define MHA_VECTOR_BYTES 32
#define MHA_TILE_ROWS 6
#define MHA_TILE_VECTORS 2
#include "mha/kernels/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif
#define MHA_TARGET avx512
#define MHA_VECTOR_BYTES 64
#define MHA_TILE_ROWS 6
#define MHA_TILE_VECTORS 4
#include "mha/kernels/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else  // 32 registers of 16 bytes

#define MHA_TARGET native
#define MHA_VECTOR_BYTES 16
#define MHA_TILE_ROWS 6
#define MHA_TILE_VECTORS 4
#include "mha/kernels/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS

#endif

#endif  // MHA_KERNELS
