// SPDX-License-Identifier: MIT
#include "score_graph.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

namespace mha::conformance {
namespace {

using Constant = ScoreGraph::Constant;
using Elementwise = ScoreGraph::Elementwise;
using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& problem) {
  throw std::runtime_error("score_mod: " + problem);
}

Index count(const Shape& shape) {
  Index product = 1;
  for (const Index extent : shape) product *= extent;
  return product;
}

/// The element of `value` that meets the element `at` of a larger tensor: axes are aligned right,
/// an axis of size 1 serves all.
template <class Position>
double broadcast(const Constant& value, const Position& at) {
  const std::size_t missing = at.size() - value.shape.size();
  Index k = 0;
  for (std::size_t axis = 0; axis < value.shape.size(); ++axis) {
    k = k * value.shape[axis] + (value.shape[axis] == 1 ? 0 : at[missing + axis]);
  }
  return value.numbers[static_cast<std::size_t>(k)];
}

bool fits(const Shape& shape, const Shape& larger) {
  if (shape.size() > larger.size()) return false;
  const std::size_t missing = larger.size() - shape.size();
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] != 1 && shape[axis] != larger[missing + axis]) return false;
  }
  return true;
}

Shape broadcast_shape(const Shape& a, const Shape& b) {
  Shape result = a.size() < b.size() ? b : a;
  const Shape& other = a.size() < b.size() ? a : b;
  const std::size_t missing = result.size() - other.size();
  for (std::size_t axis = 0; axis < other.size(); ++axis) {
    if (result[missing + axis] == 1) result[missing + axis] = other[axis];
  }
  if (!fits(a, result) || !fits(b, result)) {
    fail("the shapes " + shape_text(a) + " and " + shape_text(b) + " do not broadcast");
  }
  return result;
}

bool is_integer_type(const std::string& type) {
  if (type == "int64" || type == "int32" || type == "bool") return true;
  if (type == "float16" || type == "bfloat16" || type == "float32" || type == "float64") {
    return false;
  }
  if (type == "float" || type == "double") return false;
  fail("the type " + type + " is not known");
}

double cast(double x, const std::string& type) {
  if (type == "bool") return x != 0 ? 1 : 0;
  if (is_integer_type(type)) return std::trunc(x);
  if (type == "float64" || type == "double") return x;
  if (type == "float16") return static_cast<float>(Eigen::half(static_cast<float>(x)));
  if (type == "bfloat16") return static_cast<float>(Eigen::bfloat16(static_cast<float>(x)));
  return static_cast<float>(x);
}

double number(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_number()) return value.get<double>();
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (text == "-inf" || text == "-Infinity") return -kInfinity;
  if (text == "inf" || text == "Infinity") return kInfinity;
  if (text == "nan" || text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  fail("expected a number, got " + text);
}

// The operators that give a tensor of another shape than their inputs; on constants only.

Constant gather(const Constant& data, const Constant& indices) {
  if (data.shape.empty()) fail("Gather needs a tensor of rank 1 or more");
  const Index rows = data.shape[0];
  const Index row = rows == 0 ? 0 : count(data.shape) / rows;
  Constant result{indices.shape, {}, data.is_integer};
  result.shape.insert(result.shape.end(), data.shape.begin() + 1, data.shape.end());
  for (const double position : indices.numbers) {
    const auto index = static_cast<Index>(position) + (position < 0 ? rows : 0);
    if (index < 0 || index >= rows) fail("Gather's index is out of range");
    const auto first = data.numbers.begin() + index * row;
    result.numbers.insert(result.numbers.end(), first, first + row);
  }
  return result;
}

Constant range(const Constant& start, const Constant& limit, const Constant& delta) {
  if (count(start.shape) != 1 || count(limit.shape) != 1 || count(delta.shape) != 1) {
    fail("Range needs three numbers");
  }
  const double step = delta.numbers[0];
  if (step == 0) fail("Range's delta must not be 0");
  const double steps = std::ceil((limit.numbers[0] - start.numbers[0]) / step);
  Constant result{{std::max<Index>(0, static_cast<Index>(steps))}, {}, start.is_integer};
  for (Index k = 0; k < result.shape[0]; ++k) {
    result.numbers.push_back(start.numbers[0] + static_cast<double>(k) * step);
  }
  return result;
}

Constant reshape(const Constant& data, const Constant& shape) {
  Constant result{{}, data.numbers, data.is_integer};
  std::optional<std::size_t> open;  // the axis given as -1
  for (std::size_t axis = 0; axis < shape.numbers.size(); ++axis) {
    auto extent = static_cast<Index>(shape.numbers[axis]);
    if (extent == 0 && axis < data.shape.size()) extent = data.shape[axis];
    if (extent == -1) {
      open = axis;
      extent = 1;
    }
    result.shape.push_back(extent);
  }
  if (open && count(result.shape) != 0)
    result.shape[*open] = count(data.shape) / count(result.shape);
  if (count(result.shape) != count(data.shape)) {
    fail("Reshape from " + shape_text(data.shape) + " to " + shape_text(result.shape));
  }
  return result;
}

/// How many operands an operator on single numbers has.
std::size_t operands(const std::string& op) {
  if (op == "Tanh" || op == "Cast") return 1;
  if (op == "Where") return 3;
  for (const char* known : {"Add", "Sub", "Mul", "Div", "GreaterOrEqual"}) {
    if (op == known) return 2;
  }
  fail("the operator " + op + " is not known");
}

Constant apply(const Elementwise& function, const std::vector<const Constant*>& inputs,
               bool is_integer) {
  Constant result{{}, {}, is_integer};
  for (const Constant* input : inputs) result.shape = broadcast_shape(result.shape, input->shape);
  Shape at(result.shape.size(), 0);
  for (Index k = 0; k < count(result.shape); ++k) {
    Index rest = k;
    for (std::size_t axis = at.size(); axis-- > 0; rest /= result.shape[axis]) {
      at[axis] = rest % result.shape[axis];
    }
    std::array<double, 3> x{};
    for (std::size_t n = 0; n < inputs.size(); ++n) x[n] = broadcast(*inputs[n], at);
    result.numbers.push_back(function(x[0], x[1], x[2]));
  }
  return result;
}

}  // namespace

double ScoreGraph::Elementwise::operator()(double a, double b, double c) const {
  if (op == "Add") return a + b;
  if (op == "Sub") return a - b;
  if (op == "Mul") return a * b;
  if (op == "Div") return is_integer ? std::trunc(a / b) : a / b;
  if (op == "Tanh") return std::tanh(a);
  if (op == "GreaterOrEqual") return a >= b ? 1 : 0;
  if (op == "Where") return a != 0 ? b : c;
  return cast(a, to);
}

/// Reads the graph node by node.
class ScoreGraphBuilder {
 public:
  ScoreGraphBuilder(ScoreGraph& graph, const Json& json) : graph_(graph) {
    const std::vector<std::string> inputs = json.at("inputs");
    const std::vector<std::string> outputs = json.at("outputs");
    if (inputs.size() != 1 || outputs.size() != 1) fail("expected one input and one output");
    graph_.input_ = add(inputs[0], {true, {}});
    for (const Json& initializer : json.at("initializers")) add_initializer(initializer);
    for (const Json& node : json.at("nodes")) add_node(node);
    graph_.output_ = find(outputs[0]);
    check_shape(graph_.output_);
  }

 private:
  using Slot = ScoreGraph::Slot;

  std::size_t add(const std::string& name, Slot slot) {
    if (!names_.emplace(name, graph_.slots_.size()).second) fail("the name " + name + " is taken");
    graph_.slots_.push_back(std::move(slot));
    return graph_.slots_.size() - 1;
  }
  std::size_t find(const std::string& name) const {
    const auto found = names_.find(name);
    if (found == names_.end()) fail("nothing is called " + name);
    return found->second;
  }

  void add_initializer(const Json& json) {
    const std::string type = json.at("dtype");
    Constant constant{json.at("dims").get<Shape>(), {}, is_integer_type(type)};
    for (const Json& value : json.at("values")) {
      constant.numbers.push_back(cast(number(value), type));
    }
    if (count(constant.shape) != static_cast<Index>(constant.numbers.size())) {
      fail("an initializer's dims do not match its values");
    }
    add(json.at("name"), {false, std::move(constant)});
  }

  void add_node(const Json& json) {
    const std::string op = json.at("op");
    const std::vector<std::string> outputs = json.at("outputs");
    if (outputs.size() != 1) fail("expected one output of " + op);
    std::vector<std::size_t> inputs;
    for (const std::string name : json.at("inputs")) inputs.push_back(find(name));
    const Json attributes = json.value("attributes", Json::object());
    for (const auto& [name, value] : attributes.items()) {
      const bool known = (op == "Cast" && name == "to") ||
                         (op == "Gather" && name == "axis" && value == 0) ||
                         (op == "Reshape" && name == "allowzero" && value == 0);
      if (!known)
        fail("the attribute " + name + " = " + value.dump() + " of " + op + " is not known");
    }
    const auto need = [&](std::size_t expected) {
      if (inputs.size() != expected) fail(op + " has a wrong number of inputs");
    };
    const auto constant = [&](std::size_t n) -> const Constant& {
      const Slot& slot = graph_.slots_[inputs[n]];
      if (slot.varies) fail(op + " of the scores does not work element by element");
      return slot.constant;
    };
    if (op == "Shape") {
      need(1);
      add(outputs[0], {false, shape_of(graph_.slots_[inputs[0]])});
    } else if (op == "Gather") {
      need(2);
      add(outputs[0], {false, gather(constant(0), constant(1))});
    } else if (op == "Range") {
      need(3);
      add(outputs[0], {false, range(constant(0), constant(1), constant(2))});
    } else if (op == "Reshape") {
      need(2);
      add(outputs[0], {false, reshape(constant(0), constant(1))});
    } else {
      need(operands(op));
      add_elementwise({op, attributes.value("to", std::string()), false}, inputs, outputs[0]);
    }
  }

  void add_elementwise(Elementwise function, const std::vector<std::size_t>& inputs,
                       const std::string& name) {
    bool varies = false;
    function.is_integer = true;
    std::vector<const Constant*> constants;
    for (std::size_t n = 0; n < inputs.size(); ++n) {
      const Slot& slot = graph_.slots_[inputs[n]];
      varies = varies || slot.varies;
      if (function.op != "Where" || n > 0) {
        function.is_integer = function.is_integer && slot.constant.is_integer;
      }
      constants.push_back(&slot.constant);
    }
    bool is_integer = function.is_integer || function.op == "GreaterOrEqual";
    if (function.op == "Cast") is_integer = is_integer_type(function.to);
    if (!varies) {
      add(name, {false, apply(function, constants, is_integer)});
      return;
    }
    for (const std::size_t input : inputs) check_shape(input);
    const std::size_t output = add(name, {true, {{}, {}, is_integer}});
    graph_.steps_.push_back({std::move(function), inputs, output});
  }

  Constant shape_of(const Slot& slot) const {
    const Shape shape =
        slot.varies ? Shape(graph_.sizes_.begin(), graph_.sizes_.end()) : slot.constant.shape;
    Constant result{{static_cast<Index>(shape.size())}, {}, true};
    for (const Index extent : shape) result.numbers.push_back(static_cast<double>(extent));
    return result;
  }

  /// What meets a score must fit the scores' shape.
  void check_shape(std::size_t slot) const {
    const Shape sizes(graph_.sizes_.begin(), graph_.sizes_.end());
    const Slot& value = graph_.slots_[slot];
    if (value.varies || fits(value.constant.shape, sizes)) return;
    fail("a tensor of shape " + shape_text(value.constant.shape) +
         " does not fit scores of shape " + shape_text(sizes));
  }

  ScoreGraph& graph_;
  std::map<std::string, std::size_t> names_;
};

ScoreGraph::ScoreGraph(const std::string& json, const std::array<Index, 4>& sizes) : sizes_(sizes) {
  ScoreGraphBuilder(*this, Json::parse(json));
}

double ScoreGraph::operator()(double score, Index b, Index h, Index i, Index j) const {
  const std::array<Index, 4> at{b, h, i, j};
  std::vector<double> values(slots_.size());
  values[input_] = score;
  const auto value = [&](std::size_t slot) {
    return slots_[slot].varies ? values[slot] : broadcast(slots_[slot].constant, at);
  };
  for (const Step& step : steps_) {
    std::array<double, 3> x{};
    for (std::size_t n = 0; n < step.inputs.size(); ++n) x[n] = value(step.inputs[n]);
    values[step.output] = step.function(x[0], x[1], x[2]);
  }
  return value(output_);
}

}  // namespace mha::conformance
