// SPDX-License-Identifier: MIT
//
// The multi-head attention layer:
//     MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W_O + b_O
//     head_i             = Attention(Q W_i^Q + b_i^Q, K W_i^K + b_i^K, V W_i^V + b_i^V)
// Tokens are rows. Data flows one way: project, split the heads (a view), attention.hpp,
// concatenate (each head writes its columns), project. Masks and score modifiers pass through
// untouched. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
#pragma once

#include "mha/batch.hpp"
#include "mha/extra_keys.hpp"
#include "mha/initialise.hpp"
#include "mha/layer_memory.hpp"
#include "mha/multi_head_config.hpp"
#include "mha/projection.hpp"
#include "mha/sequences.hpp"

namespace mha {

/// What MultiHead::forward returns.
template <class Scalar>
struct MultiHeadResult {
  Matrix<Scalar> output;  ///< rows of query x out_dim
  /// [batch, num_heads (1 if averaged), query_len, kv_len], if asked for; rows sum to 1 (less with
  /// sinks), or are all 0. Shorter sequences of a ragged batch are padded with 0. add_bias_kv and
  /// add_zero_attn each append a column.
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

  Linear q_proj;             ///< embed_dim -> num_heads * head_dim
  Linear k_proj;             ///< kdim      -> kv_heads * head_dim
  Linear v_proj;             ///< vdim      -> kv_heads * value_dim
  Linear out_proj;           ///< num_heads * value_dim -> out_dim
  RowVector<Scalar> bias_k;  ///< kv_heads * head_dim with add_bias_kv, else empty
  RowVector<Scalar> bias_v;  ///< kv_heads * value_dim with add_bias_kv, else empty

  /// A layer whose sizes are all fixed at compile time.
  MultiHead() requires(kFixed) : MultiHead(MultiHeadConfig{}) {}

  /// The usual layer: embed_dim = Heads * head_dim everywhere.
  explicit MultiHead(Index embed_dim) : MultiHead(MultiHeadConfig{.embed_dim = embed_dim}) {}

  /// Parameters start like those of PyTorch's nn.MultiheadAttention (not with its random numbers):
  /// q, k, v weights Xavier-uniform, over all three together if key and value are embed_dim wide;
  /// output weights uniform within 1/sqrt(inputs) of 0; biases 0; bias_k and bias_v Xavier-normal.
  /// @throws std::invalid_argument if the sizes contradict each other
  explicit MultiHead(const MultiHeadConfig& config)
      : config_(detail::resolve(config, Heads, HeadDim)) {
    const MultiHeadConfig& c = config_;
    q_proj.resize(c.embed_dim, c.num_heads * c.head_dim, c.bias);
    k_proj.resize(c.kdim, c.kv_heads * c.head_dim, c.bias);
    v_proj.resize(c.vdim, c.kv_heads * c.value_dim, c.bias);
    out_proj.resize(c.num_heads * c.value_dim, c.out_dim, c.bias);
    initialise();
  }

  const MultiHeadConfig& config() const noexcept { return config_; }  ///< every size resolved
  Index embed_dim() const noexcept { return config_.embed_dim; }
  Index num_heads() const noexcept { return config_.num_heads; }
  Index kv_heads() const noexcept { return config_.kv_heads; }
  Index head_dim() const noexcept { return config_.head_dim; }
  Index value_dim() const noexcept { return config_.value_dim; }
  Index out_dim() const noexcept { return config_.out_dim; }

  /// General attention: query from one place, key and value from others.
  /// @param query    rows x embed_dim, one token per row, sequence after sequence; any Eigen
  ///                 expression
  /// @param key      rows x kdim
  /// @param value    as many rows as key x vdim
  /// @param rule     masks and score modifiers joined by `&`; b, h, i, j count within the call's
  ///                 sequences
  /// @param options  how rows form sequences, what to return, who computes
  /// @throws std::invalid_argument if shapes disagree; nothing has been computed then
  /// Cost: 2 rows (inputs * outputs) flops per projection, and attention()'s; rows x (q + k + v +
  /// concat) scalars.
  template <EigenDense Q, EigenDense K, EigenDense V, class RuleType = All>
  [[nodiscard]] Result forward(const Q& query, const K& key, const V& value,
                               const RuleType& rule = {}, const Options& options = {}) const {
    static_assert(detail::TypesFit<typename Q::Scalar, typename K::Scalar, typename V::Scalar,
                                   RuleType>::kChecked);
    static_assert(std::is_same_v<typename Q::Scalar, Scalar>,
                  "mha: the arguments of MultiHead must have its Scalar");
    const detail::Argument<Q> q(query);
    const detail::Argument<K> k(key);
    const detail::Argument<V> v(value);
    return forward_views(q.view(), k.view(), v.view(), detail::as_rules(rule), options);
  }
  template <EigenDense Q, EigenDense K, EigenDense V>
  [[nodiscard]] Result forward(const Q& query, const K& key, const V& value,
                               const Options& options) const {
    return forward(query, key, value, All{}, options);
  }

  /// Cross-attention: queries from x, keys and values from context.
  template <EigenDense X, EigenDense C, IsRule RuleType = All>
  [[nodiscard]] Result forward(const X& x, const C& context, const RuleType& rule = {},
                               const Options& options = {}) const {
    static_assert(
        std::is_same_v<typename X::Scalar, Scalar> && std::is_same_v<typename C::Scalar, Scalar>,
        "mha: the arguments of MultiHead must have its Scalar");
    const detail::Argument<X> q(x);
    const detail::Argument<C> kv(context);
    return forward_views(q.view(), kv.view(), kv.view(), detail::as_rules(rule), options);
  }
  template <EigenDense X, EigenDense C>
  [[nodiscard]] Result forward(const X& x, const C& context, const Options& options) const {
    return forward(x, context, All{}, options);
  }

  /// Self-attention.
  template <EigenDense X, IsRule RuleType = All>
  [[nodiscard]] Result forward(const X& x, const RuleType& rule = {},
                               const Options& options = {}) const {
    static_assert(std::is_same_v<typename X::Scalar, Scalar>,
                  "mha: the arguments of MultiHead must have its Scalar");
    const detail::Argument<X> all(x);
    return forward_views(all.view(), all.view(), all.view(), detail::as_rules(rule), options);
  }
  template <EigenDense X>
  [[nodiscard]] Result forward(const X& x, const Options& options) const {
    return forward(x, All{}, options);
  }

  /// The output of forward(), in each of its forms, written to memory of yours: any Eigen matrix,
  /// block or map of query.rows() x out_dim. With options.workspace nothing is allocated after the
  /// first call of a shape.
  /// @throws std::invalid_argument if shapes disagree, or weights or lse are asked for; nothing has
  ///         been written then
  template <EigenInMemory O, EigenDense Q, EigenDense K, EigenDense V, class RuleType = All>
  void forward_into(O&& output, const Q& query, const K& key, const V& value,
                    const RuleType& rule = {}, const Options& options = {}) const {
    static_assert(detail::TypesFit<typename Q::Scalar, typename K::Scalar, typename V::Scalar,
                                   RuleType>::kChecked);
    const detail::Argument<Q> q(query);
    const detail::Argument<K> k(key);
    const detail::Argument<V> v(value);
    forward_views_into(matrix_view(output), q.view(), k.view(), v.view(), detail::as_rules(rule),
                       options);
  }
  template <EigenInMemory O, EigenDense X, EigenDense C, IsRule RuleType = All>
  void forward_into(O&& output, const X& x, const C& context, const RuleType& rule = {},
                    const Options& options = {}) const {
    const detail::Argument<X> q(x);
    const detail::Argument<C> kv(context);
    forward_views_into(matrix_view(output), q.view(), kv.view(), kv.view(), detail::as_rules(rule),
                       options);
  }
  template <EigenInMemory O, EigenDense X, IsRule RuleType = All>
  void forward_into(O&& output, const X& x, const RuleType& rule = {},
                    const Options& options = {}) const {
    const detail::Argument<X> all(x);
    forward_views_into(matrix_view(output), all.view(), all.view(), all.view(),
                       detail::as_rules(rule), options);
  }
  template <EigenInMemory O, EigenDense X>
  void forward_into(O&& output, const X& x, const Options& options) const {
    forward_into(std::forward<O>(output), x, All{}, options);
  }

  /// Bytes of Workspace that a call of forward() or forward_into() needs. 0 for scalars that the
  /// kernels do not compute in: those calls allocate.
  /// @param query_rows, key_rows  of all sequences of the call
  [[nodiscard]] std::size_t workspace_bytes(Index query_rows, Index key_rows,
                                            const Options& options = {}) const {
    if constexpr (!detail::has_kernels<Acc>) {
      return 0;
    } else {
      const Batch batch = detail::cut_sequences(query_rows, key_rows, options);
      if (batch.count == 0) return 0;
      const bool own_lse = config_.add_zero_attn && !options.need_lse;
      detail::LayerSizes s = sizes(query_rows, key_rows, batch.count, own_lse, batch.ragged);
      for (const Inputs inputs : {Inputs::all_apart, Inputs::one_context, Inputs::one_matrix}) {
        for (const bool contiguous : {true, false}) {
          s.scratch = std::max(s.scratch, scratch_bytes(query_rows, key_rows, batch, inputs,
                                                        contiguous, options.executor));
        }
      }
      return detail::layer_bytes<Acc>(s);
    }
  }

  /// The output of forward(), in each of its forms.
  template <EigenDense Q, EigenDense K, EigenDense V, class RuleType = All>
  [[nodiscard]] Matrix<Scalar> operator()(const Q& query, const K& key, const V& value,
                                          const RuleType& rule = {},
                                          const Options& options = {}) const {
    return forward(query, key, value, rule, options).output;
  }
  template <EigenDense Q, EigenDense K, EigenDense V>
  [[nodiscard]] Matrix<Scalar> operator()(const Q& query, const K& key, const V& value,
                                          const Options& options) const {
    return forward(query, key, value, options).output;
  }
  template <EigenDense X, EigenDense C, IsRule RuleType = All>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const C& context, const RuleType& rule = {},
                                          const Options& options = {}) const {
    return forward(x, context, rule, options).output;
  }
  template <EigenDense X, EigenDense C>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const C& context,
                                          const Options& options) const {
    return forward(x, context, options).output;
  }
  template <EigenDense X, IsRule RuleType = All>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const RuleType& rule = {},
                                          const Options& options = {}) const {
    return forward(x, rule, options).output;
  }
  template <EigenDense X>
  [[nodiscard]] Matrix<Scalar> operator()(const X& x, const Options& options) const {
    return forward(x, options).output;
  }

 private:
  using View = MatrixView<const Scalar>;
  using Batch = detail::SequenceBatch;

  void initialise() {
    const MultiHeadConfig& c = config_;
    detail::Random random(c.seed);
    const Index outputs[] = {q_proj.outputs(), k_proj.outputs(), v_proj.outputs()};
    const bool packed = c.kdim == c.embed_dim && c.vdim == c.embed_dim;
    const auto xavier = [&](Linear& linear, Index outs) {
      const auto fans = static_cast<double>(linear.inputs() + outs);
      detail::fill_uniform(linear.weight, std::sqrt(6 / fans), random);
    };
    const Index all = outputs[0] + outputs[1] + outputs[2];
    xavier(q_proj, packed ? all : outputs[0]);
    xavier(k_proj, packed ? all : outputs[1]);
    xavier(v_proj, packed ? all : outputs[2]);
    detail::fill_uniform(out_proj.weight, 1 / std::sqrt(static_cast<double>(out_proj.inputs())),
                         random);
    if (!c.add_bias_kv) return;
    bias_k.resize(c.kv_heads * c.head_dim);
    bias_v.resize(c.kv_heads * c.value_dim);
    detail::fill_normal(bias_k, 1 / std::sqrt(static_cast<double>(bias_k.size())), random);
    detail::fill_normal(bias_v, 1 / std::sqrt(static_cast<double>(bias_v.size())), random);
  }

  /// The checks of a call; nothing has been computed when they throw.
  template <class RuleSet>
  Batch check(const View& query, const View& key, const View& value, const RuleSet& rules,
              const Options& options) const {
    const MultiHeadConfig& c = config_;
    detail::require(query.cols == c.embed_dim, "MultiHead: query.cols() must equal embed_dim, got ",
                    query.cols, " and ", c.embed_dim);
    detail::require(key.cols == c.kdim, "MultiHead: key.cols() must equal kdim, got ", key.cols,
                    " and ", c.kdim);
    detail::require(value.cols == c.vdim, "MultiHead: value.cols() must equal vdim, got ",
                    value.cols, " and ", c.vdim);
    detail::require(value.rows == key.rows,
                    "MultiHead: value.rows() must equal key.rows() (kv_len), got ", value.rows,
                    " and ", key.rows);
    check_parameters();
    const Batch batch = detail::cut_sequences(query.rows, key.rows, options);
    detail::require(c.rotary || (options.positions.empty() && options.kv_positions.empty()),
                    "MultiHead: positions are for a layer with rotary");
    detail::require(options.positions.size() <= 1 || options.positions.size() == query.rows,
                    "MultiHead: positions must be one per row of query, got ",
                    options.positions.size(), " and ", query.rows);
    detail::require(options.kv_positions.size() <= 1 || options.kv_positions.size() == key.rows,
                    "MultiHead: kv_positions must be one per row of key, got ",
                    options.kv_positions.size(), " and ", key.rows);
    detail::require(
        !options.kv_positions.empty() || options.positions.empty() || query.rows == key.rows,
        "MultiHead: kv_positions must be given beside positions, since key.rows() is "
        "not query.rows(): ",
        key.rows, " and ", query.rows);
    rules.check(
        {"MultiHead", batch.count, c.num_heads, batch.query_len, batch.kv_len, batch.ragged});
    return batch;
  }

  /// The parameters are public: they may have been replaced by some of another shape.
  void check_parameters() const {
    const MultiHeadConfig& c = config_;
    const auto check_one = [](const char* name, const Linear& linear, Index inputs, Index outputs) {
      detail::require(linear.weight.rows() == inputs && linear.weight.cols() == outputs,
                      "MultiHead: ", name, ".weight must be ", inputs, " x ", outputs, ", got ",
                      linear.weight.rows(), " x ", linear.weight.cols());
      detail::require(linear.bias.size() == 0 || linear.bias.size() == outputs, "MultiHead: ", name,
                      ".bias must have 0 or ", outputs, " entries, got ", linear.bias.size());
    };
    check_one("q_proj", q_proj, c.embed_dim, c.num_heads * c.head_dim);
    check_one("k_proj", k_proj, c.kdim, c.kv_heads * c.head_dim);
    check_one("v_proj", v_proj, c.vdim, c.kv_heads * c.value_dim);
    check_one("out_proj", out_proj, c.num_heads * c.value_dim, c.out_dim);
    const Index k_size = c.add_bias_kv ? c.kv_heads * c.head_dim : 0;
    const Index v_size = c.add_bias_kv ? c.kv_heads * c.value_dim : 0;
    detail::require(bias_k.size() == k_size && bias_v.size() == v_size,
                    "MultiHead: bias_k and bias_v must have ", k_size, " and ", v_size,
                    " entries, got ", bias_k.size(), " and ", bias_v.size());
  }

  template <class RuleSet>
  Result forward_views(const View& query, const View& key, const View& value, const RuleSet& rules,
                       const Options& options) const {
    const MultiHeadConfig& c = config_;
    const Batch batch = check(query, key, value, rules, options);
    Result result;
    result.output.resize(query.rows, c.out_dim);
    if (options.need_lse) result.lse.resize(query.rows, c.num_heads);
    if (options.need_weights || options.average_weights) {
      result.weights =
          Tensor<Acc>({batch.count, c.num_heads, batch.query_len,
                       batch.kv_len + (c.add_bias_kv ? 1 : 0) + (c.add_zero_attn ? 1 : 0)});
    }
    const MatrixView<Scalar> output{result.output.data(), query.rows, c.out_dim, c.out_dim, 1};
    const MatrixView<Acc> lse{result.lse.data(), result.lse.rows(), c.num_heads, c.num_heads, 1};
    compute(query, key, value, rules, options, batch, output, lse, result.weights);
    if (options.average_weights) result.weights = averaged(result.weights);
    return result;
  }

  template <class RuleSet>
  void forward_views_into(const MatrixView<Scalar>& output, const View& query, const View& key,
                          const View& value, const RuleSet& rules, const Options& options) const {
    const Batch batch = check(query, key, value, rules, options);
    detail::require(output.rows == query.rows && output.cols == config_.out_dim,
                    "MultiHead: output must be ", query.rows, " x ", config_.out_dim, ", got ",
                    output.rows, " x ", output.cols);
    detail::require(!options.need_weights && !options.average_weights && !options.need_lse,
                    "MultiHead: forward_into returns the output alone; weights and lse come from "
                    "forward");
    Tensor<Acc> no_weights;
    compute(query, key, value, rules, options, batch, output, {}, no_weights);
  }

  /// Sizes of a call's memory, without its scratch.
  detail::LayerSizes sizes(Index query_rows, Index key_rows, Index sequences, bool own_lse,
                           bool ragged) const {
    const MultiHeadConfig& c = config_;
    detail::LayerSizes s;
    s.query_rows = query_rows;
    s.key_rows = key_rows + (c.add_bias_kv ? sequences : 0);
    s.query_width = c.num_heads * c.head_dim;
    s.key_width = c.kv_heads * c.head_dim;
    s.value_width = c.kv_heads * c.value_dim;
    s.concat_width = c.num_heads * c.value_dim;
    s.lse_width = own_lse ? c.num_heads : 0;
    s.num_segments = ragged || c.add_bias_kv ? sequences : 0;
#if MHA_KERNELS
    if constexpr (detail::has_kernels<Acc>) {
      const auto apart = [](Index rows, Index inputs, Index heads, Index width) {
        return kernels::makes_tokens_lanes(rows, inputs, width) ? heads : 1;
      };
      s.query_heads = apart(query_rows, c.embed_dim, c.num_heads, s.query_width);
      s.key_heads = apart(key_rows, c.kdim, c.kv_heads, s.key_width);
      s.value_heads = apart(key_rows, c.vdim, c.kv_heads, s.value_width);
    }
#endif
    if constexpr (!std::is_same_v<Scalar, Acc>) {
      for (const Linear* linear : {&q_proj, &k_proj, &v_proj, &out_proj}) {
        s.wide_weight = std::max(s.wide_weight, linear->weight.size());
        s.wide_bias = std::max(s.wide_bias, linear->bias.size());
      }
    }
    return s;
  }

  /// Which inputs are one matrix: what is projected from one is projected together.
  enum class Inputs { all_apart, one_context, one_matrix };
  static Inputs inputs_of(const View& query, const View& key, const View& value) {
    const auto same = [](const View& a, const View& b) {
      return a.data == b.data && a.rows == b.rows && a.cols == b.cols &&
             a.row_stride == b.row_stride && a.col_stride == b.col_stride;
    };
    if (!same(key, value)) return Inputs::all_apart;
    return same(query, key) ? Inputs::one_matrix : Inputs::one_context;
  }

  /// The scratch of its steps, which share it: the largest counts.
  std::size_t scratch_bytes(Index query_rows, Index key_rows, const Batch& batch, Inputs inputs,
                            bool contiguous, const Executor& executor) const {
    std::size_t most = 0;
#if MHA_KERNELS
    if constexpr (detail::has_kernels<Acc>) {
      const MultiHeadConfig& c = config_;
      const Index q_width = c.num_heads * c.head_dim;
      const Index k_width = c.kv_heads * c.head_dim;
      const Index v_width = c.kv_heads * c.value_dim;
      const auto input = [&](Index rows, Index width, Index outputs, Index jobs) {
        most = std::max(most, detail::projection_plan<Acc, Scalar, Scalar, Acc>(
                                  rows, width, outputs, jobs, true, executor)
                                  .bytes());
      };
      if (!std::is_same_v<Scalar, Acc> || c.add_bias_kv) inputs = Inputs::all_apart;
      if (inputs == Inputs::one_matrix) {
        input(query_rows, c.embed_dim, std::max({q_width, k_width, v_width}), 3);
      } else {
        input(query_rows, c.embed_dim, q_width, 1);
        if (inputs == Inputs::one_context) {
          input(key_rows, c.kdim, std::max(k_width, v_width), 2);
        } else {
          input(key_rows, c.kdim, k_width, 1);
          input(key_rows, c.vdim, v_width, 1);
        }
      }
      if (c.add_bias_kv && batch.count > 1) {  // sequence by sequence, the shorter otherwise
        for (const Index rows : {batch.kv_len, kernels::kFewTokens - 1}) {
          input(rows, c.kdim, k_width, 1);
          input(rows, c.vdim, v_width, 1);
        }
      }
      most = std::max(most,
                      detail::projection_plan<Acc, Acc, Scalar, Scalar>(
                          query_rows, c.num_heads * c.value_dim, c.out_dim, 1, contiguous, executor)
                          .bytes());
      const kernels::Plan<Acc> plan(batch.count, c.num_heads, c.kv_heads, batch.query_len,
                                    batch.kv_len + (c.add_bias_kv ? 1 : 0), c.head_dim, c.value_dim,
                                    false, executor);
      most = std::max(most, plan.bytes());
    }
#endif
    return most;
  }

  template <class RuleSet>
  void compute(const View& query, const View& key, const View& value, const RuleSet& rules,
               const Options& options, const Batch& batch, const MatrixView<Scalar>& output,
               const MatrixView<Acc>& lse, Tensor<Acc>& weights) const {
    if (batch.count == 0) return;
    const bool own_lse = lse.data == nullptr && !weights.empty() && config_.add_zero_attn;
    detail::LayerSizes s = sizes(query.rows, key.rows, batch.count, own_lse, batch.ragged);
    if constexpr (detail::has_kernels<Acc>) {
      s.scratch = scratch_bytes(query.rows, key.rows, batch, inputs_of(query, key, value),
                                output.col_stride == 1, options.executor);
      const detail::CallMemory block(options.workspace, detail::layer_bytes<Acc>(s));
      detail::BlockMatrices<Acc> source(block.data());
      compute_in(detail::LayerMemory<Acc>(s, source), query, key, value, rules, options, batch,
                 output, lse, weights);
    } else {
      detail::OwnedMatrices<Acc> source;
      compute_in(detail::LayerMemory<Acc>(s, source), query, key, value, rules, options, batch,
                 output, lse, weights);
    }
  }

  template <class RuleSet>
  void compute_in(const detail::LayerMemory<Acc>& memory, const View& query, const View& key,
                  const View& value, const RuleSet& rules, const Options& options,
                  const Batch& batch, const MatrixView<Scalar>& output, const MatrixView<Acc>& lse,
                  Tensor<Acc>& weights) const {
    const MultiHeadConfig& c = config_;
    const MatrixView<Acc>& lse_rows = lse.data != nullptr ? lse : memory.lse;
    const Index extra = c.add_bias_kv ? 1 : 0;  // keys that end every sequence
    const bool in_segments = memory.segments != nullptr && (batch.ragged || extra == 1);
    if (in_segments) batch.place(options, extra, memory.segments);
    project_inputs(memory, query, key, value, batch, options.executor);
    if (c.rotary) rotate(memory, batch, options);

    // Attend. The heads of q, k, v and of the concatenation are views of their columns.
    const Index entries = in_segments ? 1 : batch.count;
    const auto heads = [entries](const detail::HeadColumns<Acc>& m, Index num_heads) {
      return m.heads(num_heads, entries);
    };
    detail::BatchTask<Acc> call{heads(memory.q, c.num_heads),
                                heads(memory.k, c.kv_heads),
                                heads(memory.v, c.kv_heads),
                                heads(memory.concat, c.num_heads),
                                weights.view(),
                                heads(lse_rows, c.num_heads),
                                options.past_len};
    if (lse_rows.cols == 0) call.lse.data = nullptr;
    if (weights.empty()) call.weights.data = nullptr;
    if (in_segments) {
      call.segments = memory.segments;
      call.num_segments = batch.count;
    }
    if (c.add_bias_kv || c.add_zero_attn) {
      attend(memory, call, detail::ExtraKeys(rules, c.add_bias_kv, c.add_zero_attn), options);
    } else {
      attend(memory, call, rules, options);
    }
    const detail::ProjectionTask<Linear, Scalar> last{&out_proj, output};
    detail::project<Acc, Acc>(memory.concat, &last, 1, options.executor, projection_memory(memory));
    if (!weights.empty()) place_extra_columns(batch, options, lse_rows, weights);
  }

  static detail::ProjectionMemory<Acc> projection_memory(const detail::LayerMemory<Acc>& memory) {
    return {memory.wide_weight, memory.wide_bias, memory.scratch};
  }

  template <class RuleSet>
  static void attend(const detail::LayerMemory<Acc>& memory, const detail::BatchTask<Acc>& call,
                     const RuleSet& rules, const Options& options) {
#if MHA_KERNELS
    if constexpr (detail::has_kernels<Acc>) {
      const auto plan = kernels::plan_of<Acc, Acc>(call, options.executor);
      kernels::attend<Acc, Acc, Acc>(call, rules, plan, options.executor, memory.scratch);
      return;
    }
#endif
    (void)memory;
    detail::attend(call, rules, options.executor, nullptr);
  }

  /// q, k and v. What is projected from one matrix is projected together. With add_bias_kv, the bias
  /// rows follow each sequence.
  void project_inputs(const detail::LayerMemory<Acc>& memory, const View& query, const View& key,
                      const View& value, const Batch& batch, const Executor& executor) const {
    using Task = detail::ProjectionTask<Linear, Acc>;
    const detail::ProjectionMemory<Acc> scratch = projection_memory(memory);
    const Task tasks[3] = {{&q_proj, memory.q}, {&k_proj, memory.k}, {&v_proj, memory.v}};
    if (!config_.add_bias_kv) {
      const Inputs inputs = inputs_of(query, key, value);
      const bool one_context = inputs == Inputs::one_context;
      if (inputs == Inputs::one_matrix) {
        detail::project<Acc>(query, tasks, 3, executor, scratch);
        return;
      }
      detail::project<Acc>(query, tasks, 1, executor, scratch);
      detail::project<Acc>(key, tasks + 1, one_context ? 2 : 1, executor, scratch);
      if (!one_context) detail::project<Acc>(value, tasks + 2, 1, executor, scratch);
      return;
    }
    detail::project<Acc>(query, tasks, 1, executor, scratch);
    for (Index b = 0; b < batch.count; ++b) {
      const detail::Segment& s = memory.segments[b];
      const Index own = s.kv_len - 1;
      const Index given = s.key_row - b;
      const Task keys{&k_proj, memory.k.middle_rows(s.key_row, own)};
      const Task values{&v_proj, memory.v.middle_rows(s.key_row, own)};
      detail::project<Acc>(key.middle_rows(given, own), &keys, 1, executor, scratch);
      detail::project<Acc>(value.middle_rows(given, own), &values, 1, executor, scratch);
      for (Index d = 0; d < bias_k.size(); ++d) {
        memory.k(s.key_row + own, d) = detail::convert<Acc>(bias_k(d));
      }
      for (Index d = 0; d < bias_v.size(); ++d) {
        memory.v(s.key_row + own, d) = detail::convert<Acc>(bias_v(d));
      }
    }
  }

  /// Where sequence b lies among the rows of q and k.
  static detail::Segment segment_at(const detail::LayerMemory<Acc>& memory, const Batch& batch,
                                    Index b) {
    if (memory.segments != nullptr && batch.ragged) return memory.segments[b];
    const Index kv_len = memory.k.rows / batch.count;  // equal, with bias_k's row
    return {b * batch.query_len, batch.query_len, b * kv_len, kv_len};
  }

  /// Rotary on the projected queries and keys, sequence by sequence; never on bias_k.
  void rotate(const detail::LayerMemory<Acc>& memory, const Batch& batch,
              const Options& options) const {
    const IndexList& kv_positions =
        options.kv_positions.empty() ? options.positions : options.kv_positions;
    const auto part = [](const IndexList& all, Index row, Index count, Index first) {
      if (all.size() <= 1) return IndexList(all.empty() ? first : all[0]);
      std::vector<Index> positions(static_cast<std::size_t>(count));
      for (Index i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = all[row + i];
      return IndexList(positions);
    };
    const Index extra = config_.add_bias_kv ? 1 : 0;
    for (Index b = 0; b < batch.count; ++b) {
      const detail::Segment s = segment_at(memory, batch, b);
      const Index own = s.kv_len - extra;
      rotary_in_place(memory.q.middle_rows(s.query_row, s.query_len).heads(config_.num_heads, 1),
                      *config_.rotary,
                      part(options.positions, s.query_row, s.query_len, options.past_len));
      rotary_in_place(memory.k.middle_rows(s.key_row, own).heads(config_.kv_heads, 1),
                      *config_.rotary, part(kv_positions, s.key_row - b * extra, own, 0));
    }
  }

  /// bias_k's weight, which follows each sequence's own keys, into the column that it has for all;
  /// and the weight of the key of zeros, exp(0 - lse), into the last one.
  void place_extra_columns(const Batch& batch, const Options& options, const MatrixView<Acc>& lse,
                           Tensor<Acc>& weights) const {
    using std::exp;
    if (!config_.add_bias_kv && !config_.add_zero_attn) return;
    const IndexList& q = options.sequences;
    const IndexList& k = options.kv_sequences.empty() ? q : options.kv_sequences;
    Index row = 0;
    for (Index b = 0; b < batch.count; ++b) {
      const Index query_len = batch.ragged ? q[b] : batch.query_len;
      const Index kv_len = batch.ragged ? k[b] : batch.kv_len;
      for (Index h = 0; h < weights.size(1); ++h) {
        for (Index i = 0; i < query_len; ++i) {
          if (config_.add_bias_kv) {
            const Acc weight = std::exchange(weights(b, h, i, kv_len), Acc(0));
            weights(b, h, i, batch.kv_len) = weight;
          }
          if (config_.add_zero_attn) {
            weights(b, h, i, weights.size(3) - 1) = Acc(exp(Acc(-lse(row + i, h))));
          }
        }
      }
      row += query_len;
    }
  }

  static Tensor<Acc> averaged(const Tensor<Acc>& weights) {
    Tensor<Acc> mean({weights.size(0), 1, weights.size(2), weights.size(3)});
    for (Index b = 0; b < weights.size(0); ++b) {
      for (Index h = 0; h < weights.size(1); ++h) mean.matrix(b, 0) += weights.matrix(b, h);
      mean.matrix(b, 0) /= Acc(static_cast<double>(weights.size(1)));
    }
    return mean;
  }

  MultiHeadConfig config_;
};

}  // namespace mha
