// SPDX-License-Identifier: MIT
//
// Loading and saving the parameters of PyTorch's nn.MultiheadAttention.
#include <mha/io/torch.hpp>
#include <mha/mha.hpp>

#include "support/catch.hpp"

namespace {

using mha::Index;
using mha::MultiHeadConfig;
using mha::io::load_torch;
using mha::io::Safetensors;
using mha::io::SafetensorsWriter;
using mha::io::save_torch;
using mha::io::TorchWeights;

using Layer = mha::MultiHead<double, Eigen::Dynamic>;

/// A layer all of whose parameters, biases included, differ from 0.
Layer random_layer(MultiHeadConfig config) {
  Layer layer(config);
  layer.q_proj.bias.setRandom();
  layer.k_proj.bias.setRandom();
  layer.v_proj.bias.setRandom();
  layer.out_proj.bias.setRandom();
  return layer;
}

Safetensors saved(const Layer& layer, const std::string& prefix = "",
                  TorchWeights form = TorchWeights::automatic) {
  SafetensorsWriter writer;
  save_torch(layer, writer, prefix, form);
  return Safetensors::parse(writer.bytes(), "layer.safetensors");
}

bool same_parameters(const Layer& a, const Layer& b) {
  return a.q_proj.weight == b.q_proj.weight && a.k_proj.weight == b.k_proj.weight &&
         a.v_proj.weight == b.v_proj.weight && a.out_proj.weight == b.out_proj.weight &&
         a.q_proj.bias == b.q_proj.bias && a.k_proj.bias == b.k_proj.bias &&
         a.v_proj.bias == b.v_proj.bias && a.out_proj.bias == b.out_proj.bias &&
         a.bias_k == b.bias_k && a.bias_v == b.bias_v;
}

}  // namespace

TEST_CASE("PyTorch's outputs x inputs weights are transposed on loading", "[torch]") {
  // E = 2, one head. in_proj_weight stacks Wq = (1 2; 3 4), Wk = (5 6; 7 8), Wv = (9 10; 11 12); y
  // = x W^T.
  SafetensorsWriter writer;
  mha::Matrix<float> in_proj(6, 2);
  in_proj << 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12;
  mha::Matrix<float> out_proj(2, 2);
  out_proj << 13, 14, 15, 16;
  writer.add("in_proj_weight", in_proj);
  writer.add("in_proj_bias", mha::Vector<float>::LinSpaced(6, 1, 6).eval());
  writer.add("out_proj.weight", out_proj);
  writer.add("out_proj.bias", mha::Vector<float>::LinSpaced(2, 7, 8).eval());
  mha::MultiHead<float, 1> layer(2);
  load_torch(layer, Safetensors::parse(writer.bytes()));
  CHECK(layer.q_proj.weight(0, 1) == 3);  // input 0, output 1: row 1, column 0 of Wq
  CHECK(layer.k_proj.weight(1, 0) == 6);
  CHECK(layer.v_proj.weight(0, 0) == 9);
  CHECK(layer.v_proj.weight(1, 1) == 12);
  CHECK(layer.out_proj.weight(1, 0) == 14);
  CHECK(layer.q_proj.bias(1) == 2);
  CHECK(layer.k_proj.bias(0) == 3);
  CHECK(layer.v_proj.bias(1) == 6);
  CHECK(layer.out_proj.bias(0) == 7);
}

TEST_CASE("a saved layer loads back exactly, for every configuration", "[torch]") {
  const MultiHeadConfig config =
      GENERATE(MultiHeadConfig{.embed_dim = 12, .num_heads = 3},
               MultiHeadConfig{.embed_dim = 12, .num_heads = 3, .bias = false},
               MultiHeadConfig{.embed_dim = 12, .num_heads = 3, .kdim = 5, .vdim = 7},
               MultiHeadConfig{.embed_dim = 12, .num_heads = 3, .add_bias_kv = true},
               MultiHeadConfig{.embed_dim = 12,
                               .num_heads = 6,
                               .kv_heads = 2,
                               .value_dim = 3,
                               .out_dim = 5,
                               .add_bias_kv = true});
  const std::string prefix = GENERATE("", "encoder.layers.0.self_attn.");
  const Layer layer = random_layer(config);
  MultiHeadConfig other = config;
  other.seed = 99;
  Layer loaded(other);
  REQUIRE(!same_parameters(layer, loaded));
  load_torch(loaded, saved(layer, prefix), prefix);
  CHECK(same_parameters(layer, loaded));
}

TEST_CASE("a bias that was taken away is saved as 0, one that was added is saved", "[torch]") {
  for (const bool bias : {true, false}) {
    Layer layer = random_layer({.embed_dim = 8, .num_heads = 2, .bias = bias});
    layer.q_proj.bias.resize(0);
    layer.k_proj.bias.setConstant(8, 3);
    layer.out_proj.bias.resize(0);
    Layer loaded({.embed_dim = 8, .num_heads = 2});
    load_torch(loaded, saved(layer));
    const Eigen::MatrixXd x = Eigen::MatrixXd::Random(5, 8);
    CHECK(loaded(x) == layer(x));
    CHECK(loaded.q_proj.bias.isZero(0));
    CHECK(loaded.k_proj.bias(7) == 3);
  }
}

TEST_CASE("a layer that cannot be saved leaves the writer as it was", "[torch]") {
  const Layer right = random_layer({.embed_dim = 8, .num_heads = 2});
  SafetensorsWriter writer;
  writer.add("out_proj.weight", Eigen::Vector2f(1, 2));
  const auto before = writer.bytes();
  CHECK_THROWS_WITH(save_torch(right, writer),
                    mha::test::ContainsSubstring("the name must be free"));
  CHECK_THROWS_WITH(save_torch(right, writer, "a.", static_cast<TorchWeights>(9)),
                    "mha::io::save_torch: form must be one of TorchWeights's, got 9");
  Layer wrong = right;
  wrong.k_proj.weight.resize(8, 9);
  CHECK_THROWS_WITH(save_torch(wrong, writer, "a."),
                    "mha::io::save_torch: k_proj.weight must be 8 x 8, got 8 x 9");
  wrong = right;
  wrong.v_proj.bias.resize(7);
  CHECK_THROWS_WITH(save_torch(wrong, writer, "a."),
                    "mha::io::save_torch: v_proj.bias must have 0 or 8 entries, got 7");
  Layer gone = right;
  const Layer taken = std::move(gone);
  // NOLINTNEXTLINE(bugprone-use-after-move): that is what is tested
  CHECK_THROWS_WITH(save_torch(gone, writer, "a."),
                    mha::test::ContainsSubstring("q_proj.weight must be 8 x 8"));
  CHECK(writer.bytes() == before);
  for (const Index heads : {Index{-1}, (Index{1} << 30) + 1}) {
    CHECK_THROWS_WITH((void)torch_config(saved(right), heads),
                      mha::test::ContainsSubstring("num_heads must lie"));
  }
}

TEST_CASE("packed and separate weights give one answer", "[torch]") {
  const Layer layer = random_layer({.embed_dim = 8, .num_heads = 2});
  Layer packed({.embed_dim = 8, .num_heads = 2, .seed = 1});
  Layer separate({.embed_dim = 8, .num_heads = 2, .seed = 2});
  const Safetensors packed_file = saved(layer, "", TorchWeights::packed);
  const Safetensors separate_file = saved(layer, "", TorchWeights::separate);
  REQUIRE(packed_file.contains("in_proj_weight"));
  REQUIRE(separate_file.contains("v_proj_weight"));
  load_torch(packed, packed_file);
  load_torch(separate, separate_file);
  const Eigen::MatrixXd x = Eigen::MatrixXd::Random(5, 8);
  CHECK(packed(x) == separate(x));
  CHECK(packed(x) == layer(x));
}

TEST_CASE("a layer is saved under PyTorch's names and shapes", "[torch]") {
  using Shape = std::vector<Index>;
  const Safetensors packed =
      saved(random_layer({.embed_dim = 12, .num_heads = 3, .add_bias_kv = true}), "a.");
  CHECK(packed.tensors().size() == 6);
  CHECK(packed.tensor("a.in_proj_weight").shape == Shape{36, 12});
  CHECK(packed.tensor("a.in_proj_bias").shape == Shape{36});
  CHECK(packed.tensor("a.out_proj.weight").shape == Shape{12, 12});
  CHECK(packed.tensor("a.out_proj.bias").shape == Shape{12});
  CHECK(packed.tensor("a.bias_k").shape == Shape{1, 1, 12});
  CHECK(packed.tensor("a.bias_v").shape == Shape{1, 1, 12});
  const Safetensors separate =
      saved(random_layer({.embed_dim = 12, .num_heads = 3, .kdim = 5, .vdim = 7}));
  CHECK(separate.tensor("q_proj_weight").shape == Shape{12, 12});
  CHECK(separate.tensor("k_proj_weight").shape == Shape{12, 5});
  CHECK(separate.tensor("v_proj_weight").shape == Shape{12, 7});
}

TEST_CASE("torch_config finds a layer's sizes in its parameters", "[torch]") {
  const MultiHeadConfig config{
      .embed_dim = 12, .num_heads = 3, .kdim = 5, .vdim = 7, .bias = false, .add_bias_kv = true};
  const Layer layer(config);
  const MultiHeadConfig found = mha::io::torch_config(saved(layer, "p."), 3, "p.");
  Layer loaded(found);
  load_torch(loaded, saved(layer, "p."), "p.");
  CHECK(same_parameters(layer, loaded));
  CHECK(loaded.config().kdim == 5);
  CHECK(loaded.config().vdim == 7);
  CHECK(!loaded.config().bias);
}

TEST_CASE("parameters convert to the layer's scalar", "[torch]") {
  const Layer layer = random_layer({.embed_dim = 8, .num_heads = 2});
  mha::MultiHead<Eigen::bfloat16, 2> narrow(8);
  load_torch(narrow, saved(layer));
  CHECK(narrow.q_proj.weight(3, 4) ==
        static_cast<Eigen::bfloat16>(static_cast<float>(layer.q_proj.weight(3, 4))));
  mha::MultiHead<float, 2, 4> fixed;
  load_torch(fixed, saved(layer));
  CHECK(fixed.v_proj.bias(5) == static_cast<float>(layer.v_proj.bias(5)));
}

TEST_CASE("a file that does not fit the layer is an error and changes nothing", "[torch]") {
  const Layer small = random_layer({.embed_dim = 8, .num_heads = 2});
  const Layer big = random_layer({.embed_dim = 12, .num_heads = 2});
  Layer layer({.embed_dim = 8, .num_heads = 2, .seed = 5});
  const Layer before = layer;
  SECTION("another size") {
    CHECK_THROWS_WITH(load_torch(layer, saved(big)),
                      "mha::io::load_torch: layer.safetensors: in_proj_weight must have the shape "
                      "[24, 8], got [36, 12]");
  }
  SECTION("a missing tensor, as with a wrong prefix") {
    CHECK_THROWS_WITH(load_torch(layer, saved(small), "x."),
                      "mha::io::load_torch: layer.safetensors: expected a tensor x.q_proj_weight, "
                      "got none");
  }
  SECTION("a bias for a layer without") {
    Layer plain({.embed_dim = 8, .num_heads = 2, .bias = false});
    CHECK_THROWS_WITH(
        load_torch(plain, saved(small)),
        "mha::io::load_torch: layer.safetensors: in_proj_bias is in the file, but the "
        "layer was made without bias");
  }
  SECTION("packed weights for a layer that cannot have them") {
    Layer cross({.embed_dim = 8, .num_heads = 2, .kdim = 4});
    CHECK_THROWS_WITH(
        load_torch(cross, saved(small)),
        mha::test::ContainsSubstring("is packed, but the layer's kdim and vdim (4, 8)"));
    CHECK_THROWS_WITH(saved(cross, "", TorchWeights::packed),
                      "mha::io::save_torch: packed weights need kdim and vdim equal to embed_dim, "
                      "got 4, 8 and 8");
  }
  CHECK(same_parameters(layer, before));
}
