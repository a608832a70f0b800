// Calibrated attention of one KV head: what the kernels read and write.
#pragma once

#include <algorithm>
#include <cstdint>

#include "embedding.h"

namespace guardcore {

// Keys that are scored before their values are added up: the scores of a block of rows stay in the first-level cache.
constexpr int64_t kKeyBlock = 96;

// What is known of kKeyBlock keys before any row looks at them. Visible ones lie in first ... end - 1 of the block;
// only_class is the class of all of these, 0 if they have none or several.
struct KeyBlock {
  uint8_t first, end;
  bool all_visible, any_class;
  uint8_t only_class;
};

// The group of a key, 0 for none, and the range of keys that holds all of its group.
struct KeyGroup {
  int32_t id, first, end;
};

// Keys first ... end - 1.
struct KeyRange {
  int64_t first, end;
};

// Rows of keys or of values. Row j is row j of `data`, or, with pages, row j % page_rows of the page that the table
// names for j / page_rows. Strides are in elements.
struct KeyRows {
  const void* data;
  int64_t row, element, head, page;
};

// All query heads that share one KV head of one item. A slot is one row of one of them, slot = row * heads + head: rows
// of the group read every key together, and neighbors in a vector see nearly the same keys.
struct AttentionTask {
  Element element;
  int64_t width, keys, rows, heads, classes;
  const void* query;
  int64_t query_row, query_head, query_element;  // strides in elements
  KeyRows key, value;
  const int32_t* pages;  // null: none
  int64_t page_rows;
  const float* rule;                   // [heads, classes, 3]: linear, quadratic, additive
  const uint8_t* key_class;            // [keys]
  const uint8_t *row_mask, *key_mask;  // [rows], [keys]; null: all
  const KeyBlock* blocks;              // [keys / kKeyBlock, rounded up]
  bool any_class;                      // in any of them
  const KeyGroup* groups;              // [keys]; null: none
  bool is_causal;
  int64_t start, window;  // position of row 0 in key coordinates; rows see at most `window` keys back
  float scale, softcap;   // softcap 0: none
  void* output;           // [rows, heads, width] with output_row elements from row to row
  int64_t output_row;
  float *lse, *mass;  // of (row, head) at row * lse_row + head * lse_head, mass [..., classes]; null: not wanted
  int64_t lse_row, lse_head;
  // The keys that this call looks at. part null: all of them, results are written. Else raw sums go to part[slots]
  // [part_floats], and merge_parts makes results of them.
  KeyRange range;
  float* part;

  int64_t slots() const { return rows * heads; }
  int64_t part_floats() const { return width + 2 + classes; }
  // Rows have gaps between their elements, so that vectors can't be read.
  bool gathered() const { return key.element != 1 || value.element != 1; }

  // The same for a later KV head of the item.
  AttentionTask of_head(int64_t head) const {
    AttentionTask task = *this;
    const int64_t bytes = element == Element::kFloat ? 4 : 2, first = head * heads;
    task.query = static_cast<const char*>(query) + first * query_head * bytes;
    task.key.data = static_cast<const char*>(key.data) + head * key.head * bytes;
    task.value.data = static_cast<const char*>(value.data) + head * value.head * bytes;
    task.rule = rule + first * classes * 3;
    task.output = static_cast<char*>(output) + first * width * bytes;
    task.lse = lse + first * lse_head;
    if (mass) task.mass = mass + first * lse_head * classes;
    return task;
  }

  int32_t group_of(int64_t row) const {
    const int64_t at = start + row;
    return groups && at >= 0 && at < keys ? groups[at].id : 0;
  }

  // What a row sees, key_mask and its group apart.
  KeyRange near_keys(int64_t row) const {
    if (!is_causal) return {0, keys};
    const int64_t at = start + row, end = std::clamp<int64_t>(at + 1, 0, keys);
    return {std::clamp<int64_t>(at - window + 1, 0, end), end};
  }

  // Keys that hold all that the rows first ... end - 1 see, key_mask apart.
  KeyRange sight(int64_t first, int64_t end) const {
    KeyRange all{keys, 0};
    for (int64_t row = first; row < end; ++row) {
      const KeyRange near = near_keys(row);
      if (near.first < near.end) all = {std::min(all.first, near.first), std::max(all.end, near.end)};
      if (group_of(row) == 0) continue;
      const KeyGroup& group = groups[start + row];
      all = {std::min<int64_t>(all.first, group.first), std::max<int64_t>(all.end, group.end)};
    }
    return all;
  }
};

}  // namespace guardcore
