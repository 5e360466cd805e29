// SPDX-License-Identifier: MIT
//
// What the programs share that print a table of their own: their one option, and tensors of random numbers.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mha/types.hpp>

namespace mha_bench {

/// Whether the program is to run each of its calls once, --short. Ends it if it was told anything else.
inline bool is_brief(int argc, char** argv, const char* program) {
  const bool brief = argc == 2 && std::strcmp(argv[1], "--short") == 0;
  if (argc > 1 && !brief) {
    std::fprintf(stderr, "usage: %s [--short]\n", program);
    std::exit(EXIT_FAILURE);
  }
  return brief;
}

/// Uniform in [-0.5, 0.5].
inline mha::Tensor<float> random_tensor(const std::array<mha::Index, 4>& sizes) {
  mha::Tensor<float> tensor(sizes);
  for (mha::Index k = 0; k < sizes[0] * sizes[1] * sizes[2] * sizes[3]; ++k) {
    tensor.data()[k] = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5F;
  }
  return tensor;
}

}  // namespace mha_bench
