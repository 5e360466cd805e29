// SPDX-License-Identifier: MIT
//
// One case: a safetensors file that holds the inputs of an operator, its attributes (metadata
// "attr.NAME") and the outputs that another implementation computed, each with a tolerance
// (metadata "atol.TENSOR"). A run reads what it needs, computes, and checks; what it has not read
// or checked in the end makes the case fail, so that nothing in a file is ignored silently.
#pragma once

#include <limits>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI::io {
class Safetensors;
}  // namespace mha::io

namespace mha::conformance {

using Shape = std::vector<Index>;

/// A tensor in memory, row-major.
template <class T>
struct Array {
  Shape shape;
  Vector<T> values;

  Array() = default;
  explicit Array(Shape extents, T fill = T(std::numeric_limits<double>::quiet_NaN()))
      : shape(std::move(extents)) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    values.setConstant(size, fill);
  }

  Index size(std::size_t axis) const { return shape.at(axis); }
  std::size_t rank() const { return shape.size(); }
  Index columns() const { return shape.at(rank() - 1); }  ///< entries along the last axis
  /// The same numbers as [batch, head, token, channel]; missing axes in front are 1.
  TensorView<const T> view() const { return {values.data(), sizes()}; }
  TensorView<T> view() { return {values.data(), sizes()}; }
  /// The same numbers as a matrix with as many columns as the last axis has entries.
  auto rows() { return Eigen::Map<Matrix<T>>(values.data(), count_rows(), columns()); }
  auto rows() const { return Eigen::Map<const Matrix<T>>(values.data(), count_rows(), columns()); }

 private:
  std::array<Index, 4> sizes() const {
    if (rank() > 4) throw std::runtime_error("a tensor has more than 4 axes");
    std::array<Index, 4> result{1, 1, 1, 1};
    for (std::size_t axis = 0; axis < rank(); ++axis) result[4 - rank() + axis] = shape[axis];
    return result;
  }
  Index count_rows() const {
    Index count = 1;
    for (std::size_t axis = 0; axis + 1 < rank(); ++axis) count *= shape[axis];
    return count;
  }
};

/// Any of the files' numbers; Eigen's 16-bit types convert by way of float.
template <class T>
double to_double(const T& x) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<double>(x);
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}

/// A result of the library as an Array of T, rounded to T.
template <class T, class Acc>
Array<T> rounded(const Tensor<Acc>& tensor) {
  Array<T> result(Shape(tensor.sizes().begin(), tensor.sizes().end()));
  for (Index k = 0; k < result.values.size(); ++k) {
    result.values(k) = static_cast<T>(tensor.data()[k]);
  }
  return result;
}

/// Thrown for a case that asks for what the library does not do; the text is the reason.
struct Skip : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string shape_text(const Shape& shape);

class Case {
 public:
  /// @throws std::runtime_error if the file can't be read
  explicit Case(const std::string& path);
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
  ~Case();

  const std::string& path() const { return path_; }
  const std::string& op() const { return op_; }

  // Metadata. A missing value without a fallback is an error, as is one that does not parse.
  std::string metadata(const std::string& key, const std::string& fallback = "") const;
  bool has_attribute(const std::string& name) const;
  std::string attribute(const std::string& name);
  Index integer(const std::string& name);
  Index integer(const std::string& name, Index fallback);
  double real(const std::string& name);
  double real(const std::string& name, double fallback);
  bool flag(const std::string& name);
  bool flag(const std::string& name, bool fallback);

  // Tensors. T is double, float, Eigen::half, Eigen::bfloat16, bool or std::int64_t.
  bool has(const std::string& name) const;
  Shape shape(const std::string& name) const;
  /// "F64", "F32", "F16", "BF16", "I64", "BOOL", or "another" one.
  std::string dtype(const std::string& name) const;
  template <class T>
  Array<T> read(const std::string& name);
  /// For readers of the library, which take the file itself and then say what they have read.
  const io::Safetensors& file() const { return *file_; }
  void mark_read(const std::string& name) { tensors_read_.insert(name); }

  /// Compares every element with the expected tensor of that name:
  /// |got - expected| <= atol.NAME, or <= `atol` if that is given; infinities and NaN exactly.
  /// @param way  by which of the library's ways `got` was computed, for the message
  template <class T>
  void check(const std::string& name, const Array<T>& got, const std::string& way,
             double atol = -1);

  void fail(const std::string& problem) { failures_.push_back(problem); }
  /// After the run: has everything in the file been read or checked?
  void finish();

  const std::vector<std::string>& failures() const { return failures_; }
  double worst_ratio() const { return worst_ratio_; }  ///< of error to tolerance
  const std::string& worst_tensor() const { return worst_tensor_; }

 private:
  void compare(const std::string& name, const Shape& shape, const std::vector<double>& got,
               const std::string& way, double atol);
  double tolerance(const std::string& name) const;

  std::string path_;
  std::unique_ptr<io::Safetensors> file_;
  std::string op_;
  std::set<std::string> attributes_read_;
  std::set<std::string> tensors_read_;
  std::set<std::string> tensors_checked_;
  std::vector<std::string> failures_;
  double worst_ratio_ = 0;
  std::string worst_tensor_;
};

template <class T>
void Case::check(const std::string& name, const Array<T>& got, const std::string& way,
                 double atol) {
  std::vector<double> numbers;
  numbers.reserve(static_cast<std::size_t>(got.values.size()));
  for (const T& value : got.values) numbers.push_back(to_double(value));
  compare(name, got.shape, numbers, way, atol);
}

/// Calls `f.template operator()<Scalar>()` with the C++ type of a tensor's dtype.
template <class F>
void with_scalar(const std::string& dtype, const F& f) {
  if (dtype == "F64") return f.template operator()<double>();
  if (dtype == "F32") return f.template operator()<float>();
  if (dtype == "F16") return f.template operator()<Eigen::half>();
  if (dtype == "BF16") return f.template operator()<Eigen::bfloat16>();
  throw std::runtime_error("expected a tensor of F64, F32, F16 or BF16, got " + dtype);
}

// The operators, each in the file of its name. They throw Skip, or std::exception for a failure.
void run_onnx_attention(Case& c);
void run_onnx_flex_attention(Case& c);
void run_onnx_rotary_embedding(Case& c);
void run_torch_sdpa(Case& c);
void run_torch_multihead_attention(Case& c);
void run_torch_encoder_layer(Case& c);
void run_layer_file(Case& c);

}  // namespace mha::conformance
