// Sinkhorn's iteration in the kernel domain. With the row minimum s_n = min_m C_nm taken out, so that K is at most 1:
//
//   K_mn = exp((s_n - C_nm) / epsilon),  v_m = b_m exp(g_m / epsilon),  row_n = sum_m v_m K_mn,  u_n = a_n / row_n,
//   column_m = sum_n u_n K_mn,  v_m = b_m column_m^-damping,  f_n = s_n - epsilon log row_n.
//
// One sweep over K makes row_n, u_n and column_m. Where float32's range does not do, K is centered elsewhere: center.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "acceleration.h"
#include "center.h"
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

// v_m = b_m column_m^-damping, 0 where b is padded. Returns the largest v, or infinity if a column sum or a v is too
// small to trust.
static float update_columns(const Problem& q, const float* b, const float* column, float largest_u, float* v) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Vector smallest = Vector{} + kInfinity, least = smallest, largest = {};
  for (int64_t m = 0; m < q.prototypes; m += kWidth) {
    const Vector share = load(b + m), sum = load(column + m);
    const Vector next = share > 0 ? share / sum : Vector{};
    smallest = smaller(smallest, share > 0 ? sum : smallest);
    least = smaller(least, share > 0 ? next : least);
    largest = larger(largest, next);
    store(v + m, next);
  }
  if (!(fold<Smaller>(smallest) > kLostShare * largest_u) || !(fold<Smaller>(least) > 1 / kLargest)) return kInfinity;
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

// The mass on each prototype over its demand.
inline void mass_over_demand(const Problem& q, const Workspace& w, float* ratio) {
  for (int64_t m = 0; m < padded(q.prototypes); m += kWidth) {
    const Vector b = load(w.b + m);
    store(ratio + m, b > 0 ? load(w.v + m) * load(w.column + m) / b : Vector{} + 1);
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

// The column update, or a leap in its place. Returns the largest v.
inline float next_columns(const Problem& q, Workspace& w, bool leap, const Leaps& leaps, float largest_u,
                          Center& center) {
  if (leap) return move_columns(q, leaps.step(), w.v);
  if (q.options.damping != 1 && !center.h.empty()) return exact_columns(q, w, largest_u, center);
  const float largest_v = update_columns(q, w.b, w.column, largest_u, w.v);
  return largest_v < kLargest ? largest_v : exact_columns(q, w, largest_u, center);
}

// A sweep from v to the next rows and columns, around another center if need be.
inline Sweep sweep_in_range(const Problem& q, Workspace& w, float largest_v, bool want_columns, bool backward,
                            Center& center) {
  const Sweep done = sweep(q, w.kernel, w.a, w.v, w.next_row, w.u, w.lanes, w.next_column, want_columns, backward);
  const bool in_range = done.smallest_row > kLostShare * largest_v && done.largest_u < kLargest && largest_v < kLargest;
  if (in_range) return done;
  recenter_at_v(q, w, center);
  return sweep(q, w.kernel, w.a, w.v, w.next_row, w.u, w.lanes, w.next_column, want_columns, backward);
}

// f, mass, per_row and g from the last two row updates and v.
static void finish(const Problem& q, Workspace& w, const Center& center) {
  const float* __restrict a = w.a;
  const float* __restrict row = w.row;
  const float* __restrict next = w.next_row;
  float* __restrict f = w.f;
  float* __restrict mass = w.mass;
  float* __restrict per_row = w.per_row;
  const float epsilon = static_cast<float>(q.options.epsilon);
#pragma omp simd
  for (int64_t n = 0; n < q.stride; ++n) {
    f[n] = w.origin[n] - epsilon * logarithm(row[n]);
    mass[n] = a[n] * next[n] / row[n];
    per_row[n] = 1.0f / next[n];
  }
  if (center.moved) std::copy(center.f.begin(), center.f.end(), w.f);
#pragma omp simd
  for (int64_t m = 0; m < q.prototypes; ++m) w.g[m] = epsilon * logarithm(w.v[m] / w.b[m]);
  if (center.h.empty()) return;
  for (int64_t m = 0; m < q.prototypes; ++m) w.g[m] = static_cast<float>(center.h[m] + w.g[m]);
}

// w.cost, w.shift, w.a and w.b are set; leaves the plan in w.
static void solve(const Problem& q, Workspace& w) {
  std::copy(w.shift, w.shift + q.stride, w.origin);
  kernel_tile(q, w.cost, w.origin, w.kernel);
  std::copy(w.b, w.b + q.prototypes, w.v);
  std::fill(w.u, w.u + q.stride, 0.0f);
  std::fill(w.row, w.row + q.stride, 1.0f);
  Center center;
  Sweep last = sweep_in_range(q, w, 1, true, false, center);
  Leaps leaps(q.options, w.b, q.prototypes, w.leaps);
  for (int64_t iteration = 1;; ++iteration) {
    std::swap(w.row, w.next_row);
    std::swap(w.column, w.next_column);
    center.moved = false;
    if (leaps.wanted) mass_over_demand(q, w, leaps.ratio);
    const bool leap = leaps.wanted && leaps.decide(iteration);
    const float largest_v = next_columns(q, w, leap, leaps, last.largest_u, center);
    last = sweep_in_range(q, w, largest_v, iteration < q.options.max_iterations, iteration % 2 == 1, center);
    w.iterations = static_cast<int32_t>(iteration);
    w.marginal_error = last.row_error;
    if (!leap && stops(q.options, iteration, last.row_error)) break;
  }
  finish(q, w, center);
}

}  // namespace guardcore::GUARDCORE_ISA
