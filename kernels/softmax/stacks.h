// Stacks of short rows, 8 or 16 at once: what follows the maximum and the sum of a row, and would take as long as a short
// row does, is done for all rows of a stack at once. The exponentials are kept as floats in the L1 cache until their sums
// are known. While a stack's exponentials are made, row by row, the stack before is written and the maxima of the next one
// are found, so that the processor sees arithmetic and memory at any time.
#pragma once

#include "algorithms.h"

template <size_t N>
inline std::array<Vec, N / 2> halved(const std::array<Vec, N>& a, auto pair) {
  std::array<Vec, N / 2> half;
#pragma GCC unroll 8
  for (size_t k = 0; k < N / 2; ++k) half[k] = pair(a[2 * k], a[2 * k + 1]);
  return half;
}

// Lane r combines the lanes of rows[r], in an order that does not depend on r: a row gives the same bits wherever it is.
#if defined(__AVX512F__)
template <size_t N>
inline Vec across(const std::array<Vec, N>& rows, auto combine) {
  const auto ones = [=](Vec a, Vec b) {
    return combine(Vec(_mm512_unpacklo_ps(a.v, b.v)), Vec(_mm512_unpackhi_ps(a.v, b.v)));
  };
  const auto twos = [=](Vec a, Vec b) {
    const __m512d p = _mm512_castps_pd(a.v), q = _mm512_castps_pd(b.v);
    return combine(Vec(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q))), Vec(_mm512_castpd_ps(_mm512_unpackhi_pd(p, q))));
  };
  const auto fours = [=](Vec a, Vec b) {
    return combine(Vec(_mm512_shuffle_f32x4(a.v, b.v, 0x88)), Vec(_mm512_shuffle_f32x4(a.v, b.v, 0xdd)));
  };
  const auto eights = halved(halved(halved(rows, ones), twos), fours);
  return fours(eights.front(), eights.back());
}
#else
inline Vec across(const std::array<Vec, 8>& rows, auto combine) {
  const auto ones = [=](Vec a, Vec b) {
    return combine(Vec(_mm256_unpacklo_ps(a.v, b.v)), Vec(_mm256_unpackhi_ps(a.v, b.v)));
  };
  const auto twos = [=](Vec a, Vec b) {
    const __m256d p = _mm256_castps_pd(a.v), q = _mm256_castps_pd(b.v);
    return combine(Vec(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q))), Vec(_mm256_castpd_ps(_mm256_unpackhi_pd(p, q))));
  };
  const auto fours = [=](Vec a, Vec b) {
    return combine(Vec(_mm256_permute2f128_ps(a.v, b.v, 0x20)), Vec(_mm256_permute2f128_ps(a.v, b.v, 0x31)));
  };
  return halved(halved(halved(rows, ones), twos), fours)[0];
}
#endif

// A number of each row of a stack, to be taken one by one.
struct PerRow {
  alignas(64) float of[Vec::lanes];
  void operator=(Vec v) { store(of, Unit<float>{v}, Whole{}); }
};

// The rows whose outputs follow from their sums, as bits: see Pair::sound.
inline unsigned sound_rows(Vec sum, Vec pivot) {
  return at_most(Vec(std::numeric_limits<float>::min()), sum) & at_most(sum, Vec(std::numeric_limits<float>::max())) &
         at_most(Vec(-kLargestExponent), pivot) & at_most(pivot, Vec(kLargestExponent));
}

// Whether to stream is asked once per row: compiling all of it twice would take half as long again. Rows that begin
// anywhere in a line are not streamed: with two ordinary stores in each, 65536 x 197 floats took 2 times as long.
template <class In, class Output, int Unroll, int, bool>
struct Stacks {
  static constexpr bool streams = false, accumulates = false, aligned_rows = true;
  using T = Element<In>;
  // Of 16 rows of 197 floats, x, y and the exponentials do not fit the L1 cache: 8 took 0.93 of the time.
  static constexpr int kRows = std::min(Vec::lanes, 8 * Unit<T>::vecs);

  // Rows [begin, end), at least one. Four units, such as 64 floats, have no loops.
  [[gnu::noinline]] static void stacks(In x, T* y, long n, long begin, long end, Room& room) {
    if constexpr (Unroll == 4) {
      constexpr long four = 4 * Unit<T>::size;
      if (n == four) return each_stack(x, y, std::integral_constant<long, four>{}, begin, end, room);
    }
    each_stack(x, y, n, begin, end, room);
  }

  // The last row fills up the last stack.
  [[gnu::always_inline]] static void each_stack(In x, T* y, auto n, long begin, long end, Room& room) {
    const long pitch = (n + Unit<T>::size - 1) / Unit<T>::size * Unit<T>::size, ahead = room.ahead;
    room.lines.resize(std::max<size_t>(room.lines.size(), kRows * pitch / 16));
    float* kept = room.kept();
    const auto clipped = [=](long row) { return std::min(row, end - 1); };
    const auto input = [=](long row) { return row_of(x, clipped(row), n); };
    const bool stream = room.stream && (reinterpret_cast<uintptr_t>(y) | n * sizeof(T)) % Unit<T>::bytes == 0;
    const auto write = [=](const float* from, long row, float factor) {
      if (stream) {
        unload_pass<Unroll, true>(from, y + row * n, n, ahead, factor);
      } else {
        unload_pass<Unroll, false>(from, y + row * n, n, ahead, factor);
      }
    };
    std::array<Vec, kRows> maxima, sums;
    for (int r = 0; r < kRows; ++r) maxima[r] = max_lanes<Unroll, 1>(input(begin + r), n, ahead);
    PerRow lows, factors;
    Exponential<Output::degree> exponential(0.0f, 1.0f);
    exponential.exp2.polynomial.hold();
    unsigned unsound = 0;
    for (long stack = begin;; stack += kRows) {
      const Vec pivot = nearest(across(maxima, [](Vec a, Vec b) { return max(a, b); }) * Vec(kLog2e));
      lows = Vec(0.0f) - pivot;
      for (int r = 0; r < kRows; ++r) {
        float* mine = kept + r * pitch;
        const long row = stack + r;
        if (stack > begin) write(mine, clipped(row - kRows), factors.of[r]);
        if (stack >= end) continue;
        exponential.low = Vec(lows.of[r]);
        sums[r] = exp_lanes<Unroll, 1>(input(row), n, Near{}, exponential,
                                       [=](long at, Unit<T> unit, auto) { keep_unit(mine + at, unit); });
        maxima[r] = max_lanes<Unroll, 1>(input(row + kRows), n, ahead);
      }
      for (; unsound != 0; unsound &= unsound - 1) {
        const long row = clipped(stack - kRows + std::countr_zero(unsound));
        careful<Output>(input(row), y + row * n, n);
      }
      if (stack >= end) return;
      const Vec sum = across(sums, [](Vec a, Vec b) { return a + b; });
      factors = Vec(1.0f) / sum;
      unsound = ~sound_rows(sum, pivot) & ((1u << kRows) - 1);
    }
  }
};
