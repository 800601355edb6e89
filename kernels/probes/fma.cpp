// Chains of fused multiply-adds that stay in registers: v = scale v + shift, `steps` times for every element, f32.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace {

#if defined(CPU_CAPABILITY_AVX512)
using Vec = __m512;
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec set(float s) { return _mm512_set1_ps(s); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
#else
using Vec = __m256;
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec set(float s) { return _mm256_set1_ps(s); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
#endif

constexpr int64_t kLanes = sizeof(Vec) / sizeof(float);

struct Round {
  int64_t steps;
  float scale, shift;
};

template <int C>
void advance(const float* x, float* y, const Round& round) {
  const Vec scale = set(round.scale), shift = set(round.shift);
  Vec v[C];
#pragma GCC unroll 24
  for (int c = 0; c < C; ++c) v[c] = load(x + c * kLanes);
  for (int64_t step = 0; step < round.steps; ++step) {
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) v[c] = fma(v[c], scale, shift);
  }
#pragma GCC unroll 24
  for (int c = 0; c < C; ++c) store(y + c * kLanes, v[c]);
}

template <int C>
void run(const float* x, float* y, int64_t n, const Round& round) {
  const int64_t width = C * kLanes, blocks = n / width;
#pragma omp parallel for if (omp_get_max_threads() > 1)
  for (int64_t block = 0; block < blocks; ++block) advance<C>(x + block * width, y + block * width, round);
  for (int64_t i = blocks * width; i < n; i += kLanes) {
    float lanes[kLanes] = {};
    const int64_t left = std::min(kLanes, n - i);
    std::copy(x + i, x + i + left, lanes);
    advance<1>(lanes, lanes, round);
    std::copy(lanes, lanes + left, y + i);
  }
}

}  // namespace

extern "C" void fma_chains(const float* x, float* y, int64_t n, int64_t steps, int chains, float scale, float shift) {
  const Round round{steps, scale, shift};
  switch (chains) {
    case 6: return run<6>(x, y, n, round);
    case 8: return run<8>(x, y, n, round);
    case 12: return run<12>(x, y, n, round);
#if defined(CPU_CAPABILITY_AVX512)
    case 16: return run<16>(x, y, n, round);
    case 24: return run<24>(x, y, n, round);
#endif
  }
}
