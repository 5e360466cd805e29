// SPDX-License-Identifier: MIT
//
// ONNX stores a score_mod as a graph over the whole tensor of scores [batch, head, query, key];
// mha::score_mod takes a function of one score. This turns the one into the other: what depends on
// the tensor's shape alone (ranges, masks, biases) is computed once, as small tensors; what depends
// on the scores must work element by element, and is computed for one element at a time.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "case.hpp"

namespace mha::conformance {

/// Arithmetic is in double; Cast rounds to the type named.
class ScoreGraph {
 public:
  /// @param json   the graph as in the file's metadata: inputs, outputs, initializers, nodes
  /// @param sizes  batch, num_heads, query_len, kv_len
  /// @throws std::runtime_error for an operator, attribute or shape that is not known
  ScoreGraph(const std::string& json, const std::array<Index, 4>& sizes);

  /// The graph's output at (b, h, i, j), where its input is `score` there.
  double operator()(double score, Index b, Index h, Index i, Index j) const;

  /// A graph's value that is known without the scores.
  struct Constant {
    Shape shape;
    std::vector<double> numbers;
    bool is_integer = false;  ///< Div truncates
  };
  /// One operator on single numbers.
  struct Elementwise {
    std::string op;
    std::string to{};         ///< Cast: the type
    bool is_integer = false;  ///< of all operands
    double operator()(double a, double b, double c) const;
  };

 private:
  struct Slot {
    bool varies = false;  ///< with the scores; else `constant` holds it
    Constant constant{};
  };
  struct Step {
    Elementwise function;
    std::vector<std::size_t> inputs;
    std::size_t output;
  };

  std::array<Index, 4> sizes_;
  std::vector<Slot> slots_;
  std::vector<Step> steps_;
  std::size_t input_ = 0;
  std::size_t output_ = 0;

  friend class ScoreGraphBuilder;
};

}  // namespace mha::conformance
