// SPDX-License-Identifier: MIT
//
// Lists of whole numbers in calls and rules: one number for all sequences, or one for each.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <concepts>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "mha/internal/support/error.hpp"
#include "mha/rules/rule.hpp"

namespace mha::inline MHA_ABI {

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
  /// Numbers of several types: {prompt.rows(), 1, 1}.
  template <detail::WholeNumber First, detail::WholeNumber Second, detail::WholeNumber... Rest>
  IndexList(First first, Second second, Rest... rest)
      : IndexList({as_index(first), as_index(second), as_index(rest)...}) {}
  template <class List>
  requires(!std::integral<std::remove_cvref_t<List>> &&
           !std::is_same_v<std::remove_cvref_t<List>, IndexList> &&
           requires(const List& l) {
             { l.size() } -> std::convertible_to<Index>;
             requires detail::WholeNumber<std::remove_cvref_t<decltype(l[0])>>;
           }) IndexList(const List& values)  // NOLINT: lengths(vector)
      : size_(static_cast<Index>(values.size())) {
    if constexpr (requires { values.data() == nullptr; }) {
      detail::require(size_ == 0 || values.data() != nullptr,
                      "IndexList: the data of a list must not be null, got ", size_, " numbers");
    }
    many_.reserve(static_cast<std::size_t>(size_));
    for (Index k = 0; k < size_; ++k) {
      many_.push_back(as_index(values[static_cast<decltype(values.size())>(k)]));
    }
  }

  IndexList(const IndexList&) = default;
  IndexList& operator=(const IndexList&) = default;
  /// What has been moved from is empty.
  IndexList(IndexList&& other) noexcept
      : single_(other.single_),
        size_(std::exchange(other.size_, 0)),
        many_(std::exchange(other.many_, {})) {}
  IndexList& operator=(IndexList&& other) noexcept {
    if (this == &other) return *this;
    single_ = other.single_;
    size_ = std::exchange(other.size_, 0);
    many_ = std::exchange(other.many_, {});
    return *this;
  }
  ~IndexList() = default;

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

}  // namespace detail

}  // namespace mha
