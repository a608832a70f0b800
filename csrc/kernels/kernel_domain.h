// Sinkhorn's iteration in the kernel domain. With the row minimum s_n = min_m C_nm taken out, so that K is at most 1:
//
//   K_mn = exp((s_n - C_nm) / epsilon),  v_m = b_m exp(g_m / epsilon),  row_n = sum_m v_m K_mn,  u_n = a_n / row_n,
//   column_m = sum_n u_n K_mn,  v_m = b_m column_m^-damping,  f_n = s_n - epsilon log row_n.
//
// One sweep over K makes row_n, u_n and column_m; the row error of the previous plan, sum_n |u_n row_n - a_n| with the
// old u and the new row sums, comes for free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "elementary.h"
#include "isa.h"
#include "plan.h"

namespace guardcore {

// shift_n = min_m cost[m][n] and kernel[m][n] = exp((shift_n - cost[m][n]) / epsilon).
GUARDCORE_CLONES
static void kernel_tile(const Problem& q, const float* cost, float* shift, float* kernel) {
  const int64_t stride = q.stride;
  const float rate = static_cast<float>(1.0 / q.options.epsilon);
  std::copy(cost, cost + stride, shift);
  for (int64_t m = 1; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * stride;
#pragma omp simd
    for (int64_t n = 0; n < stride; ++n) shift[n] = c[n] < shift[n] ? c[n] : shift[n];
  }
  for (int64_t m = 0; m < q.prototypes; ++m) {
    const float* __restrict c = cost + m * stride;
    float* __restrict k = kernel + m * stride;
#pragma omp simd
    for (int64_t n = 0; n < stride; ++n) k[n] = exponential((shift[n] - c[n]) * rate);
  }
}

// out[n] = sum_m v[m] tile[m][n] for first <= n < last.
GUARDCORE_INLINE void combine_rows(const float* tile, const float* v, int64_t prototypes, int64_t stride, int64_t first,
                                   int64_t last, float* __restrict out) {
  std::fill(out + first, out + last, 0.0f);
  int64_t m = 0;
  for (; m + 4 <= prototypes; m += 4) {
    const float* __restrict k0 = tile + m * stride;
    const float* __restrict k1 = k0 + stride;
    const float* __restrict k2 = k1 + stride;
    const float* __restrict k3 = k2 + stride;
    const float v0 = v[m], v1 = v[m + 1], v2 = v[m + 2], v3 = v[m + 3];
#pragma omp simd
    for (int64_t n = first; n < last; ++n) out[n] += (v0 * k0[n] + v1 * k1[n]) + (v2 * k2[n] + v3 * k3[n]);
  }
  for (; m < prototypes; ++m) {
    const float* __restrict k = tile + m * stride;
#pragma omp simd
    for (int64_t n = first; n < last; ++n) out[n] += v[m] * k[n];
  }
}

// out[m] += sum_n u[n] tile[m][n] for first <= n < last.
GUARDCORE_INLINE void combine_columns(const float* tile, const float* __restrict u, int64_t prototypes, int64_t stride,
                                      int64_t first, int64_t last, float* __restrict out) {
  int64_t m = 0;
  for (; m + 4 <= prototypes; m += 4) {
    const float* __restrict k0 = tile + m * stride;
    const float* __restrict k1 = k0 + stride;
    const float* __restrict k2 = k1 + stride;
    const float* __restrict k3 = k2 + stride;
    float t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#pragma omp simd reduction(+ : t0, t1, t2, t3)
    for (int64_t n = first; n < last; ++n)
      t0 += u[n] * k0[n], t1 += u[n] * k1[n], t2 += u[n] * k2[n], t3 += u[n] * k3[n];
    out[m] += t0, out[m + 1] += t1, out[m + 2] += t2, out[m + 3] += t3;
  }
  for (; m < prototypes; ++m) {
    const float* __restrict k = tile + m * stride;
    float t = 0;
#pragma omp simd reduction(+ : t)
    for (int64_t n = first; n < last; ++n) t += u[n] * k[n];
    out[m] += t;
  }
}

struct Sweep {
  float row_error;  // of the plan (old u, v)
  float smallest_row, largest_u;
};

// One pass over the kernel tile, in blocks of columns that stay in the first-level cache between their two uses.
GUARDCORE_CLONES
static Sweep sweep(const Problem& q, const float* kernel, const float* a, const float* v, float* row, float* u,
                   float* column, bool want_columns) {
  constexpr int64_t kBlockFloats = 6144;  // 24 KB
  const int64_t block = std::max<int64_t>(kLanes, kBlockFloats / q.prototypes / kLanes * kLanes);
  float error = 0, smallest = std::numeric_limits<float>::infinity(), largest = 0;
  std::fill(column, column + q.prototypes, 0.0f);
  for (int64_t first = 0; first < q.stride; first += block) {
    const int64_t last = std::min(first + block, q.stride);
    combine_rows(kernel, v, q.prototypes, q.stride, first, last, row);
#pragma omp simd reduction(+ : error) reduction(min : smallest) reduction(max : largest)
    for (int64_t n = first; n < last; ++n) {
      error += std::fabs(u[n] * row[n] - a[n]);
      u[n] = a[n] / row[n];
      smallest = row[n] < smallest ? row[n] : smallest;
      largest = u[n] > largest ? u[n] : largest;
    }
    if (want_columns) combine_columns(kernel, u, q.prototypes, q.stride, first, last, column);
  }
  return {error, smallest, largest};
}

// Entries of K below 1e-38 are lost. That is harmless while the sums they would join are larger, relatively, than this.
constexpr float kLostShare = 1e-28f, kLargest = 1e30f;

// v_m = b_m column_m^-damping. Returns the largest v, or infinity if a column sum is too small to trust.
GUARDCORE_CLONES
static float column_update(const Problem& q, const float* __restrict column, float largest_u, float* __restrict v) {
  const float damping = static_cast<float>(q.options.damping);
  const float* __restrict b = q.b;
  float smallest = std::numeric_limits<float>::infinity(), largest = 0;
#pragma omp simd reduction(min : smallest)
  for (int64_t m = 0; m < q.prototypes; ++m) smallest = column[m] < smallest ? column[m] : smallest;
  if (!(smallest > kLostShare * largest_u)) return std::numeric_limits<float>::infinity();
  if (damping == 1.0f) {
#pragma omp simd
    for (int64_t m = 0; m < q.prototypes; ++m) v[m] = b[m] / column[m];
  } else {
#pragma omp simd
    for (int64_t m = 0; m < q.prototypes; ++m) v[m] = b[m] * power(column[m], -damping);
  }
#pragma omp simd reduction(max : largest)
  for (int64_t m = 0; m < q.prototypes; ++m) largest = v[m] > largest ? v[m] : largest;
  return largest;
}

// f, mass and per_row from the last two row updates.
GUARDCORE_CLONES
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

// Solve in the kernel domain; false if the numbers leave the range where float32 loses nothing.
inline bool solve_in_kernel_domain(const Problem& q, Workspace& w) {
  kernel_tile(q, w.cost, w.shift, w.kernel);
  std::copy(q.b, q.b + q.prototypes, w.v);
  std::fill(w.u, w.u + q.stride, 0.0f);
  Sweep last = sweep(q, w.kernel, w.a, w.v, w.row, w.u, w.column, true);
  if (!(last.smallest_row > kLostShare)) return false;  // v = b, at most 1
  for (int64_t iteration = 1;; ++iteration) {
    const float largest_v = column_update(q, w.column, last.largest_u, w.v);
    if (!(largest_v < kLargest)) return false;
    const bool more = iteration < q.options.max_iterations;
    last = sweep(q, w.kernel, w.a, w.v, w.next_row, w.u, w.next_column, more);
    if (!(last.smallest_row > kLostShare * largest_v) || !(last.largest_u < kLargest)) return false;
    w.iterations = static_cast<int32_t>(iteration);
    w.marginal_error = last.row_error;
    if (stops(q.options, iteration, last.row_error)) break;
    std::swap(w.row, w.next_row);
    std::swap(w.column, w.next_column);
  }
  finish_rows(q, w);
  for (int64_t m = 0; m < q.prototypes; ++m)
    w.g[m] = static_cast<float>(-q.options.epsilon * q.options.damping * std::log(static_cast<double>(w.column[m])));
  return true;
}

}  // namespace guardcore
