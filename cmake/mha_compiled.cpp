// SPDX-License-Identifier: MIT
//
// The one source of mha::compiled: see mha/compiled.hpp.
#define MHA_COMPILED_LIBRARY
#include <mha/mha.hpp>
