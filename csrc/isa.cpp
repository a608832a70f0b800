// Which instruction set the kernels run on.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/table.h"

namespace guardcore {
namespace {

const Kernels& choose() {
  const char* name = std::getenv("GUARDCORE_CPU_LEVEL");
  const std::string most = name ? name : "v4";
  if (most != "v4" && most != "v3" && most != "baseline")
    throw std::invalid_argument("GUARDCORE_CPU_LEVEL must be v4, v3 or baseline, got " + most);
#if GUARDCORE_HAS_LEVELS
  if (most == "v4" && __builtin_cpu_supports("x86-64-v4")) return kernels_v4;
  if (most != "baseline" && __builtin_cpu_supports("x86-64-v3")) return kernels_v3;
#endif
  return kernels_baseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace guardcore
