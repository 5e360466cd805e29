// SPDX-License-Identifier: MIT
//
// ONNX's RotaryEmbedding, opset 23: tables of cosines and sines, one row per position, or one per
// token if there are no position_ids.
#include <cstdint>

#include "case.hpp"
#include "mha/rotary.hpp"

namespace mha::conformance {
namespace {

template <class Scalar>
void run(Case& c) {
  Array<Scalar> x = c.read<Scalar>("X");
  const Array<Scalar> cos = c.read<Scalar>("cos_cache");
  const Array<Scalar> sin = c.read<Scalar>("sin_cache");
  const RotaryPairs pairs =
      c.flag("interleaved", false) ? RotaryPairs::interleaved : RotaryPairs::half;
  const Index num_heads = c.integer("num_heads", 0);
  const bool whole = x.rank() == 3;
  if (whole && num_heads == 0) throw std::runtime_error("num_heads must be given for rank 3");
  if (!whole && num_heads != 0 && num_heads != x.size(1)) {
    throw std::runtime_error("num_heads contradicts the shape");
  }
  auto rows = x.rows();
  const TensorView<Scalar> heads = whole ? split_heads(rows, num_heads, x.size(0)) : x.view();

  Index dim = c.integer("rotary_embedding_dim", 0);
  if (dim == 0) dim = heads.size(3);
  if (2 * cos.columns() != dim) {
    throw std::runtime_error("rotary_embedding_dim must be twice the tables' width");
  }
  std::vector<Index> positions;
  if (c.has("position_ids")) {
    for (const std::int64_t p : c.read<std::int64_t>("position_ids").values) {
      positions.push_back(static_cast<Index>(p));
    }
  } else {
    for (Index p = 0; p < heads.size(0) * heads.size(2); ++p) positions.push_back(p);
  }
  rotary_in_place(heads, cos.rows(), sin.rows(), pairs, positions);
  c.check("Y", x, "rotary_in_place");
}

}  // namespace

void run_onnx_rotary_embedding(Case& c) {
  with_scalar(c.dtype("X"), [&]<class Scalar>() { run<Scalar>(c); });
}

}  // namespace mha::conformance
