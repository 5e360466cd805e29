// SPDX-License-Identifier: MIT
//
// The library itself, called as a user calls it: one adapter, in which alone the benchmarks know
// the API.
#pragma once

#include <memory>
#include <string>

#include "contender.h"
#include "support/call.hpp"
#include "support/workloads.hpp"

namespace mha_bench {

/// Who computes the calls of mha: the calling thread, or a pool of `threads`.
class MhaThreads;
std::shared_ptr<MhaThreads> make_mha_threads(int threads);

/// mha::attention_into over contiguous views of the problem's memory, with a workspace of the
/// call's own.
std::unique_ptr<Call> mha_attention(const AttentionProblem& problem,
                                    std::shared_ptr<MhaThreads> threads);

/// mha::MultiHead::forward_into with the problem's parameters.
std::unique_ptr<Call> mha_layer(const LayerProblem& problem, std::shared_ptr<MhaThreads> threads);

/// The sum of the problem's keys and values, in a loop: no attention can be faster than this when
/// there is one query.
std::unique_ptr<Call> read_keys_and_values(const AttentionProblem& problem,
                                           std::shared_ptr<MhaThreads> threads);

/// The library's version and commit, and the instruction set of its kernels.
std::string describe_mha();
/// Can the library's AVX2 kernels be asked for here?
bool mha_has_avx2();

}  // namespace mha_bench
