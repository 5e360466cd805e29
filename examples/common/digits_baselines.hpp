// SPDX-License-Identifier: MIT
//
// How many digits are read right, and two readers without attention to compare with.
#pragma once

#include <vector>

#include "digits.hpp"
#include "training.hpp"

namespace examples {

/// Of each row the column of its largest number.
inline std::vector<int> largest(const Matrix<float>& rows) {
  std::vector<int> columns(static_cast<std::size_t>(rows.rows()));
  for (Index i = 0; i < rows.rows(); ++i)
    rows.row(i).maxCoeff(&columns[static_cast<std::size_t>(i)]);
  return columns;
}

inline double percent_right(const std::vector<int>& answers, const Digits& digits) {
  int right = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) right += answers[i] == digits.labels[i] ? 1 : 0;
  return 100.0 * right / digits.size();
}

/// A digit a row, its pixels one after the other.
inline Matrix<float> as_rows(const Digits& digits) {
  Matrix<float> rows(digits.size(), 64);
  for (int n = 0; n < digits.size(); ++n) {
    rows.row(n) =
        digits.images[static_cast<std::size_t>(n)].reshaped<Eigen::RowMajor>().transpose();
  }
  return rows;
}

inline std::vector<int> nearest_neighbour(const Digits& train, const Digits& test) {
  const Matrix<float> known = as_rows(train);
  const Matrix<float> asked = as_rows(test);
  std::vector<int> answers;
  for (Index i = 0; i < asked.rows(); ++i) {
    Index nearest = 0;
    (known.rowwise() - asked.row(i)).rowwise().squaredNorm().minCoeff(&nearest);
    answers.push_back(train.labels[static_cast<std::size_t>(nearest)]);
  }
  return answers;
}

/// One linear map, learned as the transformer is.
inline std::vector<int> logistic_regression(const Digits& train, const Digits& test,
                                            std::mt19937& random) {
  Linear map(64, 10, random);
  LearnedList all;
  map.collect(all);
  Adam adam(all);
  const Matrix<float> pixels = as_rows(train);
  Matrix<float> grad;
  for (int step = 0; step < 300; ++step) {
    cross_entropy(map.forward(pixels), train.labels, grad);
    map.backward(grad);
    adam.step(warm_cosine(0.05f, step, 300));
  }
  return largest(map.forward(as_rows(test)));
}

}  // namespace examples
