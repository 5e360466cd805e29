// SPDX-License-Identifier: MIT
//
// Catch2 2.13's main and implementation, compiled once for all tests. Version 3 brings a library.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
