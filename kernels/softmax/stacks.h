// Stacks of short rows, as many as a register has lanes: what follows the maximum and the sum of a row, and would take as
// long as a short row does, is done for all rows of a stack at once. The exponentials are kept as floats in the L1 cache
// until their sums are known. While a stack's exponentials are made, row by row, the stack before is written and the
// maxima of the next one are found, so that the processor sees arithmetic and memory at any time.
#pragma once

#include "algorithms.h"

constexpr int kStack = Vec::lanes;

template <size_t N>
inline std::array<Vec, N / 2> halved(const std::array<Vec, N>& a, auto pair) {
  std::array<Vec, N / 2> half;
#pragma GCC unroll 8
  for (size_t k = 0; k < N / 2; ++k) half[k] = pair(a[2 * k], a[2 * k + 1]);
  return half;
}

// Lane r combines the lanes of rows[r], in an order that does not depend on r: a row gives the same bits wherever it is.
inline Vec across(const std::array<Vec, kStack>& rows, auto combine) {
#if defined(__AVX512F__)
  const auto fours = halved(halved(rows, [&](Vec a, Vec b) {
    return combine(Vec(_mm512_unpacklo_ps(a.v, b.v)), Vec(_mm512_unpackhi_ps(a.v, b.v)));
  }), [&](Vec a, Vec b) {
    const __m512d p = _mm512_castps_pd(a.v), q = _mm512_castps_pd(b.v);
    return combine(Vec(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q))), Vec(_mm512_castpd_ps(_mm512_unpackhi_pd(p, q))));
  });
  const auto quarters = [&](Vec a, Vec b) {
    return combine(Vec(_mm512_shuffle_f32x4(a.v, b.v, 0x88)), Vec(_mm512_shuffle_f32x4(a.v, b.v, 0xdd)));
  };
  return halved(halved(fours, quarters), quarters)[0];
#else
  const auto fours = halved(halved(rows, [&](Vec a, Vec b) {
    return combine(Vec(_mm256_unpacklo_ps(a.v, b.v)), Vec(_mm256_unpackhi_ps(a.v, b.v)));
  }), [&](Vec a, Vec b) {
    const __m256d p = _mm256_castps_pd(a.v), q = _mm256_castps_pd(b.v);
    return combine(Vec(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q))), Vec(_mm256_castpd_ps(_mm256_unpackhi_pd(p, q))));
  });
  return halved(fours, [&](Vec a, Vec b) {
    return combine(Vec(_mm256_permute2f128_ps(a.v, b.v, 0x20)), Vec(_mm256_permute2f128_ps(a.v, b.v, 0x31)));
  })[0];
#endif
}

// A number of each row of a stack, to be taken one by one.
struct PerRow {
  alignas(64) float of[kStack];
  void operator=(Vec v) { store(of, Unit<float>{v}, Whole{}); }
};

// The rows whose outputs follow from their sums, as bits: see Pair::sound.
inline unsigned sound_rows(Vec sum, Vec pivot) {
  return at_most(Vec(std::numeric_limits<float>::min()), sum) & at_most(sum, Vec(std::numeric_limits<float>::max())) &
         at_most(Vec(-kLargestExponent), pivot) & at_most(pivot, Vec(kLargestExponent));
}

template <class In, class Output, int Unroll, int, bool Stream>
struct Stacks {
  static constexpr bool streams = true, accumulates = false, aligned_rows = true;
  using T = Element<In>;

  // Rows [begin, end), at least one.
  [[gnu::noinline]] static void stacks(In x, T* y, long n, long begin, long end, Room& room) {
    constexpr long unrolled = Unroll * Unit<T>::size;
    if (n == unrolled) {
      each_stack(x, y, std::integral_constant<long, unrolled>{}, begin, end, room);
    } else {
      each_stack(x, y, n, begin, end, room);
    }
  }

  // The last row fills up the last stack.
  [[gnu::always_inline]] static void each_stack(In x, T* y, auto n, long begin, long end, Room& room) {
    const long pitch = (n + Unit<T>::size - 1) / Unit<T>::size * Unit<T>::size, ahead = room.ahead;
    room.lines.resize(std::max<size_t>(room.lines.size(), kStack * pitch / 16));
    float* kept = room.kept();
    const auto clipped = [=](long row) { return std::min(row, end - 1); };
    const auto input = [=](long row) { return row_of(x, clipped(row), n); };
    std::array<Vec, kStack> maxima, sums;
    for (int r = 0; r < kStack; ++r) maxima[r] = max_lanes<Unroll, 1>(input(begin + r), n, ahead);
    PerRow lows, factors;
    Exponential<Output::degree> exponential(0.0f, 1.0f);
    exponential.exp2.polynomial.hold();
    unsigned unsound = 0;
    for (long stack = begin;; stack += kStack) {
      const Vec pivot = nearest(across(maxima, [](Vec a, Vec b) { return max(a, b); }) * Vec(kLog2e));
      lows = Vec(0.0f) - pivot;
      for (int r = 0; r < kStack; ++r) {
        float* mine = kept + r * pitch;
        const long row = stack + r;
        if (stack > begin) unload_pass<Unroll, Stream>(mine, y + clipped(row - kStack) * n, n, ahead, factors.of[r]);
        if (stack >= end) continue;
        exponential.low = Vec(lows.of[r]);
        sums[r] = exp_lanes<Unroll, 1>(input(row), n, Near{}, exponential,
                                    [=](long at, Unit<T> unit, auto) { keep_unit(mine + at, unit); });
        maxima[r] = max_lanes<Unroll, 1>(input(row + kStack), n, ahead);
      }
      for (; unsound != 0; unsound &= unsound - 1) {
        const long row = clipped(stack - kStack + std::countr_zero(unsound));
        careful<Output>(input(row), y + row * n, n);
      }
      if (stack >= end) return;
      const Vec sum = across(sums, [](Vec a, Vec b) { return a + b; });
      factors = Vec(1.0f) / sum;
      unsound = ~sound_rows(sum, pivot) & ((1u << kStack) - 1);
    }
  }
};
