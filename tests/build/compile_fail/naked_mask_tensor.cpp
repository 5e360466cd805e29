// SPDX-License-Identifier: MIT
// expect: the argument after value must be a mask or score modifier made by one of the factories
//
// Nor does a tensor of booleans.
#include <mha/mha.hpp>

int main() {
  const mha::Tensor<float> x({1, 2, 3, 4});
  const mha::Tensor<bool> mask({1, 2, 3, 3});
#ifdef MHA_SHOULD_FAIL
  const auto output = mha::attention(x, x, x, mask);
#else
  const auto output = mha::attention(x, x, x, mha::keep(mask));
#endif
  return static_cast<int>(output.size(0));
}
