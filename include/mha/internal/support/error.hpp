// SPDX-License-Identifier: MIT
//
// How the library reports a caller's mistake. Every public entry checks its arguments before it
// writes anything, in release builds too, and calls fail() with a sentence of the form
//     mha::function: what must hold (term), got values
// With exceptions that is a std::invalid_argument (or what the function documents). Under
// -fno-exceptions the same sentence goes to stderr and the program aborts.
#pragma once

#include "mha/compiled.hpp"
#include "mha/internal/support/language.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>

/// On functions for what hardly ever happens: kept out of the way of the code that calls them.
#if defined(__GNUC__)
#define MHA_COLD __attribute__((cold, noinline))
#else
#define MHA_COLD
#endif

namespace mha::inline MHA_ABI::detail {

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

/// A part of a message, of a type that does not depend on what it shows, so that a check is little code
/// where it stands. Numbers are shown as they are, one of a type of its own (16 bits, dual numbers) as
/// the float that it converts to.
class MessagePart {
 public:
  MessagePart(const char* value) : kind_(Kind::text), text_(value) {}    // NOLINT: implicit
  MessagePart(const std::string& value) : MessagePart(value.c_str()) {}  // NOLINT
  template <class Number>
  requires(!std::is_convertible_v<Number, std::string>)  //
      MessagePart(const Number& value) {                 // NOLINT
    if constexpr (std::is_integral_v<Number> && std::is_unsigned_v<Number>) {
      kind_ = Kind::size;
      size_ = value;
    } else if constexpr (std::is_integral_v<Number>) {
      kind_ = Kind::integer;
      integer_ = value;
    } else if constexpr (std::is_floating_point_v<Number> && !std::is_same_v<Number, float>) {
      kind_ = Kind::number;
      number_ = static_cast<double>(value);
    } else if constexpr (std::is_constructible_v<float, Number>) {
      kind_ = Kind::short_number;
      number_ = static_cast<double>(static_cast<float>(value));
    } else {
      kind_ = Kind::text;
      text_ = "a number";
    }
  }

  std::string shown() const {
    switch (kind_) {
      case Kind::integer:
        return std::to_string(integer_);
      case Kind::size:
        return std::to_string(size_);
      case Kind::number:
        return number_text(number_, 17);
      case Kind::short_number:
        return number_text(number_, 9);
      case Kind::text:
        break;
    }
    return text_;
  }

 private:
  enum class Kind { text, integer, size, number, short_number } kind_;
  union {
    const char* text_;
    long long integer_;
    unsigned long long size_;
    double number_;
  };
};

/// One number of a message as it is shown there.
template <class Number>
std::string text(const Number& value) {
  return MessagePart(value).shown();
}

template <class Error>
[[noreturn]] MHA_COLD void fail_with(const MessagePart* parts, std::size_t count) {
  std::string message = "mha::";
  for (std::size_t k = 0; k < count; ++k) message += parts[k].shown();
  fail<Error>(message);
}

#if defined(MHA_COMPILED_TEMPLATE)
MHA_COMPILED_TEMPLATE void fail_with<std::invalid_argument>(const MessagePart*, std::size_t);
MHA_COMPILED_TEMPLATE void fail_with<std::length_error>(const MessagePart*, std::size_t);
#endif

/// Fails with std::invalid_argument if `ok` is false. The message parts are joined only then.
template <class... Parts>
inline void require(bool ok, const Parts&... parts) {
  if (ok) return;
  const MessagePart all[] = {MessagePart(parts)...};
  fail_with<std::invalid_argument>(all, sizeof...(Parts));
}
/// Likewise with std::length_error: something is full.
template <class... Parts>
inline void require_room(bool ok, const Parts&... parts) {
  if (ok) return;
  const MessagePart all[] = {MessagePart(parts)...};
  fail_with<std::length_error>(all, sizeof...(Parts));
}

/// A function that may be empty: a pointer, a std::function.
template <class F>
void require_function(const char* what, const F& f) {
  if constexpr (requires { f == nullptr, static_cast<bool>(f); }) {
    require(static_cast<bool>(f), what, " must not be empty, got none");
  }
}

}  // namespace mha::detail
