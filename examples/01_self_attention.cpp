// SPDX-License-Identifier: MIT
//
// Self-attention in ten lines: three tokens of four channels through a layer of two heads. The
// parameters are the initial ones of seed 0, the same on every machine.
//
// Output:
//   -0.030  0.321 -0.191 -0.502
//    0.079  0.462 -0.331 -0.594
//   -0.006  0.378 -0.214 -0.509
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
