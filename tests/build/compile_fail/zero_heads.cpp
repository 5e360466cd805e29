// SPDX-License-Identifier: MIT
// expect: Heads must be at least 1, or Eigen::Dynamic for a number known at run time
//
// Zero heads attend to nothing.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
constexpr int kHeads = 0;
#else
constexpr int kHeads = 2;
#endif

int main() {
  const mha::MultiHead<float, kHeads> layer(4);
  return static_cast<int>(layer.embed_dim());
}
