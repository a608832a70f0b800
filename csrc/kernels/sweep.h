// One Sinkhorn iteration as one pass over the kernel tile K, in blocks that stay in the first-level cache between
// their two uses:
//
//   row_n = sum_m v_m K_mn,  u_n = a_n / row_n,  column_m = sum_n u_n K_mn
//
// The row error of the previous plan, sum_n |u_n row_n - a_n| with the old u and the new row sums, comes for free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "plan.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

// Vectors of row sums, and of column sums, that stay in registers. A multiply-add takes four cycles and two start in
// each: fewer than eight chains would wait for each other.
constexpr int kRowSums = kRegisters >= 32 ? 14 : 12;
constexpr int kColumnSums = std::max(8, kWidth);

// What a sweep learns beside the sums, lane by lane.
struct Watch {
  Vector row_error, smallest_row, largest_u;
};

// Row sums of V vectors of patches, and their u. With few vectors the sum over m is cut into several chains.
template <int V>
static void update_rows(const float* kernel, const float* v, int64_t prototypes, int64_t columns, const float* a,
                        float* row, float* u, Watch& watch) {
  constexpr int kChains = V >= 8 ? 1 : V >= 4 ? 2 : V >= 2 ? 4 : 8;
  Vector sum[kChains][V] = {};
  int64_t m = 0;
  for (; m + kChains <= prototypes; m += kChains) {
    GUARDCORE_UNROLL
    for (int i = 0; i < kChains; ++i) {
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) sum[i][j] += v[m + i] * load(kernel + (m + i) * columns + j * kWidth);
    }
  }
  for (; m < prototypes; ++m) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) sum[0][j] += v[m] * load(kernel + m * columns + j * kWidth);
  }
  Watch seen = watch;
  GUARDCORE_UNROLL
  for (int j = 0; j < V; ++j) {
    GUARDCORE_UNROLL
    for (int i = 1; i < kChains; ++i) sum[0][j] += sum[i][j];
    const Vector mass = load(a + j * kWidth), next = mass / sum[0][j];
    seen.row_error += magnitude(load(u + j * kWidth) * sum[0][j] - mass);
    seen.smallest_row = smaller(seen.smallest_row, sum[0][j]);
    seen.largest_u = larger(seen.largest_u, next);
    store(row + j * kWidth, sum[0][j]);
    store(u + j * kWidth, next);
  }
  watch = seen;
}

using UpdateRows = void (*)(const float*, const float*, int64_t, int64_t, const float*, float*, float*, Watch&);

template <size_t... V>
inline UpdateRows update_rows_of(int64_t vectors, std::index_sequence<V...>) {
  static constexpr UpdateRows all[] = {&update_rows<static_cast<int>(V) + 1>...};
  return all[vectors - 1];
}

// Where a block stands among the blocks of its problem.
struct Place {
  bool first, last;
};

// sum[i] += u[n] K[i][n], lane by lane, for R prototypes.
template <int R>
GUARDCORE_INLINE void add_columns(const float* kernel, const float* u, int64_t columns, Vector* sum) {
  for (int64_t n = 0; n < columns; n += kWidth) {
    const Vector x = load(u + n);
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) sum[i] += x * load(kernel + i * columns + n);
  }
}

// Column sums of R prototypes over one block. Between blocks the lanes are kept apart, in lanes[R][kWidth]; after the
// last one they are added up.
template <int R>
static void sum_columns(const float* kernel, const float* u, int64_t columns, Place place, float* lanes,
                        float* column) {
  constexpr int kGroups = (R + kWidth - 1) / kWidth;
  Vector sum[kGroups * kWidth] = {};
  // eight at a time, as many rows as there are address registers for
  add_columns<std::min(R, 8)>(kernel, u, columns, sum);
  if constexpr (R > 8) add_columns<R - 8>(kernel + 8 * columns, u, columns, sum + 8);
  if (!place.first) {  // after the block's own sums: one chain over all patches would gather their rounding
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) sum[i] += load(lanes + i * kWidth);
  }
  if (place.last) {
    GUARDCORE_UNROLL
    for (int g = 0; g < kGroups; ++g) store(column + g * kWidth, lane_sums(sum + g * kWidth));
  } else {
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) store(lanes + i * kWidth, sum[i]);
  }
}

using SumColumns = void (*)(const float*, const float*, int64_t, Place, float*, float*);

template <size_t... R>
inline SumColumns sum_columns_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr SumColumns all[] = {&sum_columns<static_cast<int>(R) + 1>...};
  return all[rows - 1];
}

struct Sweep {
  float row_error;  // of the plan (old u, v)
  float smallest_row, largest_u;
};

// All rows of one block, in groups of nearly equal width.
inline void block_rows(const Problem& q, const float* kernel, const float* v, int64_t columns, const float* a,
                       float* row, float* u, Watch& watch) {
  const int64_t vectors = columns / kWidth, groups = (vectors + kRowSums - 1) / kRowSums;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t first = i * vectors / groups, take = (i + 1) * vectors / groups - first, n = first * kWidth;
    const UpdateRows run = update_rows_of(take, std::make_index_sequence<kRowSums>{});
    run(kernel + n, v, q.prototypes, columns, a + n, row + n, u + n, watch);
  }
}

inline void block_columns(const Problem& q, const float* kernel, const float* u, int64_t columns, Place place,
                          float* lanes, float* column) {
  for (int64_t m = 0; m < q.prototypes; m += kColumnSums) {
    const int64_t rows = std::min<int64_t>(kColumnSums, q.prototypes - m);
    const SumColumns run = sum_columns_of(rows, std::make_index_sequence<kColumnSums>{});
    run(kernel + m * columns, u, columns, place, lanes + m * kWidth, column + m);
  }
}

// v -> row, u -> column; columns are left out after the last iteration. Every other sweep goes backward: it begins with
// the block that the one before has left in the cache.
static Sweep sweep(const Problem& q, const float* kernel, const float* a, const float* v, float* row, float* u,
                   float* lanes, float* column, bool want_columns, bool backward) {
  Watch watch{Vector{}, Vector{} + std::numeric_limits<float>::infinity(), Vector{}};
  q.for_each_block(
      [&](int64_t first, int64_t columns, int64_t offset) {
        block_rows(q, kernel + offset, v, columns, a + first, row + first, u + first, watch);
        const bool leftmost = first == 0, rightmost = first + columns == q.stride;
        const Place place{backward ? rightmost : leftmost, backward ? leftmost : rightmost};
        if (want_columns) block_columns(q, kernel + offset, u + first, columns, place, lanes, column);
      },
      backward);
  return {fold<Sum>(watch.row_error), fold<Smaller>(watch.smallest_row), fold<Larger>(watch.largest_u)};
}

}  // namespace guardcore::GUARDCORE_ISA
