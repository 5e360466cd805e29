// SPDX-License-Identifier: MIT
//
// Dates as people write them, beside ISO 8601: the 36,525 days of 1950 to 2049, so that two digits
// name a year, in ten spellings. Where all is numbers the day comes first.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

namespace examples {

inline constexpr int kSpellings = 10;

inline std::string two_digits(unsigned n) {
  return {static_cast<char>('0' + n / 10 % 10), static_cast<char>('0' + n % 10)};
}

/// 2021-03-03
inline std::string iso_date(std::chrono::year_month_day date) {
  return std::to_string(static_cast<int>(date.year())) + '-' +
         two_digits(static_cast<unsigned>(date.month())) + '-' +
         two_digits(static_cast<unsigned>(date.day()));
}

/// The date in one of kSpellings spellings, numbered from 0.
inline std::string spelled_date(std::chrono::year_month_day date, int spelling) {
  static constexpr std::array<const char*, 12> kMonths{
      "January", "February", "March",     "April",   "May",      "June",
      "July",    "August",   "September", "October", "November", "December"};
  static constexpr std::array<const char*, 7> kWeekdays{
      "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
  const auto day_number = static_cast<unsigned>(date.day());
  const auto month_number = static_cast<unsigned>(date.month());
  const std::string day = std::to_string(day_number);
  const std::string year = std::to_string(static_cast<int>(date.year()));
  const std::string short_year = year.substr(2);
  const std::string month = kMonths[month_number - 1];
  const std::string short_month = month.substr(0, 3);
  const std::string weekday =
      kWeekdays[std::chrono::weekday(std::chrono::sys_days(date)).c_encoding()];
  const bool teen = day_number / 10 == 1;  // 11th, 12th, 13th
  const std::string ordinal = day + (teen                   ? "th"
                                     : day_number % 10 == 1 ? "st"
                                     : day_number % 10 == 2 ? "nd"
                                     : day_number % 10 == 3 ? "rd"
                                                            : "th");
  switch (spelling) {
    case 0:
      return day + ' ' + month + ' ' + year;  // 3 March 2021
    case 1:
      return month + ' ' + ordinal + ", " + year;  // March 3rd, 2021
    case 2:
      return two_digits(day_number) + '/' + two_digits(month_number) + '/' +
             short_year;  // 03/03/21
    case 3:
      return weekday.substr(0, 3) + ' ' + day + ' ' + short_month + ' ' + year;  // Wed 3 Mar 2021
    case 4:
      return weekday + ", " + month + ' ' + day + ", " + year;  // Wednesday, March 3, 2021
    case 5:
      return day + '.' + std::to_string(month_number) + '.' + year;  // 3.3.2021
    case 6:
      return "the " + ordinal + " of " + month + ' ' + year;  // the 3rd of March 2021
    case 7:
      return short_month + ' ' + day + " '" + short_year;  // Mar 3 '21
    case 8:
      return year + ' ' + short_month + ' ' + two_digits(day_number);  // 2021 Mar 03
    default:
      return day + '-' + short_month + '-' + short_year;  // 3-Mar-21
  }
}

struct DatePair {
  std::string spelled;
  std::string iso;
};

/// `count` different days in random order, each in one random spelling.
inline std::vector<DatePair> random_dates(std::size_t count, std::mt19937& random) {
  using std::chrono::sys_days;
  const sys_days first = std::chrono::year(1950) / 1 / 1;
  const sys_days last = std::chrono::year(2050) / 1 / 1;
  std::vector<sys_days> days;
  for (sys_days day = first; day < last; day += std::chrono::days(1)) days.push_back(day);
  std::vector<DatePair> dates;
  for (std::size_t k = 0; k < std::min(count, days.size()); ++k) {
    std::swap(days[k], days[k + random() % (days.size() - k)]);
    const std::chrono::year_month_day date(days[k]);
    dates.push_back({spelled_date(date, static_cast<int>(random() % kSpellings)), iso_date(date)});
  }
  return dates;
}

}  // namespace examples
