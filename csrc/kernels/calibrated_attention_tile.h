// The two products of attention, with rows of queries along the lanes:
//
//   scores   S[t][lane] = sum_d K[t][d] Q[d][lane]
//   values   O[d][lane] = decay[lane] O[d][lane] + sum_t V[t][d] P[t][lane]
//
// K and V are read where they lie, one number for all lanes at a time; only the queries are packed, once for all keys.
// Sums down the keys are sums of vectors, and what is particular to a key (its class, its visibility) is a scalar.
#pragma once

#include <cstdint>
#include <utility>

#include "cost.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

// Vectors of slots that go through the keys together: with two, every number of K and V that is read is used twice.
constexpr int kSlotVectors = 2;

// R keys by V vectors of slots.
template <int V, int R>
static void score_tile(const float* key, int64_t stride, const float* panels, int64_t width, float* score) {
  Vector sum[R][V] = {};
  for (int64_t d = 0; d < width; ++d) {
    Vector x[V];
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) x[j] = load(panels + (j * width + d) * kWidth);
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) {
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) sum[i][j] += key[i * stride + d] * x[j];
    }
  }
  GUARDCORE_UNROLL
  for (int i = 0; i < R; ++i) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) store(score + (i * V + j) * kWidth, sum[i][j]);
  }
}

// R dimensions of the output. The block's own sum is added to older ones as a whole: one chain over all keys would
// gather their rounding. Guarded: a weight of 0 takes nothing, though the value be infinite or NaN.
template <int V, int R, bool Guarded>
static void value_tile(const float* value, int64_t stride, const float* weight, int64_t keys, const float* decay,
                       float* out) {
  Vector sum[R][V] = {};
  for (int64_t t = 0; t < keys; ++t) {
    Vector x[V];
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) x[j] = load(weight + (t * V + j) * kWidth);
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) {
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) {
        if constexpr (Guarded) {
          sum[i][j] += x[j] == 0.0f ? Vector{} : value[t * stride + i] * x[j];
        } else {
          sum[i][j] += value[t * stride + i] * x[j];
        }
      }
    }
  }
  GUARDCORE_UNROLL
  for (int i = 0; i < R; ++i) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) {
      float* to = out + (i * V + j) * kWidth;
      store(to, load(to) * load(decay + j * kWidth) + sum[i][j]);
    }
  }
}

using ScoreTile = void (*)(const float*, int64_t, const float*, int64_t, float*);
using ValueTile = void (*)(const float*, int64_t, const float*, int64_t, const float*, float*);

template <int V, size_t... R>
inline ScoreTile score_tile_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr ScoreTile tiles[] = {&score_tile<V, static_cast<int>(R) + 1>...};
  return tiles[rows - 1];
}

template <int V, size_t... R>
inline ValueTile value_tile_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr ValueTile tiles[] = {&value_tile<V, static_cast<int>(R) + 1, false>...};
  return tiles[rows - 1];
}

// Calls run(first, rows) for tiles of nearly equal height, none above tile_rows(V): no small one is left over.
template <int V, class Run>
inline void for_each_tile(int64_t count, Run run) {
  const int64_t tiles = (count + tile_rows(V) - 1) / tile_rows(V);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * count / tiles;
    run(first, (t + 1) * count / tiles - first);
  }
}

// score[keys][V * kWidth]
template <int V>
static void all_scores(const float* key, int64_t stride, int64_t keys, const float* panels, int64_t width,
                       float* score) {
  for_each_tile<V>(keys, [&](int64_t first, int64_t rows) {
    const ScoreTile run = score_tile_of<V>(rows, std::make_index_sequence<tile_rows(V)>{});
    run(key + first * stride, stride, panels, width, score + first * V * kWidth);
  });
}

// out[width][V * kWidth]
template <int V>
static void add_values(const float* value, int64_t stride, int64_t keys, const float* weight, const float* decay,
                       int64_t width, bool guarded, float* out) {
  if (guarded) {
    for (int64_t d = 0; d < width; ++d)
      value_tile<V, 1, true>(value + d, stride, weight, keys, decay, out + d * V * kWidth);
    return;
  }
  for_each_tile<V>(width, [&](int64_t first, int64_t rows) {
    const ValueTile run = value_tile_of<V>(rows, std::make_index_sequence<tile_rows(V)>{});
    run(value + first, stride, weight, keys, decay, out + first * V * kWidth);
  });
}

}  // namespace guardcore::GUARDCORE_ISA
