// One source, several instruction sets: a function marked GUARDCORE_CLONES is compiled for each, and the loader picks.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <features.h>  // __GLIBC__
#endif

// Needs the loader's indirect functions (glibc) and a compiler that knows the x86-64 levels; empty elsewhere.
// Vectors must come from plain loops: GCC lowers its vector extensions before it makes the clones.
// "unused" because not every file that includes a kernel calls it.
#if defined(__x86_64__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 17) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define GUARDCORE_HAS_CLONES 1
#define GUARDCORE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), unused))
#else
#define GUARDCORE_HAS_CLONES 0
#define GUARDCORE_CLONES __attribute__((unused))
#endif

#define GUARDCORE_INLINE inline __attribute__((always_inline))

namespace guardcore {

// What the cloned functions run on here.
inline const char* isa_name() {
#if GUARDCORE_HAS_CLONES
  // one feature of each level stands for it: the levels' own names are newer than the clones
  if (__builtin_cpu_supports("avx512vl")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("avx2")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64 (SSE2)";
#else
  return "compiler default";
#endif
}

// Rows of a tile are padded to whole vectors of 16 floats.
constexpr int64_t kLanes = 16;
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace guardcore
