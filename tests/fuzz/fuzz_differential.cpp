// SPDX-License-Identifier: MIT
//
// libFuzzer's entry for the differential test, on small cases. A case that is wrong ends the program. One that takes long
// is run, but not kept to be changed further: wide layers would soon be most of what the fuzzer does.
// CONTRIBUTING.md, section "Fuzzing".
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "fuzz/differential.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kLong = std::chrono::milliseconds(3);
  const Clock::time_point start = Clock::now();
  try {
    mha::fuzz::differential_case(data, size, mha::fuzz::kSmallCases);
  } catch (const mha::fuzz::Wrong& wrong) {
    std::fprintf(stderr, "wrong: %s\n  again: mha_differential --size small --case %s\n",
                 wrong.what(), mha::fuzz::to_hex(data, size).c_str());
    std::abort();
  }
  return Clock::now() - start > kLong ? -1 : 0;
}
