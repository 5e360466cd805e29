// SPDX-License-Identifier: MIT
//
// How the library reports a caller's mistake. Every public entry checks its arguments before it
// writes anything, in release builds too, and calls fail() with a sentence of the form
//     mha::function: what must hold (term), got values
// With exceptions that is a std::invalid_argument (or what the function documents). Under
// -fno-exceptions the same sentence goes to stderr and the program aborts.
#pragma once

#include "mha/internal/support/language.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace mha::detail {

/// Reports a failed check: throws `Exception(message)`, or prints and aborts without exceptions.
template <class Exception>
[[noreturn]] inline void fail(const std::string& message) {
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
  throw Exception(message);
#else
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
  std::abort();
#endif
}

/// A number as one would write it, in as few digits as tell it apart from its neighbours: 0.5, 1e+300.
inline std::string number_text(double value, int most_digits) {
  std::array<char, 32> buffer{};
  for (int digits = 6;; ++digits) {
    std::snprintf(buffer.data(), buffer.size(), "%.*g", digits, value);
    if (digits >= most_digits || std::strtod(buffer.data(), nullptr) == value) break;
  }
  return buffer.data();
}

/// One side of a "got A and B": numbers as they are, text unchanged. A number of a type of its own
/// (16 bits, dual numbers) is shown as the float that it converts to.
inline std::string text(const char* value) { return value; }
inline std::string text(const std::string& value) { return value; }
template <class Number>
std::string text(const Number& value) {
  if constexpr (std::is_integral_v<Number>) {
    return std::to_string(value);
  } else if constexpr (std::is_floating_point_v<Number> && !std::is_same_v<Number, float>) {
    return number_text(static_cast<double>(value), 17);
  } else if constexpr (std::is_constructible_v<float, Number>) {
    return number_text(static_cast<double>(static_cast<float>(value)), 9);
  } else {
    return "a number";
  }
}

/// Fails with std::invalid_argument if `ok` is false. The message parts are joined only then.
template <class... Parts>
inline void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::string message = "mha::";
  ((message += text(parts)), ...);
  fail<std::invalid_argument>(message);
}

}  // namespace mha::detail
