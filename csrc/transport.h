// The host side that both transport operators share: checked, contiguous, normalized inputs.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/normalize.h"
#include "kernels/sinkhorn.h"

namespace guardcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Options checked_options(double epsilon, int64_t max_iterations, double tolerance, std::optional<double> relaxation);

// Raises unless the index is int32 or int64: a float would be truncated.
void check_index(const char* name, const Tensor& index);

// Raises unless the embeddings have these ranks, one supported dtype, the CPU and one width.
void check_embeddings(const Tensor& patches, int64_t patch_dims, const Tensor& prototypes, int64_t prototype_dims);

Tensor empty_like_on_cpu(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype = ScalarType::Float);

// Items of patches, one after the other: unit rows [T, D] and shares [T] that sum to 1 within each item.
class Patches {
 public:
  // Dense [B, N, D] without offsets, packed [T, D] with cu_seqlens[B + 1].
  Patches(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& weights);

  int64_t items() const { return static_cast<int64_t>(start_.size()) - 1; }
  int64_t total() const { return start_.back(); }
  int64_t longest() const;
  int64_t start(int64_t item) const { return start_[item]; }
  int64_t count(int64_t item) const { return start_[item + 1] - start_[item]; }
  // False for an item with a NaN or infinity or without mass: its results are NaN.
  bool sound(int64_t item) const { return sound_[item]; }
  const float* unit(int64_t item) const { return unit_.get() + start_[item] * width_; }
  const float* shares(int64_t item) const { return shares_.data() + start_[item]; }

 private:
  int64_t width_;
  std::vector<int64_t> start_;
  std::unique_ptr<float[]> unit_;
  std::vector<float> shares_;
  std::vector<uint8_t> sound_;
};

// Banks of prototypes [C, M, D], each reduced to its prototypes of nonzero weight.
class Prototypes {
 public:
  Prototypes(const Tensor& prototypes, const std::optional<Tensor>& weights);

  int64_t categories() const { return static_cast<int64_t>(sound_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t count(int64_t category) const { return count_[category]; }
  bool sound(int64_t category) const { return sound_[category]; }
  const float* unit(int64_t category) const { return unit_.get() + category * capacity_ * width_; }
  const float* shares(int64_t category) const { return shares_.data() + category * capacity_; }
  // Where each kept prototype stood in the input.
  const int64_t* origin(int64_t category) const { return origin_.data() + category * capacity_; }

 private:
  void keep(int64_t category, const float* rows, const float* weights);

  int64_t capacity_, width_;
  std::unique_ptr<float[]> unit_;
  std::vector<float> shares_;
  std::vector<int64_t> origin_, count_;
  std::vector<uint8_t> sound_;
};

// Cost tile and plan of one item against one bank, left in w.
Problem solve_pair(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category, int64_t width,
                   const Options& options, Workspace& w);

}  // namespace guardcore
