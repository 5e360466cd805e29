// SPDX-License-Identifier: MIT
//
// Numbers that know how far off a computation in rounded arithmetic may be: a value in long double,
// and a bound of the error that the same step has with unit roundoff u (half the machine epsilon of
// the accumulator), its operands being off by their own bounds:
//     a + b        e_a + e_b + u |a + b|
//     a b          |a| e_b + |b| e_a + e_a e_b + u |a b|
//     sum of n     sum of e + n u (sum of |x| + e), in any order and grouping
//     exp(x)       exp(x) (exp(e_x) - 1 + 4 u)
// (Higham 2002, Accuracy and stability of numerical algorithms, sections 2.2, 3.1 and 4.2; products
// may be fused with a sum, which only makes them better). What the formula says is thereby computed
// together with its tolerance.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <mha/types.hpp>

namespace mha::fuzz {

struct Bounded {
  long double v = 0;  ///< the value
  long double e = 0;  ///< |rounded computation - value| is at most this
};

/// The arithmetic that a bound is for.
struct Arithmetic {
  long double u = 0;      ///< unit roundoff
  long double tiny = 0;   ///< the smallest step, of subnormal numbers (or of those flushed to 0)
  long double least = 0;  ///< weights below this share of the largest count as 0

  Bounded exact(long double x) const { return {x, 0}; }
  Bounded add(const Bounded& a, const Bounded& b) const {
    const long double v = a.v + b.v;
    return {v, a.e + b.e + u * std::abs(v) + tiny};
  }
  Bounded subtract(const Bounded& a, const Bounded& b) const { return add(a, {-b.v, b.e}); }
  Bounded multiply(const Bounded& a, const Bounded& b) const {
    const long double v = a.v * b.v;
    return {v, std::abs(a.v) * b.e + std::abs(b.v) * a.e + a.e * b.e + u * std::abs(v) + tiny};
  }
  Bounded divide(const Bounded& a, const Bounded& b) const {
    const long double v = a.v / b.v;
    const long double room = std::abs(b.v) - b.e;
    if (!(room > 0)) return {v, std::numeric_limits<long double>::infinity()};
    return {v, (a.e + std::abs(v) * b.e) / room + u * std::abs(v) + tiny};
  }
  Bounded exp(const Bounded& a) const {
    const long double v = std::exp(a.v);
    // Far down the exponential is 0 for all that lies within the bound, however wide: never 0 * inf.
    if (a.e > 1) return {v, std::exp(a.v + a.e) * (1 + 4 * u) + tiny};
    return {v, v * (std::expm1(a.e) + 4 * u) + tiny};
  }
};

/// A sum whose order and grouping are left open.
class BoundedSum {
 public:
  void add(const Bounded& x) {
    sum_.v += x.v;
    sum_.e += x.e;
    size_ += std::abs(x.v) + x.e;
    ++count_;
  }
  /// The product's own rounding, u |a b| and a step, is counted with the sum's.
  void add_product(const Bounded& a, const Bounded& b) {
    const long double product = a.v * b.v;
    sum_.v += product;
    size_ += std::abs(product);
    ++count_;
    if (a.e == 0 && b.e == 0) return;
    const long double off = std::abs(a.v) * b.e + std::abs(b.v) * a.e + a.e * b.e;
    sum_.e += off;
    size_ += off;
  }
  Bounded result(const Arithmetic& with) const {
    const auto terms = static_cast<long double>(count_);
    return {sum_.v, sum_.e + (terms + 2) * with.u * size_ + (terms + 1) * with.tiny};
  }

 private:
  Bounded sum_;
  long double size_ = 0;
  Index count_ = 0;
};

/// Rows and columns of them.
struct Table {
  Index rows = 0;
  Index cols = 0;
  std::vector<Bounded> entries;

  Table() = default;
  Table(Index r, Index c)
      : rows(r), cols(c), entries(static_cast<std::size_t>(r) * static_cast<std::size_t>(c)) {}
  Bounded& operator()(Index r, Index c) { return entries[static_cast<std::size_t>(r * cols + c)]; }
  const Bounded& operator()(Index r, Index c) const {
    return entries[static_cast<std::size_t>(r * cols + c)];
  }
  Table middle_cols(Index col, Index count) const {
    Table part(rows, count);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < count; ++c) part(r, c) = (*this)(r, col + c);
    }
    return part;
  }
  Table middle_rows(Index row, Index count) const {
    Table part(count, cols);
    std::copy_n(entries.begin() + row * cols, count * cols, part.entries.begin());
    return part;
  }
};

}  // namespace mha::fuzz
