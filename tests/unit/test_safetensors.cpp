// SPDX-License-Identifier: MIT
//
// mha/io/safetensors.hpp: golden bytes made by hand, round trips, and every way in which a file can
// be damaged that we could think of.
#include <mha/io/safetensors.hpp>

#include <unsupported/Eigen/AutoDiff>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using mha::io::DType;
using mha::io::Safetensors;
using mha::io::SafetensorsWriter;
using mha::test::ContainsSubstring;
using Bytes = std::vector<std::byte>;
namespace fs = std::filesystem;

Bytes to_bytes(const std::string& text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

/// Length, header, data: a file made without the writer.
Bytes make_file(const std::string& header, const std::string& data = "") {
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i)
    length[i] = static_cast<char>(static_cast<unsigned char>((header.size() >> (8 * i)) & 0xff));
  return to_bytes(length + header + data);
}

/// The message of the std::runtime_error that `action` throws, "" if none; others fail the test.
std::string failure(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}
std::string parse_failure(const Bytes& bytes) {
  return failure([&] { (void)Safetensors::parse(bytes, "x.st"); });
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

/// A new folder under the system's temporary one, removed at the end.
class Folder {
 public:
  Folder() {
    const fs::path base = fs::temp_directory_path();
    int n = 0;
    while (!fs::create_directory(path_ = base / ("mha_safetensors_" + std::to_string(n)))) ++n;
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::ptrdiff_t count() const {
    return std::distance(fs::directory_iterator(path_), fs::directory_iterator());
  }

 private:
  fs::path path_;
};

void store(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
}
Bytes load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return to_bytes(std::string(std::istreambuf_iterator<char>(file), {}));
}

// 1.0f = 0x3f800000 and -2.5f = 0xc0200000; half 1.5 = 0x3e00; -2 as int64 is fe and seven ff.
// The header has 193 bytes and 7 of padding, so the data begin at byte 208.
const std::string kGoldenHeader = R"({"__metadata__":{"op":"test"},)"
                                  R"("h":{"data_offsets":[16,18],"dtype":"F16","shape":[]},)"
                                  R"("i":{"data_offsets":[0,8],"dtype":"I64","shape":[1]},)"
                                  R"("x":{"data_offsets":[8,16],"dtype":"F32","shape":[1,2]}})";
Bytes golden_file() {
  const unsigned char data[] = {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  // i
                                0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x20, 0xc0,  // x
                                0x00, 0x3e};                                     // h
  std::string header = kGoldenHeader;
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return make_file(header, std::string(std::begin(data), std::end(data)));
}

// The smallest file that has every kind of field; each damaged form below starts from it.
const std::string kSmallHeader =
    R"({"__metadata__":{"k":"v"},"a":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}})";

}  // namespace

TEST_CASE("a file written byte by byte reads as what it says", "[safetensors]") {
  const Safetensors file = Safetensors::parse(golden_file(), "golden");
  CHECK(file.path() == "golden");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"op", "test"}});
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.contains("x"));
  CHECK_FALSE(file.contains("__metadata__"));

  CHECK(file.tensor("x").dtype == DType::f32);
  CHECK(file.tensor("x").shape == std::vector<Eigen::Index>{1, 2});
  CHECK(file.tensor("x").size() == 2);
  CHECK(file.tensor("x").bytes.size() == 8);
  const Eigen::MatrixXf x = file.matrix<float>("x");
  REQUIRE((x.rows() == 1 && x.cols() == 2));
  CHECK((x(0, 0) == 1.0f && x(0, 1) == -2.5f));

  CHECK(file.tensor("h").shape.empty());
  CHECK(file.tensor("h").size() == 1);
  CHECK(file.matrix<double>("h")(0, 0) == 1.5);
  CHECK(file.values<std::int64_t>("i") == std::vector<std::int64_t>{-2});
}

TEST_CASE("the writer makes exactly the file written byte by byte", "[safetensors]") {
  SafetensorsWriter writer;
  writer.add("x", Eigen::RowVector2f(1.0f, -2.5f));
  writer.add("h", Eigen::Matrix<Eigen::half, 1, 1>(Eigen::half(1.5f)), {});
  writer.metadata("op", "overwritten below");
  writer.metadata("op", "test");
  writer.add("i", std::vector<Eigen::Index>{1}, DType::i64,
             bytes_of(std::vector<std::int64_t>{-2}));
  CHECK(writer.bytes() == golden_file());
}

TEST_CASE("a writer takes all that another holds", "[safetensors]") {
  SafetensorsWriter a;
  SafetensorsWriter b;
  SafetensorsWriter both;
  const Eigen::Vector2f two(1, 2.5f);
  for (SafetensorsWriter* writer : {&a, &both}) writer->add("x", two);
  for (SafetensorsWriter* writer : {&b, &both}) writer->add("y", two, DType::f16);
  a.metadata("who", "a");
  a.metadata("kept", "yes");
  b.metadata("who", "b");
  both.metadata("who", "b");
  both.metadata("kept", "yes");
  a.add(b);
  CHECK(a.bytes() == both.bytes());
}

TEST_CASE("the order of adding does not change the bytes", "[safetensors]") {
  const Eigen::Matrix2d a = Eigen::Matrix2d::Random();
  const Eigen::Vector3f b(1, 2, 3);
  SafetensorsWriter forth, back;
  forth.metadata("p", "1");
  forth.metadata("q", "2");
  forth.add("a", a);
  forth.add("b", b);
  back.add("b", b);
  back.add("a", a);
  back.metadata("q", "2");
  back.metadata("p", "1");
  CHECK(forth.bytes() == back.bytes());
}

TEST_CASE("the data begin at a multiple of eight and every tensor is aligned", "[safetensors]") {
  for (std::size_t n = 1; n < 20; ++n) {  // names of growing length move the end of the header
    SafetensorsWriter writer;
    writer.add(std::string(n, 'a'), Eigen::Matrix<std::uint8_t, 3, 1>(1, 2, 3));
    writer.add(std::string(n, 'b'), Eigen::Vector3d(1, 2, 3));
    writer.add(std::string(n, 'c'), Eigen::Vector3f(1, 2, 3), DType::bf16);
    writer.add(std::string(n, 'd'), Eigen::Vector3f(1, 2, 3));
    const Bytes bytes = writer.bytes();
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    CHECK(length % 8 == 0);
    CHECK(bytes[8] == std::byte{'{'});
    const Safetensors file = Safetensors::parse(bytes);
    const std::byte* begin = file.tensor(std::string(n, 'b')).bytes.data();  // widest, so first
    for (const auto& [name, info] : file.tensors())
      CHECK((info.bytes.data() - begin) % static_cast<int>(info.bytes.size() / 3) == 0);
  }
}

TEST_CASE("elements of every dtype come back bit for bit", "[safetensors]") {
  SafetensorsWriter writer;
  std::map<std::string, Bytes> stored;
  const auto check = [&]<class T>(const std::vector<T>& values, DType dtype) {
    const auto n = static_cast<Eigen::Index>(values.size());
    const Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>> vector(values.data(), n);
    SafetensorsWriter from_eigen, from_bytes;
    from_eigen.add("t", vector);
    from_bytes.add("t", {n}, dtype, bytes_of(values));
    CHECK(from_eigen.bytes() == from_bytes.bytes());  // so the dtype of a Scalar is the right one
    const Safetensors file = Safetensors::parse(from_eigen.bytes());
    CHECK(file.tensor("t").dtype == dtype);
    const std::vector<T> read = file.values<T>("t");
    REQUIRE(read.size() == values.size());
    CHECK(std::memcmp(read.data(), values.data(), values.size() * sizeof(T)) == 0);
    CHECK(std::memcmp(file.vector<T>("t").data(), values.data(), values.size() * sizeof(T)) == 0);
  };
  const auto extremes = [&]<class T>(T ones, DType dtype) {
    std::memset(static_cast<void*>(&ones), 0xff, sizeof ones);  // a NaN or an integer
    using Limits = std::numeric_limits<T>;
    check(std::vector<T>{T(0), T(1), Limits::lowest(), Limits::max(), Limits::min(), ones}, dtype);
  };
  extremes(double{}, DType::f64);
  extremes(float{}, DType::f32);
  extremes(Eigen::half{}, DType::f16);
  extremes(Eigen::bfloat16{}, DType::bf16);
  extremes(std::int64_t{}, DType::i64);
  extremes(std::int32_t{}, DType::i32);
  extremes(std::int16_t{}, DType::i16);
  extremes(std::int8_t{}, DType::i8);
  extremes(std::uint64_t{}, DType::u64);
  extremes(std::uint32_t{}, DType::u32);
  extremes(std::uint16_t{}, DType::u16);
  extremes(std::uint8_t{}, DType::u8);
  extremes(0LL, DType::i64);
  extremes(0ULL, DType::u64);
}

TEST_CASE("booleans come back, and any byte but zero is true", "[safetensors]") {
  SafetensorsWriter writer;
  writer.add("t", Eigen::Matrix<bool, 1, 3>(true, false, true), {3});
  CHECK(Safetensors::parse(writer.bytes()).values<bool>("t") == std::vector<bool>{1, 0, 1});

  const Bytes odd = make_file(R"({"t":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})",
                              std::string("\x02\x00\xff", 3));
  const Safetensors file = Safetensors::parse(odd);
  CHECK(file.values<bool>("t") == std::vector<bool>{1, 0, 1});
  CHECK(file.vector<bool>("t")(2));
  CHECK(file.values<float>("t") == std::vector<float>{1, 0, 1});
  CHECK(file.values<int>("t") == std::vector<int>{1, 0, 1});
}

TEST_CASE("matrices of either storage order and expressions are stored row by row",
          "[safetensors]") {
  Eigen::Matrix<float, 2, 3, Eigen::ColMajor> column_major;
  column_major << 1, 2, 3, 4, 5, 6;
  const Eigen::Matrix<float, 2, 3, Eigen::RowMajor> row_major = column_major;
  SafetensorsWriter writer;
  writer.add("column_major", column_major);
  writer.add("row_major", row_major);
  writer.add("transposed", column_major.transpose());
  writer.add("block", column_major.array().rightCols<2>() * 2);
  writer.add("column", column_major.col(1));
  writer.add("row", column_major.row(1));
  writer.add("cube", column_major, {3, 1, 2});
  const Safetensors file = Safetensors::parse(writer.bytes());
  using Values = std::vector<float>;
  using Shape = std::vector<Eigen::Index>;
  CHECK(file.values<float>("column_major") == Values{1, 2, 3, 4, 5, 6});
  CHECK(file.values<float>("row_major") == Values{1, 2, 3, 4, 5, 6});
  CHECK(file.values<float>("transposed") == Values{1, 4, 2, 5, 3, 6});
  CHECK(file.values<float>("block") == Values{4, 6, 10, 12});
  CHECK(file.values<float>("cube") == Values{1, 2, 3, 4, 5, 6});
  CHECK(file.tensor("transposed").shape == Shape{3, 2});
  CHECK(file.tensor("column").shape == Shape{2});
  CHECK(file.tensor("row").shape == Shape{1, 3});
  CHECK(file.tensor("cube").shape == Shape{3, 1, 2});
  CHECK(file.matrix<float>("transposed") == column_major.transpose());
}

TEST_CASE("a matrix has the tensor's shape, one row for rank 0 and 1", "[safetensors]") {
  const Eigen::VectorXf six = Eigen::VectorXf::LinSpaced(6, 1, 6);
  SafetensorsWriter writer;
  writer.add("rank0", six.head<1>(), {});
  writer.add("rank1", six);
  writer.add("rank2", six, {2, 3});
  writer.add("rank3", six, {1, 2, 3});
  const Safetensors file = Safetensors::parse(writer.bytes(), "ranks.st");
  CHECK(file.matrix<float>("rank0") == Eigen::MatrixXf::Ones(1, 1));
  CHECK(file.matrix<float>("rank1") == six.transpose());
  const Eigen::MatrixXf rank2 = file.matrix<float>("rank2");
  REQUIRE((rank2.rows() == 2 && rank2.cols() == 3));
  CHECK((rank2(0, 2) == 3 && rank2(1, 0) == 4));
  CHECK(file.vector<float>("rank3") == six);
  CHECK_THAT(failure([&] { (void)file.matrix<float>("rank3"); }),
             ContainsSubstring("ranks.st: byte ") &&
                 ContainsSubstring("\"rank3\": expected rank 0, 1 or 2, got shape [1, 2, 3]"));
}

TEST_CASE("tensors without elements are kept with their shapes", "[safetensors]") {
  SafetensorsWriter writer;
  writer.add("none", Eigen::MatrixXf(0, 3));
  writer.add("thin", Eigen::MatrixXd(5, 0));
  writer.add("vector", Eigen::VectorXi(0));
  writer.add("some", Eigen::Vector2f(1, 2));
  const Safetensors file = Safetensors::parse(writer.bytes());
  CHECK(file.tensor("none").size() == 0);
  CHECK((file.matrix<float>("none").rows() == 0 && file.matrix<float>("none").cols() == 3));
  CHECK((file.matrix<float>("thin").rows() == 5 && file.matrix<float>("thin").cols() == 0));
  CHECK(file.values<int>("vector").empty());
  CHECK(file.values<bool>("vector").empty());
  CHECK(Safetensors::parse(SafetensorsWriter().bytes()).tensors().empty());
}

TEST_CASE("values convert from any dtype to any floating type", "[safetensors]") {
  SafetensorsWriter writer;
  const Eigen::Vector3d values(1, 0, 3);
  const DType dtypes[] = {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32,
                          DType::i16, DType::i8,  DType::u64, DType::u32,  DType::u16, DType::u8};
  for (const DType dtype : dtypes) writer.add(std::to_string(int(dtype)), values, dtype);
  const Safetensors file = Safetensors::parse(writer.bytes());
  for (const DType dtype : dtypes) {
    const std::string name = std::to_string(int(dtype));
    CAPTURE(name);
    CHECK(file.tensor(name).dtype == dtype);
    CHECK(file.vector<double>(name) == values);
    CHECK(file.vector<float>(name) == values.cast<float>());
    CHECK(file.vector<long double>(name) == values.cast<long double>());
    CHECK(file.vector<Eigen::half>(name) == values.cast<Eigen::half>());
    CHECK(file.vector<Eigen::bfloat16>(name) == values.cast<Eigen::bfloat16>());
    CHECK(file.vector<int>(name) == values.cast<int>());
    CHECK(file.values<std::uint8_t>(name) == std::vector<std::uint8_t>{1, 0, 3});
    CHECK(file.vector<Eigen::AutoDiffScalar<Eigen::Vector2d>>(name)(2).value() == 3);
  }
}

TEST_CASE("narrower floating dtypes round to nearest", "[safetensors]") {
  // half has 11 significant bits: 1 + 2^-11 is a tie and goes to even (1), 1 + 3 * 2^-11 up
  SafetensorsWriter writer;
  writer.add("f16", Eigen::Vector3f(1 + 0x1p-11f, 1 + 0x3p-11f, 1e6f), DType::f16);
  writer.add("bf16", Eigen::Vector2f(1 + 0x1p-8f, 1 + 0x3p-8f), DType::bf16);
  const Safetensors file = Safetensors::parse(writer.bytes());
  CHECK(file.values<float>("f16").at(0) == 1);
  CHECK(file.values<float>("f16").at(1) == 1 + 0x2p-10f);
  CHECK(file.tensor("f16").bytes[5] == std::byte{0x7c});  // 0x7c00: 1e6 overflows to infinity
  CHECK(file.values<float>("bf16") == std::vector<float>{1, 1 + 0x2p-7f});
}

TEST_CASE("an integer type takes only what it holds exactly", "[safetensors]") {
  const auto read = [](double value, auto as) {
    SafetensorsWriter writer;
    writer.add("t", Eigen::Vector2d(0, value), DType::f64);
    const Safetensors file = Safetensors::parse(writer.bytes(), "t.st");
    return failure([&] { (void)file.values<decltype(as)>("t"); });
  };
  CHECK(read(-128, std::int8_t{}) == "");
  CHECK(read(255, std::uint8_t{}) == "");
  CHECK(read(-0x1p63, std::int64_t{}) == "");
  CHECK(read(0x1.fffffffffffffp63, std::uint64_t{}) == "");
  CHECK(read(1, bool{}) == "");
  const auto refused = ContainsSubstring("\"t\": expected a value that the integer type holds");
  CHECK_THAT(read(1.5, int{}), refused && ContainsSubstring("got 1.5"));
  CHECK_THAT(read(-129, std::int8_t{}), refused);
  CHECK_THAT(read(256, std::uint8_t{}), refused);
  CHECK_THAT(read(-1, std::uint64_t{}), refused);
  CHECK_THAT(read(0x1p63, std::int64_t{}), refused);
  CHECK_THAT(read(0x1p64, std::uint64_t{}), refused);
  CHECK_THAT(read(2, bool{}), refused);

  constexpr std::uint64_t kInfinity = 0x7ff0000000000000, kNaN = 0x7ff8000000000000;
  constexpr std::uint64_t kSign = 0x8000000000000000;
  for (const std::uint64_t bits : {kInfinity, kNaN, kInfinity | kSign}) {
    SafetensorsWriter writer;
    writer.add("t", {1}, DType::f64, bytes_of(std::vector<std::uint64_t>{bits}));
    const Safetensors file = Safetensors::parse(writer.bytes());
    CHECK_THAT(failure([&] { (void)file.values<std::int64_t>("t"); }), refused);
    CHECK_THAT(failure([&] { (void)file.values<std::uint8_t>("t"); }), refused);
    CHECK_THAT(failure([&] { (void)file.values<bool>("t"); }), refused);
  }

  SafetensorsWriter writer;
  writer.add("t", Eigen::Matrix<std::int64_t, 2, 1>(-1, std::int64_t{1} << 32));
  const Safetensors file = Safetensors::parse(writer.bytes(), "t.st");
  CHECK_THAT(
      failure([&] { (void)file.values<std::int32_t>("t"); }),
      refused && ContainsSubstring("t.st: byte " + std::to_string(writer.bytes().size() - 8)));
  CHECK_THAT(failure([&] { (void)file.values<std::uint64_t>("t"); }), refused);
}

TEST_CASE("data behind a header of any length are read, aligned or not", "[safetensors]") {
  const double value = 0.1;
  std::string data(8, '\0');
  std::memcpy(data.data(), &value, 8);
  std::string header = R"({"t":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})";
  for (int padding = 0; padding < 9; ++padding, header += ' ')
    CHECK(Safetensors::parse(make_file(header, data)).values<double>("t").at(0) == 0.1);
}

TEST_CASE("copies share the data and outlive the original", "[safetensors]") {
  std::optional<Safetensors> original = Safetensors::parse(golden_file());
  const Safetensors copy = *original;
  CHECK(copy.tensor("x").bytes.data() == original->tensor("x").bytes.data());
  original.reset();
  CHECK(copy.matrix<float>("x")(0, 1) == -2.5f);
}

TEST_CASE("a file that has been moved from says so", "[safetensors]") {
  SafetensorsWriter writer;
  writer.add("x", Eigen::Vector2f(1, 2));
  Safetensors file = Safetensors::parse(writer.bytes());
  const Safetensors moved = std::move(file);
  CHECK(moved.vector<float>("x")(1) == 2);
  // NOLINTNEXTLINE(bugprone-use-after-move): that is what is tested
  CHECK_THROWS_WITH((void)file.matrix<float>("x"), "mha::io::Safetensors: it has been moved from");
}

TEST_CASE("asking for an unknown tensor names the file and the tensors there are",
          "[safetensors]") {
  const Safetensors golden = Safetensors::parse(golden_file(), "golden.st");
  const auto missing =
      ContainsSubstring(R"(golden.st: byte 8: expected a tensor "y", got "h", "i", "x")");
  CHECK_THAT(failure([&] { (void)golden.tensor("y"); }), missing);
  CHECK_THAT(failure([&] { (void)golden.matrix<float>("y"); }), missing);
  CHECK_THAT(failure([&] { (void)golden.vector<float>("y"); }), missing);
  CHECK_THAT(failure([&] { (void)golden.values<float>("y"); }), missing);
  CHECK_THAT(failure([&] { (void)Safetensors::parse(make_file("{}")).tensor("y"); }),
             ContainsSubstring("got none"));

  SafetensorsWriter many;
  for (int i = 0; i < 100; ++i)
    many.add(std::string("t").append(std::to_string(i)), Eigen::Vector2f(1, 2));
  CHECK_THAT(failure([&] { (void)Safetensors::parse(many.bytes()).tensor("y"); }),
             ContainsSubstring(R"("t0", "t1")") && ContainsSubstring(" and 92 more"));
}

TEST_CASE("any UTF-8 is a name, and errors print it harmlessly", "[safetensors]") {
  const std::string names[] = {"",
                               "a\"b\\c",
                               "\xc3\xa9\xe2\x88\x91",
                               "\x1b[2J",
                               std::string(1, '\0'),
                               std::string(5000, 'n')};
  SafetensorsWriter writer;
  for (const std::string& name : names) {
    writer.add(name, Eigen::Vector2f(1, 2));
    writer.metadata(name, name);
  }
  const Safetensors file = Safetensors::parse(writer.bytes());
  for (const std::string& name : names) {
    CHECK(file.tensor(name).size() == 2);
    CHECK(file.metadata().at(name) == name);
    const std::string message =
        failure([&] { (void)Safetensors::parse(make_file("{}")).tensor(name); });
    CHECK(message.size() < 300);
    for (const char c : message) CHECK((c >= ' ' && c < 127));
  }
}

TEST_CASE("each damaged header is refused with the byte and the reason", "[safetensors]") {
  struct Damage {
    std::string header, data;
    std::string message;
  };
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  const auto repeated = [](const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
  };
  const std::string four = "1234";
  const Damage damages[] = {
      // JSON itself. Bytes count from 0, the header begins at 8.
      {" {}", "", "byte 8: expected '{', got byte value 32"},
      {"[]", "", "byte 8: expected '{', got byte value 91"},
      {"{]", "", "byte 9: expected a JSON header, got \"syntax error"},
      {"{}}", "", "byte 10: expected a JSON header"},
      {"{},", "", "byte 10: expected a JSON header"},
      {"{\"a\"", "", "byte 12: expected a JSON header"},
      {std::string("{}\0\0", 4), "", "byte 10: expected a JSON header, got a zero byte"},
      {"{\"\xff\":{}}", "", "byte 10: expected a JSON header"},
      {"{\"\xed\xa0\x80\":{}}", "", "expected a JSON header"},  // a lone surrogate
      {"{/**/}", "", "byte 9: expected a JSON header"},
      {R"({"a":1e999})", "", "1e999"},
      // the objects
      {R"({"a":1})", "", R"(byte 12: "a": expected an object, got 1)"},
      {R"({"a":null})", "", R"(byte 12: "a": expected an object, got null)"},
      {R"({"a":[]})", "", R"(byte 12: "a": expected an object, got an array)"},
      {R"({"a":"b"})", "", R"(byte 12: "a": expected an object, got a string)"},
      {R"({"a":{}})", "", R"(byte 12: "a": expected the field dtype, got none)"},
      {R"({"a":{"dtype":"F32"}})", "", R"(byte 12: "a": expected the field shape, got none)"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", "",
       R"("a": expected the field data_offsets, got none)"},
      {R"({"a":{"x":1}})", "", R"(byte 17: "a": "x": expected no field but dtype, shape and data)"},
      {R"({"a":{"x":{}}})", "", R"("a": "x": expected no field but)"},
      {R"({"a":{"x":[]}})", "", R"("a": "x": expected no field but)"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})", "",
       R"("a": expected each key once, got it again)"},
      {R"({"a":{"dtype":"U8","dtype":"U8"}})", "", R"("a": "dtype": expected each key once)"},
      {R"({"a":{"shape":[],"shape":[]}})", "", R"("a": "shape": expected each key once)"},
      {R"({"a":{"data_offsets":[0,0],"data_offsets":[0,0]}})", "",
       R"("a": "data_offsets": expected each key once)"},
      // metadata
      {R"({"__metadata__":1})", "", R"("__metadata__": expected an object, got 1)"},
      {R"({"__metadata__":{"k":1}})", "", R"("__metadata__": "k": expected a string, got 1)"},
      {R"({"__metadata__":{"k":{}}})", "", R"("k": expected a string, got an object)"},
      {R"({"__metadata__":{"shape":[]}})", "", R"("shape": expected a string, got an array)"},
      {R"({"__metadata__":{"k":true}})", "", R"("k": expected a string, got true)"},
      {R"({"__metadata__":{"k":"v","k":"v"}})", "", R"("k": expected each key once)"},
      {R"({"__metadata__":{},"__metadata__":{}})", "", R"("__metadata__": expected each key once)"},
      // dtype
      {tensor("\"F8_E4M3\"", "[4]", "[0,4]"), four, R"(byte 21: "a": "dtype": expected F64, F32)"},
      {tensor("\"F8_E4M3\"", "[4]", "[0,4]"), four, R"(got "F8_E4M3")"},
      {tensor("\"f32\"", "[1]", "[0,4]"), four, R"(got "f32")"},
      {tensor("\"\"", "[1]", "[0,4]"), four, R"(got "")"},
      {tensor("1", "[1]", "[0,4]"), four, R"("a": "dtype": expected F64, F32)"},
      {tensor("[\"F32\"]", "[1]", "[0,4]"), four, R"("dtype": expected F64)"},
      // shape
      {tensor("\"F32\"", "1", "[0,4]"), four,
       R"("a": "shape": expected an array of at most 64 integers)"},
      {tensor("\"F32\"", "[-1]", "[0,4]"), four, "got -1"},
      {tensor("\"F32\"", "[1.0]", "[0,4]"), four, "got 1.0"},
      {tensor("\"F32\"", "[1e0]", "[0,4]"), four, "got 1e0"},
      {tensor("\"F32\"", "[\"1\"]", "[0,4]"), four, "got a string"},
      {tensor("\"F32\"", "[[1]]", "[0,4]"), four, "got an array"},
      {tensor("\"F32\"", "[{}]", "[0,4]"), four, "got an object"},
      {tensor("\"F32\"", "[null]", "[0,4]"), four, "got null"},
      {tensor("\"F32\"", "[18446744073709551615]", "[0,4]"), four, "got 18446744073709551615"},
      {tensor("\"F32\"", "[18446744073709551617]", "[0,4]"), four, "got 18446744073709551617"},
      {tensor("\"F32\"", "[1" + repeated(",1", 64) + "]", "[0,4]"), four, "at most 64 integers"},
      // products that overflow 64 bits, to 0, 1 or 4 bytes among others
      {tensor("\"U8\"", "[4294967296,4294967296]", "[0,0]"), "",
       "expected data_offsets as far apart"},
      {tensor("\"F32\"", "[4611686018427387905]", "[0,4]"), four,
       "expected data_offsets as far apart"},
      {tensor("\"F32\"", "[4611686018427387904]", "[0,0]"), "",
       "expected data_offsets as far apart"},
      {tensor("\"F32\"", "[4294967297,4294967297]", "[0,4]"), four, "expected data_offsets as far"},
      // data_offsets
      {tensor("\"F32\"", "[1]", "4"), four,
       R"("a": "data_offsets": expected an array of 2 integers)"},
      {tensor("\"F32\"", "[1]", "[]"), four, "expected an array of 2 integers >= 0, got 0"},
      {tensor("\"F32\"", "[1]", "[0]"), four, "expected an array of 2 integers >= 0, got 1"},
      {tensor("\"F32\"", "[1]", "[0,4,4]"), four, "expected an array of 2 integers >= 0, got more"},
      {tensor("\"F32\"", "[1]", "[-4,0]"), four, "got -4"},
      {tensor("\"F32\"", "[1]", "[0,4.0]"), four, "got 4.0"},
      {tensor("\"F32\"", "[1]", "[4,0]"), four,
       R"(byte 12: "a": expected ascending data_offsets within the file's 4 bytes of data, got [4, 0])"},
      {tensor("\"F32\"", "[2]", "[0,8]"), four, "within the file's 4 bytes of data, got [0, 8]"},
      {tensor("\"F32\"", "[1]", "[18446744073709551612,18446744073709551615]"), four, "within the"},
      {tensor("\"F32\"", "[2]", "[0,4]"), four,
       R"(byte 12: "a": expected data_offsets as far apart as F32 of shape [2] is long, got [0, 4])"},
      {tensor("\"F32\"", "[]", "[0,0]"), "", "as far apart as F32 of shape [] is long, got [0, 0]"},
      {tensor("\"I64\"", "[1]", "[0,4]"), four, "as far apart as I64 of shape [1] is long"},
      {tensor("\"U8\"", "[1,1,1,1,1,1,1,1,9]", "[0,4]"), four, "[1, 1, 1, 1, 1, 1, 1, 1, ...]"},
      // coverage: the header has 54 bytes, so data begin at 62
      {tensor("\"U8\"", "[3]", "[1,4]"), four, R"("a": expected data_offsets from 0 (no hole)"},
      {tensor("\"U8\"", "[3]", "[0,3]"), four, "expected the end of the file, got 1 more bytes"},
      {"{}", "1", "byte 10: expected the end of the file, got 1 more bytes"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       four, R"(byte 115: "b": expected data_offsets from 3 (no hole, no overlap), got 2)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       four, R"("b": expected data_offsets from 4)"},
      {R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       four, R"(byte 115: "a": expected data_offsets from 1 (no hole, no overlap), got 2)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
       four, R"("b": expected data_offsets from 4)"},
  };
  for (const Damage& damage : damages) {
    CAPTURE(damage.header);
    const std::string message = parse_failure(make_file(damage.header, damage.data));
    CHECK_THAT(message, ContainsSubstring("mha::io::Safetensors::parse: x.st: byte "));
    CHECK_THAT(message, ContainsSubstring(damage.message));
  }
}

TEST_CASE("tensors may stand in any order in the header, with JSON white space and escapes",
          "[safetensors]") {
  const Bytes bytes = make_file(
      "{ \"b\" : {\"shape\":[ 2 ],\n\"data_offsets\":[2,4],\t\"dtype\":\"U8\"},"
      "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}   ",
      "\x01\x02\x03\x04");
  const Safetensors file = Safetensors::parse(bytes);
  CHECK(file.values<int>("a") == std::vector<int>{1, 2});
  CHECK(file.values<int>("b") == std::vector<int>{3, 4});
}

TEST_CASE("a wrong header length is refused before it is used", "[safetensors]") {
  const auto with_length = [](std::uint64_t length) {
    Bytes bytes = make_file("{}");
    std::memcpy(bytes.data(), &length, 8);
    return bytes;
  };
  CHECK(parse_failure(with_length(2)) == "");
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{3}, std::uint64_t{1} << 32,
        ~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63})
    CHECK_THAT(parse_failure(with_length(length)),
               ContainsSubstring("byte 0: expected a header length from 2 to 2, got " +
                                 std::to_string(length)));
}

TEST_CASE("a header nested a million deep is refused without recursion", "[safetensors]") {
  std::string objects;
  const std::string arrays(1'000'000, '[');
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  CHECK_THAT(parse_failure(make_file(objects)), ContainsSubstring("got an object"));
  CHECK_THAT(parse_failure(make_file("{\"a\":" + arrays)), ContainsSubstring("got an array"));
  CHECK_THAT(parse_failure(make_file("{\"a\":{\"shape\":" + arrays)),
             ContainsSubstring("got an array"));
}

TEST_CASE("a file cut off at any byte is refused", "[safetensors]") {
  const Bytes whole = golden_file();
  REQUIRE(parse_failure(whole) == "");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string message =
        parse_failure(Bytes(whole.begin(), whole.begin() + std::ptrdiff_t(size)));
    CAPTURE(size, message);
    CHECK_THAT(message, ContainsSubstring("mha::io::Safetensors::parse: x.st: byte "));
    if (size < 10) CHECK_THAT(message, ContainsSubstring("at least 10 bytes"));
    if (size >= 10 && size < whole.size() - 18)
      CHECK_THAT(message, ContainsSubstring("expected a header length from 2 to"));
    if (size >= whole.size() - 18)
      CHECK_THAT(message, ContainsSubstring("expected ascending data_offsets within the file's"));
  }
}

TEST_CASE("a wrong byte anywhere is either harmless or a std::runtime_error", "[safetensors]") {
  const Bytes whole = make_file(kSmallHeader, "1234");
  REQUIRE(parse_failure(whole) == "");
  std::size_t refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (int flip = 1; flip < 256; ++flip) {
      Bytes bytes = whole;
      bytes[at] ^= static_cast<std::byte>(flip);
      const std::string message = failure([&] {  // another exception would fail the test
        const Safetensors file = Safetensors::parse(bytes, "x.st");
        for (const auto& [name, info] : file.tensors()) (void)file.values<double>(name);
      });
      if (!message.empty()) ++refused;
    }
  }
  CHECK(refused > 15'000);  // of 255 * 91: most bytes of a header are not free to change
}

TEST_CASE("a file on disk reads as from memory", "[safetensors]") {
  const Folder folder;
  store(folder / "golden.st", golden_file());
  const Safetensors file = Safetensors::read(folder / "golden.st");
  CHECK(file.path() == folder / "golden.st");
  CHECK(file.tensors().size() == 3);
  CHECK(file.matrix<float>("x")(0, 1) == -2.5f);

  Bytes cut = golden_file();
  cut.pop_back();
  store(folder / "cut.st", cut);
  CHECK_THAT(failure([&] { (void)Safetensors::read(folder / "cut.st"); }),
             ContainsSubstring("mha::io::Safetensors::read: " + (folder / "cut.st") + ": byte "));
}

TEST_CASE("what is not a readable file is refused with its path", "[safetensors]") {
  const Folder folder;
  const auto read_failure = [](const std::string& path) {
    std::string message = failure([&] { (void)Safetensors::read(path); });
    CHECK_THAT(message, ContainsSubstring("mha::io::Safetensors::read: " + path + ": byte 0: "));
    return message;
  };
  CHECK_THAT(read_failure(folder / "missing.st"), ContainsSubstring("expected a readable file"));
  CHECK_THAT(read_failure(folder / "."), ContainsSubstring("expected a readable file"));
  CHECK_THAT(read_failure(""), ContainsSubstring("expected a readable file"));
  store(folder / "empty.st", {});
  CHECK_THAT(read_failure(folder / "empty.st"), ContainsSubstring("at least 10 bytes"));
  if (fs::exists("/dev/zero"))
    CHECK_THAT(read_failure("/dev/zero"), ContainsSubstring("expected a"));

  store(folder / "secret.st", golden_file());
  fs::permissions(folder / "secret.st", fs::perms::none);
  if (!std::ifstream(folder / "secret.st"))  // the superuser may read it
    CHECK_THAT(read_failure(folder / "secret.st"), ContainsSubstring("expected a readable file"));
}

TEST_CASE("a huge file of something else is refused before memory is taken", "[safetensors]") {
  const Folder folder;
  const auto sparse = [&](const Bytes& begin, std::uintmax_t size) {
    store(folder / "sparse.st", begin);
    std::error_code error;
    fs::resize_file(folder / "sparse.st", size, error);  // takes no disk where it works
    return !error;
  };
  const auto read = [&] { return failure([&] { (void)Safetensors::read(folder / "sparse.st"); }); };
  constexpr std::uintmax_t kTera = std::uintmax_t{1} << 40;
  if (sparse(make_file("{}"), kTera))
    CHECK_THAT(read(), ContainsSubstring("byte 10: expected the end of the file"));
  Bytes long_header = make_file("{}");
  const std::uint64_t length = 100'000'001;
  std::memcpy(long_header.data(), &length, 8);
  if (sparse(long_header, kTera))
    CHECK_THAT(read(),
               ContainsSubstring("expected a header length from 2 to 100000000, got 100000001"));
}

TEST_CASE("writing makes a file that reads back, and leaves nothing else", "[safetensors]") {
  const Folder folder;
  SafetensorsWriter writer;
  writer.add("m", Eigen::Matrix2f::Identity());
  writer.write(folder / "m.st");
  CHECK(load(folder / "m.st") == writer.bytes());
  CHECK(Safetensors::read(folder / "m.st").matrix<float>("m") == Eigen::Matrix2f::Identity());

  writer.add("n", Eigen::Vector3d(1, 2, 3));
  writer.write(folder / "m.st");  // replaces the old one
  CHECK(load(folder / "m.st") == writer.bytes());
  CHECK(folder.count() == 1);
}

TEST_CASE("writing to a symbolic link replaces the file that it names", "[safetensors]") {
  const Folder folder;
  store(folder / "file.st", to_bytes("old"));
  std::error_code error;
  fs::create_symlink("file.st", folder / "link.st", error);
  if (error) return;  // not on every system
  SafetensorsWriter().write(folder / "link.st");
  CHECK(fs::is_symlink(folder / "link.st"));
  CHECK(load(folder / "file.st") == SafetensorsWriter().bytes());
}

TEST_CASE("a file that cannot be written is an error and an old one stays as it was",
          "[safetensors]") {
  const Folder folder;
  const auto write_failure = [](const std::string& path) {
    return failure([&] { SafetensorsWriter().write(path); });
  };
  const std::string prefix = "mha::io::SafetensorsWriter::write: ";
  CHECK_THAT(write_failure(folder / "no/such/folder.st"),
             ContainsSubstring(prefix + (folder / "no/such/folder.st") + ": cannot create"));
  CHECK_THAT(write_failure(folder / "."), ContainsSubstring("expected the path of a file"));
  CHECK_THAT(write_failure(""), ContainsSubstring(prefix));
  if (fs::exists("/dev/null"))
    CHECK_THAT(write_failure("/dev/null"), ContainsSubstring("expected the path of a file"));

  store(folder / "old.st", to_bytes("old"));
  for (int n = 0; n < 100; ++n)
    store(folder / ("old.st.tmp" + std::to_string(n)), to_bytes("hers"));
  CHECK_THAT(write_failure(folder / "old.st"), ContainsSubstring("or a lower number to be free"));
  CHECK(load(folder / "old.st") == to_bytes("old"));
  fs::remove(folder / "old.st.tmp7");
  SafetensorsWriter().write(folder / "old.st");
  CHECK(load(folder / "old.st") == SafetensorsWriter().bytes());
  CHECK(load(folder / "old.st.tmp0") == to_bytes("hers"));
}

TEST_CASE("the writer refuses what no file could hold and is unchanged then", "[safetensors]") {
  SafetensorsWriter writer;
  const Eigen::Vector2f two(1, 2.5f);
  writer.add("taken", two);
  const Bytes before = writer.bytes();
  const std::string add = "mha::io::SafetensorsWriter::add: ";
  CHECK_THROWS_WITH(writer.add("taken", two),
                    ContainsSubstring(add + "\"taken\": the name must be free"));
  CHECK_THROWS_WITH(writer.add("__metadata__", two), ContainsSubstring("the name must be free"));
  CHECK_THROWS_WITH(writer.add("\xff", two), ContainsSubstring("the name must be UTF-8"));
  CHECK_THROWS_WITH(
      writer.add("t", two, {3}),
      ContainsSubstring("\"t\": the shape must fit the elements, got [3] and 8 bytes"));
  CHECK_THROWS_WITH(writer.add("t", two, {-1, -2}), ContainsSubstring("got [-1, -2]"));
  CHECK_THROWS_WITH(writer.add("t", {1}, DType::f64, bytes_of(std::vector<float>{1})),
                    ContainsSubstring("got [1] and 4 bytes of F64"));
  CHECK_THROWS_WITH(writer.add("t", two, DType::i32),
                    ContainsSubstring("\"t\": I32 must hold every value, got another at (1, 0)"));
  CHECK_THROWS_WITH(writer.metadata("\x80", "v"), ContainsSubstring("must be UTF-8"));
  CHECK_THROWS_WITH(writer.metadata("k", "\xc3"), ContainsSubstring("must be UTF-8"));
  CHECK_THROWS_WITH(writer.add("t", two, static_cast<DType>(99)),
                    ContainsSubstring("\"t\": dtype must be one of DType's, got 99"));
  CHECK_THROWS_WITH(writer.add("t", {1}, static_cast<DType>(-1), bytes_of(std::vector<float>{1})),
                    ContainsSubstring("dtype must be one of DType's, got -1"));
  CHECK_THROWS_WITH(writer.add("t", Eigen::Map<const Eigen::MatrixXf>(nullptr, 2, 3)),
                    ContainsSubstring("\"t\": the matrix must not be null, got 2 x 3"));
  SafetensorsWriter more;
  more.add("free", two);
  more.add("taken", two);
  CHECK_THROWS_WITH(writer.add(more), ContainsSubstring("\"taken\": the name must be free"));
  CHECK_THROWS_AS(writer.add("taken", two), std::invalid_argument);
  CHECK(writer.bytes() == before);
}
