// SPDX-License-Identifier: MIT
//
// Single elements of a safetensors file: which dtype stands for which C++ type, and conversion
// between them. Used by the reader and the writer.
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/io/safetensors_header.hpp>

#include <Eigen/Core>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace mha::inline MHA_ABI::io {

static_assert(std::endian::native == std::endian::little,
              "mha/io/safetensors.hpp copies little-endian data as they are and needs such a CPU");

namespace detail {

template <class T>
inline constexpr bool is_half =
    std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>;

template <class Scalar>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<Scalar, bool>) {
    return DType::boolean;
  } else if constexpr (std::is_integral_v<Scalar> && sizeof(Scalar) <= 8) {
    constexpr DType widest = std::is_signed_v<Scalar> ? DType::i64 : DType::u64;
    constexpr int narrower = 4 - static_cast<int>(std::bit_width(sizeof(Scalar)));  // 0 to 3 steps
    return static_cast<DType>(static_cast<int>(widest) + narrower);
  } else if constexpr (is_half<Scalar>) {
    return std::is_same_v<Scalar, Eigen::half> ? DType::f16 : DType::bf16;
  } else {
    static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>,
                  "safetensors has no dtype for this Scalar; name one: add(name, x, DType::f64)");
    return std::is_same_v<Scalar, float> ? DType::f32 : DType::f64;
  }
}

/// Calls `f(Raw{})`, Raw being the C++ type of one element of `dtype`.
template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f32:
      return f(float{});
    case DType::f16:
      return f(Eigen::half{});
    case DType::bf16:
      return f(Eigen::bfloat16{});
    case DType::i64:
      return f(std::int64_t{});
    case DType::i32:
      return f(std::int32_t{});
    case DType::i16:
      return f(std::int16_t{});
    case DType::i8:
      return f(std::int8_t{});
    case DType::u64:
      return f(std::uint64_t{});
    case DType::u32:
      return f(std::uint32_t{});
    case DType::u16:
      return f(std::uint16_t{});
    case DType::u8:
      return f(std::uint8_t{});
    case DType::boolean:
      return f(bool{});
  }
}

/// Converts one element; false if `to` is of an integer type or bool that cannot hold `from`.
template <class From, class To>
bool convert(const From& from, To& to) {
  if constexpr (std::is_same_v<To, From>) {
    to = from;
  } else if constexpr (is_half<From>) {
    return convert(static_cast<float>(from), to);
  } else if constexpr (is_half<To>) {
    to = static_cast<To>(static_cast<float>(from));
  } else if constexpr (std::is_floating_point_v<To>) {
    to = static_cast<To>(from);
  } else if constexpr (!std::is_integral_v<To>) {
    to = To(static_cast<double>(from));  // a number type of the user's, such as AutoDiffScalar
  } else if constexpr (std::is_integral_v<From>) {
    to = static_cast<To>(from);
    return static_cast<From>(to) == from && (to < To{}) == (from < From{});
  } else {
    const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(from));
    if ((bits >> 52 & 0x7ff) == 0x7ff) return false;  // infinity and NaN, under -ffast-math as well
    const From end = std::ldexp(From(1), std::numeric_limits<To>::digits);  // exact, as is begin
    const From begin = std::is_signed_v<To> ? -end : From(0);
    if (from < begin || from >= end || std::trunc(from) != from) return false;
    to = static_cast<To>(from);
  }
  return true;
}

/// Whether JSON can hold `text`: two ways to treat wrong UTF-8 agree only if there is none.
inline bool is_utf8(const std::string& text) {
  using Handler = nlohmann::json::error_handler_t;
  const nlohmann::json json = text;
  return json.dump(-1, ' ', false, Handler::ignore) == json.dump(-1, ' ', false, Handler::replace);
}

}  // namespace detail

}  // namespace mha::io
