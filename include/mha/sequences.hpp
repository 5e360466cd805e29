// SPDX-License-Identifier: MIT
//
// How the rows of a 2-D matrix form sequences: equal ones (`batch`), or ragged ones (`sequences`),
// one after the other.
#pragma once

#include <algorithm>
#include <vector>

#include "mha/batch.hpp"
#include "mha/multi_head_config.hpp"

namespace mha::detail {

/// How the rows of a call form sequences.
struct SequenceBatch {
  std::vector<Segment> segments;  ///< one per sequence, without keys the layer appends
  Index query_len = 0;            ///< the longest
  Index kv_len = 0;               ///< the longest
  bool ragged = false;
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
    Segment next;
    for (Index b = 0; b < q.size(); ++b) {
      require(q[b] >= 0 && k[b] >= 0, "MultiHead: lengths of sequences must not be negative, got ",
              q[b], " and ", k[b]);
      require(q[b] <= query_rows && k[b] <= key_rows,
              "MultiHead: sequences must not be longer than the input, got ", q[b],
              " query rows and ", k[b], " key rows");
      next.query_len = q[b];
      next.kv_len = k[b];
      batch.segments.push_back(next);
      next.query_row += q[b];
      next.key_row += k[b];
    }
    require(next.query_row == query_rows, "MultiHead: sequences must add up to query.rows(), got ",
            next.query_row, " and ", query_rows);
    require(next.key_row == key_rows, "MultiHead: kv_sequences must add up to key.rows(), got ",
            next.key_row, " and ", key_rows);
  } else {
    const Index n = options.batch;
    require(n >= 0, "MultiHead: batch must not be negative, got ", n);
    const auto divides = [n](Index rows) { return n == 0 ? rows == 0 : rows % n == 0; };
    require(divides(query_rows), "MultiHead: batch must divide query.rows(), got ", n, " and ",
            query_rows);
    require(divides(key_rows), "MultiHead: batch must divide key.rows(), got ", n, " and ",
            key_rows);
    for (Index b = 0; b < n; ++b) {
      batch.segments.push_back(
          {b * (query_rows / n), query_rows / n, b * (key_rows / n), key_rows / n});
    }
  }
  for (const Segment& s : batch.segments) {
    batch.query_len = std::max(batch.query_len, s.query_len);
    batch.kv_len = std::max(batch.kv_len, s.kv_len);
  }
  return batch;
}

}  // namespace mha::detail
