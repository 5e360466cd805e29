// SPDX-License-Identifier: MIT
//
// What a safetensors file says about itself: 8 bytes little-endian length, then a JSON object
//     {"__metadata__": {"key": "text"},
//      "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
// padded with spaces, then the data. Files come from anywhere, so this is read as if it were an
// attack: every number is checked before it is used. Internal to mha/io/safetensors.hpp.
// Source: https://github.com/huggingface/safetensors, README section "Format".
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/internal/support/error.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mha::inline MHA_ABI::io {

/// Element type of a tensor in the file ("F64" … "U8", "BOOL"). 8-bit floats are not supported.
enum class DType { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

namespace detail {

struct DTypeRow {
  const char* name;
  std::uint64_t size;
};
inline constexpr DTypeRow kDTypes[] = {  // in the order of DType
    {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2},
    {"I8", 1},  {"U64", 8}, {"U32", 4}, {"U16", 2},  {"U8", 1},  {"BOOL", 1}};
constexpr const DTypeRow& row(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)]; }
constexpr bool is_known(DType dtype) {
  return static_cast<std::size_t>(dtype) < std::size(kDTypes);
}

// These two bound what a hostile header can cost: memory of a few times the file's size.
inline constexpr std::uint64_t kMaxHeader = 100'000'000;  // as in the reference implementation
inline constexpr std::size_t kMaxRank = 64;               // as in PyTorch and NumPy
inline constexpr std::uint64_t kMaxIndex = std::numeric_limits<Eigen::Index>::max();

/// A text from a file, safe to print: quoted, escaped to ASCII, cut if long.
inline std::string printable(const std::string& text, std::size_t longest = 60) {
  const auto replace = nlohmann::json::error_handler_t::replace;
  return nlohmann::json(text.substr(0, longest)).dump(-1, ' ', true, replace) +
         (text.size() > longest ? "..." : "");
}

inline std::string shape_text(const std::vector<Eigen::Index>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size() && i < 8; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + (shape.size() > 8 ? ", ...]" : "]");
}

/// Product of the dimensions, or nothing if one is negative or the product exceeds an Index.
inline std::optional<std::uint64_t> element_count(const std::vector<Eigen::Index>& shape) {
  std::uint64_t count = 1;
  for (const Eigen::Index dim : shape) {
    if (dim < 0) return std::nullopt;
    const auto factor = static_cast<std::uint64_t>(dim);
    if (factor != 0 && count > kMaxIndex / factor) return std::nullopt;
    count *= factor;
  }
  return count;
}

[[noreturn]] inline void fail_at(const std::string& where, std::uint64_t byte,
                                 const std::string& problem) {
  mha::detail::fail<std::runtime_error>(where + "byte " + std::to_string(byte) + ": " + problem);
}

/// Length of the JSON, from the first bytes (at least 9 if there are so many) of a whole file.
inline std::size_t header_length(std::span<const std::byte> bytes, std::uint64_t file_size,
                                 const std::string& where) {
  if (file_size < 10)
    fail_at(where, 0,
            "expected at least 10 bytes (the shortest header), got " + std::to_string(file_size));
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const std::uint64_t most = std::min(file_size - 8, kMaxHeader);
  if (length < 2 || length > most)
    fail_at(where, 0,
            "expected a header length from 2 to " + std::to_string(most) + ", got " +
                std::to_string(length));
  if (bytes[8] != std::byte{'{'})
    fail_at(where, 8,
            "expected '{', got byte value " + std::to_string(std::to_integer<int>(bytes[8])));
  return static_cast<std::size_t>(length);
}

/// Input iterator over the JSON that publishes how far the parser has read.
struct TrackedChar {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** furthest;
  const char& operator*() const { return *at; }
  TrackedChar& operator++() {
    *furthest = ++at;
    return *this;
  }
  bool operator==(const TrackedChar& other) const { return at == other.at; }
};

/// Receives the JSON parser's events and accepts what a header may hold, nothing else: no JSON tree
/// is built, deep nesting costs no stack, and memory stays within about ten times the header's.
/// An error names the byte just behind the key (tensor name, "shape", …) whose value is wrong.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct Entry {
    DType dtype = DType::f64;
    std::vector<Eigen::Index> shape;
    std::vector<std::uint64_t> offsets;  // begin and end, counted from the first byte of data
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Entry> tensors;

  /// Reads all of `header`; what it finds is in `metadata` and `tensors` then.
  HeaderReader(std::span<const std::byte> header, std::uint64_t data_size, const std::string& where)
      : begin_(reinterpret_cast<const char*>(header.data())), data_size_(data_size), where_(where) {
    const auto zero = std::find(header.begin(), header.end(), std::byte{0});
    if (zero != header.end())  // nlohmann/json would take it for the end
      fail_at(where_, 8 + static_cast<std::uint64_t>(zero - header.begin()),
              "expected a JSON header, got a zero byte");
    const TrackedChar begin{begin_, &read_}, end{begin_ + header.size(), &read_};
    nlohmann::json_sax<nlohmann::json>* events = this;
    nlohmann::json::sax_parse(begin, end, events);
    check_coverage(8 + header.size());
  }

 private:
  enum Level { kFile, kNames, kFields, kNumbers };  // how deep in the JSON

  bool in_metadata() const { return name_ == "__metadata__"; }

  bool key(std::string& text) override {
    key_at_ = 8 + static_cast<std::uint64_t>(read_ - begin_);
    const bool in_fields = level_ == kFields;
    (in_fields ? field_ : name_) = text;
    const bool again = !in_fields ? tensors.count(text) != 0 || (in_metadata() && has_metadata_)
                       : in_metadata() ? metadata.count(text) != 0
                                       : !fields_.insert(text).second;
    if (again) fail("expected each key once, got it again");
    return true;
  }
  bool start_object(std::size_t) override {
    if (level_ != kFile && level_ != kNames) unexpected("an object");
    if (level_ == kNames && !in_metadata()) entry_ = &tensors[name_];
    if (level_ == kNames && in_metadata()) has_metadata_ = true;
    level_ = level_ == kFile ? kNames : kFields;
    fields_.clear();
    name_at_ = key_at_;
    return true;
  }
  bool end_object() override {
    if (level_ == kFields && !in_metadata()) check_tensor();
    level_ = level_ == kFields ? kNames : kFile;
    return true;
  }
  bool string(std::string& text) override {
    if (level_ != kFields || (!in_metadata() && field_ != "dtype")) unexpected("a string");
    if (in_metadata()) return metadata.emplace(field_, text).second;
    const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                     [&](const DTypeRow& known) { return text == known.name; });
    if (found == std::end(kDTypes)) unexpected(printable(text));
    entry_->dtype = static_cast<DType>(found - kDTypes);
    return true;
  }
  bool start_array(std::size_t) override {
    if (level_ != kFields || in_metadata() || (field_ != "shape" && field_ != "data_offsets"))
      unexpected("an array");
    level_ = kNumbers;
    return true;
  }
  bool end_array() override {
    level_ = kFields;
    if (field_ == "data_offsets" && entry_->offsets.size() != 2)
      unexpected(std::to_string(entry_->offsets.size()));
    return true;
  }
  bool number_unsigned(std::uint64_t value) override {
    const bool is_shape = field_ == "shape";
    if (level_ != kNumbers || (is_shape && value > kMaxIndex)) unexpected(std::to_string(value));
    if (is_shape && entry_->shape.size() == kMaxRank) unexpected("more");
    if (!is_shape && entry_->offsets.size() == 2) unexpected("more");
    if (is_shape)
      entry_->shape.push_back(static_cast<Eigen::Index>(value));
    else
      entry_->offsets.push_back(value);
    return true;
  }
  bool number_integer(std::int64_t value) override { unexpected(std::to_string(value)); }
  bool number_float(double, const std::string& text) override { unexpected(text.substr(0, 60)); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool null() override { unexpected("null"); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary data"); }
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::json::exception& error) override {
    const std::string what = error.what();  // "[id] parse error at line 1, column 7: the reason"
    const std::size_t colon = what.find(": ");
    fail_at(where_, 8 + std::max<std::size_t>(at, 1) - 1,
            "expected a JSON header, got " +
                printable(what.substr(colon == what.npos ? 0 : colon + 2), 200));
  }

  [[noreturn]] void fail(const std::string& problem) const {
    const std::string field = level_ >= kFields ? printable(field_) + ": " : "";
    fail_at(where_, key_at_, printable(name_) + ": " + field + problem);
  }
  [[noreturn]] void unexpected(const std::string& got) const {
    std::string what = "no field but dtype, shape and data_offsets";
    if (field_ == "dtype")
      what = "F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8 or BOOL";
    if (field_ == "shape")
      what = "an array of at most 64 integers from 0 to " + std::to_string(kMaxIndex);
    if (field_ == "data_offsets") what = "an array of 2 integers >= 0";
    if (in_metadata()) what = "a string";
    if (level_ == kNames) what = "an object";
    fail("expected " + what + ", got " + got);
  }

  /// One tensor's fields are complete: do they agree with each other and with the file's size?
  void check_tensor() const {
    const auto require = [&](bool ok, const std::string& expected, const std::string& got) {
      if (!ok)
        fail_at(where_, name_at_, printable(name_) + ": expected " + expected + ", got " + got);
    };
    for (const char* field : {"dtype", "shape", "data_offsets"})
      require(fields_.count(field) == 1, std::string("the field ") + field, "none");
    const std::uint64_t begin = entry_->offsets[0], end = entry_->offsets[1];
    std::string offsets = "[";
    offsets += std::to_string(begin) + ", " + std::to_string(end) + "]";
    require(
        begin <= end && end <= data_size_,
        "ascending data_offsets within the file's " + std::to_string(data_size_) + " bytes of data",
        offsets);
    const DTypeRow& dtype = row(entry_->dtype);
    const std::optional<std::uint64_t> count = element_count(entry_->shape);
    require(count && *count <= data_size_ / dtype.size && end - begin == *count * dtype.size,
            std::string("data_offsets as far apart as ") + dtype.name + " of shape " +
                shape_text(entry_->shape) + " is long",
            offsets);
  }

  /// The tensors must tile the data: no hole, no overlap, no byte left over.
  void check_coverage(std::uint64_t data_at) const {
    std::vector<std::pair<const std::vector<std::uint64_t>*, const std::string*>> order;
    for (const auto& [name, entry] : tensors) order.emplace_back(&entry.offsets, &name);
    std::sort(order.begin(), order.end(),
              [](const auto& a, const auto& b) { return *a.first < *b.first; });
    std::uint64_t end = 0;
    for (const auto& [offsets, name] : order) {
      const std::uint64_t begin = offsets->front();
      if (begin != end)
        fail_at(where_, data_at + begin,
                printable(*name) + ": expected data_offsets from " + std::to_string(end) +
                    " (no hole, no overlap), got " + std::to_string(begin));
      end = offsets->back();
    }
    if (end != data_size_)
      fail_at(
          where_, data_at + end,
          "expected the end of the file, got " + std::to_string(data_size_ - end) + " more bytes");
  }

  const char* begin_;
  const char* read_ = begin_;
  std::uint64_t data_size_, key_at_ = 8, name_at_ = 8;
  const std::string& where_;
  Level level_ = kFile;
  bool has_metadata_ = false;
  std::string name_, field_;
  std::set<std::string> fields_;  // of the tensor being read, so far
  Entry* entry_ = nullptr;
};

}  // namespace detail
}  // namespace mha::io
