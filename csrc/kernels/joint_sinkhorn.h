// What the groups of one joint problem get of each patch: mass_gn = sum_{m in g} p(m | n), cost_gn = sum p(m | n) C_nm.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "plan.h"

namespace guardcore {

// group[m] is the group of prototype m; rows of mass and cost are `row_stride` apart and hold q.patches entries.
GUARDCORE_CLONES
static void group_shares(const Problem& q, const Workspace& w, const int64_t* group, int64_t groups, float* mass,
                         float* cost, int64_t row_stride) {
  const float* __restrict per_row = w.per_row;
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(mass + g * row_stride, mass + g * row_stride + q.patches, 0.0f);
    std::fill(cost + g * row_stride, cost + g * row_stride + q.patches, 0.0f);
  }
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict k = w.kernel + m * q.stride;
    const float* __restrict c = w.cost + m * q.stride;
    float* __restrict to_mass = mass + group[m] * row_stride;
    float* __restrict to_cost = cost + group[m] * row_stride;
    const float v = w.v[m];
#pragma omp simd
    for (int64_t n = 0; n < q.patches; ++n) {
      const float share = v * k[n] * per_row[n];
      to_mass[n] += share;
      to_cost[n] += share * c[n];
    }
  }
}

}  // namespace guardcore
