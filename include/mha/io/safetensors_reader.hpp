// SPDX-License-Identifier: MIT
//
// Reads safetensors files: class Safetensors. Files may be damaged or hostile: the answer is an
// exception that says where, never a crash or an allocation out of proportion to the file.
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/internal/support/error.hpp>
#include <mha/io/safetensors_values.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

namespace mha::inline MHA_ABI::io {

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
              std::string path);
  template <class Scalar, class Output>
  void copy_to(const std::string& name, Output output) const;
  [[noreturn]] void fail_at(const std::byte* at, const std::string& problem) const;

  std::string path_;
  std::shared_ptr<const std::vector<std::byte>> bytes_;  // what TensorInfo::bytes point into
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorInfo> tensors_;
};

inline Safetensors::Safetensors(std::vector<std::byte> bytes, detail::HeaderReader&& header,
                                std::size_t data_at, std::string path)
    : path_(std::move(path)),
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
  if (bytes_ == nullptr) {
    mha::detail::fail<std::runtime_error>("mha::io::Safetensors: it has been moved from");
  }
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

}  // namespace mha::io
