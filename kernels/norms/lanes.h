// Rows are read and written a register's worth of storage at a time: 64 bytes with AVX-512, 32 with AVX2, always as
// floats. Of f32 that is one register, of bf16 two: the elements at even and those at odd places, which shifts and masks
// split and merge without the shuffles that in-order lanes need. Element-wise work and sums don't care about the order.
// f16 is half a register of storage at a time: the instructions that convert it keep the order.
#pragma once

// gcc 12 takes the undefined operands inside its own intrinsics for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
struct fp8 {  // e4m3: 4 bits of exponent, 3 of mantissa, no infinity
    uint8_t bits;
};

// Keeps a value that several instructions need in a register: gcc folds the load into each of them, and loads are what
// the sums of a row take longest for.
template <typename V>
inline void hold(V& v) {
    asm("" : "+v"(v));
}

// How many elements a load or store touches: all, or the first `count` of a row's tail.
struct All {};
struct First {
    int count;
};

#ifdef CPU_CAPABILITY_AVX512

using Floats = __m512;
using Integers = __m512i;

inline Floats broadcast(float value) { return _mm512_set1_ps(value); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline float total(Floats v) { return _mm512_reduce_add_ps(v); }
// The sums of four vectors' elements.
inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline Floats root(Floats v) { return _mm512_sqrt_ps(v); }
inline int at_most(Floats v, Floats most) { return _mm512_cmp_ps_mask(v, most, _CMP_LE_OQ); }
// Elements four further on, and four new ones.
inline Floats appended(Floats v, __m128 last) {
    return _mm512_castsi512_ps(
        _mm512_alignr_epi32(_mm512_castps_si512(_mm512_castps128_ps512(last)), _mm512_castps_si512(v), 4));
}

inline __mmask16 mask(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Floats keep(Floats v, int count) { return _mm512_maskz_mov_ps(mask(count), v); }

inline Floats load(const float* from, All) { return _mm512_loadu_ps(from); }
inline Floats load(const float* from, First n) { return _mm512_maskz_loadu_ps(mask(n.count), from); }
inline void store(float* to, Floats v, All) { _mm512_storeu_ps(to, v); }
inline void store(float* to, Floats v, First n) { _mm512_mask_storeu_ps(to, mask(n.count), v); }
inline void stream(float* to, Floats v) { _mm512_stream_ps(to, v); }

inline Floats absolute(Floats v) { return _mm512_abs_ps(v); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline float largest(Floats v) { return _mm512_reduce_max_ps(v); }
inline Integers nearest(Floats v) { return _mm512_cvtps_epi32(v); }

inline __m256i narrowed(Floats v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats load(const f16* from, All) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Floats load(const f16* from, First n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n.count), from));
}
inline void store(f16* to, Floats v, All) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(v)); }
inline void store(f16* to, Floats v, First n) { _mm256_mask_storeu_epi16(to, mask(n.count), narrowed(v)); }
inline void stream(f16* to, Floats v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrowed(v)); }

#else

using Floats = __m256;
using Integers = __m256i;

inline Floats broadcast(float value) { return _mm256_set1_ps(value); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline float total(Floats v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// The sums of four vectors' elements.
inline __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

inline Floats root(Floats v) { return _mm256_sqrt_ps(v); }
inline int at_most(Floats v, Floats most) { return _mm256_movemask_ps(_mm256_cmp_ps(v, most, _CMP_LE_OQ)); }
// Elements four further on, and four new ones.
inline Floats appended(Floats v, __m128 last) { return _mm256_permute2f128_ps(v, _mm256_castps128_ps256(last), 0x21); }

inline __m256i mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats keep(Floats v, int count) { return _mm256_and_ps(v, _mm256_castsi256_ps(mask(count))); }

inline Floats load(const float* from, All) { return _mm256_loadu_ps(from); }
inline Floats load(const float* from, First n) { return _mm256_maskload_ps(from, mask(n.count)); }
inline void store(float* to, Floats v, All) { _mm256_storeu_ps(to, v); }
inline void store(float* to, Floats v, First n) { _mm256_maskstore_ps(to, mask(n.count), v); }
inline void stream(float* to, Floats v) { _mm256_stream_ps(to, v); }

inline Floats absolute(Floats v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline float largest(Floats v) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

inline Integers nearest(Floats v) { return _mm256_cvtps_epi32(v); }

inline __m128i narrowed(Floats v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats load(const f16* from, All) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Floats load(const f16* from, First n) {
    __m128i words{};
    std::memcpy(&words, from, n.count * sizeof(f16));
    return _mm256_cvtph_ps(words);
}
inline void store(f16* to, Floats v, All) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed(v)); }
inline void store(f16* to, Floats v, First n) {
    const __m128i words = narrowed(v);
    std::memcpy(to, &words, n.count * sizeof(f16));
}
inline void stream(f16* to, Floats v) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), narrowed(v)); }

#endif

// bf16 elements 0, 2, 4, ... and 1, 3, 5, ... of a register's worth.
struct Pair {
    Floats even, odd;
};

inline Pair operator+(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }
inline Pair operator*(Pair a, Pair b) { return {a.even * b.even, a.odd * b.odd}; }
inline Pair operator-(Pair a, Floats b) { return {a.even - b, a.odd - b}; }
inline Pair operator*(Pair a, Floats b) { return {a.even * b, a.odd * b}; }
inline Pair fma(Pair a, Pair b, Pair c) { return {fma(a.even, b.even, c.even), fma(a.odd, b.odd, c.odd)}; }
inline Pair fma(Pair a, Floats b, Floats c) { return {fma(a.even, b, c), fma(a.odd, b, c)}; }
inline Pair fma(Pair a, Floats b, Pair c) { return {fma(a.even, b, c.even), fma(a.odd, b, c.odd)}; }
inline Pair absolute(Pair v) { return {absolute(v.even), absolute(v.odd)}; }
inline Pair larger(Pair a, Pair b) { return {larger(a.even, b.even), larger(a.odd, b.odd)}; }
inline float largest(Pair v) { return largest(larger(v.even, v.odd)); }
inline float total(Pair v) { return total(v.even + v.odd); }

inline Floats keep(Floats v, First n) { return keep(v, n.count); }
inline Pair keep(Pair v, First n) { return {keep(v.even, (n.count + 1) / 2), keep(v.odd, n.count / 2)}; }
template <typename V>
inline V keep(V v, All) {
    return v;
}

// The bits of the nearest fp8, half to even, as signed bytes; 448 of all beyond it. Below 2^-6 the numbers lie 2^-9 apart,
// as the floats around 2^14 do.
inline Integers fp8_bits(Floats v) {
    using Bits = uint32_t __attribute__((vector_size(sizeof(Floats))));
    const Floats most = broadcast(448.0f), shifted = broadcast(0x1p14f);
    Floats size = absolute(v);
    size = most < size ? most : size;
    const Bits bits = (Bits)size;
    const Bits normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    Bits code = size < broadcast(0x1p-6f) ? (Bits)(size + shifted) - (Bits)shifted : normal;
    code = code > 0x7f ? 0x7f : code;  // NaN
    return (Integers)(code | -((Bits)v >> 31) << 7);
}

// Integers, each of which fits in a byte: the nearest, half to even, or the bits of fp8.
template <typename Byte>
inline Integers coded(Floats v) {
    static_assert(std::is_same_v<Byte, int8_t> || std::is_same_v<Byte, fp8>);
    if constexpr (std::is_same_v<Byte, fp8>) return fp8_bits(v);
    else return nearest(v);
}

// To the nearest bf16, half to even, in the upper 16 bits: add half an ulp less the parity of the kept bit. A NaN that
// arithmetic made of bf16 inputs has no low bits set, so nothing is carried and it stays one.
#ifdef CPU_CAPABILITY_AVX512

inline Pair split(__m512i words) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(_mm512_and_si512(words, upper))};
}

#ifdef __AVX512BF16__
inline __m512i merge(Pair v) {
    const __m512i order = _mm512_or_si512(
        _mm512_slli_epi32(_mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16), 16),
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(v.odd, v.even));
}
#else
inline __m512i rounded(Floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}
inline __m512i merge(Pair v) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(rounded(v.even), 16), rounded(v.odd));
}
#endif

// As many bits as elements.
inline __mmask32 elements(First n) { return static_cast<__mmask32>((1ull << n.count) - 1ull); }

template <typename Byte>
inline void store_bytes(Byte* to, Floats v, All) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(coded<Byte>(v)));
}
template <typename Byte>
inline void store_bytes(Byte* to, Floats v, First n) {
    _mm_mask_storeu_epi8(to, mask(n.count), _mm512_cvtepi32_epi8(coded<Byte>(v)));
}

// An even and an odd integer to the two bytes of a word.
template <typename Byte>
inline __m256i bytes(Pair v) {
    const __m512i even = _mm512_and_si512(coded<Byte>(v.even), _mm512_set1_epi32(0xff));
    return _mm512_cvtepi32_epi16(_mm512_or_si512(even, _mm512_slli_epi32(coded<Byte>(v.odd), 8)));
}
template <typename Byte>
inline void store_bytes(Byte* to, Pair v, All) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes<Byte>(v));
}
template <typename Byte>
inline void store_bytes(Byte* to, Pair v, First n) {
    _mm256_mask_storeu_epi8(to, elements(n), bytes<Byte>(v));
}

inline __m512i words(const bf16* from, All) { return _mm512_loadu_si512(from); }
inline __m512i words(const bf16* from, First n) { return _mm512_maskz_loadu_epi16(elements(n), from); }
template <typename N>
inline Pair load(const bf16* from, N n) {
    return split(words(from, n));
}
#ifdef __AVX512BF16__
// Adds x and x^2 to lanes of sums, of even and odd elements alike; numbers below the normal ones count as 0.
template <typename N>
inline void add_moments(const bf16* from, N n, Floats& first, Floats& second) {
    const __m512bh x = (__m512bh)words(from, n), one = (__m512bh)_mm512_set1_epi16(0x3f80);
    first = _mm512_dpbf16_ps(first, x, one);
    second = _mm512_dpbf16_ps(second, x, x);
}
#endif
inline void store(bf16* to, Pair v, All) { _mm512_storeu_si512(to, merge(v)); }
inline void store(bf16* to, Pair v, First n) { _mm512_mask_storeu_epi16(to, elements(n), merge(v)); }
inline void stream(bf16* to, Pair v) { _mm512_stream_si512(reinterpret_cast<__m512i*>(to), merge(v)); }

#else

inline Pair split(__m256i words) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(_mm256_and_si256(words, upper))};
}
inline __m256i rounded(Floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
inline __m256i merge(Pair v) {
    return _mm256_blend_epi16(_mm256_srli_epi32(rounded(v.even), 16), rounded(v.odd), 0xaa);
}

template <typename Byte>
inline __m128i bytes(Floats v) {
    const __m256i wide = coded<Byte>(v);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_packs_epi16(half, half);
}
// An even and an odd integer to the two bytes of a word.
template <typename Byte>
inline __m128i bytes(Pair v) {
    const __m256i even = _mm256_and_si256(coded<Byte>(v.even), _mm256_set1_epi32(0xff));
    const __m256i odd = _mm256_and_si256(coded<Byte>(v.odd), _mm256_set1_epi32(0xff));
    const __m256i both = _mm256_or_si256(even, _mm256_slli_epi32(odd, 8));
    return _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}
template <typename Byte>
inline void store_bytes(Byte* to, Floats v, All) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes<Byte>(v));
}
template <typename Byte>
inline void store_bytes(Byte* to, Pair v, All) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes<Byte>(v));
}
template <typename Byte, typename V>
inline void store_bytes(Byte* to, V v, First n) {
    const __m128i all = bytes<Byte>(v);
    std::memcpy(to, &all, n.count);
}

inline Pair load(const bf16* from, All) { return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline Pair load(const bf16* from, First n) {
    __m256i words{};
    std::memcpy(&words, from, n.count * sizeof(bf16));
    return split(words);
}
inline void store(bf16* to, Pair v, All) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), merge(v)); }
inline void store(bf16* to, Pair v, First n) {
    const __m256i words = merge(v);
    std::memcpy(to, &words, n.count * sizeof(bf16));
}
inline void stream(bf16* to, Pair v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), merge(v)); }

#endif
