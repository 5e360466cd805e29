// SPDX-License-Identifier: MIT
//
// Includes the readers, so that the consumer compiles only if it gets nlohmann/json.
#include <mha/io/safetensors.hpp>
