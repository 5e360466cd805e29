// SPDX-License-Identifier: MIT
//
// Optional: reads and writes safetensors files, the format in which PyTorch users publish weights.
//     auto file = mha::io::Safetensors::read("layer.safetensors");
//     Eigen::MatrixXf weight = file.matrix<float>("out_proj.weight");
// Files may be damaged or hostile: the answer is an exception that says where, never a crash or an
// allocation out of proportion to the file. Not included by mha.hpp; needs nlohmann/json >= 3.9.
// Read next: mha/io/safetensors_header.hpp for the format and its checks.
#pragma once

#include <mha/internal/support/language.hpp>

#include <mha/io/safetensors_reader.hpp>
#include <mha/io/safetensors_writer.hpp>
