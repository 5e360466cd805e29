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

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

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
      : pool_(&pool), run_([](void* p, Index count, const TaskFunction& f) {
          static_cast<Pool*>(p)->parallel_for(count, f);
        }) {}

  bool is_serial() const noexcept { return run_ == nullptr; }

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
  void* pool_ = nullptr;
  void (*run_)(void*, Index, const TaskFunction&) = nullptr;
};

/// A fixed set of threads that wait for work. One call at a time uses them; a second one waits. The
/// calling thread works too, so `ThreadPool(n)` starts n - 1 threads.
class ThreadPool {
 public:
  /// @throws std::invalid_argument if num_threads < 1
  explicit ThreadPool(Index num_threads) {
    detail::require(num_threads >= 1, "ThreadPool: num_threads must be at least 1, got ",
                    num_threads);
    threads_.reserve(static_cast<std::size_t>(num_threads - 1));
    for (Index t = 1; t < num_threads; ++t) threads_.emplace_back([this] { wait_for_work(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Index num_threads() const noexcept { return static_cast<Index>(threads_.size()) + 1; }

  /// f(0), ..., f(count - 1), all done on return. What the first failing call throws is thrown
  /// here. Must not be called from inside f.
  template <class F>
  void parallel_for(Index count, const F& f) {
    const std::lock_guard one_call(call_mutex_);
    const TaskFunction function(f);
    std::unique_lock lock(mutex_);
    function_ = &function;
    count_ = count;
    next_ = 0;
    running_ = 0;
    work_.notify_all();
    work(lock);
    done_.wait(lock, [this] { return running_ == 0 && next_ >= count_; });
    function_ = nullptr;
    count_ = 0;
    if (const std::exception_ptr error = std::exchange(error_, nullptr)) {
      lock.unlock();
      rethrow(error);
    }
  }

 private:
  void wait_for_work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || next_ < count_; });
      if (stopping_) return;
      work(lock);
    }
  }

  /// Takes tasks, one after the other, until none is left. Holds the lock between them.
  void work(std::unique_lock<std::mutex>& lock) {
    while (next_ < count_) {
      const Index k = next_++;
      const TaskFunction& f = *function_;
      ++running_;
      lock.unlock();
      std::exception_ptr error = run(f, k);
      lock.lock();
      --running_;
      if (error && !error_) {
        error_ = error;
        next_ = count_;
      }
    }
    if (running_ == 0) done_.notify_one();
  }

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
  static std::exception_ptr run(const TaskFunction& f, Index k) {
    try {
      f(k);
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }
  [[noreturn]] static void rethrow(const std::exception_ptr& error) {
    std::rethrow_exception(error);
  }
#else
  static std::exception_ptr run(const TaskFunction& f, Index k) {
    f(k);
    return nullptr;
  }
  [[noreturn]] static void rethrow(const std::exception_ptr&) { std::abort(); }
#endif

  std::vector<std::thread> threads_;
  std::mutex call_mutex_;  // one parallel_for at a time
  std::mutex mutex_;       // guards what follows
  std::condition_variable work_;
  std::condition_variable done_;
  const TaskFunction* function_ = nullptr;
  Index count_ = 0;
  Index next_ = 0;
  Index running_ = 0;
  std::exception_ptr error_;
  bool stopping_ = false;
};

}  // namespace mha
