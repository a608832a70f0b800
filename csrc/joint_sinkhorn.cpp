// guardcore::joint_sinkhorn and guardcore::joint_sinkhorn_packed on the CPU.
#include <limits>

#include "operators.h"
#include "transport.h"

namespace guardcore {
namespace {

// The group of every prototype that is kept (weight > 0), in their order.
std::vector<int64_t> kept_groups(const Tensor& group, const Prototypes& bank, int64_t num_groups) {
  STD_TORCH_CHECK(group.is_cpu() && group.dim() == 1 && group.numel() == bank.capacity(),
                  "group must be a CPU vector with one entry for each prototype");
  check_index("group", group);
  STD_TORCH_CHECK(num_groups >= 1, "num_groups must be >= 1, got ", num_groups);
  const Tensor values = torch::stable::contiguous(torch::stable::to(group, ScalarType::Long));
  const int64_t* value = values.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < bank.capacity(); ++m)
    STD_TORCH_CHECK(value[m] >= 0 && value[m] < num_groups, "group must be in 0 ... ", num_groups - 1, ", got ",
                    value[m]);
  std::vector<int64_t> kept(bank.count(0));
  for (int64_t m = 0; m < bank.count(0); ++m) kept[m] = value[bank.origin(0)[m]];
  return kept;
}

void fill_unsound(float* mass, float* cost, int64_t groups, int64_t patches, int64_t row_stride) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(mass + g * row_stride, mass + g * row_stride + patches, nan);
    std::fill(cost + g * row_stride, cost + g * row_stride + patches, nan);
  }
}

JointResult run(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const Tensor& prototypes,
                const Tensor& group, const std::optional<Tensor>& patch_weights,
                const std::optional<Tensor>& prototype_weights, int64_t num_groups, const Options& options) {
  const Patches items(patches, cu_seqlens, patch_weights);
  const Prototypes bank(prototypes, prototype_weights);
  const std::vector<int64_t> groups = kept_groups(group, bank, num_groups);
  const bool packed = cu_seqlens.has_value();
  const auto shape = packed ? std::vector<int64_t>{num_groups, items.total()}
                            : std::vector<int64_t>{items.items(), num_groups, patches.size(1)};
  const Tensor group_mass = empty_like_on_cpu(patches, shape), group_cost = empty_like_on_cpu(patches, shape);
  const Tensor iterations = empty_like_on_cpu(patches, {items.items()}, ScalarType::Int);
  const Tensor marginal_error = empty_like_on_cpu(patches, {items.items()});
  const auto answer = [&](int64_t item, const std::optional<Problem>& q, Workspace& w) {
    const int64_t row_stride = packed ? items.total() : items.count(item);
    const int64_t offset = items.start(item) * (packed ? 1 : num_groups);
    float* mass = group_mass.mutable_data_ptr<float>() + offset;
    float* cost = group_cost.mutable_data_ptr<float>() + offset;
    if (q) {
      kernels().solve(*q, w);
      kernels().group_shares(*q, w, groups.data(), num_groups, mass, cost, row_stride);
    } else {
      fill_unsound(mass, cost, num_groups, items.count(item), row_stride);
    }
    iterations.mutable_data_ptr<int32_t>()[item] = q ? w.iterations : 0;
    marginal_error.mutable_data_ptr<float>()[item] = q ? w.marginal_error : std::numeric_limits<float>::quiet_NaN();
  };
  if (items.items() == 1) {
    Workspace w(items.longest(), bank.capacity(), items.width());
    answer(0, cost_by_all_threads(items, bank, options, w), w);
  } else {
    for_each_task(items, bank, all_tasks(items, bank), [&](const Task& task, bool sound, Workspace& w) {
      sound &= bank.sound(0);
      answer(task.item, sound ? std::optional(cost_of_pair(items, task.item, bank, 0, options, w)) : std::nullopt, w);
    });
  }
  return {group_mass, group_cost, iterations, marginal_error};
}

}  // namespace

JointResult joint_sinkhorn(Tensor patches, Tensor prototypes, Tensor group, std::optional<Tensor> patch_weights,
                           std::optional<Tensor> prototype_weights, int64_t num_groups, double epsilon,
                           int64_t max_iterations, double tolerance, std::optional<double> relaxation) {
  check_embeddings(patches, 3, prototypes, 2);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, std::nullopt, prototypes, group, patch_weights, prototype_weights, num_groups, options);
}

JointResult joint_sinkhorn_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes, Tensor group,
                                  std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                                  int64_t num_groups, double epsilon, int64_t max_iterations, double tolerance,
                                  std::optional<double> relaxation) {
  check_embeddings(patches, 2, prototypes, 2);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, cu_seqlens, prototypes, group, patch_weights, prototype_weights, num_groups, options);
}

}  // namespace guardcore
