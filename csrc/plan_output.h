// The results of solved pairs, and where each lies in them.
#pragma once

#include "transport.h"

namespace guardcore {

// Per-patch results are [B, C, N] for dense patches and [C, T] for packed ones, the others [B, C].
class PlanOutput {
 public:
  // `like` are the patches; the potentials f, and g [B, C, M], are for the backward alone.
  PlanOutput(const Tensor& like, const Patches& patches, const Prototypes& prototypes, bool potentials);

  // The plan that is left in w.
  void write_plan(const Patches& patches, int64_t item, const Prototypes& prototypes, int64_t category,
                  const Problem& q, std::optional<double> relaxation, Workspace& w) const;

  // A pair without a plan: NaN everywhere, zero iterations.
  void write_missing(const Patches& patches, int64_t item, int64_t category) const;

  Tensor distance, patch_cost, patch_score, objective, iterations, marginal_error;
  std::optional<Tensor> f, g;

 private:
  int64_t row(const Patches& patches, int64_t item, int64_t category) const;

  bool packed_;
  int64_t categories_, capacity_;
};

}  // namespace guardcore
