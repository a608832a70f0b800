// Sinkhorn's iteration in the log domain, for problems that leave float32's range in the kernel domain. Potentials are
// double: at small epsilon their float rounding, divided by epsilon, would show in the plan. Exponentials stay float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "acceleration.h"
#include "elementary.h"
#include "isa.h"
#include "plan.h"

namespace guardcore::GUARDCORE_ISA {

// Potentials, alone (f, g) and with their weight: l_n = f_n + epsilon log a_n, h_m = g_m + epsilon log b_m.
struct LogPotentials {
  explicit LogPotentials(const Problem& q)
      : f(q.stride),
        next_f(q.stride),
        l(q.stride),
        top(q.stride),
        g(q.prototypes),
        target_g(q.prototypes),
        h(q.prototypes),
        sum(q.stride) {}

  std::vector<double> f, next_f, l, top, g, target_g, h;
  std::vector<float> sum;
};

// f_n = -epsilon log sum_m exp((h_m - C_nm) / epsilon).
static void log_row_update(const Problem& q, const float* cost, const double* h, double* __restrict top,
                           float* __restrict sum, double* __restrict f) {
  const double rate = 1.0 / q.options.epsilon;
  std::fill(top, top + q.stride, -std::numeric_limits<double>::infinity());
  std::fill(sum, sum + q.stride, 0.0f);
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) top[n] = h[m] - c[n] > top[n] ? h[m] - c[n] : top[n];
  }
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) sum[n] += exponential(static_cast<float>((h[m] - c[n] - top[n]) * rate));
  }
  for (int64_t n = 0; n < q.stride; ++n) f[n] = -top[n] - q.options.epsilon * std::log(static_cast<double>(sum[n]));
}

// g_m = -epsilon damping log sum_n exp((l_n - C_nm) / epsilon).
static void log_column_update(const Problem& q, const float* cost, const double* __restrict l, double* g) {
  const double epsilon = q.options.epsilon, rate = 1.0 / epsilon;
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
    double top = -std::numeric_limits<double>::infinity();
    float sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t n = 0; n < q.stride; ++n) top = l[n] - c[n] > top ? l[n] - c[n] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t n = 0; n < q.stride; ++n) sum += exponential(static_cast<float>((l[n] - c[n] - top) * rate));
    g[m] = -q.options.damping * (top + epsilon * std::log(static_cast<double>(sum)));
  }
}

// Takes the column update, `target`, or leaps instead; returns whether it did.
static bool move_potentials(const Problem& q, const float* b, const double* target, int64_t iteration, Leaps& leaps,
                            double* g, double* h) {
  const double epsilon = q.options.epsilon;
  std::fill(leaps.ratio, leaps.ratio + padded(q.prototypes), 1.0f);
  for (int64_t m = 0; m < q.prototypes; ++m)
    leaps.ratio[m] = exponential(static_cast<float>((g[m] - target[m]) / epsilon));
  const bool leap = leaps.wanted && leaps.decide(iteration);
  for (int64_t m = 0; m < q.prototypes; ++m) {
    g[m] = leap ? g[m] + epsilon * leaps.step()[m] : target[m];
    h[m] = g[m] + epsilon * std::log(static_cast<double>(b[m]));
  }
  return leap;
}

// mass_n = a_n exp((f_n - f'_n) / epsilon), the row sums; returns their L1 distance to a.
static float log_row_error(const Problem& q, const float* __restrict a, const double* __restrict f,
                           const double* __restrict next_f, float* __restrict mass) {
  const double rate = 1.0 / q.options.epsilon;
  float error = 0;
#pragma omp simd reduction(+ : error)
  for (int64_t n = 0; n < q.stride; ++n) {
    mass[n] = a[n] * exponential(static_cast<float>((f[n] - next_f[n]) * rate));
    error += std::fabs(mass[n] - a[n]);
  }
  return error;
}

// The plan in the kernel domain's terms: kernel = p(m | n), v = per_row = 1.
static void finish_log_domain(const Problem& q, const double* h, const double* __restrict next_f, Workspace& w) {
  const double rate = 1.0 / q.options.epsilon;
  q.for_each_block([&](int64_t first, int64_t columns, int64_t offset) {
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const float* __restrict c = w.cost + m * q.stride + first;
      const double* __restrict f = next_f + first;
      float* __restrict k = w.kernel + offset + m * columns;
#pragma omp simd
      for (int64_t n = 0; n < columns; ++n) k[n] = exponential(static_cast<float>((h[m] - c[n] + f[n]) * rate));
    }
  });
  std::fill(w.v, w.v + q.prototypes, 1.0f);
  std::fill(w.per_row, w.per_row + q.stride, 1.0f);
}

inline void solve_in_log_domain(const Problem& q, Workspace& w) {
  const double epsilon = q.options.epsilon;
  LogPotentials p(q);
  for (int64_t m = 0; m < q.prototypes; ++m) p.h[m] = epsilon * std::log(static_cast<double>(w.b[m]));
  log_row_update(q, w.cost, p.h.data(), p.top.data(), p.sum.data(), p.f.data());
  Leaps leaps(q.options, w.b, q.prototypes, w.leaps);
  for (int64_t iteration = 1;; ++iteration) {
    // log 0 = -infinity: a patch without weight drops out of every sum
    for (int64_t n = 0; n < q.stride; ++n) p.l[n] = p.f[n] + epsilon * std::log(static_cast<double>(w.a[n]));
    log_column_update(q, w.cost, p.l.data(), p.target_g.data());
    const bool leap = move_potentials(q, w.b, p.target_g.data(), iteration, leaps, p.g.data(), p.h.data());
    log_row_update(q, w.cost, p.h.data(), p.top.data(), p.sum.data(), p.next_f.data());
    w.iterations = static_cast<int32_t>(iteration);
    w.marginal_error = log_row_error(q, w.a, p.f.data(), p.next_f.data(), w.mass);
    if (!leap && stops(q.options, iteration, w.marginal_error)) break;
    p.f.swap(p.next_f);
  }
  finish_log_domain(q, p.h.data(), p.next_f.data(), w);
  std::transform(p.f.begin(), p.f.end(), w.f, [](double f) { return static_cast<float>(f); });
  std::transform(p.g.begin(), p.g.end(), w.g, [](double g) { return static_cast<float>(g); });
}

}  // namespace guardcore::GUARDCORE_ISA
