// SPDX-License-Identifier: MIT
// expect: an Eigen tensor must have rank 4: \[batch, head, token, channel\]
//
// Which axis would be missing?
#include <mha/mha.hpp>

#include <unsupported/Eigen/CXX11/Tensor>

#ifdef MHA_SHOULD_FAIL
using Tokens = Eigen::Tensor<float, 3>;
#else
using Tokens = mha::Tensor<float>;
#endif

int main() {
  const Tokens x;
  const auto output = mha::attention(x, x, x);
  return static_cast<int>(output.size(0));
}
