// SPDX-License-Identifier: MIT
// expect: the Scalar of MultiHead must be a real floating-point type
//
// Nor is there a layer of complex numbers.
#include <mha/mha.hpp>

#include <complex>

#ifdef MHA_SHOULD_FAIL
using Scalar = std::complex<float>;
#else
using Scalar = float;
#endif

int main() {
  const mha::MultiHead<Scalar, 2> layer(4);
  return static_cast<int>(layer.embed_dim());
}
