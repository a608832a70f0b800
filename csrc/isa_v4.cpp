// The kernels for x86-64-v4 (AVX-512).
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

#define GUARDCORE_ISA v4
#define GUARDCORE_WIDTH 16
#define GUARDCORE_REGISTERS 32
GUARDCORE_TARGET("arch=x86-64-v4", 512)
#include "kernels/instance.h"
GUARDCORE_TARGET_END

namespace guardcore {

const Kernels kernels_v4 = v4::table("x86-64-v4 (AVX-512)");

}  // namespace guardcore
#endif
