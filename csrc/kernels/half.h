// Vectors of 16-bit elements as floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

typedef uint16_t Halves __attribute__((vector_size(2 * GUARDCORE_WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * GUARDCORE_WIDTH)));

GUARDCORE_INLINE Halves load_halves(const uint16_t* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

GUARDCORE_INLINE Vector wide_bfloat16(const uint16_t* from) {
  return (Vector)(__builtin_convertvector(load_halves(from), Words) << 16);
}

GUARDCORE_INLINE Vector wide_half(const uint16_t* from) {
#if GUARDCORE_HAS_LEVELS && GUARDCORE_WIDTH >= 8  // F16C belongs to x86-64-v3
  Vector x;
  asm("vcvtph2ps %1, %0" : "=v"(x) : "v"(load_halves(from)));
  return x;
#else
  // as widen_half
  const Words x = __builtin_convertvector(load_halves(from), Words), size = (x & 0x7fff) << 13;
  const Words finite = (Words)((Vector)size * 0x1p112f);
  const Words bits = (x & 0x7c00) == 0x7c00 ? size | 0x7f800000 : finite;
  return (Vector)(bits | (x >> 15 << 31));
#endif
}

}  // namespace guardcore::GUARDCORE_ISA
