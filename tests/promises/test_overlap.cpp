// SPDX-License-Identifier: MIT
//
// Whether two views share memory: never denied where they do, and denied for every layout that is
// used in practice.
#include <mha/internal/support/overlap.hpp>

#include <random>
#include <vector>

#include "support/catch.hpp"

using mha::Index;
using mha::Matrix;
using mha::MatrixView;
using mha::TensorView;
using mha::detail::is_same_view;
using mha::detail::overlaps;
using mha::detail::overlaps_itself;

namespace {

using Sizes = std::array<Index, 4>;
using View = TensorView<float>;

/// How often each byte of [0, memory_size) belongs to an element.
template <class Scalar>
std::vector<int> bytes_of(const TensorView<Scalar>& view, const char* memory, std::size_t size) {
  std::vector<int> hits(size, 0);
  for (Index b = 0; b < view.size(0); ++b) {
    for (Index h = 0; h < view.size(1); ++h) {
      for (Index i = 0; i < view.size(2); ++i) {
        for (Index d = 0; d < view.size(3); ++d) {
          const auto* const element = reinterpret_cast<const char*>(&view(b, h, i, d));
          for (std::size_t k = 0; k < sizeof(Scalar); ++k) {
            ++hits[static_cast<std::size_t>(element - memory) + k];
          }
        }
      }
    }
  }
  return hits;
}

template <class A, class B>
bool really_overlaps(const TensorView<A>& a, const TensorView<B>& b, const char* memory,
                     std::size_t size) {
  const std::vector<int> of_a = bytes_of(a, memory, size);
  const std::vector<int> of_b = bytes_of(b, memory, size);
  for (std::size_t k = 0; k < size; ++k) {
    if (of_a[k] > 0 && of_b[k] > 0) return true;
  }
  return false;
}

template <class Scalar>
TensorView<Scalar> random_view(Scalar* middle, std::mt19937& bits) {
  const auto any = [&](int low, int high) {
    return std::uniform_int_distribution<Index>(low, high)(bits);
  };
  Sizes sizes{};
  Sizes strides{};
  for (std::size_t axis = 0; axis < 4; ++axis) {
    sizes[axis] = any(0, 19) == 0 ? 0 : any(1, 4);
    strides[axis] = any(0, 2) == 0 ? any(-60, 60) : any(0, 4) * any(1, 12);
  }
  return {middle + any(-40, 40), sizes, strides};
}

}  // namespace

TEST_CASE("an overlap is never denied", "[overlap]") {
  std::vector<double> memory(4000);
  const char* const bytes = reinterpret_cast<const char*>(memory.data());
  const std::size_t size = memory.size() * sizeof(double);
  auto* const floats = reinterpret_cast<float*>(memory.data()) + 4000;
  std::mt19937 bits(1);
  int disjoint = 0;
  int proven = 0;
  int wrong = 0;
  for (int round = 0; round < 6000; ++round) {
    const View a = random_view(floats, bits);
    View b = random_view(floats, bits);
    if (round % 2 == 0) b.strides = a.strides;
    const TensorView<double> wide = random_view(memory.data() + 2000, bits);
    for (const bool same_type : {true, false}) {
      const bool real =
          same_type ? really_overlaps(a, b, bytes, size) : really_overlaps(a, wide, bytes, size);
      const bool told = same_type ? overlaps(a, b) : overlaps(a, wide);
      const bool turned = same_type ? overlaps(b, a) : overlaps(wide, a);
      wrong += (real && !told) || (real && !turned) ? 1 : 0;
      disjoint += real ? 0 : 1;
      proven += real || told ? 0 : 1;
    }
    const std::vector<int> hits = bytes_of(a, bytes, size);
    const bool twice = *std::max_element(hits.begin(), hits.end()) > 1;
    wrong += twice && !overlaps_itself(a) ? 1 : 0;
  }
  CHECK(wrong == 0);
  // Most of what is disjoint is known to be, even among layouts that nobody uses.
  CAPTURE(disjoint, proven);
  CHECK(proven > disjoint * 7 / 10);
}

TEST_CASE("layouts in use are known to be disjoint", "[overlap]") {
  std::vector<float> memory(100000);
  float* const m = memory.data();
  const Index heads = 3;
  const Index tokens = 7;
  const Index width = 4;  // of a head
  const Index row = heads * width;
  const Sizes sizes{2, heads, tokens, width};
  const auto check = [&](const std::vector<View>& parts) {
    for (std::size_t a = 0; a < parts.size(); ++a) {
      CAPTURE(a);
      CHECK_FALSE(overlaps_itself(parts[a]));
      CHECK(overlaps(parts[a], parts[a]));
      for (std::size_t b = 0; b < a; ++b) {
        CAPTURE(b);
        CHECK_FALSE(overlaps(parts[a], parts[b]));
        CHECK_FALSE(overlaps(parts[b], parts[a]));
      }
    }
  };
  std::vector<View> parts;
  SECTION("column blocks of one packed matrix, [q | k | v | o]") {
    for (Index n = 0; n < 4; ++n) {
      parts.push_back({m + n * row, sizes, {tokens * 4 * row, width, 4 * row, 1}});
    }
  }
  SECTION("the same with rows and batches padded") {
    for (Index n = 0; n < 4; ++n) {
      parts.push_back({m + n * row, sizes, {tokens * 50 + 13, width, 50, 1}});
    }
  }
  SECTION("a head's query, key, value and output side by side") {
    for (Index n = 0; n < 4; ++n) {
      parts.push_back({m + n * width, sizes, {tokens * 4 * row, 4 * width, 4 * row, 1}});
    }
  }
  SECTION("slices of one tensor, heads outside or inside") {
    for (Index n = 0; n < 3; ++n) {
      parts.push_back({m + n * tokens * row, sizes, {3 * tokens * row, tokens * width, width, 1}});
    }
    for (Index n = 0; n < 3; ++n) {
      parts.push_back({m + 9000 + n * tokens * row, sizes, {3 * tokens * row, width, row, 1}});
    }
  }
  SECTION("column-major") {
    for (Index n = 0; n < 4; ++n) {
      parts.push_back(
          {m + n * tokens, sizes, {4 * tokens * row, 4 * tokens * width, 1, 4 * tokens}});
    }
  }
  SECTION("even and odd rows") {
    parts.push_back({m, sizes, {2 * tokens * row, width, 2 * row, 1}});
    parts.push_back({m + row, sizes, {2 * tokens * row, width, 2 * row, 1}});
  }
  SECTION("rows upside down") {
    parts.push_back({m + (tokens - 1) * 2 * row, sizes, {2 * tokens * row, width, -2 * row, 1}});
    parts.push_back({m + row, sizes, {2 * tokens * row, width, 2 * row, 1}});
  }
  SECTION("an lse in the column beside the output") {
    parts.push_back({m, sizes, {tokens * (row + heads), width, row + heads, 1}});
    parts.push_back({m + row, {2, heads, tokens, 1}, {tokens * (row + heads), 1, row + heads, 7}});
  }
  SECTION("channels of one lie between those of another") {
    parts.push_back({m, sizes, {2 * tokens * row, 2 * width, 2 * row, 2}});
    parts.push_back({m + 1, sizes, {2 * tokens * row, 2 * width, 2 * row, 2}});
  }
  check(parts);
}

TEST_CASE("an input that repeats itself may lie beside an output", "[overlap]") {
  std::vector<float> memory(1000);
  const View once(memory.data() + 5, {1, 1, 40, 3}, {0, 0, 8, 1});
  const View repeated(memory.data(), {2, 3, 40, 5}, {0, 0, 8, 1});
  CHECK(overlaps_itself(repeated));
  CHECK_FALSE(overlaps(once, repeated));
  const View wider(memory.data(), {2, 3, 40, 6}, {0, 0, 8, 1});
  CHECK(overlaps(once, wider));
}

TEST_CASE("nothing overlaps what has no elements", "[overlap]") {
  std::vector<float> memory(100);
  const View some(memory.data(), {1, 1, 5, 5});
  const View none(memory.data(), {1, 1, 5, 0});
  CHECK_FALSE(overlaps(some, none));
  CHECK_FALSE(overlaps(none, none));
  CHECK_FALSE(overlaps_itself(none));
  CHECK_FALSE(overlaps(View(), View()));
}

TEST_CASE("a view with fewer places than elements overlaps itself", "[overlap]") {
  std::vector<float> memory(100);
  CHECK(overlaps_itself(View(memory.data(), {1, 1, 2, 3}, {0, 0, 0, 1})));
  CHECK(overlaps_itself(View(memory.data(), {1, 1, 2, 3}, {0, 0, 2, 1})));
  CHECK(overlaps_itself(View(memory.data(), {1, 1, 2, 3}, {0, 0, -2, 1})));
  CHECK_FALSE(overlaps_itself(View(memory.data(), {1, 1, 2, 3}, {0, 0, 3, 1})));
  CHECK_FALSE(overlaps_itself(View(memory.data(), {1, 1, 1, 3}, {0, 0, 0, 1})));
}

TEST_CASE("matrices are asked likewise", "[overlap]") {
  Matrix<float> m(6, 8);
  const MatrixView<float> whole = mha::matrix_view(m);
  CHECK_FALSE(overlaps(whole.middle_cols(0, 4), whole.middle_cols(4, 4)));
  CHECK_FALSE(overlaps(whole.middle_rows(0, 3), whole.middle_rows(3, 3)));
  CHECK(overlaps(whole.middle_cols(0, 5), whole.middle_cols(4, 4)));
  CHECK(overlaps(MatrixView<const float>(whole), whole.block(2, 2, 1, 1)));
  CHECK_FALSE(overlaps_itself(whole));
  Matrix<float> other(6, 8);
  CHECK_FALSE(overlaps(whole, mha::matrix_view(other)));
}

TEST_CASE("views are the same if their elements are, in order", "[overlap]") {
  std::vector<float> memory(100);
  const View view(memory.data(), {1, 2, 3, 4}, {77, 12, 4, 1});
  CHECK(is_same_view(view, View(memory.data(), {1, 2, 3, 4}, {0, 12, 4, 1})));
  CHECK(is_same_view(view, TensorView<const float>(view)));
  CHECK_FALSE(is_same_view(view, View(memory.data(), {1, 2, 3, 4}, {77, 4, 8, 1})));
  CHECK_FALSE(is_same_view(view, View(memory.data(), {1, 2, 3, 3}, {77, 12, 4, 1})));
  CHECK_FALSE(is_same_view(view, View(memory.data() + 1, {1, 2, 3, 4}, {77, 12, 4, 1})));
}
