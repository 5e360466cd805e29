// SPDX-License-Identifier: MIT
//
// For programs of many translation units: the library mha::compiled holds the kernels of float and
// double, so that each unit need not generate them again. With MHA_COMPILED, which linking to it
// defines, the headers declare these templates only; the results have the same bits. Views, sizes and
// function pointers are all that crosses the border: no type of Eigen, so that units may be compiled
// with other flags (-march) than the library. Everything else stays as it is, header-only.
#pragma once

#include "mha/internal/support/language.hpp"

#if defined(MHA_COMPILED_LIBRARY)  // its one source
#define MHA_COMPILED_TEMPLATE template
#define MHA_KERNELS_ELSEWHERE 0
#elif defined(MHA_COMPILED)
#define MHA_COMPILED_TEMPLATE extern template
#define MHA_KERNELS_ELSEWHERE 1
#else
#define MHA_KERNELS_ELSEWHERE 0
#endif
