// A block of slots: what its lanes stand for, what they see, their rule, and their results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "calibrated_attention_softmax.h"
#include "calibrated_attention_task.h"
#include "calibrated_attention_tile.h"
#include "narrow.h"
#include "widen.h"

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

  int64_t lanes() const { return int64_t{vectors} * kWidth; }
  int64_t slot(int64_t lane) const { return first + std::min(lane % period, count - 1); }
  bool sees_all(int64_t from, int64_t to) const { return common_key <= from && to <= common_end; }
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

// Element `index` of 16 or 32 bits.
inline const void* element(const void* data, Element kind, int64_t index) {
  return static_cast<const char*>(data) + index * (kind == Element::kFloat ? 4 : 2);
}

inline const float* widened(const void* data, Element kind, int64_t index, int64_t width, float* scratch) {
  return float_row({element(data, kind, index), kind, 1, width}, 0, scratch);
}

// What each lane sees, and what that means for the block.
static void find_sight(const AttentionTask& task, SlotBlock& b) {
  b.first_key = b.common_end = task.keys;
  b.end_key = b.common_key = 0;
  for (int64_t i = 0; i < b.lanes(); ++i) {
    const int64_t at = task.start + b.slot(i) / task.heads;
    const int64_t end = task.is_causal ? std::clamp<int64_t>(at + 1, 0, task.keys) : task.keys;
    const int64_t first = task.is_causal ? std::clamp<int64_t>(at - task.window + 1, 0, end) : 0;
    const bool grouped = task.groups && at >= 0 && at < task.keys && task.groups[at].id != 0;
    b.sight.first[i] = static_cast<int32_t>(first);
    b.sight.end[i] = static_cast<int32_t>(end);
    b.sight.group[i] = grouped ? task.groups[at].id : 0;
    b.common_key = std::max(b.common_key, first);
    b.common_end = std::min(b.common_end, end);
    if (first < end) {
      b.first_key = std::min(b.first_key, first);
      b.end_key = std::max(b.end_key, end);
    }
    if (grouped) {
      b.first_key = std::min<int64_t>(b.first_key, task.groups[at].first);
      b.end_key = std::max<int64_t>(b.end_key, task.groups[at].end);
    }
  }
}

// Coefficients by class and lane. A row that is not calibrated and class 0 have zeros, so that one formula
// serves all lanes.
static void spread_rule(const AttentionTask& task, const SlotBlock& b) {
  for (int64_t i = 0; i < b.lanes(); ++i) {
    const int64_t slot = b.slot(i), row = slot / task.heads;
    const float* rule = task.rule + slot % task.heads * task.classes * 3;
    const bool applies = !task.row_mask || task.row_mask[row];
    for (int64_t k = 0; k < 3 * task.classes; ++k) b.rule[k * b.lanes() + i] = applies && k >= 3 ? rule[k] : 0;
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

// The results of one slot. Without a visible key they are 0 and -inf.
inline void write_slot(const AttentionTask& task, const SlotBlock& b, int64_t lane, float* row) {
  const int64_t slot = b.first + lane, at = slot / task.heads, head = slot % task.heads;
  const float total = b.run.total[lane];
  const bool blind = total == 0;
  if (blind) std::fill_n(row, task.width, 0.0f);
  const int64_t index = at * task.output_row + head * task.width;
  narrow_row(row, task.width, task.element, const_cast<void*>(element(task.output, task.element, index)));
  task.lse[head * task.rows + at] = blind ? kHidden : b.run.largest[lane] + std::log(total);
  if (!task.mass) return;
  float* mass = task.mass + (head * task.rows + at) * task.classes;
  float classed = 0;
  for (int64_t g = 1; g < task.classes; ++g) {
    mass[g] = blind ? 0 : b.mass[g * b.lanes() + lane] / total;
    classed += mass[g];
  }
  const float rest = 1.0f - classed;
  mass[0] = blind ? 0 : rest < 0 ? 0 : rest + 0 * total;
}

}  // namespace guardcore::GUARDCORE_ISA
