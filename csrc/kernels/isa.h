// One source, several instruction sets. Each isa_*.cpp sets a target, a vector width and a register count and includes
// every kernel once, in a namespace of its own; table.h picks one at run time.
//
// Explicit vectors need this: GCC lowers its vector extensions before it makes target clones, so a cloned function
// would get SSE code for a 512-bit vector.
#pragma once

#include <cstdint>

// Only with a compiler that knows the x86-64 levels, by name, in targets and in __builtin_cpu_supports.
#if defined(__x86_64__) && \
    ((defined(__clang__) && __clang_major__ >= 17) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define GUARDCORE_HAS_LEVELS 1
#else
#define GUARDCORE_HAS_LEVELS 0
#endif

// GUARDCORE_TARGET(name, bits) ... GUARDCORE_TARGET_END: functions for that target, in vectors of that many bits, which
// the compilers would halve by default. Each has its own way to say so.
#define GUARDCORE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define GUARDCORE_TARGET(name, bits) \
  GUARDCORE_PRAGMA(clang attribute push(__attribute__((target(name), min_vector_width(bits))), apply_to = function))
#define GUARDCORE_TARGET_END _Pragma("clang attribute pop")
#else
#define GUARDCORE_TARGET(name, bits) \
  _Pragma("GCC push_options") GUARDCORE_PRAGMA(GCC target(name, "prefer-vector-width=" #bits))
#define GUARDCORE_TARGET_END _Pragma("GCC pop_options")
#endif

#define GUARDCORE_INLINE inline __attribute__((always_inline))
#define GUARDCORE_UNROLL _Pragma("GCC unroll 16")  // Clang knows it by this name too

namespace guardcore {

// Rows of a tile are padded to the widest vector of any instruction set, 16 floats.
constexpr int64_t kLanes = 16;
constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace guardcore
