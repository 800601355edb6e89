// One register of floats, for AVX-512 (16 lanes) or AVX2 (8): loads and stores convert from and to the type in memory.
#pragma once

// gcc 12 takes the undefined operands inside its own intrinsics for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};

// How many lanes a load or store touches: all, or the first `count` of a row's tail.
struct All {};
struct First {
    int count;
};

#ifdef CPU_CAPABILITY_AVX512

using Lanes = __m512;
constexpr int WIDTH = 16;

inline __mmask16 mask(First n) { return static_cast<__mmask16>((1u << n.count) - 1u); }
inline Lanes widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

#ifdef __AVX512BF16__
inline __m256i narrow(Lanes v) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
// Round half to even: add half an ulp less the parity of the kept bit; a NaN stays one.
inline __m256i narrow(Lanes v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i kept = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(kept, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(bits + _mm512_set1_epi32(0x7fff) + odd, 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}
#endif

inline Lanes broadcast(float value) { return _mm512_set1_ps(value); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline float total(Lanes v) { return _mm512_reduce_add_ps(v); }
inline Lanes keep(Lanes v, First n) { return _mm512_maskz_mov_ps(mask(n), v); }

inline Lanes load(const float* from, All) { return _mm512_loadu_ps(from); }
inline Lanes load(const float* from, First n) { return _mm512_maskz_loadu_ps(mask(n), from); }
inline Lanes load(const bf16* from, All) { return widen(_mm256_loadu_si256((const __m256i*)from)); }
inline Lanes load(const bf16* from, First n) { return widen(_mm256_maskz_loadu_epi16(mask(n), from)); }

inline void store(float* to, Lanes v, All) { _mm512_storeu_ps(to, v); }
inline void store(float* to, Lanes v, First n) { _mm512_mask_storeu_ps(to, mask(n), v); }
inline void store(bf16* to, Lanes v, All) { _mm256_storeu_si256((__m256i*)to, narrow(v)); }
inline void store(bf16* to, Lanes v, First n) { _mm256_mask_storeu_epi16(to, mask(n), narrow(v)); }

inline void stream(float* to, Lanes v) { _mm512_stream_ps(to, v); }
inline void stream(bf16* to, Lanes v) { _mm256_stream_si256((__m256i*)to, narrow(v)); }

#else

using Lanes = __m256;
constexpr int WIDTH = 8;

inline __m256i mask(First n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n.count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Lanes widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }

// Round half to even: add half an ulp less the parity of the kept bit; a NaN stays one.
inline __m128i narrow(Lanes v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i kept = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept, kept), 0b1000);
    return _mm256_castsi256_si128(packed);
}

inline Lanes broadcast(float value) { return _mm256_set1_ps(value); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline float total(Lanes v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline Lanes keep(Lanes v, First n) { return _mm256_and_ps(v, _mm256_castsi256_ps(mask(n))); }

inline Lanes load(const float* from, All) { return _mm256_loadu_ps(from); }
inline Lanes load(const float* from, First n) { return _mm256_maskload_ps(from, mask(n)); }
inline Lanes load(const bf16* from, All) { return widen(_mm_loadu_si128((const __m128i*)from)); }
inline Lanes load(const bf16* from, First n) {
    __m128i lanes{};
    std::memcpy(&lanes, from, n.count * sizeof(bf16));
    return widen(lanes);
}

inline void store(float* to, Lanes v, All) { _mm256_storeu_ps(to, v); }
inline void store(float* to, Lanes v, First n) { _mm256_maskstore_ps(to, mask(n), v); }
inline void store(bf16* to, Lanes v, All) { _mm_storeu_si128((__m128i*)to, narrow(v)); }
inline void store(bf16* to, Lanes v, First n) {
    const __m128i lanes = narrow(v);
    std::memcpy(to, &lanes, n.count * sizeof(bf16));
}

inline void stream(float* to, Lanes v) { _mm256_stream_ps(to, v); }
inline void stream(bf16* to, Lanes v) { _mm_stream_si128((__m128i*)to, narrow(v)); }

#endif

inline Lanes keep(Lanes v, All) { return v; }
