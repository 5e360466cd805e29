// SPDX-License-Identifier: MIT
// expect: with HeadDim fixed at compile time Heads must be fixed too
//
// Heads * HeadDim is the width of every parameter: half of it alone fixes nothing.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
constexpr int kHeads = Eigen::Dynamic;
#else
constexpr int kHeads = 2;
#endif

int main() {
  const mha::MultiHead<float, kHeads, 2> layer(4);
  return static_cast<int>(layer.embed_dim());
}
