// SPDX-License-Identifier: MIT
//
// Everyone who takes part: the library, and the modules that were built.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "support/call.hpp"
#include "support/machine.hpp"

namespace mha_bench {

class Contender {
 public:
  explicit Contender(std::string name) : name_(std::move(name)) {}
  Contender(const Contender&) = delete;
  Contender& operator=(const Contender&) = delete;
  virtual ~Contender() = default;

  const std::string& name() const { return name_; }  ///< in the CSV file
  virtual std::string describe() const = 0;          ///< version, flags, settings
  virtual void set_threads(int threads) = 0;         ///< of the calls made from now on
  /// A call for this problem, or null if the contender has none.
  virtual std::unique_ptr<Call> call(const AttentionProblem& problem) = 0;
  virtual std::unique_ptr<Call> call(const LayerProblem& problem) = 0;

 private:
  std::string name_;
};

/// mha first, then the modules; opened when first asked for.
const std::vector<std::unique_ptr<Contender>>& contenders();

/// A workload of either kind with its memory.
struct Problem {
  explicit Problem(const Workload& w);
  std::unique_ptr<Call> call(Contender& contender) const;  ///< null if the contender has none
  Buffer<float>& output() const;

  Workload workload;
  std::unique_ptr<AttentionProblem> attention;
  std::unique_ptr<LayerProblem> layer;
};

/// What a workload's speed is held against.
Arithmetic arithmetic_of(const Workload& workload);

/// Lets the threads that a contender may have left spinning (OpenMP's and OpenBLAS's do so for some
/// 25 ms) go to sleep, so that they do not disturb the next one. Does nothing for one thread.
void settle(int threads);

}  // namespace mha_bench
