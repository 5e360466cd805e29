// SPDX-License-Identifier: MIT
//
// What the machine can do, measured: the limits that the contenders' times are held against.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace mha_bench {

int num_cores();

/// The widest instruction set that this processor has and this program knows.
std::string instruction_set();

/// Of which arithmetic: the widest vectors of float or double, or AVX2's of float.
enum class Arithmetic { f32, f64, f32_avx2 };

/// GFLOP/s of fused multiply-adds (of multiplications and additions where there are none fused) on
/// registers, all `threads` at once; the best of some thirty tries of a few milliseconds.
double measure_fma_peak(int threads, Arithmetic arithmetic);

/// The sum of numbers that begin on a cache line's boundary: reads them as fast as a loop can.
/// `count` must be a multiple of 1024.
float read_all(const float* numbers, std::size_t count);

/// GB/s of read_all() over `bytes` bytes by so many threads; the best of some tries.
double measure_read_bandwidth(std::size_t bytes, int threads);

/// The peaks in use: measured when first asked for, and again by remeasure_peaks(), the higher
/// counts, since a busy neighbour only lowers a measurement.
double fma_peak(int threads, Arithmetic arithmetic);
void remeasure_peaks();

/// Processor, caches, operating system, compiler, flags, Eigen: name and value.
std::vector<std::pair<std::string, std::string>> machine_facts();

}  // namespace mha_bench
