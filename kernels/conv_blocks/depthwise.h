// Depthwise convolution of a few rows, in registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "gemm.h"

constexpr int64_t kLanes = 16;

inline __m512 load(const Element* from, __mmask16 mask) {
#ifdef BF16
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
#else
  return _mm512_maskz_loadu_ps(mask, from);
#endif
}

inline void store(Element* to, __m512 value, __mmask16 mask) {
#if defined(BF16) && defined(__AVX512BF16__)
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
#elif defined(BF16)
  // Round to nearest even; a NaN becomes the quiet NaN.
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_set1_epi32(rounded, nan, 0x7fc00000), 16);
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(high));
#else
  _mm512_mask_storeu_ps(to, mask, value);
#endif
}

// max(x, 0) that keeps a NaN: maxps returns its second operand when one is NaN.
inline __m512 relu(__m512 value) { return _mm512_max_ps(_mm512_setzero_ps(), value); }

// 16 channels of `Rows` rows of relu(bias + weights * relu(in)), from Rows + K - 1 rows of `in`.
//
// Every input is loaded once: column x adds to the K output columns around it, whose sums rotate through K registers each.
template <int K, int Rows>
class Depthwise {
 public:
  // Pixels are `from` elements apart in `in`, `to` in `out`.
  static void run(const float* const* in, int64_t width, int64_t from, const float* weights, const float* bias,
                  Element* out, int64_t to) {
    Depthwise d(in, from, weights, bias, out - kPad * to, to, width * to);
    constexpr auto kWhole = std::make_integer_sequence<int, K>();
    int64_t left = width;
    if (width >= K) {
      d.template span<K, kPad>(kWhole);
      for (left -= K; left >= K; left -= K) {
          d.template span<K, 0>(kWhole);
      }
    }
    if (width >= K) d.template last<0>(left, kWhole);
    else d.template last<kPad>(left, kWhole);
  }

 private:
  static constexpr int kPad = K / 2, kInputs = Rows + K - 1;
  const float* in_[kInputs];
  Element* out_;
  int64_t from_, to_, line_;
  __m512 tap_[K * K], start_, sum_[Rows][K];

  [[gnu::always_inline]] inline Depthwise(const float* const* in, int64_t from, const float* weights,
                                          const float* bias, Element* out, int64_t to, int64_t line)
      : out_(out), from_(from), to_(to), line_(line), start_(_mm512_loadu_ps(bias)) {
#pragma GCC unroll 16
    for (int r = 0; r < kInputs; ++r) in_[r] = in[r];
#pragma GCC unroll 64
    for (int i = 0; i < K * K; ++i) tap_[i] = _mm512_loadu_ps(weights + i * kLanes);
#pragma GCC unroll 64
    for (int i = 0; i < Rows * K; ++i) sum_[i / K][i % K] = start_;
  }

  // The next columns, without a branch: the first `Inputs` of them exist, all but the first `Skip` complete an output.
  template <int Inputs, int Skip, int... I>
  [[gnu::always_inline]] inline void span(std::integer_sequence<int, I...>) {
    (column<I % K, I < Inputs, I >= Skip>(I), ...);
#pragma GCC unroll 16
    for (int r = 0; r < kInputs; ++r) in_[r] += sizeof...(I) * from_;
    out_ += sizeof...(I) * to_;
  }

  // The columns that are left, fewer than K.
  template <int Skip, int... Left>
  [[gnu::always_inline]] inline void last(int64_t left, std::integer_sequence<int, Left...>) {
    ((left == Left ? span<Left, Skip>(std::make_integer_sequence<int, Left + kPad>()) : void()), ...);
  }

  template <int Phase, bool Input, bool Output>
  [[gnu::always_inline]] inline void column(int64_t x) {
    if constexpr (Input) {
#pragma GCC unroll 16
      for (int r = 0; r < kInputs; ++r) {
        const __m512 value = relu(_mm512_loadu_ps(in_[r] + x * from_));
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          if (row > r || r - row >= K) continue;
#pragma GCC unroll 16
          for (int kx = 0; kx < K; ++kx) {
            __m512& to = sum_[row][(Phase + K + kPad - kx) % K];
            to = _mm512_fmadd_ps(value, tap_[(r - row) * K + kx], to);
          }
        }
      }
    }
    constexpr int kDone = (Phase + K - kPad) % K;
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      if constexpr (Output) store(out_ + x * to_ + row * line_, relu(sum_[row][kDone]), 0xffff);
      sum_[row][kDone] = start_;
    }
  }
};
