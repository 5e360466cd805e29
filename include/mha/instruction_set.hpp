// SPDX-License-Identifier: MIT
//
// Which instruction set the kernels use: mha::kernels::target() says it, use_target() chooses one,
// name() gives it a name for people, is_available() tells whether it runs here.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/kernels/dispatch.hpp"
