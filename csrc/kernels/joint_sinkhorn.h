// What the groups of one joint problem get of each patch: mass_gn = sum_{m in g} p(m | n), cost_gn = sum p(m | n) C_nm.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "plan.h"

namespace guardcore::GUARDCORE_ISA {

// group[m] is the group of prototype m; rows of mass and cost are `row_stride` apart and hold q.patches entries.
static void group_shares(const Problem& q, const Workspace& w, const int64_t* group, int64_t groups, float* mass,
                         float* cost, int64_t row_stride) {
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(mass + g * row_stride, mass + g * row_stride + q.patches, 0.0f);
    std::fill(cost + g * row_stride, cost + g * row_stride + q.patches, 0.0f);
  }
  q.for_each_block([&](int64_t first, int64_t columns, int64_t offset) {
    const int64_t inside = std::min(columns, q.patches - first);
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const float* __restrict k = w.kernel + offset + m * columns;
      const float* __restrict c = w.cost + m * q.stride + first;
      const float* __restrict scale = w.per_row + first;
      float* __restrict to_mass = mass + group[m] * row_stride + first;
      float* __restrict to_cost = cost + group[m] * row_stride + first;
      const float v = w.v[m];
#pragma omp simd
      for (int64_t n = 0; n < inside; ++n) {
        const float share = v * k[n] * scale[n];
        to_mass[n] += share;
        to_cost[n] += share * c[n];
      }
    }
  });
}

}  // namespace guardcore::GUARDCORE_ISA
