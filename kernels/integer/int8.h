// What both kernels do around their int8 products: rows to int8, sums back to the type of y, work to threads.
#pragma once

// gcc 12 takes the undefined operands inside its own intrinsics for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int64_t CHUNK = 64;  // elements of k that one tile instruction takes; the last ones are padded with zeros

struct bf16 {
    uint16_t bits;
};

inline int64_t pieces(int64_t length, int64_t size) { return (length + size - 1) / size; }

inline __mmask16 first(int64_t count) {
    return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1u);
}

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const float* from, __mmask16 some) { return _mm512_maskz_loadu_ps(some, from); }
inline __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
inline __m512 load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline __m512 load(const bf16* from, __mmask16 some) { return widen(_mm256_maskz_loadu_epi16(some, from)); }

#ifdef __AVX512BF16__
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
// Round half to even: add half an ulp less the parity of the kept bit. The values are finite.
inline __m256i narrow(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}
#endif
inline void store(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
inline void store(float* to, __m512 v, __mmask16 some) { _mm512_mask_storeu_ps(to, some, v); }
inline void store(bf16* to, __m512 v, __mmask16 some) { _mm256_mask_storeu_epi16(to, some, narrow(v)); }

template <typename T>
inline float absmax(const T* x, int64_t k) {
    constexpr int LARGER_MAGNITUDE = 0b1011;  // of vrangeps: the larger absolute value, without its sign
    __m512 largest[4] = {};
    int64_t j = 0;
    for (; j + CHUNK <= k; j += CHUNK)
        for (int v = 0; v < 4; ++v) largest[v] = _mm512_range_ps(largest[v], load(x + j + 16 * v), LARGER_MAGNITUDE);
    for (; j < k; j += 16) largest[0] = _mm512_range_ps(largest[0], load(x + j, first(k - j)), LARGER_MAGNITUDE);
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
}

// 64 int32 to int8. The packs work within 128 bits and leave groups of four in the order of the index below.
inline __m512i narrow(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)));
}

// One row x[k] to chunks of 64 int8, each `step` bytes behind the one before; returns its scale. With `offset` the
// chunks hold q + 128, unsigned.
template <typename T>
inline float quantise(const T* x, int64_t k, bool offset, int8_t* q, int64_t step) {
    const float largest = absmax(x, k);
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    const __m512i sign = _mm512_set1_epi8(offset ? -128 : 0);
    const auto round = [&](__m512 v) { return _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)); };
    int64_t j = 0;
    for (; j + CHUNK <= k; j += CHUNK, q += step) {
        const __m512i chunk = narrow(round(load(x + j)), round(load(x + j + 16)), round(load(x + j + 32)),
                                     round(load(x + j + 48)));
        _mm512_storeu_si512(q, _mm512_xor_si512(chunk, sign));
    }
    if (j < k) {
        const auto some = [&](int64_t i) { return round(load(x + i, first(k - i))); };
        const __m512i chunk = narrow(some(j), some(j + 16), some(j + 32), some(j + 48));
        _mm512_storeu_si512(q, _mm512_xor_si512(chunk, sign));
    }
    return largest / 127.0f;
}

// 32 columns at once, so that of bf16 too a whole line is streamed.
template <bool STREAM>
inline void put(float* to, __m512 low, __m512 high) {
    if constexpr (STREAM) {
        _mm512_stream_ps(to, low);
        _mm512_stream_ps(to + 16, high);
    } else {
        store(to, low);
        store(to + 16, high);
    }
}
template <bool STREAM>
inline void put(bf16* to, __m512 low, __m512 high) {
    const __m512i line = _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
    if constexpr (STREAM) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    else _mm512_storeu_si512(to, line);
}

// y[j] = (sums[j] - correction[j]) scale w_scale[j] for n columns; no correction if it is null. STREAM needs y to start
// at a line.
template <bool STREAM, typename T>
inline void dequantise(const int32_t* sums, const int32_t* correction, float scale, const float* w_scale, int64_t n, T* y) {
    const __m512 row = _mm512_set1_ps(scale);
    const auto value = [&](int64_t j, __m512 column) {
        __m512i sum = _mm512_loadu_si512(sums + j);
        if (correction) sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(correction + j));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(row, column));
    };
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        put<STREAM>(y + j, value(j, load(w_scale + j)), value(j + 16, load(w_scale + j + 16)));
    for (; j < n; j += 16) store(y + j, value(j, load(w_scale + j, first(n - j))), first(n - j));
}

// Calls f(first row, end, first block, end) for the parts of a grid of threads: rows are divided first, down to
// block_m each, then blocks of columns.
template <typename F>
inline void share(int64_t m, int64_t block_m, int64_t blocks, F&& f) {
    const int64_t threads = omp_get_max_threads();
    const int64_t down = std::clamp<int64_t>(pieces(m, block_m), 1, threads);
    const int64_t across = std::clamp<int64_t>(threads / down, 1, blocks);
    if (down * across == 1) return f(0, m, 0, blocks);
#pragma omp parallel for num_threads(down * across) schedule(static)
    for (int64_t t = 0; t < down * across; ++t) {
        const int64_t i = t / across, j = t % across;
        f(m * i / down, m * (i + 1) / down, blocks * j / across, blocks * (j + 1) / across);
    }
}
