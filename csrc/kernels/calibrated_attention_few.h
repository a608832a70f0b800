// Calibrated attention of a few rows, as in decoding: reading the keys is the work, and most lanes would be idle if
// rows ran along them. Here the width runs along the lanes of a product, and of the scores a vector holds kWidth / R
// keys for each of R rows, score[key][R]; elements of 16 bits are widened in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "calibrated_attention_block.h"
#include "calibrated_attention_result.h"
#include "calibrated_attention_rows.h"
#include "calibrated_attention_softmax.h"
#include "calibrated_attention_task.h"
#include "half.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int64_t kFewSlots = std::min(8, kWidth);

struct AsFloat {
  using Stored = float;
  static GUARDCORE_INLINE Vector wide(const float* from) { return load(from); }
};

struct AsBFloat16 {
  using Stored = uint16_t;
  static GUARDCORE_INLINE Vector wide(const uint16_t* from) { return wide_bfloat16(from); }
};

struct AsHalf {
  using Stored = uint16_t;
  static GUARDCORE_INLINE Vector wide(const uint16_t* from) { return wide_half(from); }
};

// The first `count` of a vector's elements, zeros after them.
template <class E>
GUARDCORE_INLINE Vector wide_part(const typename E::Stored* from, int64_t count) {
  typename E::Stored part[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return E::wide(part);
}

// Rows that are read next. Four rows at a time are too few streams for the processor's own prefetching: while keys are
// scored their values are asked for, and while values are added up the next keys.
struct Ahead {
  const void* const* row;
  int64_t bytes, rows;

  GUARDCORE_INLINE void fetch(int64_t i) const {
    if (i >= rows) return;
    for (int64_t skip = 0; skip < bytes; skip += 64) __builtin_prefetch(static_cast<const char*>(row[i]) + skip, 0, 2);
  }
};

// How a vector of a row is read, `skip` elements on: whole, or the part that is left at its end.
template <class E>
struct Whole {
  int64_t skip;
  GUARDCORE_INLINE Vector operator()(const typename E::Stored* row) const { return E::wide(row + skip); }
};

template <class E>
struct Part {
  int64_t skip, count;
  GUARDCORE_INLINE Vector operator()(const typename E::Stored* row) const { return wide_part<E>(row + skip, count); }
};

// sum[key * R + row] += the products of one vector of dimensions.
template <int R, class Row, class Wide>
GUARDCORE_INLINE void add_products(const Row* key, const float* query, int64_t query_stride, Wide wide, Vector* sum) {
  Vector q[R];
  GUARDCORE_UNROLL
  for (int r = 0; r < R; ++r) q[r] = load(query + r * query_stride);
  GUARDCORE_UNROLL
  for (int i = 0; i < kWidth / R; ++i) {
    const Vector k = wide(key[i]);
    GUARDCORE_UNROLL
    for (int r = 0; r < R; ++r) sum[i * R + r] += k * q[r];
  }
}

// score[key][R], whole vectors: further keys repeat the last one.
template <int R, class E>
static void few_scores(const void* const* key, int64_t keys, const float* query, int64_t width, const Ahead& ahead,
                       float* score) {
  using Row = const typename E::Stored*;
  constexpr int kKeys = kWidth / R;
  const int64_t padded = padded_width(width), whole = width / kWidth * kWidth;
  for (int64_t t = 0; t < keys; t += kKeys) {
    Row row[kKeys];
    GUARDCORE_UNROLL
    for (int i = 0; i < kKeys; ++i) row[i] = static_cast<Row>(key[std::min(t + i, keys - 1)]);
    for (int i = 0; i < kKeys; ++i) ahead.fetch(t + i);
    Vector sum[kWidth] = {};
    for (int64_t d = 0; d < whole; d += kWidth) add_products<R>(row, query + d, padded, Whole<E>{d}, sum);
    if (whole < width) add_products<R>(row, query + whole, padded, Part<E>{whole, width - whole}, sum);
    store(score + t * R, lane_sums(sum));
  }
}

// out[r][d] = decay[r] out[r][d] + sum_t weight[t][r] value[t][d] for C vectors of dimensions from `skip` on.
template <int R, int C, class Stored, class Wide>
GUARDCORE_INLINE void add_few_values(const void* const* value, int64_t skip, const float* weight, int64_t keys,
                                     const float* decay, int64_t out_stride, Wide wide, const Ahead& ahead,
                                     float* out) {
  Vector sum[R][C] = {};
  for (int64_t t = 0; t < keys; ++t) {
    ahead.fetch(t);
    GUARDCORE_UNROLL
    for (int c = 0; c < C; ++c) {
      const Vector v = wide(static_cast<const Stored*>(value[t]) + skip + c * kWidth);
      GUARDCORE_UNROLL
      for (int r = 0; r < R; ++r) sum[r][c] += weight[t * R + r] * v;
    }
  }
  GUARDCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    GUARDCORE_UNROLL
    for (int c = 0; c < C; ++c) {
      float* to = out + r * out_stride + skip + c * kWidth;
      store(to, load(to) * decay[r] + sum[r][c]);
    }
  }
}

template <int R, class E>
static void few_values(const void* const* value, const float* weight, int64_t keys, const float* decay, int64_t width,
                       Ahead ahead, float* out) {
  using Stored = typename E::Stored;
  constexpr int kChunk = std::max(1, std::min(8, (kRegisters >= 32 ? 16 : 8) / R));
  const int64_t padded = padded_width(width), whole = width / kWidth * kWidth;
  int64_t d = 0;
  for (; d + kChunk * kWidth <= whole; d += kChunk * kWidth) {
    add_few_values<R, kChunk, Stored>(value, d, weight, keys, decay, padded, Whole<E>{0}, ahead, out);
    ahead.rows = 0;  // once
  }
  for (; d < whole; d += kWidth)
    add_few_values<R, 1, Stored>(value, d, weight, keys, decay, padded, Whole<E>{0}, ahead, out);
  if (whole == width) return;
  const Part<E> part{0, width - whole};
  add_few_values<R, 1, Stored>(value, whole, weight, keys, decay, padded, part, ahead, out);
}

// The rule on vectors of which a key has a class; each key's coefficients are put in its lanes.
template <int R>
static void few_rule(const uint8_t* key_class, int64_t keys, const float* rule, float* score) {
  constexpr int kKeys = kWidth / R;
  for (int64_t t = 0; t < keys; t += kKeys) {
    const int64_t count = std::min<int64_t>(kKeys, keys - t);
    if (std::all_of(key_class + t, key_class + t + count, [](uint8_t g) { return g == 0; })) continue;
    float of[3][kWidth] = {};
    for (int64_t i = 0; i < count; ++i) {
      for (int k = 0; k < 3; ++k)
        std::memcpy(of[k] + i * R, rule + (key_class[t + i] * 3 + k) * kWidth, R * sizeof(float));
    }
    store(score + t * R, calibrated(load(score + t * R), load(of[0]), load(of[1]), load(of[2])));
  }
}

template <int R>
static void few_hide(const AttentionTask& task, const Sight& sight, int64_t first_key, int64_t keys, float* score) {
  for (int64_t t = 0; t < keys; ++t) {
    const int64_t at = first_key + t;
    const int32_t group = task.groups ? task.groups[at].id : 0;
    const bool visible = !task.key_mask || task.key_mask[at];
    for (int r = 0; r < R; ++r) {
      const bool near = sight.first[r] <= at && at < sight.end[r], same = group != 0 && group == sight.group[r];
      if (!visible || !(near || same)) score[t * R + r] = kHidden;
    }
  }
}

template <int R>
static void few_mass(const uint8_t* key_class, int64_t keys, const float* weight, float* mass) {
  for (int64_t t = 0; t < keys; ++t) {
    if (key_class[t] == 0) continue;
    for (int r = 0; r < R; ++r) mass[key_class[t] * kWidth + r] += weight[t * R + r];
  }
}

// Values as floats, zeros for the keys that no row gives weight to: what a hidden key holds may be a NaN.
template <int R, class E>
static void seen_values(const void* const* value, int64_t keys, const float* weight, int64_t width, float* seen,
                        const void** where) {
  const int64_t padded = padded_width(width);
  for (int64_t t = 0; t < keys; ++t, seen += padded) {
    const bool any = std::any_of(weight + t * R, weight + (t + 1) * R, [](float w) { return w != 0; });
    const auto* from = static_cast<const typename E::Stored*>(value[t]);
    for (int64_t d = 0; d < width; d += kWidth) {
      const Vector x = wide_part<E>(from + d, std::min<int64_t>(kWidth, width - d));
      store(seen + d, any ? x : Vector{});
    }
    where[t] = seen;
  }
}

// Visible keys of one block and where they lie.
struct FewKeys {
  KeyRange range;
  RowTable rows;

  int64_t count() const { return range.end - range.first; }
};

// scratch: scores, then values.
template <int R, class E>
static void attend_few_keys(const AttentionTask& task, SlotBlock& b, const FewKeys& keys, const FewKeys& next,
                            float* scratch) {
  constexpr int kKeys = kWidth / R;
  const KeyBlock& block = task.blocks[keys.range.first / kKeyBlock];
  const int64_t n = keys.count(), vectors = (n + kKeys - 1) / kKeys, bytes = task.width * sizeof(typename E::Stored);
  const bool whole = block.all_visible && b.sees_all(keys.range);
  const uint8_t* key_class = task.key_class + keys.range.first;
  float *score = scratch, *seen = scratch + kKeyBlock * kBlockSlots;
  const Ahead values{keys.rows.value, bytes, n}, next_keys{next.rows.key, bytes, next.count()};
  few_scores<R, E>(keys.rows.key, n, b.panels, task.width, values, score);
  if (task.softcap > 0) cap_scores(score, vectors * kWidth, task.softcap);
  if (block.any_class) few_rule<R>(key_class, n, b.rule, score);
  if (!whole) few_hide<R>(task, b.sight, keys.range.first, n, score);
  std::fill(score + n * R, score + vectors * kWidth, kHidden);
  raise_maximum<1, R>(score, vectors, b.run);
  const bool exact = !whole || block.any_class || n % kKeys != 0;
  (exact ? &weigh<1, true> : &weigh<1, false>)(score, vectors, b.run);
  if (task.mass) add_mass(nullptr, n, task.classes, b.run.decay, kWidth, score, b.mass);
  if (task.mass && block.any_class) few_mass<R>(key_class, n, score, b.mass);
  if (whole) return few_values<R, E>(keys.rows.value, score, n, b.run.decay, task.width, next_keys, b.out);
  const void* where[kKeyBlock];
  seen_values<R, E>(keys.rows.value, n, score, task.width, seen, where);
  few_values<R, AsFloat>(where, score, n, b.run.decay, task.width, next_keys, b.out);
}

// Scaled queries [R][padded width].
static void scale_queries(const AttentionTask& task, const SlotBlock& b, float* query) {
  for (int64_t r = 0; r < b.period; ++r, query += padded_width(task.width)) {
    const int64_t slot = b.slot(r), index = slot / task.heads * task.query_row + slot % task.heads * task.query_head;
    const void* from = element(task.query, task.element, index);
    const float* row = widened(from, task.element, task.query_element, task.width, query);
    for (int64_t d = 0; d < task.width; ++d) query[d] = row[d] * task.scale;
    std::fill(query + task.width, query + padded_width(task.width), 0.0f);
  }
}

// The keys from `from` on that some row sees with some weight.
static void find_few(const AttentionTask& task, const SlotBlock& b, int64_t from, FewKeys& keys) {
  keys.range = next_keys(task, from, b.end_key);
  while (keys.count() > 0 && b.removes(task.blocks[keys.range.first / kKeyBlock].only_class))
    keys.range = next_keys(task, keys.range.end, b.end_key);
  find_rows(task, keys.range, keys.rows);
}

// All slots of a task that has at most R. What is looked for ahead may be beyond the task's own keys: whoever has those
// is likely to be the same thread.
template <int R, class E>
static void attend_rows(const AttentionTask& task, float* scratch) {
  SlotBlock b = carve(scratch, task.width, task.classes);
  b.first = 0, b.count = task.slots(), b.period = R, b.vectors = 1;
  begin_block(task, b);
  scale_queries(task, b, b.panels);
  float* rest = scratch + block_floats(task.width, task.classes);
  float* copies = rest + kKeyBlock * (kBlockSlots + padded_width(task.width));
  FewKeys some, others, *keys = &some, *next = &others;
  find_few(task, b, std::max(task.range.first, b.first_key), *keys);
  while (keys->count() > 0 && keys->range.first < task.range.end) {
    find_few(task, b, keys->range.end, *next);
    if (task.gathered()) {
      gather_rows(task, task.key, keys->count(), keys->rows.key, copies);
      gather_rows(task, task.value, keys->count(), keys->rows.value, copies + kKeyBlock * task.width);
    }
    attend_few_keys<R, E>(task, b, *keys, *next, rest);
    std::swap(keys, next);
  }
  for (int r = 0; r < b.count; ++r) {
    float total = 0;
    for (int i = r; i < kWidth; i += R) total += b.run.total[i];
    end_slot(task, r, {b.run.largest[r], total, b.mass + r, kWidth, b.out + r * padded_width(task.width)});
  }
}

template <class E>
static void attend_few_of(const AttentionTask& task, float* scratch) {
  const int64_t slots = task.slots();
  if (slots == 1) return attend_rows<1, E>(task, scratch);
  if (slots == 2) return attend_rows<2, E>(task, scratch);
  if (slots <= 4) return attend_rows<4, E>(task, scratch);
  if constexpr (kFewSlots == 8) attend_rows<8, E>(task, scratch);
}

// A task of at most kFewSlots slots.
static void attend_few(const AttentionTask& task, float* scratch) {
  if (task.element == Element::kFloat || task.gathered()) return attend_few_of<AsFloat>(task, scratch);
  if (task.element == Element::kBFloat16) return attend_few_of<AsBFloat16>(task, scratch);
  attend_few_of<AsHalf>(task, scratch);
}

}  // namespace guardcore::GUARDCORE_ISA
