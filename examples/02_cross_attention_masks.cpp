// SPDX-License-Identifier: MIT
//
// Cross-attention under masks, which are values made by factories and combined with &. Two
// sequences of three queries and five keys each; printed are the weights of the first head in
// percent, the two sequences side by side. A dot is exactly 0.
//
// Output:
//   lengths: of the second sequence three keys count
//     14  14  20  28  24   |  24  36  39   .   .
//     24  27  20  14  15   |  47  29  24   .   .
//     18  14  17  25  27   |  20  33  47   .   .
//   no later key, and one before at most
//    100   .   .   .   .   | 100   .   .   .   .
//     47  53   .   .   .   |  61  39   .   .   .
//      .  45  55   .   .   |   .  41  59   .   .
//   key 2 favoured, under the same lengths
//      6   6  66  12  10   |   7  10  83   .   .
//     10  12  65   6   6   |  19  12  70   .   .
//      9   7  60  12  13   |   5   8  87   .   .
#include <cmath>
#include <cstdio>
#include <mha/mha.hpp>

// Some tokens of eight channels.
Eigen::MatrixXf tokens(mha::Index count, float seed) {
  return Eigen::MatrixXf::NullaryExpr(count, 8, [seed](mha::Index i, mha::Index j) {
    return 2 * std::sin(seed * static_cast<float>(3 * i + j));
  });
}

int main() {
  const mha::MultiHead<float, 2> attention({.embed_dim = 8, .seed = 0});
  const Eigen::MatrixXf queries = tokens(6, 1.0F);   // 2 sequences of 3
  const Eigen::MatrixXf context = tokens(10, 1.7F);  // 2 sequences of 5

  const auto print = [&](const char* title, const auto& rule) {
    const auto result =
        attention.forward(queries, context, rule, {.batch = 2, .need_weights = true});
    std::printf("%s\n", title);
    for (int i = 0; i < 3; ++i) {
      for (int column = 0; column < 2 * 5; ++column) {
        const float weight = result.weights(column / 5, 0, i, column % 5);
        if (column == 5) std::printf("   |");
        if (weight == 0) {
          std::printf("   .");
        } else {
          std::printf("%4.0f", 100.0 * static_cast<double>(weight));
        }
      }
      std::printf("\n");
    }
  };

  print("lengths: of the second sequence three keys count", mha::lengths({5, 3}));
  print("no later key, and one before at most", mha::causal() & mha::window(1, 0));
  mha::Matrix<float> bias = mha::Matrix<float>::Zero(3, 5);
  bias.col(2).setConstant(2);
  print("key 2 favoured, under the same lengths", mha::bias(bias) & mha::lengths({5, 3}));
}
