// Lower bounds of a statistic, from the cost tile that the solver would start from.
//
//   lowest patch score:  min_n score_n >= min_nm C_nm, since score_n is a mean over m of C_nm, and never below the tile
//   distance:            <T, C> >= sum_m b_m min_n C_nm, since the columns of a balanced iterate sum to b
#pragma once

#include <cstdint>
#include <limits>

#include "isa.h"
#include "plan.h"

namespace guardcore::GUARDCORE_ISA {

inline float lowest(const float* __restrict values, int64_t count) {
  float least = std::numeric_limits<float>::infinity();
#pragma omp simd reduction(min : least)
  for (int64_t i = 0; i < count; ++i) least = values[i] < least ? values[i] : least;
  return least;
}

// The bound on w.cost, with its row minima in w.shift and the prototypes' shares in w.b; padded patches don't count.
static double least_statistic(const Problem& q, const Workspace& w, bool by_distance) {
  if (!by_distance) return lowest(w.shift, q.patches);
  double sum = 0;
  for (int64_t m = 0; m < q.prototypes; ++m) sum += w.b[m] * lowest(w.cost + m * q.stride, q.patches);
  return sum;
}

}  // namespace guardcore::GUARDCORE_ISA
