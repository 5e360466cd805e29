// SPDX-License-Identifier: MIT
//
// Some thousand cases of the differential test (fuzz/differential.hpp) from a fixed seed, and those of
// the corpus, which fuzz_differential starts from: one file each, named by what it shows.
// The program mha_differential goes on from here.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "fuzz/compare.hpp"
#include "support/catch.hpp"

namespace {

using mha::fuzz::Budget;
using mha::fuzz::Wrong;

/// What is wrong with a case; empty if nothing is.
std::string fault_of(const std::vector<std::uint8_t>& bytes) {
  mha::fuzz::Bytes choices(bytes.data(), bytes.size());
  try {
    mha::fuzz::differential_case(choices, Budget{});
    return "";
  } catch (const std::exception& error) {
    return std::string(error.what()) + "\n  again: mha_differential --case " +
           mha::fuzz::to_hex(bytes.data(), std::min(bytes.size(), choices.used()));
  }
}

}  // namespace

TEST_CASE("random calls agree with plain loops within their bound and with themselves to the bit",
          "[fuzz]") {
  constexpr std::uint64_t kSeed = 20;
  for (std::uint64_t k = 0; k < 3000; ++k) {
    const std::string fault = fault_of(mha::fuzz::case_bytes(kSeed, k));
    if (!fault.empty()) FAIL_CHECK(fault);
  }
  INFO(mha::fuzz::comparisons().vacuous << " of " << mha::fuzz::comparisons().all);
  CHECK(mha::fuzz::comparisons().share() <= mha::fuzz::kMostVacuous);
}

TEST_CASE("cases of many features at once are right", "[fuzz]") {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MHA_TEST_DATA_DIR "/fuzz/differential")) {
    std::ifstream file(entry.path(), std::ios::binary);
    REQUIRE(file);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    INFO(entry.path());
    CHECK(fault_of({bytes.begin(), bytes.end()}) == "");
    ++files;
  }
  CHECK(files >= 25);
}

TEST_CASE("bytes and seeds name cases", "[fuzz]") {
  using mha::fuzz::case_bytes;
  CHECK(fault_of({}) == "");  // past the end every choice is its first
  CHECK(case_bytes(1, 2) != case_bytes(1, 3));
  CHECK(case_bytes(1, 2) == case_bytes(1, 2));
  CHECK(mha::fuzz::from_hex(mha::fuzz::to_hex(case_bytes(1, 2).data(), mha::fuzz::kCaseBytes)) ==
        case_bytes(1, 2));
}

TEST_CASE("a number beyond its bound is found wrong", "[fuzz]") {
  const mha::fuzz::Bounded wanted{0.5L, 0x1p-20L};
  const auto compare = [&](const mha::fuzz::Bounded& x, auto got) {
    mha::fuzz::compare_number("x", got, x, 0, 0, 1, 0, 0, 0, 0);
  };
  const auto allowed = 0x1p-20;
  CHECK_NOTHROW(compare(wanted, 0.5 + allowed));
  CHECK_NOTHROW(compare(wanted, 0.5 - allowed));
  CHECK_THROWS_AS(compare(wanted, 0.5 + 2 * allowed), Wrong);
  CHECK_THROWS_AS(compare(wanted, 0.5F - 2 * static_cast<float>(allowed)), Wrong);
}

TEST_CASE("no bound lets NaN or an infinity pass for a finite number", "[fuzz]") {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const long double bound : {0.0L, 1.0L, std::numeric_limits<long double>::infinity()}) {
    const auto compare = [&](double got, long double wanted) {
      mha::fuzz::compare_number("x", got, {wanted, bound}, 0, 0, 1, 0, 0, 0, 0);
    };
    CHECK_THROWS_AS(compare(nan, 1), Wrong);
    CHECK_THROWS_AS(compare(infinity, 1), Wrong);
    CHECK_THROWS_AS(compare(nan, -infinity), Wrong);
    CHECK_THROWS_AS(compare(1, -infinity), Wrong);
    CHECK_NOTHROW(compare(-infinity, -infinity));
  }
}

TEST_CASE("a bound beyond a tenth of the entries is counted as vacuous", "[fuzz]") {
  const mha::fuzz::Comparisons before = mha::fuzz::comparisons();
  mha::fuzz::compare_number("x", 0.5, {0.5L, 0.25L}, 0, 0, 1, 0, 0, 0, 0);
  mha::fuzz::compare_number("x", 0.5, {0.5L, 0x1p-10L}, 0, 0, 1, 0, 0, 0, 0);
  CHECK(mha::fuzz::comparisons().all == before.all + 2);
  CHECK(mha::fuzz::comparisons().vacuous == before.vacuous + 1);
}

TEST_CASE("one flipped bit is found", "[fuzz]") {
  std::vector<float> a{1, 2, 3, 0}, b = a;
  const auto view = [](const std::vector<float>& x) {
    return mha::TensorView<const float>(x.data(), {1, 1, 2, 2});
  };
  CHECK_NOTHROW(mha::fuzz::compare_bits("x", view(a), view(b)));
  b[3] = -0.0F;
  CHECK_THROWS_AS(mha::fuzz::compare_bits("x", view(a), view(b)), Wrong);
  b = a;
  b[1] = std::nextafter(2.0F, 3.0F);
  CHECK_THROWS_AS(mha::fuzz::compare_bits("x", view(a), view(b)), Wrong);
}

TEST_CASE("a byte written beside an output is seen", "[fuzz]") {
  for (std::uint64_t k = 0; k < 20; ++k) {
    const std::vector<std::uint8_t> choices = mha::fuzz::case_bytes(3, k);
    mha::fuzz::Bytes bytes(choices.data(), choices.size());
    mha::fuzz::Stored<float> output(bytes, {2, 1, 3, 5}, false);
    output.each([](float& x) { x = 1; });
    CHECK(output.surroundings_untouched());
    auto* const last = reinterpret_cast<unsigned char*>(output.memory().data()) +
                       output.memory().size() * sizeof(float) - 1;
    *last ^= 1;
    CHECK_FALSE(output.surroundings_untouched());
  }
}
