// Calibrated attention of many rows: attention block by block with a running softmax, rows of queries along the lanes.
//
//   s = softcap(scale <q, k>)
//   s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g],  g = class of k
//
// A few blocks of rows, a team, take each block of keys in turn: what is widened from 16 bits, or read from memory,
// serves all of them. Keys that no row sees, or whose class is removed, are skipped by the block; one without classes
// skips the rule.
#pragma once

#include <algorithm>
#include <cstdint>

#include "calibrated_attention_block.h"
#include "calibrated_attention_few.h"
#include "calibrated_attention_result.h"
#include "calibrated_attention_rows.h"
#include "pack.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int kTeam = 4;  // blocks of rows that share a block of keys

// Floats of scratch that a thread needs.
static int64_t attention_scratch(int64_t width, int64_t classes) {
  const int64_t padded = padded_width(width);
  return kTeam * block_floats(width, classes) + kKeyBlock * (kBlockSlots + 3 * padded) + kWidth * padded;
}

// Queries, scaled, as panels; scratch holds kWidth rows.
static void pack_queries(const AttentionTask& task, const SlotBlock& b, float* scratch) {
  for (int j = 0; j < b.vectors; ++j) {
    const float* row[kWidth];
    Scale scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t slot = b.slot(j * kWidth + i);
      const int64_t index = slot / task.heads * task.query_row + slot % task.heads * task.query_head;
      const void* from = element(task.query, task.element, index);
      row[i] = widened(from, task.element, task.query_element, task.width, scratch + i * task.width);
      scale[i] = {task.scale, 1, 0, true};
    }
    interleave(row, scale, task.width, b.panels + j * task.width * kWidth);
  }
}

// Keys as floats.
struct KeyView {
  KeyRange range;
  const float *key, *value;
  int64_t key_stride, value_stride;
  bool all_visible, any_class;

  int64_t count() const { return range.end - range.first; }
  KeyView slice(KeyRange part) const {
    const int64_t skip = part.first - range.first;
    return {part,     key + skip * key_stride, value + skip * value_stride, key_stride, value_stride, all_visible,
            any_class};
  }
};

inline bool finite_values(const KeyView& keys, int64_t width) {
  float unsound = 0;
  for (int64_t t = 0; t < keys.count(); ++t) {
    const float* row = keys.value + t * keys.value_stride;
#pragma omp simd reduction(+ : unsound)
    for (int64_t d = 0; d < width; ++d) unsound += row[d] - row[d];
  }
  return unsound == 0;
}

template <int V>
static void attend_keys(const AttentionTask& task, SlotBlock& b, const KeyView& keys, float* score) {
  const int64_t n = keys.count(), lanes = b.lanes();
  const uint8_t* key_class = task.key_class + keys.range.first;
  const bool whole = keys.all_visible && b.sees_all(keys.range);
  all_scores<V>(keys.key, keys.key_stride, n, b.panels, task.width, score);
  if (task.softcap > 0) cap_scores(score, n * lanes, task.softcap);
  if (keys.any_class) apply_rule(key_class, n, b.rule, lanes, score);
  if (!whole) hide(task, b.sight, keys.range.first, n, lanes, score);
  raise_maximum<V>(score, n, b.run);
  const auto weights = whole && !keys.any_class ? &weigh<V, false> : &weigh<V, true>;
  weights(score, n, b.run);
  if (task.mass) add_mass(keys.any_class ? key_class : nullptr, n, task.classes, b.run.decay, lanes, score, b.mass);
  const bool guarded = !whole && !finite_values(keys, task.width);
  add_values<V>(keys.value, keys.value_stride, n, score, b.run.decay, task.width, guarded, b.out);
}

// Keys of one block as floats: where they lie, or copied into scratch[2][kKeyBlock][width].
inline KeyView view_keys(const AttentionTask& task, KeyRange range, float* scratch) {
  const KeyBlock& block = task.blocks[range.first / kKeyBlock];
  float* values = scratch + kKeyBlock * task.width;
  KeyView view{range, scratch, values, task.width, task.width, block.all_visible, block.any_class};
  if (task.element == Element::kFloat && !task.gathered() && in_one_page(task, range)) {
    view.key = static_cast<const float*>(row_of(task, task.key, range.first));
    view.value = static_cast<const float*>(row_of(task, task.value, range.first));
    view.key_stride = task.key.row;
    view.value_stride = task.value.row;
    return view;
  }
  RowTable rows;
  find_rows(task, range, rows);
  gather_rows(task, task.key, view.count(), rows.key, scratch);
  gather_rows(task, task.value, view.count(), rows.value, values);
  return view;
}

// out[d][lanes] of one vector of slots -> rows[kWidth][width].
inline void transpose_rows(const SlotBlock& b, int j, int64_t width, float* rows) {
  const int64_t lanes = b.lanes();
  const float* from = b.out + j * kWidth;
  int64_t d = 0;
  for (; d + kWidth <= width; d += kWidth) {
    Vector x[kWidth];
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) x[i] = load(from + (d + i) * lanes);
    transpose(x);
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) store(rows + i * width + d, x[i]);
  }
  for (; d < width; ++d)
    for (int i = 0; i < kWidth; ++i) rows[i * width + d] = from[d * lanes + i];
}

static void end_block(const AttentionTask& task, const SlotBlock& b, float* rows) {
  for (int j = 0; j < b.vectors; ++j) {
    transpose_rows(b, j, task.width, rows);
    for (int64_t i = j * kWidth; i < std::min<int64_t>(b.count, (j + 1) * kWidth); ++i) {
      float* values = rows + (i - j * kWidth) * task.width;
      end_slot(task, b.first + i, {b.run.largest[i], b.run.total[i], b.mass + i, b.lanes(), values});
    }
  }
}

// Blocks of slots that go through the keys together; `all` holds what any of them sees.
struct Team {
  SlotBlock block[kTeam];
  int64_t size;
  KeyRange all;

  // What a member sees of some keys of one block; empty if all of it is removed.
  static KeyRange share(const AttentionTask& task, const SlotBlock& b, KeyRange keys) {
    if (b.removes(task.blocks[keys.first / kKeyBlock].only_class)) return {keys.first, keys.first};
    return {std::max(keys.first, b.first_key), std::min(keys.end, b.end_key)};
  }
  bool wants(const AttentionTask& task, KeyRange keys) const {
    return std::any_of(block, block + size, [&](const SlotBlock& b) {
      const KeyRange part = share(task, b, keys);
      return part.first < part.end;
    });
  }
};

static Team begin_team(const AttentionTask& task, int64_t first, int64_t count, float* scratch, float* rows) {
  Team team{};
  team.size = (count + kBlockSlots - 1) / kBlockSlots;
  team.all = {task.keys, 0};
  for (int64_t i = 0; i < team.size; ++i) {
    SlotBlock& b = team.block[i] =
        carve(scratch + i * block_floats(task.width, task.classes), task.width, task.classes);
    b.first = first + i * kBlockSlots;
    b.count = std::min<int64_t>(kBlockSlots, first + count - b.first);
    b.vectors = b.count > kWidth ? 2 : 1;
    b.period = b.lanes();
    begin_block(task, b);
    pack_queries(task, b, rows);
    team.all = {std::min(team.all.first, b.first_key), std::max(team.all.end, b.end_key)};
  }
  return team;
}

// The slots first ... first + count - 1, at most kTeam * kBlockSlots; scratch as attention_scratch says.
static void attend(const AttentionTask& task, int64_t first, int64_t count, float* scratch) {
  if (task.slots() <= kFewSlots) return attend_few(task, scratch);
  float *score = scratch + kTeam * block_floats(task.width, task.classes), *wide = score + kKeyBlock * kBlockSlots;
  float* rows = wide + 2 * kKeyBlock * task.width;
  Team team = begin_team(task, first, count, scratch, rows);
  const int64_t end = std::min(team.all.end, task.range.end);
  KeyRange keys = next_keys(task, std::max(team.all.first, task.range.first), end);
  for (; keys.first < keys.end; keys = next_keys(task, keys.end, end)) {
    if (!team.wants(task, keys)) continue;
    const KeyView view = view_keys(task, keys, wide);
    for (SlotBlock* b = team.block; b < team.block + team.size; ++b) {
      const KeyRange part = Team::share(task, *b, keys);
      if (part.first >= part.end) continue;
      (b->vectors == 2 ? &attend_keys<2> : &attend_keys<1>)(task, *b, view.slice(part), score);
    }
  }
  for (int64_t i = 0; i < team.size; ++i) end_block(task, team.block[i], rows);
}

}  // namespace guardcore::GUARDCORE_ISA
