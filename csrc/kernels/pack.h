// Unit rows x / |x|, from any element type, in the two orders that the cost tile reads. A zero row stays zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "embedding.h"
#include "vector.h"
#include "widen.h"

namespace guardcore::GUARDCORE_ISA {

// 1 / |x| in two factors: a power of two that brings the row near 1, so that no product leaves float's range, and the
// rest. That is a float and what it leaves of the number: its rounding would be the same for all of the row.
struct Scale {
  float power, rest, remainder;
  bool finite;
};

// The sum of squares is taken in double: no float's square leaves its range.
inline Scale scale_of(const float* __restrict row, int64_t width) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t d = 0; d < width; ++d) squares += static_cast<double>(row[d]) * static_cast<double>(row[d]);
  if (!std::isfinite(squares)) return {0, 0, 0, false};
  if (squares == 0) return {0, 0, 0, true};
  const double length = std::sqrt(squares);
  const int exponent = std::clamp(std::ilogb(length), -126, 126);
  const double rest = std::ldexp(1.0, exponent) / length;
  const float nearest = static_cast<float>(rest);
  return {static_cast<float>(std::ldexp(1.0, -exponent)), nearest, static_cast<float>(rest - nearest), true};
}

template <class T>  // a float or a vector of them
GUARDCORE_INLINE T scaled(T x, const Scale& scale) {
  const T near_one = x * scale.power;
  return near_one * scale.rest + near_one * scale.remainder;
}

// unit[i * prototype_stride + d] = row i / |row i|. False if a row holds a NaN or an infinity.
static bool unit_rows(const Rows& rows, float* unit) {
  bool sound = true;
  for (int64_t i = 0; i < rows.count; ++i) {
    float* __restrict out = unit + i * prototype_stride(rows.width);
    const float* row = float_row(rows, i, out);
    const Scale scale = scale_of(row, rows.width);
    sound &= scale.finite;
#pragma omp simd
    for (int64_t d = 0; d < rows.width; ++d) out[d] = scaled(row[d], scale);
  }
  return sound;
}

// kWidth rows side by side, panel[d * kWidth + i] = row i at d: a vector holds one coordinate of kWidth patches.
inline void interleave(const float* const* row, const Scale* scale, int64_t width, float* panel) {
  int64_t d = 0;
  for (; d + kWidth <= width; d += kWidth) {
    Vector x[kWidth];
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) x[i] = scaled(load(row[i] + d), scale[i]);
    transpose(x);
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) store(panel + (d + i) * kWidth, x[i]);
  }
  for (; d < width; ++d)
    for (int i = 0; i < kWidth; ++i) panel[d * kWidth + i] = scaled(row[i][d], scale[i]);
}

// Panels of unit rows for all patches, zero rows up to padded(count); scratch holds kLanes rows. False as above.
static bool pack_panels(const Rows& rows, float* panels, float* scratch) {
  bool sound = true;
  for (int64_t n = 0; n < padded(rows.count); n += kWidth) {
    const float* row[kWidth];
    Scale scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      row[i] = float_row(rows, std::min(n + i, rows.count - 1), scratch + i * rows.width);
      scale[i] = n + i < rows.count ? scale_of(row[i], rows.width) : Scale{0, 0, 0, true};
      sound &= scale[i].finite;
    }
    interleave(row, scale, rows.width, panels + n * rows.width);
  }
  return sound;
}

// Panels of prototypes that are unit rows already, zero up to padded(count).
static void pack_units(const float* unit, int64_t count, int64_t width, float* panels) {
  for (int64_t m = 0; m < padded(count); m += kWidth) {
    const float* row[kWidth];
    Scale scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      row[i] = unit + std::min(m + i, count - 1) * prototype_stride(width);
      scale[i] = {m + i < count ? 1.0f : 0.0f, 1, 0, true};
    }
    interleave(row, scale, width, panels + m * width);
  }
}

}  // namespace guardcore::GUARDCORE_ISA
