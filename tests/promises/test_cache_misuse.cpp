// SPDX-License-Identifier: MIT
//
// Every argument of every function of caches, and of the layers over them, wrong in every way that its type allows:
// tables of functions, arguments and ways. Each call throws, says what is wrong, and changes no cache and no output.
// Without caches: test_misuse.cpp and test_layer_misuse.cpp.
#include <mha/mha.hpp>

#include <functional>
#include <limits>

#include "support/matrices.hpp"
#include "support/misuse.hpp"

using mha::AttentionOptions;
using mha::Index;
using mha::IndexList;
using mha::KvCache;
using mha::KvCacheConfig;
using mha::KvLayer;
using mha::KvPool;
using mha::KvPoolConfig;
using mha::KvSequence;
using mha::Matrix;
using mha::MultiHeadOptions;
using mha::Storage;
using mha::TensorView;
using mha::test::refuses;
using mha::test::Sentinel;

namespace {

constexpr Index kMost = mha::detail::kMaxSize;
constexpr Index kLowest = std::numeric_limits<Index>::min();
constexpr Index kHighest = std::numeric_limits<Index>::max();
constexpr Index kWrongSizes[] = {-1, kLowest, kMost + 1, 2 * kMost, kHighest};
constexpr Index kWrongStrides[] = {kLowest, kLowest / 4, kHighest / 4, kHighest};
constexpr Index kHeads = 4;
constexpr Index kKvHeads = 2;
constexpr Index kHeadDim = 6;
constexpr Index kValueDim = 4;
constexpr Index kEmbed = 24;
constexpr Index kKeys = 20;  // in each sequence at first
constexpr Index kTokens = 3;

std::string text(Index n) { return std::to_string(n); }

// Two sequences of two layers with some keys each, and an output: what a refused call must leave alone.
struct World {
  KvPool pool{{.layers = 2,
               .kv_heads = kKvHeads,
               .head_dim = kHeadDim,
               .value_dim = kValueDim,
               .pages = 8}};
  KvSequence s = pool.sequence();
  KvSequence t = pool.sequence();
  mha::Tensor<float> key{{1, kKvHeads, kKeys, kHeadDim}};
  mha::Tensor<float> value{{1, kKvHeads, kKeys, kValueDim}};
  Sentinel<float> memory{4000};

  World() {
    for (Index layer = 0; layer < 2; ++layer) {
      s.layer(layer).append(key, value);
      t.layer(layer).append(key, value);
    }
  }
  bool is_untouched() const {
    return memory.is_untouched() && s.size() == kKeys && t.size() == kKeys &&
           s.layer(0).size() == kKeys && t.layer(0).size() == kKeys && pool.free_pages() == 6;
  }
  void restore() { memory.restore(); }
};

// A tensor argument, wrong along each axis and in its memory. call(view) makes the call.
void spoil_tensor(const std::string& function, const char* name, const TensorView<float>& right,
                  World& world, const std::function<void(const TensorView<float>&)>& call) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    for (const Index size : kWrongSizes) {
      TensorView<float> wrong = right;
      wrong.sizes[axis] = size;
      wrong.strides[axis] = 0;  // no memory is missing
      refuses(function, {name, "got " + text(size)}, world, [&] { call(wrong); });
    }
    if (right.sizes[axis] == 1) continue;
    for (const Index stride : kWrongStrides) {
      TensorView<float> wrong = right;
      wrong.strides[axis] = stride;
      refuses(function, {name, "address", text(stride)}, world, [&] { call(wrong); });
    }
  }
  TensorView<float> none = right;
  none.data = nullptr;
  refuses(function, {name, ".data must not be null"}, world, [&] { call(none); });
}

}  // namespace

TEST_CASE("a pool or a cache of impossible sizes is refused", "[misuse][cache]") {
  const auto spoil = [](const char* function, auto right, auto make, const auto& fields) {
    for (const auto& [name, field] : fields) {
      for (const Index size : kWrongSizes) {
        auto wrong = right;
        wrong.*field = size;
        refuses(function, {name, "must lie between 1 and", "got " + text(size)},
                [&] { make(wrong); });
      }
      if (std::string(name) == "value_dim") continue;  // 0 = head_dim
      auto wrong = right;
      wrong.*field = 0;
      refuses(function, {name, "got 0"}, [&] { make(wrong); });
    }
    for (const int storage : {-1, 4, 99}) {
      auto wrong = right;
      wrong.storage = static_cast<Storage>(storage);
      refuses(function, {"storage must be one of Storage's, got " + text(storage)},
              [&] { make(wrong); });
    }
  };
  using PoolField = std::pair<const char*, Index KvPoolConfig::*>;
  spoil(
      "KvPool", KvPoolConfig{.layers = 1, .kv_heads = 1, .head_dim = 2, .pages = 1},
      [](const KvPoolConfig& c) { KvPool pool(c); },
      std::vector<PoolField>{{"layers", &KvPoolConfig::layers},
                             {"kv_heads", &KvPoolConfig::kv_heads},
                             {"head_dim", &KvPoolConfig::head_dim},
                             {"value_dim", &KvPoolConfig::value_dim},
                             {"pages", &KvPoolConfig::pages}});
  using CacheField = std::pair<const char*, Index KvCacheConfig::*>;
  spoil(
      "KvCache", KvCacheConfig{.kv_heads = 1, .head_dim = 2, .capacity = 3},
      [](const KvCacheConfig& c) { KvCache cache(c); },
      std::vector<CacheField>{{"kv_heads", &KvCacheConfig::kv_heads},
                              {"head_dim", &KvCacheConfig::head_dim},
                              {"value_dim", &KvCacheConfig::value_dim},
                              {"capacity", &KvCacheConfig::capacity}});
  refuses("KvPool", {"2^60 bytes", text(kMost)},
          [] { KvPool pool({.kv_heads = kMost, .head_dim = kMost, .pages = kMost}); });
  World world;
  for (const Index n : kWrongSizes) {
    refuses("KvPool::sequence", {"window_keys", "got " + text(n)}, world,
            [&] { (void)world.pool.sequence({.window_keys = n}); });
    refuses("KvPool::sequence", {"first_keys", "got " + text(n)}, world,
            [&] { (void)world.pool.sequence({.window_keys = 4, .first_keys = n}); });
  }
}

TEST_CASE("a sequence refuses numbers that are none of its own", "[misuse][cache]") {
  World world;
  for (const Index n : {Index{-1}, kLowest, Index{2}, kHighest}) {
    refuses("KvSequence::layer", {"between 0 and 1", "got " + text(n)}, world,
            [&] { (void)world.s.layer(n); });
  }
  for (const Index n : kWrongSizes) {
    refuses("KvSequence::reserve", {"keys", "got " + text(n)}, world, [&] { world.s.reserve(n); });
  }
  for (const Index n : {Index{-1}, kLowest, kKeys + 1, kHighest}) {
    refuses("KvSequence::truncate", {"between 0 and 20", "got " + text(n)}, world,
            [&] { world.s.truncate(n); });
  }
  using Rows = std::vector<Index>;
  for (const Rows& rows : {Rows{-1}, Rows{kKeys}, Rows{kLowest}, Rows{kHighest}, Rows{0, kKeys}}) {
    refuses("KvSequence::accept", {"one of the 20 of the last call", text(rows.back())}, world,
            [&] { world.s.accept(rows); });
  }
  for (const Rows& rows : {Rows{1, 0}, Rows{2, 2}}) {
    refuses("KvSequence::accept", {"rows must rise"}, world, [&] { world.s.accept(rows); });
  }
  // In the midst of a step.
  KvSequence half = world.pool.sequence();
  half.layer(0).append(world.key, world.value);
  for (const Rows& rows : {Rows{}, Rows{0}}) {
    refuses("KvSequence::accept", {"every layer must have had the last call, got 0 keys", "and 20"},
            [&] { half.accept(rows); });
  }
  CHECK(half.layer(0).size() == kKeys);
}

TEST_CASE("keys and values that do not fit a cache are refused", "[misuse][cache]") {
  World world;
  KvCache cache(
      {.kv_heads = kKvHeads, .head_dim = kHeadDim, .value_dim = kValueDim, .capacity = 40});
  const TensorView<float> key(world.memory.data(), {1, kKvHeads, kTokens, kHeadDim});
  const TensorView<float> value(world.memory.data(), {1, kKvHeads, kTokens, kValueDim});
  using Append = std::function<void(const TensorView<float>&, const TensorView<float>&)>;
  const std::pair<std::string, Append> functions[] = {
      {"KvLayer::append", [&](const auto& k, const auto& v) { world.s.layer(1).append(k, v); }},
      {"KvCache::append", [&](const auto& k, const auto& v) { cache.append(k, v); }}};
  for (const auto& [name, append] : functions) {
    spoil_tensor(name, "key", key, world, [&](const auto& k) { append(k, value); });
    spoil_tensor(name, "value", value, world, [&](const auto& v) { append(key, v); });
    for (std::size_t axis = 0; axis < 4; ++axis) {
      for (const Index step : {-1, 1}) {
        TensorView<float> wrong = value;
        wrong.sizes[axis] += step;
        refuses(name, {"value must be [1, 2, 3, 4]", text(wrong.sizes[axis])}, world,
                [&] { append(key, wrong); });
        if (axis == 2) continue;  // as many tokens as the value is to have
        wrong = key;
        wrong.sizes[axis] += step;
        refuses(name, {"key must be [1, 2, 3, 6]", text(wrong.sizes[axis])}, world,
                [&] { append(wrong, value); });
      }
    }
  }
  CHECK(cache.size() == 0);
  refuses("KvCache::truncate", {"got 1"}, [&] { cache.truncate(1); });
  refuses("KvCache::accept", {"got 0"}, [&] { cache.accept({0}); });
}

TEST_CASE("attention over a cache refuses what does not fit", "[misuse][cache]") {
  World world;
  float* const memory = world.memory.data();
  const TensorView<float> query(memory, {1, kHeads, kTokens, kHeadDim});
  const mha::AttentionOutputs<float> outputs{
      .output = {memory + 400, {1, kHeads, kTokens, kValueDim}},
      .weights = {memory + 500, {1, kHeads, kTokens, kKeys}},
      .lse = {memory + 800, {1, kHeads, kTokens, 1}}};
  const auto keys = [&] { return world.s.layer(0).keys(); };
  struct Function {
    std::string name;
    std::function<void(const TensorView<float>&, const AttentionOptions&)> call;
  };
  const Function functions[] = {
      {"attention",
       [&](const auto& q, const auto& o) { (void)mha::attention(q, keys(), mha::all(), o); }},
      {"attention_forward",
       [&](const auto& q, const auto& o) {
         (void)mha::attention_forward(q, keys(), mha::all(), o);
       }},
      {"attention_into",
       [&](const auto& q, const auto& o) {
         mha::attention_into(outputs, q, keys(), mha::all(), o);
       }},
      {"attention_workspace_bytes",
       [&](const auto& q, const auto& o) { (void)mha::attention_workspace_bytes(q, keys(), o); }}};
  for (const Function& f : functions) {
    const auto call = [&](const TensorView<float>& q) { f.call(q, {}); };
    CAPTURE(f.name);
    CHECK_NOTHROW(call(query));
    world.restore();
    if (f.name != "attention_workspace_bytes") spoil_tensor(f.name, "query", query, world, call);
    for (const Index heads : {3, 5}) {
      TensorView<float> wrong = query;
      wrong.sizes[1] = heads;
      refuses(f.name, {"heads of key", text(heads)}, world, [&] { call(wrong); });
    }
    for (const std::size_t axis : {std::size_t{0}, std::size_t{3}}) {
      TensorView<float> wrong = query;
      ++wrong.sizes[axis];
      refuses(f.name, {"key", text(wrong.sizes[axis])}, world, [&] { call(wrong); });
    }
    for (const Index past_len : {Index{-1}, kLowest, kKeys + 1, kHighest}) {
      refuses(f.name, {"past_len", "got " + text(past_len)}, world,
              [&] { f.call(query, {.past_len = past_len}); });
    }
    for (const mha::Box& box : {mha::Box{.first_query = 1}, mha::Box{.first_key = 1024},
                                mha::Box{.query_len = 9}, mha::Box{.kv_len = 99}}) {
      refuses(f.name, {"box must not cut the queries or keys of a cache"}, world,
              [&] { f.call(query, {.box = box}); });
    }
    refuses(f.name, {"box.first_batch", "got -1"}, world,
            [&] { f.call(query, {.box = {.first_batch = -1}}); });
  }
  // Outputs: each of another size, without memory, over the query or another, or over itself.
  using Outputs = mha::AttentionOutputs<float>;
  const auto write = [&](const Outputs& o) { mha::attention_into(o, query, keys(), mha::all()); };
  const auto spoil_output = [&](const char* name, const auto& field_of) {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      Outputs wrong = outputs;
      ++field_of(wrong).sizes[axis];
      refuses("attention_into", {name, "must have size"}, world, [&] { write(wrong); });
      wrong = outputs;
      if (field_of(wrong).sizes[axis] == 1) continue;
      field_of(wrong).strides[axis] = 0;
      refuses("attention_into", {name, "place of its own"}, world, [&] { write(wrong); });
    }
    Outputs wrong = outputs;
    field_of(wrong).data = memory + 1;
    refuses("attention_into", {name, "query", "must not overlap"}, world, [&] { write(wrong); });
  };
  spoil_output("output", [](Outputs& o) -> TensorView<float>& { return o.output; });
  spoil_output("weights", [](Outputs& o) -> TensorView<float>& { return o.weights; });
  spoil_output("lse", [](Outputs& o) -> TensorView<float>& { return o.lse; });
  Outputs wrong = outputs;
  wrong.output.data = nullptr;
  refuses("attention_into", {"output.data must not be null"}, world, [&] { write(wrong); });
  wrong = outputs;
  wrong.lse.data = wrong.weights.data;
  refuses("attention_into", {"lse", "weights", "must not overlap"}, world, [&] { write(wrong); });
}

namespace {

using Rows = Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
Rows rows_at(float* data, Index rows, Index cols) { return {data, rows, cols, {cols, 1}}; }

// The functions of a layer over caches.
template <class Layer>
struct LayerFunction {
  std::string name;
  bool appends, attends, returns_all;
  std::function<void(const Rows&, const mha::KvLayers&, const MultiHeadOptions&)> call;
};

template <class Layer>
std::vector<LayerFunction<Layer>> functions_of(const std::string& name, const Layer& layer,
                                               World& world) {
  const auto output = [&world](Index rows) {
    return rows_at(world.memory.data() + 1000, std::min<Index>(rows, 40), kEmbed);
  };
  return {
      {name + "::forward", true, true, true,
       [&](const Rows& x, const auto& caches, const auto& o) {
         (void)layer.forward(x, caches, mha::causal(), o);
       }},
      {name + "::forward", true, true, true,
       [&](const Rows& x, const auto& caches, const auto& o) {
         (void)layer(x, caches, mha::causal(), o);
       }},
      {name + "::forward_into", true, true, false,
       [&, output](const Rows& x, const auto& caches, const auto& o) {
         layer.forward_into(output(x.rows()), x, caches, mha::causal(), o);
       }},
      {name + "::append", true, false, false,
       [&](const Rows& x, const auto& caches, const auto& o) { layer.append(x, x, caches, o); }},
      {name + "::attend", false, true, true, [&](const Rows& x, const auto& caches, const auto& o) {
         (void)layer.attend(x, caches, mha::causal(), o);
       }}};
}

template <class Layer>
void spoil_layer(const std::string& layer_name, const Layer& layer) {
  World world;
  float* const memory = world.memory.data();
  const KvLayer s = world.s.layer(1);
  const KvLayer t = world.t.layer(1);
  const Rows x = rows_at(memory, 6, kEmbed);
  for (const auto& f : functions_of(layer_name, layer, world)) {
    const char* const input = f.attends ? "x" : "key";
    const auto with = [&](const MultiHeadOptions& options) {
      return [&, options] { f.call(x, {s, t}, options); };
    };
    // x
    refuses(f.name, {input, ".cols()", "23"}, world, [&] {
      f.call(rows_at(memory, 6, 23), {s, t}, {});
    });
    refuses(f.name, {input, ".data must not be null"}, world, [&] {
      f.call(rows_at(nullptr, 6, kEmbed), {s, t}, {});
    });
    for (const Index stride : kWrongStrides) {
      refuses(f.name, {input, "address", text(stride)}, world, [&] {
        f.call(Rows(memory, 6, kEmbed, {stride, 1}), {s, t}, {});
      });
    }
    refuses(f.name, {"caches must divide the rows, got 2 and 5"}, world, [&] {
      f.call(rows_at(memory, 5, kEmbed), {s, t}, {});
    });
    // Options.
    refuses(f.name, {"caches' own, got 1, 0 and 0"}, world, with({.past_len = 3}));
    MultiHeadOptions options;
    options.kv_sequences = {3, 3};
    refuses(f.name, {"caches' own, got 0, 2 and 0"}, world, with(options));
    options = {};
    options.kv_positions = 4;
    refuses(f.name, {"caches' own, got 0, 0 and 1"}, world, with(options));
    for (const Index batch : {Index{-1}, Index{0}, Index{3}, kHighest}) {
      refuses(f.name, {"batch", "got " + text(batch)}, world, with({.batch = batch}));
    }
    refuses(f.name, {"one of sequences for each cache, got 3 and 2"}, world,
            with({.sequences = {2, 2, 2}}));
    for (const IndexList& lengths : {IndexList({-1, 7}), IndexList({7, -1}), IndexList({0, 7}),
                                     IndexList({kHighest, 6}), IndexList({kLowest, 6})}) {
      refuses(f.name, {"sequences must lie between 0 and the 6 rows"}, world,
              with({.sequences = lengths}));
    }
    refuses(f.name, {"add up to the rows, got 5 and 6"}, world, with({.sequences = {2, 3}}));
    refuses(f.name, {"add up to the rows, got 12 and 6"}, world, with({.sequences = {6, 6}}));
    options = {};
    options.positions = 3;
    refuses(f.name, {"positions are for a layer with rotary, got 1"}, world, with(options));
    if (!f.returns_all) {
      refuses(f.name, {"need_weights 1"}, world, with({.need_weights = true}));
      refuses(f.name, {"average_weights 1"}, world, with({.average_weights = true}));
      refuses(f.name, {"need_lse 1"}, world, with({.need_lse = true}));
    }
    // Caches.
    refuses(f.name, {"a sequence must be given once", "cache 1"}, world, [&] {
      f.call(x, {s, s}, {});
    });
    for (const Index other : {0, 1, 2}) {
      const KvPool pool({.kv_heads = other == 0 ? 4 : kKvHeads,
                         .head_dim = other == 1 ? 7 : kHeadDim,
                         .value_dim = other == 2 ? 7 : kValueDim,
                         .pages = 1});
      KvSequence wrong = pool.sequence();
      refuses(f.name, {"a cache must have the layer's kv_heads 2", "of cache 1"}, world, [&] {
        f.call(x, {s, wrong.layer(0)}, {});
      });
    }
    const KvPool pool({.kv_heads = kKvHeads,
                       .head_dim = kHeadDim,
                       .value_dim = kValueDim,
                       .pages = 1,
                       .storage = Storage::f64});
    KvSequence wide = pool.sequence();
    refuses(f.name, {"Storage::f64", "cache 0"}, world, [&] { f.call(x, {wide.layer(0), s}, {}); });
  }
  // forward_into()'s output.
  const auto into = [&](const Rows& output) {
    return [&, output] {
      Rows to = output;
      layer.forward_into(to, x, {s, t}, mha::causal());
    };
  };
  const std::string name = layer_name + "::forward_into";
  refuses(name, {"output must be 6 x 24, got 5 x 24"}, world,
          into(rows_at(memory + 1000, 5, kEmbed)));
  refuses(name, {"output must be 6 x 24, got 6 x 23"}, world, into(rows_at(memory + 1000, 6, 23)));
  refuses(name, {"output.data must not be null"}, world, into(rows_at(nullptr, 6, kEmbed)));
  refuses(name, {"output", "x", "must not overlap"}, world, into(rows_at(memory + 1, 6, kEmbed)));
  refuses(name, {"output", "place of its own"}, world,
          into(Rows(memory + 1000, 6, kEmbed, {0, 1})));
  // The value of append(), and what workspace_bytes() asks.
  refuses(layer_name + "::append", {"value.rows() must equal key.rows()", "5 and 6"}, world, [&] {
    layer.append(x, rows_at(memory, 5, kEmbed), {s, t});
  });
  refuses(layer_name + "::append", {"value.cols()", "23"}, world, [&] {
    layer.append(x, rows_at(memory, 6, 23), {s, t});
  });
  refuses(layer_name + "::append", {"value", ".data must not be null"}, world, [&] {
    layer.append(x, rows_at(nullptr, 6, kEmbed), {s, t});
  });
  for (const Index rows : kWrongSizes) {
    refuses(layer_name + "::workspace_bytes", {"rows", "got " + text(rows)}, world, [&] {
      (void)layer.workspace_bytes(rows, {s, t});
    });
  }
  refuses(layer_name + "::workspace_bytes", {"add up to the rows, got 12 and 6"}, world, [&] {
    (void)layer.workspace_bytes(6, {s, t}, {.sequences = {6, 6}});
  });
}

mha::MultiHeadConfig config_of() {
  return {.embed_dim = kEmbed,
          .num_heads = kHeads,
          .kv_heads = kKvHeads,
          .head_dim = kHeadDim,
          .value_dim = kValueDim};
}

}  // namespace

TEST_CASE("a layer over caches refuses what does not fit", "[misuse][cache]") {
  const mha::MultiHead<float, Eigen::Dynamic> layer(config_of());
  spoil_layer("MultiHead", layer);
  spoil_layer("Inference", mha::Inference(layer));
}

TEST_CASE("positions of guesses are looked at when the rows are known to be there",
          "[misuse][cache][regression]") {
  // sequences that add up to more than the rows: there are no positions behind the last.
  auto config = config_of();
  config.rotary = mha::Rotary{.pairs = mha::RotaryPairs::half};
  const mha::MultiHead<float, Eigen::Dynamic> layer(config);
  const KvPool pool(
      {.kv_heads = kKvHeads, .head_dim = kHeadDim, .value_dim = kValueDim, .pages = 2});
  KvSequence s = pool.sequence({.window_keys = 4});
  KvSequence t = pool.sequence({.window_keys = 4});
  const Matrix<float> x = Matrix<float>::Zero(6, kEmbed);
  MultiHeadOptions options;
  options.sequences = {6, 6};
  options.positions = std::vector<Index>{0, 1, 2, 3, 4, 5};
  refuses("MultiHead::forward", {"add up to the rows, got 12 and 6"}, [&] {
    (void)layer.forward(x, {s.layer(0), t.layer(0)}, mha::causal(), options);
  });
  refuses("MultiHead::workspace_bytes", {"add up to the rows, got 12 and 6"}, [&] {
    (void)layer.workspace_bytes(6, {s.layer(0), t.layer(0)}, options);
  });
  // The last number has none behind it.
  options.sequences = {3, 3};
  options.positions = std::vector<Index>{kHighest, kLowest, 1, 0, 1, 2};
  refuses("MultiHead::forward", {"positions must rise by 1", text(kHighest), text(kLowest)}, [&] {
    (void)layer.forward(x, {s.layer(0), t.layer(0)}, mha::causal(), options);
  });
  options.positions = std::vector<Index>{0, 1};
  refuses("MultiHead::forward", {"positions must be one number, or one per row, got 2 and 6"}, [&] {
    (void)layer.forward(x, {s.layer(0), t.layer(0)}, mha::causal(), options);
  });
  CHECK(s.size() == 0);
}

TEST_CASE("a window forgets exactly, wherever rules place the queries", "[cache][regression]") {
  // Keys j with j > p - 3 are seen: of a position before all keys every one, of one behind them none.
  const KvPool pool({.kv_heads = 1, .head_dim = 1, .pages = 1});
  KvSequence s = pool.sequence({.window_keys = 3});
  mha::Tensor<float> key({1, 1, 5, 1});
  mha::Tensor<float> value({1, 1, 5, 1});
  for (Index j = 0; j < 5; ++j) value(0, 0, j, 0) = static_cast<float>(j + 1);
  s.layer(0).append(key, value);
  const mha::Tensor<float> query({1, 1, 2, 1});
  for (const Index offset : {kLowest, kLowest + 1, kLowest + 3, Index{-7}, Index{-1}, Index{0},
                             Index{3}, Index{5}, Index{40}, kHighest - 1, kHighest}) {
    CAPTURE(offset);
    const auto cached =
        mha::attention(query, s.layer(0).keys(), mha::query_offset(offset), AttentionOptions{});
    const auto plain =
        mha::attention(query, key, value, mha::query_offset(offset) & mha::window(2, -1));
    for (Index i = 0; i < 2; ++i) CHECK(cached(0, 0, i, 0) == plain(0, 0, i, 0));
  }
  CHECK(s.layer(0).keys().has_seen_by(kLowest));
  CHECK(s.layer(0).keys().has_seen_by(kHighest));
}

TEST_CASE("what has been moved from is empty, whole, or says so", "[misuse][cache][regression]") {
  World world;
  // NOLINTBEGIN(bugprone-use-after-move): that is what is tested
  KvPool moved = std::move(world.pool);
  CHECK(world.pool.free_pages() == 6);
  CHECK(world.pool.sequence().size() == 0);
  CHECK(moved.memory_bytes() == world.pool.memory_bytes());
  KvCache cache({.kv_heads = 1, .head_dim = 2, .capacity = 3});
  const KvCache other = std::move(cache);
  CHECK(other.capacity() == 3);
  refuses("KvSequence", {"moved from"}, [&] { (void)cache.size(); });
  refuses("KvSequence", {"moved from"}, [&] { (void)cache.keys(); });

  const auto q = mha::test::random_tensor<float>({1, 2, 3, 4}, 1);
  auto part = mha::attention_partial(q, q, q);
  auto whole = std::move(part);
  CHECK(whole.finish().output.sizes() == std::array<Index, 4>{1, 2, 3, 4});
  CHECK(part.finish().output.empty());
  CHECK(mha::Partial<float>().finish().output.empty());
  refuses("Partial::join", {"rows of the same sizes", "[0, 0, 0, 0]"}, [&] { whole.join(part); });
  refuses("Partial::join", {"rows of the same sizes", "[0, 0, 0, 0]"}, [&] { part.join(whole); });

  IndexList list{3, 4};
  const IndexList taken = std::move(list);
  CHECK(taken[1] == 4);
  CHECK(list.empty());

  auto rule = mha::documents({0, 0, 1});
  const auto rule2 = std::move(rule);
  const auto before = mha::attention(q, q, q, rule2);
  CHECK(mha::attention(q, q, q, rule).sizes() == before.sizes());
  // NOLINTEND(bugprone-use-after-move)
}
