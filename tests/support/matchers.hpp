// SPDX-License-Identifier: MIT
//
// Matchers for matrices, which name the worst entry when they fail:
//     CHECK_THAT(actual, IsClose(expected, tolerance));
//     CHECK_THAT(actual, HasBitsOf(expected));
#pragma once

#include <sstream>
#include <string>
#include <utility>

#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/numbers.hpp"

namespace mha::test {

using Wide = long double;  ///< holds every scalar type exactly

inline std::string shape_text(Index rows, Index cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

template <class Scalar>
std::string number_text(const Scalar& x) {
  std::ostringstream text;
  text.precision(std::numeric_limits<Wide>::max_digits10);
  text << detail::convert<Wide>(x);
  return text.str();
}

/// How two matrices differ, entry by entry; kept for the message.
class Difference {
 public:
  /// f(a, b) is 0 for entries that agree, else the larger the worse.
  template <class A, class B, class F>
  static Difference between(const A& actual, const B& expected, const F& f) {
    Difference result;
    if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) {
      result.say_shapes(shape_text(actual.rows(), actual.cols()),
                        shape_text(expected.rows(), expected.cols()));
      return result;
    }
    Wide worst = 0;
    Index count = 0;
    for (Index i = 0; i < actual.rows(); ++i) {
      for (Index j = 0; j < actual.cols(); ++j) {
        const Wide size = f(actual(i, j), expected(i, j));
        if (size <= 0) continue;
        ++count;
        if (size <= worst) continue;
        worst = size;
        result.say_entry(i, j, number_text(actual(i, j)), number_text(expected(i, j)), size);
      }
    }
    if (count > 1) result.say_count(count);
    return result;
  }

  bool none() const { return text_.empty(); }
  const std::string& text() const { return text_; }

 private:
  // Apart from the templates, so that their code is not generated for every type of matrix.
  void say_shapes(const std::string& actual, const std::string& expected);
  void say_entry(Index i, Index j, const std::string& actual, const std::string& expected,
                 Wide size);
  void say_count(Index count);

  std::string text_;
};

inline void Difference::say_shapes(const std::string& actual, const std::string& expected) {
  text_ = "the shape " + actual + " is not " + expected;
}
inline void Difference::say_entry(Index i, Index j, const std::string& actual,
                                  const std::string& expected, Wide size) {
  text_ = "entry (" + std::to_string(i) + ", " + std::to_string(j) + ") is " + actual +
          ", expected " + expected + ", differs by " + number_text(size);
}
inline void Difference::say_count(Index count) {
  text_ += ", the worst of " + std::to_string(count) + " entries";
}

/// Each entry within `tolerance` of the expected one; NaN only where NaN is expected, infinity only
/// where the same infinity is.
template <class Expected>
class IsClose {
 public:
  IsClose(Expected expected, double tolerance)
      : expected_(std::move(expected)), tolerance_(tolerance) {}

  template <class Actual>
  bool match(const Actual& actual) const {
    const auto excess = [&](const auto& a, const auto& b) -> Wide {
      if (is_nan(a) && is_nan(b)) return 0;
      const Wide x = detail::convert<Wide>(a);
      const Wide y = detail::convert<Wide>(b);
      if (!detail::is_finite(a) || !detail::is_finite(b)) {
        return !is_nan(a) && !is_nan(b) && x == y ? 0 : std::numeric_limits<Wide>::max();
      }
      const Wide error = x < y ? y - x : x - y;
      return error <= static_cast<Wide>(tolerance_) ? 0 : error;
    };
    difference_ = Difference::between(actual, expected_, excess);
    return difference_.none();
  }
  std::string toString() const {  // NOLINT(readability-identifier-naming): Catch2 calls it so
    return "is within " + number_text(tolerance_) + " of the expected one (" + difference_.text() +
           ")";
  }

 private:
  Expected expected_;
  double tolerance_;
  mutable Difference difference_;
};

/// Each entry has the bits of the expected one.
template <class Expected>
class HasBitsOf {
 public:
  explicit HasBitsOf(Expected expected) : expected_(std::move(expected)) {}

  template <class Actual>
  bool match(const Actual& actual) const {
    static_assert(std::is_same_v<typename Actual::Scalar, typename Expected::Scalar>);
    const auto unequal = [](const auto& a, const auto& b) -> Wide {
      if (equal_bits(a, b)) return 0;
      if (!detail::is_finite(a) || !detail::is_finite(b)) return std::numeric_limits<Wide>::max();
      const Wide error = detail::convert<Wide>(a) - detail::convert<Wide>(b);
      return std::max(error < 0 ? -error : error, std::numeric_limits<Wide>::min());
    };
    difference_ = Difference::between(actual, expected_, unequal);
    return difference_.none();
  }
  std::string toString() const {  // NOLINT(readability-identifier-naming): Catch2 calls it so
    return "has the bits of the expected one (" + difference_.text() + ")";
  }

 private:
  Expected expected_;
  mutable Difference difference_;
};

}  // namespace mha::test

/// A failed check shows small matrices whole, of large ones the shape: the matcher names the entry.
template <class Scalar, int kRows, int kCols, int kOptions, int kMaxRows, int kMaxCols>
struct Catch::StringMaker<Eigen::Matrix<Scalar, kRows, kCols, kOptions, kMaxRows, kMaxCols>> {
  template <class M>
  static std::string convert(const M& m) {
    if (m.size() > 64) return mha::test::shape_text(m.rows(), m.cols()) + " matrix";
    std::string text = "{";
    for (mha::Index i = 0; i < m.rows(); ++i) {
      text += i == 0 ? "{" : ", {";
      for (mha::Index j = 0; j < m.cols(); ++j) {
        text += (j == 0 ? "" : ", ") + mha::test::number_text(m(i, j));
      }
      text += "}";
    }
    return text + "}";
  }
};
