// Leaps between Sinkhorn's iterations, for balanced problems with a tolerance: the algorithm and its names are those of
// guardcore/reference/acceleration.py. In x = log v, with the mass w_m = v_m column_m / b_m on prototype m over its
// demand, gap_m = 1 - w_m, <p, q> = sum_m b_m p_m q_m, the last step s and the drop y of the gap along it:
//
//   plain step  x_m -= log w_m,
//   leap        x += gamma (gap - alpha y) + (2 alpha - gamma <y, gap> / <s, y>) s,
//               alpha = <s, gap> / <s, y>,  gamma = <s, y> / <y, y>.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "elementary.h"
#include "isa.h"
#include "plan.h"
#include "vector.h"

namespace guardcore::GUARDCORE_ISA {

constexpr float kLongestLeap = 10;                        // in any coordinate of x: a factor of 22,000 on a column
constexpr float kShortestCut = 0.1f, kLongestCut = 0.9f;  // bounds of the factor that shortens a leap
constexpr float kWell = 0.1f;  // a plain step that leaves this share of the error is followed by another
constexpr float kFar = 1,
                kFarWell = 0.5f;    // beyond a factor e on a column plain steps go first while they halve its log
constexpr int64_t kRoomToLeap = 3;  // iterations until a leap may be undone and a plain step has followed
constexpr int kMostFailures = 20;   // the pause after a leap that was undone doubles until here
constexpr float kSumNoise = 1e-6f;  // relative, of a column sum

// Sums over the prototypes, weighted by b, at the present point.
struct LeapSums {
  float error;        // |gap|, a bound of the row error after the next plain step
  float far;          // largest |log w|
  float size;         // |d|
  float along, drop;  // <d, gap>, <d, y>
  float gap_gap, gap_y, y_y;
};

// Which steps of a solve leap.
class Leaps {
 public:
  // b[prototypes], padded with 0; memory[4][padded(prototypes)].
  Leaps(const Options& options, const float* b, int64_t prototypes, float* memory)
      : wanted(options.tolerance > 0 && options.damping == 1),
        ratio(memory),
        padded_(padded(prototypes)),
        last_start_(options.max_iterations - kRoomToLeap),
        enough_(std::max(static_cast<float>(options.tolerance), kSumNoise)),
        b_(b),
        kept_(memory + padded_),
        direction_(memory + 2 * padded_),
        step_(memory + 3 * padded_) {
    std::fill(kept_, kept_ + 2 * padded_, 0.0f);
  }

  // Decides iteration number `iteration` at the point of `ratio`. True: x += step(); false: the plain step.
  bool decide(int64_t iteration);

  const float* step() const { return step_; }

  const bool wanted;
  float* const ratio;  // [padded prototypes], set by the caller: w_m, 1 where b is 0

 private:
  LeapSums sums() const;
  bool may_leap(const LeapSums& now, int64_t iteration) const;
  bool correct(const LeapSums& now);
  bool shorten(float scale);
  bool undo();
  void leap(float gamma, float alpha, float along);
  void stay_plain();

  int64_t padded_, last_start_;
  float enough_;
  const float* b_;
  // of the point that was kept last: w, and the step scale * direction from there
  float *kept_, *direction_, *step_;
  float scale_ = 0, slope_ = 0, error_ = 0, far_ = 0;
  bool leapt_ = false, shortened_ = false, was_plain_ = false;
  int failures_ = 0;
  int64_t pause_ = 0;
};

inline LeapSums Leaps::sums() const {
  Vector error = {}, size = {}, along = {}, drop = {}, gap_gap = {}, gap_y = {}, y_y = {};
  Vector most = Vector{} + 1, least = Vector{} + 1;
  for (int64_t m = 0; m < padded_; m += kWidth) {
    const Vector w = load(ratio + m), b = load(b_ + m), d = load(direction_ + m);
    const Vector gap = 1 - w, y = w - load(kept_ + m), weighted_gap = b * gap, weighted_y = b * y;
    error += magnitude(weighted_gap);
    size += b * magnitude(d);
    along += d * weighted_gap;
    drop += d * weighted_y;
    gap_gap += gap * weighted_gap;
    gap_y += y * weighted_gap;
    y_y += y * weighted_y;
    most = larger(most, w);
    least = smaller(least, w);
  }
  const float far = std::max(logarithm(fold<Larger>(most)), -logarithm(fold<Smaller>(least)));
  return {fold<Sum>(error), far,           fold<Sum>(size), fold<Sum>(along), fold<Sum>(drop), fold<Sum>(gap_gap),
          fold<Sum>(gap_y), fold<Sum>(y_y)};
}

// There is room and time, and plain steps do not do well by themselves.
inline bool Leaps::may_leap(const LeapSums& now, int64_t iteration) const {
  const bool swift = was_plain_ && now.error < kWell * error_;
  const bool far = now.far > kFar && !(was_plain_ && now.far > kFarWell * far_);
  return !swift && !far && pause_ == 0 && now.error > enough_ && iteration <= last_start_;
}

// The dual has fallen: shorten the leap to where a linear slope is zero, or else undo it.
inline bool Leaps::correct(const LeapSums& now) {
  const bool finite = now.error <= std::numeric_limits<float>::max();
  if (shortened_ || !(now.along < 0) || !finite) return undo();
  return shorten(scale_ * std::clamp(slope_ / (slope_ - now.along), kShortestCut, kLongestCut));
}

inline bool Leaps::shorten(float scale) {
  for (int64_t m = 0; m < padded_; m += kWidth) store(step_ + m, (scale - scale_) * load(direction_ + m));
  scale_ = scale;
  shortened_ = true;
  return true;
}

// Back to the plain step of the point that was kept. After each time, twice as many plain steps.
inline bool Leaps::undo() {
#pragma omp simd
  for (int64_t m = 0; m < padded_; ++m) {
    const float plain = -logarithm(kept_[m]);
    step_[m] = plain - scale_ * direction_[m];
    direction_[m] = plain;
  }
  scale_ = 1;
  leapt_ = shortened_ = false;
  was_plain_ = true;
  failures_ = std::min(failures_ + 1, kMostFailures);
  pause_ = int64_t{1} << failures_;
  return true;
}

inline void Leaps::leap(float gamma, float alpha, float along) {
  Vector longest = {};
  for (int64_t m = 0; m < padded_; m += kWidth) {
    const Vector w = load(ratio + m), y = w - load(kept_ + m);
    const Vector d = gamma * (1 - w - alpha * y) + along * load(direction_ + m);
    longest = larger(longest, magnitude(d));
    store(direction_ + m, d);
    store(kept_ + m, w);
  }
  scale_ = std::min(1.0f, kLongestLeap / fold<Larger>(longest));
  for (int64_t m = 0; m < padded_; m += kWidth) store(step_ + m, scale_ * load(direction_ + m));
}

inline void Leaps::stay_plain() {
#pragma omp simd
  for (int64_t m = 0; m < padded_; ++m) {
    kept_[m] = ratio[m];
    direction_[m] = -logarithm(ratio[m]);
  }
  scale_ = 1;
}

inline bool Leaps::decide(int64_t iteration) {
  const LeapSums now = sums();
  if (leapt_ && !(now.along >= -slope_)) return correct(now);
  // Where the gap dropped by no more than noise, the dual is flat: as far along the last step as noise lets it be said.
  const float noise = kSumNoise * now.size;
  const bool curved = now.drop > noise;
  const float alpha = curved ? now.along / now.drop : 0, gamma = curved ? scale_ * now.drop / now.y_y : 0;
  const float along = curved ? 2 * alpha * scale_ - gamma * now.gap_y / now.drop : scale_ * now.along / noise;
  const float slope = gamma * (now.gap_gap - alpha * now.gap_y) + along * now.along;
  leapt_ = slope > 0 && (curved || along > 1) && may_leap(now, iteration);
  leapt_ ? leap(gamma, alpha, along) : stay_plain();
  if (pause_ > 0) --pause_;
  shortened_ = false;
  was_plain_ = !leapt_;
  slope_ = slope;
  error_ = now.error;
  far_ = now.far;
  return leapt_;
}

}  // namespace guardcore::GUARDCORE_ISA
