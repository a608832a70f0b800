#include "plan_output.h"

#include <limits>

namespace guardcore {
namespace {

std::vector<int64_t> per_patch(const Tensor& like, const Patches& patches, const Prototypes& prototypes) {
  if (like.dim() == 2) return {prototypes.categories(), patches.total()};
  return {patches.items(), prototypes.categories(), like.size(1)};
}

float* at(const Tensor& tensor, int64_t place) { return tensor.mutable_data_ptr<float>() + place; }

}  // namespace

PlanOutput::PlanOutput(const Tensor& like, const Patches& patches, const Prototypes& prototypes, bool potentials)
    : distance(empty_like_on_cpu(like, {patches.items(), prototypes.categories()})),
      patch_cost(empty_like_on_cpu(like, per_patch(like, patches, prototypes))),
      patch_score(empty_like_on_cpu(like, per_patch(like, patches, prototypes))),
      objective(empty_like_on_cpu(like, {patches.items(), prototypes.categories()})),
      iterations(empty_like_on_cpu(like, {patches.items(), prototypes.categories()}, ScalarType::Int)),
      marginal_error(empty_like_on_cpu(like, {patches.items(), prototypes.categories()})),
      packed_(like.dim() == 2),
      categories_(prototypes.categories()),
      capacity_(prototypes.capacity()) {
  if (!potentials) return;
  f = empty_like_on_cpu(like, per_patch(like, patches, prototypes));
  g = empty_like_on_cpu(like, {patches.items(), categories_, capacity_});
}

int64_t PlanOutput::row(const Patches& patches, int64_t item, int64_t category) const {
  return packed_ ? category * patches.total() + patches.start(item)
                 : patches.start(item) * categories_ + category * patches.count(item);
}

void PlanOutput::write_plan(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category,
                            const Problem& q, std::optional<double> relaxation, Workspace& w) const {
  const int64_t pair = item * categories_ + category, first = row(patches, item, category);
  float* score = w.u;  // the scaling u is spent once the plan is solved
  kernels().patch_scores(q, w, score);
  std::copy(score, score + q.patches, at(patch_score, first));
  *at(distance, pair) = static_cast<float>(kernels().patch_costs(q, w, score, at(patch_cost, first)));
  *at(objective, pair) = static_cast<float>(kernels().dual_value(q, w, !relaxation, relaxation.value_or(0)));
  iterations.mutable_data_ptr<int32_t>()[pair] = w.iterations;
  *at(marginal_error, pair) = w.marginal_error;
  if (!f) return;
  std::copy(w.f, w.f + q.patches, at(*f, first));
  float* potential = at(*g, pair * capacity_);
  std::fill(potential, potential + capacity_, 0.0f);  // a prototype without weight has no part in the plan
  for (int64_t m = 0; m < q.prototypes; ++m) potential[prototypes.origin(category)[m]] = w.g[m];
}

void PlanOutput::write_missing(const Patches& patches, int64_t item, int64_t category) const {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t pair = item * categories_ + category, first = row(patches, item, category);
  for (const Tensor* one : {&distance, &objective, &marginal_error}) *at(*one, pair) = nan;
  for (const Tensor* one : {&patch_cost, &patch_score}) std::fill_n(at(*one, first), patches.count(item), nan);
  iterations.mutable_data_ptr<int32_t>()[pair] = 0;
  if (!f) return;
  std::fill_n(at(*f, first), patches.count(item), nan);
  std::fill_n(at(*g, pair * capacity_), capacity_, nan);
}

}  // namespace guardcore
