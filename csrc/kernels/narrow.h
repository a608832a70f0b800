// Floats as any element type, rounded to nearest, ties to even.
#pragma once

#include <algorithm>
#include <cstdint>

#include "elementary.h"
#include "embedding.h"
#include "isa.h"

namespace guardcore::GUARDCORE_ISA {

GUARDCORE_INLINE uint16_t narrow_bfloat16(float x) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

GUARDCORE_INLINE uint16_t narrow_half(float x) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(x)), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  const uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  // the last place of 0.5f is that of the subnormal halves: the sum rounds, its low bits are the half
  const float moved = float_of(static_cast<int32_t>(size)) + 0.5f;
  const uint32_t subnormal = static_cast<uint32_t>(bits_of(moved)) - 0x3f000000;
  const uint32_t finite = size < 0x38800000 ? subnormal : normal;
  const uint32_t value = size >= 0x477ff000 ? 0x7c00 : finite;  // 65520 and above round to infinity
  return static_cast<uint16_t>(sign | (size > 0x7f800000 ? 0x7e00 : value));
}

inline void narrow_row(const float* __restrict row, int64_t width, Element element, void* to) {
  if (element == Element::kFloat) {
    std::copy(row, row + width, static_cast<float*>(to));
    return;
  }
  uint16_t* __restrict out = static_cast<uint16_t*>(to);
  if (element == Element::kBFloat16) {
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) out[d] = narrow_bfloat16(row[d]);
  } else {
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) out[d] = narrow_half(row[d]);
  }
}

}  // namespace guardcore::GUARDCORE_ISA
