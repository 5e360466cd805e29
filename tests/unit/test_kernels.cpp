// SPDX-License-Identifier: MIT
//
// The functions of each instruction set's table, one by one, against plain loops; how exact their
// exponential and tanh are; and the choice of an instruction set. Attention as a whole is compared
// in test_kernel_attention.cpp. Built with -O2: GCC forms no multiply-adds at -O1.
#include <mha/attention.hpp>

#include <cmath>
#include <iostream>
#include <vector>

#include "support/matchers.hpp"
#include "support/targets.hpp"

using mha::Index;
using mha::kernels::Target;
using mha::test::available_targets;
using mha::test::is_nan;

TEST_CASE("the instruction set that was named runs until another is named", "[kernels][dispatch]") {
  const Target before = mha::kernels::target();
  CHECK(mha::kernels::is_available(before));
  for (const Target t : available_targets()) {
    {
      const mha::test::UsingTarget use(t);
      CHECK(mha::kernels::target() == t);
    }
    CHECK(mha::kernels::target() == before);
  }
}

TEST_CASE("an instruction set that is not available is refused and changes nothing",
          "[kernels][dispatch]") {
  const Target before = mha::kernels::target();
  for (const Target t : mha::kernels::kAllTargets) {
    if (mha::kernels::is_available(t)) continue;
    CHECK_THROWS_AS(mha::kernels::use_target(t), std::invalid_argument);
    CHECK_THROWS_WITH(mha::kernels::use_target(t),
                      mha::test::ContainsSubstring("must be available"));
    CHECK_THROWS_WITH(mha::kernels::use_target(t),
                      mha::test::ContainsSubstring(mha::kernels::name(t)));
    CHECK(mha::kernels::target() == before);
  }
}

TEST_CASE("the generic target is there where it was asked for, or where there is no other",
          "[kernels][dispatch]") {
  CHECK(mha::kernels::is_available(Target::generic) == (MHA_GENERIC != 0));
  CHECK(!available_targets().empty());
  if (MHA_GENERIC != 0) CHECK(available_targets().size() == 1);
}

TEST_CASE("every instruction set has its own name", "[kernels][dispatch]") {
  CHECK(mha::kernels::name(Target::generic) == std::string("generic"));
  CHECK(mha::kernels::name(Target::neon) == std::string("neon"));
  CHECK(mha::kernels::name(Target::sse2) == std::string("sse2"));
  CHECK(mha::kernels::name(Target::avx2) == std::string("avx2"));
  CHECK(mha::kernels::name(Target::avx512) == std::string("avx512"));
}

namespace {

using mha::kernels::int_of;
using mha::kernels::Kernels;
using mha::kernels::kKeyTile;
using mha::kernels::kLanes;
using mha::test::Wide;

constexpr double kUntouched = -77;  // what lies around results, and must stay

// Numbers in memory aligned as the kernels' own.
template <class T>
class Block {
 public:
  explicit Block(Index count, double x = kUntouched)
      : numbers_(static_cast<std::size_t>(count) + 64 / sizeof(T), T(x)), count_(count) {
    const auto address = reinterpret_cast<std::uintptr_t>(numbers_.data());
    first_ = numbers_.data() + (64 - address % 64) % 64 / sizeof(T);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  T* data() { return first_; }
  Index size() const { return count_; }
  T& operator[](Index k) { return first_[k]; }
  const T& operator[](Index k) const { return first_[k]; }

 private:
  std::vector<T> numbers_;
  T* first_ = nullptr;
  Index count_;
};

template <class T>
void fill_random(Block<T>& block, std::uint64_t seed, double magnitude = 1) {
  const mha::Matrix<T> numbers = mha::test::random_matrix<T>(1, block.size(), seed, magnitude);
  for (Index k = 0; k < block.size(); ++k) block[k] = numbers(0, k);
}

// Integers from -4 to 4: sums of their products are exact.
template <class T>
void fill_integers(Block<T>& block, std::uint64_t seed) {
  fill_random(block, seed, 4.49);
  for (Index k = 0; k < block.size(); ++k) block[k] = std::round(block[k]);
}

// f(kernels) for each instruction set, which is shown with a failure.
template <class T, class F>
void on_every_target(const F& f) {
  for (const Target t : available_targets()) {
    INFO("on " << mha::kernels::name(t));
    f(mha::kernels::table<T>(t), t);
  }
}

template <class T>
T minus_infinity() {
  return mha::test::minus_infinity_of<T>();
}

// The smallest step of T near x.
template <class T>
Wide ulp_at(Wide x) {
  const int exponent = std::max(std::ilogb(x), std::numeric_limits<T>::min_exponent - 1);
  return std::ldexp(Wide(1), exponent - std::numeric_limits<T>::digits + 1);
}

// e^x by the table's exponentiate(), in place.
template <class T>
void exponentiate(const Kernels<T>& kernels, Block<T>& x) {
  constexpr Index kPanel = kKeyTile * kLanes<T>;
  REQUIRE(x.size() % kPanel == 0);
  Block<T> row_max(kLanes<T>, 0);
  Block<T> row_sum(kLanes<T>, 0);
  for (Index k = 0; k < x.size(); k += kPanel) {
    kernels.exponentiate(x.data() + k, kKeyTile, kLanes<T> / kernels.vector_lanes, row_max.data(),
                         row_sum.data());
  }
}

template <class T>
T exp_of(const Kernels<T>& kernels, T x) {
  Block<T> panel(kKeyTile * kLanes<T>, 0);
  panel[5] = x;
  exponentiate(kernels, panel);
  return panel[5];
}

template <class T>
T tanh_of(const Kernels<T>& kernels, T x) {
  Block<T> row(kLanes<T>, 0);
  row[3] = x;
  kernels.softcap(row.data(), 1, kLanes<T>, kLanes<T> / kernels.vector_lanes, T(1));
  return row[3];
}

struct Worst {
  Wide error = 0;
  Wide at = 0;
  void note(Wide e, Wide x) {
    if (!(e > error)) return;
    error = e;
    at = x;
  }
};

void print(const char* what, Target t, const Worst& worst, const char* unit) {
  std::cout << what << " on " << mha::kernels::name(t) << ": " << static_cast<double>(worst.error)
            << unit << " at " << std::hexfloat << static_cast<double>(worst.at) << std::defaultfloat
            << "\n";
}

}  // namespace

TEMPLATE_TEST_CASE("a product is the sum of products, at any strides and sizes",
                   "[kernels][product]", float, double) {
  constexpr Index kMostRows = 13;
  constexpr Index kWide = kLanes<TestType>;
  constexpr Index kCRow = kWide + 64 / static_cast<Index>(sizeof(TestType));
  for (const Index depth : {0, 1, 2, 15, 16, 64, 129}) {
    // The same numbers in both orders, with gaps.
    Block<TestType> rows_first(kMostRows * (depth + 3));
    Block<TestType> steps_first((depth + 1) * (kMostRows + 2));
    Block<TestType> every_other(2 * kMostRows * (depth + 1));
    fill_integers(rows_first, 1);
    Block<TestType> b((depth + 1) * kWide);
    fill_integers(b, 2);
    Block<TestType> before(kMostRows * kCRow);
    fill_integers(before, 3);
    mha::Matrix<TestType> sums = mha::Matrix<TestType>::Zero(kMostRows, kWide);
    for (Index r = 0; r < kMostRows; ++r) {
      for (Index k = 0; k < depth; ++k) {
        const TestType x = rows_first[r * (depth + 3) + k];
        steps_first[k * (kMostRows + 2) + r] = x;
        every_other[2 * (r * depth + k)] = x;
        for (Index l = 0; l < kWide; ++l) sums(r, l) += x * b[k * kWide + l];
      }
    }
    struct Operand {
      const TestType* a;
      Index row;
      Index step;
    };
    on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
      Index wrong = 0;
      for (const Operand& a :
           {Operand{rows_first.data(), depth + 3, 1}, Operand{steps_first.data(), 1, kMostRows + 2},
            Operand{every_other.data(), 2 * depth, 2}}) {
        for (Index rows = 0; rows <= kMostRows; ++rows) {
          for (Index vectors = 1; vectors * kernels.vector_lanes <= kWide; ++vectors) {
            for (const bool accumulate : {false, true}) {
              Block<TestType> c(kMostRows * kCRow);
              std::copy_n(before.data(), c.size(), c.data());
              Block<TestType> most(kWide, 3);
              mha::kernels::Product<TestType> x;
              x.rows = rows;
              x.vectors = vectors;
              x.depth = depth;
              x.a = a.a;
              x.a_row = a.row;
              x.a_step = a.step;
              x.b = b.data();
              x.b_step = kWide;
              x.c = c.data();
              x.c_row = kCRow;
              x.accumulate = accumulate;
              const bool with_max = rows % 2 == 1;
              if (with_max) x.column_max = most.data();
              x.fetch[0] = x.fetch[1] = x.a;
              kernels.product(x);
              const Index lanes = vectors * kernels.vector_lanes;
              Block<TestType> expected_most(kWide, 3);
              for (Index r = 0; r < kMostRows; ++r) {
                for (Index l = 0; l < kCRow; ++l) {
                  TestType expected = before[r * kCRow + l];
                  if (r < rows && l < lanes) {
                    expected = sums(r, l) + (accumulate ? expected : TestType(0));
                    if (with_max) expected_most[l] = std::max(expected_most[l], expected);
                  }
                  if (c[r * kCRow + l] != expected) ++wrong;
                }
              }
              for (Index l = 0; l < kWide; ++l) {
                if (most[l] != expected_most[l]) ++wrong;
              }
            }
          }
        }
      }
      CAPTURE(depth);
      CHECK(wrong == 0);
    });
  }
}

TEMPLATE_TEST_CASE("each entry of a product is one chain of multiply-adds, in order",
                   "[kernels][product][bits]", float, double) {
  constexpr Index kRows = 11;
  constexpr Index kDepth = 100;
  constexpr Index kWide = kLanes<TestType>;
  Block<TestType> a(kRows * kDepth);
  Block<TestType> b(kDepth * kWide);
  fill_random(a, 1);
  fill_random(b, 2);
  mha::Matrix<TestType> fused = mha::Matrix<TestType>::Zero(kRows, kWide);
  mha::Matrix<TestType> rounded = fused;
  mha::Matrix<Wide> exact = mha::Matrix<Wide>::Zero(kRows, kWide);
  for (Index r = 0; r < kRows; ++r) {
    for (Index l = 0; l < kWide; ++l) {
      for (Index k = 0; k < kDepth; ++k) {
        const TestType x = a[r * kDepth + k];
        const TestType y = b[k * kWide + l];
        fused(r, l) = std::fma(x, y, fused(r, l));
        const volatile TestType product = x * y;
        rounded(r, l) += product;
        exact(r, l) += Wide(x) * Wide(y);
      }
    }
  }
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target t) {
    Block<TestType> c(kRows * kWide);
    mha::kernels::Product<TestType> x;
    x.rows = kRows;
    x.vectors = kWide / kernels.vector_lanes;
    x.depth = kDepth;
    x.a = a.data();
    x.a_row = kDepth;
    x.a_step = 1;
    x.b = b.data();
    x.b_step = kWide;
    x.c = c.data();
    x.c_row = kWide;
    x.fetch[0] = x.fetch[1] = x.a;
    kernels.product(x);
    const mha::Matrix<TestType> actual =
        Eigen::Map<const mha::Matrix<TestType>>(c.data(), kRows, kWide);
    // |sum| <= 100; each of the 100 additions rounds by at most half an ulp of it.
    CHECK_THAT(actual, mha::test::IsClose(exact, 100 * 64 * mha::test::eps_of<TestType>()));
    if (t == Target::sse2 || t == Target::generic) {
      CHECK_THAT(actual, mha::test::HasBitsOf(rounded));
    } else {
      CHECK_THAT(actual, mha::test::HasBitsOf(fused));
    }
  });
}

TEMPLATE_TEST_CASE(
    "packing transposes, multiplies and repeats the last row in what is left of a vector",
    "[kernels][pack]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  const TestType factor(0.5);
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Index wrong = 0;
    const auto check = [&](Index rows, Index cols, Index row_stride, Index col_stride,
                           Index lanes) {
      Block<TestType> x(std::max<Index>(rows * row_stride + cols * col_stride, 1));
      fill_integers(x, 4);
      Block<TestType> panel((cols + 1) * kWide);
      kernels.pack(x.data(), row_stride, col_stride, rows, cols, factor, panel.data(), kWide,
                   lanes);
      for (Index c = 0; c <= cols; ++c) {
        for (Index r = 0; r < kWide; ++r) {
          auto expected = TestType(kUntouched);
          if (c < cols && r < lanes) {
            expected = x[std::min(r, rows - 1) * row_stride + c * col_stride] * factor;
          }
          if (panel[c * kWide + r] != expected) ++wrong;
        }
      }
    };
    for (Index rows = 1; rows <= kWide; ++rows) {
      for (const Index cols : {0, 1, 2, 3, 4, 5, 8, 15, 17}) {
        const Index vector = kernels.vector_lanes;
        for (const Index lanes : {(rows + vector - 1) / vector * vector, kWide}) {
          check(rows, cols, cols, 1, lanes);          // rows
          check(rows, cols, cols + 3, 1, lanes);      // rows with gaps
          check(rows, cols, 1, rows + 1, lanes);      // columns
          check(rows, cols, 2 * cols + 1, 2, lanes);  // neither
        }
      }
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("unpacking transposes, multiplies by lane and adds by column",
                   "[kernels][unpack]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  Block<TestType> panel(18 * kWide);
  Block<TestType> factor(kWide);
  Block<TestType> offset(18);
  fill_integers(panel, 5);
  fill_integers(factor, 6);
  fill_integers(offset, 7);
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Index wrong = 0;
    const auto check = [&](Index rows, Index cols, Index row_stride, Index col_stride) {
      for (const TestType* factors : {static_cast<TestType*>(nullptr), factor.data()}) {
        for (const TestType* offsets : {static_cast<TestType*>(nullptr), offset.data()}) {
          Block<TestType> out(rows * row_stride + cols * col_stride + 1);
          Block<TestType> expected(out.size());
          kernels.unpack(panel.data(), kWide, factors, offsets, out.data(), row_stride, col_stride,
                         rows, cols);
          for (Index r = 0; r < rows; ++r) {
            for (Index c = 0; c < cols; ++c) {
              expected[r * row_stride + c * col_stride] =
                  panel[c * kWide + r] * (factors == nullptr ? TestType(1) : factors[r]) +
                  (offsets == nullptr ? TestType(0) : offsets[c]);
            }
          }
          for (Index k = 0; k < out.size(); ++k) wrong += out[k] == expected[k] ? 0 : 1;
        }
      }
    };
    for (Index rows = 0; rows <= kWide; ++rows) {
      for (const Index cols : {0, 1, 2, 3, 4, 5, 8, 15, 17}) {
        check(rows, cols, cols, 1);
        check(rows, cols, cols + 3, 1);
        check(rows, cols, 1, rows + 1);
        check(rows, cols, 2 * cols + 1, 2);
      }
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("an unpacked number that underflows is +0 in lanes and tails alike",
                   "[kernels][unpack][regression]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Block<TestType> panel(kWide, -static_cast<double>(std::numeric_limits<TestType>::min()));
    Block<TestType> factor(kWide, static_cast<double>(std::numeric_limits<TestType>::min()));
    Block<TestType> out(kWide);
    const Index rows = kWide - 1;
    kernels.unpack(panel.data(), kWide, factor.data(), nullptr, out.data(), 1, 1, rows, 1);
    for (Index r = 0; r < rows; ++r) REQUIRE(mha::test::equal_bits(out[r], TestType(0)));
  });
}

TEMPLATE_TEST_CASE("maxima are folded over the rows, and keys out of range become -inf",
                   "[kernels][softmax]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  constexpr Index kFirst = 1000;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Index wrong = 0;
    for (const Index keys : {0, 1, 2, 3, 7, 128}) {
      for (Index vectors = 1; vectors * kernels.vector_lanes <= kWide; ++vectors) {
        for (const bool ranged : {false, true}) {
          Block<TestType> s((keys + 1) * kWide);
          fill_random(s, 8, 9);
          Block<TestType> before(s.size());
          std::copy_n(s.data(), s.size(), before.data());
          Block<TestType> most(kWide, 2);
          Block<int_of<TestType>> begin(kWide);
          Block<int_of<TestType>> end(kWide);
          for (Index l = 0; l < kWide; ++l) {
            begin[l] = static_cast<int_of<TestType>>(kFirst - 2 + l % 7);
            end[l] = static_cast<int_of<TestType>>(begin[l] + l % 5);
          }
          kernels.fold_max(s.data(), keys, vectors, most.data(), ranged ? begin.data() : nullptr,
                           end.data(), kFirst);
          for (Index l = 0; l < kWide; ++l) {
            TestType expected_most(2);
            for (Index j = 0; j <= keys; ++j) {
              TestType expected = before[j * kWide + l];
              if (j < keys && l < vectors * kernels.vector_lanes) {
                const bool out = kFirst + j < begin[l] || kFirst + j >= end[l];
                if (ranged && out) expected = minus_infinity<TestType>();
                expected_most = std::max(expected_most, expected);
              }
              if (s[j * kWide + l] != expected) ++wrong;
            }
            if (most[l] != expected_most) ++wrong;
          }
        }
      }
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("the reference of weights rises only where the maximum has left it behind",
                   "[kernels][softmax]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  const auto none = minus_infinity<TestType>();
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    struct Row {
      TestType row_max;
      TestType tile_max;
      TestType expected;
      TestType correction;  // e^(row_max - expected)
    };
    // Within 8 of the maximum the reference stays.
    const std::vector<Row> rows{
        {TestType(1), TestType(0), TestType(1), TestType(1)},
        {TestType(1), TestType(9), TestType(1), TestType(1)},
        {TestType(1), TestType(10), TestType(10), exp_of(kernels, TestType(-9))},
        {TestType(-3), TestType(17), TestType(17), exp_of(kernels, TestType(-20))},
        {TestType(5), none, TestType(5), TestType(1)},
        {none, TestType(-7), TestType(-7), TestType(0)},
        {none, none, none, TestType(0)},
    };
    for (std::size_t k = 0; k < rows.size(); ++k) {
      CAPTURE(k);
      Block<TestType> row_max(kWide, 0);
      Block<TestType> tile_max(kWide, 0);
      Block<TestType> correction(kWide);
      const Index lane = static_cast<Index>(5 * k) % kWide;
      row_max[lane] = rows[k].row_max;
      tile_max[lane] = rows[k].tile_max;
      const bool rose = kernels.raise(tile_max.data(), row_max.data(), correction.data(),
                                      kWide / kernels.vector_lanes);
      CHECK(rose == !mha::test::equal_bits(rows[k].row_max, rows[k].expected));
      for (Index l = 0; l < kWide; ++l) {
        REQUIRE(row_max[l] == (l == lane ? rows[k].expected : TestType(0)));
        REQUIRE(correction[l] == (l == lane ? rows[k].correction : TestType(1)));
      }
    }
  });
}

TEMPLATE_TEST_CASE("weights and their sum have the same bits whether lanes are queries or keys",
                   "[kernels][softmax][bits]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  constexpr Index kRows = 6;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (const Index keys : {1, 3, 15, 16, 17, 127, 128}) {
      CAPTURE(keys);
      Block<TestType> lanes(keys * kWide, 0);
      Block<TestType> rows(kRows * kKeyTile, 0);
      const mha::Matrix<TestType> s = mha::test::random_matrix<TestType>(kRows, keys, 9, 30);
      for (Index r = 0; r < kRows; ++r) {
        for (Index j = 0; j < kKeyTile; ++j) {
          rows[r * kKeyTile + j] = j < keys ? s(r, j) : minus_infinity<TestType>();
          if (j < keys) lanes[j * kWide + r] = s(r, j);
        }
      }
      const auto start = [&](Block<TestType>& block) {  // both higher and lower than the scores
        for (Index r = 0; r < kRows; ++r) block[r] = static_cast<TestType>(50 - 20 * r);
        block[kRows - 1] = minus_infinity<TestType>();
      };
      Block<TestType> lane_max(kWide, 0);
      Block<TestType> lane_sum(kWide, 0.7);
      start(lane_max);
      Block<TestType> tile_max(kWide, -1000);
      Block<TestType> factor(kWide);
      const Index vectors = kWide / kernels.vector_lanes;
      kernels.fold_max(lanes.data(), keys, vectors, tile_max.data(), nullptr, nullptr, 0);
      kernels.raise(tile_max.data(), lane_max.data(), factor.data(), vectors);
      kernels.rescale(lane_sum.data(), 1, vectors, factor.data());
      Block<TestType> tile_sum(kWide, 0);
      kernels.exponentiate(lanes.data(), keys, vectors, lane_max.data(), tile_sum.data());
      kernels.add(lane_sum.data(), 0, 1, vectors, tile_sum.data());

      Block<TestType> row_max(kRows);
      Block<TestType> row_sum(kRows, 0.7);
      start(row_max);
      Block<TestType> correction(kRows);
      kernels.exponentiate_rows(rows.data(), kKeyTile, kRows, keys, row_max.data(), row_sum.data(),
                                correction.data());
      for (Index r = 0; r < kRows; ++r) {
        REQUIRE(mha::test::equal_bits(row_max[r], lane_max[r]));
        REQUIRE(mha::test::equal_bits(row_sum[r], lane_sum[r]));
        REQUIRE(mha::test::equal_bits(correction[r], factor[r]));
        for (Index j = 0; j < keys; ++j) {
          REQUIRE(mha::test::equal_bits(rows[r * kKeyTile + j], lanes[j * kWide + r]));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("weights are summed lane by lane in the order of the keys", "[kernels][softmax]",
                   float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Block<TestType> s(kKeyTile * kWide);
    fill_random(s, 10, 20);
    Block<TestType> row_max(kWide, 3);
    Block<TestType> row_sum(kWide, 1.25);
    kernels.exponentiate(s.data(), kKeyTile, kWide / kernels.vector_lanes, row_max.data(),
                         row_sum.data());
    for (Index l = 0; l < kWide; ++l) {
      TestType sum(1.25);
      for (Index j = 0; j < kKeyTile; ++j) sum += s[j * kWide + l];
      REQUIRE(mha::test::equal_bits(sum, row_sum[l]));
    }
  });
}

TEMPLATE_TEST_CASE("rescaling multiplies the lanes in use and no other", "[kernels][softmax]",
                   float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (Index vectors = 1; vectors * kernels.vector_lanes <= kWide; ++vectors) {
      Block<TestType> x(4 * kWide);
      Block<TestType> factor(kWide);
      fill_random(x, 11);
      fill_random(factor, 12);
      Block<TestType> before(x.size());
      std::copy_n(x.data(), x.size(), before.data());
      kernels.rescale(x.data(), 3, vectors, factor.data());
      for (Index k = 0; k < x.size(); ++k) {
        const bool in_use = k / kWide < 3 && k % kWide < vectors * kernels.vector_lanes;
        REQUIRE(x[k] == (in_use ? before[k] * factor[k % kWide] : before[k]));
      }
    }
  });
}

TEMPLATE_TEST_CASE("adding a panel changes the lanes in use and no other", "[kernels][softmax]",
                   float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (Index vectors = 1; vectors * kernels.vector_lanes <= kWide; ++vectors) {
      constexpr Index kRow = kWide + 7;
      Block<TestType> x(4 * kRow);
      Block<TestType> part(4 * kWide);
      fill_random(x, 21);
      fill_random(part, 22);
      Block<TestType> before(x.size());
      std::copy_n(x.data(), x.size(), before.data());
      kernels.add(x.data(), kRow, 3, vectors, part.data());
      for (Index k = 0; k < x.size(); ++k) {
        const Index row = k / kRow;
        const Index lane = k % kRow;
        const bool in_use = row < 3 && lane < vectors * kernels.vector_lanes;
        REQUIRE(x[k] == (in_use ? before[k] + part[row * kWide + lane] : before[k]));
      }
    }
  });
}

TEMPLATE_TEST_CASE("two states merge to that of all their keys, an empty one changes no bit",
                   "[kernels][softmax]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  constexpr Index kRows = 3;
  const auto none = minus_infinity<TestType>();
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Block<TestType> total(kRows * kWide);
    Block<TestType> part(kRows * kWide);
    Block<TestType> total_max(kWide);
    Block<TestType> part_max(kWide);
    Block<TestType> total_sum(kWide);
    Block<TestType> part_sum(kWide);
    fill_random(total, 13);
    fill_random(part, 14);
    fill_random(total_max, 15, 6);
    fill_random(part_max, 16, 6);
    fill_random(total_sum, 17);
    fill_random(part_sum, 18);
    const auto empty = [&](Block<TestType>& x, Block<TestType>& most, Block<TestType>& sum,
                           Index lane) {
      most[lane] = none;
      sum[lane] = TestType(0);
      for (Index r = 0; r < kRows; ++r) x[r * kWide + lane] = TestType(0);
    };
    empty(total, total_max, total_sum, 1);
    empty(part, part_max, part_sum, 2);
    empty(total, total_max, total_sum, 3);
    empty(part, part_max, part_sum, 3);
    Block<TestType> x(total.size());
    Block<TestType> x_max(kWide);
    Block<TestType> x_sum(kWide);
    std::copy_n(total.data(), x.size(), x.data());
    std::copy_n(total_max.data(), kWide, x_max.data());
    std::copy_n(total_sum.data(), kWide, x_sum.data());
    kernels.merge(x.data(), x_max.data(), x_sum.data(), part.data(), part_max.data(),
                  part_sum.data(), kRows, kWide / kernels.vector_lanes);
    for (Index l = 0; l < kWide; ++l) {
      const TestType most = std::max(total_max[l], part_max[l]);
      REQUIRE(x_max[l] == most);
      const auto check = [&](TestType actual, TestType a, TestType b) {
        if (l <= 3 && l >= 1) {
          const TestType same = l == 1 ? b : l == 2 ? a : TestType(0);
          REQUIRE(mha::test::equal_bits(actual, same));
          return;
        }
        const Wide f = std::exp(Wide(total_max[l]) - Wide(most));
        const Wide g = std::exp(Wide(part_max[l]) - Wide(most));
        const Wide expected = Wide(a) * f + Wide(b) * g;
        // e^x: 2 ulps, and the rounding of an exponent as large as 12 * 1.44; then three roundings.
        const double tolerance = (4 + 12 * 1.45) * mha::test::eps_of<TestType>();
        REQUIRE(std::abs(static_cast<double>(Wide(actual) - expected)) <= tolerance);
      };
      check(x_sum[l], total_sum[l], part_sum[l]);
      for (Index r = 0; r < kRows; ++r) {
        check(x[r * kWide + l], total[r * kWide + l], part[r * kWide + l]);
      }
    }
  });
}

// The worst share of the bound on e^x's relative error that the kernels' own comment states: that of the
// polynomial, and of log2(e), which is rounded. Without fused multiply-adds x log2(e) is rounded too.
struct ExpBound {
  Wide constant;
  Wide slope;
  Worst worst{};
  ExpBound(Target t, Wide fused, Wide fused_slope, Wide plain, Wide plain_slope) {
    const bool fuses = t != Target::sse2 && t != Target::generic;
    constant = fuses ? fused : plain;
    slope = fuses ? fused_slope : plain_slope;
  }
  void note(Wide actual, Wide x) {
    const Wide exact = std::exp(x);
    worst.note(std::abs(actual - exact) / exact / (constant + slope * std::abs(x)), x);
  }
};

TEST_CASE("e^x in float is exact to 2e-7 near 0", "[kernels][softmax][accuracy]") {
  // The kernels ask for x up to 8. An odd step through the bits of floats from 2^-27, below which e^x is 1
  // or its neighbour, visits every exponent with ever other fractions.
  constexpr std::uint32_t kStep = 29;
  constexpr std::uint32_t kSign = 0x80000000u;
  const auto bits_of = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  on_every_target<float>([&](const Kernels<float>& kernels, Target t) {
    ExpBound bound(t, 1.75e-7L, 1.4e-8L, 2e-7L, 7.4e-8L);
    const auto visit = [&](std::uint32_t first, std::uint32_t last, std::uint32_t step) {
      Block<float> panel(kKeyTile * kLanes<float>);
      const auto at = [&](Index k) {
        const std::uint64_t bits = first + static_cast<std::uint64_t>(k) * step;
        return std::bit_cast<float>(
            static_cast<std::uint32_t>(std::min<std::uint64_t>(bits, last)));
      };
      const Index count = static_cast<Index>((last - first) / step) + 1;
      for (Index k = 0; k < count; k += panel.size()) {
        for (Index l = 0; l < panel.size(); ++l) panel[l] = at(k + l);
        exponentiate(kernels, panel);
        for (Index l = 0; l < panel.size(); ++l) {
          // In double: its error of 2^-53 does not count here.
          const double x = at(k + l);
          const double exact = std::exp(x);
          bound.worst.note(std::abs(static_cast<double>(panel[l]) - exact) / exact /
                               (static_cast<double>(bound.constant) +
                                static_cast<double>(bound.slope) * std::abs(x)),
                           x);
        }
      }
    };
    visit(bits_of(0x1p-27F), bits_of(8), kStep);
    visit(kSign | bits_of(0x1p-27F), kSign | bits_of(44.0F), kStep);
    print("share of the bound on e^x in float", t, bound.worst, "");
    CHECK(bound.worst.error < 1);
  });
}

TEST_CASE("e^x in double is exact to 2e-16 near 0", "[kernels][softmax][accuracy]") {
  constexpr int kPanels = 250;
  on_every_target<double>([&](const Kernels<double>& kernels, Target t) {
    ExpBound bound(t, 1.5e-16L, 1.5e-17L, 2e-16L, 1.3e-16L);
    Block<double> x(kKeyTile * kLanes<double>);
    Block<double> y(x.size());
    for (int panel = 0; panel < kPanels; ++panel) {
      fill_random(x, static_cast<std::uint64_t>(panel));
      for (Index k = 0; k < x.size(); ++k) {
        // Of three, one in [-354, 8), one in [-1, 1), one nearer 0 in every exponent.
        if (k % 3 == 0) x[k] = -354 + 362 * (x[k] + 1) / 2;
        if (k % 3 == 1) x[k] = std::ldexp(x[k], -static_cast<int>(k % 53));
        y[k] = x[k];
      }
      exponentiate(kernels, y);
      for (Index k = 0; k < x.size(); ++k) bound.note(Wide(y[k]), Wide(x[k]));
    }
    print("share of the bound on e^x in double", t, bound.worst, "");
    CHECK(bound.worst.error < 1);
  });
}

TEMPLATE_TEST_CASE(
    "e^x is exactly 1 at 0, 0 from 2^-63.5 (double: 2^-511.5) downwards, NaN for NaN",
    "[kernels][softmax]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  // The neighbours of -63.5 ln(2) and -511.5 ln(2) = -354.54478... on both sides.
  const auto zero = static_cast<TestType>(sizeof(TestType) == 4 ? -44.01485 : -354.54479);
  const auto smallest = static_cast<TestType>(sizeof(TestType) == 4 ? -44.01482 : -354.54478);
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    const auto power = [&](TestType x) { return exp_of(kernels, x); };
    CHECK(power(0) == TestType(1));
    CHECK(power(TestType(-0.0)) == TestType(1));
    CHECK(power(Limits::denorm_min()) == TestType(1));
    CHECK(power(-Limits::denorm_min()) == TestType(1));
    for (const TestType x :
         {minus_infinity<TestType>(), Limits::lowest(), TestType(2 * zero), zero}) {
      CAPTURE(x);
      CHECK(mha::test::equal_bits(power(x), TestType(0)));
    }
    CHECK(power(smallest) > TestType(0));
    CHECK(is_nan(power(Limits::quiet_NaN())));
    CHECK(is_nan(power(-Limits::quiet_NaN())));
  });
}

TEMPLATE_TEST_CASE("e^x between its smallest weight and 0 is never negative, too large or NaN",
                   "[kernels][softmax]", float, double) {
  const auto lowest = static_cast<TestType>(sizeof(TestType) == 4 ? -49 : -360);
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    Block<TestType> x(kKeyTile * kLanes<TestType>);
    fill_random(x, 19);
    Block<TestType> y(x.size());
    for (Index k = 0; k < x.size(); ++k) y[k] = x[k] = lowest * (x[k] + 1) / 2;
    exponentiate(kernels, y);
    Index wrong = 0;
    for (Index k = 0; k < x.size(); ++k) {
      const bool fits = y[k] >= 0 && y[k] <= std::exp(x[k]) * TestType(1.00001) +
                                                 std::numeric_limits<TestType>::denorm_min();
      wrong += fits ? 0 : 1;
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("tanh of the softcap is exact to 2.5 units in the last place",
                   "[kernels][softcap][accuracy]", float, double) {
  // All floats from 2^-14 on and some of the smaller, worst: 2.31 ulps at 0x1.c90a8cp-1 without multiply-adds, 2.26 with.
  constexpr int kPanels = sizeof(TestType) == 4 ? 400 : 200;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target t) {
    Worst worst;
    Block<TestType> x(kKeyTile * kLanes<TestType>);
    Block<TestType> y(x.size());
    for (int panel = 0; panel < kPanels; ++panel) {
      fill_random(x, static_cast<std::uint64_t>(panel));
      for (Index k = 0; k < x.size(); ++k) {
        // Of three, one in [-20, 20), one in [-1, 1), one nearer 0 in every exponent.
        if (k % 3 == 0) x[k] *= 20;
        if (k % 3 == 1) x[k] = std::ldexp(x[k], -static_cast<int>(k % 120));
        y[k] = x[k];
      }
      kernels.softcap(y.data(), kKeyTile, kLanes<TestType>, kLanes<TestType> / kernels.vector_lanes,
                      TestType(1));
      for (Index k = 0; k < x.size(); ++k) {
        const Wide exact = sizeof(TestType) == 4 ? Wide(std::tanh(static_cast<double>(x[k])))
                                                 : std::tanh(Wide(x[k]));
        worst.note(std::abs(Wide(y[k]) - exact) / ulp_at<TestType>(exact), x[k]);
      }
    }
    print(sizeof(TestType) == 4 ? "tanh in float" : "tanh in double", t, worst, " ulps");
    CHECK(worst.error < 2.5L);
  });
}

TEMPLATE_TEST_CASE("tanh of the softcap keeps zeros, subnormals, infinities and NaN",
                   "[kernels][softcap]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  using mha::test::equal_bits;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    const auto tanh = [&](TestType x) { return tanh_of(kernels, x); };
    for (const TestType x : {TestType(0), Limits::denorm_min(), Limits::min() / 2, Limits::min()}) {
      CAPTURE(x);
      CHECK(equal_bits(tanh(x), x));
      CHECK(equal_bits(tanh(-x), -x));
    }
    for (const TestType x : {TestType(30), Limits::max(), mha::test::infinity_of<TestType>()}) {
      CAPTURE(x);
      CHECK(tanh(x) == TestType(1));
      CHECK(tanh(-x) == TestType(-1));
    }
    CHECK(is_nan(tanh(Limits::quiet_NaN())));
  });
}

TEMPLATE_TEST_CASE("a softcap multiplies and divides by its cap, in the lanes in use alone",
                   "[kernels][softcap]", float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (const TestType cap : {TestType(0.5), TestType(30)}) {
      for (Index vectors = 1; vectors * kernels.vector_lanes <= kWide; ++vectors) {
        Block<TestType> s(3 * (kWide + 16));
        fill_random(s, 20, 50);
        Block<TestType> before(s.size());
        std::copy_n(s.data(), s.size(), before.data());
        kernels.softcap(s.data(), 3, kWide + 16, vectors, cap);
        for (Index k = 0; k < s.size(); ++k) {
          if (k % (kWide + 16) >= vectors * kernels.vector_lanes) {
            REQUIRE(s[k] == before[k]);
            continue;
          }
          const Wide x = Wide(before[k]) / Wide(cap);
          const Wide expected = Wide(cap) * std::tanh(x);
          // tanh: 2.5 ulps; its argument and the product: half an ulp each; tanh has slope 1 at most.
          const Wide size = std::abs(expected);
          REQUIRE(std::abs(Wide(s[k]) - expected) <=
                  Wide(4 * mha::test::eps_of<TestType>()) * size);
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("an infinity or NaN is found wherever it is, and nothing else is one",
                   "[kernels][all_finite]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (const Index cols : {1, 2, 7, 16, 17, 40}) {
      constexpr Index kRows = 3;
      for (const bool by_rows : {true, false}) {
        CAPTURE(cols, by_rows);
        const Index row_stride = by_rows ? cols + 1 : 1;
        const Index col_stride = by_rows ? 1 : kRows + 1;
        // What lies between rows does not count.
        Block<TestType> x((kRows + 1) * (cols + 1), mha::test::infinity_of<double>());
        const auto at = [&](Index r, Index c) -> TestType& {
          return x[r * row_stride + c * col_stride];
        };
        const auto finite = [&] {
          return kernels.all_finite(x.data(), row_stride, col_stride, kRows, cols);
        };
        const TestType fine[] = {TestType(0), TestType(-0.0), Limits::max(), Limits::lowest(),
                                 Limits::denorm_min()};
        for (Index r = 0; r < kRows; ++r) {
          for (Index c = 0; c < cols; ++c) at(r, c) = fine[(r + c) % 5];
        }
        CHECK(finite());
        for (Index r = 0; r < kRows; ++r) {
          for (Index c = 0; c < cols; ++c) {
            const TestType before = at(r, c);
            for (const TestType poison : {Limits::quiet_NaN(), mha::test::infinity_of<TestType>(),
                                          minus_infinity<TestType>()}) {
              at(r, c) = poison;
              REQUIRE_FALSE(finite());
            }
            at(r, c) = before;
          }
        }
      }
    }
    CHECK(kernels.all_finite(nullptr, 1, 1, 0, 0));
  });
}

TEMPLATE_TEST_CASE("rows are filled with one number each, without numbers with zeros", "[kernels]",
                   float, double) {
  constexpr Index kWide = kLanes<TestType>;
  on_every_target<TestType>([&](const Kernels<TestType>& kernels, Target) {
    for (Index lanes = 0; lanes <= kWide; lanes += kernels.vector_lanes) {
      for (const bool zeros : {false, true}) {
        Block<TestType> panel(4 * kWide);
        Block<TestType> numbers(3);
        fill_random(numbers, 21);
        kernels.fill_rows(panel.data(), 3, lanes, zeros ? nullptr : numbers.data());
        for (Index k = 0; k < panel.size(); ++k) {
          const bool filled = k / kWide < 3 && k % kWide < lanes;
          REQUIRE(panel[k] == (!filled ? TestType(kUntouched)
                               : zeros ? TestType(0)
                                       : numbers[k / kWide]));
        }
      }
    }
  });
}
