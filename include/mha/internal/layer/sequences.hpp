// SPDX-License-Identifier: MIT
//
// How the rows of a 2-D matrix form sequences: equal ones (`batch`), or ragged ones (`sequences`),
// one after the other.
#pragma once

#include <algorithm>

#include "mha/internal/call/batch.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::inline MHA_ABI::detail {

/// How the rows of a call form sequences.
struct SequenceBatch {
  Index count = 0;
  Index query_len = 0;          ///< the longest
  Index kv_len = 0;             ///< the longest
  bool ragged = false;          ///< each sequence has a segment of its own
  bool lengths_differ = false;  ///< what is given for each row must suffice for the longest

  /// Of sequence b.
  Index query_len_of(const MultiHeadOptions& options, Index b) const {
    return ragged ? options.sequences[b] : query_len;
  }
  Index kv_len_of(const MultiHeadOptions& options, Index b) const {
    if (!ragged) return kv_len;
    return options.kv_sequences.empty() ? options.sequences[b] : options.kv_sequences[b];
  }

  /// Where each sequence lies.
  void place(const MultiHeadOptions& options, Segment* segments) const {
    Segment next;
    for (Index b = 0; b < count; ++b) {
      next.query_len = query_len_of(options, b);
      next.kv_len = kv_len_of(options, b);
      segments[b] = next;
      next.query_row += next.query_len;
      next.key_row += next.kv_len;
    }
  }
};

/// The rows of a call, or of a question for its memory, in words.
inline void check_rows(const char* where, const char* name, Index rows) {
  require(rows >= 0 && rows <= kMaxSize, where, ": the rows of ", name, " must lie between 0 and ",
          kMaxSize, ", got ", rows);
}

/// The lengths of a ragged batch.
inline SequenceBatch cut_ragged(const char* where, Index query_rows, Index key_rows,
                                const MultiHeadOptions& options) {
  const IndexList& q = options.sequences;
  const IndexList& k = options.kv_sequences.empty() ? q : options.kv_sequences;
  require(!q.empty(), where, ": kv_sequences must come with sequences, got ", k.size(), " and 0");
  require(q.size() == k.size(), where, ": sequences and kv_sequences must be as many, got ",
          q.size(), " and ", k.size());
  require(options.batch == 1 || options.batch == q.size(), where,
          ": batch must be left out beside sequences, or equal their number, got ", options.batch,
          " and ", q.size());
  check_past_count(where, options.past_len, q.size());
  SequenceBatch batch;
  batch.ragged = batch.lengths_differ = true;
  batch.count = q.size();
  Index query_sum = 0;
  Index key_sum = 0;
  for (Index b = 0; b < q.size(); ++b) {
    require(q[b] >= 0 && k[b] >= 0, where, ": lengths of sequences must not be negative, got ",
            q[b], " and ", k[b], " for sequence ", b);
    require(q[b] <= query_rows && k[b] <= key_rows, where,
            ": sequences must not be longer than the input, got ", q[b], " of ", query_rows,
            " query rows and ", k[b], " of ", key_rows, " key rows for sequence ", b);
    check_past_len(where, options.past_len[b], k[b]);
    query_sum += q[b];
    key_sum += k[b];
    batch.query_len = std::max(batch.query_len, q[b]);
    batch.kv_len = std::max(batch.kv_len, k[b]);
  }
  require(query_sum == query_rows, where, ": sequences must add up to query.rows(), got ",
          query_sum, " and ", query_rows);
  require(key_sum == key_rows, where, ": ", options.kv_sequences.empty() ? "" : "kv_",
          "sequences must add up to key.rows(), got ", key_sum, " and ", key_rows);
  return batch;
}

/// The sequences that the options make of so many rows.
/// @param where  the public function, for messages
/// @throws std::invalid_argument if the rows cannot be cut so
inline SequenceBatch cut_sequences(const char* where, Index query_rows, Index key_rows,
                                   const MultiHeadOptions& options) {
  check_rows(where, "query", query_rows);
  check_rows(where, "key", key_rows);
  if (!options.sequences.empty() || !options.kv_sequences.empty()) {
    return cut_ragged(where, query_rows, key_rows, options);
  }
  SequenceBatch batch;
  const Index n = options.batch;
  require(n >= 0 && n <= kMaxSize, where, ": batch must lie between 0 and ", kMaxSize, ", got ", n);
  const auto divides = [n](Index rows) { return n == 0 ? rows == 0 : rows % n == 0; };
  require(divides(query_rows), where, ": batch must divide query.rows(), got ", n, " and ",
          query_rows);
  require(divides(key_rows), where, ": batch must divide key.rows(), got ", n, " and ", key_rows);
  check_past_count(where, options.past_len, n);
  if (n == 0) return batch;
  batch.count = n;
  batch.query_len = query_rows / n;
  batch.kv_len = key_rows / n;
  for (Index b = 0; b < options.past_len.size(); ++b) {
    check_past_len(where, options.past_len[b], batch.kv_len);
  }
  return batch;
}

}  // namespace mha::detail
