// SPDX-License-Identifier: MIT
//
// Tensors [batch, head, token, channel] that lie in memory in every way that strides can say: any
// axis running fastest, rows padded, one entry serving a whole axis (inputs), a start that is not
// aligned. What lies between the entries of an output is watched: nobody may write there.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string>
#include <type_traits>

#include <mha/types.hpp>

#include "fuzz/bounded.hpp"
#include "fuzz/bytes.hpp"

namespace mha::fuzz {

/// Any scalar, exactly.
template <class Scalar>
long double number_of(const Scalar& x) {
  if constexpr (std::is_arithmetic_v<Scalar>) {
    return static_cast<long double>(x);
  } else {
    return static_cast<long double>(static_cast<float>(x));
  }
}

template <class Scalar>
class Stored {
 public:
  Stored() = default;
  /// Memory for these sizes, in a layout of the bytes' choice. Inputs may share entries.
  Stored(Bytes& bytes, const std::array<Index, 4>& sizes, bool is_input) {
    std::array<std::size_t, 4> order{0, 1, 2, 3};  // from the slowest to the fastest
    switch (bytes.pick(6)) {
      case 0:
      case 1:
        break;
      case 2:
        order = {0, 2, 1, 3};  // heads within a row: a projected matrix
        break;
      case 3:
        order = {0, 1, 3, 2};  // columns
        break;
      case 4:
        order = {3, 2, 1, 0};  // Eigen::Tensor, column-major
        break;
      default:
        order = {2, 0, 3, 1};
    }
    const Index padding = bytes.pick(4) == 3 ? bytes.between(1, 5) : 0;
    const Index shared = is_input && bytes.once_in(8) ? bytes.pick(3) : -1;  // an axis of stride 0
    const bool backwards = bytes.once_in(16);
    TensorView<Scalar> view;
    view.sizes = sizes;
    Index step = 1;
    for (std::size_t k = 4; k-- > 0;) {
      const std::size_t axis = order[k];
      if (static_cast<Index>(axis) == shared) {
        view.strides[axis] = 0;
        continue;
      }
      view.strides[axis] = step;
      step *= std::max<Index>(sizes[axis], 1);
      if (k == 3) step += padding;
    }
    const Index offset = bytes.pick(3);
    memory_.resize(static_cast<std::size_t>(step + offset) + kGuard);
    std::memset(static_cast<void*>(memory_.data()), kFill, memory_.size() * sizeof(Scalar));
    view.data = memory_.data() + offset;
    const std::size_t turned = order[0];
    if (backwards && sizes[turned] > 0 && view.strides[turned] != 0) {
      view.data += view.strides[turned] * (sizes[turned] - 1);
      view.strides[turned] = -view.strides[turned];
    }
    view_ = view;
  }
  /// The layout in words: axes from the slowest to the fastest, of b, h, i, d.
  std::string layout() const {
    std::array<std::size_t, 4> order{0, 1, 2, 3};
    std::sort(order.begin(), order.end(), [this](std::size_t a, std::size_t b) {
      const Index first = std::abs(view_.strides[a]), second = std::abs(view_.strides[b]);
      return first != second ? first > second : a < b;
    });
    std::string text;
    for (const std::size_t axis : order) {
      if (view_.strides[axis] < 0) text += '-';
      if (view_.strides[axis] == 0) text += '0';
      text += "bhid"[axis];
    }
    return text;
  }
  /// Does every entry have a place of its own?
  bool is_apart() const {
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (view_.strides[axis] == 0 && view_.sizes[axis] > 1) return false;
    }
    return true;
  }
  /// The memory, frame included.
  std::vector<Scalar>& memory() { return memory_; }

  Stored(Stored&&) = default;
  Stored& operator=(Stored&&) = default;

  const TensorView<Scalar>& view() const { return view_; }
  Scalar& operator()(Index b, Index h, Index i, Index d) const { return view_(b, h, i, d); }

  /// f(entry) for all entries; what several entries share is visited by each.
  template <class F>
  void each(const F& f) const {
    for (Index b = 0; b < view_.sizes[0]; ++b) {
      for (Index h = 0; h < view_.sizes[1]; ++h) {
        for (Index i = 0; i < view_.sizes[2]; ++i) {
          for (Index d = 0; d < view_.sizes[3]; ++d) f(view_(b, h, i, d));
        }
      }
    }
  }
  void fill(Numbers& numbers, double scale) const {
    each([&](Scalar& x) { x = detail::convert<Scalar>(scale * numbers.number()); });
  }

  /// Has only what the view shows been written?
  bool surroundings_untouched() const {
    std::vector<char> seen(memory_.size(), 0);
    each([&](Scalar& x) { seen[static_cast<std::size_t>(&x - memory_.data())] = 1; });
    for (std::size_t k = 0; k < memory_.size(); ++k) {
      if (seen[k] != 0) continue;
      const auto* const bytes = reinterpret_cast<const unsigned char*>(&memory_[k]);
      for (std::size_t n = 0; n < kOwnBytes; ++n) {
        if (bytes[n] != kFill) return false;
      }
    }
    return true;
  }

  /// One head, as numbers without an error.
  Table table(Index b, Index h) const {
    Table t(view_.sizes[2], view_.sizes[3]);
    for (Index i = 0; i < t.rows; ++i) {
      for (Index d = 0; d < t.cols; ++d) {
        t(i, d) = {number_of(view_(b, h, i, d)), 0};
      }
    }
    return t;
  }

 private:
  static constexpr int kFill = 0xFB;  // NaN in every type
  static constexpr std::size_t kGuard = 16;
  static constexpr std::size_t kOwnBytes = sizeof(Scalar) > 8 ? 10 : sizeof(Scalar);
  std::vector<Scalar> memory_;
  TensorView<Scalar> view_;
};

/// The entries of a view in order, as bytes: what "the same bits" compares. -0 differs from 0.
template <class Scalar>
std::vector<unsigned char> bits_of(const TensorView<const Scalar>& view) {
  constexpr std::size_t kOwnBytes = sizeof(Scalar) > 8 ? 10 : sizeof(Scalar);
  std::vector<unsigned char> bits;
  for (Index b = 0; b < view.sizes[0]; ++b) {
    for (Index h = 0; h < view.sizes[1]; ++h) {
      for (Index i = 0; i < view.sizes[2]; ++i) {
        for (Index d = 0; d < view.sizes[3]; ++d) {
          unsigned char own[sizeof(Scalar)];
          std::memcpy(own, &view(b, h, i, d), sizeof(Scalar));
          bits.insert(bits.end(), own, own + kOwnBytes);
        }
      }
    }
  }
  return bits;
}

/// Batch entries [b, b + batch) and tokens [i, i + tokens) of a view.
template <class Scalar>
TensorView<Scalar> part_of(TensorView<Scalar> view, Index b, Index batch, Index i, Index tokens) {
  if (batch > 0 && tokens > 0) view.data += b * view.strides[0] + i * view.strides[2];
  view.sizes[0] = batch;
  view.sizes[2] = tokens;
  return view;
}

}  // namespace mha::fuzz
