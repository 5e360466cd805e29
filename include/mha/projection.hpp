// SPDX-License-Identifier: MIT
//
// A linear map of tokens: y = x W + b. W is in x out as in the paper's X W (PyTorch stores out x
// in; the loaders transpose), a plain row-major Eigen matrix that you may read and write.
//     mha::Projection<float> linear;
//     linear.resize(768, 3072, true);               // weight and bias of 0, to be filled
//     y = linear(x);                                // rows of x are tokens
//     auto gradient = linear.zero_gradient();
//     grad_x = linear.apply_backward(gradient, grad_y, x);
// The layer's four projections are such maps: these functions take the layer's way, with its bits.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/projection/call.hpp"
#include "mha/internal/support/argument.hpp"

namespace mha::inline MHA_ABI {

/// What a call of a Projection may be told.
struct ProjectionOptions {
  Executor executor{};             ///< who computes; the calling thread if not given
  Workspace* workspace = nullptr;  ///< memory of yours to work in; else the call's own
};

/// A weight and a bias; sizes known at compile time, or Eigen::Dynamic.
template <class Scalar_, int In = Eigen::Dynamic, int Out = Eigen::Dynamic>
struct Projection {
  using Scalar = Scalar_;
  // Eigen wants a matrix of one column to be column-major: the same memory.
  static constexpr int kOrder = Out == 1 && In != 1 ? Eigen::ColMajor : Eigen::RowMajor;
  using Weight = Eigen::Matrix<Scalar, In, Out, kOrder>;
  using Bias = Eigen::Matrix<Scalar, 1, Out, Eigen::RowMajor>;
  using Acc = accumulator_t<Scalar>;
  using Options = ProjectionOptions;
  /// Of weight and bias, in the accumulator's type, as MultiHeadGradients holds those of a layer.
  using Gradient = Projection<Acc, In, Out>;

  Weight weight;  ///< inputs x outputs
  Bias bias;      ///< outputs; empty without bias (all 0 where the size is fixed)

  Index inputs() const noexcept { return weight.rows(); }
  Index outputs() const noexcept { return weight.cols(); }
  bool has_bias() const noexcept { return bias.size() != 0; }

  /// Weight and bias of these sizes, all 0.
  /// @throws std::invalid_argument if a size is negative, too large, or not the one known at compile time;
  ///         std::bad_alloc
  void resize(Index inputs, Index outputs, bool with_bias) {
    const auto check = [](const char* name, Index size, int fixed) {
      detail::require(size >= 0 && size <= detail::kMaxSize, "Projection::resize: ", name,
                      " must lie between 0 and ", detail::kMaxSize, ", got ", size);
      detail::require(fixed == Eigen::Dynamic || size == fixed, "Projection::resize: ", name,
                      " must be ", fixed, ", as known at compile time, got ", size);
    };
    check("inputs", inputs, In);
    check("outputs", outputs, Out);
    weight.setZero(inputs, outputs);
    bias.setZero(Out != Eigen::Dynamic || with_bias ? outputs : 0);
  }

  /// x W + b: each row of x by itself. On one instruction set a row has the same bits for any number
  /// of threads and whatever rows are beside it (float, double and 16-bit types; other scalars: any
  /// number of threads).
  /// @param x  rows x inputs: any Eigen expression, of the Scalar or its accumulator
  /// @throws std::invalid_argument if shapes disagree; nothing has been computed then
  /// Cost: 2 rows inputs outputs flops.
  template <EigenDense X>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const Options& options = {}) const;

  /// The same, written to memory of yours: any Eigen matrix, block or map of rows x outputs, of the
  /// Scalar or its accumulator, that shares no memory with x, weight or bias. With options.workspace
  /// nothing is allocated after the first call of a shape.
  /// @throws std::invalid_argument if shapes disagree or output overlaps what is read; nothing has been
  ///         written then
  template <EigenInMemory Y, EigenDense X>
  void apply_into(Y&& output, const X& x, const Options& options = {}) const;

  /// The gradients of the loss, from grad_output = d loss / d y: by weight and bias, which are added to
  /// `gradient`, and by x, which is returned. The same bits for any number of threads.
  ///     gradient.weight += x^T grad_output      gradient.bias += the sum of grad_output's rows
  ///     returned: grad_output weight^T
  /// @param gradient        sized like this, for example zero_gradient()
  /// @param grad_output, x  rows x outputs and rows x inputs, of the Scalar or its accumulator
  /// @throws std::invalid_argument if shapes disagree or `gradient` overlaps what is read; nothing has
  ///         been written then
  /// Cost: 4 rows inputs outputs flops.
  template <EigenDense G, EigenDense X>
  [[nodiscard]] Matrix<Acc> apply_backward(Gradient& gradient, const G& grad_output, const X& x,
                                           const Options& options = {}) const;

  /// The same, with x's gradient written to memory of yours, of the accumulator's type. With
  /// options.workspace nothing is allocated after the first call of a shape, but for 16-bit types.
  template <EigenInMemory D, EigenDense G, EigenDense X>
  void apply_backward_into(D&& grad_x, Gradient& gradient, const G& grad_output, const X& x,
                           const Options& options = {}) const;

  /// A gradient of 0.
  [[nodiscard]] Gradient zero_gradient() const {
    Gradient gradient;
    gradient.resize(inputs(), outputs(), has_bias());
    return gradient;
  }

  /// Bytes of Workspace that operator() and apply_into() need for so many rows, and apply_backward()
  /// and apply_backward_into(). 0 for scalars that the kernels do not compute in.
  /// @throws std::invalid_argument if there can be no such call
  [[nodiscard]] std::size_t workspace_bytes(Index rows, const Options& options = {}) const;
  [[nodiscard]] std::size_t backward_workspace_bytes(Index rows, const Options& options = {}) const;

  /// What the passes see of it.
  friend detail::LinearView<Scalar> linear_view(const Projection& p) {
    return {{detail::memory_of(p.weight), detail::memory_of(p.bias)}};
  }
};

namespace detail {

/// A map's parameters, or their gradients, to be written.
template <class Scalar, int In, int Out>
LinearParameters<Scalar> parameters_view(Projection<Scalar, In, Out>& map) {
  return {memory_of(map.weight), memory_of(map.bias)};
}

/// Does a weight of these sizes fit Eigen's limit for matrices that live inside an object?
template <class Scalar>
constexpr bool fits_on_stack(int heads, int head_dim) {
  if (heads == Eigen::Dynamic || head_dim == Eigen::Dynamic) return false;
  const auto width = static_cast<long long>(heads) * head_dim;
  const long long limit = EIGEN_STACK_ALLOCATION_LIMIT;
  return limit == 0 || width * width * static_cast<long long>(sizeof(Scalar)) <= limit;
}

}  // namespace detail

template <class Scalar, int In, int Out>
template <EigenDense X>
Matrix<Scalar> Projection<Scalar, In, Out>::operator()(const X& x, const Options& options) const {
  return detail::ProjectionCall<Scalar>("Projection::operator()", linear_view(*this), options)
      .result(x);
}

template <class Scalar, int In, int Out>
template <EigenInMemory Y, EigenDense X>
void Projection<Scalar, In, Out>::apply_into(Y&& output, const X& x, const Options& options) const {
  detail::ProjectionCall<Scalar>("Projection::apply_into", linear_view(*this), options)
      .write(matrix_view(output), x);
}

template <class Scalar, int In, int Out>
template <EigenDense G, EigenDense X>
auto Projection<Scalar, In, Out>::apply_backward(Gradient& gradient, const G& grad_output,
                                                 const X& x, const Options& options) const
    -> Matrix<Acc> {
  const detail::ProjectionGradientCall<Scalar> call("Projection::apply_backward",
                                                    linear_view(*this), options);
  const detail::ProjectionArgument<Scalar, G> grad(grad_output);
  const detail::ProjectionArgument<Scalar, X> tokens(x);
  const auto sums = detail::parameters_view(gradient);
  const auto read = call.check_x(tokens.view());
  call.check_gradient(sums, call.check_grad_output(grad.view(), x.rows()), read);
  Matrix<Acc> grad_x(x.rows(), inputs());
  call.backward(detail::memory_of(grad_x), sums, grad.view(), tokens.view());
  return grad_x;
}

template <class Scalar, int In, int Out>
template <EigenInMemory D, EigenDense G, EigenDense X>
void Projection<Scalar, In, Out>::apply_backward_into(D&& grad_x, Gradient& gradient,
                                                      const G& grad_output, const X& x,
                                                      const Options& options) const {
  static_assert(std::is_same_v<typename std::remove_cvref_t<D>::Scalar, Acc>,
                "mha: the gradient of a Projection's x must have the accumulator of its Scalar");
  const detail::ProjectionGradientCall<Scalar> call("Projection::apply_backward_into",
                                                    linear_view(*this), options);
  const detail::ProjectionArgument<Scalar, G> grad(grad_output);
  const detail::ProjectionArgument<Scalar, X> tokens(x);
  const auto result = matrix_view(grad_x);
  const auto sums = detail::parameters_view(gradient);
  const auto read = call.check_x(tokens.view());
  const auto read_grad = call.check_grad_output(grad.view(), x.rows());
  call.check_gradient(sums, read_grad, read);
  call.check_grad_x(result, sums, read_grad, read);
  call.backward(result, sums, grad.view(), tokens.view());
}

template <class Scalar, int In, int Out>
std::size_t Projection<Scalar, In, Out>::workspace_bytes(Index rows, const Options& options) const {
  return detail::ProjectionCall<Scalar>("Projection::workspace_bytes", linear_view(*this), options)
      .bytes(rows);
}

template <class Scalar, int In, int Out>
std::size_t Projection<Scalar, In, Out>::backward_workspace_bytes(Index rows,
                                                                  const Options& options) const {
  return detail::ProjectionGradientCall<Scalar>("Projection::backward_workspace_bytes",
                                                linear_view(*this), options)
      .backward_bytes(rows);
}

}  // namespace mha
