// SPDX-License-Identifier: MIT
//
// What the cases share: comparing results with the oracle and with each other, the choice of target
// and threads.
#pragma once

#include <sstream>
#include <string>

#include <mha/mha.hpp>

#include "fuzz/bounded.hpp"
#include "fuzz/differential.hpp"
#include "fuzz/layouts.hpp"

namespace mha::fuzz {

/// The arithmetic of an accumulator, and the rounding of what is stored as Scalar.
template <class Scalar>
Arithmetic arithmetic_of() {
  using Limits = std::numeric_limits<accumulator_t<Scalar>>;
  Arithmetic with;
  with.u = static_cast<long double>(Limits::epsilon()) / 2;
  with.tiny = static_cast<long double>(Limits::denorm_min());
  // The oracle's own arithmetic is long double: where that is what is tested, both are off.
  if (std::is_same_v<Scalar, long double>) with.u *= 2;
  if (std::is_same_v<accumulator_t<Scalar>, float>) with.least = 0x1p-63L;
  if (std::is_same_v<Scalar, double>) with.least = 0x1p-511L;
  return with;
}
template <class Scalar>
const char* name_of() {
  if (std::is_same_v<Scalar, float>) return "float";
  if (std::is_same_v<Scalar, double>) return "double";
  if (std::is_same_v<Scalar, Eigen::half>) return "half";
  if (std::is_same_v<Scalar, Eigen::bfloat16>) return "bfloat16";
  return "long double";
}
template <class Scalar>
long double output_roundoff() {
  if (std::is_same_v<Scalar, Eigen::half>) return 0x1p-11L;
  if (std::is_same_v<Scalar, Eigen::bfloat16>) return 0x1p-8L;
  return 0;
}
template <class Scalar>
long double output_step() {
  if (std::is_same_v<Scalar, Eigen::half>) return 0x1p-25L;
  if (std::is_same_v<Scalar, Eigen::bfloat16>) return 0x1p-134L;
  return 0;
}

/// Runs a case and returns its name, with which also what it finds wrong is said.
template <class Case>
std::string run_named(Case& random_case, Bytes& bytes) {
  try {
    random_case.run(bytes);
    return random_case.name();
  } catch (const std::exception& error) {
    throw Wrong(error.what() + random_case.name());
  }
}

template <class... Parts>
[[noreturn]] void fail_case(const Parts&... parts) {
  std::ostringstream message;
  message.precision(12);
  (message << ... << parts);
  throw Wrong(message.str());
}

/// |got - wanted| within the bound; infinities exactly. What should be finite is, whatever the bound.
/// @param largest  of the entries beside it: a bound is vacuous beyond a tenth of that
template <class Got>
void compare_number(const char* what, const Got& got, const Bounded& wanted, long double roundoff,
                    long double step, long double largest, Index b, Index h, Index i, Index d) {
  const long double number = number_of(got);
  const long double bound =
      wanted.e + (roundoff > 0 ? roundoff * (std::abs(wanted.v) + wanted.e) : 0) + step;
  // Where all entries are nearly 0, as gradients behind a single key, the inputs' order of size counts.
  const bool is_vacuous = !(bound <= std::max(largest / 10, 0x1p-7L));
  ++comparisons().all;
  if (is_vacuous && std::isfinite(wanted.v)) ++comparisons().vacuous;
  if (number == wanted.v) return;
  if (std::isfinite(number) && std::isfinite(wanted.v) && std::abs(number - wanted.v) <= bound) {
    return;
  }
  fail_case(what, "(", b, ", ", h, ", ", i, ", ", d, ") is ", static_cast<double>(number),
            " instead of ", static_cast<double>(wanted.v), ", bound ", static_cast<double>(bound));
}

template <class Scalar>
void compare(const char* what, const TensorView<Scalar>& got, Index b, Index h, const Table& wanted,
             bool is_stored = true) {
  using Plain = std::remove_const_t<Scalar>;
  const long double roundoff = is_stored ? output_roundoff<Plain>() : 0;
  const long double step = is_stored ? output_step<Plain>() : 0;
  long double largest = 0;
  for (const Bounded& x : wanted.entries) {
    if (std::isfinite(x.v)) largest = std::max(largest, std::abs(x.v));
  }
  for (Index i = 0; i < wanted.rows; ++i) {
    for (Index d = 0; d < wanted.cols; ++d) {
      compare_number(what, got(b, h, i, d), wanted(i, d), roundoff, step, largest, b, h, i, d);
    }
  }
}

template <class A, class B>
void compare_bits(const char* what, const TensorView<A>& a, const TensorView<B>& b) {
  const TensorView<const std::remove_const_t<A>> first = a;
  const TensorView<const std::remove_const_t<A>> second = b;
  if (bits_of(first) != bits_of(second)) fail_case("the bits differ: ", what);
}

/// Pools of 2, 3, 7 threads, made once.
inline ThreadPool& pool_of(Index choice) {
  static ThreadPool two(2), three(3), seven(7);
  return choice == 0 ? two : choice == 1 ? three : seven;
}

/// Runs the next call on one of the targets that this machine has.
inline void draw_target(Bytes& bytes) {
  std::vector<kernels::Target> all;
  for (const auto t : kernels::kAllTargets) {
    if (kernels::is_available(t)) all.push_back(t);
  }
  kernels::use_target(all[static_cast<std::size_t>(bytes.pick(static_cast<Index>(all.size())))]);
}

/// Numbers of inputs: of order 1, now and then equal scores or peaked softmaxes; very much so only
/// where the bounds stay small nevertheless: not behind a projection, nor of gradients.
inline double draw_scale(Bytes& bytes, bool peaked) {
  constexpr double kScales[] = {1, 1, 1, 0.25, 4, 2, 0, 0.5};
  constexpr double kPeaked[] = {1, 1, 1, 0.25, 4, 16, 0, 64};
  return (peaked ? kPeaked : kScales)[bytes.pick(8)];
}

/// A length that tiles, chunks and vectors may stumble over, at most `most`.
inline Index draw_length(Bytes& bytes, Index most) {
  Index n = 0;
  switch (bytes.pick(8)) {
    case 0:
      n = bytes.one_of(63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257);
      break;
    case 1:
      n = bytes.one_of(15, 16, 17, 31, 32, 33, 3, 4, 5);
      break;
    case 2:
      n = bytes.one_of(1023, 1024, 1025, 1151, 1152, 1153, 2047, 2048, 2049, 2300);
      break;
    case 3:
      n = bytes.between(0, 300);
      break;
    default:
      n = bytes.between(0, 24);
  }
  return n <= most ? n : bytes.between(0, std::max<Index>(most, 0));
}

/// run.template operator()<Scalar>() with one of the scalars, float and double most of the time.
template <class Run>
std::string with_drawn_scalar(Bytes& bytes, const Run& run) {
  switch (bytes.pick(8)) {
    case 0:
    case 1:
    case 2:
      return run.template operator()<float>();
    case 3:
    case 4:
    case 5:
      return run.template operator()<double>();
    case 6:
      return bytes.coin() ? run.template operator()<Eigen::bfloat16>()
                          : run.template operator()<Eigen::half>();
    default:
      return run.template operator()<long double>();
  }
}

}  // namespace mha::fuzz
