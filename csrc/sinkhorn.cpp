// guardcore::sinkhorn and guardcore::sinkhorn_packed on the CPU.
#include "operators.h"
#include "plan_output.h"
#include "transport.h"

namespace guardcore {
namespace {

SinkhornResult run(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const Tensor& prototypes,
                   const std::optional<Tensor>& patch_weights, const std::optional<Tensor>& prototype_weights,
                   const Options& options, std::optional<double> relaxation) {
  const Patches items(patches, cu_seqlens, patch_weights);
  const Prototypes banks(prototypes, prototype_weights);
  const PlanOutput out(patches, items, banks, true);
  for_each_task(items, banks, all_tasks(items, banks), [&](const Task& task, bool sound, Workspace& w) {
    for (int64_t category = task.first; category < task.last; ++category) {
      if (!sound || !banks.sound(category)) {
        out.write_missing(items, task.item, category);
        continue;
      }
      const Problem q = cost_of_pair(items, task.item, banks, category, options, w);
      kernels().solve(q, w);
      out.write_plan(items, task.item, banks, category, q, relaxation, w);
    }
  });
  return {out.distance,   out.patch_cost,     out.patch_score, out.objective,
          out.iterations, out.marginal_error, *out.f,          *out.g};
}

}  // namespace

SinkhornResult sinkhorn(Tensor patches, Tensor prototypes, std::optional<Tensor> patch_weights,
                        std::optional<Tensor> prototype_weights, double epsilon, int64_t max_iterations,
                        double tolerance, std::optional<double> relaxation) {
  check_embeddings(patches, 3, prototypes, 3);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, std::nullopt, prototypes, patch_weights, prototype_weights, options, relaxation);
}

SinkhornResult sinkhorn_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes,
                               std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                               double epsilon, int64_t max_iterations, double tolerance,
                               std::optional<double> relaxation) {
  check_embeddings(patches, 2, prototypes, 3);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, cu_seqlens, prototypes, patch_weights, prototype_weights, options, relaxation);
}

}  // namespace guardcore
