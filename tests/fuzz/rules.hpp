// SPDX-License-Identifier: MIT
//
// Rules in random combinations, twice: as the library has them, and as plain functions for the oracle.
// A combination is a type, so there is a table of them, with_rule(); their numbers are drawn. To add a
// rule: its numbers in RuleData, a line in draw_rule(), a line in plain_rule(), and its place in the
// table.
#pragma once

#include <sstream>

#include <mha/mha.hpp>

#include "fuzz/bytes.hpp"
#include "fuzz/oracle.hpp"
#include "support/slots.hpp"

namespace mha::fuzz {

/// The part of a call that rules are made for: sequences from first_batch on, queries from
/// first_query to the end.
struct Shift {
  Index first_batch = 0;
  Index first_query = 0;
};

/// A number for every (b, h, i, j); an axis of size 1 serves all.
struct DrawnGrid {
  std::array<Index, 4> sizes{1, 1, 1, 1};
  std::vector<double> numbers;

  Index place(Index b, Index h, Index i, Index j) const {
    const Index at[] = {b, h, i, j};
    Index n = 0;
    for (std::size_t axis = 0; axis < 4; ++axis) {
      n = n * sizes[axis] + (sizes[axis] == 1 ? 0 : at[axis]);
    }
    return n;
  }
  double operator()(Index b, Index h, Index i, Index j) const {
    return numbers[static_cast<std::size_t>(place(b, h, i, j))];
  }
};

/// How the place of the queries among the keys is said.
enum class Place { nothing, past_len, causal_offset, query_offset, lower_right };

/// The sizes that a rule is drawn for; of a ragged batch, those of each sequence.
struct CallSizes {
  Index batch = 1;
  Index num_heads = 1;
  std::vector<Index> query_len, kv_len;  ///< one per sequence
  Index longest_query = 0, longest_kv = 0;
};

inline constexpr Index kRuleSets = 22;
inline constexpr Index kLearnedSet = kRuleSets;  ///< and one more, whose numbers collect gradients
inline constexpr Index kFirstLaterSet = 23;      ///< and these, added later
inline constexpr Index kLaterSets = 4;
/// Of them, those that with_few_rules() knows: one of every kind, for tests that are long to compile.
inline constexpr Index kFewRules[] = {0, 1, 3, 5, 9, 15, 16};
inline constexpr Index kNumFewRules = 7;
inline constexpr Index kLaterFewRules = 26;
/// Bytes from here on mean the sets added later, so that cases of the corpus go on meaning what they
/// are named for.
inline constexpr Index kLaterByte = 216;
/// And from here on the set whose ranges jump, added later still.
inline constexpr Index kSlotsByte = 248;
inline constexpr Index kSlotsSet = kFirstLaterSet + kLaterSets;

struct RuleData {
  CallSizes sizes;
  Index set = 0;
  Place place = Place::nothing;
  bool is_causal = false;
  std::vector<Index> offsets;  ///< one per sequence: where its queries stand
  Index left = -1, right = -1;
  std::vector<Index> lengths;
  DrawnGrid keep, bias1, bias2;
  DrawnGrid padding, documents;  ///< one number per sequence and key
  DrawnGrid blocks;
  Index block_queries = 1, block_keys = 1;
  Index slot_rows = 1, slot_keys = 1;
  std::vector<double> slopes, sinks;  ///< empty: the default; else one for all, or one per head
  double softcap = 0;
  std::optional<double> scale;
  double drop = 0;
  std::uint64_t drop_seed = 0;
  double bend = 1, tilt = 0;  ///< of the score functions
  Index modulus = 2;          ///< of the masking functions
  long double largest = 0;    ///< of the accumulator: what biases saturate at

  // Which rules the set has.
  bool has_window = false, has_keep = false, has_ignore = false, has_bias1 = false,
       has_bias2 = false, has_alibi = false, has_softcap = false, has_scale = false,
       has_bend = false, has_tilt = false, has_mask_mod = false, has_masking_score = false,
       has_sinks = false, has_dropout = false, has_padding = false, has_documents = false,
       has_blocks = false, has_slots = false;
  /// Causal rule, window, lengths (and mask_mod) are joined by | with keep, blocks and documents.
  bool has_either = false;

  test::Slots slots(const Shift& box = {}) const { return {slot_rows, slot_keys, box.first_query}; }
  bool past_len_is_list = false;
  /// As the call's option says it, for a box of the call; empty where it is said otherwise.
  IndexList past_len(const Shift& box = {}) const {
    if (place != Place::past_len || box.first_query != 0 || offsets.empty()) return {};
    if (!past_len_is_list) return offsets[0];
    return std::vector<Index>(offsets.begin() + box.first_batch, offsets.end());
  }
};

/// bend * s + tilt * ((h + i - j) mod 7), over any number.
struct Bend {
  double bend, tilt;
  Index first_query;
  static double step(Index h, Index i, Index j) {
    return static_cast<double>(((h + i - j) % 7 + 7) % 7);
  }
  template <class S>
  S operator()(const S& s, Index, Index h, Index i, Index j) const {
    return S(S(s * S(bend)) + S(tilt * step(h, first_query + i, j)));
  }
};
/// s - tilt |i - j|, over Lanes.
template <class T>
struct Tilt {
  T tilt;
  int first_query;
  Lanes<T> operator()(Lanes<T> s, Index, Index, Lanes<int> i, Lanes<int> j) const {
    return s - tilt * abs(i + first_query - j);
  }
};
struct One {
  template <class S>
  S operator()(const S&, Index, Index, Index, Index) const {
    return S(1);
  }
};
/// True where the mask lets pass.
struct Sieve {
  Index modulus, first_batch, first_query;
  bool operator()(Index b, Index h, Index i, Index j) const {
    return (3 * (first_query + i) + j + h + first_batch + b) % modulus != 0;
  }
};
/// The same by a score of -infinity.
struct MaskingScore {
  Sieve sieve;
  template <class S>
  S operator()(const S& s, Index b, Index h, Index i, Index j) const {
    if (sieve(b, h, i, j)) return s;
    S masked(0);
    detail::set_minus_infinity(masked);
    return masked;
  }
};

namespace detail_rules {

inline DrawnGrid draw_grid(Bytes& bytes, const CallSizes& sizes, Index kind) {
  DrawnGrid grid;
  grid.sizes = {sizes.batch, sizes.num_heads, sizes.longest_query, sizes.longest_kv};
  for (Index& size : grid.sizes) {
    if (bytes.pick(3) == 2) size = 1;
  }
  Index count = 1;
  for (const Index size : grid.sizes) count *= size;
  grid.numbers.resize(static_cast<std::size_t>(count));
  Numbers numbers(bytes.seed());
  const Index holes = bytes.between(2, 9);
  for (double& x : grid.numbers) {
    const bool hole = numbers.bits() % static_cast<std::uint64_t>(holes) == 0;
    if (kind == 0) {  // truth values
      x = hole ? 0 : 1;
    } else {
      x = hole && kind == 2 ? -std::numeric_limits<double>::infinity() : 3 * numbers.number();
    }
  }
  return grid;
}

/// Whole numbers below `most`, or rising ones, in runs of equal ones along the last axis.
inline DrawnGrid draw_runs(Bytes& bytes, const std::array<Index, 4>& sizes, Index most) {
  DrawnGrid grid;
  grid.sizes = sizes;
  Index count = 1;
  for (const Index size : grid.sizes) count *= size;
  grid.numbers.resize(static_cast<std::size_t>(count));
  const bool rises = most > 2 && bytes.coin();
  const Index run = bytes.one_of(1, 2, 7, 40, 150, 400);
  const Index shift = bytes.pick(run);
  const std::uint64_t seed = bytes.seed();
  for (Index k = 0; k < count; ++k) {
    const Index own =
        (k % std::max<Index>(sizes[3], 1) + shift) / run + k / std::max<Index>(sizes[3], 1);
    Numbers numbers(seed + static_cast<std::uint64_t>(own));
    const auto number = static_cast<Index>(numbers.bits() % static_cast<std::uint64_t>(most));
    grid.numbers[static_cast<std::size_t>(k)] = static_cast<double>(rises ? own : number);
  }
  return grid;
}

/// The 32 bits that decide over a weight: SplitMix64 of seed, b, h and i, then MurmurHash3's
/// finaliser of j between the halves of that.
inline std::uint32_t random_bits(std::uint64_t seed, Index b, Index h, Index i, Index j) {
  std::uint64_t row = 0;
  for (const std::uint64_t next : {seed, static_cast<std::uint64_t>(b),
                                   static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(i)}) {
    row += next + 0x9E3779B97F4A7C15u;
    row = (row ^ (row >> 30)) * 0xBF58476D1CE4E5B9u;
    row = (row ^ (row >> 27)) * 0x94D049BB133111EBu;
    row ^= row >> 31;
  }
  auto x = static_cast<std::uint32_t>(row + static_cast<std::uint64_t>(j) * 0x9E3779B9u);
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16) ^ static_cast<std::uint32_t>(row >> 32);
}

inline std::vector<double> draw_per_head(Bytes& bytes, Index num_heads, double scale) {
  Numbers numbers(bytes.seed());
  std::vector<double> all(static_cast<std::size_t>(bytes.coin() ? 1 : num_heads));
  for (double& x : all) x = static_cast<float>(scale * numbers.number());
  return all;
}

}  // namespace detail_rules

/// Draws the combination and every number of its rules.
inline RuleData draw_rule(Bytes& bytes, const CallSizes& sizes, Index set) {
  RuleData r;
  r.sizes = sizes;
  r.set = set;
  const Index s = r.set;
  const auto in = [s](std::initializer_list<Index> some) {
    return std::find(some.begin(), some.end(), s) != some.end();
  };
  // See with_rule(): sets without a place, with causal() in some form, with query_offset().
  const bool any_place = !in({0, 5, 9, 12, 16, 18, 21, kSlotsSet});
  r.has_window = any_place || in({5});
  r.has_keep = in({4, 15, 19, 24});
  r.has_ignore = in({5, 17});
  r.has_bias1 = in({6, 7, 15, 16, 19, 20, 22});
  r.has_bias2 = in({7});
  r.has_alibi = in({8, 9, 15, 18, 22, 24});
  r.has_softcap = in({10, 15, 18, 20});
  r.has_scale = in({10, 15, 20});
  r.has_bend = in({11, 15, 18});
  r.has_tilt = in({12});
  r.has_mask_mod = in({13, 17, 25});
  r.has_masking_score = in({16});
  r.has_sinks = in({14, 15, 16, 18, 21, 22, 25});
  r.has_dropout = in({15, 17, 20, 21, 25});
  r.has_padding = in({25, 26});
  r.has_documents = in({23, 26});
  r.has_blocks = in({25, 26});
  r.has_either = in({24, 25, 26});
  r.has_slots = in({kSlotsSet});

  const auto lengths = [&](Index low, Index beyond) {
    std::vector<Index> all;
    for (Index b = 0; b < sizes.batch; ++b) {
      const Index n = sizes.kv_len[static_cast<std::size_t>(b)];
      all.push_back(bytes.between(low, n + beyond));
    }
    return all;
  };
  r.offsets.assign(static_cast<std::size_t>(sizes.batch), 0);
  if (any_place) {
    r.is_causal = true;
    Index shortest = sizes.kv_len.empty() ? 0 : sizes.kv_len[0];
    for (const Index n : sizes.kv_len) shortest = std::min(shortest, n);
    if (in({2})) {  // a place without a causal rule
      r.place = Place::query_offset;
      r.is_causal = false;
    } else if (in({3})) {
      r.place = Place::query_offset;
    } else {
      r.place = static_cast<Place>(bytes.one_of(0, 1, 2, 4));
    }
    if (r.place == Place::past_len) {
      r.past_len_is_list = bytes.coin();
      if (r.past_len_is_list) {
        r.offsets = lengths(0, 0);
      } else {
        r.offsets.assign(r.offsets.size(), bytes.pick(shortest + 1));
      }
    } else if (r.place == Place::causal_offset || r.place == Place::query_offset) {
      r.offsets = lengths(-2, 3);
    } else if (r.place == Place::lower_right) {
      for (std::size_t b = 0; b < r.offsets.size(); ++b) {
        r.offsets[b] = sizes.kv_len[b] - sizes.query_len[b];
      }
    }
    // A causal rule that hides nothing, as often as not.
    if (r.place == Place::causal_offset && bytes.coin()) {
      for (std::size_t b = 0; b < r.offsets.size(); ++b) r.offsets[b] = sizes.kv_len[b];
    }
  }
  r.lengths = lengths(0, 0);
  if (bytes.coin()) r.lengths = sizes.kv_len;
  if (any_place && bytes.coin()) {
    r.left = bytes.between(-1, 9);
    r.right = bytes.between(-1, 4);
  }
  if (r.has_keep || r.has_ignore) r.keep = detail_rules::draw_grid(bytes, sizes, 0);
  const auto one_or = [&](Index n) { return bytes.coin() ? 1 : n; };
  if (r.has_padding) {
    r.padding = detail_rules::draw_runs(bytes, {one_or(sizes.batch), 1, 1, sizes.longest_kv}, 2);
  }
  if (r.has_documents) {
    r.documents = detail_rules::draw_runs(bytes, {one_or(sizes.batch), 1, 1, sizes.longest_kv},
                                          bytes.between(3, 6));
  }
  if (r.has_blocks) {
    r.block_queries = bytes.one_of(1, 3, 16, 64, 200);
    r.block_keys = bytes.one_of(1, 5, 64, 128, 300);
    const auto blocks_of = [](Index n, Index size) { return (n + size - 1) / size; };
    r.blocks = detail_rules::draw_runs(bytes,
                                       {one_or(sizes.batch), one_or(sizes.num_heads),
                                        blocks_of(sizes.longest_query, r.block_queries),
                                        blocks_of(sizes.longest_kv, r.block_keys)},
                                       2);
  }
  if (r.has_slots) {
    r.slot_rows = bytes.one_of(1, 3, 8, 16, 20);
    r.slot_keys = bytes.one_of(1, 2, 5, 10, 40);
  }
  if (r.has_bias1) r.bias1 = detail_rules::draw_grid(bytes, sizes, bytes.between(1, 2));
  if (r.has_bias2) r.bias2 = detail_rules::draw_grid(bytes, sizes, bytes.between(1, 2));
  if (r.has_alibi && (r.set == kLearnedSet || bytes.coin())) {
    r.slopes = detail_rules::draw_per_head(bytes, sizes.num_heads, 0.5);
  }
  if (r.has_sinks) r.sinks = detail_rules::draw_per_head(bytes, sizes.num_heads, 3);
  if (r.has_softcap)
    r.softcap = bytes.coin() ? 0.0 : 0.25 * static_cast<double>(bytes.between(2, 60));
  if (r.has_scale) r.scale = 0.25 * static_cast<double>(bytes.between(-3, 8));
  if (r.has_bend) {
    r.bend = 0.25 * static_cast<double>(bytes.between(-4, 4));
    r.tilt = 0.125 * static_cast<double>(bytes.between(-4, 4));
  }
  if (r.has_tilt) r.tilt = 0.125 * static_cast<double>(bytes.between(-2, 4));
  if (r.has_mask_mod || r.has_masking_score) r.modulus = bytes.between(2, 7);
  if (r.has_dropout) {
    r.drop = 0.125 * static_cast<double>(bytes.between(0, 8));
    r.drop_seed = bytes.seed();
  }
  return r;
}

/// The combination in words.
inline std::string words_of(const RuleData& r) {
  std::ostringstream text;
  text << ", rule " << r.set << ":";
  constexpr const char* kPlaces[] = {"", " past_len", " causal_offset", " query_offset",
                                     " lower_right"};
  const auto say = [&](bool has, const char* what) {
    if (has) text << " " << what;
  };
  say(r.is_causal, "causal");
  text << kPlaces[static_cast<int>(r.place)];
  if (r.place != Place::nothing) {
    for (const Index n : r.offsets) text << " " << n;
  }
  if (r.left >= 0 || r.right >= 0) text << " window " << r.left << " " << r.right;
  say(r.has_window && r.lengths != r.sizes.kv_len, "lengths");
  say(r.has_keep, "keep");
  say(r.has_ignore, "ignore");
  say(r.has_padding, "key_padding");
  say(r.has_documents, "documents");
  if (r.has_blocks) text << " blocks " << r.block_queries << " x " << r.block_keys;
  if (r.has_slots) text << " slots " << r.slot_rows << " x " << r.slot_keys;
  say(r.has_either, "joined by |");
  say(r.has_bias1, "bias");
  say(r.has_bias2, "bias of double");
  say(r.has_alibi, r.slopes.empty() ? "alibi" : "alibi of slopes");
  say(r.has_bend, "score_mod");
  say(r.has_tilt, "score_mod over lanes");
  say(r.has_mask_mod, "mask_mod");
  say(r.has_masking_score, "masking score_mod");
  if (r.softcap > 0) text << " softcap " << r.softcap;
  if (r.has_scale) text << " scale " << *r.scale;
  say(r.has_sinks, "sinks");
  if (r.has_dropout) text << " dropout " << r.drop;
  say(r.set == kLearnedSet, "learned");
  return text.str();
}

/// The same for the oracle, in the arithmetic of the accumulator.
inline PlainRule plain_rule(const RuleData& r, const Arithmetic& with) {
  PlainRule plain;
  const long double u = with.u;
  const auto place_of = [&r](Index b) { return r.offsets[static_cast<std::size_t>(b)]; };
  using Mask = std::function<bool(Index b, Index h, Index i, Index j)>;
  std::vector<Mask> keys;   // causal rule, window and lengths: all of them
  std::vector<Mask> sides;  // what is joined with them by |
  auto& others = r.has_either ? sides : plain.masks;
  if (r.is_causal) {
    keys.push_back([=](Index b, Index, Index i, Index j) { return j <= i + place_of(b); });
  }
  if (r.has_window) {
    keys.push_back([=, &r](Index b, Index, Index i, Index j) {
      const Index p = i + place_of(b);
      return (r.left < 0 || j >= p - r.left) && (r.right < 0 || j <= p + r.right) &&
             j < r.lengths[static_cast<std::size_t>(b)];
    });
  }
  if (r.has_slots) {
    keys.push_back([&r](Index b, Index, Index i, Index j) {
      const KeyRange own = r.slots().of(i, r.sizes.kv_len[static_cast<std::size_t>(b)]);
      return j >= own.begin && j < own.end;
    });
  }
  if (r.has_keep) {
    others.push_back([&r](Index b, Index h, Index i, Index j) { return r.keep(b, h, i, j) != 0; });
  }
  if (r.has_blocks) {
    others.push_back([&r](Index b, Index h, Index i, Index j) {
      return r.blocks(b, h, i / r.block_queries, j / r.block_keys) != 0;
    });
  }
  if (r.has_documents) {
    others.push_back([=, &r](Index b, Index, Index i, Index j) {
      const Index p = i + place_of(b);
      return p >= 0 && p < r.sizes.kv_len[static_cast<std::size_t>(b)] &&
             r.documents(b, 0, 0, p) == r.documents(b, 0, 0, j);
    });
  }
  if (r.has_padding) {
    plain.masks.push_back(
        [&r](Index b, Index, Index, Index j) { return r.padding(b, 0, 0, j) != 0; });
  }
  if (r.has_ignore) {
    plain.masks.push_back(
        [&r](Index b, Index h, Index i, Index j) { return r.keep(b, h, i, j) == 0; });
  }
  if (r.has_mask_mod || r.has_masking_score) {
    (r.has_either ? keys : plain.masks).push_back([&r](Index b, Index h, Index i, Index j) {
      return (3 * i + j + h + b) % r.modulus != 0;
    });
  }
  if (r.has_either) {
    plain.masks.push_back([=](Index b, Index h, Index i, Index j) {
      const auto allows = [&](const Mask& mask) { return mask(b, h, i, j); };
      return std::all_of(keys.begin(), keys.end(), allows) ||
             std::any_of(sides.begin(), sides.end(), allows);
    });
  } else {
    plain.masks.insert(plain.masks.end(), keys.begin(), keys.end());
  }
  const auto add = [u](const Bounded& s, long double x) {
    return Bounded{s.v + x, s.e + u * (2 * std::abs(x) + std::abs(s.v) + s.e)};
  };
  for (const auto* const bias :
       {r.has_bias1 ? &r.bias1 : nullptr, r.has_bias2 ? &r.bias2 : nullptr}) {
    if (bias == nullptr) continue;
    plain.masks.push_back(
        [bias](Index b, Index h, Index i, Index j) { return std::isfinite((*bias)(b, h, i, j)); });
    plain.modifiers.push_back([=](const Bounded& s, Index b, Index h, Index i, Index j) {
      return Modified{add(s, (*bias)(b, h, i, j)), 1};
    });
  }
  if (r.has_alibi) {
    plain.modifiers.push_back([=, &r](const Bounded& s, Index b, Index h, Index i, Index j) {
      long double slope = 0;
      const auto of_head = static_cast<std::size_t>(r.slopes.size() == 1 ? 0 : h);
      if (!r.slopes.empty()) {
        slope = r.slopes[of_head];
      } else {  // Press et al. 2022: powers of 2^(-8/n), and every other one of 2n
        Index n = 1;
        while (2 * n <= r.sizes.num_heads) n *= 2;
        const Index numerator = h < n ? 2 * (h + 1) : 2 * (h - n) + 1;
        slope =
            std::exp2(-4.0L * static_cast<long double>(numerator) / static_cast<long double>(n));
      }
      const auto at = static_cast<std::size_t>(b);
      const Index distance = std::abs(i + r.sizes.kv_len[at] - r.sizes.query_len[at] - j);
      Bounded result = add(s, -slope * static_cast<long double>(distance));
      result.e += 2 * u * std::abs(slope) * static_cast<long double>(distance);
      return Modified{result, 1};
    });
  }
  if (r.has_bend || r.has_tilt) {
    plain.modifiers.push_back([=, &r](const Bounded& s, Index, Index h, Index i, Index j) {
      const long double bend = r.has_bend ? r.bend : 1;
      const long double shift = r.has_bend ? r.tilt * Bend::step(h, i, j)
                                           : -r.tilt * static_cast<long double>(std::abs(i - j));
      const Bounded bent{bend * s.v, std::abs(bend) * s.e + u * std::abs(bend * s.v)};
      return Modified{add(bent, shift), bend};
    });
  }
  if (r.has_softcap) plain.cap = r.softcap;
  if (r.has_scale) plain.scale = *r.scale;
  if (r.has_sinks) {
    plain.sink = [&r](Index h) {
      return std::optional<long double>(
          r.sinks[static_cast<std::size_t>(r.sinks.size() == 1 ? 0 : h)]);
    };
  }
  if (r.has_dropout) {
    plain.dropout = [&r](Index b, Index h, Index i, Index j) {
      const bool kept = detail_rules::random_bits(r.drop_seed, b, h, i, j) >= r.drop * 0x1p32;
      return kept && r.drop < 1 ? 1 / (1 - static_cast<long double>(r.drop)) : 0.0L;
    };
  }
  return plain;
}

/// Numbers of a grid in the type of a rule, and the view of them that a box needs.
template <class T>
class TypedGrid {
 public:
  TypedGrid(const DrawnGrid& grid, const RuleData& r, const Shift& box)
      : numbers_(static_cast<Index>(grid.numbers.size())), view_(numbers_.data(), grid.sizes) {
    for (Index k = 0; k < numbers_.size(); ++k) {
      numbers_(k) = static_cast<T>(grid.numbers[static_cast<std::size_t>(k)]);
    }
    Index first = 0;
    if (grid.sizes[0] > 1) {
      first += box.first_batch * view_.strides[0];
      view_.sizes[0] = r.sizes.batch - box.first_batch;
    }
    if (grid.sizes[2] > 1) {
      first += box.first_query * view_.strides[2];
      view_.sizes[2] = r.sizes.longest_query - box.first_query;
    }
    if (!grid.numbers.empty()) view_.data += first;  // null has no neighbours
  }
  const TensorView<T>& view() const { return view_; }

 private:
  Eigen::Array<T, Eigen::Dynamic, 1> numbers_;
  TensorView<T> view_;
};

/// Where the learned set collects gradients; of the shapes of what it learns.
template <class T>
struct LearnedGradients {
  std::vector<T> bias;
  TensorView<T> bias_view;
  Vector<T> slopes, sinks;

  LearnedGradients() = default;
  explicit LearnedGradients(const RuleData& r)
      : bias(r.bias1.numbers.size(), T(0)),
        bias_view(bias.data(), r.bias1.sizes),
        slopes(Vector<T>::Zero(static_cast<Index>(r.slopes.size()))),
        sinks(Vector<T>::Zero(static_cast<Index>(r.sinks.size()))) {}
};

/// The rules of a combination as the library has them, for a box of the call. T is the type of biases,
/// slopes, sinks.
template <class T>
class RuleParts {
 public:
  RuleParts(const RuleData& data, const Shift& part)
      : r(data),
        box(part),
        allowed(data.keep, data, part),
        bias1(data.bias1, data, part),
        bias2(data.bias2, data, part),
        padded(data.padding, data, part),
        block_queries(part.first_query == 0 ? data.block_queries : 1),
        own_blocks(block_grid(data, part), data, part) {
    for (Index& place : places) place += box.first_query;
  }

  auto window() const { return mha::window(r.left, r.right) & mha::lengths(own(r.lengths)); }
  auto keys() const { return causal() & window(); }
  auto offset() const { return mha::query_offset(own(places)); }
  auto keep() const { return mha::keep(allowed.view()); }
  auto ignore() const { return mha::ignore(allowed.view()); }
  auto padding() const { return mha::key_padding(padded.view()); }
  auto blocks() const {
    TensorView<const bool> view = own_blocks.view();
    if (box.first_query == 0) view.sizes[2] = r.blocks.sizes[2];  // blocks, not queries
    return mha::blocks(view, block_queries, r.block_keys);
  }
  auto slots() const { return r.slots(box); }
  auto documents() const {
    const Index first = r.documents.sizes[0] == 1 ? 0 : box.first_batch;
    const Index all = r.documents.sizes[0] == 1 ? 1 : r.sizes.batch;
    Matrix<int> ids(all - first, r.documents.sizes[3]);
    for (Index b = first; b < all; ++b) {
      for (Index j = 0; j < ids.cols(); ++j) {
        ids(b - first, j) = static_cast<int>(r.documents(b, 0, 0, j)) - 2;
      }
    }
    return mha::documents(ids);
  }
  auto bias() const { return mha::bias(bias1.view()); }
  auto other_bias() const { return mha::bias(bias2.view()); }
  auto alibi() const { return Alibi<T>(list(r.slopes)); }
  auto sinks() const { return mha::sinks(list(r.sinks)); }
  auto bend() const { return mha::score_mod(Bend{r.bend, r.tilt, box.first_query}); }
  auto tilt() const {
    return mha::score_mod(Tilt<T>{static_cast<T>(r.tilt), static_cast<int>(box.first_query)},
                          One{});
  }
  Sieve sieve() const { return {r.modulus, box.first_batch, box.first_query}; }
  auto mask_mod() const { return mha::mask_mod(sieve()); }
  auto masking() const { return mha::score_mod(MaskingScore{sieve()}); }
  auto cap() const { return mha::softcap(r.softcap); }
  auto scale() const { return mha::scale(r.scale.value_or(1)); }
  auto drop() const { return mha::dropout(r.drop, r.drop_seed); }
  auto everything() const {
    return keys() & keep() & bias() & alibi() & bend() & cap() & scale() & sinks() & drop();
  }
  auto learned(LearnedGradients<T>& to) const {
    return keys() & mha::bias(bias1.view(), to.bias_view) & mha::alibi(list(r.slopes), to.slopes) &
           mha::sinks(list(r.sinks), to.sinks);
  }

 private:
  /// Blocks count rows within the call: where it begins later, each query is a block.
  static DrawnGrid block_grid(const RuleData& data, const Shift& part) {
    if (!data.has_blocks || part.first_query == 0) return data.blocks;
    DrawnGrid grid;
    grid.sizes = data.blocks.sizes;
    grid.sizes[2] = data.sizes.longest_query;
    for (Index b = 0; b < grid.sizes[0]; ++b) {
      for (Index h = 0; h < grid.sizes[1]; ++h) {
        for (Index i = 0; i < grid.sizes[2]; ++i) {
          for (Index j = 0; j < grid.sizes[3]; ++j) {
            grid.numbers.push_back(data.blocks(b, h, i / data.block_queries, j));
          }
        }
      }
    }
    return grid;
  }
  IndexList own(const std::vector<Index>& all) const {
    return IndexList(std::vector<Index>(all.begin() + box.first_batch, all.end()));
  }
  static Vector<T> list(const std::vector<double>& numbers) {
    Vector<T> v(static_cast<Index>(numbers.size()));
    for (Index k = 0; k < v.size(); ++k) v(k) = T(numbers[static_cast<std::size_t>(k)]);
    return v;
  }
  Causal causal() const {
    if (r.place == Place::causal_offset) return mha::causal_offset(own(places));
    if (r.place == Place::lower_right) return mha::causal_lower_right();
    const bool said_beside = r.place == Place::query_offset || box.first_query == 0;
    return said_beside ? mha::causal() : mha::causal_offset(own(places));
  }

  const RuleData& r;
  const Shift box;
  std::vector<Index> places = r.offsets;
  const TypedGrid<bool> allowed;
  const TypedGrid<T> bias1;
  const TypedGrid<double> bias2;  // of another type than the scores
  const TypedGrid<bool> padded;
  const Index block_queries;
  const TypedGrid<bool> own_blocks;
};

/// Calls f(rule) with one of the combinations of kFewRules.
template <class T, class F>
void with_few_rules(const RuleParts<T>& p, Index set, const F& f) {
  switch (set) {
    case 0:
      return f(mha::All{});
    case 1:
      return f(p.keys());
    case 3:
      return f(p.offset() & p.keys());
    case 5:
      return f(p.ignore() & p.window());
    case 9:
      return f(p.alibi());
    case 15:
      return f(p.everything());
    case 26:
      return f((p.keys() | p.blocks() | p.documents()) & p.padding());
    default:
      return f(p.sinks() & p.bias() & p.masking());
  }
}
template <class T, class F>
void with_few_rules(const RuleData& r, const Shift& box, const F& f) {
  with_few_rules(RuleParts<T>(r, box), r.set, f);
}

/// Calls f(rule) with any of the combinations.
template <class T, class F>
void with_rule(const RuleData& r, const Shift& box, const F& f,
               LearnedGradients<T>* learned = nullptr) {
  const RuleParts<T> p(r, box);
  switch (r.set) {
    case 2:
      return f(p.offset() & p.window());
    case 4:
      return f(p.keep() & p.keys());
    case 6:
      return f(p.keys() & p.bias());
    case 7:
      return f(p.bias() & p.keys() & p.other_bias());
    case 8:
      return f(p.keys() & p.alibi());
    case 10:
      return f(p.keys() & p.scale() & p.cap());
    case 11:
      return f(p.keys() & p.bend());
    case 12:
      return f(p.tilt());
    case 13:
      return f(p.keys() & p.mask_mod());
    case 14:
      return f(p.sinks() & p.keys());
    case 17:
      return f(p.drop() & p.ignore() & p.mask_mod() & p.keys());
    case 18:
      return f(p.alibi() & p.bend() & p.sinks() & p.cap());
    case 19:
      return f(p.keep() & p.bias() & p.keys());
    case 20:
      return f(p.drop() & p.bias() & p.scale() & p.keys() & p.cap());
    case 21:
      return f(p.drop() & p.sinks());
    case kLearnedSet:
      return f(p.learned(*learned));
    case 23:
      return f(p.documents() & p.keys());
    case kSlotsSet:
      return f(p.slots());
    case 24:
      return f((p.keys() | p.keep()) & p.alibi());
    case 25:
      return f((p.blocks() | (p.mask_mod() & p.keys())) & p.padding() & p.sinks() & p.drop());
    default:
      return with_few_rules(p, r.set, f);
  }
}

/// Do tests of this scalar run all combinations? Only float and double: the others share their code.
template <class Scalar>
inline constexpr bool has_all_rules =
    std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>;

/// One of kFewRules, or the later one.
inline Index draw_few_rules(Bytes& bytes) {
  const Index byte = bytes.pick(256);
  return byte >= kLaterByte ? kLaterFewRules : kFewRules[byte % kNumFewRules];
}
/// One of the combinations that tests of a scalar run.
template <class Scalar>
Index draw_rule_set(Bytes& bytes, bool learned = false) {
  if (!has_all_rules<Scalar>) return draw_few_rules(bytes);
  const Index byte = bytes.pick(256);
  if (byte >= kSlotsByte) return kSlotsSet;
  if (byte >= kLaterByte) return kFirstLaterSet + byte % kLaterSets;
  return byte % (kRuleSets + (learned ? 1 : 0));
}
template <class Scalar, class F>
void with_rule_of(const RuleData& r, const Shift& box, const F& f,
                  [[maybe_unused]] LearnedGradients<accumulator_t<Scalar>>* learned = nullptr) {
  using Acc = accumulator_t<Scalar>;
  if constexpr (has_all_rules<Scalar>) {
    with_rule<Acc>(r, box, f, learned);
  } else {
    with_few_rules<Acc>(r, box, f);
  }
}

}  // namespace mha::fuzz
