// SPDX-License-Identifier: MIT
//
// Who computes, and in whose memory. Nothing starts a thread unless an executor is given: the
// library's ThreadPool, OpenMP, or a pool of your own, which is any object with parallel_for(count,
// f). Whoever computes, the bits are the same. With a Workspace of yours and forward_into, a call
// allocates nothing after the first of its shape.
//
// Output:
//   ThreadPool: the same bits
//   OpenMP: the same bits
//   own threads: the same bits
//   workspace: as large as said beforehand
#include <iostream>
#include <mha/mha.hpp>
#include <thread>
#include <vector>

// Compiled with -fopenmp the loop runs on OpenMP's threads, else on this one.
struct OpenMp {
  template <class F>
  void parallel_for(mha::Index count, const F& f) const {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static, 1)
#endif
    for (mha::Index k = 0; k < count; ++k) f(k);
  }
};

// A thread per task: too simple for a product, enough to show what is asked of a pool.
struct OwnThreads {
  static mha::Index num_threads() { return 2; }
  template <class F>
  void parallel_for(mha::Index count, const F& f) const {
    std::vector<std::thread> threads;
    for (mha::Index k = 0; k < count; ++k) threads.emplace_back([&f, k] { f(k); });
    for (std::thread& thread : threads) thread.join();
  }
};

int main() {
  const mha::MultiHead<float, 8> attention(256);
  const mha::Matrix<float> x = mha::Matrix<float>::Random(300, 256);
  const mha::Matrix<float> serial = attention(x, mha::causal());
  const auto compare = [&](const char* name, mha::Executor executor) {
    const bool same = attention(x, mha::causal(), {.executor = executor}) == serial;
    std::cout << name << (same ? ": the same bits\n" : ": other bits\n");
  };
  mha::ThreadPool pool(3);
  OpenMp open_mp;
  OwnThreads own;
  compare("ThreadPool", pool);
  compare("OpenMP", open_mp);
  compare("own threads", own);

  const std::size_t bytes = attention.workspace_bytes(x.rows(), x.rows());
  mha::Workspace workspace(bytes);
  mha::Matrix<float> y(300, 256);
  attention.forward_into(y, x, mha::causal(), {.workspace = &workspace});
  std::cout << "workspace: " << (workspace.size() == bytes && y == serial ? "as" : "not as")
            << " large as said beforehand\n";
}
