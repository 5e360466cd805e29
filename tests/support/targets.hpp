// SPDX-License-Identifier: MIT
//
// Tests that run once per instruction set.
#pragma once

#include <mha/instruction_set.hpp>

#include <vector>

namespace mha::test {

/// Instruction sets of the kernels that run here.
inline std::vector<kernels::Target> available_targets() {
  std::vector<kernels::Target> result;
  for (const kernels::Target t : kernels::kAllTargets) {
    if (kernels::is_available(t)) result.push_back(t);
  }
  return result;
}

/// Runs everything on one instruction set while it lives.
class UsingTarget {
 public:
  explicit UsingTarget(kernels::Target t) : before_(kernels::target()) { kernels::use_target(t); }
  ~UsingTarget() { kernels::use_target(before_); }
  UsingTarget(const UsingTarget&) = delete;
  UsingTarget& operator=(const UsingTarget&) = delete;

 private:
  kernels::Target before_;
};

}  // namespace mha::test
