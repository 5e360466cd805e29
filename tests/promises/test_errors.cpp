// SPDX-License-Identifier: MIT
//
// What a caller's mistakes say, word by word: the function, the rule and the numbers; and that
// nothing has been written when they say it. Mistakes in making a mask: test_mask.cpp.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/layer_support.hpp"

using mha::AttentionOutputs;
using mha::Index;
using mha::Matrix;
using mha::MultiHead;
using mha::MultiHeadConfig;
using mha::MultiHeadOptions;
using mha::Rotary;
using mha::RotaryPairs;
using mha::Tensor;
using mha::TensorView;
using mha::test::HasBitsOf;
using mha::test::message_of;
using mha::test::random_matrix;
using mha::test::random_tensor;
using mha::test::same_bits;

namespace {

using AnyHeads = MultiHead<float, Eigen::Dynamic>;

struct Mistake {
  std::string message;
  std::function<void()> call;
};

void check_messages(const std::vector<Mistake>& mistakes) {
  for (const Mistake& mistake : mistakes) CHECK(message_of(mistake.call) == mistake.message);
}

// Matrices and tensors of these sizes; what stands in them does not matter.
Matrix<float> matrix(Index rows, Index cols) { return Matrix<float>::Ones(rows, cols); }
Tensor<float> tensor(Index batch, Index heads, Index tokens, Index channels) {
  return Tensor<float>({batch, heads, tokens, channels});
}

}  // namespace

TEST_CASE("attention of one head names what does not fit", "[errors][attention]") {
  const auto call = [](const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                       const mha::AttentionOptions& options = {}) {
    return [=] { (void)mha::scaled_dot_product_attention(q, k, v, mha::All{}, options); };
  };
  const std::string name = "mha::scaled_dot_product_attention: ";
  check_messages({
      {name + "key.cols() must equal query.cols() (head_dim), got 3 and 2",
       call(matrix(4, 2), matrix(5, 3), matrix(5, 2))},
      {name + "value.rows() must equal key.rows() (kv_len), got 6 and 5",
       call(matrix(4, 2), matrix(5, 2), matrix(6, 2))},
      {name + "past_len must lie between 0 and kv_len, got 6 and 5",
       call(matrix(4, 2), matrix(5, 2), matrix(5, 2), {.past_len = 6})},
      {name + "past_len must lie between 0 and kv_len, got -1 and 5",
       call(matrix(4, 2), matrix(5, 2), matrix(5, 2), {.past_len = -1})},
  });
}

TEST_CASE("attention over tensors names what does not fit", "[errors][attention]") {
  const auto call = [](const Tensor<float>& q, const Tensor<float>& k, const Tensor<float>& v,
                       const mha::AttentionOptions& options = {}) {
    return [=] { (void)mha::attention(q, k, v, mha::All{}, options); };
  };
  const std::string name = "mha::attention: ";
  check_messages({
      {name + "key must have query's batch, got 3 and 2",
       call(tensor(2, 4, 5, 6), tensor(3, 4, 5, 6), tensor(2, 4, 5, 6))},
      {name + "value must have query's batch, got 1 and 2",
       call(tensor(2, 4, 5, 6), tensor(2, 4, 5, 6), tensor(1, 4, 5, 6))},
      {name + "value must have as many heads as key, got 4 and 2",
       call(tensor(2, 4, 5, 6), tensor(2, 2, 5, 6), tensor(2, 4, 5, 6))},
      {name + "the heads of key must divide those of query, got 3 and 4",
       call(tensor(2, 4, 5, 6), tensor(2, 3, 5, 6), tensor(2, 3, 5, 6))},
      {name + "the heads of key must divide those of query, got 8 and 4",
       call(tensor(2, 4, 5, 6), tensor(2, 8, 5, 6), tensor(2, 8, 5, 6))},
      {name + "the heads of key must divide those of query, got 0 and 4",
       call(tensor(2, 4, 5, 6), tensor(2, 0, 5, 6), tensor(2, 0, 5, 6))},
      {name + "key.cols() must equal query.cols() (head_dim), got 7 and 6",
       call(tensor(2, 4, 5, 6), tensor(2, 4, 5, 7), tensor(2, 4, 5, 6))},
      {name + "value.rows() must equal key.rows() (kv_len), got 9 and 8",
       call(tensor(2, 4, 5, 6), tensor(2, 4, 8, 6), tensor(2, 4, 9, 6))},
      {name + "past_len must lie between 0 and kv_len, got 9 and 8",
       call(tensor(2, 4, 5, 6), tensor(2, 4, 8, 6), tensor(2, 4, 8, 6), {.past_len = 9})},
  });
}

TEST_CASE("negative sizes are named", "[errors][attention]") {
  std::vector<float> memory(16);
  const TensorView<float> right(memory.data(), {1, 1, 2, 2});
  const std::string query_axes[] = {"batch", "num_heads", "query_len", "head_dim"};
  const std::string key_axes[] = {"batch", "kv_heads", "kv_len", "head_dim"};
  const std::string value_axes[] = {"batch", "kv_heads", "kv_len", "value_dim"};
  const auto message = [](const std::string& tensor, const std::string& axis) {
    return "mha::attention: " + tensor + " must have between 0 and " +
           std::to_string(mha::detail::kMaxSize) + " entries along " + axis + ", got -2";
  };
  for (std::size_t axis = 0; axis < 4; ++axis) {
    CAPTURE(axis);
    TensorView<float> wrong = right;
    wrong.sizes[axis] = -2;
    CHECK(message_of([&] { (void)mha::attention(wrong, right, right); }) ==
          message("query", query_axes[axis]));
    CHECK(message_of([&] { (void)mha::attention(right, wrong, right); }) ==
          message("key", key_axes[axis]));
    CHECK(message_of([&] { (void)mha::attention(right, right, wrong); }) ==
          message("value", value_axes[axis]));
  }
}

TEST_CASE("scores name what does not fit", "[errors][attention]") {
  check_messages({
      {"mha::attention_scores: key.cols() must equal query.cols() (head_dim), got 3 and 2",
       [] { (void)mha::attention_scores(matrix(4, 2), matrix(5, 3)); }},
      {"mha::attention_scores: past_len must lie between 0 and kv_len, got 6 and 5",
       [] { (void)mha::attention_scores(matrix(4, 2), matrix(5, 2), {.past_len = 6}); }},
  });
}

TEST_CASE("rules that do not fit the call are named with the call", "[errors][attention][mask]") {
  const Tensor<float> q = tensor(2, 4, 5, 6);
  const Tensor<float> kv = tensor(2, 4, 7, 6);
  const auto call = [&](const auto& rule) {
    return [&, rule] { (void)mha::attention(q, kv, kv, rule); };
  };
  const Matrix<bool> mask = Matrix<bool>::Constant(5, 6, true);
  const Matrix<float> bias = matrix(4, 7);
  const Tensor<float> heads = tensor(2, 3, 5, 7);
  const Tensor<float> batches = tensor(3, 4, 5, 7);
  const std::string name = "mha::attention: ";
  check_messages({
      {name + "lengths must have one entry, or one per sequence, got 3 for a batch of 2",
       call(mha::lengths({1, 2, 3}))},
      {name + "lengths must lie between 0 and kv_len, got 8 and 7", call(mha::lengths({7, 8}))},
      {name + "causal_offset must have one entry, or one per sequence, got 3 for a batch of 2",
       call(mha::causal_offset({1, 2, 3}))},
      {name + "keep(mask) must have 1 or 7 entries along kv_len, got 6", call(mha::keep(mask))},
      {name + "ignore(mask) must have 1 or 7 entries along kv_len, got 6", call(mha::ignore(mask))},
      {name + "bias(m) must have 1 or 5 entries along query_len, got 4", call(mha::bias(bias))},
      {name + "bias(m) must have 1 or 4 entries along num_heads, got 3", call(mha::bias(heads))},
      {name + "bias(m) must have 1 or 2 entries along batch, got 3", call(mha::bias(batches))},
      {name + "alibi must have one slope, or one per query head, got 3 for num_heads 4",
       call(mha::alibi(Eigen::Vector3f(1, 2, 3)))},
      {name + "sinks must have one logit, or one per query head, got 3 for num_heads 4",
       call(mha::sinks(Eigen::Vector3f(1, 2, 3)))},
      // The second of several.
      {name + "lengths must lie between 0 and kv_len, got 8 and 7",
       call(mha::causal() & mha::lengths(8))},
  });
}

TEST_CASE("results of the wrong shape are named", "[errors][attention]") {
  const Tensor<float> q = tensor(2, 4, 5, 6);
  const Tensor<float> k = tensor(2, 4, 7, 6);
  const Tensor<float> v = tensor(2, 4, 7, 3);
  const auto call = [&](Tensor<float> output, Tensor<float> weights, Tensor<float> lse) {
    return [&q, &k, &v, output, weights, lse]() mutable {
      mha::attention_into<float>({output, weights, lse}, q, k, v);
    };
  };
  const Tensor<float> output = tensor(2, 4, 5, 3);
  const Tensor<float> none;
  const std::string name = "mha::attention_into: ";
  check_messages({
      {name + "output must have size 2 along batch, got 1", call(tensor(1, 4, 5, 3), none, none)},
      {name + "output must have size 4 along num_heads, got 1",
       call(tensor(2, 1, 5, 3), none, none)},
      {name + "output must have size 5 along query_len, got 6",
       call(tensor(2, 4, 6, 3), none, none)},
      {name + "output must have size 3 along value_dim, got 6",
       call(tensor(2, 4, 5, 6), none, none)},
      {name + "weights must have size 7 along kv_len, got 6",
       call(output, tensor(2, 4, 5, 6), none)},
      {name + "lse must have size 1 along its last axis, got 2",
       call(output, none, tensor(2, 4, 5, 2))},
  });
}

TEST_CASE("an output without memory is named", "[errors][attention]") {
  const Tensor<float> x = tensor(2, 4, 5, 6);
  CHECK(message_of([&] {
          const TensorView<float> nowhere(nullptr, {2, 4, 5, 6});
          mha::attention_into<float>({.output = nowhere}, x, x, x);
        }) == "mha::attention_into: output.data must not be null, got sizes [2, 4, 5, 6]");
}

TEST_CASE("a mistake leaves outputs as they were", "[errors][attention]") {
  Tensor<float> output = random_tensor<float>({2, 4, 5, 3}, 1);
  Tensor<float> weights = random_tensor<float>({2, 4, 5, 7}, 2);
  Tensor<float> lse = random_tensor<float>({2, 4, 5, 1}, 3);
  const Tensor<float> output_before = output;
  const Tensor<float> weights_before = weights;
  const Tensor<float> lse_before = lse;
  const AttentionOutputs<float> outputs{output, weights, lse};
  const Tensor<float> q = tensor(2, 4, 5, 6);
  const Tensor<float> k = tensor(2, 4, 7, 6);
  const Tensor<float> v = tensor(2, 4, 7, 3);
  const auto wrong = GENERATE(range(0, 6));
  CAPTURE(wrong);
  CHECK_THROWS_AS(
      [&] {
        switch (wrong) {
          case 0:
            return mha::attention_into(outputs, q, tensor(2, 4, 7, 5), v);
          case 1:
            return mha::attention_into(outputs, q, k, tensor(2, 4, 6, 3));
          case 2:
            return mha::attention_into(outputs, q, k, v, mha::lengths({7, 8}));
          case 3:
            return mha::attention_into(outputs, q, k, v, mha::All{}, {.past_len = 8});
          case 4:
            return mha::attention_into<float>(
                {output, weights, TensorView<float>(lse.data(), {2, 4, 5, 2})}, q, k, v);
          default:
            return mha::attention_into(outputs, q, k, tensor(2, 4, 7, 2));
        }
      }(),
      std::invalid_argument);
  CHECK(same_bits(output, output_before));
  CHECK(same_bits(weights, weights_before));
  CHECK(same_bits(lse, lse_before));
}

TEST_CASE("heads that cannot be split are named", "[errors]") {
  check_messages({
      {"mha::split_heads: num_heads must divide matrix.cols(), got 4 and 6",
       [] {
         const Matrix<float> x = matrix(3, 6);
         (void)mha::split_heads(x, 4);
       }},
      {"mha::split_heads: num_heads must divide matrix.cols(), got 0 and 6",
       [] {
         const Matrix<float> x = matrix(3, 6);
         (void)mha::split_heads(x, 0);
       }},
      {"mha::split_heads: batch must divide matrix.rows(), got 2 and 3",
       [] {
         const Matrix<float> x = matrix(3, 6);
         (void)mha::split_heads(x, 3, 2);
       }},
  });
}

TEST_CASE("sizes of a layer that contradict each other are named when it is made",
          "[errors][multi_head]") {
  const auto any = [](const MultiHeadConfig& config) { return [=] { (void)AnyHeads(config); }; };
  const auto fixed = [](const MultiHeadConfig& config) {
    return [=] { (void)MultiHead<float, 2, 3>(config); };
  };
  const std::string name = "mha::MultiHead: ";
  const std::string most = std::to_string(mha::detail::kMaxSize);
  const std::string more = std::to_string(mha::detail::kMaxSize + 1);
  check_messages({
      {name + "num_heads must be at least 1, got 0", any({.embed_dim = 8})},
      // Products of sizes must not overflow.
      {name + "head_dim must lie between 0 (the default) and " + most + ", got " + more,
       any({.embed_dim = 1, .num_heads = 4, .head_dim = mha::detail::kMaxSize + 1})},
      {name + "num_heads must lie between 0 (the default) and " + most + ", got -2",
       any({.embed_dim = 8, .num_heads = -2})},
      {name + "embed_dim must be at least 1, got 0", any({.num_heads = 2})},
      {name + "embed_dim must lie between 0 (the default) and " + most + ", got -8",
       any({.embed_dim = -8, .num_heads = 2})},
      {name + "kv_heads must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .kv_heads = -1})},
      {name + "head_dim must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .head_dim = -1})},
      {name + "value_dim must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .value_dim = -1})},
      {name + "kdim must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .kdim = -1})},
      {name + "vdim must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .vdim = -1})},
      {name + "out_dim must lie between 0 (the default) and " + most + ", got -1",
       any({.embed_dim = 8, .num_heads = 2, .out_dim = -1})},
      {name + "kv_heads must divide num_heads, got 4 and 6",
       any({.embed_dim = 12, .num_heads = 6, .kv_heads = 4})},
      {name + "kv_heads must divide num_heads, got 6 and 3",
       any({.embed_dim = 12, .num_heads = 3, .kv_heads = 6})},
      {name + "num_heads must divide embed_dim unless head_dim is given, got 3 and 8",
       any({.embed_dim = 8, .num_heads = 3})},
      {name + "num_heads must divide embed_dim unless head_dim is given, got 3 and 8",
       [] { (void)MultiHead<float, 3>(8); }},
      {name + "num_heads must equal the class's Heads, got 3 and 2",
       [] { (void)MultiHead<float, 2>({.embed_dim = 6, .num_heads = 3}); }},
      {name + "num_heads * head_dim and num_heads * value_dim must be at most " + most +
           ", got num_heads 4, head_dim 8 and value_dim " + most,
       any({.embed_dim = 32, .num_heads = 4, .value_dim = mha::detail::kMaxSize})},
      {name +
           "with HeadDim fixed at compile time every width must be Heads * HeadDim = 6, kv_heads "
           "2 and head_dim 3, got embed_dim 8, kv_heads 0, head_dim 0, value_dim 0, kdim 0, vdim "
           "0 and out_dim 0 (0 = the default)",
       fixed({.embed_dim = 8})},
      {name + "rotary: pairs must be RotaryPairs::half or RotaryPairs::interleaved; there is no "
              "default, got 0",
       any({.embed_dim = 8, .num_heads = 2, .rotary = Rotary{}})},
      {name + "rotary: dim must lie between 0 and head_dim, got 6 and 4",
       any({.embed_dim = 8,
            .num_heads = 2,
            .rotary = Rotary{.pairs = RotaryPairs::half, .dim = 6}})},
      {name + "rotary: dim must be even, got 3",
       any({.embed_dim = 6, .num_heads = 2, .rotary = Rotary{.pairs = RotaryPairs::half}})},
      {name + "rotary: base must be positive and finite, got -1",
       any({.embed_dim = 8,
            .num_heads = 2,
            .rotary = Rotary{.pairs = RotaryPairs::half, .base = -1}})},
  });
}

TEST_CASE("every width of a fixed layer but its own is refused", "[errors][multi_head]") {
  const MultiHeadConfig config = GENERATE(
      MultiHeadConfig{.embed_dim = 8}, MultiHeadConfig{.kv_heads = 1},
      MultiHeadConfig{.head_dim = 2}, MultiHeadConfig{.value_dim = 2}, MultiHeadConfig{.kdim = 3},
      MultiHeadConfig{.vdim = 3}, MultiHeadConfig{.out_dim = 3}, MultiHeadConfig{.num_heads = 1});
  using Fixed = MultiHead<float, 2, 3>;
  CHECK_THROWS_AS(Fixed(config), std::invalid_argument);
  CHECK_NOTHROW(Fixed({.embed_dim = 6,
                       .num_heads = 2,
                       .kv_heads = 2,
                       .head_dim = 3,
                       .value_dim = 3,
                       .kdim = 6,
                       .vdim = 6,
                       .out_dim = 6}));
}

TEST_CASE("arguments that do not fit the layer are named", "[errors][multi_head]") {
  const AnyHeads layer({.embed_dim = 8, .num_heads = 2, .kdim = 5, .vdim = 6});
  const auto call = [&](Index q_cols, Index k_rows, Index k_cols, Index v_rows, Index v_cols) {
    return [=, &layer] {
      (void)layer(matrix(3, q_cols), matrix(k_rows, k_cols), matrix(v_rows, v_cols));
    };
  };
  const std::string name = "mha::MultiHead::forward: ";
  check_messages({
      {name + "query.cols() must equal embed_dim, got 7 and 8", call(7, 4, 5, 4, 6)},
      {name + "key.cols() must equal kdim, got 8 and 5", call(8, 4, 8, 4, 6)},
      {name + "value.cols() must equal vdim, got 5 and 6", call(8, 4, 5, 4, 5)},
      {name + "value.rows() must equal key.rows() (kv_len), got 3 and 4", call(8, 4, 5, 3, 6)},
      {name + "key.cols() must equal kdim, got 8 and 5", [&] { (void)layer(matrix(3, 8)); }},
      {name + "value.cols() must equal vdim, got 5 and 6",
       [&] { (void)layer(matrix(3, 8), matrix(4, 5)); }},
  });
}

TEST_CASE("sequences that do not fit the rows are named", "[errors][multi_head][batch]") {
  const MultiHead<float, 2> layer(4);
  // Six query rows, eight key rows.
  const auto call = [&](const MultiHeadOptions& options) {
    return [=, &layer] { (void)layer(matrix(6, 4), matrix(8, 4), options); };
  };
  const std::string name = "mha::MultiHead::forward: ";
  check_messages({
      {name + "batch must lie between 0 and 1073741824, got -1", call({.batch = -1})},
      {name + "batch must divide query.rows(), got 4 and 6", call({.batch = 4})},
      {name + "batch must divide query.rows(), got 0 and 6", call({.batch = 0})},
      {name + "batch must divide key.rows(), got 3 and 8", call({.batch = 3})},
      {name + "batch must divide key.rows(), got 0 and 8",
       [&] { (void)layer(matrix(0, 4), matrix(8, 4), MultiHeadOptions{.batch = 0}); }},
      {name + "kv_sequences must come with sequences, got 1 and 0", call({.kv_sequences = {8}})},
      {name + "sequences and kv_sequences must be as many, got 2 and 1",
       call({.sequences = {2, 4}, .kv_sequences = {8}})},
      {name + "batch must be left out beside sequences, or equal their number, got 3 and 2",
       call({.batch = 3, .sequences = {2, 4}, .kv_sequences = {4, 4}})},
      {name + "lengths of sequences must not be negative, got -1 and 4 for sequence 0",
       call({.sequences = {-1, 7}, .kv_sequences = {4, 4}})},
      {name + "lengths of sequences must not be negative, got 2 and -4 for sequence 0",
       call({.sequences = {2, 4}, .kv_sequences = {-4, 12}})},
      {name + "sequences must not be longer than the input, got 7 of 6 query rows and "
              "4 of 8 key rows for sequence 0",
       call({.sequences = {7, 1}, .kv_sequences = {4, 4}})},
      {name + "sequences must add up to query.rows(), got 5 and 6",
       call({.sequences = {2, 3}, .kv_sequences = {4, 4}})},
      {name + "kv_sequences must add up to key.rows(), got 7 and 8",
       call({.sequences = {2, 4}, .kv_sequences = {4, 3}})},
      {name + "sequences must add up to key.rows(), got 6 and 8", call({.sequences = {2, 4}})},
      {name + "past_len must lie between 0 and kv_len, got 9 and 8", call({.past_len = 9})},
      {name + "past_len must lie between 0 and kv_len, got -1 and 8", call({.past_len = -1})},
      {name + "past_len must lie between 0 and kv_len, got 4 and 3",
       call({.sequences = {2, 4}, .kv_sequences = {5, 3}, .past_len = 4})},
      {name + "past_len must lie between 0 and kv_len, got 4 and 3",
       call({.sequences = {2, 4}, .kv_sequences = {5, 3}, .past_len = {5, 4}})},
      {name + "past_len must be one number, or one per sequence, got 3 for a batch of 2",
       call({.batch = 2, .past_len = {1, 2, 3}})},
      {name + "past_len must be one number, or one per sequence, got 3 for a batch of 2",
       call({.sequences = {2, 4}, .kv_sequences = {5, 3}, .past_len = {1, 2, 3}})},
      {name + "positions are for a layer with rotary, got 1 positions and 0 kv_positions",
       call({.positions = {0}})},
      {name + "positions are for a layer with rotary, got 0 positions and 1 kv_positions",
       call({.kv_positions = {0}})},
  });
}

TEST_CASE("positions that do not fit the rows are named", "[errors][multi_head][rotary]") {
  const MultiHead<float, 2> layer({.embed_dim = 4, .rotary = Rotary{.pairs = RotaryPairs::half}});
  const auto call = [&](const MultiHeadOptions& options) {
    return [=, &layer] { (void)layer(matrix(3, 4), matrix(2, 4), options); };
  };
  const std::string name = "mha::MultiHead::forward: ";
  check_messages({
      {name + "positions must be one number, or one per row of query, got 2 and 3",
       call({.positions = {0, 1}})},
      {name + "kv_positions must be one number, or one per row of key, got 3 and 2",
       call({.positions = {0, 1, 2}, .kv_positions = {0, 1, 2}})},
      {name + "kv_positions must be given beside positions, since key.rows() is not query.rows(): "
              "2 and 3",
       call({.positions = {0, 1, 2}})},
  });
}

TEST_CASE("rules that do not fit a call of the layer are named with the layer",
          "[errors][multi_head][mask]") {
  const MultiHead<float, 2> layer({.embed_dim = 4, .add_bias_kv = true, .add_zero_attn = true});
  const auto call = [&](const auto& rule, const MultiHeadOptions& options = {}) {
    return [=, &layer] { (void)layer(matrix(6, 4), rule, options); };
  };
  const Matrix<bool> mask = Matrix<bool>::Constant(6, 7, true);
  const std::string name = "mha::MultiHead::forward: ";
  check_messages({
      {name + "lengths must lie between 0 and kv_len, got 7 and 6", call(mha::lengths(7))},
      {name + "lengths must have one entry, or one per sequence, got 2 for a batch of 3",
       call(mha::lengths({1, 2}), {.batch = 3})},
      {name + "lengths must have one entry, or one per sequence, got 3 for a batch of 2",
       call(mha::lengths({1, 2, 3}), {.sequences = {2, 4}})},
      // A mask speaks of the caller's keys alone, not of those that the layer adds.
      {name + "keep(mask) must have 1 or 6 entries along kv_len, got 7", call(mha::keep(mask))},
      {name + "sinks must have one logit, or one per query head, got 3 for num_heads 2",
       call(mha::sinks(Eigen::Vector3f(1, 2, 3)))},
  });
}

TEST_CASE("parameters replaced by some of another shape are named", "[errors][multi_head]") {
  const MultiHeadConfig config{.embed_dim = 4, .num_heads = 2, .add_bias_kv = true};
  const auto call = [&](const std::function<void(AnyHeads&)>& change) {
    return [=] {
      AnyHeads layer(config);
      change(layer);
      (void)layer(matrix(3, 4));
    };
  };
  const std::string name = "mha::MultiHead::forward: ";
  check_messages({
      {name + "q_proj.weight must be 4 x 4, got 4 x 5",
       call([](AnyHeads& layer) { layer.q_proj.weight.resize(4, 5); })},
      {name + "k_proj.weight must be 4 x 4, got 3 x 4",
       call([](AnyHeads& layer) { layer.k_proj.weight.resize(3, 4); })},
      {name + "v_proj.bias must have 0 or 4 entries, got 2",
       call([](AnyHeads& layer) { layer.v_proj.bias.resize(2); })},
      {name + "out_proj.weight must be 4 x 4, got 0 x 0",
       call([](AnyHeads& layer) { layer.out_proj.weight.resize(0, 0); })},
      {name + "bias_k and bias_v must have 4 and 4 entries, got 4 and 3",
       call([](AnyHeads& layer) { layer.bias_v.resize(3); })},
  });
}

TEST_CASE("rotary names what does not fit", "[errors][rotary]") {
  const auto call = [](const Rotary& how, const mha::IndexList& positions = {}) {
    return [=] { (void)mha::rotary(matrix(3, 5), how, positions); };
  };
  const std::string name = "mha::rotary: ";
  check_messages({
      {name + "pairs must be RotaryPairs::half or RotaryPairs::interleaved; there is no default, "
              "got 0",
       call({})},
      {name + "dim must lie between 0 and head_dim, got 6 and 5",
       call({.pairs = RotaryPairs::half, .dim = 6})},
      {name + "dim must lie between 0 and head_dim, got -2 and 5",
       call({.pairs = RotaryPairs::half, .dim = -2})},
      {name + "dim must be even, got 3", call({.pairs = RotaryPairs::half, .dim = 3})},
      {name + "dim must be even, got 5", call({.pairs = RotaryPairs::half})},
      {name + "base must be positive and finite, got 0",
       call({.pairs = RotaryPairs::half, .dim = 4, .base = 0})},
      {name + "positions must be none, the first, one per token (3), or one per token of each "
              "sequence (3), got 2",
       call({.pairs = RotaryPairs::half, .dim = 4}, {0, 1})},
  });
}

TEST_CASE("rotary with tables names what does not fit", "[errors][rotary]") {
  const auto call = [](const Matrix<float>& cos, const Matrix<float>& sin, RotaryPairs pairs,
                       const mha::IndexList& positions = {}) {
    return [=] {
      Matrix<float> x = matrix(3, 4);
      mha::rotary_in_place(x, cos, sin, pairs, positions);
    };
  };
  const std::string name = "mha::rotary_in_place: ";
  check_messages({
      {name + "cos and sin must have one shape, got 9 x 2 and 9 x 1",
       call(matrix(9, 2), matrix(9, 1), RotaryPairs::half)},
      {name + "dim must lie between 0 and head_dim, got 6 and 4",
       call(matrix(9, 3), matrix(9, 3), RotaryPairs::half)},
      {name + "pairs must be RotaryPairs::half or RotaryPairs::interleaved; there is no default, "
              "got 0",
       call(matrix(9, 2), matrix(9, 2), RotaryPairs{})},
      {name + "every position must have a row in the tables, got 2 and 2 rows",
       call(matrix(2, 2), matrix(2, 2), RotaryPairs::half)},
      {name + "every position must have a row in the tables, got 9 and 9 rows",
       call(matrix(9, 2), matrix(9, 2), RotaryPairs::half, {0, 9, 1})},
      {name + "every position must have a row in the tables, got -1 and 9 rows",
       call(matrix(9, 2), matrix(9, 2), RotaryPairs::half, {0, 1, -1})},
      {name + "positions must be none, the first, one per token (3), or one per token of each "
              "sequence (3), got 4",
       call(matrix(9, 2), matrix(9, 2), RotaryPairs::half, {0, 1, 2, 3})},
  });
}

TEST_CASE("a mistake leaves what rotary would turn as it was", "[errors][rotary]") {
  Matrix<float> x = random_matrix<float>(3, 4, 1);
  const Matrix<float> before = x;
  const Matrix<float> table = matrix(9, 2);
  CHECK_THROWS_AS(mha::rotary_in_place(x, {.pairs = RotaryPairs::half, .base = -1}),
                  std::invalid_argument);
  CHECK_THROWS_AS(mha::rotary_in_place(x, {.pairs = RotaryPairs::half}, {0, 1}),
                  std::invalid_argument);
  // The position without a row is that of the last token.
  CHECK_THROWS_AS(mha::rotary_in_place(x, table, table, RotaryPairs::half, {0, 1, 9}),
                  std::invalid_argument);
  CHECK_THAT(x, HasBitsOf(before));
}

TEST_CASE("a rotary layer's mistakes are all named before anything is computed",
          "[errors][multi_head][rotary]") {
  // Positions are numbers of any sign; nothing of the rotation is left to fail in a call.
  const MultiHead<float, 2> layer({.embed_dim = 4, .rotary = Rotary{.pairs = RotaryPairs::half}});
  CHECK_NOTHROW(layer(matrix(3, 4), MultiHeadOptions{.positions = {-5, 0, 1000000}}));
}

TEST_CASE("a mistake under an executor is thrown to the caller", "[errors][threads]") {
  mha::ThreadPool pool(2);
  const MultiHead<float, 2> layer(4);
  CHECK(message_of([&] { (void)layer(matrix(6, 5), MultiHeadOptions{.executor = pool}); }) ==
        "mha::MultiHead::forward: query.cols() must equal embed_dim, got 5 and 4");
}
