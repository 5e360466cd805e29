// SPDX-License-Identifier: MIT
//
// The backward pass of the layer, each step beside the forward line that it undoes (y = output):
//     y = concat W_O + b_O           dW_O += concat^T dy,  dconcat = dy W_O^T
//     concat = attention(q, k, v)    internal/call/batch_gradient.hpp
//     q, k rotated                   rotated back
//     q = x W_Q + b_Q, ...           dW_Q += x^T dq,       dx = dq W_Q^T + dk W_K^T + dv W_V^T
// The forward pass leaves q, k, v, the concatenation and lse behind: memory of the inputs' size, and
// nothing of query_len x kv_len.
#pragma once

#include "mha/internal/layer/forward.hpp"
#include "mha/internal/layer/layer_rules.hpp"
#include "mha/internal/projection/gradient.hpp"
#include "mha/multi_head_training.hpp"

namespace mha::inline MHA_ABI::detail {

/// Gradients of what lies between the layer's steps.
template <class Acc>
struct BetweenSteps {
  MatrixView<const Acc> output;
  MatrixView<Acc> concat, q, k, v;
  MatrixView<Acc> bias_k, bias_v;  ///< of each sequence
};

template <class Scalar>
class LayerGradient : public LayerPass<Scalar> {
 public:
  using Pass = LayerPass<Scalar>;
  using typename Pass::Acc;
  using typename Pass::AllInputs;
  using typename Pass::Layer;
  using typename Pass::Options;
  using typename Pass::View;
  using Gradients = LayerGradientView<Acc>;
  using Record = LayerRecord<Scalar>;
  using AnyRules = LayerGradientRules<Acc>;

  explicit LayerGradient(const Layer& layer) : Pass(layer) {}

  /// The backward pass is that of this layer, rule and options, and writes over none of its inputs.
  /// @param layer_id  whose ObjectId it is
  void check(const char* where, std::uint64_t layer_id, const Gradients& grads,
             const Record& record, const View& grad_output, const AnyRules& rules,
             const Options& options) const {
    const PassOrigin& origin = record.origin;
    const MultiHeadConfig& c = layer_.config;
    require(origin.layer != 0, where,
            ": the pass must have been run by forward_training() of this layer, got one that has "
            "not been run");
    require(origin.layer == layer_id, where,
            ": the pass must have been run by forward_training() of this layer, got one of layer ",
            origin.layer, " (numbered as they were made) where this is layer ", layer_id);
    require(origin.rule == rules.type, where,
            ": rule must be of the type that forward_training() had: the same masks and modifiers, "
            "in the same order");
    check_parameters(where, layer_);
    const auto biases = PassOrigin::biases_of(layer_);
    for (std::size_t n = 0; n < biases.size(); ++n) {
      constexpr std::array<const char*, 4> kNames{"q_proj", "k_proj", "v_proj", "out_proj"};
      require(biases[n] == origin.biases[n], where, ": ", kNames[n],
              ".bias must be as large as in forward_training(), got ", biases[n], " and ",
              origin.biases[n]);
    }
    check_gradients(where, layer_, grads);
    const auto& [query, key, value] = record.inputs;
    require(grad_output.rows == query.rows && grad_output.cols == c.out_dim, where,
            ": grad_output must be ", query.rows, " x ", c.out_dim, ", got ", grad_output.rows,
            " x ", grad_output.cols);
    const auto grad = checked(where, "grad_output", grad_output);
    check_output_alone(where, options);
    const SequenceBatch batch = cut_sequences(where, query.rows, key.rows, options);
    check_same_options(where, options, batch, record.batch, origin);
    rules.check(
        {where, batch.count, c.num_heads, batch.query_len, batch.kv_len, batch.lengths_differ});
    require(origin.digest == rules.digest(), where,
            ": rule must have the numbers and sizes that it had in forward_training(), got digest ",
            rules.digest(), " and ", origin.digest);
    check_places(where, c, rules, batch, options);
    check_gradients_apart(
        where, grads,
        {grad, checked(where, "the pass's query", query), checked(where, "the pass's key", key),
         checked(where, "the pass's value", value)});
  }

  void forward(const MatrixView<Scalar>& output, Record& record, const AnyRules& rules,
               const Options& options) const {
    const AllInputs& inputs = record.inputs;
    const LayerPlan<Scalar> plan(layer_, inputs.query.rows, inputs.key.rows, record.batch,
                                 {Pass::inputs_of(inputs), true, true}, options.executor);
    if constexpr (has_kernels<Acc>) {
      record.block.reserve(plan.bytes());
      BlockMatrices<Acc> source({record.block.data(), record.block.size()});
      record.memory.emplace(plan.sizes, source);
    } else {
      record.own = std::make_unique<OwnedMatrices<Acc>>();
      record.memory.emplace(plan.sizes, *record.own);
    }
    this->compute_in(plan, *record.memory, inputs, rules, options, {output});
  }

  void backward(const Gradients& grads, Record& record, const BetweenSteps<Acc>& between,
                const AnyRules& rules, const Options& options) const {
    const LayerMemory<Acc>& memory = *record.memory;

    // y = concat W_O + b_O
    {
      const ProjectionGradients<Acc> products(options.executor, record.scratch, memory.concat.rows,
                                              memory.concat.cols);
      const MatrixView<const Acc> concat = memory.concat;
      backward_projection<Acc>(products, grads.out_proj, layer_.out_proj, concat, between.output,
                               between.concat, false);
    }

    attend_back(grads, record, between, rules, options);
    if (layer_.config.rotary) rotate_back(record, between, rules, options);

    // q = x W_Q + b_Q, and so on
    const auto& [query, key, value] = record.inputs;
    const Inputs inputs = Pass::inputs_of(record.inputs);
    const bool one = inputs == Inputs::one_matrix;
    const bool apart = inputs == Inputs::all_apart;
    const ProjectionGradients<Acc> products(options.executor, record.scratch,
                                            std::max(query.rows, key.rows),
                                            std::max({query.cols, key.cols, value.cols}));
    const MatrixView<Acc>& grad_key = one ? grads.query : grads.key;
    const MatrixView<Acc>& grad_value = apart ? grads.value : grad_key;
    backward_projection<Acc>(products, grads.q_proj, layer_.q_proj, query, between.q, grads.query,
                             false);
    backward_projection<Acc>(products, grads.k_proj, layer_.k_proj, key, between.k, grad_key, one);
    backward_projection<Acc>(products, grads.v_proj, layer_.v_proj, value, between.v, grad_value,
                             !apart);
  }

 private:
  using Pass::layer_;

  static void check_gradients_apart(const char* where, const Gradients& grads,
                                    const std::array<CheckedMatrix<const Scalar>, 4>& all_read) {
    const auto apart = [&](const char* name, const MatrixView<Acc>& values) {
      const auto written = owned(name, values);
      for (const auto& read : all_read) check_apart(where, written, read);
    };
    apart("gradients.query", grads.query);
    apart("gradients.key", grads.key);
    apart("gradients.value", grads.value);
    for_each_parameter(grads, apart);
  }

  /// concat = attention(q, k, v)
  void attend_back(const Gradients& grads, Record& record, const BetweenSteps<Acc>& between,
                   const AnyRules& rules, const Options& options) const {
    const MultiHeadConfig& c = layer_.config;
    const LayerMemory<Acc>& memory = *record.memory;
    const BatchTask<Acc> task = this->heads_of(memory, memory.lse, record.batch, options);
    const Index entries = task.query.size(0);
    const auto heads = [entries](const MatrixView<Acc>& m, Index num_heads) {
      return HeadColumns<Acc>(m).heads(num_heads, entries);
    };
    BatchGradient<Acc> call{task, heads(between.concat, c.num_heads), heads(between.q, c.num_heads),
                            heads(between.k, c.kv_heads), heads(between.v, c.kv_heads)};
    if (c.add_bias_kv) {
      call.grad_extra_key = between.bias_k.data;
      call.grad_extra_value = between.bias_v.data;
    }
    rules.backward(call, options.executor, &record.scratch);
    if (!c.add_bias_kv) return;
    for (Index b = 0; b < record.batch.count; ++b) {
      for (Index d = 0; d < grads.bias_k.cols; ++d) grads.bias_k(0, d) += between.bias_k(b, d);
      for (Index d = 0; d < grads.bias_v.cols; ++d) grads.bias_v(0, d) += between.bias_v(b, d);
    }
  }

  /// The rotation back: its pairs mirrored, turned the same way, and mirrored again.
  void rotate_back(const Record& record, const BetweenSteps<Acc>& between, const AnyRules& rules,
                   const Options& options) const {
    const MultiHeadConfig& c = layer_.config;
    LayerMemory<Acc> turned = *record.memory;
    turned.q = between.q;
    turned.k = between.k;
    mirror(between.q, c.num_heads);
    mirror(between.k, c.kv_heads);
    this->rotate(turned, rules, record.batch, options);
    mirror(between.q, c.num_heads);
    mirror(between.k, c.kv_heads);
  }

  /// Turns the sign of the second number of every pair of rotated channels.
  void mirror(const MatrixView<Acc>& m, Index num_heads) const {
    const Rotary& rotary = *layer_.config.rotary;
    const Index width = num_heads == 0 ? 0 : m.cols / num_heads;
    const Index half = rotary.dim / 2;
    for (Index i = 0; i < m.rows; ++i) {
      for (Index h = 0; h < num_heads; ++h) {
        for (Index k = 0; k < half; ++k) {
          const Index second = rotary.pairs == RotaryPairs::half ? k + half : 2 * k + 1;
          m(i, h * width + second) = -m(i, h * width + second);
        }
      }
    }
  }
};

/// The checks of forward_training(). No input lies in the pass's output, which is written while they are needed.
template <class Scalar>
SequenceBatch check_training(const char* where, const LayerView<Scalar>& layer,
                             const LayerInputs<Scalar>& inputs,
                             const LayerRules<accumulator_t<Scalar>>& rules,
                             const MultiHeadOptions& options, const MatrixView<Scalar>& output) {
  const CheckedCall<Scalar> call = check_call(where, layer, inputs, rules, options);
  check_output_alone(where, options);
  const auto written = owned("pass.output", output);
  for (const auto* read : {&call.query, &call.key, &call.value}) {
    check_apart(where, written, *read);
  }
  return call.batch;
}

/// LayerGradient's functions.
template <class Scalar>
void compute_training(const LayerView<Scalar>& layer, LayerRecord<Scalar>& record,
                      const LayerGradientRules<accumulator_t<Scalar>>& rules,
                      const MultiHeadOptions& options, const MatrixView<Scalar>& output) {
  LayerGradient<Scalar>(layer).forward(output, record, rules, options);
}
template <class Scalar>
void check_layer_backward(const char* where, const LayerView<Scalar>& layer, std::uint64_t layer_id,
                          const LayerGradientView<accumulator_t<Scalar>>& grads,
                          const LayerRecord<Scalar>& record,
                          const MatrixView<const Scalar>& grad_output,
                          const LayerGradientRules<accumulator_t<Scalar>>& rules,
                          const MultiHeadOptions& options) {
  LayerGradient<Scalar>(layer).check(where, layer_id, grads, record, grad_output, rules, options);
}
template <class Scalar>
void compute_layer_backward(const LayerView<Scalar>& layer,
                            const LayerGradientView<accumulator_t<Scalar>>& grads,
                            LayerRecord<Scalar>& record,
                            const BetweenSteps<accumulator_t<Scalar>>& between,
                            const LayerGradientRules<accumulator_t<Scalar>>& rules,
                            const MultiHeadOptions& options) {
  LayerGradient<Scalar>(layer).backward(grads, record, between, rules, options);
}

#if defined(MHA_COMPILED_TEMPLATE)
#define MHA_COMPILED_TRAINING(T)                                                                 \
  MHA_COMPILED_TEMPLATE SequenceBatch check_training(                                            \
      const char*, const LayerView<T>&, const LayerInputs<T>&, const LayerRules<T>&,             \
      const MultiHeadOptions&, const MatrixView<T>&);                                            \
  MHA_COMPILED_TEMPLATE void compute_training(const LayerView<T>&, LayerRecord<T>&,              \
                                              const LayerGradientRules<T>&,                      \
                                              const MultiHeadOptions&, const MatrixView<T>&);    \
  MHA_COMPILED_TEMPLATE void check_layer_backward(                                               \
      const char*, const LayerView<T>&, std::uint64_t, const LayerGradientView<T>&,              \
      const LayerRecord<T>&, const MatrixView<const T>&, const LayerGradientRules<T>&,           \
      const MultiHeadOptions&);                                                                  \
  MHA_COMPILED_TEMPLATE void compute_layer_backward(                                             \
      const LayerView<T>&, const LayerGradientView<T>&, LayerRecord<T>&, const BetweenSteps<T>&, \
      const LayerGradientRules<T>&, const MultiHeadOptions&);
MHA_COMPILED_TRAINING(float)
MHA_COMPILED_TRAINING(double)
#undef MHA_COMPILED_TRAINING
#endif

/// The whole of forward_training(), but for the checks.
template <class Scalar>
void run_training(const LayerView<Scalar>& layer, std::uint64_t layer_id, Matrix<Scalar>& output,
                  LayerTape<Scalar>& tape, const LayerInputs<Scalar>& inputs,
                  const LayerGradientRules<accumulator_t<Scalar>>& rules,
                  const MultiHeadOptions& options, const SequenceBatch& batch) {
  tape.origin.layer = 0;  // until it has been run
  tape.origin.record(layer, rules.type, rules.digest(), options);
  tape.inputs = inputs;
  tape.batch = batch;
  output.resize(inputs.query.rows, layer.config.out_dim);
  tape.memory.reset();
  LayerRecord<Scalar>& record = tape;
  if (batch.count != 0) compute_training(layer, record, rules, options, memory_of(output));
  tape.origin.layer = layer_id;
}

/// And of backward().
/// @param gradients  MultiHeadGradients
template <class Scalar, class Gradients>
void run_layer_backward(const LayerView<Scalar>& layer, Gradients& gradients,
                        LayerTape<Scalar>& tape, const MatrixView<const Scalar>& grad_output,
                        const LayerGradientRules<accumulator_t<Scalar>>& rules,
                        const MultiHeadOptions& options) {
  using Acc = accumulator_t<Scalar>;
  const auto& [query, key, value] = tape.inputs;
  const Inputs inputs = LayerPass<Scalar>::inputs_of(tape.inputs);
  const bool one = inputs == Inputs::one_matrix;
  const bool apart = inputs == Inputs::all_apart;
  gradients.query.resize(query.rows, query.cols);
  gradients.key.resize(one ? 0 : key.rows, one ? 0 : key.cols);
  gradients.value.resize(apart ? value.rows : 0, apart ? value.cols : 0);
  if (!tape.memory) return;  // no rows at all
  const LayerMemory<Acc>& memory = *tape.memory;
  const auto like = [](Matrix<Acc>& m, Index rows, Index cols) {
    m.resize(rows, cols);
    return memory_of(m);
  };
  const Index sequences = tape.batch.count;
  const BetweenSteps<Acc> between{widened<Acc>(grad_output, tape.grad_output),
                                  like(tape.grad_concat, memory.concat.rows, memory.concat.cols),
                                  like(tape.grad_q, memory.q.rows, memory.q.cols),
                                  like(tape.grad_k, memory.k.rows, memory.k.cols),
                                  like(tape.grad_v, memory.v.rows, memory.v.cols),
                                  like(tape.grad_bias_k, sequences, layer.bias_k.cols),
                                  like(tape.grad_bias_v, sequences, layer.bias_v.cols)};
  LayerRecord<Scalar>& record = tape;
  compute_layer_backward(layer, gradient_view(gradients), record, between, rules, options);
}

}  // namespace mha::detail
