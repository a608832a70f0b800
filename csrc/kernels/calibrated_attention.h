// Calibrated attention of many rows: attention block by block with a running softmax, rows of queries along the lanes.
//
//   s = softcap(scale <q, k>)
//   s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g],  g = class of k
//
// A few blocks of rows, a team, take each block of keys in turn: what is widened from 16 bits, or read from memory,
// serves all of them. Blocks of keys that no row sees are skipped; one without classes skips the rule.
#pragma once

#include <algorithm>
#include <cstdint>

#include "calibrated_attention_block.h"
#include "calibrated_attention_few.h"
#include "pack.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int kTeam = 4;  // blocks of rows that share a block of keys

// Floats of scratch that a thread needs.
static int64_t attention_scratch(int64_t width, int64_t classes) {
  const int64_t padded = padded_width(width);
  return kTeam * block_floats(width, classes) + kKeyBlock * (kBlockSlots + 2 * padded) + kWidth * padded;
}

// Queries, scaled, as panels; scratch holds kWidth rows.
static void pack_queries(const AttentionTask& task, const SlotBlock& b, float* scratch) {
  for (int j = 0; j < b.vectors; ++j) {
    const float* row[kWidth];
    Scale scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t slot = b.slot(j * kWidth + i);
      const int64_t index = slot / task.heads * task.query_row + slot % task.heads * task.query_head;
      row[i] = widened(task.query, task.element, index, task.width, scratch + i * task.width);
      scale[i] = {task.scale, 1, 0, true};
    }
    interleave(row, scale, task.width, b.panels + j * task.width * kWidth);
  }
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
  const bool whole = keys.all_visible && b.sees_all(keys.first, keys.first + n);
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

static void end_block(const AttentionTask& task, const SlotBlock& b, float* rows) {
  for (int j = 0; j < b.vectors; ++j) {
    transpose_rows(b, j, task.width, 1.0f / load(b.run.total + j * kWidth), rows);
    for (int64_t i = j * kWidth; i < std::min<int64_t>(b.count, (j + 1) * kWidth); ++i)
      write_slot(task, b, i, rows + (i - j * kWidth) * task.width);
  }
}

// The slots first ... first + count - 1, at most kTeam * kBlockSlots; scratch as attention_scratch says.
static void attend(const AttentionTask& task, int64_t first, int64_t count, float* scratch) {
  if (task.slots() <= kFewSlots) return attend_few(task, scratch);
  SlotBlock team[kTeam];
  const int64_t size = (count + kBlockSlots - 1) / kBlockSlots, floats = block_floats(task.width, task.classes);
  float *score = scratch + kTeam * floats, *wide = score + kKeyBlock * kBlockSlots;
  float* rows = wide + 2 * kKeyBlock * task.width;
  int64_t first_key = task.keys, end_key = 0;
  for (int64_t i = 0; i < size; ++i) {
    SlotBlock& b = team[i] = carve(scratch + i * floats, task.width, task.classes);
    b.first = first + i * kBlockSlots;
    b.count = std::min<int64_t>(kBlockSlots, first + count - b.first);
    b.vectors = b.count > kWidth ? 2 : 1;
    b.period = b.lanes();
    begin_block(task, b);
    pack_queries(task, b, rows);
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
