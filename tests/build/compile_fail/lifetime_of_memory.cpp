// SPDX-License-Identifier: MIT
// expect: 'kept' returned.*'ignored' returned.*'padding' returned.*'blocked' returned.*'biases' returned.*'sums1' returned.*'sums2' returned.*'sums3' returned.*'matrix' returned.*'columns' returned.*'tensor' returned.*'viewed' returned.*'pool' returned.*temporary whose address
//
// What refers to memory says so, and the compiler warns where it outlives that memory. Clang only.
#include <mha/mha.hpp>

#pragma clang diagnostic error "-Wdangling"
#pragma clang diagnostic error "-Wreturn-stack-address"

using mha::Matrix;
using mha::Tensor;
using mha::Vector;
using Flags = Matrix<bool>;
using Floats = Matrix<float>;

#ifdef MHA_SHOULD_FAIL

auto keep_local() {
  Flags kept(2, 2);
  return mha::keep(kept);
}
auto ignore_local() {
  const Flags ignored(2, 2);
  return mha::ignore(ignored);
}
auto key_padding_local() {
  Flags padding(2, 2);
  return mha::key_padding(padding);
}
auto blocks_local() {
  Flags blocked(2, 2);
  return mha::blocks(blocked, 1, 1);
}
auto bias_local() {
  Floats biases(2, 2);
  return mha::bias(biases);
}
auto bias_gradient_local(const Floats& m) {
  Floats sums1(2, 2);
  return mha::bias(m, sums1);
}
auto alibi_gradient_local(const Vector<float>& slopes) {
  Vector<float> sums2(2);
  return mha::alibi(slopes, sums2);
}
auto sinks_gradient_local(const Vector<float>& logits) {
  Vector<float> sums3(2);
  return mha::sinks(logits, sums3);
}
auto matrix_view_local() {
  Floats matrix(2, 2);
  return mha::matrix_view(matrix);
}
auto split_heads_local() {
  Floats columns(2, 2);
  return mha::split_heads(columns, 2);
}
auto tensor_view_local() {
  Tensor<float> tensor({1, 1, 2, 2});
  return mha::tensor_view(tensor);
}
auto view_local() {
  Tensor<float> viewed({1, 1, 2, 2});
  return viewed.view();
}
mha::AttentionOptions executor_local() {
  mha::ThreadPool pool(2);
  return {.executor = pool};
}
float view_of_temporary() {
  const auto view = mha::matrix_view(Floats(2, 2));
  return view(0, 0);
}

#else

// What owns its memory, or refers to memory that somebody else owns, may go anywhere.
auto keep_argument(const Flags& m) { return mha::keep(m); }
auto keep_temporary() { return mha::keep(Flags(2, 2)); }
auto key_padding_temporary() { return mha::key_padding(Flags(2, 2)); }
auto blocks_argument(const Flags& m) { return mha::blocks(m, 1, 1); }
auto documents_local() {
  const std::vector<int> ids(2);
  return mha::documents(ids);
}
auto keep_expression(const Floats& m) { return mha::keep(m.array() > 0.0F); }
auto bias_of_map(const float* p) {
  const Eigen::Map<const Floats> m(p, 2, 2);
  return mha::bias(m);
}
auto bias_of_view(float* p) {
  const mha::TensorView<float> m(p, {1, 1, 2, 2});
  return mha::bias(m);
}
auto bias_gradient_of_map(const Floats& m, float* p) {
  Eigen::Map<Floats> sums(p, 2, 2);
  return mha::bias(m, sums);
}
auto sinks_gradient_of_map(const Vector<float>& logits, float* p) {
  Eigen::Map<Vector<float> > sums(p, 2);
  return mha::sinks(logits, sums);
}
auto view_of_block(Floats& m) {
  auto block = m.block(0, 0, 1, 1);
  return mha::matrix_view(block);
}
auto tensor_view_of_view(float* p) {
  const mha::TensorView<float> m(p, {1, 1, 2, 2});
  return mha::tensor_view(m);
}
auto result_of_locals() {
  mha::ThreadPool pool(2);
  const Flags mask = Flags::Constant(2, 2, true);
  const Floats x(2, 2);
  return mha::attention(x, x, x, mha::keep(mask) & mha::causal(), {.executor = pool});
}
float entry_of_temporary() { return mha::matrix_view(Floats(Floats::Ones(2, 2)))(0, 0); }

#endif

int main() { return 0; }
