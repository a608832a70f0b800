// From scores to weights, rows along the lanes: softcap, rule, visibility, running maximum, exponential.
#pragma once

#include <cstdint>
#include <limits>

#include "calibrated_attention_task.h"
#include "elementary.h"
#include "half.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

GUARDCORE_INLINE Bits load_bits(const int32_t* from) {
  Bits x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// elementary.h's floored_exponential, lane by lane.
GUARDCORE_INLINE Vector floored_exponential(Vector x) {
  const Vector y = x < -87.0f ? Vector{} - 87.0f : x;
  const Vector shifted = y * 1.44269504f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.394644772e-03f + 8.369152412e-03f;
  p = p * r + 4.166626312e-02f;
  p = p * r + 1.666651598e-01f;
  p = p * r + 5.000000081e-01f;
  p = p * r + 1.0f;
  const Words power = ((Words)shifted - static_cast<uint32_t>(bits_of(kRound)) + 127u) << 23;
  return (p * r + 1.0f) * (Vector)power;
}

// exp(x) for x <= 88, 0 below -87: hidden keys weigh nothing.
GUARDCORE_INLINE Vector exponential(Vector x) {
  const Vector value = floored_exponential(x);
  return x < -87.0f ? Vector{} : value;
}

// tanh within 2e-7 relative: a fitted odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel.
GUARDCORE_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = magnitude(x), most = smaller(size, Vector{} + 20.0f);
  const Vector far = 1.0f - 2.0f / (floored_exponential(most + most) + 1.0f);
  const Vector z = x * x;
  Vector p = z * -6.104947998e-03f + 2.100364121e-02f;
  p = p * z - 5.385249747e-02f;
  p = p * z + 1.333278226e-01f;
  p = p * z - 3.333332910e-01f;
  const Vector near = x + x * z * p;
  const Vector signed_far = x < 0 ? -far : far;
  const Vector value = size < 0.625f ? near : signed_far;
  return x == x ? value : x;
}

static void cap_scores(float* score, int64_t count, float cap) {
  const float inverse = 1.0f / cap;
  for (int64_t i = 0; i < count; i += kWidth) store(score + i, cap * hyperbolic_tangent(load(score + i) * inverse));
}

// s + linear relu(s) + quadratic relu(s)^2 + additive. The product is taken in Horner's order: where the coefficients
// are 0 it is 0, however large s is.
GUARDCORE_INLINE Vector calibrated(Vector s, Vector linear, Vector quadratic, Vector additive) {
  const Vector positive = s > 0 ? s : Vector{};
  return s + positive * (linear + quadratic * positive) + additive;
}

// score[key][lanes] for the keys that have a class; rule[class][3][lanes] holds zeros for rows that are not calibrated.
static void apply_rule(const uint8_t* key_class, int64_t keys, const float* rule, int64_t lanes, float* score) {
  for (int64_t t = 0; t < keys; ++t) {
    if (key_class[t] == 0) continue;
    const float* of = rule + key_class[t] * 3 * lanes;
    float* row = score + t * lanes;
    for (int64_t i = 0; i < lanes; i += kWidth)
      store(row + i, calibrated(load(row + i), load(of + i), load(of + lanes + i), load(of + 2 * lanes + i)));
  }
}

// What the lanes see: keys first ... end - 1, and their own group.
struct Sight {
  int32_t *first, *end, *group;
};

// -inf where a lane does not see the key; a NaN there disappears with it.
static void hide(const AttentionTask& task, const Sight& sight, int64_t first_key, int64_t keys, int64_t lanes,
                 float* score) {
  for (int64_t t = 0; t < keys; ++t) {
    const int32_t at = static_cast<int32_t>(first_key + t), group = task.groups ? task.groups[at].id : 0;
    const bool visible = !task.key_mask || task.key_mask[at];
    for (int64_t i = 0; i < lanes; i += kWidth) {
      Bits seen = (load_bits(sight.first + i) <= at) & (load_bits(sight.end + i) > at);
      if (group != 0) seen |= load_bits(sight.group + i) == group;
      if (!visible) seen = Bits{};
      float* to = score + t * lanes + i;
      store(to, seen ? load(to) : Vector{} + kHidden);
    }
  }
}

// The running softmax of the lanes: their largest score, the sum of weights relative to it, and what the block at hand
// subtracts from its scores and multiplies older sums by.
struct Running {
  float *largest, *total, *base, *decay;
};

// Every lane becomes the largest of those a multiple of `Period` lanes away.
template <int Period, int H = kWidth / 2>
GUARDCORE_INLINE Vector largest_of_period(Vector x) {
  if constexpr (H >= Period) {
    return largest_of_period<Period, H / 2>(larger(x, rotated<H>(x, EveryLane{})));
  } else {
    return x;
  }
}

// Period: lanes that are that far apart belong to one row.
template <int V, int Period = kWidth>
static void raise_maximum(const float* score, int64_t keys, const Running& run) {
  constexpr int kChains = 8 / V;
  Vector most[kChains][V];
  GUARDCORE_UNROLL
  for (int i = 0; i < kChains; ++i) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) most[i][j] = load(run.largest + j * kWidth);
  }
  int64_t t = 0;
  for (; t + kChains <= keys; t += kChains) {
    GUARDCORE_UNROLL
    for (int i = 0; i < kChains; ++i) {
      GUARDCORE_UNROLL
      for (int j = 0; j < V; ++j) most[i][j] = larger(most[i][j], load(score + ((t + i) * V + j) * kWidth));
    }
  }
  for (; t < keys; ++t) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) most[0][j] = larger(most[0][j], load(score + (t * V + j) * kWidth));
  }
  GUARDCORE_UNROLL
  for (int j = 0; j < V; ++j) {
    GUARDCORE_UNROLL
    for (int i = 1; i < kChains; ++i) most[0][j] = larger(most[0][j], most[i][j]);
    most[0][j] = largest_of_period<Period>(most[0][j]);
    const Vector base = most[0][j] == kHidden ? Vector{} : most[0][j];  // -inf - -inf would be a NaN
    store(run.decay + j * kWidth, exponential(load(run.largest + j * kWidth) - base));
    store(run.largest + j * kWidth, most[0][j]);
    store(run.base + j * kWidth, base);
  }
}

// Scores become weights. Exact: those below exp(-87) are 0, which only hidden keys need.
template <int V, bool Exact>
static void weigh(float* score, int64_t keys, const Running& run) {
  Vector base[V], total[V] = {};
  GUARDCORE_UNROLL
  for (int j = 0; j < V; ++j) base[j] = load(run.base + j * kWidth);
  for (int64_t t = 0; t < keys; ++t) {
    GUARDCORE_UNROLL
    for (int j = 0; j < V; ++j) {
      float* at = score + (t * V + j) * kWidth;
      const Vector x = load(at) - base[j], weight = Exact ? exponential(x) : floored_exponential(x);
      total[j] += weight;
      store(at, weight);
    }
  }
  GUARDCORE_UNROLL
  for (int j = 0; j < V; ++j) {
    float* at = run.total + j * kWidth;
    store(at, load(at) * load(run.decay + j * kWidth) + total[j]);
  }
}

// mass[class][lanes], relative to the running maximum as the totals are; key_class null: no key has a class.
static void add_mass(const uint8_t* key_class, int64_t keys, int64_t classes, const float* decay, int64_t lanes,
                     const float* weight, float* mass) {
  for (int64_t g = 1; g < classes; ++g) {
    for (int64_t i = 0; i < lanes; i += kWidth)
      store(mass + g * lanes + i, load(mass + g * lanes + i) * load(decay + i));
  }
  for (int64_t t = 0; key_class && t < keys; ++t) {
    if (key_class[t] == 0) continue;
    float* to = mass + key_class[t] * lanes;
    for (int64_t i = 0; i < lanes; i += kWidth) store(to + i, load(to + i) + load(weight + t * lanes + i));
  }
}

}  // namespace guardcore::GUARDCORE_ISA
