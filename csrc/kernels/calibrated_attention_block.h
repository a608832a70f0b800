// A block of slots: what its lanes stand for, what they see, their rule, and their results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "calibrated_attention_softmax.h"
#include "calibrated_attention_task.h"
#include "calibrated_attention_tile.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int kBlockSlots = kSlotVectors * kWidth;
// Floats of a row that is padded to whole vectors.
constexpr int64_t padded_width(int64_t width) { return (width + kWidth - 1) / kWidth * kWidth; }

// Up to kBlockSlots slots and what becomes of them; every array of state has one number a lane in its last place.
struct SlotBlock {
  int64_t first, count;  // slots of the task
  int64_t period;        // lanes that stand for slots of their own; those beyond the last slot repeat it
  int vectors;
  float *panels, *out, *rule, *mass;
  Running run;
  Sight sight;
  int64_t first_key, end_key;      // some lane sees keys from here to there
  int64_t common_key, common_end;  // every lane sees all of these, key_mask apart
  uint64_t removed[4];             // bits of the classes whose keys weigh nothing in every lane

  int64_t lanes() const { return int64_t{vectors} * kWidth; }
  int64_t slot(int64_t lane) const { return first + std::min(lane % period, count - 1); }
  bool sees_all(KeyRange keys) const { return common_key <= keys.first && keys.end <= common_end; }
  bool removes(uint8_t kind) const { return removed[kind / 64] >> kind % 64 & 1; }
};

constexpr int64_t block_floats(int64_t width, int64_t classes) {
  return kBlockSlots * (2 * padded_width(width) + 4 * classes + 7);
}

inline SlotBlock carve(float* from, int64_t width, int64_t classes) {
  SlotBlock b{};
  const auto take = [&](int64_t rows) { return std::exchange(from, from + rows * kBlockSlots); };
  b.panels = take(padded_width(width));
  b.out = take(padded_width(width));
  b.rule = take(3 * classes);
  b.mass = take(classes);
  b.run = {take(1), take(1), take(1), take(1)};
  for (int32_t** to : {&b.sight.first, &b.sight.end, &b.sight.group}) *to = reinterpret_cast<int32_t*>(take(1));
  return b;
}

// What each lane sees, and what that means for the block.
static void find_sight(const AttentionTask& task, SlotBlock& b) {
  const KeyRange all = task.sight(b.slot(0) / task.heads, b.slot(b.count - 1) / task.heads + 1);
  b.first_key = all.first, b.end_key = all.end;
  b.common_key = 0, b.common_end = task.keys;
  for (int64_t i = 0; i < b.lanes(); ++i) {
    const int64_t row = b.slot(i) / task.heads;
    const KeyRange near = task.near_keys(row);
    b.sight.first[i] = static_cast<int32_t>(near.first);
    b.sight.end[i] = static_cast<int32_t>(near.end);
    b.sight.group[i] = task.group_of(row);
    b.common_key = std::max(b.common_key, near.first);
    b.common_end = std::min(b.common_end, near.end);
  }
}

// Coefficients by class and lane. A row that is not calibrated and class 0 have zeros, so that one formula
// serves all lanes.
static void spread_rule(const AttentionTask& task, SlotBlock& b) {
  const int64_t lanes = b.lanes();
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t slot = b.slot(i), row = slot / task.heads;
    const float* rule = task.rule + slot % task.heads * task.classes * 3;
    const bool applies = !task.row_mask || task.row_mask[row];
    for (int64_t k = 0; k < 3 * task.classes; ++k) b.rule[k * lanes + i] = applies && k >= 3 ? rule[k] : 0;
  }
  for (int64_t g = 1; g < task.classes; ++g) {
    const float* additive = b.rule + (3 * g + 2) * lanes;
    if (std::count(additive, additive + lanes, kHidden) == lanes) b.removed[g / 64] |= uint64_t{1} << g % 64;
  }
}

// Everything but the queries.
static void begin_block(const AttentionTask& task, SlotBlock& b) {
  find_sight(task, b);
  if (task.any_class) spread_rule(task, b);
  std::fill_n(b.out, padded_width(task.width) * b.lanes(), 0.0f);
  std::fill_n(b.mass, task.classes * b.lanes(), 0.0f);
  std::fill_n(b.run.largest, b.lanes(), kHidden);
  std::fill_n(b.run.total, b.lanes(), 0.0f);
}

}  // namespace guardcore::GUARDCORE_ISA
