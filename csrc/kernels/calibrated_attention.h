// Calibrated attention of many rows: attention block by block with a running softmax, rows of queries along the lanes.
//
//   s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g],  s = softcap(scale <q, k>), g = class of k
//
// A few blocks of rows, a team, take each block of keys in turn: what is widened from 16 bits, or read from memory,
// serves all of them. Blocks of keys that no row sees are skipped; one without classes skips the rule.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "calibrated_attention_softmax.h"
#include "calibrated_attention_task.h"
#include "calibrated_attention_tile.h"
#include "narrow.h"
#include "pack.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int kBlockSlots = kSlotVectors * kWidth;
constexpr int kTeam = 4;                              // blocks of rows that share a block of keys
constexpr int64_t kTeamSlots = kTeam * kBlockSlots;

// Up to kBlockSlots slots and what becomes of them; every array has one number a lane in its last place.
struct SlotBlock {
  int64_t first, count;  // slots of the task; further lanes repeat the last one
  int vectors;
  float *panels, *out, *rule, *mass;
  Running run;
  Sight sight;
  int64_t first_key, end_key;    // some lane sees keys from here to there
  int64_t common_key, common_end;  // every lane sees all of these, key_mask apart

  int64_t lanes() const { return int64_t{vectors} * kWidth; }
};

constexpr int64_t block_floats(int64_t width, int64_t classes) {
  return kBlockSlots * (2 * width + 4 * classes + 7);
}

// Floats of scratch that a thread needs.
static int64_t attention_scratch(int64_t width, int64_t classes) {
  return kTeam * block_floats(width, classes) + kKeyBlock * (kBlockSlots + 2 * width) + kWidth * width;
}

inline SlotBlock carve(float* from, int64_t width, int64_t classes) {
  SlotBlock b{};
  const auto take = [&](int64_t rows) { return std::exchange(from, from + rows * kBlockSlots); };
  b.panels = take(width);
  b.out = take(width);
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

// Queries, scaled, as panels; scratch holds kWidth rows.
static void pack_queries(const AttentionTask& task, const SlotBlock& b, float* scratch) {
  for (int j = 0; j < b.vectors; ++j) {
    const float* row[kWidth];
    Scale scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t slot = std::min<int64_t>(j * kWidth + i, b.count - 1) + b.first;
      const int64_t index = slot / task.heads * task.query_row + slot % task.heads * task.query_head;
      row[i] = widened(task.query, task.element, index, task.width, scratch + i * task.width);
      scale[i] = {task.scale, 1, true};
    }
    interleave(row, scale, task.width, b.panels + j * task.width * kWidth);
  }
}

// What each lane sees, and what that means for the block.
static void find_sight(const AttentionTask& task, SlotBlock& b) {
  b.first_key = b.common_end = task.keys;
  b.end_key = b.common_key = 0;
  for (int64_t i = 0; i < b.lanes(); ++i) {
    const int64_t at = task.start + (std::min(i, b.count - 1) + b.first) / task.heads;
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

// Coefficients by class and lane. A row that is not calibrated has zeros, so that one formula serves all lanes.
static void spread_rule(const AttentionTask& task, const SlotBlock& b) {
  for (int64_t i = 0; i < b.lanes(); ++i) {
    const int64_t slot = std::min(i, b.count - 1) + b.first, row = slot / task.heads;
    const float* rule = task.rule + slot % task.heads * task.classes * 3;
    const bool applies = !task.row_mask || task.row_mask[row];
    for (int64_t k = 0; k < 3 * task.classes; ++k) b.rule[k * b.lanes() + i] = applies ? rule[k] : 0;
  }
}

static void begin_block(const AttentionTask& task, SlotBlock& b, bool any_class, float* scratch) {
  pack_queries(task, b, scratch);
  find_sight(task, b);
  if (any_class) spread_rule(task, b);
  std::fill_n(b.out, task.width * b.lanes(), 0.0f);
  std::fill_n(b.mass, task.classes * b.lanes(), 0.0f);
  std::fill_n(b.run.largest, b.lanes(), kHidden);
  std::fill_n(b.run.total, b.lanes(), 0.0f);
}

// Keys first ... first + count - 1 as floats.
struct KeyView {
  int64_t first, count;
  const float *key, *value;
  int64_t key_stride, value_stride;
  bool all_visible, any_class;

  KeyView slice(int64_t from, int64_t to) const {
    const int64_t skip = from - first;
    return {from, to - from, key + skip * key_stride, value + skip * value_stride, key_stride, value_stride,
            all_visible, any_class};
  }
};

inline bool finite_values(const KeyView& keys, int64_t width) {
  float unsound = 0;
  for (int64_t t = 0; t < keys.count; ++t) {
    const float* row = keys.value + t * keys.value_stride;
#pragma omp simd reduction(+ : unsound)
    for (int64_t d = 0; d < width; ++d) unsound += row[d] - row[d];
  }
  return unsound == 0;
}

template <int V>
static void attend_keys(const AttentionTask& task, SlotBlock& b, const KeyView& keys, float* score) {
  const int64_t n = keys.count, lanes = b.lanes();
  const uint8_t* key_class = task.key_class + keys.first;
  const bool whole = keys.all_visible && b.common_key <= keys.first && keys.first + n <= b.common_end;
  all_scores<V>(keys.key, keys.key_stride, n, b.panels, task.width, score);
  if (task.softcap > 0) cap_scores(score, n * lanes, task.softcap);
  if (keys.any_class) apply_rule(key_class, n, b.rule, lanes, score);
  if (!whole) hide(task, b.sight, keys.first, n, lanes, score);
  raise_maximum<V>(score, n, b.run);
  const auto weights = whole && !keys.any_class ? &weigh<V, false> : &weigh<V, true>;
  weights(score, n, b.run);
  if (task.mass) add_mass(keys.any_class ? key_class : nullptr, n, task.classes, b.run.decay, lanes, score, b.mass);
  const bool guarded = !whole && !finite_values(keys, task.width);
  add_values<V>(keys.value, keys.value_stride, n, score, b.run.decay, task.width, guarded, b.out);
}

// One block of keys as floats: where they lie, or widened into scratch[2][kKeyBlock][width].
inline KeyView view_keys(const AttentionTask& task, int64_t first, int64_t count, float* scratch) {
  const KeyBlock& block = task.blocks[first / kKeyBlock];
  KeyView view{first, count, scratch, scratch + kKeyBlock * task.width, task.width, task.width,
               block.all_visible, block.any_class};
  if (task.element == Element::kFloat) {
    view.key = static_cast<const float*>(task.key) + first * task.key_row;
    view.value = static_cast<const float*>(task.value) + first * task.value_row;
    view.key_stride = task.key_row;
    view.value_stride = task.value_row;
    return view;
  }
  float* value = scratch + kKeyBlock * task.width;
  for (int64_t t = 0; t < count; ++t) {
    widened(task.key, task.element, (first + t) * task.key_row, task.width, scratch + t * task.width);
    widened(task.value, task.element, (first + t) * task.value_row, task.width, value + t * task.width);
  }
  return view;
}

// out[d][lanes] of one vector of slots -> rows[kWidth][width], divided by the totals.
inline void transpose_rows(const SlotBlock& b, int j, int64_t width, Vector inverse, float* rows) {
  const int64_t lanes = b.lanes();
  const float* from = b.out + j * kWidth;
  int64_t d = 0;
  for (; d + kWidth <= width; d += kWidth) {
    Vector x[kWidth];
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) x[i] = load(from + (d + i) * lanes) * inverse;
    transpose(x);
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) store(rows + i * width + d, x[i]);
  }
  for (; d < width; ++d)
    for (int i = 0; i < kWidth; ++i) rows[i * width + d] = from[d * lanes + i] * inverse[i];
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

static void end_block(const AttentionTask& task, const SlotBlock& b, float* rows) {
  for (int j = 0; j < b.vectors; ++j) {
    transpose_rows(b, j, task.width, 1.0f / load(b.run.total + j * kWidth), rows);
    for (int64_t i = j * kWidth; i < std::min<int64_t>(b.count, (j + 1) * kWidth); ++i)
      write_slot(task, b, i, rows + (i - j * kWidth) * task.width);
  }
}

// The slots first ... first + count - 1, at most kTeamSlots; scratch as attention_scratch says.
static void attend(const AttentionTask& task, int64_t first, int64_t count, float* scratch) {
  SlotBlock team[kTeam];
  const int64_t size = (count + kBlockSlots - 1) / kBlockSlots, floats = block_floats(task.width, task.classes);
  float *score = scratch + kTeam * floats, *wide = score + kKeyBlock * kBlockSlots;
  float* rows = wide + 2 * kKeyBlock * task.width;
  const int64_t blocks = (task.keys + kKeyBlock - 1) / kKeyBlock;
  const bool any_class =
      std::any_of(task.blocks, task.blocks + blocks, [](const KeyBlock& block) { return block.any_class; });
  int64_t first_key = task.keys, end_key = 0;
  for (int64_t i = 0; i < size; ++i) {
    SlotBlock& b = team[i] = carve(scratch + i * floats, task.width, task.classes);
    b.first = first + i * kBlockSlots;
    b.count = std::min<int64_t>(kBlockSlots, first + count - b.first);
    b.vectors = b.count > kWidth ? 2 : 1;
    begin_block(task, b, any_class, rows);
    first_key = std::min(first_key, b.first_key);
    end_key = std::max(end_key, b.end_key);
  }
  for (int64_t k = first_key / kKeyBlock * kKeyBlock; k < end_key; k += kKeyBlock) {
    if (!task.blocks[k / kKeyBlock].any_visible) continue;
    const KeyView keys = view_keys(task, k, std::min(kKeyBlock, task.keys - k), wide);
    for (SlotBlock* b = team; b < team + size; ++b) {
      const int64_t from = std::max(k, b->first_key), to = std::min(k + keys.count, b->end_key);
      if (from >= to) continue;
      const auto run = b->vectors == 2 ? &attend_keys<2> : &attend_keys<1>;
      run(task, *b, keys.slice(from, to), score);
    }
  }
  for (int64_t i = 0; i < size; ++i) end_block(task, team[i], rows);
}

}  // namespace guardcore::GUARDCORE_ISA
