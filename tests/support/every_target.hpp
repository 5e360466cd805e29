// SPDX-License-Identifier: MIT
//
// A test on every instruction set that runs here.
#pragma once

#include "support/catch.hpp"
#include "support/targets.hpp"

namespace mha::test {

/// f() on each instruction set, which is shown with a failure.
template <class F>
void on_every_target(const F& f) {
  for (const kernels::Target t : available_targets()) {
    INFO("on " << kernels::name(t));
    const UsingTarget use(t);
    f();
  }
}

}  // namespace mha::test
