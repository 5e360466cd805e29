// SPDX-License-Identifier: MIT
#include "case.hpp"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <sstream>

#include "mha/io/safetensors.hpp"

namespace mha::conformance {
namespace {

/// "Q,K,V" as its parts.
std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

template <class Number>
Number parse(const std::string& what, const std::string& text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) {
    throw std::runtime_error(what + ": expected a number, got \"" + text + "\"");
  }
  return value;
}

/// The place of element k of a tensor, as "[1, 0, 3]".
std::string place(const Shape& shape, Index k) {
  Shape at(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0; k /= shape[axis]) at[axis] = k % shape[axis];
  return shape_text(at);
}

/// Error divided by tolerance; more than 1 is wrong.
double ratio(double got, double expected, double atol) {
  const double wrong = std::numeric_limits<double>::infinity();
  if (std::isnan(got) || std::isnan(expected)) {
    return std::isnan(got) && std::isnan(expected) ? 0 : wrong;
  }
  if (got == expected) return 0;
  if (std::isinf(got) || std::isinf(expected) || atol == 0) return wrong;
  return std::abs(got - expected) / atol;
}

}  // namespace

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  return text + "]";
}

Case::Case(const std::string& path)
    : path_(path),
      file_(std::make_unique<io::Safetensors>(io::Safetensors::read(path))),
      op_(metadata("op")) {}

Case::~Case() = default;

std::string Case::metadata(const std::string& key, const std::string& fallback) const {
  const auto found = file_->metadata().find(key);
  return found == file_->metadata().end() ? fallback : found->second;
}

bool Case::has_attribute(const std::string& name) const {
  return file_->metadata().count("attr." + name) != 0;
}

std::string Case::attribute(const std::string& name) {
  const auto found = file_->metadata().find("attr." + name);
  if (found == file_->metadata().end()) {
    throw std::runtime_error("the attribute " + name + " is missing");
  }
  attributes_read_.insert(name);
  return found->second;
}

Index Case::integer(const std::string& name) { return parse<Index>(name, attribute(name)); }
Index Case::integer(const std::string& name, Index fallback) {
  return has_attribute(name) ? integer(name) : fallback;
}

double Case::real(const std::string& name) { return parse<double>(name, attribute(name)); }
double Case::real(const std::string& name, double fallback) {
  return has_attribute(name) ? real(name) : fallback;
}

bool Case::flag(const std::string& name) {
  const std::string text = attribute(name);
  if (text == "1" || text == "True") return true;
  if (text == "0" || text == "False") return false;
  throw std::runtime_error(name + ": expected 0, 1, False or True, got \"" + text + "\"");
}
bool Case::flag(const std::string& name, bool fallback) {
  return has_attribute(name) ? flag(name) : fallback;
}

bool Case::has(const std::string& name) const { return file_->contains(name); }
Shape Case::shape(const std::string& name) const { return file_->tensor(name).shape; }
std::string Case::dtype(const std::string& name) const {
  switch (file_->tensor(name).dtype) {
    case io::DType::f64:
      return "F64";
    case io::DType::f32:
      return "F32";
    case io::DType::f16:
      return "F16";
    case io::DType::bf16:
      return "BF16";
    case io::DType::i64:
      return "I64";
    case io::DType::boolean:
      return "BOOL";
    default:
      return "another";
  }
}

template <class T>
Array<T> Case::read(const std::string& name) {
  Array<T> array;
  array.shape = shape(name);
  array.values = file_->vector<T>(name);
  tensors_read_.insert(name);
  return array;
}
template Array<double> Case::read(const std::string&);
template Array<float> Case::read(const std::string&);
template Array<Eigen::half> Case::read(const std::string&);
template Array<Eigen::bfloat16> Case::read(const std::string&);
template Array<bool> Case::read(const std::string&);
template Array<std::int64_t> Case::read(const std::string&);

double Case::tolerance(const std::string& name) const {
  const std::string text = metadata("atol." + name);
  if (text.empty()) throw std::runtime_error("the file has no atol." + name);
  return parse<double>("atol." + name, text);
}

void Case::compare(const std::string& name, const Shape& shape, const std::vector<double>& got,
                   const std::string& way, double atol) {
  tensors_checked_.insert(name);
  if (atol < 0) atol = tolerance(name);
  const Shape expected_shape = this->shape(name);
  if (shape != expected_shape) {
    fail(name + " (" + way + "): expected shape " + shape_text(expected_shape) + ", got " +
         shape_text(shape));
    return;
  }
  const std::vector<double> expected = file_->values<double>(name);
  std::size_t worst = 0;
  std::size_t wrong = 0;
  double worst_here = 0;
  for (std::size_t k = 0; k < got.size(); ++k) {
    const double here = ratio(got[k], expected[k], atol);
    if (!(here <= 1)) ++wrong;
    if (here > worst_here) {
      worst_here = here;
      worst = k;
    }
  }
  if (worst_tensor_.empty() || worst_here > worst_ratio_) {
    worst_ratio_ = worst_here;
    worst_tensor_ = name;
  }
  if (wrong == 0) return;
  std::ostringstream message;
  message.precision(17);
  message << name << " (" << way << "): " << wrong << " of " << got.size()
          << " wrong, the worst at " << place(shape, static_cast<Index>(worst)) << ": got "
          << got[worst] << ", expected " << expected[worst];
  message.precision(3);
  message << ", " << worst_here << " times the tolerance " << atol;
  fail(message.str());
}

void Case::finish() {
  if (tensors_checked_.empty()) fail("nothing was checked: the file has no known output");
  for (const auto& [name, info] : file_->tensors()) {
    if (tensors_read_.count(name) + tensors_checked_.count(name) == 0) {
      fail("the tensor " + name + " was neither read as an input nor checked as an output");
    }
  }
  for (const std::string& name : split(metadata("outputs"))) {
    if (tensors_checked_.count(name) == 0) fail("the output " + name + " was not checked");
  }
  for (const std::string& name : split(metadata("inputs"))) {
    if (tensors_read_.count(name) == 0) fail("the input " + name + " was not read");
  }
  for (const auto& [key, text] : file_->metadata()) {
    const std::string name = key.substr(std::min<std::size_t>(5, key.size()));
    if (key.rfind("attr.", 0) == 0 && attributes_read_.count(name) == 0) {
      fail("the attribute " + name + " = " + text.substr(0, 60) + " is not known");
    }
    if (key.rfind("atol.", 0) == 0 && tensors_checked_.count(name) == 0) {
      fail(key + " is given, but the file has no such output");
    }
  }
}

}  // namespace mha::conformance
