// What one core can do: its multiply-add peak, its exponentials, and Sinkhorn iterations on a kernel matrix in its cache.
//
// No stop rule, no guard against underflow, no outputs but the scalings: a solver has to do more. Rows come padded to
// whole vectors. bench/floor.py compiles this file for the machine at hand, checks it against float64 and times it.
#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16, kChains = 24;
#elif defined(__AVX__)
constexpr int kLanes = 8, kChains = 12;
#else
constexpr int kLanes = 4, kChains = 12;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), may_alias));

namespace {

// Pairwise sums of lanes `half` apart: x's and y's take turns in runs of `half`.
template <int half>
inline Vector fold(Vector x, Vector y) {
    Ints near{}, far{};
    for (int lane = 0; lane < kLanes; ++lane) {
        near[lane] = lane / (2 * half) * 2 * half + lane % half + (lane / half % 2 ? kLanes : 0);
        far[lane] = near[lane] + half;
    }
    return __builtin_shuffle(x, y, near) + __builtin_shuffle(x, y, far);
}

// The sum of the lanes of each of kLanes vectors, as one vector.
template <int half>
inline Vector lane_sums(Vector* x) {
    for (int i = 0; i < half; ++i) x[i] = fold<half>(x[i], x[i + half]);
    if constexpr (half > 1) return lane_sums<half / 2>(x);
    return x[0];
}

// One iteration from v to v: u = a / (K v), v = b / (K^T u), reading K [rows, width] once. `fixed` is width / kLanes if known.
template <int fixed>
void iterate(const float* kernel, const float* a, const float* b, float* v, int rows, int width) {
    const int vectors = fixed ? fixed : width / kLanes;
    Vector columns[fixed ? fixed : 64] = {};
    auto scaling = reinterpret_cast<Vector*>(v);
    for (int first = 0; first < rows; first += kLanes) {
        auto tile = reinterpret_cast<const Vector*>(kernel + int64_t(first) * width);
        Vector dots[kLanes] = {};
        for (int row = 0; row < kLanes; ++row)
            for (int j = 0; j < vectors; ++j) dots[row] += tile[row * vectors + j] * scaling[j];
        const Vector u = *reinterpret_cast<const Vector*>(a + first) / lane_sums<kLanes / 2>(dots);
        for (int j = 0; j < vectors; ++j) {
            Vector chains[4] = {};  // four rows at once: a multiply-add takes four cycles
            for (int row = 0; row < kLanes; ++row) chains[row % 4] += u[row] * tile[row * vectors + j];
            columns[j] += (chains[0] + chains[1]) + (chains[2] + chains[3]);
        }
    }
    for (int j = 0; j < vectors; ++j) scaling[j] = reinterpret_cast<const Vector*>(b)[j] / columns[j];
}

}  // namespace

extern "C" {

int lanes() { return kLanes; }

// Sinkhorn on K [rows, width], rows a multiple of the lanes and width too, at most 64 vectors wide.
void sinkhorn(const float* kernel, const float* a, const float* b, float* v, int rows, int width, int iterations) {
    const int vectors = width / kLanes;
    auto run = vectors == 1   ? iterate<1>
               : vectors == 2 ? iterate<2>
               : vectors == 4 ? iterate<4>
                              : iterate<0>;
    for (int i = 0; i < iterations; ++i) run(kernel, a, b, v, rows, width);
}

// y = exp(x) for x in -87 ... 0, to about 1e-7 and the rounding of x: 2^whole times a polynomial of the rest.
void exponentials(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const Vector binary = *reinterpret_cast<const Vector*>(x + i) * 1.44269504f;
        const Vector whole = (binary + 12582912.0f) - 12582912.0f, rest = binary - whole;
        Vector power = rest * 1.32764606e-3f + 9.67554124e-3f;
        power = power * rest + 5.55071331e-2f;
        power = power * rest + 2.40221197e-1f;
        power = power * rest + 6.93146967e-1f;
        power = power * rest + 1.00000007f;
        *reinterpret_cast<Vector*>(y + i) = (Vector)((Ints)power + (__builtin_convertvector(whole, Ints) << 23));
    }
}

int multiply_add_flops() { return 2 * kChains * kLanes; }

// That many operations, `count` times, on independent chains of multiply-adds in registers.
float multiply_add(int64_t count) {
    Vector chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = Vector{} + float(k);  // equal chains would be computed once
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 24
        for (int k = 0; k < kChains; ++k) chains[k] = chains[k] * 0.999f + 0.001f;
    Vector total{};
    for (const Vector& chain : chains) total += chain;
    return total[0];
}

// The same of products of two bfloat16 pairs added to a float, the widest step that processors have; 0 where there is none.
#if defined(__AVX512BF16__)
int bfloat16_flops() { return 4 * kChains * kLanes; }

float bfloat16_dots(int64_t count) {
    const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    __m512 chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = _mm512_set1_ps(float(k));
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 24
        for (int k = 0; k < kChains; ++k) chains[k] = _mm512_dpbf16_ps(chains[k], ones, ones);
    __m512 total = _mm512_setzero_ps();
    for (const __m512& chain : chains) total += chain;
    return total[0];
}
#else
int bfloat16_flops() { return 0; }

float bfloat16_dots(int64_t) { return 0; }
#endif

// The sum of x[0 ... count), a multiple of eight vectors: what reading it takes.
float read_all(const float* x, int64_t count) {
    Vector chains[8] = {};
    for (int64_t i = 0; i < count; i += 8 * kLanes)
        for (int k = 0; k < 8; ++k) chains[k] += *reinterpret_cast<const Vector*>(x + i + k * kLanes);
    Vector total{};
    for (const Vector& chain : chains) total += chain;
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
    return sum;
}
}
