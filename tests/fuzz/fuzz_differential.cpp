// SPDX-License-Identifier: MIT
//
// libFuzzer's entry for the differential test, on small cases. A case that is wrong ends the program.
// CONTRIBUTING.md, section "Fuzzing".
#include <cstdio>
#include <cstdlib>

#include "fuzz/differential.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    mha::fuzz::differential_case(data, size, mha::fuzz::kSmallCases);
  } catch (const mha::fuzz::Wrong& wrong) {
    std::fprintf(stderr, "wrong: %s\n  again: mha_differential --size small --case %s\n",
                 wrong.what(), mha::fuzz::to_hex(data, size).c_str());
    std::abort();
  }
  return 0;
}
