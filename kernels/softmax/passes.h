// Passes over a row of n elements, or over a block of one: each reads it once. L = log2(e) throughout, so that
// e^(x - M) is 2^(xL - c) with the pivot c = ML; c is rounded to an integer, which makes every rescale exact.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "element.h"

// A sum of exponentials, sum * 2^exponent: neither overflows however large the inputs are.
struct Pair {
  double sum = 0.0;
  float exponent = -kInfinity;

  // 2^(from - to) for exponents that are integers, or from = -inf; from <= to. What is below 2^-1022 stays there.
  static double ratio(float from, float to) {
    const auto difference = static_cast<int64_t>(std::max(from - to, -1022.0f));
    return std::bit_cast<double>((difference + 1023) << 52);
  }
  void add(Pair other) {
    if (other.sum == 0.0) return;
    const float top = std::max(exponent, other.exponent);
    sum = sum * ratio(exponent, top) + other.sum * ratio(other.exponent, top);
    exponent = top;
  }
  // Whether e^x can be recovered from x and this sum. Not for rows with NaN, +inf or nothing but -inf, and not where the
  // pivot is so large that its rounding alone overflows.
  bool sound(float limit) const { return sum > 0.0 && sum < INFINITY && std::fabs(exponent) <= limit; }
};

inline float pivot_of(float maximum) { return std::rint(maximum * kLog2e); }

// Calls body(k, at, count) for the units of n elements, at being a unit's first: `Unroll` of them per iteration with
// k = 0 to Unroll - 1, then singly with k = 0. The first `head` elements are a unit of their own.
template <class T, int Unroll, class Body>
inline void each_unit(long n, long head, Body&& body) {
  constexpr long size = Unit<T>::size;
  using First = std::integral_constant<int, 0>;
  long at = std::min(head, n);
  if (at > 0) body(First{}, 0, at);
  for (; at + Unroll * size <= n; at += Unroll * size) {
    [&]<int... k>(std::integer_sequence<int, k...>) {
      (body(std::integral_constant<int, k>{}, at + k * size, Whole{}), ...);
    }(std::make_integer_sequence<int, Unroll>{});
  }
  for (; at + size <= n; at += size) body(First{}, at, Whole{});
  if (at < n) body(First{}, at, n - at);
}

// Elements of y before the first that a streaming store may write.
template <class T>
inline long before_aligned(const T* y) {
  return (-reinterpret_cast<uintptr_t>(y) & (Unit<T>::bytes - 1)) / sizeof(T);
}

template <bool Stream, class T, class Count>
inline void put(T* y, Unit<T> unit, Count count) {
  if constexpr (Stream && std::is_same_v<Count, Whole>) {
    stream(y, unit);
  } else {
    store(y, unit, count);
  }
}

template <int N>
inline Vec folded(std::array<Vec, N> a, auto combine) {
  for (int k = 1; k < N; ++k) a[0] = combine(a[0], a[k]);
  return a[0];
}

template <class T>
inline Vec highest_of(Unit<T> unit) {
  return folded<Unit<T>::vecs>(unit.part, [](Vec a, Vec b) { return max(a, b); });
}

// max x; -inf for n = 0. NaN are passed over.
template <class T, int Unroll>
inline float max_pass(const T* x, long n) {
  std::array<Vec, Unroll> highest;
  highest.fill(Vec(-kInfinity));
  each_unit<T, Unroll>(n, 0, [&](auto k, long at, auto count) {
    for (Vec v : load(x + at, count).part) highest[k] = max(v, highest[k]);
  });
  return horizontal_max(folded<Unroll>(highest, [](Vec a, Vec b) { return max(a, b); }));
}

// The maximum of the first elements of a row.
template <class T>
inline float first_max(const T* x, long n) {
  return horizontal_max(highest_of(n < Unit<T>::size ? load(x, n) : load(x, Whole{})));
}

// sum 2^(xL - pivot). `keep(at, unit, count)` gets every unit of factor * 2^(xL - pivot); the sum does not have the
// factor. With Apart, pivot is a maximum M and x - M comes before the product with L, which could overflow.
template <class T, int Degree, int Unroll, bool Apart = false>
inline float exp_pass(const T* x, long n, long head, float pivot, float factor, auto keep) {
  const Exp2<Degree> exp2(factor);
  const Vec log2e(kLog2e), low(-pivot);
  std::array<Vec, Unroll> sum;
  sum.fill(Vec(0.0f));
  each_unit<T, Unroll>(n, head, [&](auto k, long at, auto count) {
    Unit<T> unit = load(x + at, count);
    for (Vec& v : unit.part) {
      v = exp2(Apart ? (v + low) * log2e : fma(v, log2e, low));
      sum[k] = sum[k] + v;
    }
    keep(at, unit, count);
  });
  return horizontal_sum(folded<Unroll>(sum, [](Vec a, Vec b) { return a + b; }));
}

// y = 2^(xL - pivot) * factor.
template <class T, int Degree, int Unroll, bool Stream>
inline void write_pass(const T* x, T* y, long n, float pivot, float factor) {
  exp_pass<T, Degree, Unroll>(x, n, Stream ? before_aligned(y) : 0, pivot, factor,
                              [&](long at, Unit<T> unit, auto count) { put<Stream>(y + at, unit, count); });
}

// A buffer of floats that keeps units whole: n elements of a row need floats_kept(n).
template <class T>
inline long floats_kept(long n) {
  return (n + Unit<T>::size - 1) / Unit<T>::size * Unit<T>::size;
}
template <class T>
inline void keep_unit(float* kept, Unit<T> unit) {
  for (int k = 0; k < Unit<T>::vecs; ++k) store(kept + k * Vec::lanes, Unit<float>{unit.part[k]}, Whole{});
}
template <class T>
inline Unit<T> kept_unit(const float* kept) {
  Unit<T> unit;
  for (int k = 0; k < Unit<T>::vecs; ++k) unit.part[k] = load(kept + k * Vec::lanes, Whole{}).part[0];
  return unit;
}

// y = kept * factor.
template <class T, int Unroll, bool Stream>
inline void unload_pass(const float* kept, T* y, long n, float factor) {
  const Vec scale(factor);
  each_unit<T, Unroll>(n, 0, [&](auto, long at, auto count) {
    put<Stream>(y + at, kept_unit<T>(kept + at) * scale, count);
  });
}

// Exponentials as pairs (m, n), m * 2^n with n the nearest integer to xL, after Dukhan and Ablavatski, "The Two-Pass
// Softmax Algorithm" (arXiv 2001.04438): their sum needs no maximum first.
struct PairVec {
  Vec m{0.0f}, n{-0x1p30f};

  template <int N>
  void add(const std::array<Vec, N>& ms, const std::array<Vec, N>& ns) {
    Vec top = n;
    for (Vec other : ns) top = max(other, top);
    m = scaled_down(m, n - top);
    for (int j = 0; j < N; ++j) m = m + scaled_down(ms[j], ns[j] - top);
    n = top;
  }

  // Adds `Units` units of e^x.
  template <int Degree, int Units, class T, class Count>
  void add_exponentials(const T* x, Count count) {
    constexpr int vecs = Unit<T>::vecs;
    const Polynomial<Degree> polynomial(kCentred<Degree>, 1.0f);
    std::array<Vec, Units * vecs> ms, ns;
#pragma GCC unroll 16
    for (int j = 0; j < Units * vecs; ++j) {
      Vec v = load(x + j / vecs * Unit<T>::size, count).part[j % vecs];
      // vscalefps makes 0 of 2^-inf by itself, AVX2 needs a number.
      if (!Vec::overflows_cleanly) v = max(Vec(kLowestForPairs), v);
      ns[j] = fma(v, Vec(kLog2e), Vec(kRounder)) - Vec(kRounder);
      ms[j] = polynomial(fms(v, Vec(kLog2e), ns[j]));
    }
    add<Units * vecs>(ms, ns);
  }

  static constexpr float kLowestForPairs = -2.9e6f;
};

// Below and above this exponent the nearest integer to xL is not found by adding kRounder.
constexpr float kPairsLimit = 4.0e6f;

// sum e^x over a row in `Accumulators` sums, each of which is rescaled once per `Unroll / Accumulators` units.
template <class T, int Degree, int Unroll, int Accumulators>
inline Pair pairs_pass(const T* x, long n) {
  constexpr long size = Unit<T>::size;
  constexpr int share = Unroll / Accumulators;
  std::array<PairVec, Accumulators> sums;
  long at = 0;
  for (; at + Unroll * size <= n; at += Unroll * size) {
    [&]<int... k>(std::integer_sequence<int, k...>) {
      (sums[k].template add_exponentials<Degree, share>(x + at + k * share * size, Whole{}), ...);
    }(std::make_integer_sequence<int, Accumulators>{});
  }
  for (; at + size <= n; at += size) sums[0].template add_exponentials<Degree, 1>(x + at, Whole{});
  if (at < n) sums[0].template add_exponentials<Degree, 1>(x + at, n - at);
  for (int k = 1; k < Accumulators; ++k) sums[0].template add<1>({sums[k].m}, {sums[k].n});
  const float top = horizontal_max(sums[0].n);
  return {horizontal_sum(scaled_down(sums[0].m, sums[0].n - Vec(top))), top};
}
