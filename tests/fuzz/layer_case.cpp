// SPDX-License-Identifier: MIT
//
// MultiHead on a random call, forward and backward: see differential.hpp. Widths are such that all
// three ways to project are taken (kernels/project.hpp).
#include "fuzz/compare.hpp"
#include "fuzz/layer_oracle.hpp"
#include "fuzz/rules.hpp"

namespace mha::fuzz {
namespace {

/// A width of the model: small, or one that projections may stumble over.
Index draw_width(Bytes& bytes, Index most) {
  Index n = 0;
  switch (bytes.pick(6)) {
    case 0:
      n = bytes.one_of(195, 256, 257, 300, 512, 768, 1000, 1024, 1025, 1100);
      break;
    case 1:
      n = bytes.one_of(31, 32, 33, 63, 64, 65, 96, 97, 100, 128);
      break;
    default:
      n = bytes.between(1, 24);
  }
  return n <= most ? n : bytes.between(1, std::max<Index>(std::min<Index>(most, 24), 1));
}

/// A matrix of rows of a layout of the bytes' choice, in a frame that nobody may write to.
template <class Scalar>
class Rows {
 public:
  Rows() = default;
  Rows(Bytes& bytes, Index rows, Index cols) : rows_(rows), cols_(cols) {
    by_columns_ = bytes.once_in(4);
    const Index padding = bytes.once_in(3) ? bytes.between(1, 3) : 0;
    stride_ = std::max<Index>((by_columns_ ? rows : cols) + padding, 1);
    memory_.resize(
        static_cast<std::size_t>(stride_ * std::max<Index>(by_columns_ ? cols : rows, 1) + 2));
    std::memset(static_cast<void*>(memory_.data()), 0xFB, memory_.size() * sizeof(Scalar));
  }
  void fill(Numbers& numbers, double scale) {
    for (Index i = 0; i < rows_; ++i) {
      for (Index c = 0; c < cols_; ++c)
        at(i, c) = detail::convert<Scalar>(scale * numbers.number());
    }
  }
  Scalar& at(Index i, Index c) {
    return memory_[static_cast<std::size_t>(1 + (by_columns_ ? c * stride_ + i : i * stride_ + c))];
  }
  /// The rows as an input, whichever runs fastest.
  auto map() const {
    using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    const Stride stride = by_columns_ ? Stride(1, stride_) : Stride(stride_, 1);
    return Eigen::Map<const Matrix<Scalar>, 0, Stride>(memory_.data() + 1, rows_, cols_, stride);
  }
  void fill(const Matrix<Scalar>& m) {
    for (Index i = 0; i < rows_; ++i) {
      for (Index c = 0; c < cols_; ++c) at(i, c) = m(i, c);
    }
  }
  /// f(map): rows or columns are what runs fastest.
  template <class F>
  void with_map(const F& f) {
    using Stride = Eigen::OuterStride<>;
    if (by_columns_) {
      using Plain = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
      f(Eigen::Map<Plain, 0, Stride>(memory_.data() + 1, rows_, cols_, Stride(stride_)));
    } else {
      f(Eigen::Map<Matrix<Scalar>, 0, Stride>(memory_.data() + 1, rows_, cols_, Stride(stride_)));
    }
  }
  Matrix<Scalar> plain() {
    Matrix<Scalar> m(rows_, cols_);
    for (Index i = 0; i < rows_; ++i) {
      for (Index c = 0; c < cols_; ++c) m(i, c) = at(i, c);
    }
    return m;
  }

 private:
  Index rows_ = 0, cols_ = 0, stride_ = 1;
  bool by_columns_ = false;
  std::vector<Scalar> memory_;
};

template <class Dense>
Table table_of(const Dense& m) {
  Table t(m.rows(), m.cols());
  for (Index i = 0; i < t.rows; ++i) {
    for (Index c = 0; c < t.cols; ++c) t(i, c) = {number_of(m(i, c)), 0};
  }
  return t;
}

template <class Scalar>
class LayerCase {
 public:
  using Layer = MultiHead<Scalar, Eigen::Dynamic>;
  using Acc = accumulator_t<Scalar>;

  LayerCase(Bytes& bytes, const Budget& budget) : with(arithmetic_of<Scalar>()) {
    Index most = budget.draw(bytes) * 8;
    draw_config(bytes, most);
    draw_rows(bytes, most);
    CallSizes sizes;
    sizes.batch = static_cast<Index>(rows.query_len.size());
    sizes.num_heads = config.num_heads;
    sizes.query_len = rows.query_len;
    sizes.kv_len = rows.kv_len;
    for (const Index n : rows.query_len) sizes.longest_query = std::max(sizes.longest_query, n);
    for (const Index n : rows.kv_len) sizes.longest_kv = std::max(sizes.longest_kv, n);
    rule = draw_rule(bytes, sizes, draw_few_rules(bytes));
    options.past_len = rule.past_len();
    draw_positions(bytes);
    Numbers numbers(bytes.seed());
    layer.emplace(config);
    for (auto* linear : {&layer->q_proj, &layer->k_proj, &layer->v_proj, &layer->out_proj}) {
      for (Index c = 0; c < linear->bias.size(); ++c) {
        linear->bias(c) = detail::convert<Scalar>(0.5 * numbers.number());
      }
    }
    const double scale = draw_scale(bytes, false);
    query = Matrix<Scalar>(count(rows.query_len), config.embed_dim);
    fill(query, numbers, scale);
    if (inputs > 0) {
      key = Matrix<Scalar>(count(rows.kv_len), full_config().kdim);
      fill(key, numbers, 1);
    }
    if (inputs > 1) {
      value = Matrix<Scalar>(count(rows.kv_len), full_config().vdim);
      fill(value, numbers, 1);
    }
    query_rows = stored(bytes, query);
    key_rows = stored(bytes, key);
    value_rows = stored(bytes, value);
    choose_checked(bytes);
  }

  void run(Bytes& bytes) {
    const PlainLayer plain = plain_layer();
    const PlainRule meaning = plain_meaning();
    const LayerTruth truth = forward(with, plain, checked, own(query, own_queries()),
                                     own(keys(), own_keys()), own(values(), own_keys()), meaning);
    MultiHeadOptions asked = options;
    asked.need_weights = bytes.once_in(3);
    asked.need_lse = bytes.once_in(3);
    const MultiHeadResult<Scalar> result = call(asked);
    check_forward(result, truth, asked);
    const Index laws = is_wide ? Index{1} << bytes.pick(4) : bytes.pick(16);
    if ((laws & 1) != 0) into_memory(bytes, result.output);
    if constexpr (kKernelScalar) {
      if ((laws & 1) != 0) prepacked(asked, result);
      if ((laws & 2) != 0) with_caches(bytes, result.output);
    }
    if ((laws & 2) != 0) other_company(bytes, result.output);
    if ((laws & 4) != 0) sequence_alone(bytes, result.output);
    if (bytes.once_in(3)) check_backward(bytes, plain, meaning, truth, result.output);
    if ((laws & 8) != 0) poisoned_behind_masks(result.output);
  }

  std::string name() const {
    const MultiHeadConfig c = full_config();
    std::ostringstream text;
    text << " [layer of " << name_of<Scalar>() << ", embed " << c.embed_dim << ", kdim " << c.kdim
         << ", vdim " << c.vdim << ", out " << c.out_dim << ", heads " << c.num_heads << " / "
         << c.kv_heads << " of " << c.head_dim << ", " << c.value_dim << (c.bias ? "" : ", no bias")
         << (c.add_bias_kv ? ", bias_kv" : "") << (c.add_zero_attn ? ", zero_attn" : "")
         << (c.rotary ? ", rotary" : "") << ", inputs " << inputs << words_of(rule)
         << (is_wide ? ", wide" : "") << (is_ragged ? ", ragged" : ", equal");
    for (std::size_t b = 0; b < rows.query_len.size(); ++b) {
      text << " " << rows.query_len[b] << "x" << rows.kv_len[b];
    }
    text << "]";
    return text.str();
  }

 private:
  static Index count(const std::vector<Index>& lengths) {
    Index sum = 0;
    for (const Index n : lengths) sum += n;
    return sum;
  }
  static void fill(Matrix<Scalar>& m, Numbers& numbers, double scale) {
    for (Index i = 0; i < m.rows(); ++i) {
      for (Index c = 0; c < m.cols(); ++c)
        m(i, c) = detail::convert<Scalar>(scale * numbers.number());
    }
  }
  static Rows<Scalar> stored(Bytes& bytes, const Matrix<Scalar>& m) {
    Rows<Scalar> rows(bytes, m.rows(), m.cols());
    rows.fill(m);
    return rows;
  }
  const Matrix<Scalar>& keys() const { return inputs > 0 ? key : query; }
  const Matrix<Scalar>& values() const { return inputs > 1 ? value : keys(); }

  /// Of many sequences the oracle follows two: weights are what a wide layer costs.
  void choose_checked(Bytes& bytes) {
    checked = rows;
    checked_row = checked_key_row = 0;
    const auto batch = static_cast<Index>(rows.query_len.size());
    if (!is_wide || batch < 3) return;
    checked.first = bytes.pick(batch - 1);
    const auto cut = [&](std::vector<Index>& lengths, std::vector<Index>& positions, Index& row) {
      for (Index b = 0; b < checked.first; ++b) row += lengths[static_cast<std::size_t>(b)];
      lengths = {lengths.begin() + checked.first, lengths.begin() + checked.first + 2};
      positions = {positions.begin() + row, positions.begin() + row + count(lengths)};
    };
    cut(checked.query_len, checked.query_position, checked_row);
    cut(checked.kv_len, checked.key_position, checked_key_row);
  }
  using Range = std::pair<Index, Index>;
  Range own_queries() const { return {checked_row, count(checked.query_len)}; }
  Range own_keys() const { return {checked_key_row, count(checked.kv_len)}; }
  /// The rows that the oracle follows.
  template <class M>
  static Table own(const M& m, const Range& range) {
    return table_of(m.middleRows(range.first, range.second));
  }

  /// A layer whose projections copy their weights or their tokens (kernels/project.hpp).
  void draw_wide_config(Bytes& bytes) {
    inputs = 0;
    config.num_heads = 3;
    config.kv_heads = bytes.coin() ? 3 : 1;
    config.head_dim = config.value_dim = 64;
    config.embed_dim = bytes.one_of(182, 195, 256);
    config.bias = !bytes.once_in(4);
    config.add_bias_kv = bytes.once_in(4);
    if (bytes.once_in(3)) config.rotary = Rotary{.pairs = RotaryPairs::half, .dim = 32};
    config.seed = bytes.seed();
  }

  void draw_config(Bytes& bytes, Index most) {
    is_wide = bytes.once_in(12) && most >= 160'000 && !std::is_same_v<Scalar, long double>;
    if (is_wide) return draw_wide_config(bytes);
    inputs = bytes.pick(3);
    config.kv_heads = bytes.between(1, 3);
    config.num_heads = config.kv_heads * (bytes.once_in(3) ? bytes.between(1, 4) : 1);
    config.head_dim = bytes.once_in(5) ? bytes.one_of(16, 17, 32, 64) : bytes.between(1, 10);
    config.value_dim = bytes.once_in(4) ? bytes.between(1, 12) : config.head_dim;
    const Index inner = config.num_heads * std::max(config.head_dim, config.value_dim);
    const Index widest = most / std::max<Index>(4 * inner, 1);
    config.embed_dim = draw_width(bytes, widest);
    if (inputs > 0 && bytes.coin()) config.kdim = draw_width(bytes, widest);
    if (inputs > 1 && bytes.coin()) config.vdim = draw_width(bytes, widest);
    if (inputs == 1) config.vdim = config.kdim;
    if (bytes.once_in(3)) config.out_dim = draw_width(bytes, widest);
    config.bias = !bytes.once_in(4);
    config.add_bias_kv = bytes.once_in(3);
    config.add_zero_attn = bytes.once_in(3);
    if (bytes.once_in(3)) {
      Rotary rotary{.pairs = bytes.coin() ? RotaryPairs::half : RotaryPairs::interleaved};
      rotary.dim = config.head_dim / 2 * 2;
      if (rotary.dim > 2 && bytes.coin()) rotary.dim = 2 * bytes.between(1, rotary.dim / 2);
      if (bytes.coin()) rotary.base = 500;
      if (rotary.dim > 0) config.rotary = rotary;
    }
    config.seed = bytes.seed();
  }

  /// With the defaults filled in.
  MultiHeadConfig full_config() const {
    MultiHeadConfig c = config;
    for (Index* const width : {&c.kdim, &c.vdim, &c.out_dim}) {
      if (*width == 0) *width = c.embed_dim;
    }
    return c;
  }

  void draw_rows(Bytes& bytes, Index most) {
    const MultiHeadConfig c = full_config();
    if (is_wide) {
      is_ragged = true;
      for (Index b = bytes.coin() ? 24 : bytes.between(2, 12); b > 0; --b) {
        rows.query_len.push_back(bytes.between(8, 12));
      }
      rows.kv_len = rows.query_len;
      options.sequences = rows.query_len;
      return;
    }
    const Index per_row =
        c.num_heads * (c.head_dim + c.value_dim) * (c.embed_dim + c.out_dim + c.kdim + c.vdim) / 4;
    Index room = std::max<Index>(most / std::max<Index>(per_row, 1), 1);
    room = std::min<Index>(room, 700);
    is_ragged = bytes.coin();
    const Index batch = bytes.coin() ? 1 : bytes.between(1, 4);
    for (Index b = 0; b < batch; ++b) {
      Index n = draw_length(bytes, room / batch);
      Index m = inputs == 0 ? n : draw_length(bytes, room / batch);
      if (!is_ragged && b > 0) {
        n = rows.query_len[0];
        m = rows.kv_len[0];
      }
      rows.query_len.push_back(n);
      rows.kv_len.push_back(m);
    }
    if (is_ragged) {
      options.sequences = rows.query_len;
      if (inputs > 0) options.kv_sequences = rows.kv_len;
    } else {
      options.batch = batch;
    }
  }

  /// Where tokens stand: queries from the rule's place on, keys from 0, or lists of one's own.
  void draw_positions(Bytes& bytes) {
    const Index said = config.rotary ? bytes.pick(4) : 0;
    for (std::size_t b = 0; b < rows.query_len.size(); ++b) {
      for (Index i = 0; i < rows.query_len[b]; ++i) {
        rows.query_position.push_back(i + rule.offsets[b]);
      }
      for (Index j = 0; j < rows.kv_len[b]; ++j) rows.key_position.push_back(j);
    }
    const bool at_zero = std::all_of(rule.offsets.begin(), rule.offsets.end(),
                                     [](Index offset) { return offset == 0; });
    if (said == 1 && at_zero) {  // one number for the first token of each sequence
      const Index first = bytes.between(0, 20);
      options.positions = first;
      for (auto* positions : {&rows.query_position, &rows.key_position}) {
        for (Index& p : *positions) p += first;
      }
    } else if (said == 2 && rows.query_position.size() > 1 && rows.key_position.size() > 1) {
      Numbers numbers(bytes.seed());
      for (auto* positions : {&rows.query_position, &rows.key_position}) {
        for (Index& p : *positions) p = static_cast<Index>(numbers.bits() % 41);
      }
      options.positions = rows.query_position;
      options.kv_positions = rows.key_position;
    }
  }

  PlainLayer plain_layer() const {
    const MultiHeadConfig c = full_config();
    PlainLayer p;
    p.num_heads = c.num_heads;
    p.kv_heads = c.kv_heads;
    p.head_dim = c.head_dim;
    p.value_dim = c.value_dim;
    p.zero_attn = c.add_zero_attn;
    if (c.rotary) {
      p.rotary = {c.rotary->dim, c.rotary->pairs == RotaryPairs::interleaved, c.rotary->base};
    }
    p.q_weight = table_of(layer->q_proj.weight);
    p.k_weight = table_of(layer->k_proj.weight);
    p.v_weight = table_of(layer->v_proj.weight);
    p.out_weight = table_of(layer->out_proj.weight);
    p.q_bias = table_of(layer->q_proj.bias);
    p.k_bias = table_of(layer->k_proj.bias);
    p.v_bias = table_of(layer->v_proj.bias);
    p.out_bias = table_of(layer->out_proj.bias);
    p.bias_k = table_of(layer->bias_k);
    p.bias_v = table_of(layer->bias_v);
    return p;
  }

  /// The rule, and the keys that the layer adds: bias_k at the end, a sink with logit 0.
  PlainRule plain_meaning() const {
    PlainRule plain = plain_rule(rule, with);
    plain.first_extra = [this](Index b) { return rows.kv_len[static_cast<std::size_t>(b)]; };
    if (config.add_zero_attn) {
      plain.sink = [sink = plain.sink](Index h) {
        const std::optional<long double> own = sink(h);
        return std::optional<long double>(own ? std::log(std::exp(*own) + 1) : 0);
      };
    }
    return plain;
  }

  template <class F>
  void with_call(const F& f) const {
    with_few_rules<Acc>(rule, {}, f);
  }

  MultiHeadResult<Scalar> call(const MultiHeadOptions& asked) const {
    return call_of(*layer, asked);
  }
  template <class Called>
  MultiHeadResult<Scalar> call_of(const Called& called, const MultiHeadOptions& asked) const {
    MultiHeadResult<Scalar> result;
    with_call([&](const auto& rules) {
      if (inputs == 0) {
        result = called.forward(query_rows.map(), rules, asked);
      } else if (inputs == 1) {
        result = called.forward(query_rows.map(), key_rows.map(), rules, asked);
      } else {
        result = called.forward(query_rows.map(), key_rows.map(), value_rows.map(), rules, asked);
      }
    });
    return result;
  }

  /// The layer with prepacked weights, in a workspace of just the size that it needs.
  void prepacked(MultiHeadOptions asked, const MultiHeadResult<Scalar>& wanted) const {
    const Inference<Scalar> fast(*layer);
    Workspace workspace(fast.workspace_bytes(query.rows(), keys().rows(), asked));
    const std::size_t size = workspace.size();
    asked.workspace = &workspace;
    const MultiHeadResult<Scalar> result = call_of(fast, asked);
    if (workspace.size() != size) fail_case("workspace_bytes() of prepacked weights is too small");
    compare_bits("prepacked weights", view(result.output), view(wanted.output));
    if (asked.need_lse) {
      compare_bits("lse of prepacked weights", view_of<Acc>(result.lse), view_of<Acc>(wanted.lse));
    }
  }

  /// The same sequences with caches: in one call under the drawn rule, and under a causal one in two.
  void with_caches(Bytes& bytes, const Matrix<Scalar>& output) const {
    if (inputs > 0 || !options.past_len.empty() || !options.positions.empty()) return;
    const MultiHeadConfig& c = layer->config();
    if (c.kdim != c.embed_dim || c.vdim != c.embed_dim) return;
    Index pages = 1;
    for (const Index n : rows.query_len) pages += n / 128 + 1;
    const KvPool pool({.kv_heads = c.kv_heads,
                       .head_dim = c.head_dim,
                       .value_dim = c.value_dim,
                       .pages = pages,
                       .storage = std::is_same_v<Acc, double> ? Storage::f64 : Storage::f32});
    std::vector<KvSequence> sequences;
    std::vector<KvLayer> caches;
    for (std::size_t b = 0; b < rows.query_len.size(); ++b) sequences.push_back(pool.sequence());
    for (const KvSequence& s : sequences) caches.push_back(s.layer(0));
    MultiHeadOptions asked;
    asked.sequences = rows.query_len;
    asked.executor = options.executor;
    const bool at_zero = std::all_of(rule.offsets.begin(), rule.offsets.end(),
                                     [](Index offset) { return offset == 0; });
    if (at_zero) {
      with_call([&](const auto& rules) {
        compare_bits("caches", view(layer->forward(query, caches, rules, asked).output),
                     view(output));
      });
    }
    const Matrix<Scalar> whole = (*layer)(query, causal(), asked);
    Matrix<Scalar> first(query.rows(), query.cols()), then = first;
    std::vector<Index> first_len, then_len;
    Index row = 0, first_row = 0, then_row = 0;
    for (const Index n : rows.query_len) {
      first_len.push_back(bytes.between(0, n));
      then_len.push_back(n - first_len.back());
      first.middleRows(first_row, first_len.back()) = query.middleRows(row, first_len.back());
      then.middleRows(then_row, then_len.back()) =
          query.middleRows(row + first_len.back(), then_len.back());
      row += n;
      first_row += first_len.back();
      then_row += then_len.back();
    }
    for (KvSequence& s : sequences) s.clear();
    asked.sequences = first_len;
    const Matrix<Scalar> y1 = (*layer)(first.topRows(first_row), caches, causal(), asked);
    asked.sequences = then_len;
    const Matrix<Scalar> y2 = (*layer)(then.topRows(then_row), caches, causal(), asked);
    Matrix<Scalar> joined(query.rows(), whole.cols());
    row = first_row = then_row = 0;
    for (std::size_t b = 0; b < first_len.size(); ++b) {
      joined.middleRows(row, first_len[b]) = y1.middleRows(first_row, first_len[b]);
      row += first_len[b];
      first_row += first_len[b];
      joined.middleRows(row, then_len[b]) = y2.middleRows(then_row, then_len[b]);
      row += then_len[b];
      then_row += then_len[b];
    }
    compare_bits("caches in two calls", view(joined), view(whole));
  }

  void compare_table(const char* what, const Matrix<Acc>& got, const Table& wanted) const {
    if (got.rows() != wanted.rows || got.cols() != wanted.cols)
      fail_case(what, " has another shape");
    compare(what, TensorView<const Acc>(got.data(), {1, 1, got.rows(), got.cols()}), 0, 0, wanted,
            false);
  }

  void check_forward(const MultiHeadResult<Scalar>& result, const LayerTruth& truth,
                     const MultiHeadOptions& asked) const {
    const auto [row, count] = own_queries();
    const Matrix<Scalar> output = result.output.middleRows(row, count);
    compare("output", view(output), 0, 0, truth.output);
    if (asked.need_lse) {
      compare_table("lse", Matrix<Acc>(result.lse.middleRows(row, count)), truth.lse);
    }
    if (!asked.need_weights) return;
    const Index own = rule.sizes.longest_kv;
    const Index columns = own + (config.add_bias_kv ? 1 : 0) + (config.add_zero_attn ? 1 : 0);
    if (result.weights.size(3) != columns) fail_case("weights have another shape");
    for (std::size_t b = 0; b < checked.query_len.size(); ++b) {
      for (Index h = 0; h < config.num_heads; ++h) {
        const HeadTruth& head = truth.heads[b][static_cast<std::size_t>(h)];
        Table wanted(result.weights.size(2), columns);
        for (Index i = 0; i < checked.query_len[b]; ++i) {
          for (Index j = 0; j < checked.kv_len[b]; ++j) wanted(i, j) = head.weights(i, j);
          if (config.add_bias_kv) wanted(i, own) = head.weights(i, checked.kv_len[b]);
          if (config.add_zero_attn) {
            const Bounded& lse = head.lse(i, 0);
            wanted(i, columns - 1) = with.exp({-lse.v, lse.e});
          }
        }
        compare("weights", result.weights.view(), checked.first + static_cast<Index>(b), h, wanted,
                false);
      }
    }
  }

  template <class T>
  static TensorView<const T> view_of(const Matrix<T>& m) {
    return {m.data(), {1, 1, m.rows(), m.cols()}};
  }
  static TensorView<const Scalar> view(const Matrix<Scalar>& m) { return view_of<Scalar>(m); }

  /// forward_into() of an output of any layout, in a workspace of just the size that it needs.
  void into_memory(Bytes& bytes, const Matrix<Scalar>& output) const {
    MultiHeadOptions asked = options;
    Workspace workspace(layer->workspace_bytes(query.rows(), keys().rows(), options));
    const std::size_t size = workspace.size();
    asked.workspace = &workspace;
    Rows<Scalar> to(bytes, output.rows(), output.cols());
    with_call([&](const auto& rules) {
      to.with_map([&](auto&& map) {
        if (inputs == 0) {
          layer->forward_into(map, query_rows.map(), rules, asked);
        } else if (inputs == 1) {
          layer->forward_into(map, query_rows.map(), key_rows.map(), rules, asked);
        } else {
          layer->forward_into(map, query_rows.map(), key_rows.map(), value_rows.map(), rules,
                              asked);
        }
      });
    });
    if (workspace.size() != size) fail_case("workspace_bytes() is too small");
    const Matrix<Scalar> plain = to.plain();
    compare_bits("forward_into", view(plain), view(output));
  }

  void other_company(Bytes& bytes, const Matrix<Scalar>& output) const {
    MultiHeadOptions asked = options;
    asked.executor = pool_of(bytes.pick(3));
    asked.need_weights = bytes.coin();
    asked.need_lse = bytes.coin();
    compare_bits("other threads and outputs", view(call(asked).output), view(output));
  }

  /// One sequence of the batch by itself, as a matrix of its own.
  void sequence_alone(Bytes& bytes, const Matrix<Scalar>& output) const {
    const auto batch = static_cast<Index>(rows.query_len.size());
    if (batch < 2 || rule.has_dropout || !kKernelScalar || !options.positions.empty()) return;
    const Index b = bytes.pick(batch);
    const auto at = static_cast<std::size_t>(b);
    Index row = 0, key_row = 0;
    for (std::size_t k = 0; k < at; ++k) {
      row += rows.query_len[k];
      key_row += rows.kv_len[k];
    }
    RuleData data = rule;
    data.sizes.batch = b + 1;
    for (auto* list : {&data.offsets, &data.lengths}) list->resize(at + 1);
    // Grids are cut for the longest sequence: a single one need not have its sizes.
    if (data.has_keep || data.has_ignore || data.has_bias1 || data.has_padding ||
        data.has_documents || data.has_blocks) {
      return;
    }
    const Matrix<Scalar> q = query.middleRows(row, rows.query_len[at]);
    const Matrix<Scalar> k = keys().middleRows(key_row, rows.kv_len[at]);
    const Matrix<Scalar> v = values().middleRows(key_row, rows.kv_len[at]);
    MultiHeadOptions asked;
    asked.past_len = data.past_len({b, 0});
    Matrix<Scalar> alone;
    with_few_rules<Acc>(data, {b, 0}, [&](const auto& rules) {
      if (inputs == 0) {
        alone = (*layer)(q, rules, asked);
      } else {
        alone = (*layer)(q, k, v, rules, asked);
      }
    });
    const Matrix<Scalar> wanted = output.middleRows(row, rows.query_len[at]);
    compare_bits("a sequence alone", view(alone), view(wanted));
  }

  /// Rows of key and value that no query may see become NaN: nothing changes.
  void poisoned_behind_masks(const Matrix<Scalar>& output) {
    if (inputs == 0 || is_wide) return;
    const PlainRule plain = plain_rule(rule, with);
    Index key_row = 0;
    for (std::size_t b = 0; b < rows.kv_len.size(); ++b) {
      for (Index j = 0; j < rows.kv_len[b]; ++j, ++key_row) {
        bool seen = false;
        for (Index h = 0; h < config.num_heads && !seen; ++h) {
          for (Index i = 0; i < rows.query_len[b] && !seen; ++i) {
            seen = plain.allows(static_cast<Index>(b), h, i, j);
          }
        }
        if (seen) continue;
        const Scalar poison = std::numeric_limits<Scalar>::quiet_NaN();
        for (Index c = 0; c < key.cols(); ++c) key_rows.at(key_row, c) = poison;
        for (Index c = 0; c < value.cols(); ++c) value_rows.at(key_row, c) = poison;
      }
    }
    compare_bits("poison behind masks", view(call(options).output), view(output));
  }

  void check_backward(Bytes& bytes, const PlainLayer& plain, const PlainRule& meaning,
                      const LayerTruth& truth, const Matrix<Scalar>& output) const {
    Matrix<Scalar> grad_output(output.rows(), output.cols());
    Numbers numbers(bytes.seed());
    fill(grad_output, numbers, 1);
    // Rows that the oracle does not follow give no gradient: those of the parameters are whole.
    const auto [row, count] = own_queries();
    for (Index i = 0; i < grad_output.rows(); ++i) {
      if (i < row || i >= row + count) grad_output.row(i).setZero();
    }
    const Rows<Scalar> grad_rows = stored(bytes, grad_output);
    TrainingPass<Layer> pass;
    MultiHeadGradients<Layer> gradients(*layer);
    train(pass, gradients, grad_rows, options);
    compare_bits("forward_training", view(pass.output), view(output));
    const LayerGradientTruth wanted =
        backward(with, plain, checked, own(query, own_queries()), own(keys(), own_keys()),
                 own(values(), own_keys()), meaning, truth, own(grad_output, own_queries()));
    check_parameters(gradients, wanted.parameters);
    Table query_sum = wanted.query;
    Table key_sum = wanted.key;
    if (inputs < 2) add_to(with, key_sum, 0, 0, wanted.value);
    if (inputs == 0) add_to(with, query_sum, 0, 0, key_sum);
    compare_table("gradient of query", Matrix<Acc>(gradients.query.middleRows(row, count)),
                  query_sum);
    if (inputs > 0) compare_table("gradient of key", gradients.key, key_sum);
    if (inputs > 1) compare_table("gradient of value", gradients.value, wanted.value);
    // The same pass again, by threads.
    MultiHeadOptions asked = options;
    asked.executor = pool_of(bytes.pick(3));
    MultiHeadGradients<Layer> others(*layer);
    train(pass, others, grad_rows, asked);
    const auto bits_of_input = [](const Matrix<Acc>& m) {
      return TensorView<const Acc>(m.data(), {1, 1, m.rows(), m.cols()});
    };
    for (Matrix<Acc> MultiHeadGradients<Layer>::*const input :
         {&MultiHeadGradients<Layer>::query, &MultiHeadGradients<Layer>::key,
          &MultiHeadGradients<Layer>::value}) {
      compare_bits("gradients of inputs with other threads", bits_of_input(gradients.*input),
                   bits_of_input(others.*input));
    }
    const auto first = gradients.parameters();
    const auto second = others.parameters();
    for (std::size_t k = 0; k < first.size(); ++k) {
      const auto bits = [](const auto& parameter) {
        return TensorView<const Acc>(parameter.values.data(),
                                     {1, 1, 1, static_cast<Index>(parameter.values.size())});
      };
      compare_bits("gradients of parameters with other threads", bits(first[k]), bits(second[k]));
    }
  }

  void train(TrainingPass<Layer>& pass, MultiHeadGradients<Layer>& gradients,
             const Rows<Scalar>& grad_output, const MultiHeadOptions& asked) const {
    with_call([&](const auto& rules) {
      if (inputs == 0) {
        layer->forward_training(pass, query_rows.map(), rules, asked);
      } else if (inputs == 1) {
        layer->forward_training(pass, query_rows.map(), key_rows.map(), rules, asked);
      } else {
        layer->forward_training(pass, query_rows.map(), key_rows.map(), value_rows.map(), rules,
                                asked);
      }
      layer->backward(gradients, pass, grad_output.map(), rules, asked);
    });
  }

  void check_parameters(const MultiHeadGradients<Layer>& g, const PlainLayer& wanted) const {
    const auto check = [&](const char* what, const auto& linear, const Table& weight,
                           const Table& bias) {
      compare_table(what, Matrix<Acc>(linear.weight), weight);
      if (linear.has_bias()) compare_table(what, Matrix<Acc>(linear.bias), bias);
    };
    check("gradient of q_proj", g.q_proj, wanted.q_weight, wanted.q_bias);
    check("gradient of k_proj", g.k_proj, wanted.k_weight, wanted.k_bias);
    check("gradient of v_proj", g.v_proj, wanted.v_weight, wanted.v_bias);
    check("gradient of out_proj", g.out_proj, wanted.out_weight, wanted.out_bias);
    if (!config.add_bias_kv) return;
    compare_table("gradient of bias_k", Matrix<Acc>(g.bias_k), wanted.bias_k);
    compare_table("gradient of bias_v", Matrix<Acc>(g.bias_v), wanted.bias_v);
  }

  static constexpr bool kKernelScalar = !std::is_same_v<Scalar, long double>;

  Arithmetic with;
  MultiHeadConfig config;
  MultiHeadOptions options;
  Index inputs = 0;  ///< beside x: none, a context, key and value
  bool is_ragged = false;
  bool is_wide = false;
  PlainSequences rows;
  PlainSequences checked;  ///< those that the oracle follows
  Index checked_row = 0, checked_key_row = 0;
  RuleData rule;
  std::optional<Layer> layer;
  Matrix<Scalar> query, key, value;
  Rows<Scalar> query_rows, key_rows, value_rows;  ///< those that calls are given
};

template <class Scalar>
std::string run_case(Bytes& bytes, const Budget& budget) {
  LayerCase<Scalar> random_case(bytes, budget);
  return run_named(random_case, bytes);
}

}  // namespace

std::string layer_case(Bytes& bytes, const Budget& budget) {
  draw_target(bytes);
  return with_drawn_scalar(bytes, [&]<class Scalar>() { return run_case<Scalar>(bytes, budget); });
}

}  // namespace mha::fuzz
