// SPDX-License-Identifier: MIT
//
// A linear map of tokens whose weight does not change any more: y = x W + b with W in the order in which the
// kernels read it.
//     const mha::PackedProjection<float> fast(linear);   // of a Projection, which is not needed any longer
//     y = fast(x);                                       // the bits of linear(x)
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/projection/packed.hpp"
#include "mha/projection.hpp"

namespace mha::inline MHA_ABI {

/// A copy of a Projection for inference. The weight of a Projection lies row by row, and has to be read in pieces, or
/// copied in each call; here it lies in panels of 64 columns (32 of double) and is read from its first number to its
/// last: one token takes little more than the time of reading it, in large pages, if the system gives any. Values of
/// 16-bit types are kept as float. A copy of it shares the weight, which nobody can change: it may be used by several
/// threads at once.
/// @tparam Scalar  float, double, Eigen::half or Eigen::bfloat16
template <class Scalar_>
class PackedProjection {
 public:
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;
  using Options = ProjectionOptions;
  static_assert(detail::has_kernels<Acc>,
                "mha: a PackedProjection has float, double, Eigen::half or Eigen::bfloat16");

  /// 0 x 0.
  PackedProjection() = default;
  /// Cost: reads and writes the weight once. Memory: inputs x outputs numbers of the accumulator's type, outputs in
  /// whole vectors of 64 bytes.
  /// @throws std::invalid_argument if the bias is not of the weight's width, std::bad_alloc
  template <int In, int Out>
  explicit PackedProjection(const Projection<Scalar, In, Out>& linear)
      : weight_(linear, memory_for(linear), 0) {}

  Index inputs() const noexcept { return weight_.inputs(); }
  Index outputs() const noexcept { return weight_.outputs(); }
  bool has_bias() const noexcept { return weight_.has_bias(); }

  /// x W + b, with the bits of Projection::operator(): see there, for the errors and the options too.
  template <EigenDense X>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const Options& options = {}) const {
    return detail::ProjectionCall<Scalar>("PackedProjection::operator()", linear_view(*this),
                                          options)
        .result(x);
  }
  /// The same, written to memory of yours: see Projection::apply_into().
  template <EigenInMemory Y, EigenDense X>
  void apply_into(Y&& output, const X& x, const Options& options = {}) const {
    detail::ProjectionCall<Scalar>("PackedProjection::apply_into", linear_view(*this), options)
        .write(matrix_view(output), x);
  }
  /// Bytes of Workspace that these need for so many rows.
  [[nodiscard]] std::size_t workspace_bytes(Index rows, const Options& options = {}) const {
    return detail::ProjectionCall<Scalar>("PackedProjection::workspace_bytes", linear_view(*this),
                                          options)
        .bytes(rows);
  }
  /// Bytes of weight and bias, which all copies share.
  std::size_t memory_bytes() const noexcept { return weight_.bytes(); }

  /// What the passes see of it.
  friend detail::LinearView<Scalar> linear_view(const PackedProjection& p) {
    return p.weight_.template view<Scalar>();
  }

 private:
  template <class>
  friend class Inference;
  explicit PackedProjection(detail::PackedWeight<Acc> weight) : weight_(std::move(weight)) {}

  template <class Linear>
  static std::shared_ptr<const detail::LargeMemory> memory_for(const Linear& linear) {
    detail::ProjectionCall<Scalar>("PackedProjection", linear_view(linear), Options{})
        .check_sizes(0);
    const auto numbers = static_cast<std::size_t>(detail::PackedWeight<Acc>::numbers_of(linear));
    return std::make_shared<const detail::LargeMemory>(numbers * sizeof(Acc));
  }

  detail::PackedWeight<Acc> weight_;
};

}  // namespace mha
