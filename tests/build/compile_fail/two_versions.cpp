// SPDX-License-Identifier: MIT
// expect: two versions of the library are included in one source
//
// As if another version had been included before.
#ifdef MHA_SHOULD_FAIL
#define MHA_ABI v0_0
#endif
#include <mha/types.hpp>

int main() { return static_cast<int>(mha::Matrix<float>(1, 1).size()) - 1; }
