// SPDX-License-Identifier: MIT
//
// What the examples over scenes share: the matching of predictions and objects, the scenes, and the
// patches that the vision transformer reads.
#include <algorithm>
#include <common/matching.hpp>
#include <common/vision.hpp>
#include <numeric>

#include "support/catch.hpp"

using examples::Index;
using examples::Matrix;
using examples::PlacedDigit;
using examples::Scene;

namespace {

float cost_of(const Matrix<float>& cost, const std::vector<int>& columns) {
  float sum = 0;
  for (Index row = 0; row < cost.rows(); ++row) {
    sum += cost(row, columns[static_cast<std::size_t>(row)]);
  }
  return sum;
}

/// Two digits: every pixel of the one is 0.5, of the other 1.
examples::Digits two_digits() {
  return {{Matrix<float>::Constant(8, 8, 0.5f), Matrix<float>::Constant(8, 8, 1.0f)}, {5, 7}};
}

}  // namespace

TEST_CASE("the matching costs least among all permutations", "[scenes]") {
  std::mt19937 random(1);
  for (int rows = 0; rows <= 6; ++rows) {
    Matrix<float> cost(rows, 6);
    examples::fill_uniform({cost.data(), static_cast<std::size_t>(cost.size())}, 1, random);
    std::vector<int> columns(6);
    std::iota(columns.begin(), columns.end(), 0);
    float least = cost_of(cost, columns);
    while (std::next_permutation(columns.begin(), columns.end())) {
      least = std::min(least, cost_of(cost, columns));
    }
    std::vector<int> matched = examples::least_cost_matching(cost);
    CAPTURE(rows);
    REQUIRE(static_cast<int>(matched.size()) == rows);
    CHECK(std::abs(cost_of(cost, matched) - least) <= 1e-6f);
    std::sort(matched.begin(), matched.end());
    CHECK(std::adjacent_find(matched.begin(), matched.end()) == matched.end());
  }
}

TEST_CASE("the matching gives up a row's best column for a lower sum", "[scenes]") {
  Matrix<float> cost(2, 3);
  cost << 0, 1, 5,  // greedily: 0 + 5; best: 1 + 0
      0, 5, 5;
  CHECK(examples::least_cost_matching(cost) == std::vector<int>{1, 0});
}

TEST_CASE("a scene's digits lie in the image, apart, and nothing else does", "[scenes]") {
  const examples::Digits digits = two_digits();
  std::mt19937 random(2);
  for (int n = 0; n < 200; ++n) {
    const int count = 1 + n % 4;
    Scene scene = examples::random_scene(digits, count, false, random);
    REQUIRE(static_cast<int>(scene.digits.size()) == count);
    for (std::size_t a = 0; a < scene.digits.size(); ++a) {
      const PlacedDigit& digit = scene.digits[a];
      for (std::size_t b = 0; b < a; ++b) CHECK_FALSE(boxes_overlap(digit, scene.digits[b]));
      auto box = scene.image.block(digit.row, digit.col, 8, 8);  // asserts that it lies inside
      CHECK((box.array() == (digit.label == 5 ? 0.5f : 1.0f)).all());
      box.setZero();
    }
    CHECK(scene.image.isZero(0));
  }
}

TEST_CASE("the same seed makes the same scene", "[scenes]") {
  const examples::Digits digits = two_digits();
  std::mt19937 first(3);
  std::mt19937 second(3);
  const Scene a = examples::random_scene(digits, 4, true, first);
  const Scene b = examples::random_scene(digits, 4, true, second);
  CHECK(a.image == b.image);
}

TEST_CASE("a jittered digit keeps its ink in the middle and its range", "[scenes]") {
  // The inner 4 x 4 pixels move less than 2 pixels (0.15 * 1.5 * 2 + 0.5), inside of the solid box.
  std::mt19937 random(4);
  for (int n = 0; n < 50; ++n) {
    const Matrix<float> image = examples::jittered(Matrix<float>::Ones(8, 8), random);
    CHECK((image.block(2, 2, 4, 4).array() - 1).abs().maxCoeff() <= 1e-6f);
    CHECK(image.minCoeff() >= 0);
    CHECK(image.maxCoeff() <= 1 + 1e-6f);
  }
}

TEST_CASE("without learning, digits apart are found where they are", "[scenes]") {
  const examples::Digits digits = two_digits();
  Scene scene{Matrix<float>::Zero(24, 24), {{7, 1, 2}, {5, 14, 13}}};
  scene.image.block(1, 2, 8, 8) = digits.images[1];
  scene.image.block(14, 13, 8, 8) = digits.images[0];
  const std::vector<PlacedDigit> found = examples::find_digits(scene, digits);
  REQUIRE(found.size() == 2);
  for (std::size_t n = 0; n < 2; ++n) {
    CHECK(found[n].label == scene.digits[n].label);
    CHECK(found[n].row == scene.digits[n].row);
    CHECK(found[n].col == scene.digits[n].col);
  }
}

TEST_CASE("some patch holds a digit whole, wherever it is", "[scenes]") {
  for (int place = 0; place < 17 * 17; ++place) {
    Scene scene{Matrix<float>::Zero(24, 24), {}};
    scene.image.block(place / 17, place % 17, 8, 8).setOnes();
    const Matrix<float> patches = examples::patches_of({scene});
    REQUIRE(patches.rows() == examples::kPatches);
    CHECK(patches.rowwise().sum().maxCoeff() == 64);
  }
}
