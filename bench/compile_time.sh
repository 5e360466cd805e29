#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What it costs to compile programs that use the library, in CPU seconds and megabytes of the compiler at -O2:
#     bench/compile_time.sh [COMPILER] [EIGEN_INCLUDE_DIR]
# The smallest of three runs each. `compiled` is a program that links to mha::compiled.
set -eu
cd "$(dirname "$0")/.."
compiler=${1:-${CXX:-g++}}
eigen=${2:-/usr/include/eigen3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/eigen.cpp" <<'PROGRAM'
#include <Eigen/Core>
#include <iostream>
int main() {
  const Eigen::MatrixXf x = Eigen::MatrixXf::Random(10, 512);
  const Eigen::MatrixXf y = x * 2;
  std::cout << y.rows() << " x " << y.cols() << "\n";
}
PROGRAM
cat >"$work/include.cpp" <<'PROGRAM'
#include <mha/mha.hpp>
PROGRAM
cat >"$work/ten_lines.cpp" <<'PROGRAM'
#include <mha/mha.hpp>
#include <iostream>
int main() {
  const mha::MultiHead<float, 8> attention(512);
  const Eigen::MatrixXf x = Eigen::MatrixXf::Random(10, 512);
  const Eigen::MatrixXf y = attention(x, mha::causal());
  std::cout << y.rows() << " x " << y.cols() << "\n";
}
PROGRAM

echo "$("$compiler" --version | head -n 1), -O2, CPU seconds and MB of the compiler, best of three"
# measure NAME SOURCE [FLAG ...]
measure() {
  name=$1
  source=$2
  shift 2
  for run in 1 2 3; do
    { /usr/bin/time -f '%U %S %M' "$compiler" -std=c++20 -O2 "$@" -Iinclude -Iexamples \
      -isystem "$eigen" -c "$source" -o "$work/out.o"; } 2>&1 | tail -n 1
  done | awk -v name="$name" '{ t = $1 + $2; if (NR == 1 || t < best) { best = t; memory = $3 } }
    END { printf "%-46s %6.2f s %6.0f MB\n", name, best, memory / 1024 }'
}
measure "Eigen/Core alone, a program of its own" "$work/eigen.cpp"
measure "mha/mha.hpp included, nothing used" "$work/include.cpp"
measure "the same, compiled" "$work/include.cpp" -DMHA_COMPILED
measure "ten lines: a layer is made and called" "$work/ten_lines.cpp"
measure "the same, compiled" "$work/ten_lines.cpp" -DMHA_COMPILED
measure "training: examples/applications/07_digits.cpp" examples/applications/07_digits.cpp
measure "the same, compiled" examples/applications/07_digits.cpp -DMHA_COMPILED
measure "mha::compiled itself" cmake/mha_compiled.cpp -DMHA_COMPILED
