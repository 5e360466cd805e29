// SPDX-License-Identifier: MIT
//
// mha/executor.hpp: who computes changes no bit, exceptions reach the caller, and one pool or one
// set of inputs may be used from many threads. Run under the thread sanitizer too.
#include <mha/attention.hpp>
#include <mha/executor.hpp>

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <set>

#include "support/matchers.hpp"

using mha::attention_forward;
using mha::Executor;
using mha::Index;
using mha::Matrix;
using mha::Tensor;
using mha::ThreadPool;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::random_tensor;
using mha::test::stacked;

namespace {

// Executors of a user's own: any object with parallel_for(count, f).
struct Backwards {
  Index calls = 0;
  template <class F>
  void parallel_for(Index count, const F& f) {
    ++calls;
    for (Index k = count - 1; k >= 0; --k) f(k);
  }
};
struct ThreadPerTask {
  void parallel_for(Index count, const std::function<void(Index)>& f) const {
    std::vector<std::thread> threads;
    for (Index k = 0; k < count; ++k) threads.emplace_back([&f, k] { f(k); });
    for (std::thread& thread : threads) thread.join();
  }
};

template <class Scalar>
struct Inputs {
  Tensor<Scalar> query;
  Tensor<Scalar> key;
  Tensor<Scalar> value;

  Inputs(Index batch, Index num_heads, Index kv_heads, Index query_len, Index kv_len)
      : query(random_tensor<Scalar>({batch, num_heads, query_len, 6}, 1)),
        key(random_tensor<Scalar>({batch, kv_heads, kv_len, 6}, 2)),
        value(random_tensor<Scalar>({batch, kv_heads, kv_len, 5}, 3)) {}

  template <class RuleType>
  auto attend(const RuleType& rule, const Executor& executor = {}) const {
    return attention_forward(query, key, value, rule,
                             {.need_weights = true, .need_lse = true, .executor = executor});
  }
};

template <class Scalar>
void check_same_bits(const mha::AttentionResult<Scalar>& actual,
                     const mha::AttentionResult<Scalar>& expected) {
  CHECK_THAT(stacked(actual.output), HasBitsOf(stacked(expected.output)));
  CHECK_THAT(stacked(actual.weights), HasBitsOf(stacked(expected.weights)));
  CHECK_THAT(stacked(actual.lse), HasBitsOf(stacked(expected.lse)));
}

template <class Scalar>
bool same_output(const mha::AttentionResult<Scalar>& a, const mha::AttentionResult<Scalar>& b) {
  return HasBitsOf(stacked(b.output)).match(stacked(a.output));
}

// Runs f(0), ..., f(count - 1), each on a thread of its own, all at once.
template <class F>
void at_once(int count, const F& f) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int t = 0; t < count; ++t) threads.emplace_back([&f, t] { f(t); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEMPLATE_TEST_CASE("any number of threads gives the bits of one", "[executor][bits]", float, double,
                   long double, Eigen::half, Eigen::bfloat16) {
  const Inputs<TestType> x(3, 4, 2, 70, 90);
  const auto rule = mha::causal() & mha::lengths({90, 0, 41});
  const auto serial = x.attend(rule);
  for (const Index threads : {1, 2, 3, 7, 16}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    check_same_bits(x.attend(rule, pool), serial);
    check_same_bits(x.attend(rule, pool), serial);  // the pool works again
  }
}

TEST_CASE("more heads than tasks at a time give the bits of one thread", "[executor][bits]") {
  const Inputs<float> x(10, 13, 13, 5, 7);
  const auto serial = x.attend(mha::softcap(2.0));
  ThreadPool pool(4);
  check_same_bits(x.attend(mha::softcap(2.0), pool), serial);
}

TEST_CASE("sequences of very different lengths give the bits of one thread", "[executor][bits]") {
  // Tasks finish in another order than they start.
  const Inputs<double> x(6, 2, 1, 40, 600);
  const auto rule = mha::lengths({600, 1, 0, 513, 2, 599});
  ThreadPool pool(3);
  check_same_bits(x.attend(rule, pool), x.attend(rule));
}

TEST_CASE("anything with parallel_for serves as an executor", "[executor]") {
  const Inputs<float> x(2, 3, 3, 200, 1000);  // enough work to be worth handing out
  const auto serial = x.attend(mha::causal());
  Backwards backwards;
  check_same_bits(x.attend(mha::causal(), backwards), serial);
  CHECK(backwards.calls == 1);
  const ThreadPerTask thread_per_task;
  check_same_bits(x.attend(mha::causal(), thread_per_task), serial);
}

TEST_CASE("no work is fine with any executor", "[executor]") {
  ThreadPool pool(3);
  Backwards backwards;
  for (const Executor& executor : {Executor(), Executor(pool), Executor(backwards)}) {
    CHECK(Inputs<float>(0, 2, 2, 3, 4).attend(mha::causal(), executor).output.empty());
    CHECK(Inputs<float>(2, 0, 0, 3, 4).attend(mha::causal(), executor).output.empty());
    CHECK(Inputs<float>(2, 3, 1, 0, 4).attend(mha::causal(), executor).output.empty());
    CHECK(stacked(Inputs<float>(2, 3, 1, 4, 0).attend(mha::causal(), executor).output).isZero(0));
  }
}

TEST_CASE("an executor that is not given is the calling thread, in order", "[executor]") {
  const Executor none;
  CHECK(none.is_serial());
  std::vector<Index> order;
  none.parallel_for(5, [&](Index k) { order.push_back(k); });
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});
  none.parallel_for(0, [&](Index k) { order.push_back(k); });
  CHECK(order.size() == 5);
  ThreadPool pool(2);
  CHECK_FALSE(Executor(pool).is_serial());
}

TEST_CASE("a pool calls every task exactly once, and all are done on return", "[executor]") {
  const Index threads = GENERATE(1, 2, 5);
  CAPTURE(threads);
  ThreadPool pool(threads);
  CHECK(pool.num_threads() == threads);
  for (const Index count : {0, 1, 2, 7, 1000}) {
    CAPTURE(count);
    std::vector<int> calls(static_cast<std::size_t>(count), 0);  // not atomic: one writer each
    pool.parallel_for(count, [&](Index k) { ++calls[static_cast<std::size_t>(k)]; });
    CHECK(calls == std::vector<int>(static_cast<std::size_t>(count), 1));
  }
}

TEST_CASE("ThreadPool(n) works on n threads at most, the caller among them", "[executor]") {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::thread::id> ids;
  pool.parallel_for(200, [&](Index) {
    const std::lock_guard lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  CHECK(ids.size() <= 3);
  ThreadPool alone(1);
  ids.clear();
  alone.parallel_for(5, [&](Index) { ids.insert(std::this_thread::get_id()); });
  CHECK(ids == std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST_CASE("a pool that is not used ends like one that is", "[executor]") {
  for (int n = 0; n < 20; ++n) {
    ThreadPool unused(4);
    ThreadPool used(4);
    used.parallel_for(3, [](Index) {});
  }
  SUCCEED("no thread waits forever");
}

TEST_CASE("a pool of no threads, or of absurdly many, is refused", "[executor][errors]") {
  CHECK_THROWS_AS(ThreadPool(0), std::invalid_argument);
  CHECK_THROWS_WITH(ThreadPool(0),
                    "mha::ThreadPool: num_threads must lie between 1 and 4096, got 0");
  CHECK_THROWS_WITH(ThreadPool(-2), ContainsSubstring("got -2"));
  CHECK_THROWS_WITH(ThreadPool(5000), ContainsSubstring("got 5000"));
}

TEST_CASE("an empty function is refused", "[executor][errors]") {
  ThreadPool pool(2);
  const mha::Executor executor(pool);
  const std::function<void(Index)> empty;
  void (*const null)(Index) = nullptr;
  for (const Index count : {0, 1, 5}) {
    CHECK_THROWS_WITH(pool.parallel_for(count, empty),
                      "mha::ThreadPool::parallel_for: f must not be empty, got none");
    CHECK_THROWS_AS(pool.parallel_for(count, null), std::invalid_argument);
    CHECK_THROWS_WITH(executor.parallel_for(count, empty),
                      "mha::Executor::parallel_for: f must not be empty, got none");
    CHECK_THROWS_AS(mha::Executor().parallel_for(count, null), std::invalid_argument);
  }
}

TEST_CASE("what a user's mask_mod throws reaches the caller, and the pool goes on working",
          "[executor][errors]") {
  const Inputs<float> x(4, 4, 4, 20, 30);
  const auto throws = mha::mask_mod([](Index b, Index h, Index, Index) {
    if (b == 2 && h == 1) throw std::runtime_error("no such document");
    return true;
  });
  const auto serial = x.attend(mha::causal());
  ThreadPool pool(3);
  for (int n = 0; n < 5; ++n) {
    CHECK_THROWS_AS(x.attend(throws, pool), std::runtime_error);
    CHECK_THROWS_WITH(x.attend(throws, pool), "no such document");
    check_same_bits(x.attend(mha::causal(), pool), serial);
  }
  CHECK_THROWS_WITH(x.attend(throws), "no such document");
}

TEST_CASE("of many failing tasks one is reported, and none runs after the return",
          "[executor][errors]") {
  ThreadPool pool(4);
  for (int n = 0; n < 20; ++n) {
    std::atomic<int> running{0};
    std::atomic<int> started{0};
    CHECK_THROWS_AS(pool.parallel_for(1000,
                                      [&](Index k) {
                                        ++running;
                                        ++started;
                                        if (k % 2 == 0) {
                                          --running;
                                          throw std::out_of_range("task");
                                        }
                                        --running;
                                      }),
                    std::out_of_range);
    CHECK(running == 0);
    CHECK(started < 1000);  // tasks that had not begun are left out
  }
  Index sum = 0;
  std::mutex mutex;
  pool.parallel_for(10, [&](Index k) {
    const std::lock_guard lock(mutex);
    sum += k;
  });
  CHECK(sum == 45);
}

TEST_CASE("shapes are checked before an executor is asked", "[executor][errors]") {
  Backwards backwards;
  const Tensor<float> q({1, 2, 3, 4});
  const Tensor<float> k({1, 2, 3, 5});
  CHECK_THROWS_AS(mha::attention(q, k, k, mha::All(), {.executor = backwards}),
                  std::invalid_argument);
  CHECK(backwards.calls == 0);
}

TEST_CASE("several threads may use one pool at once", "[executor][threads]") {
  const Inputs<float> x(3, 2, 1, 30, 40);
  const auto serial = x.attend(mha::causal());
  ThreadPool pool(3);
  std::atomic<int> wrong{0};
  at_once(4, [&](int) {
    for (int n = 0; n < 10; ++n) {
      if (!same_output(x.attend(mha::causal(), pool), serial)) ++wrong;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("several threads on one pool each get their own exception", "[executor][threads]") {
  ThreadPool pool(3);
  std::atomic<int> wrong{0};
  at_once(4, [&](int t) {
    for (int n = 0; n < 20; ++n) {
      try {
        pool.parallel_for(10, [&](Index k) {
          if (t % 2 == 0 && k == 5) throw std::runtime_error(std::to_string(t));
        });
        if (t % 2 == 0) ++wrong;
      } catch (const std::runtime_error& error) {
        if (t % 2 != 0 || error.what() != std::to_string(t)) ++wrong;
      }
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("a call ends without a pool's threads that are busy in another", "[executor][threads]") {
  ThreadPool pool(2);
  std::atomic<int> inside{0};
  std::atomic<bool> over{false};
  std::thread other([&] {
    pool.parallel_for(2, [&](Index) {
      for (++inside; !over;) std::this_thread::yield();
    });
  });
  while (inside < 2) std::this_thread::yield();
  Index sum = 0;  // not atomic: nobody else is free
  for (int n = 0; n < 100; ++n) pool.parallel_for(3, [&](Index k) { sum += k; });
  over = true;
  other.join();
  CHECK(sum == 300);
}

TEST_CASE("short calls at once and inside each other, some failing, each get what is theirs",
          "[executor][threads]") {
  // Most helpers come when the call that wanted them is over.
  for (const Index threads : {2, 3, 5}) {
    ThreadPool pool(threads);
    std::atomic<int> wrong{0};
    at_once(3, [&](int t) {
      for (int n = 0; n < 300; ++n) {
        std::array<int, 5> calls{};  // not atomic: one writer each, who is done on return
        const auto count = static_cast<Index>(n % 6);
        const bool fails = n % 7 == t;
        bool caught = false;
        try {
          pool.parallel_for(count, [&](Index k) {
            if (n % 5 == 0) {
              std::array<int, 3> inner{};
              pool.parallel_for(3, [&](Index m) { ++inner[static_cast<std::size_t>(m)]; });
              if (inner != std::array<int, 3>{1, 1, 1}) ++wrong;
            }
            ++calls[static_cast<std::size_t>(k)];
            if (fails && k == count - 1) throw std::runtime_error("last");
          });
        } catch (const std::runtime_error&) {
          caught = true;
        }
        if (caught != (fails && count > 0)) ++wrong;
        for (Index k = 0; k < 5; ++k) {
          if (calls[static_cast<std::size_t>(k)] != (k < count ? 1 : 0)) ++wrong;
        }
      }
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("a pool may be used from inside its own tasks", "[executor][threads]") {
  const Inputs<float> x(2, 2, 1, 10, 20);
  const auto serial = x.attend(mha::causal());
  const Index threads = GENERATE(1, 2, 3);
  CAPTURE(threads);
  ThreadPool pool(threads);
  std::atomic<int> wrong{0};
  pool.parallel_for(8, [&](Index) {
    if (!same_output(x.attend(mha::causal(), pool), serial)) ++wrong;
  });
  CHECK(wrong == 0);
  CHECK_THROWS_WITH(pool.parallel_for(4,
                                      [&](Index) {
                                        pool.parallel_for(4, [](Index k) {
                                          if (k == 2) throw std::runtime_error("inside");
                                        });
                                      }),
                    "inside");
}

TEST_CASE("sixteen threads may use one const rule and the same inputs at once",
          "[executor][threads][regression]") {
  const Inputs<float> x(2, 4, 2, 30, 70);
  const Matrix<bool> mask = mha::test::random_booleans(30, 70, 5, 0.7);
  const Matrix<float> bias = mha::test::random_matrix<float>(30, 70, 6);
  const auto rule = mha::causal_offset({40, 3}) & mha::window(30, -1) & mha::lengths({70, 50}) &
                    mha::keep(mask) & mha::bias(bias) & mha::alibi() & mha::softcap(3) &
                    mha::sinks(0.5F) &
                    mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 5 != 0; });
  const auto expected = x.attend(rule);
  std::atomic<int> wrong{0};
  at_once(16, [&](int) {
    for (int n = 0; n < 3; ++n) {
      if (!same_output(x.attend(rule), expected)) ++wrong;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("a pool may count its threads in any integer", "[executor][regression]") {
  struct {
    std::size_t num_threads() const { return 3; }
    void parallel_for(Index count, const mha::TaskFunction& f) {
      for (Index k = 0; k < count; ++k) f(k);
    }
  } pool;
  const mha::Executor executor(pool);
  CHECK(executor.concurrency() == 3);
  CHECK(executor.concurrency_is_known());
}
