// Calibrated attention of one KV head: what the kernels read and write.
#pragma once

#include <cstdint>

#include "embedding.h"

namespace guardcore {

// Keys that are scored before their values are added up: the scores of a block of rows stay in the first-level cache.
constexpr int64_t kKeyBlock = 96;

// What is known of kKeyBlock keys before any row looks at them.
struct KeyBlock {
  bool any_visible, all_visible, any_class;
};

// The group of a key, 0 for none, and the range of keys that holds all of its group.
struct KeyGroup {
  int32_t id, first, end;
};

// All query heads that share one KV head of one item. A slot is one row of one of them, slot = row * heads + head: rows
// of the group read every key together, and neighbors in a vector see nearly the same keys.
struct AttentionTask {
  Element element;
  int64_t width, keys, rows, heads, classes;
  const void *query, *key, *value;
  int64_t query_row, query_head, key_row, value_row;  // strides in elements
  const float* rule;                                  // [heads, classes, 3]: linear, quadratic, additive
  const uint8_t* key_class;                           // [keys]
  const uint8_t *row_mask, *key_mask;                 // [rows], [keys]; null: all
  const KeyBlock* blocks;                             // [keys / kKeyBlock, rounded up]
  bool any_class;                                     // in any of them
  const KeyGroup* groups;                             // [keys]; null: none
  bool is_causal;
  int64_t start, window;  // position of row 0 in key coordinates; rows see at most `window` keys back
  float scale, softcap;   // softcap 0: none
  void* output;           // [rows, heads, width] with output_row elements from row to row
  int64_t output_row;
  float *lse, *mass;  // [heads, rows] and [heads, rows, classes]; mass null: not wanted

  int64_t slots() const { return rows * heads; }
};

}  // namespace guardcore
