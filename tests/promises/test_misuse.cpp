// SPDX-License-Identifier: MIT
//
// Every argument of every function without the layer, wrong in every way that its type allows: a
// table of the functions, their arguments and the ways. Each call throws, says what is wrong, and
// writes nothing. What the messages say word by word: test_errors.cpp.
#include <mha/mha.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <limits>

#include "support/misuse.hpp"

using mha::AttentionOptions;
using mha::AttentionResult;
using mha::Index;
using mha::IndexList;
using mha::Matrix;
using mha::Rotary;
using mha::RotaryPairs;
using mha::ScoreStage;
using mha::Tensor;
using mha::TensorView;
using mha::Vector;
using mha::test::complaint_of;
using mha::test::refuses;
using mha::test::Sentinel;

namespace {

using Sizes = std::array<Index, 4>;
using View = TensorView<float>;
using Names = std::array<const char*, 4>;

constexpr Index kMost = mha::detail::kMaxSize;
constexpr Index kLowest = std::numeric_limits<Index>::min();
constexpr Index kHighest = std::numeric_limits<Index>::max();
constexpr Index kWrongSizes[] = {-1, kLowest, kMost + 1, 2 * kMost, kHighest / 2, kHighest};
constexpr Index kWrongStrides[] = {kLowest, kLowest / 4, kHighest / 4, kHighest};

std::string text(Index n) { return std::to_string(n); }

// The memory of all tensors of a call, side by side, and views of it.
enum Field {
  query,
  key,
  value,
  output,
  weights,
  lse,
  grad_output,
  grad_query,
  grad_key,
  grad_value,
  kFields
};
constexpr Index kBatch = 2;
constexpr Index kHeads = 4;
constexpr Index kKvHeads = 2;
constexpr Index kQueryLen = 3;
constexpr Index kKvLen = 5;
constexpr Index kHeadDim = 6;
constexpr Index kValueDim = 4;
constexpr Sizes kSizes[] = {
    {kBatch, kHeads, kQueryLen, kHeadDim},  {kBatch, kKvHeads, kKvLen, kHeadDim},
    {kBatch, kKvHeads, kKvLen, kValueDim},  {kBatch, kHeads, kQueryLen, kValueDim},
    {kBatch, kHeads, kQueryLen, kKvLen},    {kBatch, kHeads, kQueryLen, 1},
    {kBatch, kHeads, kQueryLen, kValueDim}, {kBatch, kHeads, kQueryLen, kHeadDim},
    {kBatch, kKvHeads, kKvLen, kHeadDim},   {kBatch, kKvHeads, kKvLen, kValueDim}};
constexpr std::size_t kRoom = 200;  // enough for each
constexpr Names kQueryAxes{"batch", "num_heads", "query_len", "head_dim"};
constexpr Names kKeyAxes{"batch", "kv_heads", "kv_len", "head_dim"};
constexpr Names kValueAxes{"batch", "kv_heads", "kv_len", "value_dim"};
constexpr Names kOutputAxes{"batch", "num_heads", "query_len", "value_dim"};
constexpr Names kWeightAxes{"batch", "num_heads", "query_len", "kv_len"};
constexpr Names kLseAxes{"batch", "num_heads", "query_len", "last axis"};

struct Call {
  std::array<View, kFields> views;
  IndexList lengths{kKvLen};
  AttentionOptions options{};

  explicit Call(float* memory) {
    for (std::size_t f = 0; f < kFields; ++f) views[f] = View(memory + f * kRoom, kSizes[f]);
  }
};

// A function of the table, and what its messages call its arguments.
struct Argument {
  Field field;
  const char* name;
  Names axes;
  bool written = false;
  bool may_be_null = false;
};
struct Function {
  const char* name;
  std::vector<Argument> arguments;
  std::function<void(const Call&)> call;
};

const Argument kQuery{query, "query", kQueryAxes};
const Argument kKey{key, "key", kKeyAxes};
const Argument kValue{value, "value", kValueAxes};

mha::AttentionOutputs<float> outputs_of(const Call& c) {
  return {c.views[output], c.views[weights], c.views[lse]};
}

// One type of rule for all, so that little is compiled.
const std::vector<Function>& functions() {
  static const std::vector<Function> all{
      {"attention",
       {kQuery, kKey, kValue},
       [](const Call& c) {
         (void)mha::attention(c.views[query], c.views[key], c.views[value], mha::lengths(c.lengths),
                              c.options);
       }},
      {"attention_forward",
       {kQuery, kKey, kValue},
       [](const Call& c) {
         (void)mha::attention_forward(c.views[query], c.views[key], c.views[value],
                                      mha::lengths(c.lengths), c.options);
       }},
      {"attention_partial",
       {kQuery, kKey, kValue},
       [](const Call& c) {
         (void)mha::attention_partial(c.views[query], c.views[key], c.views[value],
                                      mha::lengths(c.lengths), c.options);
       }},
      {"attention_scores",
       {kQuery, kKey},
       [](const Call& c) {
         (void)mha::attention_scores(c.views[query], c.views[key], mha::lengths(c.lengths),
                                     {.past_len = c.options.past_len, .box = c.options.box});
       }},
      {"attention_into",
       {kQuery,
        kKey,
        kValue,
        {output, "output", kOutputAxes, true},
        {weights, "weights", kWeightAxes, true, true},
        {lse, "lse", kLseAxes, true, true}},
       [](const Call& c) {
         mha::attention_into(outputs_of(c), c.views[query], c.views[key], c.views[value],
                             mha::lengths(c.lengths), c.options);
       }},
      {"attention_backward_into",
       {kQuery,
        kKey,
        kValue,
        {output, "forward.output", kOutputAxes},
        {lse, "forward.lse", kLseAxes},
        {grad_output, "grad_output", kOutputAxes},
        {grad_query, "gradients.query", kQueryAxes, true},
        {grad_key, "gradients.key", kKeyAxes, true},
        {grad_value, "gradients.value", kValueAxes, true}},
       [](const Call& c) {
         mha::attention_backward_into<float>(
             {c.views[grad_query], c.views[grad_key], c.views[grad_value]}, c.views[grad_output],
             c.views[query], c.views[key], c.views[value], outputs_of(c), mha::lengths(c.lengths),
             c.options);
       }},
      {"attention_workspace_bytes",
       {{query, "query", kQueryAxes, false, true},
        {key, "key", kKeyAxes, false, true},
        {value, "value", kValueAxes, false, true}},
       [](const Call& c) {
         (void)mha::attention_workspace_bytes(c.views[query], c.views[key], c.views[value],
                                              c.options);
       }},
  };
  return all;
}

// Calls f(function, call, argument, view) for each argument of each function, with a fresh call.
template <class F>
void for_each_argument(Sentinel<float>& memory, const F& f) {
  for (const Function& function : functions()) {
    for (const Argument& argument : function.arguments) {
      f(function, Call(memory.data()), argument);
    }
  }
}

}  // namespace

TEST_CASE("what the tables spoil is right before", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for (const Function& function : functions()) {
    CAPTURE(function.name);
    CHECK_NOTHROW(function.call(Call(memory.data())));
  }
}

TEST_CASE("sizes beyond the limits are refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for_each_argument(memory, [&](const Function& f, const Call& right, const Argument& argument) {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      for (const Index size : kWrongSizes) {
        Call wrong = right;
        wrong.views[argument.field].sizes[axis] = size;
        for (const Index stride : {Index{0}, Index{1}}) {  // 0: no memory is missing
          wrong.views[argument.field].strides[axis] = stride;
          refuses(f.name, {argument.name, argument.axes[axis], "got " + text(size)}, memory,
                  [&] { f.call(wrong); });
        }
      }
    }
  });
}

TEST_CASE("sizes that do not fit the others are refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for_each_argument(memory, [&](const Function& f, const Call& right, const Argument& argument) {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const bool free =
          (argument.field == query && axis == 2) || (argument.field == value && axis == 3);
      for (const Index step : {-1, 1, 3}) {
        Call wrong = right;
        Index& size = wrong.views[argument.field].sizes[axis];
        size += step;
        const bool has_results = f.arguments.size() > 3;
        const bool has_value = f.arguments.size() > 2;
        if (free) {  // then it is another call, and its results do not fit
          if (has_results) refuses(f.name, {text(size)}, memory, [&] { f.call(wrong); });
        } else if (argument.field == query && axis == 1) {
          if (size % kKvHeads == 0) continue;
          refuses(f.name, {"heads of key", text(size)}, memory, [&] { f.call(wrong); });
        } else if (argument.field == key && !has_value &&
                   (axis == 2 || (axis == 1 && kHeads % size == 0))) {
          continue;
        } else if (argument.field == lse && size == 0) {
          refuses(f.name, {argument.name}, memory, [&] { f.call(wrong); });
        } else {
          refuses(f.name, {"got", text(size)}, memory, [&] { f.call(wrong); });
        }
      }
    }
  });
}

TEST_CASE("a tensor without memory is refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for_each_argument(memory, [&](const Function& f, Call call, const Argument& argument) {
    call.views[argument.field].data = nullptr;
    if (argument.may_be_null) {
      CAPTURE(f.name, argument.name);
      CHECK_NOTHROW(f.call(call));
      memory.restore();
    } else if (argument.field == lse) {  // what is not asked for has no memory
      refuses(f.name, {argument.name, "need_lse = true", "[2, 4, 3, 1]"}, memory,
              [&] { f.call(call); });
    } else {
      refuses(f.name, {argument.name, ".data must not be null", "[2, "}, memory,
              [&] { f.call(call); });
    }
  });
}

TEST_CASE("strides beyond every address are refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for_each_argument(memory, [&](const Function& f, const Call& right, const Argument& argument) {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (right.views[argument.field].sizes[axis] == 1) continue;
      for (const Index stride : kWrongStrides) {
        Call wrong = right;
        wrong.views[argument.field].strides[axis] = stride;
        refuses(f.name, {argument.name, "address", text(stride)}, memory, [&] { f.call(wrong); });
      }
    }
  });
}

TEST_CASE("results that overlap anything are refused", "[misuse][overlap]") {
  Sentinel<float> memory(kFields * kRoom);
  for_each_argument(memory, [&](const Function& f, const Call& right, const Argument& result) {
    if (!result.written) return;
    for (const Argument& other : f.arguments) {
      if (other.field == result.field) continue;
      // Their first elements, the first of one and the last of the other, ...
      for (const Index shift : {0, 1, 5, 7}) {
        Call wrong = right;
        View& view = wrong.views[result.field];
        view.data = wrong.views[other.field].data + shift;
        refuses(f.name, {result.name, other.name, "must not overlap"}, memory,
                [&] { f.call(wrong); });
      }
    }
    // Two elements in one place.
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (right.views[result.field].sizes[axis] == 1) continue;
      for (const Index stride : {0, 1}) {
        Call wrong = right;
        Index& step = wrong.views[result.field].strides[axis];
        if (step == stride) continue;
        step = stride;
        refuses(f.name, {result.name, "place of its own", "strides"}, memory,
                [&] { f.call(wrong); });
      }
    }
  });
}

TEST_CASE("options and rules that do not fit are refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  for (const Function& f : functions()) {
    const Call right(memory.data());
    for (const Index past_len : {Index{-1}, kKvLen + 1, kLowest, kHighest}) {
      Call wrong = right;
      wrong.options.past_len = past_len;
      refuses(f.name, {"past_len", text(past_len), text(kKvLen)}, memory, [&] { f.call(wrong); });
    }
    if (std::string(f.name) == "attention_workspace_bytes") continue;  // it has no rule
    for (const Index length : {kKvLen + 1, kHighest}) {  // lengths() refuses negative ones
      Call wrong = right;
      wrong.lengths = {kKvLen, length};
      refuses(f.name, {"lengths", text(length), text(kKvLen)}, memory, [&] { f.call(wrong); });
    }
    Call wrong = right;
    wrong.lengths = {1, 2, 3};
    refuses(f.name, {"lengths", "got 3", "batch of 2"}, memory, [&] { f.call(wrong); });
  }
}

TEST_CASE("a box that cannot lie where it says is refused", "[misuse][box]") {
  Sentinel<float> memory(kFields * kRoom);
  struct Axis {
    const char* first_name;
    const char* whole_name;
    Index mha::Box::*first;
    Index mha::Box::*whole;
    Index size;
  };
  const Axis axes[] = {
      {"box.first_batch", "box.batch", &mha::Box::first_batch, &mha::Box::batch, kBatch},
      {"box.first_head", "box.num_heads", &mha::Box::first_head, &mha::Box::num_heads, kHeads},
      {"box.first_query", "box.query_len", &mha::Box::first_query, &mha::Box::query_len, kQueryLen},
      {"box.first_key", "box.kv_len", &mha::Box::first_key, &mha::Box::kv_len, kKvLen}};
  for (const Function& f : functions()) {
    const auto with = [&](const mha::Box& box) {
      Call wrong(memory.data());
      wrong.options.box = box;
      return [&f, wrong] { f.call(wrong); };
    };
    for (const Axis& axis : axes) {
      for (const Index first : {Index{-1}, kLowest, kMost - axis.size + 1, kMost, kHighest}) {
        mha::Box box;
        box.*axis.first = first;
        refuses(f.name, {axis.first_name, "got " + text(first)}, memory, with(box));
      }
      for (const Index whole : {Index{-1}, kLowest, axis.size - 1, kMost + 1, kHighest}) {
        mha::Box box;
        box.*axis.whole = whole;
        refuses(f.name, {axis.whole_name, "got " + text(whole)}, memory, with(box));
      }
    }
    refuses(f.name, {"box.first_key must be a multiple of 1024, got 1000"}, memory,
            with({.first_key = 1000}));
  }
}

TEST_CASE("products of sizes do not overflow", "[misuse]") {
  // Each size is within its limit, and no memory is needed.
  float one = 1;
  const auto repeated = [&](const Sizes& sizes) { return View(&one, sizes, {0, 0, 0, 0}); };
  const View few = repeated({1, 1, 1, 1});
  SECTION("rows") {
    const View q = repeated({kMost, kMost, kMost, 0});
    const View k = repeated({kMost, kMost, 1, 0});
    refuses("attention", {"batch * num_heads * query_len", text(kMost)},
            [&] { (void)mha::attention(q, k, k, mha::lengths(1)); });
    refuses("attention_workspace_bytes", {"batch * num_heads * query_len", text(kMost)},
            [&] { (void)mha::attention_workspace_bytes(q, k, k); });
  }
  SECTION("elements of the results") {
    const View q = repeated({1, 1, kMost, 1});
    const View k = repeated({1, 1, kMost, 1});
    const View v = repeated({1, 1, kMost, kMost});
    refuses("attention", {"output", text(kMost)}, [&] {
      (void)mha::attention(repeated({2, 1, kMost, 1}), repeated({2, 1, 1, 1}),
                           repeated({2, 1, 1, kMost}), mha::lengths(1));
    });
    refuses("attention_forward", {"weights", text(kMost)}, [&] {
      (void)mha::attention_forward(q, k, k, mha::lengths(1), {.need_weights = true});
    });
    refuses("attention_scores", {"the result", text(kMost)},
            [&] { (void)mha::attention_scores(q, k, mha::lengths(1)); });
    refuses("attention_partial", {"a part's state", text(kMost)}, [&] {
      (void)mha::attention_partial(repeated({2, 1, kMost, 1}), repeated({2, 1, 1, 1}),
                                   repeated({2, 1, 1, kMost}), mha::lengths(1));
    });
    CHECK(mha::attention_workspace_bytes(q, k, v) > 0);  // kMost itself is no mistake
  }
  SECTION("memory for many workers") {
    struct Crowd {
      Index workers;
      Index num_threads() const { return workers; }
      void parallel_for(Index, const mha::TaskFunction&) {}
    };
    for (const Index workers : {kHighest, kLowest, Index{0}}) {
      Crowd crowd{workers};
      const mha::Executor executor(crowd);
      CHECK(executor.concurrency() >= 1);
      const View v = repeated({1, 1, kMost, kMost});
      CHECK(mha::attention_workspace_bytes(few, repeated({1, 1, kMost, 1}), v,
                                           {.executor = crowd}) > 0);
    }
    mha::ThreadPool pool(2);
    const View large = repeated({1, 1, kMost, kMost});
    View gradient = large;
    gradient.strides = {0, 0, kMost, 1};
    const View wide = repeated({1, 1, 1, kMost});
    refuses("attention_backward_into", {"must fit in memory", text(kMost), "2 workers"}, [&] {
      mha::attention_backward_into<float>({wide, gradient, gradient}, wide, wide, large, large,
                                          {.output = wide, .lse = few}, mha::lengths(1),
                                          {.executor = pool});
    });
  }
}

TEST_CASE("tensors and views are refused if their sizes or strides overflow", "[misuse]") {
  float one = 0;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    for (const Index size : {Index{-1}, kLowest, kHighest}) {
      Sizes sizes{4, 1, 2, 2};
      sizes[axis] = size;
      refuses("Tensor", {"sizes", text(size)}, [&] { Tensor<float> t(sizes); });
      refuses("TensorView", {"sizes", text(size)}, [&] { View t(&one, sizes); });
      if (size < 0) {
        refuses("TensorView", {"sizes", text(size), "strides"}, [&] {
          View t(&one, sizes, {0, 0, 0, 0});
        });
      }
    }
    for (const Index stride : kWrongStrides) {
      Sizes strides{1, 1, 1, 1};
      strides[axis] = stride;
      refuses("TensorView", {"sizes", "strides", text(stride)}, [&] {
        View t(&one, {2, 2, 2, 2}, strides);
      });
    }
  }
  refuses("Tensor", {"4611686018427387904"}, [] { Tensor<float> t({Index{1} << 62, 4, 1, 1}); });
  refuses("Tensor", {"1073741824"}, [] { Tensor<float> t({kMost, kMost, kMost, 1}); });
  // Places that fit as floats, but not as doubles.
  CHECK_NOTHROW(View(&one, {2, 1, 1, 1}, {kHighest / 17, 0, 0, 0}));
  refuses("TensorView", {"strides"}, [] {
    double wide = 0;
    TensorView<double> t(&wide, {2, 1, 1, 1}, {kHighest / 17, 0, 0, 0});
  });
}

namespace {

using Strided = Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
Strided strided(float* data, Index rows, Index cols, Index row_stride) {
  return {data, rows, cols, {row_stride, 1}};
}
// Each row is the same.
Strided repeated(float* data, Index rows, Index cols) { return strided(data, rows, cols, 0); }
Strided matrix(float* data, Index rows, Index cols) { return strided(data, rows, cols, cols); }

}  // namespace

TEST_CASE("heads are refused if they cannot be split", "[misuse]") {
  float one = 0;
  for (const Index wrong : {Index{-1}, Index{0}, Index{4}, kLowest, kHighest}) {
    refuses("split_heads", {"num_heads", text(wrong), " and 6"},
            [&] { (void)mha::split_heads(repeated(&one, 4, 6), wrong); });
  }
  for (const Index wrong : {Index{-1}, Index{0}, Index{3}, kLowest, kHighest}) {
    refuses("split_heads", {"batch", text(wrong), " and 4"},
            [&] { (void)mha::split_heads(repeated(&one, 4, 6), 2, wrong); });
  }
  for (const Index stride : kWrongStrides) {
    if (stride == kLowest) continue;  // Eigen itself negates it
    refuses("split_heads", {"address", "4 x 6", text(stride)},
            [&] { (void)mha::split_heads(strided(&one, 4, 6, stride), 2); });
  }
}

TEST_CASE("matrices that do not fit are refused", "[misuse]") {
  Sentinel<float> memory(400);
  float* const m = memory.data();
  const auto rule = mha::lengths(1);
  struct Functions {
    const char* name;
    std::function<void(const Strided&, const Strided&, const Strided&, const AttentionOptions&)> f;
  };
  mha::HeadResult<float> forward;
  forward.output = Matrix<float>::Ones(3, 4);
  forward.lse = Vector<float>::Ones(3);
  const Matrix<float> grad_output = Matrix<float>::Ones(3, 4);
  const std::vector<Functions> all{
      {"scaled_dot_product_attention",
       [&](const auto& q, const auto& k, const auto& v, const auto& options) {
         (void)mha::scaled_dot_product_attention(q, k, v, rule, options);
       }},
      {"scaled_dot_product_attention_forward",
       [&](const auto& q, const auto& k, const auto& v, const auto& options) {
         (void)mha::scaled_dot_product_attention_forward(q, k, v, rule, options);
       }},
      {"scaled_dot_product_attention_backward",
       [&](const auto& q, const auto& k, const auto& v, const auto& options) {
         (void)mha::scaled_dot_product_attention_backward(grad_output, q, k, v, forward, rule,
                                                          options);
       }}};
  for (const Functions& entry : all) {
    const auto call = [&](const Strided& q, const Strided& k, const Strided& v,
                          const AttentionOptions& options = {}) {
      return [&entry, q, k, v, options] { entry.f(q, k, v, options); };
    };
    const auto refused = [&](const std::vector<std::string>& parts, const auto& f) {
      refuses(entry.name, parts, memory, f);
    };
    const Strided q = matrix(m, 3, 6);
    const Strided k = matrix(m + 50, 5, 6);
    const Strided v = matrix(m + 100, 5, 4);
    CHECK_NOTHROW(call(q, k, v)());
    refused({"head_dim", "7 and 6"}, call(q, matrix(m, 5, 7), v));
    refused({"kv_len", "4 and 5"}, call(q, k, matrix(m, 4, 4)));
    refused({"query.data must not be null"}, call(matrix(nullptr, 3, 6), k, v));
    refused({"key.data must not be null"}, call(q, matrix(nullptr, 5, 6), v));
    refused({"value.data must not be null"}, call(q, k, matrix(nullptr, 5, 4)));
    refused({"query", "query_len", text(kMost + 1)}, call(repeated(m, kMost + 1, 6), k, v));
    refused({"key", "kv_len", text(2 * kMost)},
            call(q, repeated(m, 2 * kMost, 6), repeated(m, 2 * kMost, 4)));
    refused({"value", "kv_len", text(2 * kMost)}, call(q, k, repeated(m, 2 * kMost, 4)));
    refused({"query", "head_dim", text(kHighest / 2)},
            call({m, 3, kHighest / 2, {0, 0}}, {m, 5, kHighest / 2, {0, 0}}, v));
    refused({"query", "address", text(kHighest)}, call(strided(m, 3, 6, kHighest), k, v));
    refused({"past_len", "6 and 5"}, call(q, k, v, {.past_len = 6}));
  }
  const Strided q = matrix(m, 3, 6);
  const Strided k = matrix(m + 50, 5, 6);
  const Strided v = matrix(m + 100, 5, 4);
  const auto backward = [&](const Matrix<float>& grad, const Matrix<float>& out,
                            const Vector<float>& sums) {
    return [&, grad, out, sums] {
      mha::HeadResult<float> result;
      result.output = out;
      result.lse = sums;
      (void)mha::scaled_dot_product_attention_backward(grad, q, k, v, result, rule);
    };
  };
  const char* const name = "scaled_dot_product_attention_backward";
  const Matrix<float>& out = forward.output;
  refuses(name, {"grad_output", "size 4 along value_dim", "got 5"},
          backward(Matrix<float>(3, 5), out, forward.lse));
  refuses(name, {"grad_output", "size 3 along query_len", "got 0"},
          backward(Matrix<float>(), out, forward.lse));
  refuses(name, {"forward.output", "size 3 along query_len", "got 2"},
          backward(grad_output, Matrix<float>(2, 4), forward.lse));
  refuses(name, {"forward.output", "got 0"}, backward(grad_output, Matrix<float>(), forward.lse));
  refuses(name, {"forward.lse", "need_lse = true", "[1, 1, 3, 1]"},
          backward(grad_output, out, Vector<float>()));
  refuses(name, {"forward.lse", "size 3 along query_len", "got 4"},
          backward(grad_output, out, Vector<float>(4)));
}

TEST_CASE("a forward pass that does not fit is refused", "[misuse]") {
  Sentinel<float> memory(kFields * kRoom);
  const Call c(memory.data());
  const auto call = [&](const Sizes& out, const Sizes& sums) {
    return [&c, out, sums] {
      AttentionResult<float> forward;
      forward.output = Tensor<float>(out);
      forward.lse = Tensor<float>(sums);
      (void)mha::attention_backward(c.views[grad_output], c.views[query], c.views[key],
                                    c.views[value], forward, mha::lengths(kKvLen));
    };
  };
  CHECK_NOTHROW(call(kSizes[output], kSizes[lse])());
  refuses("attention_backward", {"forward.lse", "need_lse = true", "[2, 4, 3, 1]"},
          call(kSizes[output], {0, 0, 0, 0}));
  refuses("attention_backward", {"forward.output", "size 2 along batch, got 0"},
          call({0, 0, 0, 0}, kSizes[lse]));
  for (std::size_t axis = 0; axis < 4; ++axis) {
    Sizes wrong = kSizes[output];
    ++wrong[axis];
    refuses("attention_backward", {"forward.output", kOutputAxes[axis], text(wrong[axis])},
            call(wrong, kSizes[lse]));
    wrong = kSizes[lse];
    ++wrong[axis];
    refuses("attention_backward", {"forward.lse", kLseAxes[axis], text(wrong[axis])},
            call(kSizes[output], wrong));
  }
}

TEST_CASE("parts that do not fit are not merged", "[misuse]") {
  SECTION("matrices") {
    Sentinel<float> memory(100);
    float* const m = memory.data();
    const auto call = [](const Strided& o1, const Strided& l1, const Strided& o2,
                         const Strided& l2) { return [=] { (void)mha::merge(o1, l1, o2, l2); }; };
    const Strided o = matrix(m, 3, 4);
    const Strided l = matrix(m, 3, 1);
    CHECK_NOTHROW(call(o, l, o, l)());
    refuses("merge", {"query_len", "3 and 2"}, memory, call(o, l, matrix(m, 2, 4), l));
    refuses("merge", {"value_dim", "4 and 5"}, memory, call(o, l, matrix(m, 3, 5), l));
    refuses("merge", {"vectors", "3 x 2"}, memory, call(o, matrix(m, 3, 2), o, l));
    refuses("merge", {"vectors", "3 x 2"}, memory, call(o, l, o, matrix(m, 3, 2)));
    refuses("merge", {"entries", "2, 3 and 3"}, memory, call(o, matrix(m, 2, 1), o, l));
    refuses("merge", {"entries", "3, 4 and 3"}, memory, call(o, l, o, matrix(m, 1, 4)));
    refuses("merge", {"output1.data"}, memory, call(matrix(nullptr, 3, 4), l, o, l));
    refuses("merge", {"lse1.data"}, memory, call(o, matrix(nullptr, 3, 1), o, l));
    refuses("merge", {"output2.data"}, memory, call(o, l, matrix(nullptr, 3, 4), l));
    refuses("merge", {"lse2.data"}, memory, call(o, l, o, matrix(nullptr, 3, 1)));
    const Strided many = repeated(m, 2 * kMost, 4);
    const Strided sums = repeated(m, 2 * kMost, 1);
    refuses("merge", {"output1", "query_len", text(2 * kMost)}, memory,
            call(many, sums, many, sums));
    const Strided large{m, kMost, kMost, {0, 0}};
    const Strided all = repeated(m, kMost, 1);
    refuses("merge", {"the result", text(kMost)}, memory, call(large, all, large, all));
  }
  SECTION("results") {
    const auto call = [](const Sizes& o1, const Sizes& l1, const Sizes& o2, const Sizes& l2) {
      return [=] {
        AttentionResult<float> part1{Tensor<float>(o1), {}, Tensor<float>(l1)};
        AttentionResult<float> part2{Tensor<float>(o2), {}, Tensor<float>(l2)};
        (void)mha::merge(part1, part2);
      };
    };
    const Sizes o{2, 4, 3, 5};
    const Sizes l{2, 4, 3, 1};
    const Sizes none{0, 0, 0, 0};
    CHECK_NOTHROW(call(o, l, o, l)());
    refuses("merge", {"part1.lse", "need_lse = true"}, call(o, none, o, l));
    refuses("merge", {"part2.lse", "need_lse = true"}, call(o, l, o, none));
    refuses("merge", {"part2.output", "size 2 along batch, got 0"}, call(o, l, none, l));
    for (std::size_t axis = 0; axis < 4; ++axis) {
      Sizes wrong = o;
      ++wrong[axis];
      refuses("merge", {"part2.output", kOutputAxes[axis], text(wrong[axis])},
              call(o, l, wrong, l));
      wrong = l;
      ++wrong[axis];
      refuses("merge", {"part1.lse", kLseAxes[axis], text(wrong[axis])}, call(o, wrong, o, l));
      refuses("merge", {"part2.lse", kLseAxes[axis], text(wrong[axis])}, call(o, l, o, wrong));
    }
  }
}

TEST_CASE("what cannot be rotated is refused", "[misuse][rotary]") {
  Sentinel<float> memory(400);
  const View right(memory.data(), {2, 2, 3, 6});
  const Rotary how{.pairs = RotaryPairs::half};
  const Matrix<float> table = Matrix<float>::Ones(9, 3);
  // Both functions refuse what is wrong with the tokens.
  const auto both = [&](const std::vector<std::string>& parts, const View& x,
                        const IndexList& positions = {}) {
    refuses("rotary_in_place", parts, memory, [&] { mha::rotary_in_place(x, how, positions); });
    refuses("rotary_in_place", parts, memory,
            [&] { mha::rotary_in_place(x, table, table, RotaryPairs::half, positions); });
  };
  const Names axes{"batch", "num_heads", "seq_len", "head_dim"};
  for (std::size_t axis = 0; axis < 4; ++axis) {
    View wrong = right;
    for (const Index size : kWrongSizes) {
      wrong = right;
      wrong.sizes[axis] = size;
      wrong.strides[axis] = 0;
      both({"x must have between 0", axes[axis], text(size)}, wrong);
    }
    for (const Index stride : kWrongStrides) {
      wrong = right;
      wrong.strides[axis] = stride;
      both({"address", text(stride)}, wrong);
    }
    wrong = right;
    wrong.strides[axis] = 0;
    both({"place of its own", "strides"}, wrong);
  }
  View nothing = right;
  nothing.data = nullptr;
  both({"x.data must not be null", "[2, 2, 3, 6]"}, nothing);
  both({"positions", "(3)", "(6)", "got 2"}, right, {0, 1});
  both({"positions", "(3)", "(6)", "got 12"}, right, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const auto refused = [&](const std::vector<std::string>& parts, const Rotary& wrong) {
    refuses("rotary_in_place", parts, memory, [&] { mha::rotary_in_place(right, wrong); });
    refuses("rotary", parts, [&] { (void)mha::rotary(Matrix<float>::Ones(3, 6), wrong); });
  };
  refused({"pairs", "got 0"}, {});
  refused({"pairs", "got 7"}, {.pairs = static_cast<RotaryPairs>(7)});
  for (const Index dim : {Index{-2}, Index{8}, kLowest, kHighest}) {
    refused({"dim", text(dim), "6"}, {.pairs = RotaryPairs::half, .dim = dim});
  }
  refused({"dim must be even", "got 3"}, {.pairs = RotaryPairs::half, .dim = 3});
  refused({"base", "got -0.5"}, {.pairs = RotaryPairs::half, .base = -0.5});
  refused({"base", "got 0"}, {.pairs = RotaryPairs::half, .base = 0});
  refused({"base", "got inf"},
          {.pairs = RotaryPairs::half, .base = std::numeric_limits<double>::infinity()});
  refused({"base", "nan"},
          {.pairs = RotaryPairs::half, .base = std::numeric_limits<double>::quiet_NaN()});
  refuses("rotary", {"x.data must not be null"},
          [&] { (void)mha::rotary(matrix(nullptr, 3, 6), how); });
  refuses("rotary", {"seq_len", text(2 * kMost)},
          [&] { (void)mha::rotary(repeated(memory.data(), 2 * kMost, 6), how); });

  const auto tables = [&](const Strided& cos, const Strided& sin,
                          RotaryPairs pairs = RotaryPairs::half, const IndexList& positions = {}) {
    return [&right, cos, sin, pairs, positions] {
      mha::rotary_in_place(right, cos, sin, pairs, positions);
    };
  };
  Sentinel<float> other(100);
  const Strided t = matrix(other.data(), 9, 3);
  const char* const name = "rotary_in_place";
  refuses(name, {"one shape", "9 x 3", "9 x 2"}, memory, tables(t, matrix(other.data(), 9, 2)));
  refuses(name, {"one shape", "9 x 3", "8 x 3"}, memory, tables(t, matrix(other.data(), 8, 3)));
  refuses(name, {"cos.data must not be null"}, memory, tables(matrix(nullptr, 9, 3), t));
  refuses(name, {"sin.data must not be null"}, memory, tables(t, matrix(nullptr, 9, 3)));
  refuses(name, {"dim", "8", "6"}, memory,
          tables(matrix(other.data(), 9, 4), matrix(other.data(), 9, 4)));
  refuses(name, {"pairs", "got 0"}, memory, tables(t, t, RotaryPairs{}));
  refuses(name, {"must not overlap cos"}, memory, tables(matrix(memory.data() + 3, 9, 3), t));
  refuses(name, {"must not overlap sin"}, memory, tables(t, matrix(memory.data() + 3, 9, 3)));
  const Strided many = repeated(other.data(), 2 * kMost, 3);
  refuses(name, {"cos", text(2 * kMost)}, memory, tables(many, many));
  for (const Index position : {Index{9}, Index{-1}, kLowest, kHighest}) {
    refuses(name, {"position", text(position), "9 rows"}, memory,
            tables(t, t, RotaryPairs::half, {Index{0}, Index{1}, position}));
  }
}

TEST_CASE("a gradient that cannot be checked is refused", "[misuse]") {
  Sentinel<float> memory(20);
  float* const m = memory.data();
  float gradients[20] = {};
  const auto call = [&](
                        const Strided& x, const Strided& gradient, double step = 0,
                        const std::function<float()>& loss = [] { return 1.0F; }) {
    return [=] {
      Strided moved(x);
      (void)mha::gradient_check(moved, gradient, loss, step);
    };
  };
  const auto refused = [&](const std::vector<std::string>& parts, const auto& f) {
    refuses("gradient_check", parts, memory, f);
  };
  const Strided g = matrix(gradients, 3, 2);
  CHECK_NOTHROW(call(matrix(m, 3, 2), g)());
  refused({"3 x 2", "2 x 2"}, call(matrix(m, 3, 2), matrix(gradients, 2, 2)));
  refused({"x.data must not be null"}, call(matrix(nullptr, 3, 2), g));
  refused({"gradient.data must not be null"}, call(matrix(m, 3, 2), matrix(nullptr, 3, 2)));
  refused({"place of its own"}, call(repeated(m, 3, 2), g));
  refused({"x", "rows", text(2 * kMost)},
          call(repeated(m, 2 * kMost, 2), repeated(gradients, 2 * kMost, 2)));
  refused({"step", "got -0.25"}, call(matrix(m, 3, 2), g, -0.25));
  refused({"step", "got inf"}, call(matrix(m, 3, 2), g, std::numeric_limits<double>::infinity()));
  refused({"step", "nan"}, call(matrix(m, 3, 2), g, std::numeric_limits<double>::quiet_NaN()));
  refused({"loss"}, call(matrix(m, 3, 2), g, 0, nullptr));
  // Steps that leave an entry where it is, or take it beyond all numbers; a loss that throws.
  refused({"step must move x(0, 0) = -8", "got 1e-20"}, call(matrix(m, 3, 2), g, 1e-20));
  refused({"step must move x(0, 0) = -8", "got 1e+308"}, call(matrix(m, 3, 2), g, 1e308));
  refused({"in the loss"}, call(matrix(m, 3, 2), g, 0, []() -> float {
            throw std::invalid_argument("mha::gradient_check: in the loss");
          }));
}

TEST_CASE("threads, workspaces, targets and stages that cannot be are refused", "[misuse]") {
  for (const Index n : {Index{0}, Index{-1}, Index{5000}, kLowest, kHighest}) {
    refuses("ThreadPool", {"num_threads", "4096", text(n)}, [&] { mha::ThreadPool pool(n); });
  }
  mha::ThreadPool pool(2);
  for (const Index count : {Index{-1}, kLowest}) {
    const auto nothing = [](Index) {};
    refuses("ThreadPool::parallel_for", {"count", text(count)},
            [&] { pool.parallel_for(count, nothing); });
    refuses("Executor::parallel_for", {"count", text(count)},
            [&] { mha::Executor(pool).parallel_for(count, nothing); });
    refuses("Executor::parallel_for", {"count", text(count)},
            [&] { mha::Executor().parallel_for(count, nothing); });
  }
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  refuses("Workspace", {"bytes", std::to_string(most)}, [&] { mha::Workspace workspace(most); });
  mha::Workspace workspace(100);
  refuses("Workspace", {"bytes", std::to_string(most / 2)}, [&] { workspace.reserve(most / 2); });
  CHECK(workspace.size() == 100);
  const mha::kernels::Target before = mha::kernels::target();
  refuses("kernels::use_target", {"available", "got 77"},
          [] { mha::kernels::use_target(static_cast<mha::kernels::Target>(77)); });
  const bool is_generic = mha::kernels::is_available(mha::kernels::Target::generic);
  const auto absent = is_generic ? mha::kernels::Target::avx2 : mha::kernels::Target::generic;
  refuses("kernels::use_target", {"available", mha::kernels::name(absent)},
          [&] { mha::kernels::use_target(absent); });
  CHECK(mha::kernels::target() == before);
  const Matrix<float> x = Matrix<float>::Ones(2, 2);
  refuses("attention_scores", {"stage", "got 9"},
          [&] { (void)mha::attention_scores(x, x, {.stage = static_cast<ScoreStage>(9)}); });
}
