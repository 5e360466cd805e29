// SPDX-License-Identifier: MIT
//
// mha/types.hpp and mha/internal/support/floating.hpp: how memory is seen as matrices and tensors, and questions
// about single numbers.
#include <mha/internal/support/argument.hpp>
#include <mha/internal/support/floating.hpp>
#include <mha/types.hpp>
#include <mha/version.hpp>

#include <complex>
#include <numeric>
#include <unsupported/Eigen/CXX11/Tensor>

#include "support/matchers.hpp"

using mha::Index;
using mha::Matrix;
using mha::MatrixView;
using mha::Tensor;
using mha::TensorView;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::matrix_of;
using mha::test::random_matrix;
using mha::test::stacked;

namespace {

using Strides = std::array<Index, 4>;
using ColMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

// 0, 1, 2, ...
std::vector<double> counting(int count) {
  std::vector<double> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0.0);
  return numbers;
}

// Every element of the view is the matrix's own, at the matrix's address.
template <class View, class M>
bool views(const View& view, const M& m) {
  if (view.rows != m.rows() || view.cols != m.cols()) return false;
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index j = 0; j < m.cols(); ++j) {
      if (&view(i, j) != &m.coeffRef(i, j)) return false;
    }
  }
  return true;
}

// The element at (b, h, i, d) as a number whose digits are the indices.
double digits(Index b, Index h, Index i, Index d) {
  return static_cast<double>(1000 * b + 100 * h + 10 * i + d);
}

template <class T>
bool has_digits(const T& tensor) {
  for (Index b = 0; b < tensor.size(0); ++b) {
    for (Index h = 0; h < tensor.size(1); ++h) {
      for (Index i = 0; i < tensor.size(2); ++i) {
        for (Index d = 0; d < tensor.size(3); ++d) {
          if (tensor(b, h, i, d) != digits(b, h, i, d)) return false;
        }
      }
    }
  }
  return true;
}

template <class T>
void fill_digits(T& tensor, const Strides& sizes) {
  for (Index b = 0; b < sizes[0]; ++b) {
    for (Index h = 0; h < sizes[1]; ++h) {
      for (Index i = 0; i < sizes[2]; ++i) {
        for (Index d = 0; d < sizes[3]; ++d) tensor(b, h, i, d) = digits(b, h, i, d);
      }
    }
  }
}

}  // namespace

TEST_CASE("the inline namespace that keeps versions apart is named after the version", "[types]") {
#define MHA_TEXT_OF(name) #name
#define MHA_TEXT(name) MHA_TEXT_OF(name)
  CHECK(std::string(MHA_TEXT(MHA_ABI)) ==
        "v" + std::to_string(MHA_VERSION_MAJOR) + "_" + std::to_string(MHA_VERSION_MINOR));
#undef MHA_TEXT
#undef MHA_TEXT_OF
}

TEST_CASE("a Matrix keeps the channels of a token side by side", "[types]") {
  const Matrix<float> m = matrix_of<float>({{1, 2, 3}, {4, 5, 6}});
  CHECK(std::vector<float>(m.data(), m.data() + 6) == std::vector<float>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("a TensorView without strides is contiguous, the channel running fastest",
          "[types][tensor]") {
  const std::vector<double> memory = counting(2 * 3 * 4 * 5);
  const TensorView<const double> view(memory.data(), {2, 3, 4, 5});
  CHECK(view.strides == Strides{60, 20, 5, 1});
  CHECK(view(0, 0, 0, 1) == 1);
  CHECK(view(0, 0, 1, 0) == 5);
  CHECK(view(0, 1, 0, 0) == 20);
  CHECK(view(1, 0, 0, 0) == 60);
  CHECK(view(1, 2, 3, 4) == 119);
}

TEST_CASE("a TensorView finds (b, h, i, d) by its four strides", "[types][tensor]") {
  // [batch, token, head, channel] in memory, sizes 2, 4, 3, 5: a step in h is 5, in i 3 * 5.
  const std::vector<double> memory = counting(2 * 4 * 3 * 5);
  const TensorView<const double> view(memory.data(), {2, 3, 4, 5}, {60, 5, 15, 1});
  CHECK(view(1, 2, 3, 4) == 60 + 2 * 5 + 3 * 15 + 4);
  CHECK(view.size(1) == 3);
  CHECK(view.size(2) == 4);
}

TEST_CASE("a stride of 0 shows the same data at every index", "[types][tensor]") {
  const std::vector<double> memory = counting(4);
  const TensorView<const double> view(memory.data(), {3, 2, 2, 2}, {0, 0, 2, 1});
  for (Index b = 0; b < 3; ++b) {
    for (Index h = 0; h < 2; ++h) CHECK(view(b, h, 1, 1) == 3);
  }
}

TEST_CASE("a negative stride runs backwards through memory", "[types][tensor]") {
  const std::vector<double> memory = counting(6);
  // Tokens from the last row of 3 x 2 to the first.
  const TensorView<const double> view(memory.data() + 4, {1, 1, 3, 2}, {0, 0, -2, 1});
  CHECK(view(0, 0, 0, 0) == 4);
  CHECK(view(0, 0, 2, 1) == 1);
}

TEST_CASE("one head of a TensorView is its tokens x channels", "[types][tensor]") {
  const std::vector<double> memory = counting(2 * 3 * 4 * 5);
  const TensorView<const double> view(memory.data(), {2, 3, 4, 5}, {60, 5, 15, 1});
  const MatrixView<const double> head = view.matrix(1, 2);
  CHECK(head.rows == 4);
  CHECK(head.cols == 5);
  for (Index i = 0; i < 4; ++i) {
    for (Index d = 0; d < 5; ++d) CHECK(&head(i, d) == &view(1, 2, i, d));
  }
}

TEST_CASE("a block of a MatrixView refers to the same elements", "[types]") {
  const Matrix<double> m = random_matrix<double>(5, 6, 1);
  const auto block = mha::matrix_view(m).block(1, 2, 3, 4);
  CHECK(views(block, m.block(1, 2, 3, 4).eval()) == false);  // a copy lies elsewhere
  CHECK(views(block, m.block(1, 2, 3, 4)));
  CHECK(views(mha::matrix_view(m).middle_rows(2, 2), m.middleRows(2, 2)));
  CHECK(views(mha::matrix_view(m).middle_cols(3, 2), m.middleCols(3, 2)));
}

TEST_CASE("views convert to read-only views and not back", "[types]") {
  STATIC_REQUIRE(std::is_convertible_v<TensorView<float>, TensorView<const float>>);
  STATIC_REQUIRE(!std::is_convertible_v<TensorView<const float>, TensorView<float>>);
  STATIC_REQUIRE(std::is_convertible_v<MatrixView<float>, MatrixView<const float>>);
  STATIC_REQUIRE(!std::is_convertible_v<MatrixView<const float>, MatrixView<float>>);
  STATIC_REQUIRE(std::is_convertible_v<Tensor<float>&, TensorView<float>>);
  STATIC_REQUIRE(std::is_convertible_v<const Tensor<float>&, TensorView<const float>>);
  STATIC_REQUIRE(!std::is_convertible_v<const Tensor<float>&, TensorView<float>>);
  Tensor<float> tensor({1, 1, 2, 2});
  const TensorView<float> view = tensor;
  const TensorView<const float> read_only = view;
  CHECK(read_only.data == tensor.data());
  CHECK(read_only.sizes == view.sizes);
  CHECK(read_only.strides == view.strides);
}

TEST_CASE("a Tensor starts as zeros, contiguous and its own", "[types][tensor]") {
  Tensor<double> tensor({2, 3, 4, 5});
  CHECK(stacked(tensor).isZero(0));
  CHECK(tensor.sizes() == Strides{2, 3, 4, 5});
  CHECK(tensor.size(2) == 4);
  CHECK_FALSE(tensor.empty());
  tensor(1, 2, 3, 4) = 7;
  CHECK(tensor.data()[119] == 7);
  Tensor<double> copy = tensor;
  copy(1, 2, 3, 4) = 8;
  CHECK(tensor(1, 2, 3, 4) == 7);
}

TEST_CASE("a default Tensor, and one with a size of 0, is empty", "[types][tensor]") {
  CHECK(Tensor<float>().empty());
  CHECK(Tensor<float>({2, 0, 4, 5}).empty());
  CHECK(Tensor<float>({2, 0, 4, 5}).size(3) == 5);
}

TEST_CASE("one head of a Tensor is an Eigen matrix that refers to it", "[types][tensor]") {
  Tensor<double> tensor({2, 3, 4, 5});
  fill_digits(tensor, tensor.sizes());
  CHECK(tensor.matrix(1, 2)(3, 4) == 1234);
  CHECK(tensor.matrix(1, 2).rows() == 4);
  CHECK(tensor.matrix(1, 2).cols() == 5);
  tensor.matrix(1, 2).row(3).setConstant(-1);
  CHECK(tensor(1, 2, 3, 0) == -1);
  CHECK(tensor(1, 2, 2, 4) == 1224);
  CHECK(std::as_const(tensor).matrix(0, 1)(2, 3) == 123);
}

TEST_CASE("every Eigen object in memory is viewed where it lies", "[types]") {
  Matrix<double> row_major = random_matrix<double>(4, 6, 2);
  ColMajor col_major = row_major;
  CHECK(views(mha::matrix_view(row_major), row_major));
  CHECK(views(mha::matrix_view(col_major), col_major));
  CHECK(views(mha::matrix_view(row_major.transpose()), row_major.transpose()));
  CHECK(views(mha::matrix_view(col_major.transpose()), col_major.transpose()));
  CHECK(views(mha::matrix_view(col_major.block(1, 2, 3, 3)), col_major.block(1, 2, 3, 3)));
  CHECK(views(mha::matrix_view(row_major.row(2)), row_major.row(2)));
  CHECK(views(mha::matrix_view(row_major.col(2)), row_major.col(2)));
  CHECK(views(mha::matrix_view(col_major.row(2)), col_major.row(2)));
  CHECK(views(mha::matrix_view(col_major.col(2)), col_major.col(2)));
  CHECK(views(mha::matrix_view(row_major.diagonal()), row_major.diagonal()));
  CHECK(views(mha::matrix_view(row_major.array()), row_major));
  Eigen::Ref<ColMajor, 0, Eigen::OuterStride<>> ref(col_major.topRows(3));
  CHECK(views(mha::matrix_view(ref), col_major.topRows(3)));
  Eigen::Map<ColMajor, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> map(
      row_major.data(), 2, 3, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(12, 2));
  CHECK(views(mha::matrix_view(map), map));
  Eigen::Matrix<double, 3, 2> fixed = Eigen::Matrix<double, 3, 2>::Zero();
  CHECK(views(mha::matrix_view(fixed), fixed));
}

TEST_CASE("an argument that lies in memory is not copied, an expression is evaluated once",
          "[types]") {
  const ColMajor m = random_matrix<double>(4, 6, 3);
  CHECK(mha::detail::Argument<ColMajor>(m).view().data == m.data());
  const auto block = m.bottomRightCorner(2, 2);
  CHECK(mha::detail::Argument(block).view().data == &m(2, 4));
  const auto sum = m + 2 * m;
  const mha::detail::Argument evaluated(sum);
  CHECK(evaluated.view()(3, 5) == m(3, 5) + 2 * m(3, 5));
  CHECK(evaluated.view().rows == 4);
}

TEST_CASE("split_heads cuts the columns into heads and the rows into sequences", "[types][heads]") {
  // 2 sequences of 3 tokens, 2 heads of 2 channels: row b * 3 + i, column h * 2 + d.
  Matrix<double> m(6, 4);
  for (Index row = 0; row < 6; ++row) {
    for (Index col = 0; col < 4; ++col) m(row, col) = digits(row / 3, col / 2, row % 3, col % 2);
  }
  SECTION("of a row-major matrix") {
    const auto heads = mha::split_heads(m, 2, 2);
    CHECK(heads.sizes == Strides{2, 2, 3, 2});
    CHECK(has_digits(heads));
  }
  SECTION("of a column-major matrix") {
    const ColMajor col_major = m;
    CHECK(has_digits(mha::split_heads(col_major, 2, 2)));
  }
  SECTION("of a part of a larger matrix") {
    Matrix<double> large = Matrix<double>::Constant(8, 9, -1);
    large.block(1, 3, 6, 4) = m;
    CHECK(has_digits(mha::split_heads(large.block(1, 3, 6, 4), 2, 2)));
  }
}

TEST_CASE("split_heads is a view: what is written there lands in the matrix", "[types][heads]") {
  Matrix<double> m = Matrix<double>::Zero(6, 4);
  mha::split_heads(m, 2, 2)(1, 0, 2, 1) = 5;
  CHECK(m(5, 1) == 5);
  CHECK(mha::split_heads(m, 2, 2).data == m.data());
}

TEST_CASE("split_heads of one head and one sequence is the matrix itself", "[types][heads]") {
  const Matrix<double> m = random_matrix<double>(3, 5, 4);
  const auto all = mha::split_heads(m, 1);
  CHECK(all.sizes == Strides{1, 1, 3, 5});
  CHECK_THAT(stacked(all), HasBitsOf(m));
}

TEST_CASE("split_heads of nothing is empty", "[types][heads]") {
  CHECK(mha::split_heads(Matrix<double>(0, 4), 2, 0).sizes == Strides{0, 2, 0, 2});
  CHECK(mha::split_heads(Matrix<double>(0, 4), 2, 3).sizes == Strides{3, 2, 0, 2});
  CHECK(mha::split_heads(Matrix<double>(6, 0), 2, 3).sizes == Strides{3, 2, 2, 0});
}

TEST_CASE("split_heads refuses counts that do not divide the matrix, and says both numbers",
          "[types][heads][errors]") {
  const Matrix<double> m(6, 4);
  CHECK_THROWS_AS(mha::split_heads(m, 3), std::invalid_argument);
  CHECK_THROWS_WITH(mha::split_heads(m, 3),
                    "mha::split_heads: num_heads must divide matrix.cols(), got 3 and 4");
  CHECK_THROWS_WITH(mha::split_heads(m, 0), ContainsSubstring("got 0 and 4"));
  CHECK_THROWS_WITH(mha::split_heads(m, -2), ContainsSubstring("got -2 and 4"));
  CHECK_THROWS_WITH(mha::split_heads(m, 2, 4),
                    "mha::split_heads: batch must divide matrix.rows(), got 4 and 6");
  CHECK_THROWS_WITH(mha::split_heads(m, 2, 0), ContainsSubstring("got 0 and 6"));
  CHECK_THROWS_WITH(mha::split_heads(m, 2, -1), ContainsSubstring("got -1 and 6"));
}

TEST_CASE("an Eigen::Tensor of either layout is viewed as batch, head, token, channel",
          "[types][tensor]") {
  const Strides sizes{2, 3, 4, 5};
  Eigen::Tensor<double, 4, Eigen::ColMajor> col_major(2, 3, 4, 5);
  Eigen::Tensor<double, 4, Eigen::RowMajor> row_major(2, 3, 4, 5);
  fill_digits(col_major, sizes);
  fill_digits(row_major, sizes);
  CHECK(mha::tensor_view(col_major).sizes == sizes);
  CHECK(mha::tensor_view(col_major).data == col_major.data());
  CHECK(has_digits(mha::tensor_view(col_major)));
  CHECK(mha::tensor_view(row_major).data == row_major.data());
  CHECK(has_digits(mha::tensor_view(row_major)));
  CHECK(has_digits(mha::tensor_view(std::as_const(col_major))));
  const Eigen::TensorMap<Eigen::Tensor<double, 4, Eigen::RowMajor>> map(row_major.data(), 2, 3, 4,
                                                                        5);
  CHECK(has_digits(mha::tensor_view(map)));
}

TEST_CASE("tensors and their views are viewed as themselves, a matrix as one head",
          "[types][tensor]") {
  Tensor<double> tensor({2, 3, 4, 5});
  fill_digits(tensor, tensor.sizes());
  CHECK(has_digits(mha::tensor_view(tensor)));
  CHECK(has_digits(mha::tensor_view(tensor.view())));
  CHECK(has_digits(mha::tensor_view(std::as_const(tensor))));
  const Matrix<double> m = random_matrix<double>(3, 5, 5);
  CHECK(mha::tensor_view(m).sizes == Strides{1, 1, 3, 5});
  CHECK(mha::tensor_view(m).data == m.data());
}

TEST_CASE("attention takes real numbers that are not integers", "[types]") {
  STATIC_REQUIRE(mha::AttentionScalar<float>);
  STATIC_REQUIRE(mha::AttentionScalar<double>);
  STATIC_REQUIRE(mha::AttentionScalar<long double>);
  STATIC_REQUIRE(mha::AttentionScalar<Eigen::half>);
  STATIC_REQUIRE(mha::AttentionScalar<Eigen::bfloat16>);
  STATIC_REQUIRE(!mha::AttentionScalar<int>);
  STATIC_REQUIRE(!mha::AttentionScalar<bool>);
  STATIC_REQUIRE(!mha::AttentionScalar<std::complex<float>>);
}

TEST_CASE("16-bit numbers are summed in float, all others in their own type", "[types]") {
  STATIC_REQUIRE(std::is_same_v<mha::accumulator_t<Eigen::half>, float>);
  STATIC_REQUIRE(std::is_same_v<mha::accumulator_t<Eigen::bfloat16>, float>);
  STATIC_REQUIRE(std::is_same_v<mha::accumulator_t<float>, float>);
  STATIC_REQUIRE(std::is_same_v<mha::accumulator_t<double>, double>);
  STATIC_REQUIRE(std::is_same_v<mha::accumulator_t<long double>, long double>);
}

TEST_CASE("only what lies in memory passes for a tensor", "[types]") {
  using Sum = decltype(std::declval<const ColMajor&>() + std::declval<const ColMajor&>());
  STATIC_REQUIRE(mha::EigenDense<Sum>);
  STATIC_REQUIRE(!mha::EigenInMemory<Sum>);
  STATIC_REQUIRE(!mha::TensorLike<Sum>);
  STATIC_REQUIRE(mha::TensorLike<ColMajor>);
  STATIC_REQUIRE(mha::TensorLike<const Tensor<float>&>);
  STATIC_REQUIRE(mha::TensorLike<TensorView<const float>>);
  STATIC_REQUIRE(mha::TensorLike<Eigen::Tensor<float, 4>>);
  STATIC_REQUIRE(!mha::TensorLike<int>);
  STATIC_REQUIRE(!mha::EigenDense<Tensor<float>>);
}

TEST_CASE("a half becomes a double exactly", "[types]") {
  CHECK(mha::detail::convert<double>(Eigen::half(0.099975586F)) == 0.0999755859375);
  CHECK(mha::detail::convert<double>(Eigen::bfloat16(-1.5F)) == -1.5);
  CHECK(mha::detail::convert<float>(Eigen::half(65504.F)) == 65504.F);
}

TEMPLATE_TEST_CASE("minus infinity is told from every other number by its bits",
                   "[types][floating]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  using Limits = Eigen::NumTraits<TestType>;
  const TestType infinity = Limits::infinity();
  CHECK(mha::detail::is_minus_infinity(TestType(-infinity)));
  TestType set(0);
  mha::detail::set_minus_infinity(set);
  CHECK(mha::test::equal_bits(set, TestType(-infinity)));
  CHECK_FALSE(mha::detail::is_minus_infinity(infinity));
  CHECK_FALSE(mha::detail::is_minus_infinity(Limits::lowest()));
  CHECK_FALSE(mha::detail::is_minus_infinity(TestType(-Limits::highest())));
  CHECK_FALSE(mha::detail::is_minus_infinity(Limits::quiet_NaN()));
  CHECK_FALSE(mha::detail::is_minus_infinity(TestType(-Limits::quiet_NaN())));
  CHECK_FALSE(mha::detail::is_minus_infinity(TestType(0)));
  CHECK_FALSE(mha::detail::is_minus_infinity(TestType(-1)));
}

TEMPLATE_TEST_CASE("NaN and the infinities are the numbers that are not finite",
                   "[types][floating]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  using Limits = Eigen::NumTraits<TestType>;
  CHECK_FALSE(mha::detail::is_finite(Limits::infinity()));
  CHECK_FALSE(mha::detail::is_finite(TestType(-Limits::infinity())));
  CHECK_FALSE(mha::detail::is_finite(Limits::quiet_NaN()));
  CHECK(mha::detail::is_finite(Limits::highest()));
  CHECK(mha::detail::is_finite(Limits::lowest()));
  CHECK(mha::detail::is_finite(TestType(0)));
  CHECK(mha::detail::is_finite(Limits::epsilon()));
}

TEST_CASE("a tensor that has been moved from is empty", "[types][regression]") {
  mha::Tensor<float> from({1, 2, 3, 4});
  from(0, 1, 2, 3) = 5;
  const mha::Tensor<float> to = std::move(from);
  CHECK(to(0, 1, 2, 3) == 5);
  CHECK(from.empty());  // NOLINT(bugprone-use-after-move): that is what is tested
  CHECK(from.sizes() == std::array<mha::Index, 4>{0, 0, 0, 0});
}
