// SPDX-License-Identifier: MIT
//
// Softmax in pieces. A query row's state after some of the keys is
//     row_max = max of their scores,  row_sum = sum of exp(score - row_max),
//     acc     = sum of exp(score - row_max) * value          (not yet divided)
// More keys are absorbed by rescaling to the new maximum; at the end output = acc / row_sum and
// lse = row_max + ln(row_sum). Two finished parts (output, lse) over disjoint keys merge the same
// way: merge(). Source: Milakov, Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022,
// arXiv:2205.14135.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/support/argument.hpp"
#include "mha/internal/support/checks.hpp"
#include "mha/internal/support/floating.hpp"

namespace mha::inline MHA_ABI {
namespace detail {

/// The larger; `a` if the two are unordered.
template <class Scalar>
Scalar larger(const Scalar& a, const Scalar& b) {
  return a < b ? b : a;
}

}  // namespace detail

/// What merge() returns.
template <class Scalar>
struct Merged {
  Matrix<Scalar> output;              ///< query_len x value_dim
  Vector<accumulator_t<Scalar>> lse;  ///< query_len
};

namespace detail {

/// One row of merge(): out = (exp(lse1) out1 + exp(lse2) out2) / (exp(lse1) + exp(lse2)).
template <class Acc, class Scalar>
void merge_row(const MatrixView<const Scalar>& output1, const Acc& lse1,
               const MatrixView<const Scalar>& output2, const Acc& lse2,
               const MatrixView<Scalar>& output, Acc& lse) {
  using std::exp;
  using std::log;
  const bool empty1 = is_minus_infinity(lse1);
  const bool empty2 = is_minus_infinity(lse2);
  if (empty1 || empty2) {  // an empty part is selected away, never multiplied by 0
    for (Index c = 0; c < output.cols; ++c) {
      output(0, c) = empty1 && empty2 ? Scalar(0) : empty1 ? output2(0, c) : output1(0, c);
    }
    lse = empty1 ? lse2 : lse1;
    if (empty1 && empty2) set_minus_infinity(lse);
    return;
  }
  const Acc row_max = larger(lse1, lse2);
  const Acc weight1(exp(Acc(lse1 - row_max)));
  const Acc weight2(exp(Acc(lse2 - row_max)));
  const Acc row_sum = weight1 + weight2;
  for (Index c = 0; c < output.cols; ++c) {
    const Acc sum =
        Acc(weight1 * convert<Acc>(output1(0, c))) + Acc(weight2 * convert<Acc>(output2(0, c)));
    output(0, c) = convert<Scalar>(Acc(sum / row_sum));
  }
  lse = row_max + Acc(log(row_sum));
}

}  // namespace detail

/// Attention over all keys from attention over two disjoint sets of them.
///     output = (exp(lse1) output1 + exp(lse2) output2) / (exp(lse1) + exp(lse2))
///     lse    = ln(exp(lse1) + exp(lse2))
/// @param output1, output2  query_len x value_dim, each the attention over its own keys
/// @param lse1, lse2        query_len, natural log; -inf (no key allowed) is the neutral element:
///                          the other part comes back bit for bit, whatever stands in the empty
///                          part's output
/// A sink (score.hpp) belongs to one of the parts only: else it is counted twice.
/// @throws std::invalid_argument if the shapes disagree, or there is no memory where entries should be
template <EigenDense O1, EigenDense L1, EigenDense O2, EigenDense L2>
[[nodiscard]] auto merge(const O1& output1, const L1& lse1, const O2& output2, const L2& lse2) {
  using Scalar = typename O1::Scalar;
  using Acc = accumulator_t<Scalar>;
  static_assert(std::is_same_v<Scalar, typename O2::Scalar>,
                "mha::merge: both outputs must share one Scalar");
  static_assert(
      std::is_same_v<Acc, typename L1::Scalar> && std::is_same_v<Acc, typename L2::Scalar>,
      "mha::merge: lse must have the accumulator's type (float for 16-bit outputs)");
  detail::require(output1.rows() == output2.rows(),
                  "merge: output1.rows() must equal output2.rows() (query_len), got ",
                  output1.rows(), " and ", output2.rows());
  detail::require(output1.cols() == output2.cols(),
                  "merge: output1.cols() must equal output2.cols() (value_dim), got ",
                  output1.cols(), " and ", output2.cols());
  detail::require((lse1.rows() == 1 || lse1.cols() == 1) && (lse2.rows() == 1 || lse2.cols() == 1),
                  "merge: lse1 and lse2 must be vectors, got ", lse1.rows(), " x ", lse1.cols(),
                  " and ", lse2.rows(), " x ", lse2.cols());
  detail::require(lse1.size() == output1.rows() && lse2.size() == output1.rows(),
                  "merge: lse1 and lse2 must have output1.rows() entries, got ", lse1.size(), ", ",
                  lse2.size(), " and ", output1.rows());
  const detail::Argument<O1> o1(output1);
  const detail::Argument<O2> o2(output2);
  const detail::Argument<L1> l1(lse1);
  const detail::Argument<L2> l2(lse2);
  const auto check = [](const char* name, const char* col, const auto& argument) {
    const detail::Named what{name, {"batch", "num_heads", "query_len", col}};
    (void)detail::check_view("merge", what, detail::as_tensor(argument.view()));
  };
  check("output1", "value_dim", o1);
  check("output2", "value_dim", o2);
  check("lse1", "query_len", l1);
  check("lse2", "query_len", l2);
  detail::check_count("merge", "the result", {1, 1, output1.rows(), output1.cols()},
                      sizeof(Scalar));
  const auto entry = [](const MatrixView<const Acc>& v, Index i) -> const Acc& {
    return v.cols == 1 ? v(i, 0) : v(0, i);
  };
  Merged<Scalar> result{Matrix<Scalar>(output1.rows(), output1.cols()),
                        Vector<Acc>(output1.rows())};
  for (Index i = 0; i < output1.rows(); ++i) {
    detail::merge_row<Acc, Scalar>(o1.view().middle_rows(i, 1), entry(l1.view(), i),
                                   o2.view().middle_rows(i, 1), entry(l2.view(), i),
                                   matrix_view(result.output).middle_rows(i, 1), result.lse(i));
  }
  return result;
}

}  // namespace mha
