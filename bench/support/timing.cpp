// SPDX-License-Identifier: MIT
#include "support/timing.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "support/contenders.hpp"

namespace mha_bench {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Milliseconds of one of `batch` runs.
double sample(Call& call, int batch) {
  const auto start = Clock::now();
  for (int run = 0; run < batch; ++run) call.run();
  return milliseconds_since(start) / batch;
}

constexpr double kSampleMs = 0.05;       // much longer than a look at the clock takes
constexpr double kLongestWarmUpMs = 20;  // a run that long does not depend on what caches held

void estimate(Entrant& entrant) {
  double& ms = entrant.estimate_ms;
  for (int run = 0; run < 3 && ms < kLongestWarmUpMs; ++run) {
    ms = sample(*entrant.call, entrant.batch);
    entrant.batch = std::max(1, static_cast<int>(std::ceil(kSampleMs / std::max(ms, 1e-6))));
  }
}

}  // namespace

double Entrant::min_ms() const { return *std::min_element(samples.begin(), samples.end()); }

double Entrant::median_ms() const {
  std::vector<double> sorted = samples;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

void time_in_turn(std::vector<Entrant>& entrants, int threads, const TimingPlan& plan,
                  const std::function<void(std::size_t)>& after_first_run) {
  double round_ms = 0;
  for (std::size_t e = 0; e < entrants.size(); ++e) {
    settle(threads);
    entrants[e].estimate_ms = sample(*entrants[e].call, 1);
    after_first_run(e);
    estimate(entrants[e]);
    round_ms += entrants[e].estimate_ms;
  }
  const int min_rounds = round_ms > plan.slow_ms ? plan.min_slow_rounds : plan.min_rounds;
  const double budget_ms = 1e3 * plan.seconds_each * static_cast<double>(entrants.size());
  const auto start = Clock::now();
  for (int round = 0; round < min_rounds || milliseconds_since(start) < budget_ms; ++round) {
    for (Entrant& entrant : entrants) {
      settle(threads);
      if (entrant.estimate_ms < kLongestWarmUpMs) sample(*entrant.call, entrant.batch);
      const auto turn = Clock::now();
      do {
        entrant.samples.push_back(sample(*entrant.call, entrant.batch));
      } while (milliseconds_since(turn) < plan.turn_ms);
    }
  }
}

}  // namespace mha_bench
