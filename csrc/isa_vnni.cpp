// The kernels for processors with AVX-512 VNNI, sums of four byte products.
#include "kernels/isa.h"
#include "kernels/quantized_bank.h"
#include "kernels/table.h"

#if GUARDCORE_HAS_LEVELS
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#define GUARDCORE_ISA vnni
#define GUARDCORE_WIDTH 16
#define GUARDCORE_REGISTERS 32
GUARDCORE_TARGET("arch=x86-64-v4,avx512vnni", 512)
#include "kernels/quantized.h"
GUARDCORE_TARGET_END

namespace guardcore {

UpperCosines upper_cosines() {
  const bool wide = &kernels() == &kernels_v4;
  return wide && __builtin_cpu_supports("avx512vnni") ? &vnni::upper_cosines : nullptr;
}

}  // namespace guardcore
#else
namespace guardcore {

UpperCosines upper_cosines() { return nullptr; }

}  // namespace guardcore
#endif
