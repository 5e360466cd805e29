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

#include "mha/internal/call/batch_gradient.hpp"
#include "mha/internal/layer/forward.hpp"
#include "mha/internal/projection/gradient.hpp"
#include "mha/multi_head_training.hpp"

namespace mha::inline MHA_ABI {
namespace detail {

template <class Layer>
class LayerGradient : public LayerPass<Layer> {
 public:
  using Pass = LayerPass<Layer>;
  using Scalar = typename Layer::Scalar;
  using Acc = typename Layer::Acc;
  using Options = MultiHeadOptions;
  using View = MatrixView<const Scalar>;
  using Gradients = MultiHeadGradients<Layer>;
  using Tape = TrainingPass<Layer>;

  explicit LayerGradient(const Layer& layer) : Pass(layer), layer_(layer) {}

  /// No input of a pass lies in its output, which is written while they are still needed.
  void check_inputs(const char* where, const Tape& tape, const CheckedCall<Scalar>& call) const {
    const auto output = owned("pass.output", tape.output);
    for (const auto* read : {&call.query, &call.key, &call.value}) {
      check_apart(where, output, *read);
    }
  }

  /// The backward pass is that of this layer, rule and options, and writes over none of its inputs.
  template <class RuleSet>
  void check(const char* where, const Gradients& grads, const Tape& tape, const View& grad_output,
             const RuleSet& rules, const Options& options) const {
    const PassOrigin& origin = tape.origin_;
    require(origin.layer != 0, where,
            ": the pass must have been run by forward_training() of this layer, got one that has "
            "not been run");
    require(origin.layer == layer_.id_.value(), where,
            ": the pass must have been run by forward_training() of this layer, got one of layer ",
            origin.layer, " (numbered as they were made) where this is layer ", layer_.id_.value());
    require(origin.rule == rule_identity<RuleSet>(), where,
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
    const Index out_dim = layer_.config().out_dim;
    require(grad_output.rows == tape.query_.rows && grad_output.cols == out_dim, where,
            ": grad_output must be ", tape.query_.rows, " x ", out_dim, ", got ", grad_output.rows,
            " x ", grad_output.cols);
    const auto grad = checked(where, "grad_output", grad_output);
    check_output_alone(where, options);
    const SequenceBatch batch = cut_sequences(where, tape.query_.rows, tape.key_.rows, options);
    check_same_options(where, options, batch, tape.batch_, origin);
    rules.template check<typename Layer::Acc>({where, batch.count, layer_.config().num_heads,
                                               batch.query_len, batch.kv_len,
                                               batch.lengths_differ});
    require(origin.digest == rules.digest(), where,
            ": rule must have the numbers and sizes that it had in forward_training(), got digest ",
            rules.digest(), " and ", origin.digest);
    check_places(where, layer_.config(), rules, batch, options);
    const auto query = checked(where, "the pass's query", tape.query_);
    const auto key = checked(where, "the pass's key", tape.key_);
    const auto value = checked(where, "the pass's value", tape.value_);
    const auto apart = [&](const char* name, const auto& values) {
      const auto written = owned(name, values);
      for (const auto* read : {&grad, &query, &key, &value}) check_apart(where, written, *read);
    };
    apart("gradients.query", grads.query);
    apart("gradients.key", grads.key);
    apart("gradients.value", grads.value);
    for_each_parameter(
        grads, [&](std::string_view name, const auto& values) { apart(name.data(), values); });
  }

  template <class RuleSet>
  void forward(Tape& tape, const View& query, const View& key, const View& value,
               const RuleSet& rules, const Options& options, const SequenceBatch& batch) const {
    tape.origin_.layer = 0;  // until it has been run
    tape.origin_.record(layer_, rules, options);
    tape.query_ = query;
    tape.key_ = key;
    tape.value_ = value;
    tape.batch_ = batch;
    tape.output.resize(query.rows, layer_.config().out_dim);
    tape.memory_.reset();
    if (batch.count != 0) compute(tape, query, key, value, rules, options, batch);
    tape.origin_.layer = layer_.id_.value();
  }

  template <class RuleSet>
  void compute(Tape& tape, const View& query, const View& key, const View& value,
               const RuleSet& rules, const Options& options, const SequenceBatch& batch) const {
    const LayerPlan<Layer> plan(layer_, query.rows, key.rows, batch,
                                {Pass::inputs_of(query, key, value), true, true}, options.executor);
    if constexpr (has_kernels<Acc>) {
      tape.block_.reserve(plan.bytes());
      BlockMatrices<Acc> source({tape.block_.data(), tape.block_.size()});
      tape.memory_.emplace(plan.sizes, source);
    } else {
      tape.own_ = std::make_unique<OwnedMatrices<Acc>>();
      tape.memory_.emplace(plan.sizes, *tape.own_);
    }
    Tensor<Acc> no_weights;
    this->compute_in(plan, *tape.memory_, query, key, value, rules, options, memory_of(tape.output),
                     {}, no_weights);
  }

  template <class RuleSet>
  void backward(Gradients& grads, Tape& tape, const View& grad_output, const RuleSet& rules,
                const Options& options) const {
    const MultiHeadConfig& c = layer_.config();
    const auto inputs = this->inputs_of(tape.query_, tape.key_, tape.value_);
    const bool one = inputs == Inputs::one_matrix;
    grads.query.resize(tape.query_.rows, tape.query_.cols);
    grads.key.resize(one ? 0 : tape.key_.rows, one ? 0 : tape.key_.cols);
    const bool apart = inputs == Inputs::all_apart;
    grads.value.resize(apart ? tape.value_.rows : 0, apart ? tape.value_.cols : 0);
    if (!tape.memory_) return;  // no rows at all
    const LayerMemory<Acc>& memory = *tape.memory_;

    // y = concat W_O + b_O
    const MatrixView<const Acc> grad_y = widened<Acc>(grad_output, tape.grad_output_);
    tape.grad_concat_.resize(memory.concat.rows, memory.concat.cols);
    {
      const ProjectionGradients<Acc> products(options.executor, tape.scratch_, memory.concat.rows,
                                              memory.concat.cols);
      const MatrixView<const Acc> concat = memory.concat;
      backward_projection<Acc>(products, grads.out_proj, layer_.out_proj, concat, grad_y,
                               memory_of(tape.grad_concat_), false);
    }

    // concat = attention(q, k, v)
    tape.grad_q_.resize(memory.q.rows, memory.q.cols);
    tape.grad_k_.resize(memory.k.rows, memory.k.cols);
    tape.grad_v_.resize(memory.v.rows, memory.v.cols);
    const BatchTask<Acc> task = this->heads_of(memory, memory.lse, tape.batch_, options);
    const Index entries = task.query.size(0);
    const auto heads = [entries](Matrix<Acc>& m, Index num_heads) {
      return HeadColumns<Acc>(memory_of(m)).heads(num_heads, entries);
    };
    BatchGradient<Acc> call{task, heads(tape.grad_concat_, c.num_heads),
                            heads(tape.grad_q_, c.num_heads), heads(tape.grad_k_, c.kv_heads),
                            heads(tape.grad_v_, c.kv_heads)};
    if (c.add_bias_kv) {
      tape.grad_bias_k_.resize(tape.batch_.count, layer_.bias_k.size());
      tape.grad_bias_v_.resize(tape.batch_.count, layer_.bias_v.size());
      call.grad_extra_key = tape.grad_bias_k_.data();
      call.grad_extra_value = tape.grad_bias_v_.data();
    }
    mha::detail::backward(call, rules, options.executor, &tape.scratch_);
    if (c.add_bias_kv) {
      for (Index b = 0; b < tape.batch_.count; ++b) {
        grads.bias_k += tape.grad_bias_k_.row(b);
        grads.bias_v += tape.grad_bias_v_.row(b);
      }
    }

    // The rotation back: its pairs mirrored, turned the same way, and mirrored again.
    if (c.rotary) {
      LayerMemory<Acc> turned = memory;
      turned.q = HeadColumns<Acc>(memory_of(tape.grad_q_));
      turned.k = HeadColumns<Acc>(memory_of(tape.grad_k_));
      mirror(tape.grad_q_, c.num_heads);
      mirror(tape.grad_k_, c.kv_heads);
      this->rotate(turned, rules, tape.batch_, options);
      mirror(tape.grad_q_, c.num_heads);
      mirror(tape.grad_k_, c.kv_heads);
    }

    // q = x W_Q + b_Q, and so on
    const ProjectionGradients<Acc> products(
        options.executor, tape.scratch_, std::max(tape.query_.rows, tape.key_.rows),
        std::max({tape.query_.cols, tape.key_.cols, tape.value_.cols}));
    backward_projection<Acc>(products, grads.q_proj, layer_.q_proj, tape.query_,
                             memory_of(tape.grad_q_), memory_of(grads.query), false);
    Matrix<Acc>& grad_key = one ? grads.query : grads.key;
    Matrix<Acc>& grad_value = apart ? grads.value : grad_key;
    backward_projection<Acc>(products, grads.k_proj, layer_.k_proj, tape.key_,
                             memory_of(tape.grad_k_), memory_of(grad_key), one);
    backward_projection<Acc>(products, grads.v_proj, layer_.v_proj, tape.value_,
                             memory_of(tape.grad_v_), memory_of(grad_value), !apart);
  }

 private:
  /// Turns the sign of the second number of every pair of rotated channels.
  void mirror(Matrix<Acc>& m, Index num_heads) const {
    const Rotary& rotary = *layer_.config().rotary;
    const Index width = num_heads == 0 ? 0 : m.cols() / num_heads;
    const Index half = rotary.dim / 2;
    for (Index i = 0; i < m.rows(); ++i) {
      for (Index h = 0; h < num_heads; ++h) {
        for (Index k = 0; k < half; ++k) {
          const Index second = rotary.pairs == RotaryPairs::half ? k + half : 2 * k + 1;
          m(i, h * width + second) = -m(i, h * width + second);
        }
      }
    }
  }

  const Layer& layer_;
};

}  // namespace detail
}  // namespace mha
