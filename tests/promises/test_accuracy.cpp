// SPDX-License-Identifier: MIT
//
// How far outputs are from the exact ones: within (72 + log2(chunks)) eps (1 + s) times the largest |value|, where s is
// the largest sum of |query * key| over a row's channels, times scale. From where that comes: a chain over the 128 keys of a
// tile rounds 127 times by at most eps / 2, the 8 tiles of a chunk 7 times, the tree over chunks once a level, e^x, the
// division and the rest some times; a score's error (s) is one of its weight. Where keys are equal the row sum is exact.
#include <mha/mha.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "support/every_target.hpp"
#include "support/expected_attention.hpp"
#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::test::on_every_target;
using mha::test::random_matrix;

namespace {

/// Softmax over keys that are all equal, nearly equal, or of which few matter, or random ones.
enum class Scores { equal, random, peaked };
/// Rounding of a sum of equal terms goes one way; of random ones, this way and that.
enum class Values { one_number, same_sign, random };

template <class T>
struct Problem {
  Matrix<T> query, key, value;

  Problem(Index query_len, Index kv_len, Scores scores, Values values, unsigned seed)
      : query(random_matrix<T>(query_len, 4, seed)),
        key(random_matrix<T>(kv_len, 4, seed + 1)),
        value(random_matrix<T>(kv_len, 2, seed + 2)) {
    if (scores == Scores::equal) query.setZero();
    if (scores == Scores::peaked) query *= T(20);
    if (values != Values::random) value = value.cwiseAbs().array() + T(1);
    if (values == Values::one_number) value.rowwise() = value.row(0).eval();
  }

  /// The largest error of output(i, .), in units of eps (1 + s) times the largest value.
  double error(const Matrix<T>& output, Index i) const {
    const Matrix<T> row = query.row(i);
    const auto exact = mha::test::expected_attention<T>(row, key, value).output;
    using mha::test::Wide;
    const Matrix<Wide> sums =
        row.cwiseAbs().template cast<Wide>() * key.cwiseAbs().template cast<Wide>().transpose();
    const double s = mha::test::largest(sums) / std::sqrt(4.0);
    const Matrix<Wide> error = exact - output.row(i).template cast<Wide>();
    return mha::test::largest(error) /
           (std::numeric_limits<T>::epsilon() * (1 + s) * mha::test::largest(value));
  }
};

double bound(Index kv_len) {
  const auto chunks = static_cast<unsigned>((kv_len + 1023) / 1024);
  return 72 + static_cast<double>(std::bit_width(chunks - 1));
}

/// The largest error over some problems.
template <class T>
double search(Index query_len, Index kv_len, Scores scores, Values values, unsigned tries) {
  double worst = 0;
  for (unsigned k = 0; k < tries; ++k) {
    const Problem<T> problem(query_len, kv_len, scores, values, 7 * k + 1);
    const Matrix<T> output =
        mha::scaled_dot_product_attention(problem.query, problem.key, problem.value);
    for (Index i = 0; i < query_len; i += std::max<Index>(1, query_len / 2)) {
      worst = std::max(worst, problem.error(output, i));
    }
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("outputs are as near to the exact ones as is said, from 1 key to 262,144",
                   "[accuracy]", float, double) {
  on_every_target([] {
    for (const Index kv_len : {1, 2, 7, 100, 128, 129, 1000, 1024, 1025, 5000, 65'536, 262'144}) {
      const bool is_long = kv_len > 10'000;
      for (const Index query_len : {Index{1}, Index{6}}) {  // few rows, and a tile of queries
        for (const Scores scores : {Scores::equal, Scores::random, Scores::peaked}) {
          for (const Values values : {Values::one_number, Values::same_sign, Values::random}) {
            if (is_long && query_len == 1 && values == Values::same_sign) continue;
            CAPTURE(kv_len, query_len, static_cast<int>(scores), static_cast<int>(values));
            const double worst =
                search<TestType>(query_len, kv_len, scores, values, is_long ? 1 : 12);
            CHECK(worst <= bound(kv_len));
            // Random errors hardly add up.
            if (values == Values::random && scores != Scores::equal) CHECK(worst <= 10);
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("the worst that a search finds is a tenth of the bound at the least",
                   "[accuracy]", float, double) {
  // Or the bound would say little: equal keys, one value.
  const double worst = search<TestType>(6, 4096, Scores::equal, Values::one_number, 200);
  CHECK(worst <= bound(4096));
  CHECK(worst >= bound(4096) / 10);
}
