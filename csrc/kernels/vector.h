// One vector register of floats, and what lanes do to each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "isa.h"

namespace guardcore::GUARDCORE_ISA {

constexpr int kWidth = GUARDCORE_WIDTH;          // floats of a vector
constexpr int kRegisters = GUARDCORE_REGISTERS;  // vectors that the core can name

typedef float Vector __attribute__((vector_size(4 * GUARDCORE_WIDTH)));
typedef int32_t Bits __attribute__((vector_size(4 * GUARDCORE_WIDTH)));

GUARDCORE_INLINE Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

GUARDCORE_INLINE void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

GUARDCORE_INLINE Vector magnitude(Vector x) { return x < 0 ? -x : x; }

// As the processors' own minimum and maximum: b if either is a NaN.
GUARDCORE_INLINE Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
GUARDCORE_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Lane i of `low` and `high` of two vectors cut into groups of 2 H lanes: every group takes the lower (upper) half of
// a's group, then that of b's.
constexpr int low_lane(int i, int half) { return i % (2 * half) < half ? i : kWidth + i - half; }
constexpr int high_lane(int i, int half) { return i % (2 * half) < half ? i + half : kWidth + i; }

template <int H, size_t... I>
GUARDCORE_INLINE Vector low(Vector a, Vector b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, low_lane(I, H)...);
}

template <int H, size_t... I>
GUARDCORE_INLINE Vector high(Vector a, Vector b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, high_lane(I, H)...);
}

using EveryLane = std::make_index_sequence<kWidth>;

// In place: rows become columns. Blocks of H x H off the diagonal change places, for H = kWidth / 2 ... 1.
template <int H = kWidth / 2>
GUARDCORE_INLINE void transpose(Vector* x) {
  if constexpr (H > 0) {
    GUARDCORE_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      if (i % (2 * H) >= H) continue;
      const Vector a = x[i], b = x[i + H];
      x[i] = low<H>(a, b, EveryLane{});
      x[i + H] = high<H>(a, b, EveryLane{});
    }
    transpose<H / 2>(x);
  }
}

// Lane i of the result is the sum of vector i's lanes: the same exchange, halving the number of vectors each time.
template <int H = kWidth / 2>
GUARDCORE_INLINE Vector lane_sums(Vector* x) {
  if constexpr (H > 0) {
    GUARDCORE_UNROLL
    for (int i = 0; i < H; ++i) x[i] = low<H>(x[i], x[i + H], EveryLane{}) + high<H>(x[i], x[i + H], EveryLane{});
    return lane_sums<H / 2>(x);
  } else {
    return x[0];
  }
}

// Vector whose lanes are x's, H places away in turn.
template <int H, size_t... I>
GUARDCORE_INLINE Vector rotated(Vector x, std::index_sequence<I...>) {
  return __builtin_shufflevector(x, x, (static_cast<int>(I) ^ H)...);
}

struct Sum {
  static GUARDCORE_INLINE Vector of(Vector a, Vector b) { return a + b; }
};
struct Smaller {
  static GUARDCORE_INLINE Vector of(Vector a, Vector b) { return smaller(a, b); }
};
struct Larger {
  static GUARDCORE_INLINE Vector of(Vector a, Vector b) { return larger(a, b); }
};

// All lanes of x combined into one number.
template <class Combine, int H = kWidth / 2>
GUARDCORE_INLINE float fold(Vector x) {
  if constexpr (H > 0) {
    return fold<Combine, H / 2>(Combine::of(x, rotated<H>(x, EveryLane{})));
  } else {
    return x[0];
  }
}

}  // namespace guardcore::GUARDCORE_ISA
