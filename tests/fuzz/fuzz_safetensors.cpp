// SPDX-License-Identifier: MIT
//
// libFuzzer's entry for the reader of safetensors files. CONTRIBUTING.md, section "Fuzzing".
#include "fuzz/safetensors_bytes.hpp"

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mha::test::read_safetensors(std::as_bytes(std::span(data, size)));
  return 0;
}
