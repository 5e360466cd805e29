// SPDX-License-Identifier: MIT
//
// Attention computes in any number type. With Eigen::AutoDiffScalar, a number that carries its
// derivatives, one call gives an output and its gradient: here how output (2, 0) of causal
// self-attention depends on every channel of the three tokens, beside central differences.
//
// Output:
//   output -0.0056, the same as in double: yes
//   gradient
//     -0.0414  -0.0119   0.0253  -0.0217
//      0.0691   0.0431   0.0716  -0.0849
//      0.0153   0.0570   0.0276  -0.0521
//   equal to central differences within 1e-8: yes
#include <Eigen/Core>  // Eigen's AutoDiff header needs it first

#include <cstdio>
#include <mha/mha.hpp>
#include <unsupported/Eigen/AutoDiff>

using Number = Eigen::AutoDiffScalar<Eigen::VectorXd>;  // a value and its derivatives

template <class Scalar>
Scalar output(const mha::Matrix<Scalar>& x) {
  const mha::MultiHead<Scalar, 2> attention({.embed_dim = 4, .seed = 0});  // one layer in each type
  return attention(x, mha::causal())(2, 0);
}

int main() {
  const mha::Matrix<double> x{{1, 0, 1, 0}, {0, 2, 0, 2}, {1, 1, 1, 1}};

  // Each channel of each token is a variable of its own.
  mha::Matrix<Number> variables(x.rows(), x.cols());
  for (int k = 0; k < x.size(); ++k) {
    variables(k / 4, k % 4) = Number(x(k / 4, k % 4), static_cast<int>(x.size()), k);
  }
  const Number y = output(variables);
  std::printf("output %.4f, the same as in double: %s\n", y.value(),
              std::abs(y.value() - output(x)) < 1e-12 ? "yes" : "no");

  double worst = 0;
  std::printf("gradient\n");
  for (int k = 0; k < x.size(); ++k) {
    constexpr double kStep = 1e-5;
    mha::Matrix<double> above = x;
    mha::Matrix<double> below = x;
    above(k / 4, k % 4) += kStep;
    below(k / 4, k % 4) -= kStep;
    const double difference = (output(above) - output(below)) / (2 * kStep);
    worst = std::max(worst, std::abs(y.derivatives()(k) - difference));
    std::printf("%9.4f%s", y.derivatives()(k), k % 4 == 3 ? "\n" : "");
  }
  std::printf("equal to central differences within 1e-8: %s\n", worst < 1e-8 ? "yes" : "no");
}
