// SPDX-License-Identifier: MIT
//
// The inputs of a random call of attention, and what it should give.
#pragma once

#include "fuzz/compare.hpp"
#include "fuzz/rules.hpp"

namespace mha::fuzz {

struct AttentionShape {
  Index batch = 1, num_heads = 1, kv_heads = 1, query_len = 0, kv_len = 0, head_dim = 0,
        value_dim = 0;
};

/// Sizes whose work is at most `most` multiply-adds.
inline AttentionShape draw_shape(Bytes& bytes, Index most) {
  AttentionShape s;
  s.head_dim = bytes.once_in(4) ? bytes.one_of(15, 16, 17, 32, 40, 64, 65, 80, 128)
                                : bytes.between(bytes.pick(64) == 0 ? 0 : 1, 12);
  s.value_dim = bytes.coin() ? s.head_dim : bytes.between(bytes.pick(64) == 0 ? 0 : 1, 20);
  most /= std::max<Index>(s.head_dim + s.value_dim, 1);
  const Index group = bytes.once_in(3) ? bytes.between(1, 9) : 1;
  s.kv_heads = bytes.coin() ? 1 : bytes.between(1, 3);
  s.num_heads = group * s.kv_heads;
  s.batch = bytes.pick(3) == 2 ? bytes.between(1, 4) : 1;
  if (bytes.pick(200) == 199) s.batch = 0;
  most /= std::max<Index>(s.batch * s.num_heads, 1);
  if (bytes.once_in(4)) {  // decoding
    s.query_len = bytes.between(1, 5);
    s.kv_len = draw_length(bytes, most / s.query_len);
  } else {
    s.kv_len = draw_length(bytes, most);
    s.query_len = bytes.once_in(4) ? std::min(s.kv_len, most / std::max<Index>(s.kv_len, 1))
                                   : draw_length(bytes, most / std::max<Index>(s.kv_len, 1));
  }
  return s;
}

template <class Scalar>
class AttentionInputs {
 public:
  AttentionInputs(Bytes& bytes, const Budget& budget, bool learned)
      : with(arithmetic_of<Scalar>()), shape(draw_shape(bytes, budget.draw(bytes))) {
    const AttentionShape& s = shape;
    CallSizes sizes;
    sizes.batch = s.batch;
    sizes.num_heads = s.num_heads;
    sizes.query_len.assign(static_cast<std::size_t>(s.batch), s.query_len);
    sizes.kv_len.assign(static_cast<std::size_t>(s.batch), s.kv_len);
    sizes.longest_query = s.query_len;
    sizes.longest_kv = s.kv_len;
    rule = draw_rule(bytes, sizes, draw_rule_set<Scalar>(bytes, learned));
    query = Stored<Scalar>(bytes, {s.batch, s.num_heads, s.query_len, s.head_dim}, true);
    key = Stored<Scalar>(bytes, {s.batch, s.kv_heads, s.kv_len, s.head_dim}, true);
    value = Stored<Scalar>(bytes, {s.batch, s.kv_heads, s.kv_len, s.value_dim}, true);
    Numbers numbers(bytes.seed());
    query.fill(numbers, draw_scale(bytes, !learned));
    key.fill(numbers, bytes.once_in(8) ? 0 : 1);
    value.fill(numbers, 1);
  }

  /// The case in words, for a message.
  std::string name() const {
    std::ostringstream text;
    text << " [" << name_of<Scalar>() << ", batch " << shape.batch << ", heads " << shape.num_heads
         << " / " << shape.kv_heads << ", " << shape.query_len << " x " << shape.kv_len
         << ", head_dim " << shape.head_dim << ", value_dim " << shape.value_dim << words_of(rule)
         << ", layouts " << query.layout() << " " << key.layout() << " " << value.layout() << "]";
    return text.str();
  }

  HeadTruth truth(Index b, Index h) const {
    const Index kv_head = h / (shape.num_heads / shape.kv_heads);
    return attend(with, query.table(b, h), key.table(b, kv_head), value.table(b, kv_head),
                  plain_rule(rule, with), b, h);
  }

  /// Makes keys and values that no query may see NaN or infinite; false if there are none.
  bool poison_hidden_keys() {
    const PlainRule plain = plain_rule(rule, with);
    const Index group = shape.kv_heads == 0 ? 1 : shape.num_heads / shape.kv_heads;
    if (!key.is_apart() || !value.is_apart()) return false;
    bool any = false;
    for (Index b = 0; b < shape.batch; ++b) {
      for (Index kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        for (Index j = 0; j < shape.kv_len; ++j) {
          bool seen = false;
          for (Index h = kv_head * group; h < (kv_head + 1) * group && !seen; ++h) {
            for (Index i = 0; i < shape.query_len && !seen; ++i) seen = plain.allows(b, h, i, j);
          }
          if (seen) continue;
          any = true;
          const double poison = j % 2 == 0 ? std::numeric_limits<double>::quiet_NaN()
                                           : std::numeric_limits<double>::infinity();
          for (Index d = 0; d < shape.head_dim; ++d) key(b, kv_head, j, d) = Scalar(poison);
          for (Index c = 0; c < shape.value_dim; ++c) value(b, kv_head, j, c) = Scalar(poison);
        }
      }
    }
    return any;
  }

  Arithmetic with;
  AttentionShape shape;
  RuleData rule;
  Stored<Scalar> query, key, value;
};

}  // namespace mha::fuzz
