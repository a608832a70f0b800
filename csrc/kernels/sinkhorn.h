// Entropic transport of one item to one category, from its cost tile to its numbers.
//
//   T_nm = a_n b_m exp((f_n + g_m - C_nm) / epsilon)
//   rows:    f_n = -epsilon log sum_m b_m exp((g_m - C_nm) / epsilon)
//   columns: g_m = -epsilon damping log sum_n a_n exp((f_n - C_nm) / epsilon),  damping = 1 or rho / (rho + epsilon)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "kernel_domain.h"
#include "plan.h"

namespace guardcore::GUARDCORE_ISA {

// score[n] = sum_m p(m | n) C_nm, patch n's mean cost under its conditional plan. Rounding must not take it below the
// row's minimum: categories are cleared by that bound.
static void patch_scores(const Problem& q, const Workspace& w, float* __restrict score) {
  const float* __restrict per_row = w.per_row;
  const float* __restrict shift = w.shift;
  std::fill(score, score + q.stride, 0.0f);
  q.for_each_block([&](int64_t first, int64_t columns, int64_t offset) {
    float* __restrict sum = score + first;
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const float* __restrict k = w.kernel + offset + m * columns;
      const float* __restrict c = w.cost + m * q.stride + first;
      const float v = w.v[m];
#pragma omp simd
      for (int64_t n = 0; n < columns; ++n) sum[n] += v * k[n] * c[n];
    }
  });
#pragma omp simd
  for (int64_t n = 0; n < q.stride; ++n) {
    score[n] *= per_row[n];
    score[n] = score[n] < shift[n] ? shift[n] : score[n];
  }
}

// cost[n] = mass[n] score[n]; returns the distance, their sum.
static double patch_costs(const Problem& q, const Workspace& w, const float* __restrict score, float* __restrict cost) {
  const float* __restrict mass = w.mass;
  double distance = 0;
#pragma omp simd reduction(+ : distance)
  for (int64_t n = 0; n < q.patches; ++n) {
    cost[n] = mass[n] * score[n];
    distance += cost[n];
  }
  return distance;
}

// <a, f> + <b, g>, or with a relaxed marginal <a, f> + rho <b, 1 - exp(-g / rho)> - epsilon (sum T - 1).
static double dual_value(const Problem& q, const Workspace& w, bool balanced, double rho) {
  double rows = 0, columns = 0, mass = 0;
#pragma omp simd reduction(+ : rows, mass)
  for (int64_t n = 0; n < q.patches; ++n) rows += static_cast<double>(w.a[n]) * w.f[n], mass += w.mass[n];
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const double g = w.g[m];
    columns += w.b[m] * (balanced ? g : rho > 0 ? -rho * std::expm1(-g / rho) : 0.0);
  }
  return rows + columns - (balanced ? 0.0 : q.options.epsilon * (mass - 1));
}

}  // namespace guardcore::GUARDCORE_ISA
