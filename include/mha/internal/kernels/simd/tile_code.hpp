// SPDX-License-Identifier: MIT
//
// The files of one target, in reading order. Included by targets.hpp once per instruction set. A unit of a program that
// is linked to mha::compiled needs what runs its rules, and nothing else.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
// Each needs those before it.
// clang-format off
#include "mha/internal/kernels/simd/tile_vectors.hpp"
#include "mha/internal/kernels/simd/tile_modify.hpp"
#if !MHA_KERNELS_ELSEWHERE
#include "mha/internal/kernels/simd/tile_product.hpp"
#include "mha/internal/kernels/simd/tile_pack.hpp"
#include "mha/internal/kernels/simd/tile_convert.hpp"
#include "mha/internal/kernels/simd/tile_softmax.hpp"
#include "mha/internal/kernels/simd/tile_gradient.hpp"
#include "mha/internal/kernels/simd/tile_table.hpp"
#endif
// clang-format on
#endif
