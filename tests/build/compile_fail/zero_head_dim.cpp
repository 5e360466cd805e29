// SPDX-License-Identifier: MIT
// expect: HeadDim must be at least 1, or Eigen::Dynamic for a number known at run time
//
// Heads without channels have nothing to compare.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
constexpr int kHeadDim = 0;
#else
constexpr int kHeadDim = 2;
#endif

int main() {
  const mha::MultiHead<float, 2, kHeadDim> layer(4);
  return static_cast<int>(layer.embed_dim());
}
