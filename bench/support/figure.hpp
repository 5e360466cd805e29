// SPDX-License-Identifier: MIT
#pragma once

#include <iosfwd>

#include "support/results.hpp"

namespace mha_bench {

/// An SVG picture: for attention and the layer, and for each number of threads, the fraction of the
/// FMA peak that each contender reaches, the workloads in order of their work. It needs no other
/// file, and suits light and dark pages.
void write_figure(std::ostream& out, const Results& results);

}  // namespace mha_bench
