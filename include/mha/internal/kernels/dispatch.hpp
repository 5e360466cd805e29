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

#include "mha/compiled.hpp"
#include "mha/internal/kernels/targets.hpp"
#include "mha/internal/support/error.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Instruction sets, in rising order; `generic` is plain C++, for any compiler and processor.
enum class Target {
#define MHA_TARGET_NAME(t) t,
  MHA_TARGETS(MHA_TARGET_NAME)
#undef MHA_TARGET_NAME
};

inline const char* name(Target t) {
  switch (t) {
#define MHA_TARGET_CASE(t) \
  case Target::t:          \
    return #t;
    MHA_TARGETS(MHA_TARGET_CASE)
#undef MHA_TARGET_CASE
  }
  return "";
}

/// All of them, of this machine or not, in rising order.
inline constexpr Target kAllTargets[] = {
#define MHA_TARGET_VALUE(t) Target::t,
    MHA_TARGETS(MHA_TARGET_VALUE)
#undef MHA_TARGET_VALUE
};

namespace detail {

/// Can this machine run what was compiled for the target?
inline bool runs_generic() { return true; }
inline bool runs_neon() { return true; }
inline bool runs_sse2() { return true; }
#if !MHA_GENERIC && defined(__x86_64__)
// __builtin_cpu_supports asks the operating system too (XGETBV).
inline bool runs_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}
inline bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("fma") != 0;
}
#endif

}  // namespace detail

/// Was code for this target generated, and can this machine run it?
inline bool is_available(Target t) {
  switch (t) {
#define MHA_TARGET_CASE(t) \
  case Target::t:          \
    return detail::runs_##t();
    MHA_TARGETS_HERE(MHA_TARGET_CASE)
#undef MHA_TARGET_CASE
    default:
      return false;
  }
}

namespace detail {

inline Target best_target() {
  Target best = Target::generic;
  for (const Target t : kAllTargets) {
    if (is_available(t)) best = t;
  }
  return best;
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
    for (const Target other : kAllTargets) {
      if (is_available(other)) all += (all.empty() ? "" : ", ") + std::string(name(other));
    }
    const std::string got = *name(t) != 0 ? name(t) : std::to_string(static_cast<int>(t));
    mha::detail::require(false, "kernels::use_target: the target must be available here (", all,
                         "), got ", got);
  }
  detail::chosen_target().store(t, std::memory_order_relaxed);
}

/// The functions of a target; those of the highest here, if this unit was compiled without it.
template <class T>
const Kernels<T>& table(Target which);
#if !MHA_KERNELS_ELSEWHERE
template <class T>
const Kernels<T>& table(Target which) {
  const Kernels<T>* found = nullptr;
#define MHA_TARGET_CASE(t) \
  found = &t::kTable<T>;   \
  if (which == Target::t) return *found;
  MHA_TARGETS_HERE(MHA_TARGET_CASE)
#undef MHA_TARGET_CASE
  return *found;
}
#endif

#if defined(MHA_COMPILED_TEMPLATE)
MHA_COMPILED_TEMPLATE const Kernels<float>& table<float>(Target);
MHA_COMPILED_TEMPLATE const Kernels<double>& table<double>(Target);
#endif

template <class T>
using Modify = void (*)(const void*, const ModifyTile<T>&);

#define MHA_TARGET_CASE(t) Target::t,
inline constexpr Target kTargetsHere[] = {MHA_TARGETS_HERE(MHA_TARGET_CASE)};
#undef MHA_TARGET_CASE

/// A target's function that applies the rules to a tile; that of the highest here, if this unit was
/// compiled without it: never none, which would stand for no rule. With MHA_QUICK_TO_COMPILE that of the lowest, for all.
template <class T, class RuleSet>
Modify<T> modify_of(Target which) {
  Modify<T> found = nullptr;
#define MHA_TARGET_CASE(t)                                                  \
  if constexpr (MHA_RULES_OF_EACH_TARGET || Target::t == kTargetsHere[0]) { \
    found = t::modify<T, RuleSet>;                                          \
    if (which == Target::t) return found;                                   \
  }
  MHA_TARGETS_HERE(MHA_TARGET_CASE)
#undef MHA_TARGET_CASE
  return found;
}

}  // namespace mha::kernels
