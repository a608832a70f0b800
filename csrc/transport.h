// The host side that the transport operators share: checked inputs, and the loop over items and categories.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/table.h"

namespace guardcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Options checked_options(double epsilon, int64_t max_iterations, double tolerance, std::optional<double> relaxation);

// Raises unless the index is int32 or int64: a float would be truncated.
void check_index(const char* name, const Tensor& index);

// Raises unless the embeddings have these ranks, one supported dtype, the CPU and one width.
void check_embeddings(const Tensor& patches, int64_t patch_dims, const Tensor& prototypes, int64_t prototype_dims);

Tensor empty_like_on_cpu(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype = ScalarType::Float);

// Items of patches, one after the other: their rows as given, and shares [T] that sum to 1 within each item.
class Patches {
 public:
  // Dense [B, N, D] without offsets, packed [T, D] with cu_seqlens[B + 1].
  Patches(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& weights);

  int64_t items() const { return static_cast<int64_t>(start_.size()) - 1; }
  int64_t total() const { return start_.back(); }
  int64_t width() const { return rows_.width; }
  int64_t longest() const;
  int64_t start(int64_t item) const { return start_[item]; }
  int64_t count(int64_t item) const { return start_[item + 1] - start_[item]; }
  bool has_mass(int64_t item) const { return mass_[item]; }
  Rows rows(int64_t item) const { return rows_.slice(start(item), count(item)); }
  // The item's unit rows and shares, packed into w for banks of that capacity. False for an item with a NaN or infinity
  // or without mass: its results are NaN.
  bool load(int64_t item, int64_t capacity, Workspace& w) const;
  // The shares alone; false without mass.
  bool load_shares(int64_t item, Workspace& w) const;

 private:
  Tensor patches_;  // keeps the rows alive
  Rows rows_;
  std::vector<int64_t> start_;
  std::vector<float> shares_;
  std::vector<uint8_t> mass_;
};

// Banks of prototypes [C, M, D], each reduced to its prototypes of nonzero weight.
class Prototypes {
 public:
  Prototypes(const Tensor& prototypes, const std::optional<Tensor>& weights);

  int64_t categories() const { return static_cast<int64_t>(sound_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t width() const { return width_; }
  int64_t count(int64_t category) const { return count_[category]; }
  bool sound(int64_t category) const { return sound_[category]; }
  const float* unit(int64_t category) const { return unit_.get() + category * capacity_ * prototype_stride(width_); }
  // The same as panels of kWidth prototypes side by side.
  const float* panels(int64_t category) const { return panels_.get() + category * padded(capacity_) * width_; }
  const float* shares(int64_t category) const { return shares_.data() + category * capacity_; }
  // Where each kept prototype stood in the input.
  const int64_t* origin(int64_t category) const { return origin_.data() + category * capacity_; }

 private:
  void keep(int64_t category, const Rows& rows, const float* weights);

  int64_t capacity_, width_;
  std::unique_ptr<float[]> unit_, panels_;
  std::vector<float> shares_;
  std::vector<int64_t> origin_, count_;
  std::vector<uint8_t> sound_;
};

// One item against the categories first ... last - 1.
struct Task {
  int64_t item, first, last;
};

// All pairs, an item's categories cut into so many tasks that the threads have enough to share.
std::vector<Task> all_tasks(const Patches& patches, const Prototypes& prototypes);

// Calls solve(task, sound, workspace) from torch's threads. One that is done takes the next task, whatever range torch
// gave it; every pair is solved by one thread, so the numbers do not depend on who took it.
template <class Solve>
void for_each_task(const Patches& patches, const Prototypes& prototypes, const std::vector<Task>& tasks, Solve solve) {
  const int64_t count = tasks.size();
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::optional<Workspace> w;
    int64_t loaded = -1;
    bool sound = false;
    for (int64_t i = next++; i < count; i = next++) {
      if (!w) w.emplace(patches.longest(), prototypes.capacity(), patches.width());
      if (tasks[i].item != loaded) sound = patches.load(tasks[i].item, prototypes.capacity(), *w);
      loaded = tasks[i].item;
      solve(tasks[i], sound, *w);
    }
  });
}

// Cost tile and row minima of the loaded item against one bank, left in w.
Problem cost_of_pair(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category,
                     const Options& options, Workspace& w);

// The same of a single item and a single bank, by all threads, with the same bits; none if one of them is not sound.
std::optional<Problem> cost_by_all_threads(const Patches& patches, const Prototypes& bank, const Options& options,
                                           Workspace& w);

}  // namespace guardcore
