// SPDX-License-Identifier: MIT
//
// The language that the library needs: C++20. Included first, so that an older language gets one
// sentence. There is no file of this name: a missing file ends a compilation at once, whereas an
// #error lets the compiler read on and report everything that it does not understand.
#pragma once

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#include "mha needs C++20: compile with -std=c++20"
#endif

// Everything is in an inline namespace of this name: a program whose parts were compiled with two versions of
// the library has two sets of functions, not one at random. Its version is that of version.hpp.
#if defined(MHA_ABI)
#error "mha: two versions of the library are included in one source: clean up the include path"
#endif
#define MHA_ABI v0_1
