// SPDX-License-Identifier: MIT
//
// The helpers that the examples share: cutting text into pieces, the transformer's small parts, and
// the page of attention maps.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "common/encoder_options.hpp"
#include "common/html_page.hpp"
#include "common/sentencepiece.hpp"
#include "common/shaded_text.hpp"
#include "common/texts.hpp"
#include "common/transformer.hpp"
#include "common/words.hpp"
#include "support/catch.hpp"

using Catch::Matchers::WithinAbs;
using examples::SentencePiece;
using examples::Token;
using mha::Matrix;
using mha::RowVector;
using mha::test::ContainsSubstring;

namespace {

// U+2581, which stands for a space, as its three bytes.
const std::string kMark = "\xE2\x96\x81";

// "_" in `text` for U+2581.
std::string marked(const std::string& text) {
  std::string result;
  for (const char c : text) result += c == '_' ? kMark : std::string(1, c);
  return result;
}

// "id:text" of each token, one space between, "_" for U+2581.
std::string printed(const std::vector<Token>& tokens) {
  std::string result;
  for (const Token& token : tokens) {
    std::string text = token.text;
    for (std::size_t at = 0; (at = text.find(kMark, at)) != std::string::npos;)
      text.replace(at, kMark.size(), "_");
    result += (result.empty() ? "" : " ") + std::to_string(token.id) + ":" + text;
  }
  return result;
}

SentencePiece vocabulary(const std::vector<std::string>& pieces,
                         const std::vector<double>& scores) {
  std::vector<std::string> all{""};
  std::vector<double> all_scores{0};
  for (const std::string& piece : pieces) all.push_back(marked(piece));
  all_scores.insert(all_scores.end(), scores.begin(), scores.end());
  return {all, all_scores};
}

}  // namespace

TEST_CASE("the split with the greatest sum of scores is taken", "[examples][sentencepiece]") {
  // "ab" is "_ab". Ways to write it: [_ab] = -4 and [_a][b] = -1 - 2 = -3. The second is greater.
  // "abc" is "_abc": [_ab][c] = -4 - 1 = -5, [_a][b][c] = -1 - 2 - 1 = -4.
  const auto two_parts = vocabulary({"_a", "b", "_ab", "c"}, {-1, -2, -4, -1});
  CHECK(printed(two_parts.encode("ab")) == "1:_a 2:b");
  CHECK(printed(two_parts.encode("abc")) == "1:_a 2:b 4:c");
  // With -2.5 for [_ab]: -2.5 against -3, and -3.5 against -4.
  const auto one_part = vocabulary({"_a", "b", "_ab", "c"}, {-1, -2, -2.5, -1});
  CHECK(printed(one_part.encode("ab")) == "3:_ab");
  CHECK(printed(one_part.encode("abc")) == "3:_ab 4:c");
  // A greedy cut would take the longest piece [_ab] and then be left with [c][d]: -1 - 9 - 9 = -19.
  // [_a][bcd] = -4 - 4 = -8.
  const auto greedy = vocabulary({"_ab", "c", "d", "_a", "bcd"}, {-1, -9, -9, -4, -4});
  CHECK(printed(greedy.encode("abcd")) == "4:_a 5:bcd");
}

TEST_CASE("of equally good splits the one that ends in the shorter piece is taken",
          "[examples][sentencepiece]") {
  // "aaa" is "_aaa": [_a][aa] = -1 - 2 and [_aa][a] = -1.5 - 1.5 are both -3, [_a][a][a] is -4. The
  // model's own tokeniser takes the second.
  const auto pieces = vocabulary({"_a", "aa", "_aa", "a"}, {-1, -2, -1.5, -1.5});
  CHECK(printed(pieces.encode("aaa")) == "3:_aa 4:a");
}

TEST_CASE("spaces begin words and none is lost", "[examples][sentencepiece]") {
  const auto pieces = vocabulary({"_a", "_b", "_"}, {-1, -1, -5});
  CHECK(printed(pieces.encode("a b")) == "1:_a 2:_b");
  CHECK(printed(pieces.encode("a  b ")) == "1:_a 3:_ 2:_b 3:_");
  CHECK(pieces.encode("").empty());
}

TEST_CASE("neighbouring unknown characters are one token with id 0", "[examples][sentencepiece]") {
  const auto pieces = vocabulary({"_a", "b", "_"}, {-1, -1, -1});
  CHECK(printed(pieces.encode("axyb")) == "1:_a 0:xy 2:b");
  CHECK(printed(pieces.encode("xbx")) == "3:_ 0:x 2:b 0:x");
  CHECK(printed(pieces.encode("a\xC3\xA9\xE4\xBD\xA0")) == "1:_a 0:\xC3\xA9\xE4\xBD\xA0");

  SECTION("an unknown character costs 20") {
    // "ax" is "_ax": [_a][x unknown] = -1 - 20 = -21 against [_ax] = -20.5 or -21.5.
    CHECK(printed(vocabulary({"_a", "_ax"}, {-1, -20.5}).encode("ax")) == "2:_ax");
    CHECK(printed(vocabulary({"_a", "_ax"}, {-1, -21.5}).encode("ax")) == "1:_a 0:x");
  }
}

TEST_CASE("pieces match whole characters only, and malformed UTF-8 is unknown",
          "[examples][sentencepiece]") {
  const auto pieces = vocabulary({"_a", "\xC3\xA9", "b"}, {-1, -1, -1});
  CHECK(printed(pieces.encode("a\xC3\xA9")) == "1:_a 2:\xC3\xA9");
  CHECK(printed(pieces.encode("a\xC3")) == "1:_a 0:\xC3");  // cut short
  CHECK(printed(pieces.encode("a\xC3"
                              "b")) == "1:_a 0:\xC3 3:b");  // a lead byte alone
  CHECK(printed(pieces.encode("a\x80\xFF"
                              "b")) == "1:_a 0:\x80\xFF 3:b");

  const auto length = [](const std::string& text) { return examples::character_length(text, 0); };
  CHECK(length("a") == 1);
  CHECK(length("\xC3\xA9") == 2);
  CHECK(length("\xE2\x96\x81") == 3);
  CHECK(length("\xF0\x9F\x98\x80") == 4);
  CHECK(length("\xC0\x80") == 1);          // over-long
  CHECK(length("\xE0\x80\x80") == 1);      // over-long
  CHECK(length("\xED\xA0\x80") == 1);      // a surrogate
  CHECK(length("\xF4\x90\x80\x80") == 1);  // beyond U+10FFFF
  CHECK(length("\xF5\x80\x80\x80") == 1);
  CHECK(length("\xF0\x9F\x98") == 1);
}

TEST_CASE("a vocabulary file has a line of piece and score for each id",
          "[examples][sentencepiece]") {
  const std::string path = "test_examples_common_vocabulary.tsv";
  std::ofstream(path, std::ios::binary) << "\t\n\t\n" << kMark << "a\t-1.5\nb\t-2\n";
  CHECK(printed(SentencePiece::read(path).encode("abb")) == "2:_a 3:b 3:b");
  std::ofstream(path, std::ios::binary) << "\t\nb -2\n";
  CHECK_THROWS_WITH(SentencePiece::read(path),
                    ContainsSubstring("line 2: expected piece, tab, score"));
  std::ofstream(path, std::ios::binary) << "\t\nb\tmuch\n";
  CHECK_THROWS_WITH(SentencePiece::read(path),
                    ContainsSubstring("line 2: expected piece, tab, score"));
  std::remove(path.c_str());
  CHECK_THROWS_WITH(SentencePiece::read(path), ContainsSubstring(path));
  CHECK_THROWS_WITH(SentencePiece({"a", "b"}, {1}), ContainsSubstring("got 1 and 2"));
}

TEST_CASE("a word with an unknown character becomes one unknown token", "[examples][words]") {
  const auto pieces = vocabulary({"_the", "s", ".", "_"}, {-1, -2, -2, -3});
  // "zs" is z unknown + s; the s says nothing without the rest of the word. The full stop stays.
  CHECK(printed(examples::whole_unknown_words(pieces.encode("the zs."))) == "1:_the 0:_zs 3:.");
  CHECK(printed(examples::whole_unknown_words(pieces.encode("thes zs"))) == "1:_the 2:s 0:_zs");
}

TEST_CASE("a sentence is read with names for its tokens and notes on its unknown words",
          "[examples][words]") {
  const auto pieces = vocabulary({"_cat", "s", ".", "_\"", "\""}, {-1, -2, -2, -2, -2});
  const auto sentence = examples::read_sentence(pieces, "Cat cats zebra \"cat\".", 100);
  CHECK(sentence.words ==
        std::vector<std::string>{"cat", "cat", "+s", "zebra", "\"", "cat", "\"", "."});
  std::vector<mha::Index> ids;
  for (const Token& token : sentence.tokens) ids.push_back(token.id);
  CHECK(ids == std::vector<mha::Index>{1, 1, 2, 0, 4, 1, 5, 3});
  REQUIRE(sentence.notes.size() == 2);
  CHECK(sentence.notes[0] == "In the vocabulary in lower case only, and taken so: Cat.");
  CHECK(sentence.notes[1] == "Not in the vocabulary, taken as the unknown word: zebra.");

  const auto cut = examples::read_sentence(pieces, "cat cat cat", 2);
  CHECK(cut.tokens.size() == 2);
  REQUIRE(cut.notes.size() == 1);
  CHECK(cut.notes[0] == "Cut after 2 tokens.");
  CHECK(examples::tidy(" a\t b\n\nc ") == "a b c");
  CHECK(examples::tidy(" \n\x1B\x7F").empty());
  CHECK(examples::tidy("a\xFF\xC3\xA9\xC3") == "a\xEF\xBF\xBD\xC3\xA9\xEF\xBF\xBD");
  CHECK(examples::padded("\xC3\xA9", 3) == "\xC3\xA9  ");
  CHECK(examples::padded("abcd", 3) == "abcd");
}

TEST_CASE("layer norm subtracts the mean and divides by the deviation", "[examples][transformer]") {
  // Row (1, 3): mean 2, variance ((-1)^2 + 1^2) / 2 = 1; with epsilon 3 the divisor is sqrt(1 + 3)
  // = 2:
  // (-1/2, 1/2), times gain (2, 4) = (-1, 2), plus bias (10, 20) = (9, 22). A row of equal numbers
  // gives the bias.
  Matrix<float> x(2, 2);
  x << 1, 3, 7, 7;
  RowVector<float> gain(2), bias(2);
  gain << 2, 4;
  bias << 10, 20;
  Matrix<float> expected(2, 2);
  expected << 9, 22, 10, 20;
  CHECK(examples::layer_norm(x, gain, bias, 3.0f) == expected);
}

TEST_CASE("the feed-forward part cuts negative numbers off between its two maps",
          "[examples][transformer]") {
  // x = (1, 2). W1 = [[1, 1], [1, -1], [0, 2]] is out x in: (3, -1, 4) + b1 (0, 0, -1) = (3, -1,
  // 3), relu (3, 0, 3). W2 = [[1, 5, 2]]: 3 + 0 + 6 = 9, plus b2 (1) = 10.
  Matrix<float> x(1, 2), w1(3, 2), w2(1, 3);
  RowVector<float> b1(3), b2(1);
  x << 1, 2;
  w1 << 1, 1, 1, -1, 0, 2;
  w2 << 1, 5, 2;
  b1 << 0, 0, -1;
  b2 << 1;
  const Matrix<float> y = examples::feed_forward(x, w1, b1, w2, b2);
  REQUIRE(y.size() == 1);
  CHECK(y(0, 0) == 10);
}

TEST_CASE("positions are sines, then cosines, of position times frequency",
          "[examples][transformer]") {
  const float quarter = std::acos(0.0f);  // a quarter turn per position, and a third of that
  RowVector<float> frequencies(2);
  frequencies << quarter, quarter / 3;
  const Matrix<float> positions = examples::sinusoidal_positions(3, frequencies);
  Matrix<float> expected(3, 4);
  expected << 0, 0, 1, 1,            //
      1, 0.5f, 0, std::sqrt(0.75f),  //
      0, std::sqrt(0.75f), -1, 0.5f;
  REQUIRE(positions.rows() == 3);
  REQUIRE(positions.cols() == 4);
  CHECK_THAT((positions - expected).cwiseAbs().maxCoeff(), WithinAbs(0.0, 1e-6));
}

TEST_CASE("text in a page cannot become markup", "[examples][html]") {
  CHECK(examples::html_escape("<b a=\"1\">&'</b>") ==
        "&lt;b a=&quot;1&quot;&gt;&amp;&#39;&lt;/b&gt;");
  CHECK(examples::html_escape("\xC3\xA9 \xE4\xBD\xA0") == "\xC3\xA9 \xE4\xBD\xA0");
  CHECK(examples::html_escape("a\xFF\xC3z") == "a\xEF\xBF\xBD\xEF\xBF\xBDz");
  CHECK(examples::html_escape(std::string("a\0b\n\x7F", 5)) == "a b  ");
  CHECK(examples::shorten("abcdef", 6) == "abcdef");
  CHECK(examples::shorten("abcdefg", 6) == "abcde\xE2\x80\xA6");
  CHECK(examples::shorten("\xC3\xA9\xC3\xA9\xC3\xA9", 2) == "\xC3\xA9\xE2\x80\xA6");
}

TEST_CASE("shades grow with the weight, from the first for 0 to the last for 1",
          "[examples][html]") {
  CHECK(examples::detail::shade(0) == 0);
  CHECK(examples::detail::shade(0.25f) == (examples::detail::kShades - 1) / 2);  // the square root
  CHECK(examples::detail::shade(1) == examples::detail::kShades - 1);
  CHECK(examples::detail::shade(1.000001f) == examples::detail::kShades - 1);
}

TEST_CASE("a page holds every weight of every head and nothing from elsewhere",
          "[examples][html]") {
  Matrix<float> first(2, 2), second(2, 2);
  first << 0.25f, 0.75f, 0.5f, 0.5f;
  second << 1, 0, 0.125f, 0.875f;
  const std::string html = examples::attention_page({"<script>x</script> you",
                                                     {"<script>", "you"},
                                                     {first, second},
                                                     {"A note & more."},
                                                     "Somewhere"});
  CHECK_THAT(html, ContainsSubstring("title=\"&lt;script&gt; looks at you: 75.0 %\""));
  CHECK_THAT(html, ContainsSubstring("title=\"you looks at &lt;script&gt;: 12.5 %\""));
  CHECK_THAT(html, ContainsSubstring("title=\"you looks at itself: 87.5 %\""));
  CHECK_THAT(html, ContainsSubstring("A note &amp; more."));
  CHECK_THAT(html, ContainsSubstring("Somewhere"));
  CHECK_THAT(html, ContainsSubstring("38 % to earlier words") ||
                       ContainsSubstring("25 % to earlier words"));
  // Head 2: earlier (0 + 12.5) / 2 = 6 %, itself (100 + 87.5) / 2 = 94 %, later 0 %.
  CHECK_THAT(
      html, ContainsSubstring("6 % to earlier words, 94 % to the word itself, 0 % to later words"));
  CHECK(html.find("<script>x") == std::string::npos);
  CHECK(html.find("://") == std::string::npos);
  CHECK(html.find("src=") == std::string::npos);
  CHECK(examples::strongest_link(first, 0).to == 1);
  CHECK(examples::strongest_link(first, 0, 2).to == -1);

  SECTION("one word alone has no links") {
    const std::string single =
        examples::attention_page({"Go", {"Go"}, {Matrix<float>::Ones(1, 1)}, {}, ""});
    CHECK_THAT(single, ContainsSubstring("Go looks at itself: 100.0 %"));
    CHECK(single.find("nan") == std::string::npos);
  }
}

TEST_CASE("ROUGE-1 counts a word as often as both texts have it", "[examples][texts]") {
  // "the cat the" and "The cat, the dog." share the twice and cat once: 2 * 3 / (3 + 4).
  CHECK_THAT(examples::rouge_1("the cat the", "The cat, the dog."), WithinAbs(6.0 / 7, 1e-12));
  CHECK_THAT(examples::rouge_1("the the the", "the cat"), WithinAbs(2.0 / 5, 1e-12));
  CHECK(examples::rouge_1("A b.", "b A!") == 1);
  CHECK(examples::rouge_1("a", "b") == 0);
  CHECK(examples::rouge_1("", "") == 0);
}

TEST_CASE("TF-IDF gives rare words more, and length 1", "[examples][texts]") {
  // "a" is in both texts: log(3/3) + 1 = 1. "b" and "c" in one: log(3/2) + 1 = 1.405465.
  const examples::TfIdf weigh({"a b", "a c"});
  const RowVector<float> v = weigh("A b d");
  REQUIRE(v.size() == 3);
  CHECK_THAT(v(1) / v(0), WithinAbs(1.405465, 1e-5));
  CHECK(v(2) == 0);
  CHECK_THAT(v.norm(), WithinAbs(1.0, 1e-6));
  CHECK(weigh("d").isZero());
}

TEST_CASE("a table of texts has as many columns in every line", "[examples][texts]") {
  const std::string path = "test_examples_common_texts.tsv";
  std::ofstream(path, std::ios::binary) << "a b\tc\nd\te\n";
  const std::vector<std::vector<std::string>> expected{{"a b", "c"}, {"d", "e"}};
  CHECK(examples::read_tsv(path, 2) == expected);
  CHECK_THROWS_WITH(examples::read_tsv(path, 3), ContainsSubstring("line 1: expected 3 texts"));
  std::ofstream(path, std::ios::binary) << "a\tb\nc\t\n";
  CHECK_THROWS_WITH(examples::read_tsv(path, 2), ContainsSubstring("line 2: expected 2 texts"));
  std::remove(path.c_str());
  CHECK_THROWS_WITH(examples::read_tsv(path, 2), ContainsSubstring("cannot be opened"));
}

TEST_CASE("the encoder programs' arguments are two files and known options", "[examples]") {
  examples::EncoderOptions options;
  CHECK(examples::parse_options({"w", "--seed", "7", "v", "--short", "--picture", "p"}, options));
  CHECK(options.weights == "w");
  CHECK(options.vocabulary == "v");
  CHECK(options.seed == 7);
  CHECK(options.brief);
  CHECK(options.picture == "p");
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{},
                                             {"w"},
                                             {"w", "v", "x"},
                                             {"w", "v", "--seed"},
                                             {"w", "v", "--seed", "7x"},
                                             {"w", "v", "--seed", "-1"},
                                             {"w", "v", "--long"}}) {
    examples::EncoderOptions unused;
    CHECK(!examples::parse_options(wrong, unused));
  }
}

TEST_CASE("a shaded text keeps its words and cannot become markup", "[examples][html]") {
  const std::string html =
      examples::shaded_page("A & b", "How.", {{"One", {{"<i>", 1}, {"x", 0, true}}, "Note"}});
  CHECK_THAT(html, ContainsSubstring("A &amp; b"));
  CHECK_THAT(html, ContainsSubstring("<span class=\"s24\" title=\"100.0 %\">&lt;i&gt;</span>"));
  CHECK_THAT(html, ContainsSubstring("<span class=\"s0 from\" title=\"0.0 %\">x</span>"));
}
