// The kernel tile around other potentials than zero, so that float32 loses nothing however small epsilon is.
//
//   K_mn = exp((s_n + h_m - C_nm) / epsilon),  s_n = min_m (C_nm - h_m),  v_m = b_m exp((g_m - h_m) / epsilon)
//
// Every row of K has a 1 in it. Where scalings grow out of range, h takes them over (Schmitzer 2019, arXiv 1610.06519,
// section 3.1): h_m += epsilon log v_m, v = 1. A column whose sum drowned is summed anew in logarithms. Potentials are
// double: at small epsilon their float rounding, divided by epsilon, would show in the plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "elementary.h"
#include "isa.h"
#include "plan.h"

namespace guardcore::GUARDCORE_ISA {

// Numbers further apart than this are kept apart by h. Entries of K below 1e-38 are lost, which is harmless while the
// sums that they would join are larger, relatively, than kLostShare.
constexpr float kLostShare = 1e-25f, kLargest = 1e25f;

struct Center {
  std::vector<double> h;  // [prototypes], empty as long as it is zero
  std::vector<double> f;  // [stride], potentials of the rows that u belongs to, when the tile was moved last
  bool moved = false;     // in this iteration: w.row may then have been clamped, and f is to be had here

  double at(int64_t m) const { return h.empty() ? 0 : h[m]; }
};

// f_n = s_n - epsilon log row_n.
static void row_potentials(const Problem& q, const Workspace& w, Center& center) {
  center.f.resize(q.stride);
  for (int64_t n = 0; n < q.stride; ++n)
    center.f[n] = w.origin[n] - q.options.epsilon * std::log(static_cast<double>(w.row[n]));
}

// The tile around h, its origins s_n, and the row sums of f in its terms.
static void centered_tile(const Problem& q, Workspace& w, const Center& center) {
  const double rate = 1.0 / q.options.epsilon;
  std::fill(w.origin, w.origin + q.stride, std::numeric_limits<float>::infinity());
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = w.cost + m * q.stride;
    const float h = static_cast<float>(center.h[m]);  // near the minimum is enough: u takes up what s_n is off by
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) w.origin[n] = c[n] - h < w.origin[n] ? c[n] - h : w.origin[n];
  }
  q.for_each_block([&](int64_t first, int64_t columns, int64_t offset) {
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const float* __restrict c = w.cost + m * q.stride + first;
      const float* __restrict s = w.origin + first;
      float* __restrict k = w.kernel + offset + m * columns;
      const double h = center.h[m];
#pragma omp simd
      for (int64_t n = 0; n < columns; ++n) k[n] = floored_exponential(static_cast<float>((s[n] + h - c[n]) * rate));
    }
  });
  for (int64_t n = 0; n < q.stride; ++n) {
    const double log_row = std::min((w.origin[n] - center.f[n]) * rate, 87.0);
    w.row[n] = floored_exponential(static_cast<float>(log_row));
    w.u[n] = w.a[n] / w.row[n];
  }
}

// Centers the tile at the potentials `h`; center.f is set.
static void recenter(const Problem& q, Workspace& w, std::vector<double> h, Center& center) {
  center.h.swap(h);
  centered_tile(q, w, center);
  std::fill(w.v, w.v + q.prototypes, 1.0f);
  center.moved = true;
}

// Centers the tile where v is.
static void recenter_at_v(const Problem& q, Workspace& w, Center& center) {
  std::vector<double> h(q.prototypes);
  for (int64_t m = 0; m < q.prototypes; ++m)
    h[m] = center.at(m) + q.options.epsilon * std::log(static_cast<double>(w.v[m]));
  row_potentials(q, w, center);
  recenter(q, w, std::move(h), center);
}

// log sum_n a_n exp((f_n - C_nm) / epsilon).
static double log_column_sum(const Problem& q, const Workspace& w, const Center& center, int64_t m) {
  const double rate = 1.0 / q.options.epsilon;
  const float* __restrict c = w.cost + m * q.stride;
  const float* __restrict a = w.a;
  const double* __restrict f = center.f.data();
  double top = -std::numeric_limits<double>::infinity();
  float sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t n = 0; n < q.stride; ++n) top = a[n] > 0 && f[n] - c[n] > top ? f[n] - c[n] : top;
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < q.stride; ++n) sum += a[n] * exponential(static_cast<float>((f[n] - c[n] - top) * rate));
  return top * rate + std::log(static_cast<double>(sum));
}

// The column update in logarithms, for columns that drowned and for damping around a center: v, or a new center if v
// would leave the range. Returns the largest v.
static float exact_columns(const Problem& q, Workspace& w, float largest_u, Center& center) {
  const double epsilon = q.options.epsilon, damping = q.options.damping;
  std::vector<double> h(q.prototypes);
  double least = 0, most = 0;
  row_potentials(q, w, center);
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const double own = center.at(m);
    const double log_sum = w.column[m] > kLostShare * largest_u
                               ? std::log(static_cast<double>(w.column[m])) - own / epsilon
                               : log_column_sum(q, w, center, m);
    h[m] = epsilon * (std::log(static_cast<double>(w.b[m])) - damping * log_sum);
    const double log_v = (h[m] - own) / epsilon;
    w.v[m] = static_cast<float>(std::exp(log_v));
    least = std::min(least, log_v);
    most = std::max(most, log_v);
  }
  if (least > std::log(1 / kLargest) && most < std::log(kLargest)) return static_cast<float>(std::exp(most));
  recenter(q, w, std::move(h), center);
  return 1.0f;
}

}  // namespace guardcore::GUARDCORE_ISA
