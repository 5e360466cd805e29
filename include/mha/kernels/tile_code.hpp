// SPDX-License-Identifier: MIT
//
// The files of one target, in reading order. Included by targets.hpp once per instruction set.
#if !defined(MHA_TARGET)
#include "mha/kernels/targets.hpp"
#else
// Each needs those before it.
// clang-format off
#include "mha/kernels/tile_vectors.hpp"
#include "mha/kernels/tile_product.hpp"
#include "mha/kernels/tile_pack.hpp"
#include "mha/kernels/tile_softmax.hpp"
#include "mha/kernels/tile_modify.hpp"
#include "mha/kernels/tile_gradient.hpp"
#include "mha/kernels/tile_table.hpp"
// clang-format on
#endif
