// SPDX-License-Identifier: MIT
//
// Which instruction set runs: the best that the processor and the operating system support, found
// once, or the one that you name:
//     mha::kernels::target()               what runs now
//     mha::kernels::use_target(t)          for this process from now on; tests run every one so
//     mha::kernels::name(t)
// Results have the same bits for every thread count and batch on one target; another target may
// round differently.
#pragma once

#include <atomic>

#include "mha/error.hpp"
#include "mha/kernels/targets.hpp"

namespace mha::kernels {

/// Instruction sets, in rising order. `eigen`: compiled with MHA_KERNELS=0, everything runs through
/// Eigen's products. `native`: the vectors of a processor other than x86-64.
enum class Target { eigen, native, sse2, avx2, avx512 };

inline const char* name(Target t) {
  switch (t) {
    case Target::eigen:
      return "eigen";
    case Target::native:
      return "native";
    case Target::sse2:
      return "sse2";
    case Target::avx2:
      return "avx2";
    case Target::avx512:
      return "avx512";
  }
  return "";
}

/// Was code for this target generated, and can this machine run it?
inline bool is_available(Target t) {
  switch (t) {
#if !MHA_KERNELS
    case Target::eigen:
      return true;
#elif defined(__x86_64__)
#if MHA_HAS_SSE2
    case Target::sse2:
      return true;
#endif
#if MHA_HAS_AVX2
    case Target::avx2:  // __builtin_cpu_supports asks the operating system too (XGETBV)
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#endif
    case Target::avx512:
      return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
             __builtin_cpu_supports("fma") != 0;
#else
    case Target::native:
      return true;
#endif
    default:
      return false;
  }
}

namespace detail {

inline Target best_target() {
  for (const Target t : {Target::avx512, Target::avx2, Target::sse2, Target::native}) {
    if (is_available(t)) return t;
  }
  return Target::eigen;
}

inline std::atomic<Target>& chosen_target() {
  static std::atomic<Target> target{best_target()};
  return target;
}

}  // namespace detail

/// What runs now.
inline Target target() { return detail::chosen_target().load(std::memory_order_relaxed); }

/// Runs this one from now on, in the whole process. Calls under way are not disturbed.
/// @throws std::invalid_argument if it is not available
inline void use_target(Target t) {
  if (!is_available(t)) {
    std::string all;
    for (const Target other :
         {Target::eigen, Target::native, Target::sse2, Target::avx2, Target::avx512}) {
      if (is_available(other)) all += (all.empty() ? "" : ", ") + std::string(name(other));
    }
    const std::string got = *name(t) != 0 ? name(t) : std::to_string(static_cast<int>(t));
    mha::detail::require(false, "kernels::use_target: the target must be available here (", all,
                         "), got ", got);
  }
  detail::chosen_target().store(t, std::memory_order_relaxed);
}

#if MHA_KERNELS

#if defined(__x86_64__)
#if MHA_HAS_SSE2
#define MHA_IF_SSE2(expression) \
  case Target::sse2:            \
    return expression;
#else
#define MHA_IF_SSE2(expression)
#endif
#if MHA_HAS_AVX2
#define MHA_IF_AVX2(expression) \
  case Target::avx2:            \
    return expression;
#else
#define MHA_IF_AVX2(expression)
#endif
#endif

/// The functions of a target; never asked for Target::eigen.
template <class T>
const Kernels<T>& table(Target which) {
  switch (which) {
#if defined(__x86_64__)
    MHA_IF_SSE2(sse2::kTable<T>)
    MHA_IF_AVX2(avx2::kTable<T>)
    default:
      return avx512::kTable<T>;
#else
    default:
      return native::kTable<T>;
#endif
  }
}

template <class T>
using Modify = void (*)(const void*, const ModifyTile<T>&);

/// A target's function that applies the rules to a tile.
template <class T, class RuleSet>
Modify<T> modify_of(Target which) {
  switch (which) {
#if defined(__x86_64__)
    MHA_IF_SSE2((sse2::modify<T, RuleSet>))
    MHA_IF_AVX2((avx2::modify<T, RuleSet>))
    default:
      return avx512::modify<T, RuleSet>;
#else
    default:
      return native::modify<T, RuleSet>;
#endif
  }
}

#undef MHA_IF_SSE2
#undef MHA_IF_AVX2

#endif  // MHA_KERNELS

}  // namespace mha::kernels
