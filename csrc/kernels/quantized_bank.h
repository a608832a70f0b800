// Unit prototypes as 8-bit codes, in the order that the products read.
#pragma once

#include <cstdint>

#include "embedding.h"

namespace guardcore {

// Prototype m is scale[m] times its code, but for a residual that the caller accounts for.
struct QuantizedBank {
  int64_t width, columns;  // padded to 16 with zeros
  const int8_t* code;      // [columns / 16][width / 4][16][4]
  const float* scale;
  const int32_t* offset;  // what patches' codes that are 128 too large add to a product, negative
  float longest;          // length of a coded prototype, at most
};

// Null where the processor does not add four byte products at once.
using UpperCosines = bool (*)(const Rows& rows, const QuantizedBank& bank, float* scratch, uint8_t* code, float* upper);
UpperCosines upper_cosines();

}  // namespace guardcore
