// The prototypes of all categories as 8-bit codes, one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/quantized_bank.h"
#include "transport.h"

namespace guardcore {

class QuantizedPrototypes {
 public:
  explicit QuantizedPrototypes(const Prototypes& prototypes);

  QuantizedBank bank() const;
  // Where a category's prototypes begin; those of an unsound category have codes of no meaning.
  int64_t first(int64_t category) const { return first_[category]; }
  float residual(int64_t column) const { return residual_[column]; }

 private:
  void encode(const float* unit, int64_t width, int64_t column);

  int64_t width_, columns_;
  std::vector<int64_t> first_;
  std::vector<int8_t> code_;
  std::vector<float> scale_, residual_;
  std::vector<int32_t> offset_;
  float longest_ = 1;
};

}  // namespace guardcore
