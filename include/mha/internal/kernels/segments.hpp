// SPDX-License-Identifier: MIT
//
// Which lanes of a query tile take part in which keys, under causal rules, windows and lengths: the
// lanes go in and out by groups (16 floats, 8 doubles), and a key tile is cut into segments in which
// the same groups take part.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "mha/internal/kernels/tables.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Keys that the same groups of lanes take part in.
struct Segment {
  Index begin;
  Index end;
  Index first_group;
  Index end_group;
  bool whole;  ///< every lane may attend to every key
};

class Segments {
 public:
  static constexpr Index kGroups = 4;  ///< of a tile

  /// Keys of a group: [begin, end) some lane may see, [all_begin, all_end) every lane.
  struct Group {
    Index begin;
    Index end;
    Index all_begin;
    Index all_end;
  };

  Group& group(Index g) { return groups_[static_cast<std::size_t>(g)]; }
  void fill(const Group& group) { groups_.fill(group); }

  /// Those of the last cut, in the order of their keys.
  const Segment* begin() const { return segments_.data(); }
  const Segment* end() const { return segments_.data() + count_; }

  /// Cuts [from, to) wherever a group begins or ends, or begins or ceases to see all.
  void cut(Index from, Index to, Index groups) {
    bool everything = true;
    for (Index g = 0; g < groups; ++g) {
      const Group& group = groups_[static_cast<std::size_t>(g)];
      everything = everything && group.all_begin <= from && group.all_end >= to;
    }
    if (everything) {
      segments_[0] = {from, to, 0, groups, true};
      count_ = 1;
      return;
    }
    std::array<Index, 4 * kGroups + 2> cuts;
    std::size_t n = 0;
    cuts[n++] = from;
    cuts[n++] = to;
    for (Index g = 0; g < groups; ++g) {
      const Group& group = groups_[static_cast<std::size_t>(g)];
      for (const Index cut : {group.begin, group.end, group.all_begin, group.all_end}) {
        if (cut > from && cut < to) cuts[n++] = cut;
      }
    }
    std::sort(cuts.data(), cuts.data() + n);
    count_ = 0;
    for (std::size_t k = 0; k + 1 < n; ++k) {
      if (cuts[k] == cuts[k + 1]) continue;
      Segment s{cuts[k], cuts[k + 1], groups, 0, true};
      for (Index g = 0; g < groups; ++g) {
        const Group& group = groups_[static_cast<std::size_t>(g)];
        if (group.begin > s.begin || group.end < s.end) continue;
        s.first_group = std::min(s.first_group, g);
        s.end_group = g + 1;
      }
      if (s.first_group >= s.end_group) continue;
      // Two groups go in and out together: fewer, longer pieces (measured at the causal diagonal).
      s.first_group -= s.first_group % 2;
      s.end_group = std::min(groups, s.end_group + s.end_group % 2);
      for (Index g = s.first_group; g < s.end_group; ++g) {
        const Group& group = groups_[static_cast<std::size_t>(g)];
        if (group.all_begin > s.begin || group.all_end < s.end) s.whole = false;
      }
      // Neighbours with the same lanes and the same need to compare are one.
      Segment* const last = count_ == 0 ? nullptr : &segments_[count_ - 1];
      if (last != nullptr && last->end == s.begin && last->first_group == s.first_group &&
          last->end_group == s.end_group && last->whole == s.whole) {
        last->end = s.end;
      } else {
        segments_[count_++] = s;
      }
    }
  }

  /// The last cut the other way round: for neighbouring groups, all keys that they take part in; none if
  /// begin >= end. `whole` says nothing here.
  class ByGroups {
   public:
    const Segment* begin() const { return runs_.data(); }
    const Segment* end() const { return runs_.data() + count_; }
    /// The keys of some group do not lie side by side.
    bool has_gaps() const { return has_gaps_; }

   private:
    friend class Segments;
    bool has_gaps_ = false;
    std::array<Segment, std::size_t{kGroups}> runs_;
    std::size_t count_ = 0;
  };
  ByGroups by_groups(Index groups) const {
    ByGroups result;
    if (count_ == 1 && segments_[0].first_group == 0 && segments_[0].end_group == groups) {
      result.runs_[result.count_++] = segments_[0];
      return result;
    }
    for (Index g = 0; g < groups; g += 2) {
      Segment run{0, 0, g, std::min(g + 2, groups), false};
      for (const Segment& s : *this) {
        if (s.first_group > g || s.end_group <= g) continue;
        if (run.begin >= run.end) {
          run.begin = s.begin;
        } else if (s.begin != run.end) {
          result.has_gaps_ = true;
        }
        run.end = s.end;
      }
      Segment* const last = result.count_ == 0 ? nullptr : &result.runs_[result.count_ - 1];
      if (last != nullptr && last->begin == run.begin && last->end == run.end) {
        last->end_group = run.end_group;
      } else {
        result.runs_[result.count_++] = run;
      }
    }
    return result;
  }

 private:
  std::array<Group, std::size_t{kGroups}> groups_;
  std::array<Segment, std::size_t{4 * kGroups + 1}> segments_;
  std::size_t count_ = 0;
};

}  // namespace mha::kernels
