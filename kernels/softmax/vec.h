// One SIMD register of floats with the same interface for AVX2 and AVX-512: the wider that the ISA flags allow.
//
// 2^z is the heart of softmax. Per vector it costs, after the multiply-add that makes z, `degree` multiply-adds and
//   AVX-512  2 instructions: vreduceps (the fraction of z) and vscalefps (times 2^floor(z)), exact for every z, also for
//            z = -inf, where vreduceps gives 0;
//   AVX2     6: a clamp, two additions for the nearest integer, a subtraction, a shift that makes 2^n, a product.
//            Results below 2^-126.5 become 0, and z must not exceed 127.
#pragma once

#include <immintrin.h>

#include <array>
#include <cstdint>
#include <limits>

constexpr float kLog2e = 0x1.715476p+0f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Adding it leaves the nearest integer in the low bits of a float's mantissa, for |x| < 2^22.
constexpr float kRounder = 0x1.8p+23f;

// Minimax polynomials 1 + f*(c1 + f*(c2 + ...)) of 2^f with equal ripples of the relative error, rounded to float.
// kCentred holds for |f| <= 1/2: relative error 1.0e-4, 2.8e-6, 1.1e-7, 1.6e-8 for degrees 3, 4, 5, 6.
template <int Degree>
constexpr std::array<float, Degree> kCentred{};
template <>
constexpr std::array<float, 3> kCentred<3>{0x1.62f5fap-1f, 0x1.f00c4ep-3f, 0x1.c2a218p-5f};
template <>
constexpr std::array<float, 4> kCentred<4>{0x1.62e12cp-1f, 0x1.ec0378p-3f, 0x1.c9fc46p-5f, 0x1.3a02ccp-7f};
template <>
constexpr std::array<float, 5> kCentred<5>{0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f,
                                           0x1.5bba14p-10f};
template <>
constexpr std::array<float, 6> kCentred<6>{0x1.62e430p-1f, 0x1.ebfbdcp-3f, 0x1.c6aee8p-5f,
                                           0x1.3b2d4cp-7f, 0x1.5f3e54p-10f, 0x1.41fbbcp-13f};
// kUpward holds for 0 <= f < 1: 8.6e-5, 2.9e-6, 9.4e-8, 1.3e-8.
template <int Degree>
constexpr std::array<float, Degree> kUpward{};
template <>
constexpr std::array<float, 3> kUpward<3>{0x1.63e65ap-1f, 0x1.d23788p-3f, 0x1.3baaaap-4f};
template <>
constexpr std::array<float, 4> kUpward<4>{0x1.62d6c6p-1f, 0x1.ee2452p-3f, 0x1.abf868p-5f, 0x1.b7f734p-7f};
template <>
constexpr std::array<float, 5> kUpward<5>{0x1.62e4bap-1f, 0x1.ebdb56p-3f, 0x1.c91ce6p-5f, 0x1.277854p-7f,
                                          0x1.e974fcp-10f};
template <>
constexpr std::array<float, 6> kUpward<6>{0x1.62e42cp-1f, 0x1.ebfd58p-3f, 0x1.c68912p-5f,
                                          0x1.3d0b92p-7f, 0x1.46d64cp-10f, 0x1.c54176p-13f};

#if defined(__AVX512F__)

struct Vec {
  static constexpr int lanes = 16;
  // 2^z overflows to infinity by itself, so that a pivot that is too low shows in the sum.
  static constexpr bool overflows_cleanly = true;
  __m512 v;
  Vec() = default;
  Vec(__m512 value) : v(value) {}
  explicit Vec(float value) : v(_mm512_set1_ps(value)) {}
};

inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a.v, b.v, c.v); }
// The second operand where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec nearest(Vec a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT); }
// The lanes where a <= b, as bits.
inline unsigned at_most(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
inline float horizontal_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline float horizontal_sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
// m * 2^n for integer n <= 0; 0 for n = -inf, whatever m.
inline Vec scaled_down(Vec m, Vec n) { return _mm512_scalef_ps(m.v, n.v); }

#else

struct Vec {
  static constexpr int lanes = 8;
  static constexpr bool overflows_cleanly = false;
  __m256 v;
  Vec() = default;
  Vec(__m256 value) : v(value) {}
  explicit Vec(float value) : v(_mm256_set1_ps(value)) {}
};

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a.v, b.v, c.v); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec nearest(Vec a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT); }
inline unsigned at_most(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)); }
inline float horizontal_max(Vec a) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
inline float horizontal_sum(Vec a) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
// The integer that kRounder + 127 left in the low bits, moved into the exponent: 2^n.
inline Vec power_of_two(Vec rounded) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(rounded.v), 23));
}
inline Vec scaled_down(Vec m, Vec n) {
  return m * power_of_two(max(Vec(-127.0f), n) + Vec(kRounder + 127.0f));
}

#endif

// Keeps a constant in its register: gcc would load it again and again.
inline void hold(Vec& a) { asm("" : "+v"(a.v)); }

// A polynomial 2^f whose coefficients carry a common factor: the scale of the result then costs nothing.
template <int Degree>
struct Polynomial {
  Vec c[Degree + 1];
  Polynomial(const std::array<float, Degree>& coefficients, float factor) {
    c[0] = Vec(factor);
    for (int k = 0; k < Degree; ++k) c[k + 1] = Vec(coefficients[k] * factor);
  }
  void hold() {
    for (Vec& v : c) ::hold(v);
  }
  Vec operator()(Vec f) const {
    Vec p = c[Degree];
#pragma GCC unroll 8
    for (int k = Degree - 1; k >= 0; --k) p = fma(p, f, c[k]);
    return p;
  }
};

// factor * 2^z.
template <int Degree>
struct Exp2 {
#if defined(__AVX512F__)
  Polynomial<Degree> polynomial;
  explicit Exp2(float factor) : polynomial(kUpward<Degree>, factor) {}
  Vec operator()(Vec z) const {
    constexpr int downward = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    return _mm512_scalef_ps(polynomial(_mm512_reduce_ps(z.v, downward)).v, z.v);
  }
#else
  Polynomial<Degree> polynomial;
  explicit Exp2(float factor) : polynomial(kCentred<Degree>, factor) {}
  Vec operator()(Vec z) const {
    const Vec low = max(Vec(-127.0f), z);
    const Vec rounded = low + Vec(kRounder + 127.0f);
    return polynomial(low - (rounded - Vec(kRounder + 127.0f))) * power_of_two(rounded);
  }
#endif
};

// Results too small for a normal float become 0 while one of these lives: computing a subnormal costs over 100 cycles.
class FlushToZero {
  unsigned before = _mm_getcsr();

 public:
  FlushToZero() { _mm_setcsr(before | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before); }
  FlushToZero(const FlushToZero&) = delete;
};
