// What becomes of a slot's sums: results, or a part of them that is merged with the parts of other keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "calibrated_attention_rows.h"
#include "calibrated_attention_softmax.h"
#include "calibrated_attention_task.h"
#include "narrow.h"

namespace guardcore::GUARDCORE_ISA {

// Weights exp(score - largest): their total, that of each class but 0, and the values they weigh, values[width].
struct SlotSums {
  float largest, total;
  const float* mass;
  int64_t mass_stride;
  float* values;
};

// Results of one slot; values are divided in place. Without a visible key they are 0 and -inf.
inline void write_result(const AttentionTask& task, int64_t slot, const SlotSums& sums) {
  const int64_t row = slot / task.heads, head = slot % task.heads, at = row * task.lse_row + head * task.lse_head;
  const bool blind = sums.total == 0;
  for (int64_t d = 0; d < task.width; ++d) sums.values[d] = blind ? 0 : sums.values[d] / sums.total;
  const int64_t index = row * task.output_row + head * task.width;
  narrow_row(sums.values, task.width, task.element, const_cast<void*>(element(task.output, task.element, index)));
  task.lse[at] = blind ? kHidden : sums.largest + std::log(sums.total);
  if (!task.mass) return;
  float *mass = task.mass + at * task.classes, classed = 0;
  for (int64_t g = 1; g < task.classes; ++g) {
    mass[g] = blind ? 0 : sums.mass[g * sums.mass_stride] / sums.total;
    classed += mass[g];
  }
  const float rest = 1.0f - classed;
  mass[0] = blind ? 0 : rest < 0 ? 0 : rest + 0 * sums.total;
}

// part[values, largest, total, mass]
inline void write_part(const AttentionTask& task, int64_t slot, const SlotSums& sums) {
  float* part = task.part + slot * task.part_floats();
  float* tail = std::copy(sums.values, sums.values + task.width, part);
  tail[0] = sums.largest;
  tail[1] = sums.total;
  for (int64_t g = 0; g < task.classes; ++g) tail[2 + g] = sums.mass[g * sums.mass_stride];
}

inline void end_slot(const AttentionTask& task, int64_t slot, const SlotSums& sums) {
  (task.part ? &write_part : &write_result)(task, slot, sums);
}

// sums += part, relative to `largest`.
inline void add_part(const AttentionTask& task, const float* part, float largest, SlotSums& sums, float* mass) {
  const float *tail = part + task.width, scale = std::exp(tail[0] - largest);
  sums.total += scale * tail[1];
#pragma omp simd
  for (int64_t d = 0; d < task.width; ++d) sums.values[d] += scale * part[d];
  for (int64_t g = 0; g < task.classes; ++g) mass[g] += scale * tail[2 + g];
}

// Results of all slots from `count` parts[slots][part_floats]; scratch[part_floats].
static void merge_parts(const AttentionTask& task, const float* parts, int64_t count, float* scratch) {
  const int64_t size = task.part_floats();
  float* mass = scratch + task.width;
  for (int64_t slot = 0; slot < task.slots(); ++slot) {
    const auto part = [&](int64_t i) { return parts + (i * task.slots() + slot) * size; };
    SlotSums sums{kHidden, 0, mass, 1, scratch};
    for (int64_t i = 0; i < count; ++i) sums.largest = std::max(sums.largest, part(i)[task.width]);
    std::fill_n(scratch, size, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      if (part(i)[task.width + 1] != 0) add_part(task, part(i), sums.largest, sums, mass);
    }
    write_result(task, slot, sums);
  }
}

}  // namespace guardcore::GUARDCORE_ISA
