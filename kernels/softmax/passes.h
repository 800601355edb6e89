// Passes over a row of n elements, or over a part of one: each reads it once. L = log2(e) throughout, so that e^(x - M)
// is 2^(xL - c) with the pivot c = ML; pivots are integers, which makes every rescale by their differences exact.
//
// Each pass prefetches x 2 * `ahead` bytes and y `ahead` bytes before it needs them. With 1 KiB a softmax from the L3
// cache took 1.0 of a copy's time instead of 1.15, because every store otherwise waits for its line.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "element.h"

// Beyond this the rounding of a pivot is not small, and adding kRounder does not give the nearest integer.
constexpr float kLargestExponent = 4.0e6f;

// A sum of exponentials, sum * 2^exponent: neither overflows however large the inputs are.
struct Pair {
  double sum = 0.0;
  float exponent = -kInfinity;

  // 2^(from - to) for exponents that are integers, or from = -inf; from <= to. What is below 2^-1022 stays there.
  static double ratio(float from, float to) {
    const auto difference = static_cast<int64_t>(std::max(from - to, -1022.0f));
    return std::bit_cast<double>((difference + 1023) << 52);
  }
  // Too large an exponent may have lost its sum, so it spoils this one.
  void add(Pair other) {
    if (!(other.exponent <= kLargestExponent)) other.sum = NAN;
    if (sum == 0.0) {
      *this = other;
    } else if (other.sum != 0.0) {
      const float top = std::max(exponent, other.exponent);
      sum = sum * ratio(exponent, top) + other.sum * ratio(other.exponent, top);
      exponent = top;
    }
  }
  // Whether the outputs follow from this sum. Not for rows with NaN or +inf, nothing but -inf, or a huge maximum.
  bool sound() const { return sum > 0.0 && sum < INFINITY && std::fabs(exponent) <= kLargestExponent; }
  // ln of the sum. The exponentials were made with kLog2e for L, and so is this: what kLog2e is off by, times a large
  // exponent, would else be in the answer.
  double log() const { return (exponent + std::log2(sum)) / kLog2e; }
};

inline float pivot_of(float maximum) { return std::rint(maximum * kLog2e); }

// Calls body(k, at, count) for the units of n elements, at being a unit's first: `Unroll` of them per iteration with
// k = 0 to Unroll - 1, then singly with k = 0.
template <class T, int Unroll, class Body>
[[gnu::always_inline]] inline void each_unit(long n, Body&& body) {
  constexpr long size = Unit<T>::size;
  using First = std::integral_constant<int, 0>;
  long at = 0;
  for (; at + Unroll * size <= n; at += Unroll * size) {
    [&]<int... k>(std::integer_sequence<int, k...>) {
      (body(std::integral_constant<int, k>{}, at + k * size, Whole{}), ...);
    }(std::make_integer_sequence<int, Unroll>{});
  }
  for (; at + size <= n; at += size) body(First{}, at, Whole{});
  if (at < n) body(First{}, at, n - at);
}

inline void prefetch(const void* p, long ahead) {
  _mm_prefetch(static_cast<const char*>(p) + ahead, _MM_HINT_T0);
}

template <class T>
inline Unit<T> load_ahead(const T* x, auto count, long ahead) {
  prefetch(x, 2 * ahead);
  return load(x, count);
}

// The type of the elements that an input gives: it is a pointer to them, or several that are read together.
template <class In>
struct ElementOf {
  using type = typename In::element;
};
template <class T>
struct ElementOf<const T*> {
  using type = T;
};
template <class In>
using Element = typename ElementOf<In>::type;

// For what a pass before has brought to the nearest cache.
struct Near {};
inline auto load_ahead(const auto& x, auto count, Near) { return load(x, count); }

// Stream is for aligned y.
template <bool Stream, class T, class Count>
inline void put(T* y, Unit<T> unit, Count count, long ahead) {
  if constexpr (Stream && std::is_same_v<Count, Whole>) {
    stream(y, unit);
  } else {
    prefetch(y, ahead);
    store(y, unit, count);
  }
}

template <size_t N>
inline Vec folded(std::array<Vec, N> a, auto combine) {
  for (size_t k = 1; k < N; ++k) a[0] = combine(a[0], a[k]);
  return a[0];
}

// Of each lane the maximum of what comes to it; -inf for n = 0. NaN are passed over.
template <int Unroll, int Accumulators = Unroll, class In>
inline Vec max_lanes(In x, long n, long ahead) {
  std::array<Vec, Accumulators> highest;
  highest.fill(Vec(-kInfinity));
  each_unit<Element<In>, Unroll>(n, [&](auto k, long at, auto count) {
    for (Vec v : load_ahead(x + at, count, ahead).part) {
      highest[k % Accumulators] = max(v, highest[k % Accumulators]);
    }
  });
  return folded(highest, [](Vec a, Vec b) { return max(a, b); });
}

// max x.
template <int Unroll, class In>
[[gnu::noinline]] float max_pass(In x, long n, long ahead) {
  return horizontal_max(max_lanes<Unroll>(x, n, ahead));
}

// factor * 2^(xL - pivot). With Apart, pivot is a maximum M, and x - M comes before the product with L, which could
// overflow.
template <int Degree, bool Apart = false>
struct Exponential {
  Exp2<Degree> exp2;
  Vec low;
  Exponential(float pivot, float factor) : exp2(factor), low(-pivot) {}
  Vec operator()(Vec x) const { return exp2(Apart ? (x + low) * Vec(kLog2e) : fma(x, Vec(kLog2e), low)); }
};

// What the last pass makes of x from the sum of the row: its share of the sum, or the logarithm of that. `beyond` serves
// rows whose maximum is too large for a pivot; sum is then that of e^(x - maximum).
template <int Degree>
struct Probability {
  static constexpr int degree = Degree;
  static auto of(Pair total) { return Exponential<Degree>(total.exponent, static_cast<float>(1.0 / total.sum)); }
  static auto beyond(float maximum, double sum) {
    return Exponential<Degree, true>(maximum, static_cast<float>(1.0 / sum));
  }
};

// x - (high + low): x may be as large as high, and the difference small.
struct Difference {
  Vec high, low;
  Difference(float high, double low) : high(high), low(static_cast<float>(low)) {}
  Vec operator()(Vec x) const { return x - high - low; }
};

template <int Degree>
struct LogProbability {
  static constexpr int degree = Degree;
  static auto of(Pair total) {
    const auto high = static_cast<float>(total.log());
    return Difference(high, total.log() - high);
  }
  static auto beyond(float maximum, double sum) { return Difference(maximum, std::log(sum)); }
};

// Of each lane the sum of its exponential(x); keep(at, unit, count) gets every unit of them.
template <int Unroll, int Accumulators = Unroll, class In, class E>
inline Vec exp_lanes(In x, long n, auto ahead, const E& exponential, auto keep) {
  using T = Element<In>;
  std::array<Vec, Accumulators> sum;
  sum.fill(Vec(0.0f));
  each_unit<T, Unroll>(n, [&](auto k, long at, auto count) {
    Unit<T> unit = load_ahead(x + at, count, ahead);
    for (Vec& v : unit.part) {
      v = exponential(v);
      sum[k % Accumulators] = sum[k % Accumulators] + v;
    }
    keep(at, unit, count);
  });
  return folded(sum, [](Vec a, Vec b) { return a + b; });
}

// The sum of exponential(x).
template <int Unroll, class In, class E>
inline float exp_pass(In x, long n, long ahead, const E& exponential, auto keep) {
  return horizontal_sum(exp_lanes<Unroll>(x, n, ahead, exponential, keep));
}

// The elements of n before y is aligned.
template <class T>
inline long unaligned(const T* y, long n) {
  return std::min<long>(n, (-reinterpret_cast<uintptr_t>(y) & (Unit<T>::bytes - 1)) / sizeof(T));
}

// y = output(x). Streaming stores begin where y is aligned.
template <int Unroll, bool Stream, class In, class T>
inline void write_pass(In x, T* y, long n, long ahead, const auto& output) {
  long head = 0;
  if constexpr (Stream) {
    head = unaligned(y, n);
    if (head > 0) {
      Unit<T> unit = load(x, head);
      for (Vec& v : unit.part) v = output(v);
      store(y, unit, head);
    }
  }
  y += head;
  x = x + head;
  each_unit<T, Unroll>(n - head, [=](auto, long at, auto count) {
    Unit<T> unit = load_ahead(x + at, count, ahead);
    for (Vec& v : unit.part) v = output(v);
    put<Stream>(y + at, unit, count, ahead);
  });
}

// Units kept as floats, whole and in the order of their parts.
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

// y = kept * factor. Streaming stores begin where y is aligned; of 16-bit elements all of it is.
template <int Unroll, bool Stream, class T>
inline void unload_pass(const float* kept, T* y, long n, long ahead, float factor) {
  const Vec scale(factor);
  if (const long head = Stream ? unaligned(y, n) : 0; head > 0) {
    store(y, kept_unit<T>(kept) * scale, head);
    kept += head;
    y += head;
    n -= head;
  }
  each_unit<T, Unroll>(n, [=](auto, long at, auto count) {
    put<Stream>(y + at, kept_unit<T>(kept + at) * scale, count, ahead);
  });
}

// Exponentials as pairs (m, n), m * 2^n with n the nearest integer to xL, after Dukhan and Ablavatski, "The Two-Pass
// Softmax Algorithm" (arXiv 2001.04438): their sum needs no maximum first.
struct PairVec {
  Vec m{0.0f}, n{-0x1p30f};

  template <size_t N>
  void add(const std::array<Vec, N>& ms, const std::array<Vec, N>& ns) {
    Vec top = n;
    for (Vec other : ns) top = max(other, top);
    m = scaled_down(m, n - top);
    for (size_t j = 0; j < N; ++j) m = m + scaled_down(ms[j], ns[j] - top);
    n = top;
  }

  // Adds `Units` units of e^x.
  template <int Degree, int Units, class In>
  void add_exponentials(In x, auto count, long ahead) {
    using T = Element<In>;
    constexpr int vecs = Unit<T>::vecs;
    const Polynomial<Degree> polynomial(kCentred<Degree>, 1.0f);
    std::array<Vec, Units * vecs> ms, ns;
#pragma GCC unroll 16
    for (int j = 0; j < Units * vecs; ++j) {
      Vec v = load_ahead(x + j / vecs * Unit<T>::size, count, ahead).part[j % vecs];
      // vscalefps makes 0 of m * 2^-inf by itself, AVX2 needs a number; its n is beyond kLargestExponent.
      if (!Vec::overflows_cleanly) v = max(Vec(-2.9e6f), v);
      ns[j] = fma(v, Vec(kLog2e), Vec(kRounder)) - Vec(kRounder);
      ms[j] = polynomial(fms(v, Vec(kLog2e), ns[j]));
    }
    add(ms, ns);
  }

  Pair total() const {
    const float top = horizontal_max(n);
    return {horizontal_sum(scaled_down(m, n - Vec(top))), top};
  }
};

// sum e^x in `Accumulators` sums, each of which is rescaled once per `Unroll / Accumulators` units.
template <int Degree, int Unroll, int Accumulators, class In>
inline Pair pairs_pass(In x, long n, long ahead) {
  constexpr long size = Unit<Element<In>>::size;
  constexpr int share = Unroll / Accumulators;
  std::array<PairVec, Accumulators> sums;
  long at = 0;
  for (; at + Unroll * size <= n; at += Unroll * size) {
    [&]<int... k>(std::integer_sequence<int, k...>) {
      (sums[k].template add_exponentials<Degree, share>(x + at + k * share * size, Whole{}, ahead), ...);
    }(std::make_integer_sequence<int, Accumulators>{});
  }
  for (; at + size <= n; at += size) sums[0].template add_exponentials<Degree, 1>(x + at, Whole{}, ahead);
  if (at < n) sums[0].template add_exponentials<Degree, 1>(x + at, n - at, ahead);
  for (int k = 1; k < Accumulators; ++k) sums[0].add(std::array{sums[k].m}, std::array{sums[k].n});
  return sums[0].total();
}
