// SPDX-License-Identifier: MIT
//
// What the translation example learns from.
#include <common/text_pairs.hpp>
#include <set>

#include "support/catch.hpp"

TEST_CASE("a date has ten spellings", "[text_pairs]") {
  using std::chrono::year;
  const auto date = year(2021) / 3 / 3;  // a Wednesday
  const std::vector<std::string> expected{"3 March 2021",
                                          "March 3rd, 2021",
                                          "03/03/21",
                                          "Wed 3 Mar 2021",
                                          "Wednesday, March 3, 2021",
                                          "3.3.2021",
                                          "the 3rd of March 2021",
                                          "Mar 3 '21",
                                          "2021 Mar 03",
                                          "3-Mar-21"};
  REQUIRE(expected.size() == examples::kSpellings);
  for (int n = 0; n < examples::kSpellings; ++n) {
    CHECK(examples::spelled_date(date, n) == expected[static_cast<std::size_t>(n)]);
  }
  CHECK(examples::iso_date(date) == "2021-03-03");
  CHECK(examples::spelled_date(year(1999) / 12 / 31, 3) == "Fri 31 Dec 1999");
  const std::vector<std::string> ordinals{"1st", "2nd", "4th", "11th", "12th", "13th", "22nd"};
  for (const std::string& ordinal : ordinals) {
    const auto day = static_cast<unsigned>(std::stoi(ordinal));
    CHECK(examples::spelled_date(year(2000) / 1 / std::chrono::day(static_cast<unsigned>(day)),
                                 1) == "January " + ordinal + ", 2000");
  }
}

TEST_CASE("no date is both learned and tested", "[text_pairs]") {
  std::mt19937 random(1);
  const examples::Task task = examples::dates_task(random);
  CHECK(task.train.size() == 12000);
  CHECK(task.test.size() == 2000);
  std::set<std::string> days;
  for (const auto* pairs : {&task.train, &task.held_out, &task.test}) {
    for (const examples::Pair& pair : *pairs) days.insert(task.target_text(pair.target));
  }
  CHECK(days.size() == task.train.size() + task.held_out.size() + task.test.size());
}

TEST_CASE("edits are counted as few as possible", "[text_pairs]") {
  CHECK(examples::edits({1, 2, 3}, {1, 2, 3}) == 0);
  CHECK(examples::edits({1, 2, 3}, {2, 3}) == 1);
  CHECK(examples::edits({2, 3}, {2, 4, 3, 5}) == 2);
  CHECK(examples::edits({}, {7, 7}) == 2);
}

TEST_CASE("a ragged batch numbers the places of each text from 0", "[text_pairs]") {
  examples::Ragged batch;
  batch.add({5, 6}, false);
  batch.add({7}, true);
  CHECK(batch.symbols == examples::Symbols{5, 6, 0, 7});
  CHECK(batch.places == std::vector<int>{0, 1, 0, 1});
  CHECK(batch.lengths == std::vector<mha::Index>{2, 2});
}
