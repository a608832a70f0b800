// The cost tile of one transport problem: cost[m][n] = 1 - <x_n, p_m>, patches along the row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa.h"

namespace guardcore {

// Dot products of 4 x 4 unit rows. Sixteen named sums, each a vector of partial sums along d: they stay in registers,
// and short partial sums keep the rounding error near 1e-8 where one long chain would reach 1e-7.
GUARDCORE_INLINE void dot_4x4(const float* const* x, const float* const* p, int64_t width, float* out) {
  const float* __restrict x0 = x[0];
  const float* __restrict x1 = x[1];
  const float* __restrict x2 = x[2];
  const float* __restrict x3 = x[3];
  const float* __restrict p0 = p[0];
  const float* __restrict p1 = p[1];
  const float* __restrict p2 = p[2];
  const float* __restrict p3 = p[3];
  float a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  float c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)
  for (int64_t d = 0; d < width; ++d) {
    a0 += p0[d] * x0[d], a1 += p0[d] * x1[d], a2 += p0[d] * x2[d], a3 += p0[d] * x3[d];
    b0 += p1[d] * x0[d], b1 += p1[d] * x1[d], b2 += p1[d] * x2[d], b3 += p1[d] * x3[d];
    c0 += p2[d] * x0[d], c1 += p2[d] * x1[d], c2 += p2[d] * x2[d], c3 += p2[d] * x3[d];
    d0 += p3[d] * x0[d], d1 += p3[d] * x1[d], d2 += p3[d] * x2[d], d3 += p3[d] * x3[d];
  }
  const float sums[16] = {a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3};
  std::copy(sums, sums + 16, out);
}

// cost[m * stride + n] for n < patches, m < prototypes; columns up to stride are set to 0.
// Tiles that stick out of the problem repeat its last row and drop the surplus.
GUARDCORE_CLONES
static void cost_tile(const float* unit_patches, int64_t patches, const float* unit_prototypes, int64_t prototypes,
                      int64_t width, float* cost, int64_t stride) {
  for (int64_t m = 0; m < prototypes; m += 4) {
    const float* p[4];
    for (int64_t i = 0; i < 4; ++i) p[i] = unit_prototypes + std::min(m + i, prototypes - 1) * width;
    for (int64_t n = 0; n < patches; n += 4) {
      const float* x[4];
      for (int64_t j = 0; j < 4; ++j) x[j] = unit_patches + std::min(n + j, patches - 1) * width;
      float dots[16];
      dot_4x4(x, p, width, dots);
      for (int64_t i = 0; i < std::min<int64_t>(4, prototypes - m); ++i)
        for (int64_t j = 0; j < std::min<int64_t>(4, patches - n); ++j)
          cost[(m + i) * stride + n + j] = 1.0f - dots[4 * i + j];
    }
  }
  for (int64_t m = 0; m < prototypes; ++m) std::fill(cost + m * stride + patches, cost + (m + 1) * stride, 0.0f);
}

}  // namespace guardcore
