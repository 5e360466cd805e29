// SPDX-License-Identifier: MIT
//
// Self-attention in ten lines: three tokens of four channels through a layer of two heads. The
// parameters are the initial ones of a program's first layer, the same on every machine.
//
// Output:
//    0.297  0.037 -0.319  0.402
//    0.347  0.075 -0.388  0.432
//    0.292  0.023 -0.313  0.406
#include <iomanip>
#include <iostream>
#include <mha/mha.hpp>

int main() {
  const mha::MultiHead<float, 2> attention(4);  // embed_dim 4 = 2 heads of 2
  Eigen::MatrixXf x(3, 4);                      // a row is a token
  x << 1, 0, 1, 0,                              //
      0, 2, 0, 2,                               //
      1, 1, 1, 1;
  const Eigen::MatrixXf y = attention(x);
  std::cout << std::fixed << std::setprecision(3) << y << "\n";
}
