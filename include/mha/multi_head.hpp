// SPDX-License-Identifier: MIT
//
// The multi-head attention layer:
//     MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W_O + b_O
//     head_i             = Attention(Q W_i^Q + b_i^Q, K W_i^K + b_i^K, V W_i^V + b_i^V)
// Tokens are rows. Data flows one way: project, split the heads (a view), attention.hpp,
// concatenate (each head writes its columns), project. Masks and score modifiers pass through
// untouched. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
#pragma once

#include "mha/internal/support/language.hpp"

#include "mha/internal/call/call_form.hpp"
#include "mha/internal/layer/backward.hpp"
#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/initialise.hpp"
#include "mha/layer_calls.hpp"
#include "mha/multi_head_config.hpp"
#include "mha/multi_head_training.hpp"
#include "mha/projection.hpp"
#include "mha/score.hpp"

namespace mha::inline MHA_ABI {

namespace detail {

/// No argument is a matrix without a name, whose memory ends with the call, or an expression, which
/// has none.
template <class... Arguments>
inline constexpr bool outlives_call = ((!EigenDense<Arguments> ||
                                        (EigenInMemory<Arguments> &&
                                         (NamedMemory<Arguments> || !OwnsMemory<Arguments>))) &&
                                       ...);

}  // namespace detail

/// Multi-head attention with its four projections.
/// @tparam Scalar   float, double, long double, Eigen::half, Eigen::bfloat16, or any number with
///                  NumTraits
/// @tparam Heads    number of query heads, or Eigen::Dynamic: known at run time
/// @tparam HeadDim  channels of a head, or Eigen::Dynamic. If given, every size is fixed: all
///                  widths are Heads * HeadDim, and parameters up to Eigen's stack limit live
///                  inside the object.
template <class Scalar_, int Heads, int HeadDim = Eigen::Dynamic>
class MultiHead : public LayerCalls<MultiHead<Scalar_, Heads, HeadDim>, Scalar_> {
  using Calls = LayerCalls<MultiHead, Scalar_>;

  static_assert(AttentionScalar<Scalar_>,
                "mha: the Scalar of MultiHead must be a real floating-point type: float, double, "
                "Eigen::half, Eigen::bfloat16, or a number with Eigen NumTraits");
  static_assert(Heads > 0 || Heads == Eigen::Dynamic,
                "mha: Heads must be at least 1, or Eigen::Dynamic for a number known at run time");
  static_assert(
      HeadDim > 0 || HeadDim == Eigen::Dynamic,
      "mha: HeadDim must be at least 1, or Eigen::Dynamic for a number known at run time");
  static_assert(HeadDim == Eigen::Dynamic || Heads != Eigen::Dynamic,
                "mha: with HeadDim fixed at compile time Heads must be fixed too");

 public:
  using Scalar = Scalar_;
  using Acc = accumulator_t<Scalar>;
  using Options = MultiHeadOptions;
  using typename Calls::Result;
  template <class T>
  using Following = typename Calls::template Following<T>;

  static constexpr bool kFixed = HeadDim != Eigen::Dynamic;
  /// Rows and columns of the weights at compile time.
  static constexpr int kWidth =
      detail::fits_on_stack<Scalar>(Heads, HeadDim) ? Heads * HeadDim : Eigen::Dynamic;
  using Linear = Projection<Scalar, kWidth, kWidth>;

  Linear q_proj;             ///< embed_dim -> num_heads * head_dim
  Linear k_proj;             ///< kdim      -> kv_heads * head_dim
  Linear v_proj;             ///< vdim      -> kv_heads * value_dim
  Linear out_proj;           ///< num_heads * value_dim -> out_dim
  RowVector<Scalar> bias_k;  ///< kv_heads * head_dim with add_bias_kv, else empty; never rotated
  RowVector<Scalar> bias_v;  ///< kv_heads * value_dim with add_bias_kv, else empty

  /// A layer whose sizes are all fixed at compile time.
  MultiHead() requires(kFixed) : MultiHead(MultiHeadConfig{}) {}

  /// The usual layer: embed_dim = Heads * head_dim everywhere.
  explicit MultiHead(Index embed_dim) : MultiHead(MultiHeadConfig{.embed_dim = embed_dim}) {}

  /// Parameters start like those of PyTorch's nn.MultiheadAttention (not with its random numbers):
  /// q, k, v weights Xavier-uniform, over all three together if key and value are embed_dim wide;
  /// output weights uniform within 1/sqrt(inputs) of 0; biases 0; bias_k and bias_v Xavier-normal.
  /// Two layers differ, also if made alike, unless their configs have one seed.
  /// @throws std::invalid_argument if the sizes contradict each other
  explicit MultiHead(const MultiHeadConfig& config)
      : config_(detail::resolve(config, Heads, HeadDim)) {
    const MultiHeadConfig& c = config_;
    q_proj.resize(c.embed_dim, c.num_heads * c.head_dim, c.bias);
    k_proj.resize(c.kdim, c.kv_heads * c.head_dim, c.bias);
    v_proj.resize(c.vdim, c.kv_heads * c.value_dim, c.bias);
    out_proj.resize(c.num_heads * c.value_dim, c.out_dim, c.bias);
    detail::initialise(*this);
  }

  /// Every size resolved, and the seed that was drawn: MultiHead(config()) starts as this layer did.
  const MultiHeadConfig& config() const noexcept { return config_; }

  /// A forward pass that backward() can undo: forward() in its forms, whose inputs must lie in memory
  /// and live until then. Weights and lse are not returned.
  /// @param pass  new, or used before: calls of the same sizes then work in its memory. No input may
  ///              lie in its output, and none be a temporary matrix, since the pass refers to them
  /// Memory: q, k, v, the concatenated heads and lse, kept in the pass.
  template <class A, class B = Options, class C = Following<B>, class D = Following<C>,
            class E = Following<D>>
  void forward_training(TrainingPass<MultiHead>& pass, A&& a, B&& b = B{}, C&& c = C{}, D&& d = D{},
                        E&& e = E{}) const {
    static_assert(detail::outlives_call<A, B, C>,
                  "mha::MultiHead::forward_training: the pass refers to its inputs until "
                  "backward(): give named matrices, not temporary ones or expressions");
    const typename Calls::template Call<A, B, C, D, E> call(a, b, c, d, e);
    decltype(auto) rules = detail::as_rules(call.rule());
    forward_training_views(pass, {call.query(), call.key(), call.value()},
                           detail::layer_gradient_rules<Acc, false>(rules), call.options());
  }

  /// The gradients of the loss by parameters (added to `gradients`) and inputs (overwritten there),
  /// from grad_output = d loss / d output.
  /// @param gradients    MultiHeadGradients of this layer: gradients(layer), set_zero(). None of its
  ///                     members may be an input of the pass, or grad_output
  /// @param pass         of forward_training() of this layer, not of a copy (a layer that was moved is
  ///                     still this one)
  /// @param grad_output  rows of query x out_dim
  /// @param rule, options  nothing, a rule, options, or a rule and options, as in forward_training():
  ///                     the rule of the same type, sizes and own numbers; one that collects a
  ///                     gradient, bias(m, gradient), counts as bias(m). Executor and workspace may
  ///                     differ
  /// @throws std::invalid_argument if anything of that does not hold; nothing has been written then.
  ///         What cannot be seen is up to you: that inputs, parameters, masks and biases, and what
  ///         functions of yours do, are as in the forward pass, and the inputs' memory still there. If
  ///         not, gradients are those of something else
  /// Cost: 2 to 2.5 times the forward pass.
  template <EigenInMemory G, class R = Options, class O = Following<R>>
  void backward(MultiHeadGradients<MultiHead>& gradients, TrainingPass<MultiHead>& pass,
                const G& grad_output, const R& rule = R{}, const O& options = O{}) const {
    static_assert(std::is_same_v<typename G::Scalar, Scalar>,
                  "mha: grad_output must have the layer's Scalar");
    const auto given = detail::rule_and_options<Options>(rule, options);
    static_assert(
        detail::TypesFit<Scalar, Scalar, Scalar, detail::rule_t<decltype(given)>>::kChecked);
    decltype(auto) rules = detail::as_rules(given.rule());
    backward_views(gradients, pass, matrix_view(grad_output),
                   detail::layer_gradient_rules<Acc, true>(rules), given.options());
  }

  /// Every parameter by name, to be read or written: what an optimiser steps through, beside the
  /// gradients' own parameters().
  [[nodiscard]] std::vector<Parameter<Scalar>> parameters() { return detail::parameters_of(*this); }
  [[nodiscard]] std::vector<Parameter<const Scalar>> parameters() const {
    return detail::parameters_of(*this);
  }

 private:
  static constexpr detail::LayerNames kNames = MHA_LAYER_NAMES("MultiHead");
  using AnyRules = detail::LayerGradientRules<Acc>;

  void forward_training_views(TrainingPass<MultiHead>& pass,
                              const detail::LayerInputs<Scalar>& inputs, const AnyRules& rules,
                              const Options& options) const {
    const auto layer = detail::layer_view(*this);
    const detail::SequenceBatch batch =
        detail::check_training<Scalar>("MultiHead::forward_training", layer, inputs, rules, options,
                                       detail::memory_of(pass.output));
    detail::run_training(layer, id_.value(), pass.output, pass.tape_, inputs, rules, options,
                         batch);
  }

  void backward_views(MultiHeadGradients<MultiHead>& gradients, TrainingPass<MultiHead>& pass,
                      const MatrixView<const Scalar>& grad_output, const AnyRules& rules,
                      const Options& options) const {
    const auto layer = detail::layer_view(*this);
    const detail::LayerRecord<Scalar>& record = pass.tape_;
    detail::check_layer_backward<Scalar>("MultiHead::backward", layer, id_.value(),
                                         gradient_view(gradients), record, grad_output, rules,
                                         options);
    detail::run_layer_backward(layer, gradients, pass.tape_, grad_output, rules, options);
  }

  friend Calls;
  MultiHeadConfig config_;
  detail::ObjectId id_;
};

}  // namespace mha
