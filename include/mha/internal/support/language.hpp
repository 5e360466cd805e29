// SPDX-License-Identifier: MIT
//
// The language that the library needs: C++20. Included first, so that an older language gets one
// sentence. There is no file of this name: a missing file ends a compilation at once, whereas an
// #error lets the compiler read on and report everything that it does not understand.
#pragma once

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#include "mha needs C++20: compile with -std=c++20"
#endif
