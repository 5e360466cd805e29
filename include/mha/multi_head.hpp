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

#include "mha/internal/call/batch.hpp"
#include "mha/internal/call/call_form.hpp"
#include "mha/internal/layer/backward.hpp"
#include "mha/internal/layer/cached_calls.hpp"
#include "mha/internal/layer/check.hpp"
#include "mha/internal/layer/forward.hpp"
#include "mha/internal/layer/initialise.hpp"
#include "mha/internal/layer/result.hpp"
#include "mha/internal/layer/sequences.hpp"
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

/// What MultiHead::forward returns.
template <class Scalar>
struct MultiHeadResult {
  Matrix<Scalar> output;  ///< rows of query x out_dim
  /// [batch, num_heads (1 if averaged), query_len, kv_len], if asked for; rows sum to 1 (less with
  /// sinks), or are all 0. In a ragged batch query_len and kv_len are those of the longest, and
  /// shorter sequences are padded with 0. add_bias_kv and add_zero_attn each append a column, behind
  /// the padding: the weight of bias_k stands in column kv_len, that of the key of zeros in the last
  /// one, for every sequence alike.
  Tensor<accumulator_t<Scalar>> weights;
  Matrix<accumulator_t<Scalar>> lse;  ///< rows of query x num_heads, if asked for
};

/// Multi-head attention with its four projections.
/// @tparam Scalar   float, double, long double, Eigen::half, Eigen::bfloat16, or any number with
///                  NumTraits
/// @tparam Heads    number of query heads, or Eigen::Dynamic: known at run time
/// @tparam HeadDim  channels of a head, or Eigen::Dynamic. If given, every size is fixed: all
///                  widths are Heads * HeadDim, and parameters up to Eigen's stack limit live
///                  inside the object.
template <class Scalar_, int Heads, int HeadDim = Eigen::Dynamic>
class MultiHead {
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
  using Result = MultiHeadResult<Scalar>;

  static constexpr bool kFixed = HeadDim != Eigen::Dynamic;
  /// Rows and columns of the weights at compile time.
  static constexpr int kWidth =
      detail::fits_on_stack<Scalar>(Heads, HeadDim) ? Heads * HeadDim : Eigen::Dynamic;
  using Linear = Projection<Scalar, kWidth, kWidth>;
  /// The default types of a call's last arguments, see call_form.hpp.
  template <class T>
  using Following = detail::Following<Options, T>;

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
  Index embed_dim() const noexcept { return config_.embed_dim; }
  Index num_heads() const noexcept { return config_.num_heads; }
  Index kv_heads() const noexcept { return config_.kv_heads; }
  Index head_dim() const noexcept { return config_.head_dim; }
  Index value_dim() const noexcept { return config_.value_dim; }
  Index out_dim() const noexcept { return config_.out_dim; }

  /// The forms of a call, which operator(), forward_into() and forward_training() have too:
  ///     forward(x)                    self-attention
  ///     forward(x, context)           cross-attention: queries from x, keys and values from context
  ///     forward(query, key, value)    general attention
  /// each followed by nothing, a rule, options, or a rule and options:
  ///     forward(x, causal())    forward(x, {.batch = 2})    forward(x, causal(), {.batch = 2})
  /// Inputs: any Eigen expressions, one token per row, sequence after sequence. The query has rows x
  /// embed_dim, the key rows x kdim, the value as many rows as the key x vdim.
  /// Rule: masks and score modifiers, joined by `&`; b, h, i, j count within the call's sequences.
  /// Options: a MultiHeadOptions, how rows form sequences, what to return, who computes.
  /// @throws std::invalid_argument if shapes disagree; nothing has been computed then
  /// Cost: 2 rows (inputs * outputs) flops per projection, and attention()'s; rows x (q + k + v +
  /// concat) scalars.
  template <class A, class B = Options, class C = Following<B>, class D = Following<C>,
            class E = Following<D>>
  requires(!detail::IsCache<B>) [[nodiscard]] Result
      forward(const A& a, const B& b = B{}, const C& c = C{}, const D& d = D{},
              const E& e = E{}) const {
    const Call<A, B, C, D, E> call(a, b, c, d, e);
    return forward_views(call.query(), call.key(), call.value(), detail::as_rules(call.rule()),
                         call.options());
  }

  /// The output of forward(), in each of its forms.
  template <class A, class B = Options, class C = Following<B>, class D = Following<C>,
            class E = Following<D>>
  requires(!detail::IsCache<B>) [[nodiscard]] Matrix<Scalar> operator()(
      const A& a, const B& b = B{}, const C& c = C{}, const D& d = D{}, const E& e = E{}) const {
    return forward(a, b, c, d, e).output;
  }

  /// The output of forward(), in each of its forms, written to memory of yours: any Eigen matrix,
  /// block or map of query.rows() x out_dim that shares no memory with query, key or value. With
  /// options.workspace nothing is allocated after the first call of a shape.
  /// @throws std::invalid_argument if shapes disagree, output overlaps an input, or weights or lse are
  ///         asked for; nothing has been written then
  template <EigenInMemory O, class A, class B = Options, class C = Following<B>,
            class D = Following<C>, class E = Following<D>>
  requires(!detail::IsCache<B>) void forward_into(O&& output, const A& a, const B& b = B{},
                                                  const C& c = C{}, const D& d = D{},
                                                  const E& e = E{}) const {
    static_assert(std::is_same_v<typename std::remove_cvref_t<O>::Scalar, Scalar>,
                  "mha: the output of MultiHead must have its Scalar");
    const Call<A, B, C, D, E> call(a, b, c, d, e);
    forward_views_into(matrix_view(output), call.query(), call.key(), call.value(),
                       detail::as_rules(call.rule()), call.options());
  }

  /// The layer with caches, one for each sequence of x's rows: adds x's projected keys and values to them, and
  /// attends to all that they have. A prompt, a part of one and a single token are one and the same call:
  ///     y = layer.forward(x, s.layer(0), causal());
  ///     y = layer.forward(x, {s.layer(0), t.layer(0)}, causal(), {.sequences = {7, 1}});
  /// @param caches  a KvCache, a KvLayer, or a list of them, each of another sequence
  /// @param rule    required: mha::all() if every query may attend to every key. Queries stand behind the keys
  ///                that were there, for causal() and rotary alike
  /// @param options as ever; past_len and what is said of keys is the caches' own. Without `sequences` all have
  ///                as many rows. `positions` may be given for rows that are a tree of guesses
  /// In functions of yours, masks and biases row 0 is the call's first (of each sequence); so it is for dropout.
  /// window() and alibi() go by the row too, and know nothing of guesses.
  /// @throws std::invalid_argument if anything does not fit, std::length_error if a cache is full; no cache has
  ///         changed then, nor if a function of yours throws (a page that was shared may have been copied)
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Result forward(const A& x, const KvLayers& caches, const R& rule = R{},
                               const O& options = O{}) const {
    return detail::cached_result("MultiHead::forward", *this, x, caches, rule, options, true);
  }
  /// The output of forward() with caches.
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Matrix<Scalar> operator()(const A& x, const KvLayers& caches, const R& rule = R{},
                                          const O& options = O{}) const {
    return forward(x, caches, rule, options).output;
  }
  /// The same in memory of yours.
  template <EigenInMemory Y, class A, class R = Options, class O = Options>
  void forward_into(Y&& output, const A& x, const KvLayers& caches, const R& rule = R{},
                    const O& options = O{}) const {
    detail::cached_into("MultiHead::forward_into", *this, matrix_view(output), x, caches, rule,
                        options);
  }
  /// The two halves of it: append() adds keys and values of a context, attend() attends to what is there. For
  /// cross-attention the context is projected once. The last query of attend() stands at the last key, or, of more
  /// queries than keys, the first at the first.
  template <EigenDense A>
  void append(const A& context, const KvLayers& caches, const Options& options = {}) const {
    detail::cached_append("MultiHead::append", *this, context, context, caches, options);
  }
  template <EigenDense K, EigenDense V>
  void append(const K& key, const V& value, const KvLayers& caches,
              const Options& options = {}) const {
    detail::cached_append("MultiHead::append", *this, key, value, caches, options);
  }
  template <class A, class R = Options, class O = Options>
  [[nodiscard]] Result attend(const A& x, const KvLayers& caches, const R& rule = R{},
                              const O& options = O{}) const {
    return detail::cached_result("MultiHead::attend", *this, x, caches, rule, options, false);
  }

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
    const Call<A, B, C, D, E> call(a, b, c, d, e);
    forward_training_views(pass, call.query(), call.key(), call.value(),
                           detail::as_rules(call.rule()), call.options());
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
    constexpr const char* kWhere = "MultiHead::backward";
    const auto given = detail::rule_and_options<Options>(rule, options);
    static_assert(
        detail::TypesFit<Scalar, Scalar, Scalar, detail::rule_t<decltype(given)>>::kChecked);
    decltype(auto) rules = detail::as_rules(given.rule());
    const View grad = matrix_view(grad_output);
    const detail::LayerGradient<MultiHead> work(*this);
    work.check(kWhere, gradients, pass, grad, rules, given.options());
    work.backward(gradients, pass, grad, rules, given.options());
  }

  /// Every parameter by name, to be read or written: what an optimiser steps through, beside the
  /// gradients' own parameters().
  [[nodiscard]] std::vector<Parameter<Scalar>> parameters() { return detail::parameters_of(*this); }
  [[nodiscard]] std::vector<Parameter<const Scalar>> parameters() const {
    return detail::parameters_of(*this);
  }

  /// Bytes of Workspace that a call of forward() or forward_into() needs. 0 for scalars that the
  /// kernels do not compute in: those calls allocate.
  /// @param query_rows, key_rows  of all sequences of the call
  /// @throws std::invalid_argument if they do not fit the options
  [[nodiscard]] std::size_t workspace_bytes(Index query_rows, Index key_rows,
                                            const Options& options = {}) const {
    constexpr const char* kWhere = "MultiHead::workspace_bytes";
    detail::check_parameters(kWhere, *this);
    const Batch batch = detail::cut_sequences(kWhere, query_rows, key_rows, options);
    detail::check_total_size<Acc>(kWhere, config_, query_rows, key_rows, batch, false);
    if constexpr (!detail::has_kernels<Acc>) {
      return 0;
    } else {
      if (batch.count == 0) return 0;
      return Pass(*this).bytes(query_rows, key_rows, batch, options);
    }
  }

 private:
  using View = MatrixView<const Scalar>;
  using Batch = detail::SequenceBatch;
  using Pass = detail::LayerPass<MultiHead>;
  template <class A, class B, class C, class D, class E>
  using Call =
      detail::LayerCall<MultiHead, std::remove_cvref_t<A>, std::remove_cvref_t<B>,
                        std::remove_cvref_t<C>, std::remove_cvref_t<D>, std::remove_cvref_t<E>>;

  template <class RuleSet>
  Result forward_views(const View& query, const View& key, const View& value, const RuleSet& rules,
                       const Options& options) const {
    const Batch batch =
        detail::check_call("MultiHead::forward", *this, query, key, value, rules, options).batch;
    detail::LayerResult<MultiHead> result(*this, query.rows, batch, options);
    Pass(*this).compute(query, key, value, rules, options, batch, result.output(), result.lse(),
                        result.weights());
    return result.finish();
  }

  template <class RuleSet>
  void forward_views_into(const MatrixView<Scalar>& output, const View& query, const View& key,
                          const View& value, const RuleSet& rules, const Options& options) const {
    constexpr const char* kWhere = "MultiHead::forward_into";
    const auto call = detail::check_call(kWhere, *this, query, key, value, rules, options);
    detail::check_output(kWhere, *this, output, call);
    detail::check_output_alone(kWhere, options);
    Tensor<Acc> no_weights;
    Pass(*this).compute(query, key, value, rules, options, call.batch, output, {}, no_weights);
  }

  template <class RuleSet>
  void forward_training_views(TrainingPass<MultiHead>& pass, const View& query, const View& key,
                              const View& value, const RuleSet& rules,
                              const Options& options) const {
    constexpr const char* kWhere = "MultiHead::forward_training";
    const auto call = detail::check_call(kWhere, *this, query, key, value, rules, options);
    detail::check_output_alone(kWhere, options);
    const detail::LayerGradient<MultiHead> work(*this);
    work.check_inputs(kWhere, pass, call);
    work.forward(pass, query, key, value, rules, options, call.batch);
  }

  friend class detail::LayerGradient<MultiHead>;
  MultiHeadConfig config_;
  detail::ObjectId id_;
};

}  // namespace mha
