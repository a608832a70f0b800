// guardcore::sinkhorn and guardcore::sinkhorn_packed on the CPU.
#include <limits>
#include <tuple>

#include "operators.h"
#include "transport.h"

namespace guardcore {
namespace {

// The outputs, and where one item's numbers lie in them: per-patch results are [B, C, N] dense and [C, T] packed.
struct Output {
  Output(const Tensor& like, const Patches& patches, const Prototypes& prototypes, std::vector<int64_t> per_patch,
         bool packed)
      : packed(packed),
        items(patches.items()),
        categories(prototypes.categories()),
        capacity(prototypes.capacity()),
        total(patches.total()),
        distance(empty_like_on_cpu(like, {items, categories})),
        patch_cost(empty_like_on_cpu(like, per_patch)),
        patch_score(empty_like_on_cpu(like, per_patch)),
        objective(empty_like_on_cpu(like, {items, categories})),
        iterations(empty_like_on_cpu(like, {items, categories}, ScalarType::Int)),
        marginal_error(empty_like_on_cpu(like, {items, categories})),
        f(empty_like_on_cpu(like, per_patch)),
        g(empty_like_on_cpu(like, {items, categories, capacity})) {}

  int64_t row(const Patches& patches, int64_t item, int64_t category) const {
    return packed ? category * total + patches.start(item)
                  : patches.start(item) * categories + category * patches.count(item);
  }

  bool packed;
  int64_t items, categories, capacity, total;
  Tensor distance, patch_cost, patch_score, objective, iterations, marginal_error, f, g;
};

// Raw pointers of one (item, category) pair.
struct Slot {
  float *distance, *patch_cost, *patch_score, *objective;
  int32_t* iterations;
  float *marginal_error, *f, *g;
};

Slot slot_of(const Output& out, const Patches& patches, int64_t item, int64_t category) {
  const int64_t pair = item * out.categories + category, row = out.row(patches, item, category);
  return {out.distance.mutable_data_ptr<float>() + pair,
          out.patch_cost.mutable_data_ptr<float>() + row,
          out.patch_score.mutable_data_ptr<float>() + row,
          out.objective.mutable_data_ptr<float>() + pair,
          out.iterations.mutable_data_ptr<int32_t>() + pair,
          out.marginal_error.mutable_data_ptr<float>() + pair,
          out.f.mutable_data_ptr<float>() + row,
          out.g.mutable_data_ptr<float>() + pair * out.capacity};
}

// An item or a category that cannot be judged: NaN everywhere, zero iterations.
void fill_unsound(const Slot& slot, int64_t patches, int64_t capacity) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (float* number : {slot.distance, slot.objective, slot.marginal_error}) *number = nan;
  for (float* row : {slot.patch_cost, slot.patch_score, slot.f}) std::fill(row, row + patches, nan);
  std::fill(slot.g, slot.g + capacity, nan);
  *slot.iterations = 0;
}

void write_plan(const Slot& slot, const Problem& q, Workspace& w, const int64_t* origin, int64_t capacity,
                std::optional<double> relaxation) {
  float* score = w.u;  // the scaling u is spent once the plan is solved
  kernels().patch_scores(q, w, score);
  std::copy(score, score + q.patches, slot.patch_score);
  std::copy(w.f, w.f + q.patches, slot.f);
  *slot.distance = static_cast<float>(kernels().patch_costs(q, w, score, slot.patch_cost));
  std::fill(slot.g, slot.g + capacity, 0.0f);  // a prototype without weight has no part in the plan
  for (int64_t m = 0; m < q.prototypes; ++m) slot.g[origin[m]] = w.g[m];
  *slot.objective = static_cast<float>(kernels().dual_value(q, w, !relaxation, relaxation.value_or(0)));
  *slot.iterations = w.iterations;
  *slot.marginal_error = w.marginal_error;
}

SinkhornResult run(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const Tensor& prototypes,
                   const std::optional<Tensor>& patch_weights, const std::optional<Tensor>& prototype_weights,
                   const Options& options, std::optional<double> relaxation) {
  const Patches items(patches, cu_seqlens, patch_weights);
  const Prototypes banks(prototypes, prototype_weights);
  const int64_t categories = banks.categories();
  const bool packed = cu_seqlens.has_value();
  const auto per_patch = packed ? std::vector<int64_t>{categories, items.total()}
                                : std::vector<int64_t>{items.items(), categories, patches.size(1)};
  const Output out(patches, items, banks, per_patch, packed);
  for_each_task(items, banks, [&](int64_t item, bool sound, int64_t first, int64_t last, Workspace& w) {
    for (int64_t category = first; category < last; ++category) {
      const Slot slot = slot_of(out, items, item, category);
      if (!sound || !banks.sound(category)) {
        fill_unsound(slot, items.count(item), banks.capacity());
        continue;
      }
      const Problem q = cost_of_pair(items, item, banks, category, options, w);
      kernels().solve(q, w);
      write_plan(slot, q, w, banks.origin(category), banks.capacity(), relaxation);
    }
  });
  return {out.distance,   out.patch_cost,     out.patch_score, out.objective,
          out.iterations, out.marginal_error, out.f,           out.g};
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
