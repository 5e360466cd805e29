// SPDX-License-Identifier: MIT
//
// Several documents packed into one sequence: tokens see tokens of their own document only. Least and
// largest ids of short runs of tokens are kept, so that a tile between different documents is skipped,
// and one inside a document asks for no pair.
#pragma once

#include "mha/internal/support/language.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "mha/index_list.hpp"
#include "mha/internal/support/saturate.hpp"
#include "mha/types.hpp"

namespace mha::inline MHA_ABI {

/// documents(ids).
class Documents : public Rule {
 public:
  /// @param ids  row after row, `tokens` to a row
  Documents(const std::vector<Index>& ids, Index rows, Index tokens)
      : data_(std::make_shared<const Data>(ids, rows, tokens)),
        ids_(data_->ids.data()),
        rows_(rows),
        tokens_(tokens) {}

  // A move is a copy: nothing is left without its ids.
  Documents(const Documents&) = default;
  Documents& operator=(const Documents&) = default;
  ~Documents() = default;

  void check(const CallExtent& call) const {
    const bool rows_fit = rows_ == call.batch || rows_ == 1;
    const bool tokens_fit = tokens_ == call.kv_len || (call.ragged && tokens_ > call.kv_len);
    detail::require(rows_fit && tokens_fit, call.where, ": documents(ids) must be ", call.batch,
                    " x ", call.kv_len, " (batch x kv_len",
                    call.ragged ? " of the longest sequence" : "",
                    "), or have one row for all, got ", rows_, " x ", tokens_);
  }
  bool allowed(const Extent& extent, Index b, Index /*h*/, Index i, Index j) const {
    // Modulo 2^64, which is exact for what lies among the tokens and far off for anything else.
    const std::size_t token = static_cast<std::size_t>(i) + static_cast<std::size_t>(extent.offset);
    if (token >= static_cast<std::size_t>(extent.kv_len)) return false;
    const std::int32_t* const row = ids_ + (rows_ == 1 ? 0 : b * tokens_);
    return row[token] == row[j];
  }
  TileMask tile(const Extent& extent, Index b, Index /*h*/, const PairTile& tile) const {
    const Index first = detail::saturated_sum(tile.first_query, extent.offset);
    const Index end = detail::saturated_sum(first, tile.queries);
    const Index from = std::clamp<Index>(first, 0, extent.kv_len);
    const Index to = std::clamp<Index>(end, 0, extent.kv_len);
    if (from >= to) return TileMask::none;
    const Span queries = span(b, from, to);
    const Span keys = span(b, tile.first_key, tile.first_key + tile.keys);
    if (queries.least > keys.most || queries.most < keys.least) return TileMask::none;
    const bool one_document = queries.least == queries.most && keys.least == keys.most;
    return one_document && from == first && to == end ? TileMask::all : TileMask::some;
  }
  void add_to(detail::Digest& digest) const { digest.add(rows_).add(tokens_).add(data_->digest); }

 private:
  static constexpr Index kRun = 16;  ///< tokens of a run

  /// Least and largest id of some tokens.
  struct Span {
    std::int32_t least = std::numeric_limits<std::int32_t>::max();
    std::int32_t most = std::numeric_limits<std::int32_t>::min();
    void add(const Span& other) {
      least = std::min(least, other.least);
      most = std::max(most, other.most);
    }
  };
  struct Data {
    std::vector<std::int32_t> ids;  ///< the place of each id among all, in rising order
    std::vector<Span> runs;         ///< of each row, from its first token on
    std::uint64_t digest = 0;

    Data(const std::vector<Index>& given, Index rows, Index tokens) {
      Index count = 0;
      detail::require(rows >= 0 && tokens >= 0 && detail::multiplies(rows, tokens, count) &&
                          count == static_cast<Index>(given.size()),
                      "documents: ids must be rows * tokens numbers, got ", given.size(), " for ",
                      rows, " x ", tokens);
      std::vector<Index> sorted = given;
      std::sort(sorted.begin(), sorted.end());
      sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
      ids.reserve(given.size());
      for (const Index id : given) {
        const auto place = std::lower_bound(sorted.begin(), sorted.end(), id);
        ids.push_back(static_cast<std::int32_t>(place - sorted.begin()));
      }
      for (Index row = 0; row < rows; ++row) {
        for (Index token = 0; token < tokens; token += kRun) {
          Span run;
          for (Index k = token; k < std::min(token + kRun, tokens); ++k) {
            const std::int32_t id = ids[static_cast<std::size_t>(row * tokens + k)];
            run.add({id, id});
          }
          runs.push_back(run);
        }
      }
      detail::Digest all;
      for (const Index id : given) all.add(id);
      digest = all.value();
    }
  };

  /// Of tokens from, ..., to - 1 of a sequence.
  Span span(Index b, Index from, Index to) const {
    const Index row = rows_ == 1 ? 0 : b;
    const std::int32_t* const ids = ids_ + row * tokens_;
    const Span* const runs = data_->runs.data() + row * ((tokens_ + kRun - 1) / kRun);
    Span all;
    Index k = from;
    for (; k < to && k % kRun != 0; ++k) all.add({ids[k], ids[k]});
    for (; k + kRun <= to; k += kRun) all.add(runs[k / kRun]);
    for (; k < to; ++k) all.add({ids[k], ids[k]});
    return all;
  }

  std::shared_ptr<const Data> data_;
  const std::int32_t* ids_;
  Index rows_;
  Index tokens_;
};

/// Query and key may attend only if they belong to the same document: ids[position of the query] ==
/// ids[key row]. The position of query row i is i + offset, where the queries stand (past_len, a
/// causal rule or query_offset()); a query that stands before or beyond the keys attends to nothing.
/// Ids are any whole numbers, in any order; they are copied.
/// @param ids  one per token of the keys: a vector or list, the same for every sequence; or an Eigen
///             matrix, batch x kv_len. Of sequences of different lengths (a ragged batch of the layer)
///             it is as wide as the longest, and columns beyond a sequence's own keys are ignored.
[[nodiscard]] inline Documents documents(const IndexList& ids) {
  std::vector<Index> all(static_cast<std::size_t>(ids.size()));
  for (Index k = 0; k < ids.size(); ++k) all[static_cast<std::size_t>(k)] = ids[k];
  return Documents(all, 1, ids.size());
}
template <EigenDense M>
[[nodiscard]] Documents documents(const M& ids) {
  static_assert(detail::WholeNumber<typename M::Scalar>,
                "mha::documents: ids must be whole numbers, one per token");
  const bool is_column = M::IsVectorAtCompileTime && M::ColsAtCompileTime == 1;
  const Index rows = is_column ? 1 : ids.rows();
  const Index tokens = is_column ? ids.rows() : ids.cols();
  if constexpr (EigenInMemory<M>) {
    detail::require(ids.size() == 0 || ids.data() != nullptr,
                    "documents: ids must not be null, got ", rows, " x ", tokens);
  }
  const auto plain = ids.eval();
  std::vector<Index> all;
  all.reserve(static_cast<std::size_t>(ids.size()));
  for (Index row = 0; row < rows; ++row) {
    for (Index token = 0; token < tokens; ++token) {
      const auto id = is_column ? plain.coeff(token, 0) : plain.coeff(row, token);
      detail::require(std::in_range<Index>(id), "documents: ids must be at most ",
                      std::numeric_limits<Index>::max(), ", got ", id);
      all.push_back(static_cast<Index>(id));
    }
  }
  return Documents(all, rows, tokens);
}

}  // namespace mha
