// SPDX-License-Identifier: MIT
//
// Who runs the independent parts of a call (one head of one sequence each). Nobody but the calling
// thread, unless an executor is given: the library never starts threads by itself and touches no
// global setting.
//     mha::ThreadPool pool(8);                     // threads of your own making
//     attention(x, mha::causal(), {.executor = pool});
// Any object with parallel_for(count, f), which calls f(0), ..., f(count - 1) in any order and
// returns when all are done, serves as an executor. Each part writes its own results by its own
// arithmetic, so that the bits are the same whoever runs it.
#pragma once

#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>  // Eigen 5
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif
#include <algorithm>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>

#include "mha/types.hpp"

namespace mha {

/// A call f(k) without its type: what a pool's parallel_for is given.
class TaskFunction {
 public:
  template <class F>
  requires(!std::is_same_v<F, TaskFunction>) explicit TaskFunction(const F& f)
      : f_(&f), call_([](const void* g, Index k) { (*static_cast<const F*>(g))(k); }) {}
  void operator()(Index k) const { call_(f_, k); }

 private:
  const void* f_;
  void (*call_)(const void*, Index);
};

/// A reference to a pool, or to none: then the calling thread does all. The pool must outlive the
/// call.
class Executor {
 public:
  Executor() = default;
  template <class Pool>
  requires(!std::is_same_v<std::remove_const_t<Pool>, Executor> &&
           requires(Pool & pool, Index n, const TaskFunction& f) { pool.parallel_for(n, f); })
      Executor(Pool& pool)  // NOLINT: {.executor = pool}
      : pool_(const_cast<void*>(static_cast<const void*>(&pool))),
        run_([](void* p, Index count, const TaskFunction& f) {
          static_cast<Pool*>(p)->parallel_for(count, f);
        }) {
    if constexpr (requires { Index{pool.num_threads()}; }) {
      concurrency_ = std::max<Index>(pool.num_threads(), 1);
    } else {
      concurrency_ = kUnknownConcurrency;
    }
  }

  bool is_serial() const noexcept { return run_ == nullptr; }
  /// How many tasks are worth being handed out at a time: the pool's num_threads(), if it has such
  /// a member.
  Index concurrency() const noexcept { return concurrency_; }

  /// f(0), ..., f(count - 1), all done on return.
  template <class F>
  void parallel_for(Index count, const F& f) const {
    if (run_ == nullptr || count <= 1) {
      for (Index k = 0; k < count; ++k) f(k);
    } else {
      run_(pool_, count, TaskFunction(f));
    }
  }

 private:
  static constexpr Index kUnknownConcurrency = 16;
  void* pool_ = nullptr;
  Index concurrency_ = 1;
  void (*run_)(void*, Index, const TaskFunction&) = nullptr;
};

/// A fixed set of threads (Eigen's pool) that wait for work; the calling thread works too, so that
/// `ThreadPool(n)` starts n - 1. Several calls may use one pool at once, also from inside its own
/// tasks.
class ThreadPool {
 public:
  /// @throws std::invalid_argument if num_threads < 1
  explicit ThreadPool(Index num_threads)
      : num_threads_(checked(num_threads)), pool_(static_cast<int>(num_threads - 1)) {}

  Index num_threads() const noexcept { return num_threads_; }

  /// f(0), ..., f(count - 1), all done on return. If some throw, one of their exceptions is thrown
  /// here when the others are done; tasks not begun by then are left out.
  template <class F>
  void parallel_for(Index count, const F& f) {
    const auto job = std::make_shared<Job>(TaskFunction(f), count);
    {
      const Completion waits_even_if_schedule_throws{*job};
      const Index helpers = std::min(num_threads_, count) - 1;
      for (Index t = 0; t < helpers; ++t) pool_.Schedule([job] { job->work(); });
      job->work();
    }
    job->rethrow_error();
  }

 private:
  /// One parallel_for. Its tasks are taken one by one; helpers that come late find none left, which
  /// is why nobody waits for helpers, only for tasks that were taken.
  class Job {
   public:
    Job(const TaskFunction& f, Index count) : f_(f), count_(count) {}

    void work() {
      std::unique_lock lock(mutex_);
      while (next_ < count_) {
        const Index k = next_++;
        ++running_;
        lock.unlock();
        std::exception_ptr error = run(k);
        lock.lock();
        --running_;
        if (error) {
          error_ = error;
          next_ = count_;
        }
      }
      if (running_ == 0) done_.notify_all();
    }

    /// Begins no more tasks and waits for those begun.
    void finish() {
      std::unique_lock lock(mutex_);
      next_ = count_;
      done_.wait(lock, [this] { return running_ == 0; });
    }
    /// Hands the error over, so that no helper that ends later destroys it.
    void rethrow_error() {
      std::exception_ptr error;
      {
        const std::lock_guard lock(mutex_);
        error = std::exchange(error_, nullptr);
      }
      if (error) rethrow(error);
    }

   private:
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
    std::exception_ptr run(Index k) {
      try {
        f_(k);
      } catch (...) {
        return std::current_exception();
      }
      return nullptr;
    }
    [[noreturn]] static void rethrow(const std::exception_ptr& error) {
      std::rethrow_exception(error);
    }
#else
    std::exception_ptr run(Index k) {
      f_(k);
      return nullptr;
    }
    [[noreturn]] static void rethrow(const std::exception_ptr&) { std::abort(); }
#endif

    const TaskFunction f_;
    const Index count_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable done_;
    Index next_ = 0;
    Index running_ = 0;
    std::exception_ptr error_;
  };

  struct Completion {
    Job& job;
    ~Completion() { job.finish(); }
  };

  static Index checked(Index num_threads) {
    detail::require(num_threads >= 1 && num_threads <= kMaxThreads,
                    "ThreadPool: num_threads must lie between 1 and ", kMaxThreads, ", got ",
                    num_threads);
    return num_threads;
  }

  static constexpr Index kMaxThreads = 4096;
  Index num_threads_;
  Eigen::ThreadPool pool_;
};

}  // namespace mha
