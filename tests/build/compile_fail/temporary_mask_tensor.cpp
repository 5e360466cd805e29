// SPDX-License-Identifier: MIT
// expect: a mask only refers to its tensor, so the tensor must outlive it
//
// A mask refers to its tensor: of a temporary nothing would be left to refer to.
#include <mha/mha.hpp>

int main() {
  const mha::Tensor<float> x({1, 1, 2, 3});
#ifdef MHA_SHOULD_FAIL
  const auto rule = mha::keep(mha::Tensor<bool>({1, 1, 2, 2}));
#else
  const mha::Tensor<bool> mask({1, 1, 2, 2});
  const auto rule = mha::keep(mask);
#endif
  const auto output = mha::attention(x, x, x, rule);
  return static_cast<int>(output.size(0));
}
