// SPDX-License-Identifier: MIT
//
// Rotary position embedding: turns pairs of channels of a query or key by an angle that grows with
// the token's position, so that query . key depends on the distance of the two.
//     angle(p, k) = p * base^(-2 k / dim)                       k = 0 .. dim/2 - 1, in double
//     y1 = cos x1 - sin x2        y2 = sin x1 + cos x2
// Two layouts of the pairs are in use, and weights trained with one are garbage under the other; so
// there is no default:
//     half         (x1, x2) = channels (k, k + dim/2)    GPT-NeoX, Qwen, Hugging Face's Llama
//     interleaved  (x1, x2) = channels (2k, 2k + 1)      the paper, GPT-J, Meta's Llama
// Channels from dim on pass through. Source: Su et al. 2021, arXiv:2104.09864, section 3.4.
#pragma once

#include "mha/internal/support/language.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "mha/index_list.hpp"
#include "mha/internal/support/checks.hpp"
#include "mha/internal/support/saturate.hpp"

namespace mha::inline MHA_ABI {

enum class RotaryPairs { half = 1, interleaved = 2 };

/// How to rotate: `Rotary{.pairs = RotaryPairs::half}`.
struct Rotary {
  RotaryPairs pairs{};    ///< must be given
  Index dim = 0;          ///< channels of each head that are rotated, the first ones; 0 = all
  double base = 10000.0;  ///< longest wavelength / 2 pi, roughly
};

namespace detail {

/// Memory for rotating: a number per pair in each.
template <class Acc>
struct RotaryMemory {
  double* frequency = nullptr;
  Acc* cos = nullptr;  ///< of one token's angles
  Acc* sin = nullptr;
};

/// The same from the heap.
template <class Acc>
class OwnedRotaryMemory {
 public:
  explicit OwnedRotaryMemory(Index dim)
      : frequency_(static_cast<std::size_t>(dim / 2)),
        cos_(frequency_.size()),
        sin_(frequency_.size()) {}
  RotaryMemory<Acc> memory() { return {frequency_.data(), cos_.data(), sin_.data()}; }

 private:
  std::vector<double> frequency_;
  std::vector<Acc> cos_;
  std::vector<Acc> sin_;
};

/// Turns the pairs of one head of one token by cos[k], sin[k]. `x` is one row.
template <class Acc, class Scalar>
void rotate(const MatrixView<Scalar>& x, const Acc* cos, const Acc* sin, Index dim,
            RotaryPairs pairs) {
  const Index half = dim / 2;
  for (Index k = 0; k < half; ++k) {
    Scalar& first = x(0, pairs == RotaryPairs::half ? k : 2 * k);
    Scalar& second = x(0, pairs == RotaryPairs::half ? k + half : 2 * k + 1);
    const Acc x1 = convert<Acc>(first);
    const Acc x2 = convert<Acc>(second);
    first = convert<Scalar>(Acc(Acc(cos[k] * x1) - Acc(sin[k] * x2)));
    second = convert<Scalar>(Acc(Acc(sin[k] * x1) + Acc(cos[k] * x2)));
  }
}

inline Index check_rotary(const char* where, RotaryPairs pairs, Index dim, Index head_dim,
                          double base = 1) {
  require(base > 0 && base <= (std::numeric_limits<double>::max)(), where,
          ": base must be positive and finite, got ", base);
  require(pairs == RotaryPairs::half || pairs == RotaryPairs::interleaved, where,
          ": pairs must be RotaryPairs::half or RotaryPairs::interleaved; there is no default, "
          "got ",
          static_cast<int>(pairs));
  const Index rotated = dim == 0 ? head_dim : dim;
  require(rotated >= 0 && rotated <= head_dim, where, ": dim must lie between 0 and head_dim, got ",
          rotated, " and ", head_dim);
  require(rotated % 2 == 0, where, ": dim must be even, got ", rotated);
  return rotated;
}

/// The position of token i of sequence b: see rotary_in_place().
inline Index token_position(const IndexList& positions, Index b, Index i, Index tokens) {
  if (positions.empty()) return i;
  if (positions.size() == 1) return clamp_far(positions[0]) + i;
  return positions[positions.size() == tokens ? i : b * tokens + i];
}

inline void check_positions(const char* where, const IndexList& positions, Index batch,
                            Index tokens) {
  require(positions.size() <= 1 || positions.size() == tokens || positions.size() == batch * tokens,
          where, ": positions must be none, the first, one per token (", tokens,
          "), or one per token of each sequence (", batch * tokens, "), got ", positions.size());
}

/// Calls fill(position) once per token, which stands at position_of(b, i), and rotates the token's
/// heads by the cosines and sines that it has left in the memory.
template <class Scalar, class Acc, class PositionOf, class Fill>
void rotate_tokens(const TensorView<Scalar>& x, Index dim, RotaryPairs pairs,
                   const PositionOf& position_of, const RotaryMemory<Acc>& memory,
                   const Fill& fill) {
  for (Index b = 0; b < x.size(0); ++b) {
    for (Index i = 0; i < x.size(2); ++i) {
      fill(position_of(b, i));
      for (Index h = 0; h < x.size(1); ++h) {
        rotate(x.matrix(b, h).middle_rows(i, 1), memory.cos, memory.sin, dim, pairs);
      }
    }
  }
}

/// The frequencies of `how`, for rotate_by_frequencies().
template <class Acc>
void fill_frequencies(const RotaryMemory<Acc>& memory, Index dim, double base) {
  for (Index k = 0; k < dim / 2; ++k) {
    memory.frequency[k] = std::pow(base, -2.0 * static_cast<double>(k) / static_cast<double>(dim));
  }
}

template <class Scalar, class Acc, class PositionOf>
void rotate_by_frequencies(const TensorView<Scalar>& x, Index dim, RotaryPairs pairs,
                           const PositionOf& position_of, const RotaryMemory<Acc>& memory) {
  rotate_tokens(x, dim, pairs, position_of, memory, [&](Index position) {
    for (Index k = 0; k < dim / 2; ++k) {
      const double angle = static_cast<double>(position) * memory.frequency[k];
      memory.cos[k] = convert<Acc>(std::cos(angle));
      memory.sin[k] = convert<Acc>(std::sin(angle));
    }
  });
}

}  // namespace detail

namespace detail {

/// The checks of rotating x where it lies.
template <class Scalar>
void check_rotated(const char* where, const TensorView<Scalar>& x) {
  constexpr Named kTokens{"x", {"batch", "num_heads", "seq_len", "head_dim"}};
  check_own_places(where, Placed<Scalar>{kTokens, x, check_view(where, kTokens, x)});
}

template <class Scalar>
void rotate_in_place(const char* where, const TensorView<Scalar>& x, const Rotary& how,
                     const IndexList& positions) {
  using Acc = accumulator_t<Scalar>;
  check_rotated(where, x);
  const Index dim = check_rotary(where, how.pairs, how.dim, x.size(3), how.base);
  check_positions(where, positions, x.size(0), x.size(2));
  OwnedRotaryMemory<Acc> owner(dim);
  const RotaryMemory<Acc> memory = owner.memory();
  fill_frequencies(memory, dim, how.base);
  const auto position_of = [&](Index b, Index i) {
    return token_position(positions, b, i, x.size(2));
  };
  rotate_by_frequencies(x, dim, how.pairs, position_of, memory);
}

}  // namespace detail

/// Rotates every token of x, [batch, head, token, head_dim], where it lies.
/// @param positions  none: 0, 1, 2, ...; one number: that of the first token, the others follow;
///                   else a list, one per token, or one per token of each sequence
/// @throws std::invalid_argument if `how` or the number of positions does not fit, or elements of x
///         share a place; nothing has changed then
template <TensorLike T>
void rotary_in_place(T&& x, const Rotary& how, const IndexList& positions = {}) {
  const auto view = tensor_view(x);
  static_assert(!std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                "mha::rotary_in_place: x must not be const");
  detail::rotate_in_place("rotary_in_place", view, how, positions);
}

/// The same with angles of your own, for scaled or learned frequencies: row p of `cos` and `sin`
/// (positions x dim/2) belongs to position p.
/// @throws std::invalid_argument if the tables differ in shape, are too wide, or a position has no
///         row; if elements of x share a place, with each other or with a table
template <TensorLike T, EigenDense C, EigenDense S>
void rotary_in_place(T&& x, const C& cos_table, const S& sin_table, RotaryPairs pairs,
                     const IndexList& positions = {}) {
  const auto view = tensor_view(x);
  using Scalar = std::remove_pointer_t<decltype(view.data)>;
  static_assert(!std::is_const_v<Scalar>, "mha::rotary_in_place: x must not be const");
  using Acc = accumulator_t<Scalar>;
  const char* const where = "rotary_in_place";
  detail::require(cos_table.rows() == sin_table.rows() && cos_table.cols() == sin_table.cols(),
                  where, ": cos and sin must have one shape, got ", cos_table.rows(), " x ",
                  cos_table.cols(), " and ", sin_table.rows(), " x ", sin_table.cols());
  detail::check_rotated(where, view);
  const auto check_table = [&](const char* name, const auto& table) {
    const detail::Named what{name, {"batch", "num_heads", "positions", "dim / 2"}};
    detail::require(table.rows() <= detail::kMaxSize && table.cols() <= detail::kMaxSize, where,
                    ": ", name, " must have at most ", detail::kMaxSize, " rows and columns, got ",
                    table.rows(), " x ", table.cols());
    if constexpr (EigenInMemory<std::remove_cvref_t<decltype(table)>>) {
      const auto t = detail::as_tensor(detail::view_of_matrix(table));
      (void)detail::check_view(where, what, t);
      detail::require(!detail::overlaps(view, t), where, ": x must not overlap ", name,
                      ", got sizes ", detail::list_text(view.sizes), " and ",
                      detail::list_text(t.sizes));
    }
  };
  check_table("cos", cos_table);
  check_table("sin", sin_table);
  const Index dim = 2 * cos_table.cols();
  detail::check_rotary(where, pairs, dim, dim == 0 ? 0 : view.size(3));
  detail::check_positions(where, positions, view.size(0), view.size(2));
  const auto position_of = [&](Index b, Index i) {
    return detail::token_position(positions, b, i, view.size(2));
  };
  for (Index b = 0; b < view.size(0); ++b) {
    for (Index i = 0; i < view.size(2); ++i) {
      const Index p = position_of(b, i);
      detail::require(p >= 0 && p < cos_table.rows(), where,
                      ": every position must have a row in the tables, got ", p, " and ",
                      cos_table.rows(), " rows");
    }
  }
  detail::OwnedRotaryMemory<Acc> owner(dim);
  const detail::RotaryMemory<Acc> memory = owner.memory();
  detail::rotate_tokens(view, dim, pairs, position_of, memory, [&](Index position) {
    for (Index k = 0; k < dim / 2; ++k) {
      memory.cos[k] = detail::convert<Acc>(cos_table.coeff(position, k));
      memory.sin[k] = detail::convert<Acc>(sin_table.coeff(position, k));
    }
  });
}

/// A rotated copy of x: one head of one sequence, a token per row.
template <EigenDense M>
[[nodiscard]] auto rotary(const M& x, const Rotary& how, const IndexList& positions = {}) {
  if constexpr (EigenInMemory<M>) {
    const detail::Named what{"x", {"batch", "num_heads", "seq_len", "head_dim"}};
    (void)detail::check_view("rotary", what, detail::as_tensor(detail::view_of_matrix(x)));
  }
  detail::check_count("rotary", "x", {1, 1, x.rows(), x.cols()}, sizeof(typename M::Scalar));
  Matrix<typename M::Scalar> y = x;
  detail::rotate_in_place("rotary", detail::view_of_tensor(y), how, positions);
  return y;
}

}  // namespace mha
