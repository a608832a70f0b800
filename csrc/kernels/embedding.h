// Rows of embeddings as the caller gives them.
#pragma once

#include <cstdint>

namespace guardcore {

enum class Element { kFloat, kBFloat16, kHalf };

// `count` rows of `width` elements, one after the other.
struct Rows {
  const void* data;
  Element element;
  int64_t count, width;

  // Rows from `first` on, `rows` of them.
  Rows slice(int64_t first, int64_t rows) const {
    const int64_t bytes = (element == Element::kFloat ? 4 : 2) * width * first;
    return {static_cast<const char*>(data) + bytes, element, rows, width};
  }
};

// Floats from one unit prototype to the next: an odd number of cache lines, so that the rows of a tile do not fall into
// the same few sets of the cache.
constexpr int64_t prototype_stride(int64_t width) { return (((width + 15) / 16) | 1) * 16; }

// Products in one chain of a cost's sum; the rounding that sinkhorn_screen's bounds allow for rests on it.
constexpr int64_t kDepth = 128;
// Shorter where the errors of a few patches would not average out, and the time does not matter.
constexpr int64_t kNarrowDepth = 32;
constexpr int64_t depth_of(int64_t patches) { return patches > 16 ? kDepth : kNarrowDepth; }

}  // namespace guardcore
