// Upper bounds of cosines from 8-bit codes, four times as fast as the cosines themselves.
//
// A row x becomes s q with whole numbers |q_d| <= 127, a unit prototype p becomes t r. By Cauchy and Schwarz
//
//   <x, p> = <s q, t r> + <x - s q, t r> + <x, p - t r> <= s t <q, r> + |x - s q| |t r| + |x| |p - t r|
//
// and the cosine is that over |x|. The product <q, r> is exact; the lengths of both residuals are computed, not
// assumed. This is for processors that multiply unsigned by signed bytes and add four products at once (AVX-512 VNNI).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "quantized_bank.h"
#include "vector.h"
#include "widen.h"

namespace guardcore::GUARDCORE_ISA {

constexpr float kRoundToWhole = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest whole number

typedef uint8_t Bytes __attribute__((vector_size(GUARDCORE_WIDTH)));

// Sixteen patches: their codes plus 128, and what makes a bound of a product, scale[i] <q, t r> + slack[i].
struct Codes {
  uint8_t* code;  // [16][bank width]
  float scale[kLanes], slack[kLanes];
};

// Calls take(vector, its place, 0 or 1 in turn) along a row; the last vector is filled up with zeros.
template <class Take>
GUARDCORE_INLINE void along(const float* row, int64_t width, Take take) {
  int64_t d = 0;
  for (; d + 2 * kWidth <= width; d += 2 * kWidth)
    take(load(row + d), d, 0), take(load(row + d + kWidth), d + kWidth, 1);
  for (; d + kWidth <= width; d += kWidth) take(load(row + d), d, 0);
  if (d == width) return;
  float last[kWidth] = {};
  std::memcpy(last, row + d, (width - d) * sizeof(float));
  take(load(last), d, 1);
}

// Lane by lane, the largest magnitude and the sum of squares.
inline void measure_row(const float* row, int64_t width, Vector& largest, Vector& squares) {
  Vector top[2] = {}, sum[2] = {};
  along(row, width, [&](Vector x, int64_t, int chain) {
    top[chain] = larger(magnitude(x), top[chain]);
    sum[chain] += x * x;
  });
  largest = larger(top[0], top[1]);
  squares = sum[0] + sum[1];
}

// The codes plus 128 of one row; returns the squared residual, lane by lane.
inline Vector encode_row(const float* row, int64_t width, float step, float per_step, uint8_t* code) {
  Vector squares[2] = {};
  along(row, width, [&](Vector x, int64_t d, int chain) {
    const Vector shifted = x * per_step + kRoundToWhole;
    const Vector left = x - (shifted - kRoundToWhole) * step;
    squares[chain] += left * left;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const Bytes bytes = __builtin_convertvector(bits + 128, Bytes);
    std::memcpy(code + d, &bytes, sizeof bytes);
  });
  return squares[0] + squares[1];
}

// The largest magnitude and the length of 16 rows. False if one holds a NaN or an infinity, or is so long or short that
// squares could leave float's range.
inline bool measure(const float* const* row, int64_t count, int64_t width, float* largest, float* length) {
  constexpr float kLongest = 0x1p50f, kShortest = 0x1p-50f;
  Vector top[kLanes] = {}, squares[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) measure_row(row[i], width, top[i], squares[i]);
  transpose(top);
  for (int i = 1; i < kWidth; ++i) top[0] = larger(top[0], top[i]);
  store(largest, top[0]);
  store(length, lane_sums(squares));
  bool usual = true;
  for (int64_t i = 0; i < kLanes; ++i) {  // a maximum passes a NaN by, a sum does not
    usual &= largest[i] == 0 ? length[i] == 0 : kShortest < largest[i] && largest[i] < kLongest && length[i] > 0;
    length[i] = std::sqrt(length[i]);
  }
  return usual;
}

// Encodes up to 16 rows; the rest become rows that no maximum notices. False as above.
inline bool encode(const Rows& rows, const QuantizedBank& bank, float* scratch, Codes& codes) {
  const float* row[kLanes] = {};
  float largest[kLanes], length[kLanes], left[kLanes];
  for (int64_t i = 0; i < rows.count; ++i) row[i] = float_row(rows, i, scratch + i * rows.width);
  if (!measure(row, rows.count, rows.width, largest, length)) return false;
  Vector squares[kLanes] = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const float step = largest[i] / 127.0f;
    squares[i] = encode_row(row[i], rows.width, step, step > 0 ? 1 / step : 0.0f, codes.code + i * bank.width);
    codes.scale[i] = step > 0 ? step / length[i] : 0.0f;
  }
  store(left, lane_sums(squares));
  for (int64_t i = 0; i < rows.count; ++i)
    codes.slack[i] = largest[i] > 0 ? std::sqrt(left[i]) / length[i] * bank.longest : 0.0f;
  for (int64_t i = rows.count; i < kLanes; ++i) {
    std::fill_n(codes.code + i * bank.width, bank.width, uint8_t{128});
    codes.scale[i] = 0;
    codes.slack[i] = -std::numeric_limits<float>::infinity();
  }
  return true;
}

// sum += products of four unsigned codes and four signed ones, lane by lane. As an instruction of its own: through the
// intrinsic, GCC 12 copies every sum twice a step.
GUARDCORE_INLINE void add_products(Bits& sum, Bits codes, Bits prototypes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(prototypes));
}

GUARDCORE_INLINE Bits load_bits(const void* from) {
  Bits x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// sums[i][j][16]: exact products of R coded rows with V vectors of coded prototypes.
template <int R, int V>
static void multiply(const uint8_t* rows, const int8_t* columns, int64_t width, const int32_t* offset, int32_t* sums) {
  Bits sum[R][V];
  GUARDCORE_UNROLL
  for (int i = 0; i < R; ++i) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) sum[i][j] = load_bits(offset + j * kLanes);
  }
  for (int64_t d = 0; d < width; d += 4) {
    Bits p[V];
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) p[j] = load_bits(columns + j * kLanes * width + d * kLanes);
    GUARDCORE_UNROLL
    for (int i = 0; i < R; ++i) {
      int32_t four;
      std::memcpy(&four, rows + i * width + d, sizeof four);
      const Bits x = four + Bits{};
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) add_products(sum[i][j], x, p[j]);
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

// upper[0 ... 16 V) = max(upper, bounds of the 16 coded rows), for V vectors of the bank's columns from `first` on.
template <int V>
static void raise_bounds(const Codes& codes, const QuantizedBank& bank, int64_t first, float* upper) {
  constexpr int kRows = 16 / V;  // sixteen sums at a time hide the latency of their products
  for (int64_t row = 0; row < kLanes; row += kRows) {
    int32_t sums[kRows * V * kLanes];
    multiply<kRows, V>(codes.code + row * bank.width, bank.code + first * bank.width, bank.width, bank.offset + first,
                       sums);
    for (int j = 0; j < V; ++j) {
      const Vector scale = load(bank.scale + first + j * kLanes);
      Vector most = load(upper + j * kLanes);
      for (int i = 0; i < kRows; ++i) {
        const Vector product = scale * __builtin_convertvector(load_bits(sums + (i * V + j) * kLanes), Vector);
        most = larger(product * codes.scale[row + i] + codes.slack[row + i], most);
      }
      store(upper + j * kLanes, most);
    }
  }
}

// upper[m] >= max_n cos(x_n, p_m) - bank.residual[m] up to rounding, for every column of the bank. `scratch` holds 16
// rows, `code` 16 rows of codes. False: some row is not fit for codes, and nothing is known.
static bool upper_cosines(const Rows& rows, const QuantizedBank& bank, float* scratch, uint8_t* code, float* upper) {
  Codes codes{code, {}, {}};
  std::fill(upper, upper + bank.columns, -std::numeric_limits<float>::infinity());
  for (int64_t n = 0; n < rows.count; n += kLanes) {
    if (!encode(rows.slice(n, std::min(kLanes, rows.count - n)), bank, scratch, codes)) return false;
    int64_t m = 0;
    for (; m + 4 * kLanes <= bank.columns; m += 4 * kLanes) raise_bounds<4>(codes, bank, m, upper + m);
    for (; m + 2 * kLanes <= bank.columns; m += 2 * kLanes) raise_bounds<2>(codes, bank, m, upper + m);
    for (; m < bank.columns; m += kLanes) raise_bounds<1>(codes, bank, m, upper + m);
  }
  return true;
}

}  // namespace guardcore::GUARDCORE_ISA
