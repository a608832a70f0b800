// Every kernel for one instruction set: included once by each isa_*.cpp, which sets GUARDCORE_ISA (its namespace),
// GUARDCORE_WIDTH (floats of a vector), GUARDCORE_REGISTERS (vector registers) and the compiler's target.
#include "calibrated_attention.h"
#include "cost.h"
#include "joint_sinkhorn.h"
#include "pack.h"
#include "sinkhorn.h"
#include "sinkhorn_screen.h"
#include "table.h"

namespace guardcore::GUARDCORE_ISA {

constexpr Kernels table(const char* name) {
  return {name,         unit_rows,       pack_panels, pack_units,        cost_tile,   loose_cost_tile,
          row_minima,   least_statistic, solve,       patch_scores,      patch_costs, dual_value,
          group_shares, kBlockSlots,     kTeam,       attention_scratch, attend,      merge_parts};
}

}  // namespace guardcore::GUARDCORE_ISA
