#include "quantized_prototypes.h"

#include <cmath>
#include <cstring>

namespace guardcore {
namespace {

constexpr float kRound = 12582912.0f;   // 1.5 * 2^23: adding it rounds to a whole number
constexpr double kUnitError = 0x1p-21;  // a float32 unit row is this near to the exact one, and its residual as rounded

}  // namespace

QuantizedPrototypes::QuantizedPrototypes(const Prototypes& prototypes)
    : width_(padded(prototypes.width())), first_(prototypes.categories() + 1) {
  for (int64_t c = 0; c < prototypes.categories(); ++c) first_[c + 1] = first_[c] + prototypes.count(c);
  columns_ = padded(first_.back());
  code_.resize(columns_ * width_);
  scale_.resize(columns_);
  residual_.resize(columns_);
  offset_.resize(columns_);
  const int64_t stride = prototype_stride(prototypes.width());
  for (int64_t c = 0; c < prototypes.categories(); ++c)
    for (int64_t m = 0; prototypes.sound(c) && m < prototypes.count(c); ++m)
      encode(prototypes.unit(c) + m * stride, prototypes.width(), first_[c] + m);
}

// Codes of four neighbors lie side by side, those of sixteen prototypes after each other: what one product reads.
void QuantizedPrototypes::encode(const float* unit, int64_t width, int64_t column) {
  float largest = 0;
  for (int64_t d = 0; d < width; ++d) largest = std::max(largest, std::fabs(unit[d]));
  const float step = largest / 127.0f, per_step = step > 0 ? 1.0f / step : 0.0f;
  double squares = 0;
  int32_t sum = 0;
  int8_t* code = code_.data() + (column / kLanes * width_ * kLanes) + column % kLanes * 4;
  for (int64_t d = 0; d < width; d += 4) {
    int8_t four[4] = {};
    for (int64_t i = 0; i < std::min<int64_t>(4, width - d); ++i) {
      const float whole = (unit[d + i] * per_step + kRound) - kRound;
      const double left = static_cast<double>(unit[d + i]) - static_cast<double>(whole) * step;
      squares += left * left;
      four[i] = static_cast<int8_t>(whole);
      sum += four[i];
    }
    std::memcpy(code + d * kLanes, four, sizeof four);
  }
  scale_[column] = step;
  residual_[column] = static_cast<float>(std::sqrt(squares) + kUnitError);
  offset_[column] = -128 * sum;
  longest_ = std::max(longest_, 1 + residual_[column]);
}

QuantizedBank QuantizedPrototypes::bank() const {
  return {width_, columns_, code_.data(), scale_.data(), offset_.data(), longest_};
}

}  // namespace guardcore
