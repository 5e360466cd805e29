// SPDX-License-Identifier: MIT
//
// The kernels, compiled once per instruction set. On x86-64 these are SSE2 (every processor has
// it), AVX2 with FMA, and AVX-512; on aarch64, NEON; with other compilers and for other processors the
// `generic` target, whose vectors are a struct of lanes. Which of them runs is chosen once, at run
// time, see dispatch.hpp. When the including program is itself compiled for a higher set (-march), the
// lower ones are not generated. MHA_GENERIC=1 generates the generic one alone, anywhere.
//
// How it works: the files tile_*.hpp hold the code. They have no `#pragma once`: this file includes
// them once per target, each time inside a region in which the compiler may use that instruction
// set and with MHA_TARGET as the name of an own namespace. Inside the regions there are raw
// pointers, vectors and templates of these files alone: an inline function of Eigen or of the standard
// library compiled here would be merged by the linker with the same function of another translation
// unit, and crash on an older processor.
#pragma once

#include <cstring>

#include "mha/compiled.hpp"
#include "mha/internal/kernels/tables.hpp"
#include "mha/internal/support/floating.hpp"
#include "mha/rules/lanes.hpp"

/// All targets there are, in rising order. Enum, names, dispatch and tests are made of this list.
#define MHA_TARGETS(X) X(generic) X(neon) X(sse2) X(avx2) X(avx512)

#if !defined(MHA_GENERIC)
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))
#define MHA_GENERIC 0
#else
#define MHA_GENERIC 1
#endif
#endif

/// Those that this program holds.
#if MHA_GENERIC
#define MHA_TARGETS_HERE(X) X(generic)
#elif defined(__aarch64__)
#define MHA_TARGETS_HERE(X) X(neon)
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && \
    defined(__AVX512VL__)
#define MHA_TARGETS_HERE(X) X(avx512)
#elif defined(__AVX2__) && defined(__FMA__)
#define MHA_TARGETS_HERE(X) X(avx2) X(avx512)
#define MHA_HAS_AVX2 1
#else
#define MHA_TARGETS_HERE(X) X(sse2) X(avx2) X(avx512)
#define MHA_HAS_SSE2 1
#define MHA_HAS_AVX2 1
#endif

// What compilers of the GNU family are told, and others not.
#if defined(__GNUC__)
#define MHA_INLINE [[gnu::always_inline]] inline
#define MHA_UNROLL _Pragma("GCC unroll 16")
#define MHA_PREFETCH(pointer, locality) __builtin_prefetch(pointer, 0, locality)
#define MHA_MOVING_POINTER(pointer) asm("" : "+r"(pointer))
#else
#define MHA_INLINE inline
#define MHA_UNROLL
#define MHA_PREFETCH(pointer, locality) ((void)(pointer))
#define MHA_MOVING_POINTER(pointer) ((void)(pointer))
#endif

// What runs a user's function over a tile. It is inlined, whatever its size: by itself it would be
// compiled for another instruction set, and round differently. GCC turns loops into vectors at -O2
// too, but only the simplest. And it fuses a product with a sum wherever the two end up side by side:
// s + c * j is fused where the key varies within the loop, but not where j stands still and c * j is
// computed outside. Off, therefore, so that a score has the same bits on every path. (clang fuses
// what stands in one expression, on every path alike.)
// With MHA_QUICK_TO_COMPILE GCC leaves both away, and generates the lowest target's code alone, for all of them: half of the
// time that a unit with many rules takes, slower where rules are asked element by element. The bits are the same unless
// the unit is compiled for a processor that fuses (-march, aarch64), where a function that is not inlined may be.
#if defined(MHA_QUICK_TO_COMPILE) && defined(__GNUC__) && !defined(__clang__)
#define MHA_RULES_OF_EACH_TARGET 0
#else
#define MHA_RULES_OF_EACH_TARGET 1
#endif
#if defined(__clang__)
#define MHA_RUNS_USER_CODE [[gnu::flatten]]
#elif !MHA_RULES_OF_EACH_TARGET
#define MHA_RUNS_USER_CODE [[gnu::optimize("fp-contract=off")]]
#elif defined(__GNUC__)
#define MHA_RUNS_USER_CODE [[gnu::flatten, gnu::optimize("O3", "fp-contract=off")]]
#else
#define MHA_RUNS_USER_CODE
#endif

#if MHA_GENERIC

#define MHA_TARGET generic
#define MHA_VECTOR_TYPES 0
#define MHA_VECTOR_BYTES 16
#define MHA_TILE_ROWS 4
#define MHA_TILE_VECTORS 2
#include "mha/internal/kernels/simd/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_TYPES
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS

#else

#define MHA_VECTOR_TYPES 1

#if defined(__x86_64__)

#if MHA_HAS_SSE2
#define MHA_TARGET sse2
#define MHA_VECTOR_BYTES 16
#define MHA_TILE_ROWS 4
#define MHA_TILE_VECTORS 2
#include "mha/internal/kernels/simd/tile_code.hpp"
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
#include "mha/internal/kernels/simd/tile_code.hpp"
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
#include "mha/internal/kernels/simd/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else  // aarch64: 32 registers of 16 bytes

#define MHA_TARGET neon
#define MHA_VECTOR_BYTES 16
#define MHA_TILE_ROWS 6
#define MHA_TILE_VECTORS 4
#include "mha/internal/kernels/simd/tile_code.hpp"
#undef MHA_TARGET
#undef MHA_VECTOR_BYTES
#undef MHA_TILE_ROWS
#undef MHA_TILE_VECTORS

#endif

#undef MHA_VECTOR_TYPES

#endif  // MHA_GENERIC
