// SPDX-License-Identifier: MIT
//
// Masks: rules that say which query row i may attend to which key row j. True means "may attend",
// always; a boolean matrix is never passed naked, its factory says what true means. Masks combine
// with `&` (both must allow) and `|` (either, see either.hpp): nothing replaces or silently drops
// anything.
//     causal()  causal_lower_right()  causal_offset(n)     key position <= query position
//     window(left, right)  window_keys(w)                  keys near the query
//     query_offset(n)                                      where the window's queries stand
//     lengths(n)                                           the first n keys of each sequence
//     keep(m)  ignore(m)                                   a boolean matrix or tensor
//     mask_mod(f)                                          f(b, h, i, j), a function of yours
// An additive bias, whose -inf masks too, is in score.hpp. A query row that may attend to no key
// gets output 0, weights 0 and lse -inf. Keys and values that a row may not attend to never
// influence it, even if they are NaN or infinite.
#pragma once

#include "mha/language.hpp"

#include <initializer_list>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "mha/checks.hpp"
#include "mha/either.hpp"
#include "mha/rules.hpp"
#include "mha/saturate.hpp"

namespace mha {

namespace detail {

/// An integer type, bool and characters excepted: a list of them is a mask or a text by mistake.
template <class T>
concept WholeNumber = std::integral<T> && !std::is_same_v<T, bool> && !std::is_same_v<T, char> &&
                      !std::is_same_v<T, wchar_t> && !std::is_same_v<T, char8_t> &&
                      !std::is_same_v<T, char16_t> && !std::is_same_v<T, char32_t>;

}  // namespace detail

/// One number for every sequence, or one per sequence. From an integer, a braced list, or anything
/// with size() and operator[]: std::vector, std::span, an Eigen vector.
/// @throws std::invalid_argument for a number that Index cannot hold
class IndexList {
 public:
  IndexList() = default;
  template <detail::WholeNumber T>
  IndexList(T value) : single_(as_index(value)), size_(1) {}  // NOLINT: lengths(5)
  template <detail::WholeNumber T>
  IndexList(std::initializer_list<T> values)  // NOLINT: lengths({3, 5})
      : size_(static_cast<Index>(values.size())) {
    many_.reserve(values.size());
    for (const T value : values) many_.push_back(as_index(value));
  }
  template <class List>
  requires(!std::integral<std::remove_cvref_t<List>> &&
           !std::is_same_v<std::remove_cvref_t<List>, IndexList> &&
           requires(const List& l) {
             { l.size() } -> std::convertible_to<Index>;
             requires detail::WholeNumber<std::remove_cvref_t<decltype(l[0])>>;
           }) IndexList(const List& values)  // NOLINT: lengths(vector)
      : size_(static_cast<Index>(values.size())) {
    many_.reserve(static_cast<std::size_t>(size_));
    for (Index k = 0; k < size_; ++k) {
      many_.push_back(as_index(values[static_cast<decltype(values.size())>(k)]));
    }
  }

  Index size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  /// The number for sequence b; a single one serves all.
  Index operator[](Index b) const noexcept {
    if (many_.empty()) return single_;
    return many_[static_cast<std::size_t>(size_ == 1 ? 0 : b)];
  }

 private:
  template <class T>
  static Index as_index(T value) {
    detail::require(std::in_range<Index>(value), "IndexList: numbers must be at most ",
                    std::numeric_limits<Index>::max(), ", got ", value);
    return static_cast<Index>(value);
  }

  Index single_ = 0;
  Index size_ = 0;
  std::vector<Index> many_;
};

namespace detail {

/// Beyond any length, and far enough from overflow that sums of a few stay valid.
inline constexpr Index kFar = Index{1} << (sizeof(Index) * 8 - 4);

inline Index clamp_far(Index n) { return std::clamp(n, -kFar, kFar); }

inline void check_list(const CallExtent& call, const char* rule, const IndexList& list) {
  require(list.size() == 1 || list.size() == call.batch, call.where, ": ", rule,
          " must have one entry, or one per sequence, got ", list.size(), " for a batch of ",
          call.batch);
}

/// What a rule refers to must have sizes, and memory if they are not 0.
template <class Scalar>
void check_memory(const char* rule, const TensorView<Scalar>& view) {
  const std::array<Index, 4>& n = view.sizes;
  const bool has_sizes = n[0] >= 0 && n[1] >= 0 && n[2] >= 0 && n[3] >= 0;
  const bool empty = n[0] == 0 || n[1] == 0 || n[2] == 0 || n[3] == 0;
  require(has_sizes && (empty || view.data != nullptr), rule,
          has_sizes ? ": data must not be null" : ": sizes must not be negative", ", got ",
          list_text(n));
  require(extent_fits(n, view.strides, sizeof(Scalar)), rule,
          ": no element may lie farther than an address reaches, got sizes ", list_text(n),
          " and strides ", list_text(view.strides));
}

/// A number for each (b, h, i, j) of a call: memory seen through strides, an axis of size 1 serving
/// all. What came as a temporary is owned.
template <class Scalar>
class Grid {
 public:
  /// A tensor [batch, head, query, key].
  Grid(const char* rule, const TensorView<const Scalar>& view) : view_(view) {
    check_memory(rule, view_);
    broadcast();
  }

  /// A matrix [query, key]; a vector is one number per key, the same for every query.
  template <EigenDense M>
  Grid(const char* rule, M&& m) {  // NOLINT(bugprone-forwarding-reference-overload): not for a Grid
    using Plain = std::remove_cvref_t<M>;
    if constexpr (EigenInMemory<M> && std::is_lvalue_reference_v<M>) {
      view_ = as_tensor(MatrixView<const Scalar>(matrix_view(m)));
    } else {
      owner_ = std::make_shared<const Matrix<Scalar>>(m);
      view_ = as_tensor(matrix_view(*owner_));
    }
    if (Plain::IsVectorAtCompileTime && Plain::ColsAtCompileTime == 1) {
      std::swap(view_.sizes[2], view_.sizes[3]);
      std::swap(view_.strides[2], view_.strides[3]);
    }
    check_memory(rule, view_);
    broadcast();
  }

  const Scalar& operator()(Index b, Index h, Index i, Index j) const { return view_(b, h, i, j); }

  const std::array<Index, 4>& sizes() const { return view_.sizes; }
  const TensorView<const Scalar>& view() const { return view_; }

  void check(const CallExtent& call, const char* rule) const {
    const std::array<Index, 4> wanted{call.batch, call.num_heads, call.query_len, call.kv_len};
    constexpr std::array<const char*, 4> names{"batch", "num_heads", "query_len", "kv_len"};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      const Index got = view_.sizes[axis];
      const bool longer = call.ragged && axis >= 2 && got > wanted[axis];
      require(got == wanted[axis] || got == 1 || longer, call.where, ": ", rule, " must have 1 or ",
              wanted[axis], " entries along ", names[axis], ", got ", got);
    }
  }

 private:
  void broadcast() {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (view_.sizes[axis] == 1) view_.strides[axis] = 0;
    }
  }

  std::shared_ptr<const Matrix<Scalar>> owner_;
  TensorView<const Scalar> view_;
};

/// The element type of what a grid is made from.
template <class T>
auto grid_scalar() {
  if constexpr (EigenDense<T>) {
    return std::type_identity<typename std::remove_cvref_t<T>::Scalar>{};
  } else {
    using View = decltype(tensor_view(std::declval<T&>()));
    return std::type_identity<std::remove_const_t<std::remove_pointer_t<decltype(View::data)>>>{};
  }
}
template <class T>
using grid_scalar_t = typename decltype(grid_scalar<T>())::type;

/// A grid over `m`: an Eigen matrix or expression, or anything tensor_view() takes. `rule` is the
/// factory that the caller used.
template <class T>
auto make_grid(const char* rule, T&& m) {
  using Scalar = grid_scalar_t<T>;
  if constexpr (EigenDense<T>) {
    return Grid<Scalar>(rule, std::forward<T>(m));
  } else {
    static_assert(std::is_lvalue_reference_v<T> || is_tensor_view<std::remove_cvref_t<T>>,
                  "mha: a mask only refers to its tensor, so the tensor must outlive it: give a "
                  "named tensor, not a temporary");
    return Grid<Scalar>(rule, TensorView<const Scalar>(tensor_view(m)));
  }
}

}  // namespace detail

/// j <= i + offset, with three ways to say the offset.
class Causal : public Rule {
 public:
  static constexpr bool kKeysFromZero = true;
  enum class Align { upper_left, lower_right, given };

  Causal(Align align, IndexList given) : align_(align), given_(std::move(given)) {}

  void check(const CallExtent& call) const {
    if (align_ == Align::given) detail::check_list(call, "causal_offset", given_);
  }
  Index offset(const Extent& extent, Index b) const {
    switch (align_) {
      case Align::upper_left:
        return extent.past_len;
      case Align::lower_right:
        return extent.kv_len - extent.query_len;
      case Align::given:
        break;
    }
    return given_[b];
  }
  KeyRange keys(const Extent& extent, Index b, Index /*h*/, Index i) const {
    return {0, detail::saturated_sum(i + 1, offset(extent, b))};
  }
  void add_to(detail::Digest& digest) const {
    digest.add(static_cast<Index>(align_)).add_list(given_);
  }

 private:
  Align align_;
  IndexList given_;
};

/// A query sees no later key: j <= i + past_len, where past_len is the number of cached keys of the
/// call (past_len in its options), else 0. Upper-left aligned, as in PyTorch, ONNX and JAX. Of
/// several causal rules the tightest counts, the one of the smallest offset, for windows too.
inline Causal causal() { return {Causal::Align::upper_left, {}}; }

/// The last query sees the last key: j <= i + kv_len - query_len, as in FlashAttention since 2.1.
/// With more queries than keys the first rows see nothing, and are 0.
inline Causal causal_lower_right() { return {Causal::Align::lower_right, {}}; }

/// j <= i + n: query row 0 stands at key position n; one n, or one per sequence.
inline Causal causal_offset(IndexList n) { return {Causal::Align::given, std::move(n)}; }

/// query_offset(n).
class QueryOffset : public Rule {
 public:
  explicit QueryOffset(IndexList n) : n_(std::move(n)) {}
  void check(const CallExtent& call) const { detail::check_list(call, "query_offset", n_); }
  void place(Extent& extent, Index b, Index /*h*/) const { extent.past_len = n_[b]; }
  void add_to(detail::Digest& digest) const { digest.add_list(n_); }

 private:
  IndexList n_;
};

/// Query row 0 stands at key position n: what causal() and window() go by. As past_len in the options
/// would say; a call that says both must say the same, and so must causal rules beside it. Masks
/// nothing by itself. One n, or one per
/// sequence.
inline QueryOffset query_offset(IndexList n) { return QueryOffset(std::move(n)); }

/// p - left <= j <= p + right, where p = i + offset is the query's position: the offset of the
/// causal rule or query_offset() that the window is combined with, else the number of cached keys.
class Window : public Rule {
 public:
  Window(Index left, Index right) : left_(left), right_(right) {
    detail::require(left >= -1 && right >= -1,
                    "window: left and right must be -1 (unbounded) or more, got ", left, " and ",
                    right);
  }
  /// Exact for any numbers: what saturates lies far on one side of all keys, and i is added last.
  KeyRange keys(const Extent& extent, Index /*b*/, Index /*h*/, Index i) const {
    using detail::saturated_difference;
    using detail::saturated_sum;
    return {
        left_ < 0 ? 0 : saturated_sum(i, saturated_difference(extent.offset, left_)),
        right_ < 0 ? extent.kv_len : saturated_sum(i + 1, saturated_sum(extent.offset, right_))};
  }
  void add_to(detail::Digest& digest) const { digest.add(left_).add(right_); }

 private:
  Index left_;
  Index right_;
};

/// At most `left` keys before the query and `right` after it, itself not counted; -1 = unbounded.
/// @throws std::invalid_argument for any other negative number
inline Window window(Index left, Index right) { return {left, right}; }

/// The query's own key and the w - 1 before it: window(w - 1, 0).
/// @throws std::invalid_argument if w < 1
inline Window window_keys(Index w) {
  detail::require(w >= 1, "window_keys: w must be at least 1, got ", w);
  return {w - 1, 0};
}

/// Key rows n[b] and later are padding.
class Lengths : public Rule {
 public:
  static constexpr bool kKeysFromZero = true;
  explicit Lengths(IndexList n) : n_(std::move(n)) {
    for (Index b = 0; b < n_.size(); ++b) {
      detail::require(n_[b] >= 0, "lengths: lengths must not be negative, got ", n_[b],
                      " for sequence ", b);
    }
  }
  void check(const CallExtent& call) const {
    detail::check_list(call, "lengths", n_);
    for (Index b = 0; b < n_.size(); ++b) {
      detail::require(n_[b] <= call.kv_len, call.where,
                      ": lengths must lie between 0 and kv_len, got ", n_[b], " and ", call.kv_len);
    }
  }
  KeyRange keys(const Extent& /*extent*/, Index b, Index /*h*/, Index /*i*/) const {
    return {0, n_[b]};
  }
  void add_to(detail::Digest& digest) const { digest.add_list(n_); }

 private:
  IndexList n_;
};

/// The first n keys may be attended to: one n, or one per sequence (`lengths({3, 5})`, a vector).
/// @throws std::invalid_argument if one is negative
inline Lengths lengths(IndexList n) { return Lengths(std::move(n)); }

/// keep(m) and ignore(m).
template <bool kTrueMeansAttend>
class BooleanMask : public Rule {
 public:
  explicit BooleanMask(detail::Grid<bool> grid) : grid_(std::move(grid)) {}
  void check(const CallExtent& call) const {
    grid_.check(call, kTrueMeansAttend ? "keep(mask)" : "ignore(mask)");
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return grid_(b, h, i, j) == kTrueMeansAttend;
  }
  void add_to(detail::Digest& digest) const { digest.add_sizes(grid_.sizes()); }

 private:
  detail::Grid<bool> grid_;
};

namespace detail {

template <class M>
auto keep_mask(M&& m) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::keep: the mask must be of bool, true = may attend; numbers to be added go "
                "through bias()");
  return BooleanMask<true>(make_grid("keep", std::forward<M>(m)));
}
template <class M>
auto ignore_mask(M&& m) {
  static_assert(std::is_same_v<grid_scalar_t<M>, bool>,
                "mha::ignore: the mask must be of bool, true = may not attend; numbers to be added "
                "go through bias()");
  return BooleanMask<false>(make_grid("ignore", std::forward<M>(m)));
}

}  // namespace detail

/// True = may attend (the sense of PyTorch's scaled_dot_product_attention, ONNX, JAX, Keras).
/// @param m  query_len x kv_len Eigen matrix or expression of bool; a vector of kv_len, the same
///           for every query; or a TensorView<const bool> [batch, head, query, key], where an axis
///           of size 1 serves all. A named matrix or tensor is read where it lies: while the rule
///           is used it must live, and be neither resized nor assigned; an expression or a
///           temporary matrix is kept.
template <class M>
[[nodiscard]] auto keep(M&& m) {
  return detail::keep_mask(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto keep(M&& m MHA_LIFETIMEBOUND) {
  return detail::keep_mask(m);
}

/// True = may not attend (the sense of PyTorch's nn.MultiheadAttention). Arguments as for keep().
template <class M>
[[nodiscard]] auto ignore(M&& m) {
  return detail::ignore_mask(std::forward<M>(m));
}
template <detail::NamedMemory M>
[[nodiscard]] auto ignore(M&& m MHA_LIFETIMEBOUND) {
  return detail::ignore_mask(m);
}

/// mask_mod(f).
template <class F>
class MaskFunction : public Rule {
 public:
  explicit MaskFunction(F f) : f_(std::move(f)) {
    detail::require_function("mask_mod: the function", f_);
  }
  bool allowed(const Extent& /*extent*/, Index b, Index h, Index i, Index j) const {
    return static_cast<bool>(f_(b, h, i, j));
  }

 private:
  F f_;
};

/// f(b, h, i, j): may query row i of head h in sequence b attend to key row j? Called once or more
/// per pair, in any order, from several threads if an executor is given.
template <class F>
[[nodiscard]] auto mask_mod(F f) {
  static_assert(std::is_invocable_r_v<bool, const F&, Index, Index, Index, Index>,
                "mha::mask_mod: the function must take (b, h, i, j) and return bool");
  return MaskFunction<F>(std::move(f));
}

}  // namespace mha
