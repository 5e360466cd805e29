// SPDX-License-Identifier: MIT
//
// The version of the library, by Semantic Versioning. This is the one place to edit: CMakeLists.txt
// reads the three numbers from here, and so do the package and pkg-config files.
#pragma once

#include "mha/internal/support/language.hpp"

#define MHA_VERSION_MAJOR 0
#define MHA_VERSION_MINOR 1
#define MHA_VERSION_PATCH 0

/// True if this version is major.minor.patch or newer; for use in `#if`.
#define MHA_VERSION_AT_LEAST(major, minor, patch) \
  (MHA_VERSION_MAJOR > (major) ||                 \
   (MHA_VERSION_MAJOR == (major) &&               \
    (MHA_VERSION_MINOR > (minor) ||               \
     (MHA_VERSION_MINOR == (minor) && MHA_VERSION_PATCH >= (patch)))))

namespace mha::inline MHA_ABI {

inline constexpr int kVersionMajor = MHA_VERSION_MAJOR;
inline constexpr int kVersionMinor = MHA_VERSION_MINOR;
inline constexpr int kVersionPatch = MHA_VERSION_PATCH;

}  // namespace mha
