// SPDX-License-Identifier: MIT
//
// Mistakes in tables: each call must throw std::invalid_argument, whose message names the function
// and what is wrong with the numbers, before it writes anything.
//     Sentinel<float> memory(100);                   // what a call might write to
//     refuses("attention_into", {"output", "got 3"}, memory, [&] { ... });
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace mha::test {

/// Numbers that a refused call must leave alone.
template <class T>
class Sentinel {
 public:
  explicit Sentinel(std::size_t size) : numbers_(size) {
    for (std::size_t k = 0; k < size; ++k) numbers_[k] = T(static_cast<float>(k % 17) - 8);
    before_ = numbers_;
  }
  T* data() { return numbers_.data(); }
  bool is_untouched() const { return numbers_ == before_; }
  void restore() { numbers_ = before_; }

 private:
  std::vector<T> numbers_;
  std::vector<T> before_;
};

/// What a call says: the message of its std::invalid_argument, or what happened instead.
template <class F>
std::string complaint_of(const F& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "nothing was thrown";
}

/// The message must begin with "mha::<function>: " and hold each of the parts. Catch's macros are
/// slow, so that they are used for failures alone.
template <class Memory, class F>
void refuses(const std::string& function, const std::vector<std::string>& parts, Memory& memory,
             const F& call) {
  const std::string message = complaint_of(call);
  bool fits = message.rfind("mha::" + function + ": ", 0) == 0 && memory.is_untouched();
  for (const std::string& part : parts) fits = fits && message.find(part) != std::string::npos;
  if (fits) return;
  CAPTURE(function, parts, message);
  CHECK(memory.is_untouched());
  CHECK(fits);
  memory.restore();
}

/// For calls that write to no memory of the caller's.
template <class F>
void refuses(const std::string& function, const std::vector<std::string>& parts, const F& call) {
  Sentinel<float> none(0);
  refuses(function, parts, none, call);
}

}  // namespace mha::test
