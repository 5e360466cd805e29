// SPDX-License-Identifier: MIT
//
// The corpora of the fuzzers, run once each by every build, whatever its compiler.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/safetensors_bytes.hpp"
#include "support/catch.hpp"

TEST_CASE("each file of the safetensors corpus is read or refused as its name says", "[fuzz]") {
  int good = 0;
  int bad = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MHA_TEST_DATA_DIR "/fuzz/safetensors")) {
    std::ifstream file(entry.path(), std::ios::binary);
    REQUIRE(file);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const bool is_read = mha::test::read_safetensors(std::as_bytes(std::span(text)));
    const bool is_good = entry.path().filename().string().starts_with("good");
    INFO(entry.path());
    CHECK(is_read == is_good);
    ++(is_good ? good : bad);
  }
  CHECK(good >= 7);
  CHECK(bad >= 30);
}
