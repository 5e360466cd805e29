// SPDX-License-Identifier: MIT
// expect: mha::rotary_in_place: x must not be const
//
// What is turned in place must be writable.
#include <mha/mha.hpp>

#ifdef MHA_SHOULD_FAIL
using Tokens = const Eigen::MatrixXf;
#else
using Tokens = Eigen::MatrixXf;
#endif

int main() {
  Tokens x = Eigen::MatrixXf::Ones(2, 4);
  mha::rotary_in_place(x, {.pairs = mha::RotaryPairs::half});
  return static_cast<int>(x.rows());
}
