// The kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#define GUARDCORE_ISA baseline
#define GUARDCORE_WIDTH 4
#if defined(__aarch64__)
#define GUARDCORE_REGISTERS 32
#else
#define GUARDCORE_REGISTERS 16
#endif

#include "kernels/instance.h"

namespace guardcore {

const Kernels kernels_baseline = baseline::table(
#if defined(__aarch64__)
    "arm64 (NEON)"
#elif defined(__x86_64__)
    "x86-64 (SSE2)"
#else
    "compiler default"
#endif
);

}  // namespace guardcore
