// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <string>

namespace mha_bench {

/// "3.4.0", "5.0.1": since version 5 the first of Eigen's four numbers means nothing any more.
inline std::string eigen_version() {
  const auto text = [](int a, int b, int c) {
    return std::to_string(a) + "." + std::to_string(b) + "." + std::to_string(c);
  };
#if defined(EIGEN_PATCH_VERSION) && EIGEN_MAJOR_VERSION >= 5
  return text(EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION, EIGEN_PATCH_VERSION);
#else
  return text(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
#endif
}

}  // namespace mha_bench
