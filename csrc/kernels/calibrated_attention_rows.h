// Where rows of keys and values lie, be it in pages, and rows of any layout as floats.
#pragma once

#include <algorithm>
#include <cstdint>

#include "calibrated_attention_task.h"
#include "widen.h"

namespace guardcore::GUARDCORE_ISA {

// The rows of a block of keys.
struct RowTable {
  const void *key[kKeyBlock], *value[kKeyBlock];
};

// Element `index` of 16 or 32 bits.
inline const void* element(const void* data, Element kind, int64_t index) {
  return static_cast<const char*>(data) + index * (kind == Element::kFloat ? 4 : 2);
}

// A row whose elements are `stride` apart: where it lies, if that is floats one after the other, or in scratch[width].
inline const float* widened(const void* row, Element kind, int64_t stride, int64_t width, float* scratch) {
  if (stride == 1) return float_row({row, kind, 1, width}, 0, scratch);
  for (int64_t d = 0; d < width; ++d) {
    const void* from = element(row, kind, d * stride);
    scratch[d] = *float_row({from, kind, 1, 1}, 0, scratch + d);
  }
  return scratch;
}

// Row `at` of keys or values. The rows after it follow at rows.row up to the end of the page.
inline const void* row_of(const AttentionTask& task, const KeyRows& rows, int64_t at) {
  if (!task.pages) return element(rows.data, task.element, at * rows.row);
  const int64_t page = at / task.page_rows, in_page = at - page * task.page_rows;
  return element(rows.data, task.element, task.pages[page] * rows.page + in_page * rows.row);
}

inline int64_t page_end(const AttentionTask& task, int64_t at) {
  return task.pages ? (at / task.page_rows + 1) * task.page_rows : task.keys;
}

// Rows that follow each other at one distance.
inline bool in_one_page(const AttentionTask& task, KeyRange range) { return range.end <= page_end(task, range.first); }

inline void find_rows(const AttentionTask& task, const KeyRows& rows, KeyRange range, const void** to) {
  const int64_t step = rows.row * (task.element == Element::kFloat ? 4 : 2);
  for (int64_t at = range.first; at < range.end;) {
    const int64_t count = std::min(page_end(task, at), range.end) - at;
    const char* row = static_cast<const char*>(row_of(task, rows, at));
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = row + i * step;
    at += count, to += count;
  }
}

inline void find_rows(const AttentionTask& task, KeyRange range, RowTable& table) {
  find_rows(task, task.key, range, table.key);
  find_rows(task, task.value, range, table.value);
}

// Copies `count` rows as floats to to[count][width] and names the copies in their stead.
inline void gather_rows(const AttentionTask& task, const KeyRows& rows, int64_t count, const void** table, float* to) {
  for (int64_t t = 0; t < count; ++t, to += task.width) {
    const float* from = widened(table[t], task.element, rows.element, task.width, to);
    if (from != to) std::copy(from, from + task.width, to);
    table[t] = to;
  }
}

// The first visible keys at or after `from`, all of one block; empty if there are none before `end`.
inline KeyRange next_keys(const AttentionTask& task, int64_t from, int64_t end) {
  for (int64_t block = from / kKeyBlock; block * kKeyBlock < end; ++block) {
    const KeyBlock& b = task.blocks[block];
    const int64_t first = std::max(from, block * kKeyBlock + b.first), last = block * kKeyBlock + b.end;
    if (first < std::min(last, end)) return {first, std::min(last, end)};
  }
  return {end, end};
}

}  // namespace guardcore::GUARDCORE_ISA
