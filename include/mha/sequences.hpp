// SPDX-License-Identifier: MIT
//
// How the rows of a 2-D matrix form sequences: equal ones (`batch`), or ragged ones (`sequences`),
// one after the other.
#pragma once

#include <algorithm>

#include "mha/batch.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::detail {

/// How the rows of a call form sequences.
struct SequenceBatch {
  Index count = 0;
  Index query_len = 0;  ///< the longest
  Index kv_len = 0;     ///< the longest
  bool ragged = false;

  /// Where each sequence lies, `extra` further keys at the end of every one included.
  void place(const MultiHeadOptions& options, Index extra, Segment* segments) const {
    const IndexList& q = options.sequences;
    const IndexList& k = options.kv_sequences.empty() ? q : options.kv_sequences;
    Segment next;
    for (Index b = 0; b < count; ++b) {
      next.query_len = ragged ? q[b] : query_len;
      next.kv_len = (ragged ? k[b] : kv_len) + extra;
      segments[b] = next;
      next.query_row += next.query_len;
      next.key_row += next.kv_len;
    }
  }
};

/// The sequences that the options make of so many rows.
/// @throws std::invalid_argument if the rows cannot be cut so
inline SequenceBatch cut_sequences(Index query_rows, Index key_rows,
                                   const MultiHeadOptions& options) {
  SequenceBatch batch;
  batch.ragged = !options.sequences.empty() || !options.kv_sequences.empty();
  if (batch.ragged) {
    const IndexList& q = options.sequences;
    const IndexList& k = options.kv_sequences.empty() ? q : options.kv_sequences;
    require(!q.empty(), "MultiHead: kv_sequences must come with sequences");
    require(q.size() == k.size(), "MultiHead: sequences and kv_sequences must be as many, got ",
            q.size(), " and ", k.size());
    require(options.batch == 1 || options.batch == q.size(),
            "MultiHead: batch must be left out beside sequences, or equal their number, "
            "got ",
            options.batch, " and ", q.size());
    Index query_sum = 0;
    Index key_sum = 0;
    batch.count = q.size();
    for (Index b = 0; b < q.size(); ++b) {
      require(q[b] >= 0 && k[b] >= 0, "MultiHead: lengths of sequences must not be negative, got ",
              q[b], " and ", k[b]);
      require(q[b] <= query_rows && k[b] <= key_rows,
              "MultiHead: sequences must not be longer than the input, got ", q[b],
              " query rows and ", k[b], " key rows");
      require(options.past_len >= 0 && options.past_len <= k[b],
              "MultiHead: past_len must lie between 0 and kv_len, got ", options.past_len, " and ",
              k[b]);
      query_sum += q[b];
      key_sum += k[b];
      batch.query_len = std::max(batch.query_len, q[b]);
      batch.kv_len = std::max(batch.kv_len, k[b]);
    }
    require(query_sum == query_rows, "MultiHead: sequences must add up to query.rows(), got ",
            query_sum, " and ", query_rows);
    require(key_sum == key_rows, "MultiHead: kv_sequences must add up to key.rows(), got ", key_sum,
            " and ", key_rows);
  } else {
    const Index n = options.batch;
    require(n >= 0, "MultiHead: batch must not be negative, got ", n);
    const auto divides = [n](Index rows) { return n == 0 ? rows == 0 : rows % n == 0; };
    require(divides(query_rows), "MultiHead: batch must divide query.rows(), got ", n, " and ",
            query_rows);
    require(divides(key_rows), "MultiHead: batch must divide key.rows(), got ", n, " and ",
            key_rows);
    if (n == 0) return batch;
    batch.count = n;
    batch.query_len = query_rows / n;
    batch.kv_len = key_rows / n;
    require(options.past_len >= 0 && options.past_len <= batch.kv_len,
            "MultiHead: past_len must lie between 0 and kv_len, got ", options.past_len, " and ",
            batch.kv_len);
  }
  return batch;
}

}  // namespace mha::detail
