// exp, log and power that vectorize: std::exp is a call, and a call keeps a loop scalar.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace guardcore::GUARDCORE_ISA {

GUARDCORE_INLINE int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

GUARDCORE_INLINE float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits

// exp(r) for |r| <= ln(2) / 2 times 2^n, n the integer in the low bits of `shifted` = n + kRound.
// 1 + r + r^2 P(r), P fitted on Chebyshev nodes: relative error 4e-09 before rounding.
GUARDCORE_INLINE float exp_reduced(float r, float shifted) {
  float p = 1.394644772e-03f;
  p = p * r + 8.369152412e-03f;
  p = p * r + 4.166626312e-02f;
  p = p * r + 1.666651598e-01f;
  p = p * r + 5.000000081e-01f;
  p = p * r + 1.0f;
  const uint32_t exponent = static_cast<uint32_t>(bits_of(shifted) - bits_of(kRound) + 127);
  const float power = float_of(static_cast<int32_t>(exponent << 23));
  return (p * r + 1.0f) * power;
}

// exp(x) within 2e-7 relative for x <= 88; exp(-87) below -87.
GUARDCORE_INLINE float floored_exponential(float x) {
  const float y = x < -87.0f ? -87.0f : x;
  const float shifted = y * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: the first product is exact
  return exp_reduced(r, shifted);
}

// exp(x) within 2e-7 relative for x in [-87, 88]; 0 below -87, exp(88) above 88.
GUARDCORE_INLINE float exponential(float x) {
  const float value = floored_exponential(x > 88.0f ? 88.0f : x);
  return x < -87.0f ? 0.0f : value;
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)): returns log(m) and sets e. For normal x > 0.
// log(1 + z) = z P(z), P fitted on Chebyshev nodes: relative error 1e-7.
GUARDCORE_INLINE float log_mantissa(float x, float& exponent) {
  const int32_t bits = bits_of(x);
  const int32_t e = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 = sqrt(1/2)
  exponent = static_cast<float>(e);
  const float z = float_of(static_cast<int32_t>(static_cast<uint32_t>(bits) - (static_cast<uint32_t>(e) << 23))) - 1.0f;
  float p = 0.08498099f;
  p = p * z - 0.14464587f;
  p = p * z + 0.15092296f;
  p = p * z - 0.16552824f;
  p = p * z + 0.1993829f;
  p = p * z - 0.25002198f;
  p = p * z + 0.33334992f;
  p = p * z - 0.4999999f;
  p = p * z + 0.99999988f;
  return p * z;
}

// log(x) for normal x > 0, absolute error 1e-7 (1 + |log x|).
GUARDCORE_INLINE float logarithm(float x) {
  float e;
  const float log_m = log_mantissa(x, e);
  return e * 0.693359375f + (log_m - e * 2.12194440e-4f);
}

// x^y for normal x > 0, |y| <= 1. The exponent is taken in double: in float, y log2(x) would lose the digits that its
// integer part uses up.
GUARDCORE_INLINE float power(float x, float y) {
  float e;
  const float log_m = log_mantissa(x, e);
  double t = static_cast<double>(y) * (static_cast<double>(e) + static_cast<double>(log_m) * 1.4426950408889634);
  t = t < -126.0 ? -126.0 : t;
  t = t > 126.0 ? 126.0 : t;
  const float shifted = static_cast<float>(t) + kRound;
  const double n = static_cast<double>(shifted - kRound);
  return exp_reduced(static_cast<float>((t - n) * 0.6931471805599453), shifted);
}

}  // namespace guardcore::GUARDCORE_ISA
