// The kernels of one instruction set, as the operators call them, and the set that this machine runs.
#pragma once

#include <cstdint>

#include "calibrated_attention_task.h"
#include "embedding.h"
#include "plan.h"

namespace guardcore {

struct Kernels {
  const char* name;
  bool (*unit_rows)(const Rows& rows, float* unit);
  bool (*pack_panels)(const Rows& rows, float* panels, float* scratch);
  void (*pack_units)(const float* unit, int64_t count, int64_t width, float* panels);
  void (*cost_tile)(const float* panels, int64_t columns, const float* prototypes, int64_t count, int64_t width,
                    int64_t depth, float* cost, int64_t stride);
  void (*loose_cost_tile)(const float* prototype_panels, int64_t count, const float* patches, int64_t loose,
                          int64_t width, int64_t depth, float* scratch, float* cost, int64_t stride);
  void (*row_minima)(const Problem& q, const float* cost, float* shift);
  double (*least_statistic)(const Problem& q, const Workspace& w, bool by_distance);
  void (*solve)(const Problem& q, Workspace& w);
  void (*patch_scores)(const Problem& q, const Workspace& w, float* score);
  double (*patch_costs)(const Problem& q, const Workspace& w, const float* score, float* cost);
  double (*dual_value)(const Problem& q, const Workspace& w, bool balanced, double rho);
  void (*group_shares)(const Problem& q, const Workspace& w, const int64_t* group, int64_t groups, float* mass,
                       float* cost, int64_t row_stride);
  int64_t attention_block, attention_team;  // slots that are attended together, and blocks of them
  int64_t (*attention_scratch)(int64_t width, int64_t classes);
  void (*attend)(const AttentionTask& task, int64_t first, int64_t count, float* scratch);
  void (*merge_parts)(const AttentionTask& task, const float* parts, int64_t count, float* scratch);
};

extern const Kernels kernels_baseline;
#if GUARDCORE_HAS_LEVELS
extern const Kernels kernels_v3, kernels_v4;
#endif

// Of the widest instruction set of this machine, or of a lower one that GUARDCORE_CPU_LEVEL names (v3, baseline).
// Raises if it names none.
const Kernels& kernels();

}  // namespace guardcore
