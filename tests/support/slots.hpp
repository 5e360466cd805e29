// SPDX-License-Identifier: MIT
//
// A rule of a user's own whose ranges of keys jump from query to query, with keys between them that nobody sees.
#pragma once

#include <mha/rules/rule.hpp>

#include <algorithm>

namespace mha::test {

/// Rows in slots of `rows` see `keys_each` keys; as many hidden ones follow. From the last key on the slots begin
/// anew.
struct Slots : Rule {
  Slots(Index r, Index k, Index first = 0) : rows(r), keys_each(k), first_query(first) {}

  KeyRange of(Index i, Index kv_len) const {
    const Index first = (i + first_query) / rows * 2 * keys_each % (kv_len + 1);
    return {first, std::min(kv_len, first + keys_each)};
  }
  KeyRange keys(const Extent& extent, Index /*b*/, Index /*h*/, Index i) const {
    return of(i, extent.kv_len);
  }

  Index rows, keys_each, first_query;
};

}  // namespace mha::test
