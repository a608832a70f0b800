// Rows of any element type as floats.
#pragma once

#include <cstdint>

#include "elementary.h"
#include "embedding.h"
#include "half.h"
#include "isa.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

GUARDCORE_INLINE float widen_bfloat16(uint16_t x) { return float_of(static_cast<int32_t>(uint32_t{x} << 16)); }

// The exponent moves from a bias of 15 to one of 127 by a product that is exact, subnormals included.
GUARDCORE_INLINE float widen_half(uint16_t x) {
  const int32_t magnitude = (x & 0x7fff) << 13;
  const float finite = float_of(magnitude) * 0x1p112f;
  const int32_t bits = (x & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : bits_of(finite);
  return float_of(bits | static_cast<int32_t>(uint32_t{x} >> 15 << 31));
}

// Row `index` as floats: where it lies, or widened into scratch[width].
inline const float* float_row(const Rows& rows, int64_t index, float* __restrict scratch) {
  if (rows.element == Element::kFloat) return static_cast<const float*>(rows.data) + index * rows.width;
  const uint16_t* __restrict row = static_cast<const uint16_t*>(rows.data) + index * rows.width;
  if (rows.element == Element::kBFloat16) {
#pragma omp simd
    for (int64_t d = 0; d < rows.width; ++d) scratch[d] = widen_bfloat16(row[d]);
  } else {
    int64_t d = 0;
    for (; d + kWidth <= rows.width; d += kWidth) store(scratch + d, wide_half(row + d));
    for (; d < rows.width; ++d) scratch[d] = widen_half(row[d]);
  }
  return scratch;
}

}  // namespace guardcore::GUARDCORE_ISA
