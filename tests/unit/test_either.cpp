// SPDX-License-Identifier: MIT
//
// mha/rules/either.hpp: `a | b` of masks. The pictures are those of test_mask.cpp: a word is a query row, a
// letter a key row, x = may attend.
#include <mha/mha.hpp>

#include "support/pictures.hpp"
#include "support/same_as_keep.hpp"

using mha::Extent;
using mha::Index;
using mha::KeyRange;
using mha::Matrix;
using mha::Tensor;
using mha::test::check_bits_of_keep;
using mha::test::ContainsSubstring;
using mha::test::HasBitsOf;
using mha::test::MaskedSizes;
using mha::test::picture;
using mha::test::PictureSizes;
using mha::test::random_booleans;
using mha::test::random_matrix;

namespace {

// Rules of a user's own.
struct EvenKeys : mha::Rule {
  bool allowed(const Extent& /*extent*/, Index /*b*/, Index /*h*/, Index /*i*/, Index j) const {
    return j % 2 == 0;
  }
};
struct KeysFrom : mha::Rule {
  Index first;
  explicit KeysFrom(Index n) : first(n) {}
  KeyRange keys(const Extent& extent, Index /*b*/, Index /*h*/, Index /*i*/) const {
    return {first, extent.kv_len + 5};
  }
};

// What either picture allows, and what both do.
std::string either(std::string a, const std::string& b) {
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (b[k] == 'x') a[k] = 'x';
  }
  return a;
}
std::string both(std::string a, const std::string& b) {
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (b[k] == '.') a[k] = '.';
  }
  return a;
}

// The picture that a rule means, without attention.
std::string meaning(const auto& rule, Index query_len, Index kv_len) {
  const auto& rules = mha::detail::as_rules(rule);
  const Extent extent = rules.placed({1, query_len, kv_len, 0}, 0, 0);
  std::string text;
  for (Index i = 0; i < query_len; ++i) {
    const KeyRange range = rules.keys(extent, 0, 0, i);
    if (i > 0) text += ' ';
    for (Index j = 0; j < kv_len; ++j) {
      const bool in_range = j >= range.begin && j < range.end;
      text += in_range && rules.allowed(extent, 0, 0, i, j) ? 'x' : '.';
    }
  }
  return text;
}

const Matrix<bool>& some_pairs() {
  static const Matrix<bool> mask = random_booleans(6, 6, 4, 0.4);
  return mask;
}

}  // namespace

TEST_CASE("of masks joined by | one must allow", "[either]") {
  CHECK(picture(mha::causal() | mha::lengths(2), 4, 4) == "xx.. xx.. xxx. xxxx");
  CHECK(picture(mha::window(0, 0) | mha::lengths(1), 4, 4) == "x... xx.. x.x. x..x");
  CHECK(picture(mha::window(1, 0) | EvenKeys(), 4, 4) == "x.x. xxx. xxx. x.xx");
  CHECK(picture(EvenKeys() | KeysFrom(3), 2, 5) == "x.xxx x.xxx");
  CHECK(picture(mha::lengths(1) | KeysFrom(3), 2, 5) == "x..xx x..xx");
  CHECK(picture(mha::lengths(0) | KeysFrom(3), 2, 5) == "...xx ...xx");
  CHECK(picture(mha::lengths(0) | KeysFrom(5), 2, 5) == "..... .....");
  CHECK(picture(mha::All() | mha::causal(), 2, 2) == "xx xx");
  CHECK(picture(EvenKeys() | mha::All(), 2, 2) == "xx xx");
}

TEST_CASE("& and | nest in any way, with every mask", "[either]") {
  const auto keep = mha::keep(some_pairs());
  const auto ignore = mha::ignore(some_pairs());
  const auto checkered =
      mha::mask_mod([](Index, Index, Index i, Index j) { return (i + j) % 3 == 0; });
  const auto drawn = [](const auto& rule) { return meaning(rule, 6, 6); };
  const auto check = [&](const auto& a, const auto& b, const auto& c) {
    CHECK(drawn(a | b) == either(drawn(a), drawn(b)));
    CHECK(drawn(a | b | c) == either(either(drawn(a), drawn(b)), drawn(c)));
    CHECK(drawn(a | (b | c)) == drawn(a | b | c));
    CHECK(drawn((a | b) & c) == both(either(drawn(a), drawn(b)), drawn(c)));
    CHECK(drawn(c & (a | b)) == drawn((a | b) & c));
    CHECK(drawn((a & b) | c) == either(both(drawn(a), drawn(b)), drawn(c)));
    CHECK(drawn(((a | b) & c) | (b & (a | c))) ==
          either(both(either(drawn(a), drawn(b)), drawn(c)),
                 both(drawn(b), either(drawn(a), drawn(c)))));
  };
  CHECK(drawn(mha::causal()) == picture(mha::causal(), 6, 6));
  check(mha::causal(), mha::lengths(2), mha::window(1, 2));
  check(mha::window(1, 0), keep, mha::causal());
  check(ignore, mha::window(0, 1), checkered);
  check(EvenKeys(), mha::causal_lower_right(), KeysFrom(4));
  check(keep, checkered, mha::lengths(4));
  check(mha::window_keys(2), mha::lengths(1), mha::ignore(some_pairs()));
}

TEST_CASE("masks joined by | may be joined with score modifiers as a whole", "[either]") {
  const Matrix<float> x = random_matrix<float>(6, 3, 1);
  const Matrix<bool> drawn = some_pairs().array() || Matrix<bool>::Identity(6, 6).array();
  const auto rule = (mha::window(0, 0) | mha::keep(some_pairs())) & mha::alibi(0.5F) &
                    mha::softcap(2) & mha::sinks(0.25) & mha::dropout(0.25, 3);
  const auto same = mha::keep(drawn) & mha::alibi(0.5F) & mha::softcap(2) & mha::sinks(0.25) &
                    mha::dropout(0.25, 3);
  CHECK_THAT(mha::scaled_dot_product_attention(x, x, x, rule),
             HasBitsOf(mha::scaled_dot_product_attention(x, x, x, same)));
}

TEST_CASE("| of causal rules and lengths stays a range, any other asks for each pair", "[either]") {
  const auto prefix = mha::causal() | mha::lengths(3);
  static_assert(decltype(prefix)::only_ranges());
  static_assert(decltype((prefix | mha::causal_offset(2)) & mha::window(4, 0))::only_ranges());
  static_assert(decltype(mha::All() | mha::causal())::only_ranges());
  static_assert(!decltype(mha::window(3, 0) | mha::lengths(3))::only_ranges());
  static_assert(!decltype(mha::causal() | EvenKeys())::only_ranges());
  static_assert(!decltype(KeysFrom(1) | mha::causal())::only_ranges());
  // The keys of a range have the bits of any other rule that says the same.
  const Matrix<float> x = random_matrix<float>(6, 3, 1);
  CHECK_THAT(mha::scaled_dot_product_attention(x, x, x, mha::causal() | mha::lengths(6)),
             HasBitsOf(mha::scaled_dot_product_attention(x, x, x, mha::lengths(6))));
}

TEST_CASE("the range of | is the smallest that holds both, and no larger than the keys",
          "[either]") {
  const Extent extent{1, 8, 20, 0};
  const auto range = [&](const auto& rules, Index i) {
    const KeyRange keys = rules.keys(rules.placed(extent, 0, 0), 0, 0, i);
    return std::pair(keys.begin, keys.end);
  };
  CHECK(range(mha::window(1, 0) | mha::window(0, 2), 5) == std::pair<Index, Index>(4, 8));
  CHECK(range(mha::window(1, 0) | mha::lengths(1), 7) == std::pair<Index, Index>(0, 8));
  CHECK(range(mha::lengths(0) | mha::window(1, 0), 7) == std::pair<Index, Index>(6, 8));
  CHECK(range(mha::window(1, 0) | mha::lengths(0), 7) == std::pair<Index, Index>(6, 8));
  CHECK(range(mha::lengths(0) | mha::lengths(0), 7) == std::pair<Index, Index>(0, 0));
  CHECK(range(KeysFrom(3) | mha::lengths(5), 0) == std::pair<Index, Index>(0, 20));
  CHECK(range(EvenKeys() | mha::lengths(5), 0) == std::pair<Index, Index>(0, 20));
  CHECK(range((EvenKeys() | mha::lengths(5)) & mha::causal(), 2) == std::pair<Index, Index>(0, 3));
}

TEST_CASE("mask_mod inside | is asked only about keys that the ranges of its side leave",
          "[either]") {
  const std::vector<bool> table{true, false, true};
  const auto in_table = mha::mask_mod(
      [&](Index, Index, Index, Index j) { return table.at(static_cast<std::size_t>(j)); });
  CHECK(picture((mha::lengths(3) & in_table) | KeysFrom(38), 2, 40) ==
        either(picture(mha::lengths(3) & in_table, 2, 40), picture(KeysFrom(38), 2, 40)));
}

TEST_CASE("rules on either side of | place the queries of the whole call", "[either][places]") {
  // causal_offset(2) places the window of the other side; as a mask it stays on its own side.
  CHECK(picture(mha::causal_offset(2) | mha::window(0, 1), 2, 6) == "xxxx.. xxxxx.");
  CHECK(picture(mha::window(0, 1) | (mha::causal_offset(2) & EvenKeys()), 2, 6) == "x.xx.. x.xxx.");
  CHECK(picture((mha::query_offset(3) & mha::window(0, 0)) | mha::window(1, -1), 2, 6) ==
        "..xxxx ...xxx");
  CHECK(picture((mha::query_offset(3) & mha::window(0, 0)) | mha::lengths(1), 2, 6) ==
        "x..x.. x...x.");
  // Of two causal rules each masks by its own offset; windows go by the smaller one.
  CHECK(picture(mha::causal_offset(0) | mha::causal_offset(2), 2, 5) == "xxx.. xxxx.");
  CHECK(picture((mha::causal_offset(2) | mha::causal_offset(0)) & mha::window(1, 1), 3, 5) ==
        "xx... xxx.. .xxx.");
  // Cached keys place both sides.
  CHECK(picture(mha::window(0, 0) | (mha::causal() & EvenKeys()), 2, 5, 3) == "x.xx. x.x.x");
  const PictureSizes sizes{1, 4, 0, 2, 1};
  CHECK(picture(mha::causal_offset({0, 2}) | mha::window(0, 0), sizes, 1) == "xxx.");
}

TEST_CASE("places inside | that disagree with each other or with past_len are refused",
          "[either][places][errors]") {
  CHECK_THROWS_WITH(picture(mha::causal_offset(1) | mha::lengths(1), 2, 5, 3),
                    ContainsSubstring("past_len and a rule must place the queries alike, got "
                                      "past_len 3 and offset 1 for sequence 0"));
  CHECK_THROWS_WITH(picture(mha::window(0, 0) | (mha::query_offset(2) & mha::lengths(1)), 2, 5, 3),
                    ContainsSubstring("got past_len 3 and offset 2"));
  CHECK_THROWS_WITH(picture((mha::query_offset(2) & EvenKeys()) | mha::causal_offset(1), 2, 5),
                    ContainsSubstring("query_offset and other rules must place the queries alike, "
                                      "got offset 2 and offset 1 for sequence 0"));
  CHECK_THROWS_WITH(picture(mha::query_offset(2) & (EvenKeys() | mha::causal_offset(1)), 2, 5),
                    ContainsSubstring("got offset 2 and offset 1"));
  CHECK_NOTHROW(picture(mha::query_offset(2) & (EvenKeys() | mha::causal()), 2, 5));
  CHECK_NOTHROW(picture(mha::causal_offset(3) | mha::lengths(1), 2, 5, 3));
}

TEST_CASE("wrong arguments on either side of | are refused like any others", "[either][errors]") {
  const auto wrong = [](const auto& rule, const char* message) {
    CHECK_THROWS_WITH(picture(rule | mha::causal(), 2, 4), ContainsSubstring(message));
    CHECK_THROWS_WITH(picture(mha::causal() | rule, 2, 4), ContainsSubstring(message));
    CHECK_THROWS_WITH(picture(mha::causal() & (EvenKeys() | (rule & mha::window(1, 1))), 2, 4),
                      ContainsSubstring(message));
  };
  const Matrix<bool> mask = Matrix<bool>::Constant(3, 4, true);
  wrong(mha::keep(mask),
        "mha::attention_forward: keep(mask) must have 1 or 2 entries along query_len, got 3");
  wrong(mha::ignore(mask), "ignore(mask) must have 1 or 2 entries along query_len, got 3");
  wrong(mha::lengths(5), "lengths must lie between 0 and kv_len, got 5 and 4");
  wrong(mha::lengths({1, 2, 3}), "lengths must have one entry, or one per sequence, got 3");
  wrong(mha::causal_offset({1, 2, 3}), "causal_offset must have one entry");
  wrong(mha::query_offset({1, 2, 3}) & mha::window(1, 1), "query_offset must have one entry");
}

TEST_CASE("a backward pass refuses other numbers or sides inside |", "[either][errors]") {
  mha::MultiHead<float, 2> layer(4);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(5, 4);
  mha::TrainingPass<decltype(layer)> pass;
  mha::MultiHeadGradients<decltype(layer)> gradients(layer);
  const auto backward = [&](const auto& rule) { layer.backward(gradients, pass, x, rule); };
  layer.forward_training(pass, x, mha::causal() | mha::lengths(3));
  CHECK_NOTHROW(backward(mha::causal() | mha::lengths(3)));
  layer.forward_training(pass, x, mha::causal() | mha::lengths(3));
  CHECK_THROWS_WITH(backward(mha::causal() | mha::lengths(4)),
                    ContainsSubstring("rule must have the numbers and sizes"));
  CHECK_THROWS_WITH(backward(mha::causal() & mha::lengths(3)),
                    ContainsSubstring("rule must be of the type"));
  CHECK_THROWS_WITH(backward(mha::lengths(3) | mha::causal()),
                    ContainsSubstring("rule must be of the type"));
  const auto named = mha::causal() | mha::lengths(3);
  CHECK_NOTHROW(backward(named));
}

TEST_CASE("| of temporaries owns them, and leaves variables as they were", "[either]") {
  const auto some = [] {
    const auto lengths = mha::lengths({1, 3});
    return lengths | mha::keep(Matrix<bool>::Identity(3, 4)) | lengths;
  }();
  const PictureSizes sizes{3, 4, 0, 2, 1};
  CHECK(picture(some, sizes, 0) == "x... xx.. x.x.");
  CHECK(picture(some, sizes, 1) == "xxx. xxx. xxx.");
  const auto twice = some | some;  // NOLINT(misc-redundant-expression)
  CHECK(picture(twice, sizes, 0) == picture(some, sizes, 0));
  CHECK(picture(some & mha::causal(), sizes, 1) == "x... xx.. xxx.");
}

TEST_CASE("| has the bits of the same mask drawn out, forward and backward", "[either]") {
  static const Matrix<bool> globals = [] {
    Matrix<bool> columns = Matrix<bool>::Constant(1, 1200, false);
    for (const Index j : {0, 1, 300, 1030}) columns(0, j) = true;
    return columns;
  }();
  const auto local = [](Index i, Index j) { return j <= i && j >= i - 64; };
  for (const Index query_len : {3, 70, 300}) {
    const MaskedSizes sizes{query_len, 1200, 1, 2, 1};
    const Index offset = 1200 - query_len;
    check_bits_of_keep<float>((mha::window(64, 0) | mha::keep(globals)) & mha::causal_lower_right(),
                              sizes, [&](Index, Index, Index i, Index j) {
                                return j <= i + offset && (local(i + offset, j) || globals(0, j));
                              });
    check_bits_of_keep<double>(
        mha::causal_offset(-20) | mha::window(30, -1) | (mha::lengths(700) & EvenKeys()), sizes,
        [&](Index, Index, Index i, Index j) {
          return j <= i - 20 || j >= i - 50 || (j < 700 && j % 2 == 0);
        });
  }
  // A range has the bits of a range; with an element-wise mask beside it, those of keep(m).
  check_bits_of_keep<float>((mha::causal_offset({5, 0}) | mha::lengths({150, 10})) &
                                mha::keep(Matrix<bool>::Constant(1, 1, true)),
                            {200, 210, 2, 1, 1}, [](Index b, Index, Index i, Index j) {
                              return b == 0 ? j <= i + 5 || j < 150 : j <= i || j < 10;
                            });
}

TEST_CASE("masked keys and values reach nothing through |, whatever they are", "[either][poison]") {
  const auto rule = mha::window(2, 0) | mha::lengths(3);
  for (const Index query_len : {4, 80}) {
    Matrix<float> x = random_matrix<float>(query_len, 4, 1);
    Matrix<float> poisoned = x;
    const Index row = query_len - 3;  // seen by itself and the last two
    if (query_len > 4) poisoned.row(40).setConstant(mha::test::nan_of<float>());
    poisoned.row(row).setConstant(mha::test::infinity_of<float>());
    const auto clean = mha::scaled_dot_product_attention(x, x, x, rule);
    const auto dirty = mha::scaled_dot_product_attention(x, poisoned, poisoned, rule);
    CHECK_THAT(dirty.topRows(query_len > 4 ? 40 : 0),
               HasBitsOf(clean.topRows(query_len > 4 ? 40 : 0)));
    if (query_len > 4) {
      CHECK_THAT(dirty.middleRows(43, row - 43), HasBitsOf(clean.middleRows(43, row - 43)));
    }
  }
}

TEST_CASE("| works in the layer, for ragged batches and with keys of the layer's own",
          "[either][layer]") {
  for (const bool extra : {false, true}) {
    mha::MultiHead<double, 2> layer({.embed_dim = 6, .add_bias_kv = extra, .add_zero_attn = extra});
    const Eigen::MatrixXd x = random_matrix<double>(12, 6, 5);
    const auto rule = (mha::causal() | mha::lengths({2, 3, 1})) & mha::window(3, -1);
    const auto some = mha::mask_mod([](Index b, Index, Index i, Index j) {
      const Index prefix[] = {2, 3, 1};
      return (j <= i || j < prefix[b]) && j >= i - 3;
    });
    const mha::MultiHeadOptions options{.sequences = {4, 5, 3}};
    const Eigen::MatrixXd y = layer(x, rule, options);
    CHECK_THAT(y, mha::test::IsClose(layer(x, some, options), 1e-13));
    // Each sequence alone.
    const Eigen::MatrixXd last = layer(Eigen::MatrixXd(x.bottomRows(3)),
                                       (mha::causal() | mha::lengths(1)) & mha::window(3, -1));
    CHECK_THAT(y.bottomRows(3), HasBitsOf(last));
  }
}
