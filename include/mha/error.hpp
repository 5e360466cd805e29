// SPDX-License-Identifier: MIT
//
// How the library reports a caller's mistake. Every public entry checks its arguments before it
// writes anything, in release builds too, and calls fail() with a sentence of the form
//     mha::function: what must hold (term), got values
// With exceptions that is a std::invalid_argument (or what the function documents). Under
// -fno-exceptions the same sentence goes to stderr and the program aborts.
#pragma once

#include "mha/language.hpp"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

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

/// One side of a "got A and B": numbers as they are, text unchanged.
inline std::string text(const char* value) { return value; }
inline std::string text(const std::string& value) { return value; }
template <class Number>
std::string text(const Number& value) {
  return std::to_string(value);
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
