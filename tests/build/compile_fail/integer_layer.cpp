// SPDX-License-Identifier: MIT
// expect: the Scalar of MultiHead must be a real floating-point type
//
// Nor is there a layer of integers.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Scalar = int;
#else
using Scalar = float;
#endif

int main() {
  const mha::MultiHead<Scalar, 2> layer(4);
  return static_cast<int>(layer.embed_dim());
}
