// The kernels for x86-64-v3 (AVX2, FMA).
#include "kernels/isa.h"

#if GUARDCORE_HAS_LEVELS
// The standard library comes before the target is set: its inline functions are shared with the other levels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kernels/table.h"

#define GUARDCORE_ISA v3
#define GUARDCORE_WIDTH 8
#define GUARDCORE_REGISTERS 16
GUARDCORE_TARGET("arch=x86-64-v3", 256)
#include "kernels/instance.h"
GUARDCORE_TARGET_END

namespace guardcore {

const Kernels kernels_v3 = v3::table("x86-64-v3 (AVX2, FMA)");

}  // namespace guardcore
#endif
