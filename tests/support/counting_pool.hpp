// SPDX-License-Identifier: MIT
#pragma once

#include <mha/executor.hpp>

#include <algorithm>

namespace mha::test {

/// A pool that notes with how many workers it was asked to run.
class CountingPool {
 public:
  explicit CountingPool(Index num_threads) : pool_(num_threads) {}
  Index num_threads() const { return pool_.num_threads(); }
  void parallel_for(Index count, const TaskFunction& f) {
    most_ = std::max(most_, count);
    pool_.parallel_for(count, f);
  }
  Index most_workers() const { return most_; }  ///< 1 if it was never asked

 private:
  ThreadPool pool_;
  Index most_ = 1;
};

}  // namespace mha::test
