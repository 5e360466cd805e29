// SPDX-License-Identifier: MIT
//
// Tests that run once per instruction set.
#pragma once

#include <mha/kernels/dispatch.hpp>

#include <vector>

namespace mha::test {

/// Instruction sets of the kernels that run here; none if they are compiled out.
inline std::vector<kernels::Target> available_targets() {
  using kernels::Target;
  std::vector<Target> result;
  for (const Target t : {Target::native, Target::sse2, Target::avx2, Target::avx512}) {
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
