// SPDX-License-Identifier: MIT
//
// The C++ side of contender.h, for the modules: a call is an object with run(). Everything here has
// hidden visibility, so that each module has its own copy.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "contender.h"

namespace mha_bench {

struct ModuleCall {
  ModuleCall() = default;
  ModuleCall(const ModuleCall&) = delete;
  ModuleCall& operator=(const ModuleCall&) = delete;
  virtual ~ModuleCall() = default;
  virtual void run() = 0;
};

/// f(), whose exceptions must not leave the module.
template <class F>
auto guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "a contender failed: %s\n", error.what());
    std::abort();
  }
}

template <class Call, class Problem>
void* make_call(const Problem* problem) {
  return guarded([&]() -> void* { return static_cast<ModuleCall*>(new Call(*problem)); });
}
inline void run_call(void* call) {
  guarded([&] { static_cast<ModuleCall*>(call)->run(); });
}
inline void release_call(void* call) { delete static_cast<ModuleCall*>(call); }

}  // namespace mha_bench
