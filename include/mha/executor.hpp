// SPDX-License-Identifier: MIT
//
// Who runs the independent parts of a call (one head of one sequence each). Nobody but the calling
// thread, unless an executor is given: the library never starts threads by itself and touches no
// global setting.
//     mha::ThreadPool pool(8);                     // threads of your own making
//     attention(x, mha::causal(), {.executor = pool});
// Any object with parallel_for(count, f), which calls f(0), ..., f(count - 1) in any order and
// returns when all are done, serves as an executor. Best with a num_threads(): only then does a backward pass with
// fewer heads than threads do more work in more parts. Each part writes its own results by its own
// arithmetic, so that the bits are the same whoever runs it.
#pragma once

#include "mha/internal/support/language.hpp"

#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>  // Eigen 5
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>

#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

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
      Executor(Pool& pool MHA_LIFETIMEBOUND)  // NOLINT: {.executor = pool}
      : pool_(const_cast<void*>(static_cast<const void*>(&pool))),
        run_([](void* p, Index count, const TaskFunction& f) {
          static_cast<Pool*>(p)->parallel_for(count, f);
        }) {
    if constexpr (requires { static_cast<Index>(pool.num_threads()); }) {
      concurrency_ = std::clamp<Index>(static_cast<Index>(pool.num_threads()), 1, kMostConcurrency);
      is_known_ = true;
    } else {
      concurrency_ = kUnknownConcurrency;
    }
  }

  bool is_serial() const noexcept { return run_ == nullptr; }
  /// How many tasks are worth being handed out at a time: the pool's num_threads(), if it has such
  /// a member.
  Index concurrency() const noexcept { return concurrency_; }
  /// The pool has a num_threads().
  bool concurrency_is_known() const noexcept { return is_known_; }

  /// f(0), ..., f(count - 1), all done on return.
  /// @throws std::invalid_argument if count is negative or f is empty
  template <class F>
  void parallel_for(Index count, const F& f) const {
    detail::require(count >= 0, "Executor::parallel_for: count must not be negative, got ", count);
    detail::require_function("Executor::parallel_for: f", f);
    if (run_ == nullptr || count <= 1) {
      for (Index k = 0; k < count; ++k) f(k);
    } else {
      run_(pool_, count, TaskFunction(f));
    }
  }

 private:
  static constexpr Index kUnknownConcurrency = 16;
  static constexpr Index kMostConcurrency = Index{1} << 12;  ///< each worker has memory of its own
  void* pool_ = nullptr;
  Index concurrency_ = 1;
  bool is_known_ = false;
  void (*run_)(void*, Index, const TaskFunction&) = nullptr;
};

/// A fixed set of threads (Eigen's pool) that wait for work; the calling thread works too, so that
/// `ThreadPool(n)` starts n - 1. Several calls may use one pool at once, also from inside its own
/// tasks. Only its construction allocates.
class ThreadPool {
 public:
  /// @throws std::invalid_argument if num_threads < 1
  explicit ThreadPool(Index num_threads)
      : num_threads_(checked(num_threads)), threads_(static_cast<int>(num_threads - 1)) {}

  Index num_threads() const noexcept { return num_threads_; }

  /// f(0), ..., f(count - 1), all done on return. If some throw, one of their exceptions is thrown
  /// here when the others are done; tasks not begun by then are left out.
  /// @throws std::invalid_argument if count is negative or f is empty
  template <class F>
  void parallel_for(Index count, const F& f) {
    detail::require(count >= 0, "ThreadPool::parallel_for: count must not be negative, got ",
                    count);
    detail::require_function("ThreadPool::parallel_for: f", f);
    const Index helpers = std::min(num_threads_, count) - 1;
    if (helpers <= 0) {
      for (Index k = 0; k < count; ++k) f(k);
      return;
    }
    Job job(TaskFunction(f), count);
    {
      const Completion waits_even_if_schedule_throws{*this, job};
      open(job, helpers);
      job.work();
    }
    job.rethrow_error();
  }

 private:
  // A job, which is one parallel_for, lives on its caller's stack and stands in the pool's list
  // while it is open. The threads are not sent to a job but called to help: a helper joins the oldest
  // job that has tasks left, then the next one, and ends when there is none. Hence
  //   - a caller waits for the helpers inside its job alone. One that begins late finds the job gone
  //     from the list and touches nothing of it;
  //   - a helper knows the pool alone: one pointer, which std::function keeps within itself;
  //   - more helpers than threads are of no use, for a job meets each of them when it is free. So
  //     what is scheduled is bounded, and Eigen's queues never fill up.
  class Job {
   public:
    Job(const TaskFunction& f, Index count) : f_(f), count_(count) {}

    bool has_tasks() const { return next_ < count_; }
    void begin_no_more() { next_ = count_; }

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
    void work() {
      try {
        take_tasks();
      } catch (...) {
        begin_no_more();
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
    void rethrow_error() const {
      if (error_) std::rethrow_exception(error_);
    }
#else
    void work() { take_tasks(); }
    void rethrow_error() const {}
#endif

    // Guarded by the pool's mutex:
    Job* later = nullptr;
    Index helpers = 0;  ///< inside
    std::condition_variable last_left;

   private:
    void take_tasks() {
      for (Index k = next_++; k < count_; k = next_++) f_(k);
    }

    const TaskFunction f_;
    const Index count_;
    std::atomic<Index> next_{0};
    std::atomic<bool> failed_{false};
    std::exception_ptr error_;  ///< written by the first to fail, read when no helper is inside
  };

  struct Completion {
    ThreadPool& pool;
    Job& job;
    ~Completion() { pool.close(job); }
  };

  /// Puts the job into the list, and calls so many helpers if as many are free.
  void open(Job& job, Index helpers) {
    {
      const std::lock_guard lock(mutex_);
      *link_to(nullptr) = &job;
      helpers = std::min(helpers, std::min(num_threads_ - 1, kMostHelpers) - helpers_);
      helpers_ += helpers;
    }
    for (Index t = 0; t < helpers; ++t) threads_.Schedule([this] { help(); });
  }

  /// Takes the job out of the list and waits for the helpers inside.
  void close(Job& job) {
    job.begin_no_more();
    std::unique_lock lock(mutex_);
    *link_to(&job) = job.later;
    job.last_left.wait(lock, [&] { return job.helpers == 0; });
  }

  void help() {
    std::unique_lock lock(mutex_);
    while (Job* const job = job_with_tasks()) {
      ++job->helpers;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->helpers == 0) job->last_left.notify_one();  // under the lock: then the job may end
    }
    --helpers_;
  }

  // With the mutex held:
  Job** link_to(const Job* job) {
    Job** link = &oldest_;
    while (*link != job) link = &(*link)->later;
    return link;
  }
  Job* job_with_tasks() const {
    Job* job = oldest_;
    while (job != nullptr && !job->has_tasks()) job = job->later;
    return job;
  }

  static Index checked(Index num_threads) {
    detail::require(num_threads >= 1 && num_threads <= kMaxThreads,
                    "ThreadPool: num_threads must lie between 1 and ", kMaxThreads, ", got ",
                    num_threads);
    return num_threads;
  }

  static constexpr Index kMaxThreads = 4096;
  static constexpr Index kMostHelpers = 1024;  ///< what one of Eigen's queues holds
  const Index num_threads_;
  std::mutex mutex_;
  Job* oldest_ = nullptr;
  Index helpers_ = 0;          ///< scheduled or at work
  Eigen::ThreadPool threads_;  // last: it ends while helpers may still look into the list
};

}  // namespace mha
