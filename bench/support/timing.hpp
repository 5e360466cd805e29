// SPDX-License-Identifier: MIT
//
// Timing several calls against each other: in turn, round after round, so that whatever the machine
// does meanwhile meets all of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/call.hpp"

namespace mha_bench {

struct Entrant {
  std::unique_ptr<Call> call;
  std::vector<double> samples{};  ///< milliseconds of one run
  double min_ms() const;
  double median_ms() const;

  double estimate_ms = 0;
  int batch = 1;  ///< runs between two looks at the clock
};

struct TimingPlan {
  double seconds_each = 0.6;  ///< for an entrant, all its turns together
  double turn_ms = 15;        ///< of one turn
  int min_rounds = 5;
  int min_slow_rounds = 3;  ///< where a round takes longer than slow_ms
  double slow_ms = 4000;
};
/// One round of one run or so.
inline constexpr TimingPlan kShortPlan{
    .seconds_each = 0, .turn_ms = 0, .min_rounds = 1, .min_slow_rounds = 1};

/// A turn is: a pause with more than one thread (see settle()), one untimed run if it is not too
/// long, and runs until the turn's time is over.
/// @param after_first_run  called with each entrant's index after its very first run
void time_in_turn(std::vector<Entrant>& entrants, int threads, const TimingPlan& plan,
                  const std::function<void(std::size_t)>& after_first_run);

}  // namespace mha_bench
