// SPDX-License-Identifier: MIT
//
// The calls of one Projection: their checks, their memory, and the passes that do the work.
#pragma once

#include "mha/executor.hpp"
#include "mha/internal/projection/forward.hpp"
#include "mha/internal/projection/gradient.hpp"
#include "mha/internal/support/argument.hpp"
#include "mha/internal/support/matrix_check.hpp"
#include "mha/workspace.hpp"

namespace mha::inline MHA_ABI::detail {

/// The memory of a map by itself.
template <class Scalar, class Acc = accumulator_t<Scalar>>
ProjectionMemory<Acc> take_projection_memory(const LinearView<Scalar>& linear, std::size_t scratch,
                                             kernels::Arena& arena) {
  ProjectionMemory<Acc> memory;
  if (!linear.is_read_in_place()) {
    memory.wide_weight = arena.take<Acc>(linear.inputs() * linear.outputs());
    memory.wide_bias = arena.take<Acc>(linear.bias.cols);
  }
  memory.scratch = {arena.take<std::byte>(static_cast<Index>(scratch)), scratch};
  return memory;
}

/// An argument of a map's call.
template <class Scalar, class M>
struct ProjectionArgument : Argument<M> {
  static_assert(
      std::is_same_v<typename std::remove_cvref_t<M>::Scalar, Scalar> ||
          std::is_same_v<typename std::remove_cvref_t<M>::Scalar, accumulator_t<Scalar>>,
      "mha: the arguments of a Projection must have its Scalar, or the accumulator of it");
  using Argument<M>::Argument;
};

/// The calls of one map of tokens, from their arguments on.
template <class Scalar>
class ProjectionCall {
 public:
  using Acc = accumulator_t<Scalar>;
  using Linear = LinearView<Scalar>;

  /// @param where    the public function, for messages
  /// @param options  ProjectionOptions
  template <class Options>
  ProjectionCall(const char* where, const Linear& linear, const Options& options)
      : where_(where),
        linear_(linear),
        executor_(options.executor),
        workspace_(options.workspace) {}

  template <class X>
  Matrix<Scalar> result(const X& x) const {
    const ProjectionArgument<Scalar, X> tokens(x);
    (void)check_x(tokens.view());
    Matrix<Scalar> output(x.rows(), linear_.outputs());
    apply(memory_of(output), tokens.view());
    return output;
  }
  template <class Out, class X>
  void write(const MatrixView<Out>& output, const X& x) const {
    static_assert(std::is_same_v<Out, Scalar> || std::is_same_v<Out, Acc>,
                  "mha: the output of a Projection must have its Scalar, or the accumulator of it");
    const ProjectionArgument<Scalar, X> tokens(x);
    check_output(output, check_x(tokens.view()));
    apply(output, tokens.view());
  }

  /// The parameters are public: they may have been replaced. And all that a call of so many rows
  /// works on must have a size that can be counted.
  void check_sizes(Index rows) const {
    constexpr double kMost = 0x1p60;  // bytes
    const Index inputs = linear_.inputs();
    const Index outputs = linear_.outputs();
    require(rows >= 0 && rows <= kMaxSize, where_, ": the rows must lie between 0 and ", kMaxSize,
            ", got ", rows);
    require(inputs <= kMaxSize && outputs <= kMaxSize, where_, ": weight must be at most ",
            kMaxSize, " x ", kMaxSize, ", got ", inputs, " x ", outputs);
    require(!linear_.has_bias() || linear_.bias.cols == outputs, where_, ": bias must have 0 or ",
            outputs, " entries, got ", linear_.bias.cols);
    const double entries =
        static_cast<double>(rows + 64) * static_cast<double>(std::max(inputs, outputs));
    require(entries * sizeof(Acc) <= kMost, where_,
            ": rows * inputs and rows * outputs must fit 2^60 bytes, got ", rows, " rows, ", inputs,
            " inputs and ", outputs, " outputs");
  }

  template <class In>
  CheckedMatrix<const In> check_x(const MatrixView<const In>& x) const {
    require(x.cols == linear_.inputs(), where_,
            ": x.cols() must equal weight.rows() (inputs), got ", x.cols, " and ",
            linear_.inputs());
    const auto placed = checked(where_, "x", x);
    check_sizes(x.rows);
    return placed;
  }

  template <class Out, class In>
  void check_output(const MatrixView<Out>& output, const CheckedMatrix<const In>& x) const {
    check_shape("output", output.rows, output.cols, x.view.rows, linear_.outputs());
    check_written(check_result("output", output), x);
  }

  template <class Out, class In>
  void apply(const MatrixView<Out>& output, const MatrixView<const In>& x) const {
    if (output.rows == 0 || output.cols == 0) return;
    const ProjectionTask<Scalar, Out> task{&linear_, output};
    if constexpr (has_kernels<Acc>) {
      const auto plan = plan_of<In, Out>(x.rows, output.col_stride == 1);
      const CallMemory block(workspace_, all_bytes(plan.bytes()));
      kernels::Arena arena({block.data(), block.size()});
      project<Acc>(x, &task, 1, plan, executor_,
                   take_projection_memory(linear_, plan.bytes(), arena));
    } else {
      project<Acc>(x, &task, 1, {}, executor_, {});
    }
  }

  std::size_t bytes(Index rows) const {
    check_sizes(rows);
    if (rows == 0 || linear_.outputs() == 0) return 0;
    if constexpr (has_kernels<Acc>) {
      return all_bytes(
          std::max(plan_of<Acc, Acc>(rows, true).bytes(), plan_of<Acc, Acc>(rows, false).bytes()));
    }
    return 0;
  }

 protected:
  void check_shape(const char* name, Index rows, Index cols, Index wanted_rows,
                   Index wanted_cols) const {
    require(rows == wanted_rows && cols == wanted_cols, where_, ": ", name, " must be ",
            wanted_rows, " x ", wanted_cols, ", got ", rows, " x ", cols);
  }

  /// A matrix of yours that is written: its entries have places of their own.
  template <class T>
  CheckedMatrix<T> check_result(const char* name, const MatrixView<T>& m) const {
    const auto written = checked(where_, name, m);
    if (m.col_stride != 1 || m.row_stride < m.cols) {
      check_own_places(where_, PlacedMatrix(where_, name, m).placed());
    }
    return written;
  }

  /// What is written lies apart from what is read, the parameters included.
  template <class T, class... Read>
  void check_written(const CheckedMatrix<T>& written, const Read&... read) const {
    (check_apart(where_, written, read), ...);
    check_apart(where_, written, owned("weight", linear_.weight));
    check_apart(where_, written, owned("bias", linear_.bias));
  }

  template <class In, class Out>
  auto plan_of(Index rows, bool contiguous) const {
    return projection_plan<Acc, In, Out>(rows, linear_.inputs(), linear_.outputs(), 1, contiguous,
                                         linear_.prepacked, executor_);
  }
  std::size_t all_bytes(std::size_t scratch) const {
    kernels::Arena counter;
    (void)take_projection_memory(linear_, scratch, counter);
    return counter.used();
  }

  const char* where_;
  const Linear linear_;
  const Executor& executor_;
  Workspace* const workspace_;
};

/// And of their gradients.
template <class Scalar>
class ProjectionGradientCall : public ProjectionCall<Scalar> {
 public:
  using Base = ProjectionCall<Scalar>;
  using Base::Base;
  using typename Base::Acc;
  using Gradient = LinearParameters<Acc>;

  template <class G>
  CheckedMatrix<const G> check_grad_output(const MatrixView<const G>& grad_output,
                                           Index rows) const {
    check_shape("grad_output", grad_output.rows, grad_output.cols, rows, linear_.outputs());
    return checked(where_, "grad_output", grad_output);
  }

  /// Gradients of the parameters' shapes, apart from all that is read.
  template <class G, class In>
  void check_gradient(const Gradient& gradient, const CheckedMatrix<const G>& grad_output,
                      const CheckedMatrix<const In>& x) const {
    check_shape("gradient.weight", gradient.inputs(), gradient.outputs(), linear_.inputs(),
                linear_.outputs());
    require(gradient.bias.cols == linear_.bias.cols, where_, ": gradient.bias must have ",
            linear_.bias.cols, " entries, got ", gradient.bias.cols);
    check_written(owned("gradient.weight", gradient.weight), grad_output, x);
    check_written(owned("gradient.bias", gradient.bias), grad_output, x);
  }

  template <class G, class In>
  void check_grad_x(const MatrixView<Acc>& grad_x, const Gradient& gradient,
                    const CheckedMatrix<const G>& grad_output,
                    const CheckedMatrix<const In>& x) const {
    check_shape("grad_x", grad_x.rows, grad_x.cols, x.view.rows, x.view.cols);
    const auto written = check_result("grad_x", grad_x);
    check_written(written, grad_output, x);
    check_apart(where_, written, owned("gradient.weight", gradient.weight));
    check_apart(where_, written, owned("gradient.bias", gradient.bias));
  }

  template <class G, class In>
  void backward(const MatrixView<Acc>& grad_x, const Gradient& gradient,
                const MatrixView<const G>& grad_output, const MatrixView<const In>& x) const {
    if (x.rows == 0) return;
    if (linear_.inputs() * linear_.outputs() == 0) {
      for (Index i = 0; i < x.rows; ++i) {
        for (Index d = 0; d < x.cols; ++d) grad_x(i, d) = Acc(0);
        for (Index c = 0; c < gradient.bias.cols; ++c) {
          gradient.bias(0, c) += convert<Acc>(grad_output(i, c));
        }
      }
      return;
    }
    Workspace own;
    const ProjectionGradients<Acc> products(executor_, workspace_ == nullptr ? own : *workspace_,
                                            x.rows, x.cols);
    Matrix<Acc> copy;
    backward_projection<Acc>(products, gradient, linear_, x, widened<Acc>(grad_output, copy),
                             grad_x, false);
  }

  std::size_t backward_bytes(Index rows) const {
    this->check_sizes(rows);
    if (rows == 0) return 0;
    return ProjectionGradients<Acc>::bytes(executor_, rows, linear_.inputs());
  }

 private:
  using Base::check_result;
  using Base::check_shape;
  using Base::check_written;
  using Base::executor_;
  using Base::linear_;
  using Base::where_;
  using Base::workspace_;
};

}  // namespace mha::detail
