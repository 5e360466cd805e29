// SPDX-License-Identifier: MIT
//
// Writes safetensors files: class SafetensorsWriter.
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/internal/support/error.hpp>
#include <mha/io/safetensors_values.hpp>
#include <mha/types.hpp>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

namespace mha::inline MHA_ABI::io {

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

  /// Adds all that another one holds, its metadata too, which win over those here.
  /// @throws std::invalid_argument if a name is taken
  void add(SafetensorsWriter other) {
    for (const auto& [name, tensor] : other.tensors_) {
      mha::detail::require(tensors_.count(name) == 0,
                           "io::SafetensorsWriter::add: ", detail::printable(name),
                           ": the name must be free, got one that is taken");
    }
    tensors_.merge(other.tensors_);
    other.metadata_.merge(metadata_);
    metadata_ = std::move(other.metadata_);
  }

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
  static void check_dtype(const std::string& where, DType dtype) {
    mha::detail::require(detail::is_known(dtype), where, "dtype must be one of DType's, got ",
                         static_cast<int>(dtype));
  }

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

inline void SafetensorsWriter::metadata(const std::string& key, const std::string& value) {
  mha::detail::require(detail::is_utf8(key) && detail::is_utf8(value),
                       "io::SafetensorsWriter::metadata: key and value must be UTF-8, got ",
                       detail::printable(key), " and ", detail::printable(value));
  metadata_[key] = value;
}

template <class Derived>
void SafetensorsWriter::add(const std::string& name, const Eigen::DenseBase<Derived>& matrix,
                            std::vector<Eigen::Index> shape, DType dtype) {
  const std::string where = "io::SafetensorsWriter::add: " + detail::printable(name) + ": ";
  check_dtype(where, dtype);
  if constexpr (EigenInMemory<Derived>) {
    mha::detail::require(matrix.size() == 0 || matrix.derived().data() != nullptr, where,
                         "the matrix must not be null, got ", matrix.rows(), " x ", matrix.cols());
  }
  const auto& dense = matrix.derived().eval();
  std::vector<std::byte> bytes(static_cast<std::size_t>(dense.size()) * detail::row(dtype).size);
  detail::with_type(dtype, [&, out = bytes.data()]<class Raw>(Raw raw) mutable {
    for (Eigen::Index i = 0; i < dense.rows(); ++i) {
      for (Eigen::Index j = 0; j < dense.cols(); ++j, out += sizeof(Raw)) {
        if (!detail::convert(dense.coeff(i, j), raw))
          mha::detail::require(false, where, detail::row(dtype).name,
                               " must hold every value, got another at (", i, ", ", j, ")");
        std::memcpy(out, static_cast<const void*>(&raw), sizeof(Raw));
      }
    }
  });
  add(name, std::move(shape), dtype, bytes);
}

inline void SafetensorsWriter::add(const std::string& name, std::vector<Eigen::Index> shape,
                                   DType dtype, std::span<const std::byte> bytes) {
  const std::string where = "io::SafetensorsWriter::add: " + detail::printable(name) + ": ";
  check_dtype(where, dtype);
  mha::detail::require(bytes.data() != nullptr || bytes.empty(), where,
                       "the elements must not be null, got ", bytes.size(), " bytes");
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
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    const std::uint64_t a_size = detail::row(a->second.dtype).size;
    const std::uint64_t b_size = detail::row(b->second.dtype).size;
    return a_size != b_size ? a_size > b_size : a->first < b->first;
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
