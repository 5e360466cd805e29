// SPDX-License-Identifier: MIT
//
// The files of one target, in reading order. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/internal/kernels/targets.hpp"
#else
// Each needs those before it.
// clang-format off
#include "mha/internal/kernels/simd/tile_vectors.hpp"
#include "mha/internal/kernels/simd/tile_product.hpp"
#include "mha/internal/kernels/simd/tile_pack.hpp"
#include "mha/internal/kernels/simd/tile_convert.hpp"
#include "mha/internal/kernels/simd/tile_softmax.hpp"
#include "mha/internal/kernels/simd/tile_modify.hpp"
#include "mha/internal/kernels/simd/tile_gradient.hpp"
#include "mha/internal/kernels/simd/tile_table.hpp"
// clang-format on
#endif
