// One transport problem and the memory it is solved in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "embedding.h"
#include "isa.h"

namespace guardcore {

struct Options {
  double epsilon;
  double damping;  // of the column update: 1 if balanced, else rho / (rho + epsilon)
  int64_t max_iterations;
  double tolerance;  // 0: exactly max_iterations
};

// Patches are padded to `stride` with weight 0; prototypes all have a weight > 0.
//
// The kernel tile lies in blocks of columns, each [prototypes][its columns] in one piece: an iteration reads a block
// twice, from the first-level cache the second time, and the prefetcher sees one stream.
struct Problem {
  Problem(int64_t patches, int64_t prototypes, const Options& options)
      : patches(patches),
        prototypes(prototypes),
        stride(padded(patches)),
        blocks((stride + widest(prototypes) - 1) / widest(prototypes)),
        options(options) {}

  // Calls visit(first column, number of columns, offset into the kernel tile) for blocks of nearly equal width.
  template <class Visit>
  GUARDCORE_INLINE void for_each_block(Visit visit, bool backward = false) const {
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block = backward ? blocks - 1 - i : i;
      const int64_t first = block_start(block), end = block_start(block + 1);
      visit(first, end - first, first * prototypes);
    }
  }
  int64_t block_start(int64_t block) const { return block * (stride / kLanes) / blocks * kLanes; }

  // Columns of a block of 28 KB.
  static int64_t widest(int64_t prototypes) { return std::max<int64_t>(1, 7168 / (prototypes * kLanes)) * kLanes; }

  int64_t patches, prototypes, stride, blocks;
  Options options;
};

// Patches that go into panels. A few more than fill whole vectors are loose rows: against those the prototypes lie side
// by side, which takes as many products as there are patches, not as many as a vector has lanes.
inline int64_t in_panels(int64_t patches, int64_t capacity) {
  const int64_t over = patches % kLanes;
  return over * padded(capacity) < capacity * kLanes ? patches - over : padded(patches);
}

// One thread's memory for one problem at a time, and the solved plan: the share of patch n on prototype m is
// p(m | n) = v[m] kernel[m][n] per_row[n], its mass (row sum of T) is mass[n].
class Workspace {
 public:
  Workspace(int64_t patches, int64_t prototypes, int64_t width) {
    const int64_t n = padded(patches), m = padded(prototypes), tile = n * prototypes;
    const int64_t rows = kLanes * (padded(width) + prototype_stride(width));
    memory_.reset(new (std::align_val_t{64}) float[n * width + rows + 2 * tile + 9 * n + (2 * kLanes + 9) * m]);
    float* next = memory_.get();
    loose = std::exchange(next, next + kLanes * prototype_stride(width));
    panels = std::exchange(next, next + n * width);
    scratch = std::exchange(next, next + kLanes * padded(width));
    for (float** array : {&cost, &kernel}) *array = std::exchange(next, next + tile);
    for (float** array : {&a, &shift, &origin, &row, &next_row, &u, &f, &mass, &per_row})
      *array = std::exchange(next, next + n);
    for (float** array : {&b, &v, &g, &column, &next_column}) *array = std::exchange(next, next + m);
    for (float** array : {&lanes, &loose_cost}) *array = std::exchange(next, next + kLanes * m);
    leaps = next;
  }

  float* panels;                                               // the item's unit patches, kWidth side by side
  float* loose;                                                // and those beyond, as rows of prototype_stride
  float* loose_cost;                                           // [loose][padded prototypes]
  float* scratch;                                              // kLanes rows of embeddings
  float* cost;                                                 // [prototypes][stride]
  float* kernel;                                               // blocks of [prototypes][columns]
  float *a, *shift, *row, *next_row, *u, *f, *mass, *per_row;  // [stride]
  float* origin;                                               // [stride], taken out of the rows of the kernel tile
  float *b, *v, *g, *column, *next_column;                     // [prototypes], padded with b = 0
  float* lanes;                                                // [padded prototypes][kWidth], column sums lane by lane
  float* leaps;                                                // [4][padded prototypes], of acceleration.h
  int32_t iterations = 0;
  float marginal_error = 0;

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  std::unique_ptr<float[], Free> memory_;
};

inline bool stops(const Options& options, int64_t iteration, float error) {
  return iteration == options.max_iterations || (options.tolerance > 0 && error <= options.tolerance);
}

}  // namespace guardcore
