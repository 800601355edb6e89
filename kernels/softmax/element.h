// Elements in memory, f32, bf16 and f16, as units of one register: a unit of f32 is one Vec, a unit of 16 bits two.
//
// bf16 is split into its even and its odd elements (a shift and a mask) instead of lower and upper half (a permutation
// and a shift): softmax does not care for the order, and joining them again is as cheap.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>

#include "vec.h"

struct bf16 {
  static constexpr uint16_t minus_infinity = 0xff80;
  uint16_t bits;
};
struct f16 {
  static constexpr uint16_t minus_infinity = 0xfc00;
  uint16_t bits;
};
template <class T>
concept Short = sizeof(T) == 2;

inline float value(float x) { return x; }
inline float value(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float value(f16 x) { return _cvtsh_ss(x.bits); }

template <class T>
struct Unit {
  static constexpr int vecs = sizeof(float) / sizeof(T);
  static constexpr int size = vecs * Vec::lanes;
  static constexpr long bytes = size * sizeof(T);
  std::array<Vec, vecs> part;
};

// The number of elements of a whole unit, known at compile time: loads and stores with it need no mask. A load of fewer
// fills the unit with -inf, which adds nothing to a sum of exponentials, or with what it is given.
struct Whole {};

#if defined(__AVX512F__)

using Integers = __m512i;
inline __mmask16 lanes_below(long count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline __mmask32 words_below(long count) { return static_cast<__mmask32>((uint64_t{1} << count) - 1u); }

inline Unit<float> load(const float* p, Whole) { return {Vec(_mm512_loadu_ps(p))}; }
inline Unit<float> load(const float* p, long count, float fill = -kInfinity) {
  return {Vec(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), lanes_below(count), p))};
}
inline void store(float* p, Unit<float> u, Whole) { _mm512_storeu_ps(p, u.part[0].v); }
inline void store(float* p, Unit<float> u, long count) { _mm512_mask_storeu_ps(p, lanes_below(count), u.part[0].v); }
inline void stream(float* p, Unit<float> u) { _mm512_stream_ps(p, u.part[0].v); }

inline __m256i half_precision(Vec a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }

template <Short T>
inline Unit<T> split(Integers w) {
  if constexpr (std::same_as<T, bf16>) {
    return {Vec(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))),
            Vec(_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(0xffff0000))))};
  } else {
    return {Vec(_mm512_cvtph_ps(_mm512_castsi512_si256(w))), Vec(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(w, 1)))};
  }
}
// Rounds to nearest, ties upward.
inline Integers joined(Unit<bf16> u) {
  const Integers half = _mm512_set1_epi32(0x8000);
  const Integers even = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(u.part[0].v), half), 16);
  const Integers odd = _mm512_add_epi32(_mm512_castps_si512(u.part[1].v), half);
  // even | (odd & 0xffff0000)
  return _mm512_ternarylogic_epi32(even, odd, _mm512_set1_epi32(0xffff0000), 0xf8);
}
inline Integers joined(Unit<f16> u) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(half_precision(u.part[0])), half_precision(u.part[1]), 1);
}
template <Short T>
inline Unit<T> load(const T* p, Whole) {
  return split<T>(_mm512_loadu_si512(p));
}
template <Short T>
inline Unit<T> load(const T* p, long count, uint16_t fill = T::minus_infinity) {
  return split<T>(_mm512_mask_loadu_epi16(_mm512_set1_epi16(static_cast<int16_t>(fill)), words_below(count), p));
}
template <Short T>
inline void store(T* p, Unit<T> u, Whole) {
  _mm512_storeu_si512(p, joined(u));
}
template <Short T>
inline void store(T* p, Unit<T> u, long count) {
  _mm512_mask_storeu_epi16(p, words_below(count), joined(u));
}
template <Short T>
inline void stream(T* p, Unit<T> u) {
  _mm512_stream_si512(reinterpret_cast<Integers*>(p), joined(u));
}

#else

using Integers = __m256i;
inline Integers lanes_below(long count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Unit<float> load(const float* p, Whole) { return {Vec(_mm256_loadu_ps(p))}; }
inline Unit<float> load(const float* p, long count, float fill = -kInfinity) {
  const Integers mask = lanes_below(count);
  return {Vec(_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask)))};
}
inline void store(float* p, Unit<float> u, Whole) { _mm256_storeu_ps(p, u.part[0].v); }
inline void store(float* p, Unit<float> u, long count) { _mm256_maskstore_ps(p, lanes_below(count), u.part[0].v); }
inline void stream(float* p, Unit<float> u) { _mm256_stream_ps(p, u.part[0].v); }

inline __m128i half_precision(Vec a) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }

template <Short T>
inline Unit<T> split(Integers w) {
  if constexpr (std::same_as<T, bf16>) {
    return {Vec(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16))),
            Vec(_mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(0xffff0000))))};
  } else {
    return {Vec(_mm256_cvtph_ps(_mm256_castsi256_si128(w))), Vec(_mm256_cvtph_ps(_mm256_extracti128_si256(w, 1)))};
  }
}
inline Integers joined(Unit<bf16> u) {
  const Integers half = _mm256_set1_epi32(0x8000);
  const Integers even = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(u.part[0].v), half), 16);
  const Integers odd = _mm256_add_epi32(_mm256_castps_si256(u.part[1].v), half);
  return _mm256_blend_epi16(even, odd, 0xaa);
}
inline Integers joined(Unit<f16> u) {
  return _mm256_set_m128i(half_precision(u.part[1]), half_precision(u.part[0]));
}
template <Short T>
inline Unit<T> load(const T* p, Whole) {
  return split<T>(_mm256_loadu_si256(reinterpret_cast<const Integers*>(p)));
}
template <Short T>
inline Unit<T> load(const T* p, long count, uint16_t fill = T::minus_infinity) {
  alignas(32) T copy[Unit<T>::size];
  _mm256_store_si256(reinterpret_cast<Integers*>(copy), _mm256_set1_epi16(static_cast<int16_t>(fill)));
  std::memcpy(copy, p, count * sizeof(T));
  return load(copy, Whole{});
}
template <Short T>
inline void store(T* p, Unit<T> u, Whole) {
  _mm256_storeu_si256(reinterpret_cast<Integers*>(p), joined(u));
}
template <Short T>
inline void store(T* p, Unit<T> u, long count) {
  alignas(32) T copy[Unit<T>::size];
  store(copy, u, Whole{});
  std::memcpy(p, copy, count * sizeof(T));
}
template <Short T>
inline void stream(T* p, Unit<T> u) {
  _mm256_stream_si256(reinterpret_cast<Integers*>(p), joined(u));
}

#endif

template <class T>
inline Unit<T> load_or_zero(const T* p, Whole whole) {
  return load(p, whole);
}
template <class T>
inline Unit<T> load_or_zero(const T* p, long count) {
  return load(p, count, 0);
}

template <class T>
inline Unit<T> operator*(Unit<T> u, Vec factor) {
  for (Vec& v : u.part) v = v * factor;
  return u;
}
