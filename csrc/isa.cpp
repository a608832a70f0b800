// Which instruction set the kernels run on.
#include <cstdlib>
#include <cstring>

#include "kernels/table.h"

namespace guardcore {
namespace {

#if GUARDCORE_HAS_LEVELS
const Kernels& choose() {
  const char* most = std::getenv("GUARDCORE_CPU_LEVEL");
  const bool baseline = most && std::strcmp(most, "baseline") == 0, v3 = most && std::strcmp(most, "v3") == 0;
  if (!baseline && !v3 && __builtin_cpu_supports("x86-64-v4")) return kernels_v4;
  if (!baseline && __builtin_cpu_supports("x86-64-v3")) return kernels_v3;
  return kernels_baseline;
}
#else
const Kernels& choose() { return kernels_baseline; }
#endif

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace guardcore
