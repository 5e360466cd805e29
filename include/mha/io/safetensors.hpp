// SPDX-License-Identifier: MIT
//
// Optional: reads and writes safetensors files, the format in which PyTorch users publish weights.
//     auto file = mha::io::Safetensors::read("layer.safetensors");
//     Eigen::MatrixXf weight = file.matrix<float>("out_proj.weight");
// Files may be damaged or hostile: the answer is an exception that says where, never a crash or an
// allocation out of proportion to the file. Not included by mha.hpp; needs nlohmann/json >= 3.9.
// Read next: mha/io/safetensors_header.hpp for the format and its checks.
#pragma once

#include <mha/error.hpp>
#include <mha/io/safetensors_header.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mha::io {

static_assert(std::endian::native == std::endian::little,
              "mha/io/safetensors.hpp copies little-endian data as they are and needs such a CPU");

namespace detail {

template <class T>
inline constexpr bool is_half =
    std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>;

template <class Scalar>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<Scalar, bool>) {
    return DType::boolean;
  } else if constexpr (std::is_integral_v<Scalar> && sizeof(Scalar) <= 8) {
    constexpr DType widest = std::is_signed_v<Scalar> ? DType::i64 : DType::u64;
    constexpr int narrower = 4 - static_cast<int>(std::bit_width(sizeof(Scalar)));  // 0 to 3 steps
    return static_cast<DType>(static_cast<int>(widest) + narrower);
  } else if constexpr (is_half<Scalar>) {
    return std::is_same_v<Scalar, Eigen::half> ? DType::f16 : DType::bf16;
  } else {
    static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>,
                  "safetensors has no dtype for this Scalar; name one: add(name, x, DType::f64)");
    return std::is_same_v<Scalar, float> ? DType::f32 : DType::f64;
  }
}

/// Calls `f(Raw{})`, Raw being the C++ type of one element of `dtype`.
template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f32:
      return f(float{});
    case DType::f16:
      return f(Eigen::half{});
    case DType::bf16:
      return f(Eigen::bfloat16{});
    case DType::i64:
      return f(std::int64_t{});
    case DType::i32:
      return f(std::int32_t{});
    case DType::i16:
      return f(std::int16_t{});
    case DType::i8:
      return f(std::int8_t{});
    case DType::u64:
      return f(std::uint64_t{});
    case DType::u32:
      return f(std::uint32_t{});
    case DType::u16:
      return f(std::uint16_t{});
    case DType::u8:
      return f(std::uint8_t{});
    case DType::boolean:
      return f(bool{});
  }
}

/// Converts one element; false if `to` is of an integer type or bool that cannot hold `from`.
template <class From, class To>
bool convert(const From& from, To& to) {
  if constexpr (std::is_same_v<To, From>) {
    to = from;
  } else if constexpr (is_half<From>) {
    return convert(static_cast<float>(from), to);
  } else if constexpr (is_half<To>) {
    to = static_cast<To>(static_cast<float>(from));
  } else if constexpr (std::is_floating_point_v<To>) {
    to = static_cast<To>(from);
  } else if constexpr (!std::is_integral_v<To>) {
    to = To(static_cast<double>(from));  // a number type of the user's, such as AutoDiffScalar
  } else if constexpr (std::is_integral_v<From>) {
    to = static_cast<To>(from);
    return static_cast<From>(to) == from && (to < To{}) == (from < From{});
  } else {
    const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(from));
    if ((bits >> 52 & 0x7ff) == 0x7ff) return false;  // infinity and NaN, under -ffast-math as well
    const From end = std::ldexp(From(1), std::numeric_limits<To>::digits);  // exact, as is begin
    const From begin = std::is_signed_v<To> ? -end : From(0);
    if (from < begin || from >= end || std::trunc(from) != from) return false;
    to = static_cast<To>(from);
  }
  return true;
}

/// Whether JSON can hold `text`: two ways to treat wrong UTF-8 agree only if there is none.
inline bool is_utf8(const std::string& text) {
  using Handler = nlohmann::json::error_handler_t;
  const nlohmann::json json = text;
  return json.dump(-1, ' ', false, Handler::ignore) == json.dump(-1, ' ', false, Handler::replace);
}

}  // namespace detail

/// One tensor of a file.
struct TensorInfo {
  DType dtype;
  std::vector<Eigen::Index> shape;
  /// Little-endian row-major elements, unaligned; valid while the Safetensors or a copy of it
  /// lives.
  std::span<const std::byte> bytes;
  /// Number of elements; 1 for rank 0.
  [[nodiscard]] Eigen::Index size() const noexcept {
    return static_cast<Eigen::Index>(bytes.size() / detail::row(dtype).size);
  }
};

/// A safetensors file, checked and held in memory. Copies share the data; const use from many
/// threads is safe.
/// A wrong file, an unknown name and a value that does not fit are std::runtime_error, saying what
/// was expected and found at which byte of which file:
///     mha::io::Safetensors::read: w.safetensors: byte 14: "bias": expected ascending data_offsets
///     within the file's 16 bytes of data, got [0, 20]
class Safetensors {
 public:
  /// Reads a whole file. The header is checked before memory is taken for the data; how much is
  /// taken follows from the file's real size, never from a number in the file.
  [[nodiscard]] static Safetensors read(const std::string& path);

  /// The same from memory; `name` stands for the path in errors.
  [[nodiscard]] static Safetensors parse(std::vector<std::byte> bytes,
                                         const std::string& name = "memory");

  /// The path or name that it was read from.
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// The texts under "__metadata__"; empty if the file has none.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
    return metadata_;
  }

  /// All tensors by name.
  [[nodiscard]] const std::map<std::string, TensorInfo>& tensors() const noexcept {
    return tensors_;
  }
  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.count(name) != 0; }

  /// One tensor; if there is none of that name, the error lists the first names that there are.
  [[nodiscard]] const TensorInfo& tensor(const std::string& name) const;

  /// A tensor as a matrix: rank 2 as it is, rank 1 and 0 as one row; a higher rank is an error.
  /// Converts from any dtype: to floating types by rounding, to integers and bool only what they
  /// hold exactly (else an error), to the same type bit for bit.
  template <class Scalar>
  [[nodiscard]] Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> matrix(
      const std::string& name) const;

  /// A tensor of any rank, flattened row-major, converted in the same way.
  template <class Scalar>
  [[nodiscard]] Eigen::Matrix<Scalar, Eigen::Dynamic, 1> vector(const std::string& name) const;

  /// The same as a std::vector.
  template <class Scalar>
  [[nodiscard]] std::vector<Scalar> values(const std::string& name) const;

 private:
  Safetensors(std::vector<std::byte> bytes, detail::HeaderReader&& header, std::size_t data_at,
              const std::string& path);
  template <class Scalar, class Output>
  void copy_to(const std::string& name, Output output) const;
  [[noreturn]] void fail_at(const std::byte* at, const std::string& problem) const;

  std::string path_;
  std::shared_ptr<const std::vector<std::byte>> bytes_;  // what TensorInfo::bytes point into
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorInfo> tensors_;
};

/// Collects tensors and metadata, then writes them as one safetensors file.
///     mha::io::SafetensorsWriter writer;
///     writer.add("weight", weight);                 // a float matrix: F32, shape [rows, cols]
///     writer.add("bias", bias, {64}, DType::f16);   // 64 elements as rank 1, rounded to F16
///     writer.write("layer.safetensors");
/// The same content gives the same bytes, in whatever order it was added.
/// @throws std::invalid_argument if a name is not UTF-8, taken, or "__metadata__", a metadata text
/// is not UTF-8, a shape does not match, or an integer dtype cannot hold a value; the writer is
/// unchanged then
class SafetensorsWriter {
 public:
  /// Sets one text of the file's metadata.
  void metadata(const std::string& key, const std::string& value);

  /// Adds any dense Eigen expression, with the dtype of its Scalar or converted to `dtype` by the
  /// rules of Safetensors::matrix. Shape [rows, cols]; [rows] if it is a column at compile time.
  template <class Derived>
  void add(const std::string& name, const Eigen::DenseBase<Derived>& matrix) {
    add(name, matrix, detail::dtype_of<typename Derived::Scalar>());
  }
  template <class Derived, std::same_as<DType> Type>  // a template, so that {} means a shape below
  void add(const std::string& name, const Eigen::DenseBase<Derived>& matrix, Type dtype) {
    std::vector<Eigen::Index> shape{matrix.rows(), matrix.cols()};
    if constexpr (Derived::ColsAtCompileTime == 1) shape.pop_back();
    add(name, matrix, std::move(shape), dtype);
  }

  /// The same under any shape of as many elements: row after row of the matrix.
  template <class Derived>
  void add(const std::string& name, const Eigen::DenseBase<Derived>& matrix,
           std::vector<Eigen::Index> shape) {
    add(name, matrix, std::move(shape), detail::dtype_of<typename Derived::Scalar>());
  }
  template <class Derived>
  void add(const std::string& name, const Eigen::DenseBase<Derived>& matrix,
           std::vector<Eigen::Index> shape, DType dtype);

  /// Adds little-endian row-major elements as they are.
  void add(const std::string& name, std::vector<Eigen::Index> shape, DType dtype,
           std::span<const std::byte> bytes);

  /// The file's content: widest dtype first, then by name, so that every tensor is aligned.
  [[nodiscard]] std::vector<std::byte> bytes() const;

  /// Writes a new file beside `path` (PATH.tmp0, or the next free number) and renames it to `path`,
  /// so no reader and no crash of this program meets half a file. An old file is replaced, one that
  /// a symbolic link names as well.
  /// @throws std::runtime_error with path and reason if that fails; an old file is untouched then
  void write(const std::string& path) const;

 private:
  struct Tensor {
    DType dtype;
    std::vector<Eigen::Index> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

inline Safetensors::Safetensors(std::vector<std::byte> bytes, detail::HeaderReader&& header,
                                std::size_t data_at, const std::string& path)
    : path_(path),
      bytes_(std::make_shared<const std::vector<std::byte>>(std::move(bytes))),
      metadata_(std::move(header.metadata)) {
  for (auto& [name, entry] : header.tensors) {
    const auto begin = static_cast<std::size_t>(entry.offsets[0]);
    const auto end = static_cast<std::size_t>(entry.offsets[1]);
    const auto data = std::span(*bytes_).subspan(data_at + begin, end - begin);
    tensors_.emplace(name, TensorInfo{entry.dtype, std::move(entry.shape), data});
  }
}

inline Safetensors Safetensors::parse(std::vector<std::byte> bytes, const std::string& name) {
  const std::string where = "mha::io::Safetensors::parse: " + name + ": ";
  const std::size_t length = detail::header_length(bytes, bytes.size(), where);
  const std::span<const std::byte> json = std::span(bytes).subspan(8, length);
  detail::HeaderReader header(json, bytes.size() - 8 - length, where);
  return Safetensors(std::move(bytes), std::move(header), 8 + length, name);
}

inline Safetensors Safetensors::read(const std::string& path) {
  const std::string where = "mha::io::Safetensors::read: " + path + ": ";
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);  // an error for directories
  if (error) detail::fail_at(where, 0, "expected a readable file, got: " + error.message());
  std::ifstream file(path, std::ios::binary);
  if (!file)
    detail::fail_at(where, 0,
                    "expected a readable file, got: " + std::generic_category().message(errno));
  std::vector<std::byte> bytes;
  const auto read_up_to = [&](std::uint64_t end) {
    const std::size_t begin = bytes.size();
    bytes.resize(static_cast<std::size_t>(end));
    file.read(reinterpret_cast<char*>(bytes.data() + begin),
              static_cast<std::streamsize>(bytes.size() - begin));
    const std::uint64_t reached = begin + static_cast<std::uint64_t>(file.gcount());
    if (reached != end)
      detail::fail_at(
          where, reached,
          "expected " + std::to_string(size) + " bytes (the file's size), got a read error");
  };
  read_up_to(std::min<std::uint64_t>(size, 9));
  const std::size_t length = detail::header_length(bytes, size, where);
  read_up_to(8 + length);
  const std::span<const std::byte> json = std::span(bytes).subspan(8);
  detail::HeaderReader header(json, size - 8 - length, where);
  read_up_to(size);
  return Safetensors(std::move(bytes), std::move(header), 8 + length, path);
}

inline const TensorInfo& Safetensors::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::string names = tensors_.empty() ? "none" : "";
  std::size_t listed = 0;
  for (auto it = tensors_.begin(); it != tensors_.end() && listed < 8; ++it, ++listed)
    names += (listed ? ", " : "") + detail::printable(it->first);
  if (listed < tensors_.size())
    names += " and " + std::to_string(tensors_.size() - listed) + " more";
  fail_at(bytes_->data() + 8, "expected a tensor " + detail::printable(name) + ", got " + names);
}

inline void Safetensors::fail_at(const std::byte* at, const std::string& problem) const {
  detail::fail_at("mha::io::Safetensors: " + path_ + ": ",
                  static_cast<std::uint64_t>(at - bytes_->data()), problem);
}

template <class Scalar, class Output>
void Safetensors::copy_to(const std::string& name, Output output) const {
  const std::span<const std::byte> bytes = tensor(name).bytes;
  detail::with_type(tensor(name).dtype, [&]<class Raw>(Raw raw) {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(Raw), ++output) {
      if constexpr (std::is_same_v<Raw, bool>)
        raw =
            bytes[at] != std::byte{0};  // copying another byte than 0 or 1 into a bool is undefined
      else
        std::memcpy(static_cast<void*>(&raw), &bytes[at], sizeof(Raw));
      Scalar value{};
      if (!detail::convert(raw, value)) {
        double found = 0;
        detail::convert(raw, found);
        fail_at(&bytes[at], detail::printable(name) +
                                ": expected a value that the integer type holds, got " +
                                std::to_string(found));
      }
      *output = value;
    }
  });
}

template <class Scalar>
Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> Safetensors::matrix(
    const std::string& name) const {
  const std::vector<Eigen::Index>& shape = tensor(name).shape;
  if (shape.size() > 2)
    fail_at(tensor(name).bytes.data(), detail::printable(name) +
                                           ": expected rank 0, 1 or 2, got shape " +
                                           detail::shape_text(shape));
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> result(
      shape.size() == 2 ? shape[0] : 1, shape.empty() ? 1 : shape.back());
  copy_to<Scalar>(name, result.data());
  return result;
}

template <class Scalar>
Eigen::Matrix<Scalar, Eigen::Dynamic, 1> Safetensors::vector(const std::string& name) const {
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> result(tensor(name).size());
  copy_to<Scalar>(name, result.data());
  return result;
}

template <class Scalar>
std::vector<Scalar> Safetensors::values(const std::string& name) const {
  std::vector<Scalar> result(static_cast<std::size_t>(tensor(name).size()));
  copy_to<Scalar>(name, result.begin());
  return result;
}

inline void SafetensorsWriter::metadata(const std::string& key, const std::string& value) {
  mha::detail::require(detail::is_utf8(key) && detail::is_utf8(value),
                       "io::SafetensorsWriter::metadata: key and value must be UTF-8, got ",
                       detail::printable(key), " and ", detail::printable(value));
  metadata_[key] = value;
}

template <class Derived>
void SafetensorsWriter::add(const std::string& name, const Eigen::DenseBase<Derived>& matrix,
                            std::vector<Eigen::Index> shape, DType dtype) {
  const auto& dense = matrix.derived().eval();
  std::vector<std::byte> bytes(static_cast<std::size_t>(dense.size()) * detail::row(dtype).size);
  detail::with_type(dtype, [&, out = bytes.data()]<class Raw>(Raw raw) mutable {
    for (Eigen::Index i = 0; i < dense.rows(); ++i) {
      for (Eigen::Index j = 0; j < dense.cols(); ++j, out += sizeof(Raw)) {
        if (!detail::convert(dense.coeff(i, j), raw))
          mha::detail::require(false, "io::SafetensorsWriter::add: ", detail::printable(name), ": ",
                               detail::row(dtype).name, " must hold every value, got another at (",
                               i, ", ", j, ")");
        std::memcpy(out, static_cast<const void*>(&raw), sizeof(Raw));
      }
    }
  });
  add(name, std::move(shape), dtype, bytes);
}

inline void SafetensorsWriter::add(const std::string& name, std::vector<Eigen::Index> shape,
                                   DType dtype, std::span<const std::byte> bytes) {
  const std::string where = "io::SafetensorsWriter::add: " + detail::printable(name) + ": ";
  mha::detail::require(detail::is_utf8(name), where, "the name must be UTF-8");
  mha::detail::require(name != "__metadata__" && tensors_.count(name) == 0, where,
                       "the name must be free, got one that is taken");
  const std::optional<std::uint64_t> count = detail::element_count(shape);
  const std::uint64_t size = detail::row(dtype).size;
  mha::detail::require(count && bytes.size() % size == 0 && *count == bytes.size() / size, where,
                       "the shape must fit the elements, got ", detail::shape_text(shape), " and ",
                       bytes.size(), " bytes of ", detail::row(dtype).name);
  tensors_.emplace(name, Tensor{dtype, std::move(shape), {bytes.begin(), bytes.end()}});
}

inline std::vector<std::byte> SafetensorsWriter::bytes() const {
  std::vector<std::map<std::string, Tensor>::const_iterator> order;
  for (auto it = tensors_.begin(); it != tensors_.end(); ++it) order.push_back(it);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return detail::row(a->second.dtype).size > detail::row(b->second.dtype).size;
  });
  nlohmann::json header = nlohmann::json::object();
  if (!metadata_.empty()) header["__metadata__"] = metadata_;
  std::uint64_t end = 0;
  for (const auto& it : order) {
    const auto& [name, tensor] = *it;
    const std::uint64_t begin = std::exchange(end, end + tensor.bytes.size());
    header[name] = {{"dtype", detail::row(tensor.dtype).name},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, end}}};
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  mha::detail::require(json.size() <= detail::kMaxHeader,
                       "io::SafetensorsWriter::bytes: the header must be at most ",
                       detail::kMaxHeader, " bytes, got ", json.size());
  const std::uint64_t length = json.size();
  std::vector<std::byte> file(8 + json.size());
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, json.data(), json.size());
  file.reserve(file.size() + static_cast<std::size_t>(end));
  for (const auto& it : order)
    file.insert(file.end(), it->second.bytes.begin(), it->second.bytes.end());
  return file;
}

inline void SafetensorsWriter::write(const std::string& path) const {
  namespace fs = std::filesystem;
  const std::vector<std::byte> content = bytes();
  const auto require = [&](bool ok, const std::string& reason) {
    if (!ok)
      mha::detail::fail<std::runtime_error>("mha::io::SafetensorsWriter::write: " + path + ": " +
                                            reason);
  };
  const auto reason = [] { return std::generic_category().message(errno); };

  std::error_code error;
  const fs::path target = fs::is_symlink(path, error) ? fs::canonical(path, error) : fs::path(path);
  const fs::file_status old = fs::status(target, error);
  require(!target.empty() && (!fs::exists(old) || fs::is_regular_file(old)),
          "expected the path of a file, new or old");

  std::string temporary;
  std::FILE* file = nullptr;
  for (int n = 0; file == nullptr && n < 100; ++n) {
    temporary = target.string() + ".tmp" + std::to_string(n);
    file = std::fopen(temporary.c_str(), "wbx");  // x: never over somebody else's file
    require(file != nullptr || errno == EEXIST, "cannot create " + temporary + ": " + reason());
  }
  require(file != nullptr, "expected " + temporary + " or a lower number to be free");
  const bool written = std::fwrite(content.data(), 1, content.size(), file) == content.size();
  std::string problem = written ? "" : reason();
  if (std::fclose(file) != 0 && written) problem = reason();  // the last bytes may fail only here
  if (problem.empty()) {
    fs::rename(temporary, target, error);
    if (error) problem = error.message();
  }
  if (!problem.empty()) fs::remove(temporary, error);
  require(problem.empty(), "cannot write: " + problem);
}

}  // namespace mha::io
