// SPDX-License-Identifier: MIT
//
// Prints a hash of what attention, the layer and their gradients compute on each instruction set. It is
// built header-only and on mha::compiled: both must print the same.
#include <mha/mha.hpp>

#include <cinttypes>
#include <cstdio>

#include "support/matrices.hpp"
#include "support/targets.hpp"

namespace {

using mha::Index;

struct Hash {
  std::uint64_t value = 14695981039346656037u;  // FNV-1a
  template <class M>
  void add(const M& numbers) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers.data());
    const auto size = static_cast<std::size_t>(numbers.size()) * sizeof(*numbers.data());
    for (std::size_t k = 0; k < size; ++k) value = (value ^ bytes[k]) * 1099511628211u;
  }
};

template <class Scalar>
void print(const char* target) {
  Hash hash;
  const auto key = mha::test::random_tensor<Scalar>({1, 2, 300, 16}, 2);
  for (const Index query_len : {1, 70}) {  // decoding, and tiles
    const auto query = mha::test::random_tensor<Scalar>({1, 4, query_len, 16}, 1);
    const auto rule = mha::causal() & mha::alibi() & mha::softcap(3);
    const mha::AttentionOptions options{.past_len = 300 - query_len, .need_lse = true};
    const auto forward = mha::attention_forward(query, key, key, rule, options);
    const auto gradients = mha::attention_backward(query, query, key, key, forward, rule,
                                                   {.past_len = 300 - query_len});
    for (Index h = 0; h < 4; ++h) {
      hash.add(mha::Matrix<Scalar>(forward.output.matrix(0, h)));
      hash.add(mha::Matrix<Scalar>(gradients.query.matrix(0, h)));
    }
    for (Index h = 0; h < 2; ++h) hash.add(mha::Matrix<Scalar>(gradients.key.matrix(0, h)));
  }
  using Layer = mha::MultiHead<Scalar, 4>;
  const Layer layer({.embed_dim = 192, .add_bias_kv = true, .seed = 5});
  for (const Index tokens : {3, 20, 200}) {  // the three ways to project
    const auto x = mha::test::random_matrix<Scalar>(tokens, 192, 3);
    mha::TrainingPass<Layer> pass;
    mha::MultiHeadGradients<Layer> gradients(layer);
    layer.forward_training(pass, x, mha::causal());
    layer.backward(gradients, pass, x, mha::causal());
    hash.add(pass.output);
    hash.add(gradients.query);
    hash.add(gradients.q_proj.weight);
    hash.add(gradients.out_proj.weight);
  }
  std::printf("%s, %d bytes: %016" PRIx64 "\n", target, static_cast<int>(sizeof(Scalar)),
              hash.value);
}

}  // namespace

int main() {
  for (const auto target : mha::test::available_targets()) {
    const mha::test::UsingTarget use(target);
    print<float>(mha::kernels::name(target));
    print<double>(mha::kernels::name(target));
  }
}
