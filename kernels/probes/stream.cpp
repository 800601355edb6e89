// Passes over memory: copy y = x, triad y = a + scale b, read sum(x); all f32.
// What is tunable: vectors per iteration, pages that are walked side by side, and how lines to be written are got.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace {

#if defined(CPU_CAPABILITY_AVX512)
using Vec = __m512;
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
inline Vec set(float s) { return _mm512_set1_ps(s); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
#else
using Vec = __m256;
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
inline Vec set(float s) { return _mm256_set1_ps(s); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
#endif

constexpr int64_t kLanes = sizeof(Vec) / sizeof(float);
constexpr int64_t kPage = 4096 / sizeof(float);
constexpr int64_t kLine = 64 / sizeof(float);
// How far ahead a line is asked for with the intent to write: any distance from 256 to 2048 bytes measured the same.
constexpr int64_t kAhead = 512 / sizeof(float);
// Elements that one set of f32 sums takes in before it is added to the f64 total.
constexpr int64_t kFlush = 1 << 18;

enum Mode : int { kPlain, kOwned, kStreamed };

struct Copy {
  const float* x;
  Vec vector(int64_t i) const { return load(x + i); }
  float scalar(int64_t i) const { return x[i]; }
};

struct Triad {
  const float *a, *b;
  float scale;
  Vec vector(int64_t i) const { return fma(set(scale), load(b + i), load(a + i)); }
  float scalar(int64_t i) const { return __builtin_fmaf(scale, b[i], a[i]); }
};

// Fully unrolled, so that the vectors of an iteration stay in registers.
template <int U, Mode M, class Source>
inline __attribute__((always_inline)) void block(const Source& from, float* y, int64_t i) {
  Vec v[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    if (M == kOwned && (U * kLanes < kLine || u * kLanes % kLine == 0))
      asm volatile("prefetchw %0" ::"m"(y[i + u * kLanes + kAhead]));
    v[u] = from.vector(i + u * kLanes);
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) (M == kStreamed ? stream : store)(y + i + u * kLanes, v[u]);
}

template <int U, int P, Mode M, class Source>
void write(const Source& from, float* y, int64_t begin, int64_t end) {
  constexpr int64_t kSpan = P == 1 ? U * kLanes : kPage;  // what is walked before the next span begins
  int64_t i = begin;
  if (M == kStreamed)
    for (; i < end && reinterpret_cast<uintptr_t>(y + i) % sizeof(Vec); ++i) y[i] = from.scalar(i);
  for (; i + P * kSpan <= end; i += P * kSpan)
    for (int64_t j = 0; j < kSpan; j += U * kLanes)
      for (int p = 0; p < P; ++p) block<U, M>(from, y, i + p * kSpan + j);
  for (; i + kLanes <= end; i += kLanes) block<1, M>(from, y, i);
  for (; i < end; ++i) y[i] = from.scalar(i);
  if (M == kStreamed) _mm_sfence();
}

template <int U, int P>
double read(const float* x, int64_t begin, int64_t end, int64_t passes) {
  constexpr int64_t kSpan = P == 1 ? U * kLanes : kPage;
  Vec sums[U];
  std::fill(sums, sums + U, set(0.0f));
  double total = 0.0;
  int64_t taken = 0;
  const auto flush = [&] {
    for (Vec& sum : sums) {
      float lanes[kLanes];
      store(lanes, sum);
      for (float lane : lanes) total += lane;
      sum = set(0.0f);
    }
    taken = 0;
  };
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t chunk = begin; chunk < end; chunk += kFlush) {
      const int64_t stop = std::min(end, chunk + kFlush);
      int64_t i = chunk;
      for (; i + P * kSpan <= stop; i += P * kSpan)
        for (int64_t j = 0; j < kSpan; j += U * kLanes)
          for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
            for (int u = 0; u < U; ++u) sums[u] = add(sums[u], load(x + i + p * kSpan + j + u * kLanes));
          }
      for (; i + kLanes <= stop; i += kLanes) sums[0] = add(sums[0], load(x + i));
      for (; i < stop; ++i) total += x[i];
      if ((taken += stop - chunk) >= kFlush) flush();
    }
    asm volatile("" ::: "memory");  // the next pass reads memory again
  }
  flush();
  return total;
}

template <class Source>
using Write = void (*)(const Source&, float*, int64_t, int64_t);
using Read = double (*)(const float*, int64_t, int64_t, int64_t);

template <class Source, int U, int P>
constexpr Write<Source> kModes[] = {write<U, P, kPlain, Source>, write<U, P, kOwned, Source>,
                                    write<U, P, kStreamed, Source>};

template <class Source>
Write<Source> writer(int unroll, int pages, int mode) {
  switch (unroll) {
    case 2: return (pages == 1 ? kModes<Source, 2, 1> : kModes<Source, 2, 8>)[mode];
    case 4: return (pages == 1 ? kModes<Source, 4, 1> : kModes<Source, 4, 8>)[mode];
    default: return (pages == 1 ? kModes<Source, 8, 1> : kModes<Source, 8, 8>)[mode];
  }
}

Read reader(int unroll, int pages) {
  switch (unroll) {
    case 2: return pages == 1 ? read<2, 1> : read<2, 8>;
    case 4: return pages == 1 ? read<4, 1> : read<4, 8>;
    default: return pages == 1 ? read<8, 1> : read<8, 8>;
  }
}

// Every thread goes over a part of its own, in whole cache lines, without waiting for the others between passes.
template <class Work>
void shared(int64_t n, Work work) {
  if (omp_get_max_threads() == 1) return work(0, n);
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads();
    const int64_t part = (n / threads / kLine + 1) * kLine;
    const int64_t begin = std::min(n, part * omp_get_thread_num());
    work(begin, std::min(n, begin + part));
  }
}

template <class Source>
void write_all(const Source& from, float* y, int64_t n, int64_t passes, Write<Source> write_part) {
  shared(n, [&](int64_t begin, int64_t end) {
    for (int64_t pass = 0; pass < passes; ++pass) {
      write_part(from, y, begin, end);
      asm volatile("" ::: "memory");
    }
  });
}

}  // namespace

// Everything but the tensors: one argument, because ctypes takes 0.1 us for each and small copies show it. The first
// and the last input are the same where there is one.
struct Plan {
  int64_t n, passes;
  int32_t unroll, pages, mode;
  float scale;
};

extern "C" void stream_copy(const float* x, const float*, float* y, const Plan* plan) {
  write_all(Copy{x}, y, plan->n, plan->passes, writer<Copy>(plan->unroll, plan->pages, plan->mode));
}

extern "C" void stream_triad(const float* a, const float* b, float* y, const Plan* plan) {
  const Triad from{a, b, plan->scale};
  write_all(from, y, plan->n, plan->passes, writer<Triad>(plan->unroll, plan->pages, plan->mode));
}

extern "C" void stream_read(const float* x, const float*, float* total, const Plan* plan) {
  double sum = 0.0;
  shared(plan->n, [&](int64_t begin, int64_t end) {
    const double part = reader(plan->unroll, plan->pages)(x, begin, end, plan->passes);
#pragma omp atomic
    sum += part;
  });
  *total = static_cast<float>(sum);
}
