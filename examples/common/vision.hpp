// SPDX-License-Identifier: MIT
//
// A small vision transformer over scenes. A token is a 12 x 12 patch and tokens are 4 pixels apart,
// 6 x 6 of them: the patches overlap so that each digit lies whole in one, wherever it is. Two linear
// maps with a relu between read the patch, a learned position says where it was.
// Sources: Dosovitskiy et al. 2021, arXiv:2010.11929 (ViT); Xiao et al. 2021, arXiv:2106.14881 (early
// convolutions, of which overlapping patches are the simplest).
#pragma once

#include <mha/mha.hpp>
#include <random>
#include <vector>

#include "scenes.hpp"
#include "training.hpp"

namespace examples {

inline constexpr int kPatchSide = 12;
inline constexpr int kPatchStride = 4;
inline constexpr int kPatchesAcross = kSceneSide / kPatchStride;
inline constexpr int kPatches = kPatchesAcross * kPatchesAcross;

/// One row per patch, kPatches per scene; no ink outside of the image.
inline Matrix<float> patches_of(const std::vector<Scene>& scenes) {
  constexpr int kMargin = (kPatchSide - kPatchStride) / 2;
  Matrix<float> rows(static_cast<Index>(scenes.size()) * kPatches, kPatchSide * kPatchSide);
  Matrix<float> padded = Matrix<float>::Zero(kSceneSide + 2 * kMargin, kSceneSide + 2 * kMargin);
  for (Index i = 0; i < rows.rows(); ++i) {
    const Index patch = i % kPatches;
    if (patch == 0) {
      padded.block(kMargin, kMargin, kSceneSide, kSceneSide) =
          scenes[static_cast<std::size_t>(i / kPatches)].image;
    }
    Eigen::Map<Matrix<float>>(rows.row(i).data(), kPatchSide, kPatchSide) =
        padded.block(patch / kPatchesAcross * kPatchStride, patch % kPatchesAcross * kPatchStride,
                     kPatchSide, kPatchSide);
  }
  return rows;
}

/// The numbers 0, ..., count - 1, over and over: positions of equal sequences.
inline std::vector<int> repeated_range(int count, std::size_t times) {
  std::vector<int> all;
  for (std::size_t n = 0; n < times; ++n) {
    for (int k = 0; k < count; ++k) all.push_back(k);
  }
  return all;
}

class VisionEncoder {
 public:
  VisionEncoder(Index width, Index heads, int layers, std::mt19937& random)
      : first_(kPatchSide * kPatchSide, 2 * width, random),
        second_(2 * width, width, random),
        positions_(kPatches, width, random),
        norm_(width) {
    for (int n = 0; n < layers; ++n) blocks_.emplace_back(width, heads, random);
  }
  /// kPatches rows per scene.
  Matrix<float> forward(const std::vector<Scene>& scenes) {
    batch_ = static_cast<Index>(scenes.size());
    hidden_ = first_.forward(patches_of(scenes)).cwiseMax(0.0f);
    Matrix<float> x =
        second_.forward(hidden_) + positions_.forward(repeated_range(kPatches, scenes.size()));
    for (EncoderBlock& block : blocks_) x = block.forward(x, mha::All{}, {.batch = batch_});
    return norm_.forward(x);
  }
  void backward(const Matrix<float>& grad) {
    Matrix<float> g = norm_.backward(grad);
    for (std::size_t n = blocks_.size(); n-- > 0;) {
      g = blocks_[n].backward(g, mha::All{}, {.batch = batch_});
    }
    positions_.backward(g);
    g = second_.backward(g);
    first_.backward((hidden_.array() > 0.0f).select(g, 0.0f));
  }
  void collect(LearnedList& all) {
    first_.collect(all);
    second_.collect(all);
    positions_.collect(all);
    for (EncoderBlock& block : blocks_) block.collect(all);
    norm_.collect(all);
  }

 private:
  Linear first_;
  Linear second_;
  Embedding positions_;
  std::vector<EncoderBlock> blocks_;
  LayerNorm norm_;
  Matrix<float> hidden_;
  Index batch_ = 0;
};

}  // namespace examples
