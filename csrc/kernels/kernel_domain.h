// Sinkhorn's iteration in the kernel domain. With the row minimum s_n = min_m C_nm taken out, so that K is at most 1:
//
//   K_mn = exp((s_n - C_nm) / epsilon),  v_m = b_m exp(g_m / epsilon),  row_n = sum_m v_m K_mn,  u_n = a_n / row_n,
//   column_m = sum_n u_n K_mn,  v_m = b_m column_m^-damping,  f_n = s_n - epsilon log row_n.
//
// One sweep over K makes row_n, u_n and column_m.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "acceleration.h"
#include "elementary.h"
#include "isa.h"
#include "plan.h"
#include "sweep.h"

namespace guardcore::GUARDCORE_ISA {

// shift[n] = min_m cost[m][n].
static void row_minima(const Problem& q, const float* cost, float* __restrict shift) {
  std::copy(cost, cost + q.stride, shift);
  for (int64_t m = 1; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * q.stride;
#pragma omp simd
    for (int64_t n = 0; n < q.stride; ++n) shift[n] = c[n] < shift[n] ? c[n] : shift[n];
  }
}

// kernel[m][n] = exp((shift_n - cost[m][n]) / epsilon), or 1e-38 where that is less: see kLostShare.
static void kernel_tile(const Problem& q, const float* cost, const float* shift, float* kernel) {
  const float rate = static_cast<float>(1.0 / q.options.epsilon);
  q.for_each_block([&](int64_t first, int64_t columns, int64_t offset) {
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const float* __restrict c = cost + m * q.stride + first;
      const float* __restrict s = shift + first;
      float* __restrict k = kernel + offset + m * columns;
#pragma omp simd
      for (int64_t n = 0; n < columns; ++n) k[n] = floored_exponential((s[n] - c[n]) * rate);
    }
  });
}

// Entries of K below 1e-38 are lost. That is harmless while the sums they would join are larger, relatively, than this.
constexpr float kLostShare = 1e-28f, kLargest = 1e30f;

// v_m = b_m column_m^-damping, 0 where b is padded. Returns the largest v, or infinity if a column sum is too small to
// trust.
static float update_columns(const Problem& q, const float* b, const float* column, float largest_u, float* v) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Vector smallest = Vector{} + kInfinity, largest = {};
  for (int64_t m = 0; m < q.prototypes; m += kWidth) {
    const Vector share = load(b + m), sum = load(column + m);
    const Vector next = share > 0 ? share / sum : Vector{};
    smallest = smaller(smallest, share > 0 ? sum : smallest);
    largest = larger(largest, next);
    store(v + m, next);
  }
  if (!(fold<Smaller>(smallest) > kLostShare * largest_u)) return kInfinity;
  const float damping = static_cast<float>(q.options.damping);
  if (damping == 1.0f) return fold<Larger>(largest);
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t m = 0; m < q.prototypes; ++m) {
    v[m] = b[m] * power(column[m], -damping);
    most = v[m] > most ? v[m] : most;
  }
  return most;
}

// The mass on each prototype over its demand: NaN throughout if the point is out of range.
inline void mass_over_demand(const Problem& q, const Workspace& w, bool in_range, float* ratio) {
  const Vector unit = Vector{} + (in_range ? 1 : std::numeric_limits<float>::quiet_NaN());
  for (int64_t m = 0; m < padded(q.prototypes); m += kWidth) {
    const Vector b = load(w.b + m);
    store(ratio + m, b > 0 ? unit * load(w.v + m) * load(w.column + m) / b : unit);
  }
}

// v_m *= exp(step_m); returns the largest v.
static float move_columns(const Problem& q, const float* __restrict step, float* __restrict v) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t m = 0; m < q.prototypes; ++m) {
    v[m] *= exponential(step[m]);
    largest = v[m] > largest ? v[m] : largest;
  }
  return largest;
}

// f, mass and per_row from the last two row updates.
static void finish_rows(const Problem& q, Workspace& w) {
  const float* __restrict a = w.a;
  const float* __restrict shift = w.shift;
  const float* __restrict row = w.row;
  const float* __restrict next = w.next_row;
  float* __restrict f = w.f;
  float* __restrict mass = w.mass;
  float* __restrict per_row = w.per_row;
  const float epsilon = static_cast<float>(q.options.epsilon);
#pragma omp simd
  for (int64_t n = 0; n < q.stride; ++n) {
    f[n] = shift[n] - epsilon * logarithm(row[n]);
    mass[n] = a[n] * next[n] / row[n];
    per_row[n] = 1.0f / next[n];
  }
}

// Solve in the kernel domain; w.cost, w.shift, w.a and w.b are set. False if the numbers leave the range where float32
// loses nothing.
inline bool solve_in_kernel_domain(const Problem& q, Workspace& w) {
  kernel_tile(q, w.cost, w.shift, w.kernel);
  std::copy(w.b, w.b + q.prototypes, w.v);
  std::fill(w.u, w.u + q.stride, 0.0f);
  Sweep last = sweep(q, w.kernel, w.a, w.v, w.row, w.u, w.lanes, w.column, true);
  bool in_range = last.smallest_row > kLostShare;  // v = b, at most 1
  Leaps leaps(q.options, w.b, q.prototypes, w.leaps);
  for (int64_t iteration = 1;; ++iteration) {
    if (leaps.wanted) mass_over_demand(q, w, in_range, leaps.ratio);
    const bool leap = leaps.wanted && leaps.decide(iteration);
    if (!leap && !in_range) return false;
    const float largest_v =
        leap ? move_columns(q, leaps.step(), w.v) : update_columns(q, w.b, w.column, last.largest_u, w.v);
    if (!leap && !(largest_v < kLargest)) return false;
    const bool more = iteration < q.options.max_iterations;
    last = sweep(q, w.kernel, w.a, w.v, w.next_row, w.u, w.lanes, w.next_column, more);
    in_range = last.smallest_row > kLostShare * largest_v && last.largest_u < kLargest && largest_v < kLargest;
    w.iterations = static_cast<int32_t>(iteration);
    w.marginal_error = last.row_error;
    if (!leap && in_range && stops(q.options, iteration, last.row_error)) break;
    std::swap(w.row, w.next_row);
    std::swap(w.column, w.next_column);
  }
  finish_rows(q, w);
  const float rate = static_cast<float>(-q.options.epsilon * q.options.damping);
#pragma omp simd
  for (int64_t m = 0; m < q.prototypes; ++m) w.g[m] = rate * logarithm(w.column[m]);
  return true;
}

}  // namespace guardcore::GUARDCORE_ISA
