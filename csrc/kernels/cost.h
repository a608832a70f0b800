// The cost tile of one transport problem: cost[m][n] = 1 - <x_n, p_m>, patches along the row.
//
// A matrix product whose accumulators stay in registers: R prototypes by V vectors of patches, one vector of patches
// and one broadcast coordinate of a prototype per multiplication. Along the width it goes in chunks: the chunk of the
// panels stays in the first-level cache, and sums of at most kDepth products keep the rounding error small: near 1e-8,
// and 1e-7 for a cosine near 1, whose partial sums are large.
#pragma once

#include <algorithm>
#include <cstdint>

#include "embedding.h"
#include "isa.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

// Tallest tile of V vectors whose accumulators, patches and broadcast fit into the registers.
constexpr int tile_rows(int vectors) {
  const int rows = (kRegisters - vectors - 1) / vectors;
  return rows < 12 ? rows : 12;
}

// What a chunk's sums become: stored, added to the stored ones, and after the last chunk subtracted from 1.
struct Chunk {
  int64_t depth;
  bool first, last;
};

template <int V, int R>
static void tile(const float* panels, const float* prototypes, int64_t width, Chunk chunk, float* cost,
                 int64_t stride) {
  const int64_t row = prototype_stride(width);
  Vector sum[R][V] = {};
  for (int64_t d = 0; d < chunk.depth; ++d) {
    Vector x[V];
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) x[j] = load(panels + j * width * kWidth + d * kWidth);
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) {
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) sum[i][j] += prototypes[i * row + d] * x[j];
    }
  }
  GUARDCORE_UNROLL
  for (int i = 0; i < R; ++i) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) {
      float* to = cost + i * stride + j * kWidth;
      const Vector total = chunk.first ? sum[i][j] : load(to) + sum[i][j];
      store(to, chunk.last ? 1.0f - total : total);
    }
  }
}

using Tile = void (*)(const float*, const float*, int64_t, Chunk, float*, int64_t);

// tile<V, rows>, for a number of rows known at run time.
template <int V, size_t... R>
inline Tile tile_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr Tile tiles[] = {&tile<V, static_cast<int>(R) + 1>...};
  return tiles[rows - 1];
}

// One group of V vectors of patches against all prototypes, chunk by chunk.
template <int V>
static void cost_columns(const float* panels, const float* prototypes, int64_t count, int64_t width, int64_t depth,
                         float* cost, int64_t stride) {
  constexpr int kRows = tile_rows(V);
  const int64_t tiles = (count + kRows - 1) / kRows;
  for (int64_t d = 0; d < width; d += depth) {
    const Chunk chunk{std::min(depth, width - d), d == 0, d + depth >= width};
    for (int64_t t = 0; t < tiles; ++t) {  // of nearly equal height: no small one is left over
      const int64_t m = t * count / tiles, rows = (t + 1) * count / tiles - m;
      const Tile run = tile_of<V>(rows, std::make_index_sequence<kRows>{});
      run(panels + d * kWidth, prototypes + m * prototype_stride(width) + d, width, chunk, cost + m * stride, stride);
    }
  }
}

// cost[m * stride + n] for n < columns and m < count; padded patches are zero vectors, of cost 1.
static void cost_tile(const float* panels, int64_t columns, const float* prototypes, int64_t count, int64_t width,
                      int64_t depth, float* cost, int64_t stride) {
  const int64_t vectors = columns / kWidth;
  for (int64_t first = 0; first < vectors;) {
    const int64_t left = vectors - first, take = left == 1 || left == 3 ? left : 2;
    const auto group = take == 1 ? &cost_columns<1> : take == 2 ? &cost_columns<2> : &cost_columns<3>;
    group(panels + first * kWidth * width, prototypes, count, width, depth, cost + first * kWidth, stride);
    first += take;
  }
}

// cost[m * stride + n] for `loose` patches and the padding after them: the product with its sides exchanged,
// transposed.
static void loose_cost_tile(const float* prototype_panels, int64_t count, const float* patches, int64_t loose,
                            int64_t width, int64_t depth, float* scratch, float* cost, int64_t stride) {
  const int64_t columns = padded(count);
  cost_tile(prototype_panels, columns, patches, loose, width, depth, scratch, columns);
  std::fill(scratch + loose * columns, scratch + kLanes * columns, 1.0f);
  for (int64_t n = 0; n < kLanes; n += kWidth) {
    for (int64_t m = 0; m < count; m += kWidth) {
      Vector x[kWidth];
      GUARDCORE_UNROLL
      for (int i = 0; i < kWidth; ++i) x[i] = load(scratch + (n + i) * columns + m);
      transpose(x);
      for (int i = 0; i < std::min<int64_t>(kWidth, count - m); ++i) store(cost + (m + i) * stride + n, x[i]);
    }
  }
}

}  // namespace guardcore::GUARDCORE_ISA
