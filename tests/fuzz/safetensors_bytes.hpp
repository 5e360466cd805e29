// SPDX-License-Identifier: MIT
//
// What the fuzzer and the replay of its corpus do with one input: read it as a safetensors file, and
// ask for every tensor in every way. Damaged files and values that do not fit are std::runtime_error;
// anything else that is thrown, and any number that disagrees with the file's own, is a fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mha/io/safetensors.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace mha::test {

/// Ends the program, so that the fuzzer keeps the input.
inline void demand(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "safetensors: expected that %s\n", what);
  std::abort();
}

/// Whether `f` returned; else it threw std::runtime_error, with a message that says where.
template <class F>
bool succeeds(const F& f) {
  try {
    f();
    return true;
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    demand(what.starts_with("mha::io::Safetensors") && what.find(": byte ") != what.npos,
           "an error names function and byte");
    demand(what.size() < 2000, "an error is of readable length");
    return false;
  }
}

/// The tensor as numbers of this type, if it holds them.
template <class Scalar>
bool read_values(const io::Safetensors& file, const std::string& name) {
  std::vector<Scalar> values;
  const bool fits = succeeds([&] { values = file.values<Scalar>(name); });
  demand(!fits || values.size() == static_cast<std::size_t>(file.tensor(name).size()),
         "every element is returned");
  return fits;
}

/// The same by the other ways in which a tensor can be read, which must agree.
template <class Scalar>
void read_every_way(const io::Safetensors& file, const std::string& name) {
  const bool fits = read_values<Scalar>(file, name);
  const bool low_rank = file.tensor(name).shape.size() <= 2;
  demand(succeeds([&] { static_cast<void>(file.matrix<Scalar>(name)); }) == (fits && low_rank),
         "what has rank 2 at most is a matrix");
  demand(succeeds([&] { static_cast<void>(file.vector<Scalar>(name)); }) == fits,
         "values and vector agree");
}

/// Whether the bytes are a file; every tensor of it has been read then, and written again.
inline bool read_safetensors(std::span<const std::byte> bytes) {
  return succeeds([&] {
    const auto file = io::Safetensors::parse({bytes.begin(), bytes.end()}, "input");
    std::size_t total = 0;
    for (const auto& [name, info] : file.tensors()) {
      demand(file.contains(name), "a listed name is contained");
      demand(info.size() >= 0, "sizes are not negative");
      total += info.bytes.size();
      read_every_way<float>(file, name);
      read_values<double>(file, name);
      read_values<Eigen::half>(file, name);
      read_values<Eigen::bfloat16>(file, name);
      read_values<std::int64_t>(file, name);
      read_every_way<std::int32_t>(file, name);
      read_values<std::int16_t>(file, name);
      read_values<std::int8_t>(file, name);
      read_values<std::uint64_t>(file, name);
      read_values<std::uint32_t>(file, name);
      read_values<std::uint16_t>(file, name);
      read_values<std::uint8_t>(file, name);
      read_values<bool>(file, name);
    }
    demand(total <= bytes.size(), "tensors lie in the file");
    demand(!succeeds([&] { static_cast<void>(file.tensor("no such tensor \xff\n")); }),
           "an unknown name is an error");
  });
}

}  // namespace mha::test
