// Sinkhorn's iteration in the log domain: slower by two exponentials per entry and iteration, but nothing underflows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "elementary.h"
#include "isa.h"
#include "plan.h"

namespace guardcore {

// f_n = -epsilon log sum_m exp((h_m - C_nm) / epsilon), h_m = g_m + epsilon log b_m.
GUARDCORE_CLONES
static void log_row_update(const Problem& q, const float* cost, const float* h, float* __restrict top, float* __restrict sum,
                           float* __restrict f) {
  const float rate = 1.0f / q.options.epsilon;
  std::fill(top, top + q.stride, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + q.stride, 0.0f);
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) top[n] = h[m] - c[n] > top[n] ? h[m] - c[n] : top[n];
  }
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) sum[n] += exponential((h[m] - c[n] - top[n]) * rate);
  }
#pragma omp simd
  for (int64_t n = 0; n < q.stride; ++n) f[n] = -top[n] - q.options.epsilon * logarithm(sum[n]);
}

// h_m = epsilon (log b_m - damping log sum_n exp((l_n - C_nm) / epsilon)), l_n = f_n + epsilon log a_n; g likewise.
GUARDCORE_CLONES
static void log_column_update(const Problem& q, const float* cost, const float* __restrict l, float* g, float* h) {
  const float epsilon = q.options.epsilon, rate = 1.0f / epsilon;
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t n = 0; n < q.stride; ++n) top = l[n] - c[n] > top ? l[n] - c[n] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t n = 0; n < q.stride; ++n) sum += exponential((l[n] - c[n] - top) * rate);
    g[m] = -q.options.damping * (top + epsilon * std::log(sum));
    h[m] = g[m] + epsilon * std::log(q.b[m]);
  }
}

// The plan of the log domain in the kernel domain's terms: kernel = p(m | n), v = per_row = 1.
GUARDCORE_CLONES
static void finish_log_domain(const Problem& q, const float* h, const float* __restrict next_f, Workspace& w) {
  const float rate = 1.0f / q.options.epsilon;
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = w.cost + m * q.stride;
    float* __restrict k = w.kernel + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) k[n] = exponential((h[m] - c[n] + next_f[n]) * rate);
  }
  std::fill(w.v, w.v + q.prototypes, 1.0f);
  std::fill(w.per_row, w.per_row + q.stride, 1.0f);
}

// mass_n = a_n exp((f_n - f'_n) / epsilon), the row sums; returns their L1 distance to a.
GUARDCORE_CLONES
static float log_row_error(const Problem& q, const float* __restrict a, const float* __restrict f,
                           const float* __restrict next_f, float* __restrict mass) {
  const float rate = 1.0f / q.options.epsilon;
  float error = 0;
#pragma omp simd reduction(+ : error)
  for (int64_t n = 0; n < q.stride; ++n) {
    mass[n] = a[n] * exponential((f[n] - next_f[n]) * rate);
    error += std::fabs(mass[n] - a[n]);
  }
  return error;
}

inline void solve_in_log_domain(const Problem& q, Workspace& w) {
  const float epsilon = q.options.epsilon;
  float *log_a = w.shift, *l = w.u, *h = w.column, *top = w.row, *sum = w.per_row, *next_f = w.next_row;
  for (int64_t n = 0; n < q.stride; ++n) log_a[n] = epsilon * std::log(w.a[n]);  // -inf at weight 0
  for (int64_t m = 0; m < q.prototypes; ++m) h[m] = epsilon * std::log(q.b[m]);
  log_row_update(q, w.cost, h, top, sum, w.f);
  for (int64_t iteration = 1;; ++iteration) {
    for (int64_t n = 0; n < q.stride; ++n) l[n] = w.f[n] + log_a[n];
    log_column_update(q, w.cost, l, w.g, h);
    log_row_update(q, w.cost, h, top, sum, next_f);
    w.iterations = static_cast<int32_t>(iteration);
    w.marginal_error = log_row_error(q, w.a, w.f, next_f, w.mass);
    if (stops(q.options, iteration, w.marginal_error)) break;
    std::copy(next_f, next_f + q.stride, w.f);
  }
  finish_log_domain(q, h, next_f, w);
}

}  // namespace guardcore
