// Unit rows: x / |x|, and a zero row stays zero.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"

namespace guardcore {

// unit[d] = row[d] / |row|. Returns false, leaving zeros, if the row holds a NaN or an infinity.
// The sum of squares is taken in double: no float's square leaves its range, so huge and tiny rows need no scaling, and
// the length is exact enough that cosines of nearly parallel rows keep their digits.
GUARDCORE_CLONES
static bool unit_row(const float* __restrict row, float* __restrict unit, int64_t width) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < width; ++d) squares += static_cast<double>(row[d]) * static_cast<double>(row[d]);
  const bool finite = std::isfinite(squares);
  const double scale = finite && squares > 0 ? 1.0 / std::sqrt(squares) : 0.0;
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) unit[d] = finite ? static_cast<float>(row[d] * scale) : 0.0f;
  return finite;
}

// weights / their sum, uniform for nullptr. Returns false if there is no mass. Weights are >= 0 and finite.
inline bool simplex(const float* weights, float* shares, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += weights ? weights[i] : 1.0;
  for (int64_t i = 0; i < count; ++i) shares[i] = static_cast<float>((weights ? weights[i] : 1.0) / total);
  return total > 0;
}

}  // namespace guardcore
