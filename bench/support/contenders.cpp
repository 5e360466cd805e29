// SPDX-License-Identifier: MIT
#include "support/contenders.hpp"

#include <dlfcn.h>

#include <chrono>
#include <iostream>
#include <thread>
#include <utility>

#include "contender_mha.hpp"

namespace mha_bench {
namespace {

class Library : public Contender {
 public:
  Library() : Contender("mha") {}
  std::string describe() const override { return describe_mha(); }
  void set_threads(int threads) override { threads_ = make_mha_threads(threads); }
  std::unique_ptr<Call> call(const AttentionProblem& problem) override {
    return mha_attention(problem, threads_);
  }
  std::unique_ptr<Call> call(const LayerProblem& problem) override {
    return mha_layer(problem, threads_);
  }

 private:
  std::shared_ptr<MhaThreads> threads_ = make_mha_threads(1);
};

class ModuleContender : public Contender {
 public:
  ModuleContender(std::string name, const BenchModule* module)
      : Contender(std::move(name)), module_(module) {}
  std::string describe() const override { return module_->describe(); }
  void set_threads(int threads) override { module_->set_threads(threads); }
  std::unique_ptr<Call> call(const AttentionProblem& problem) override {
    // The modules know the plain and the causal call.
    const Variant variant = problem.workload.variant;
    if (variant != Variant::plain && variant != Variant::causal) return nullptr;
    const BenchAttention view = problem.view();
    return wrap(module_->attention(&view));
  }
  std::unique_ptr<Call> call(const LayerProblem& problem) override {
    const BenchLayer view = problem.view();
    return wrap(module_->layer(&view));
  }

 private:
  class ModuleFunction : public Call {
   public:
    ModuleFunction(const BenchModule* module, void* call) : module_(module), call_(call) {}
    ~ModuleFunction() override { module_->release(call_); }
    void run() override { module_->run(call_); }

   private:
    const BenchModule* module_;
    void* call_;
  };

  std::unique_ptr<Call> wrap(void* call) const {
    if (call == nullptr) return nullptr;
    return std::make_unique<ModuleFunction>(module_, call);
  }

  const BenchModule* module_;
};

std::vector<std::unique_ptr<Contender>> open_contenders() {
  std::vector<std::unique_ptr<Contender>> list;
  list.push_back(std::make_unique<Library>());
  // Each module keeps its symbols to itself (RTLD_LOCAL), and lies beside this program.
  for (const std::string name : {MHA_BENCH_MODULES}) {
    const std::string file = MHA_BENCH_MODULE_FOLDER "/contender_" + name + ".so";
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      std::cerr << "without " << name << ": " << dlerror() << "\n";
      continue;
    }
    using Entry = const BenchModule* (*)();
    const auto entry = reinterpret_cast<Entry>(dlsym(library, "bench_module"));
    if (entry != nullptr) list.push_back(std::make_unique<ModuleContender>(name, entry()));
  }
  return list;
}

}  // namespace

const std::vector<std::unique_ptr<Contender>>& contenders() {
  static const std::vector<std::unique_ptr<Contender>> list = open_contenders();
  return list;
}

Problem::Problem(const Workload& w)
    : workload(w),
      attention(w.kind == Kind::attention ? std::make_unique<AttentionProblem>(w) : nullptr),
      layer(w.kind == Kind::layer ? std::make_unique<LayerProblem>(w) : nullptr) {}

std::unique_ptr<Call> Problem::call(Contender& contender) const {
  return attention ? contender.call(*attention) : contender.call(*layer);
}

Buffer<float>& Problem::output() const { return attention ? attention->output : layer->output; }

Arithmetic arithmetic_of(const Workload& workload) {
  if (workload.variant == Variant::avx2) return Arithmetic::f32_avx2;
  return workload.is_double() ? Arithmetic::f64 : Arithmetic::f32;
}

void settle(int threads) {
  if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
}

}  // namespace mha_bench
