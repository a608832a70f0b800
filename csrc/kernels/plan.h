// One transport problem and the memory it is solved in.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "isa.h"

namespace guardcore {

struct Options {
  double epsilon;
  double damping;  // of the column update: 1 if balanced, else rho / (rho + epsilon)
  int64_t max_iterations;
  double tolerance;  // 0: exactly max_iterations
};

// Patches are padded to `stride` with weight 0 and cost 0; prototypes all have a weight > 0.
struct Problem {
  int64_t patches, prototypes, stride;
  const float* b;  // [prototypes]
  Options options;
};

// One thread's memory for one problem at a time, and the solved plan: the share of patch n on prototype m is
// p(m | n) = v[m] kernel[m][n] per_row[n], its mass (row sum of T) is mass[n].
class Workspace {
 public:
  Workspace(int64_t patches, int64_t prototypes) {
    const int64_t n = padded(patches), m = padded(prototypes), tile = n * prototypes;
    memory_.reset(new (std::align_val_t{64}) float[2 * tile + 8 * n + 4 * m]);
    float* next = memory_.get();
    for (float** array : {&cost, &kernel}) *array = std::exchange(next, next + tile);
    for (float** array : {&a, &shift, &row, &next_row, &u, &f, &mass, &per_row}) *array = std::exchange(next, next + n);
    for (float** array : {&v, &g, &column, &next_column}) *array = std::exchange(next, next + m);
  }

  float *cost, *kernel;                                        // [prototypes][stride]
  float *a, *shift, *row, *next_row, *u, *f, *mass, *per_row;  // [stride]
  float *v, *g, *column, *next_column;                         // [prototypes]
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
