// The gradients: with the outputs y of the forward and their gradient dy, dx = scale y (dy - sum dy y) for softmax of
// scale x + mask, and dx = dy - e^y sum dy for log_softmax. A row is read twice; where it fits the cache, only once from memory.
#pragma once

#include "algorithms.h"

// The rows of y and of dy, and what x was scaled by.
template <class T>
struct Both {
  using element = T;
  const T *y, *dy;
  float scale;
  Both operator+(long n) const { return {y + n, dy + n, scale}; }
};

template <int Degree>
Vec summand(Probability<Degree>, Vec y, Vec dy) {
  return y * dy;
}
template <int Degree>
auto gradient(Probability<Degree>, double sum, float scale) {
  const float of_sum = static_cast<float>(-scale * sum);
  return [a = Vec(scale), b = Vec(of_sum)](Vec y, Vec dy) { return y * fma(dy, a, b); };
}

template <int Degree>
Vec summand(LogProbability<Degree>, Vec, Vec dy) {
  return dy;
}
template <int Degree>
auto gradient(LogProbability<Degree>, double sum, float) {
  return [e = Exponential<Degree>(0.0f, 1.0f), s = Vec(static_cast<float>(sum))](Vec y, Vec dy) { return dy - e(y) * s; };
}

template <class In, class Output, int Unroll, int, bool Stream>
struct Backward {
  static constexpr bool streams = true, accumulates = false, keeps = false, aligned_rows = true, guards = false;
  using T = Element<In>;

  // The sum as a Pair without exponent.
  [[gnu::noinline]] static Pair summarise(In x, T*, long n, Room& room) {
    Pair total{0.0, 0.0f};
    for (long from = 0; from < n; from += kLongestSum) {
      total.sum += summed(x + from, std::min(kLongestSum, n - from), room.ahead);
    }
    return total;
  }

  static float summed(In x, long n, long ahead) {
    std::array<Vec, Unroll> sum;
    sum.fill(Vec(0.0f));
    each_unit<T, Unroll>(n, [&](auto k, long at, auto count) {
      prefetch(x.y + at, 2 * ahead);
      prefetch(x.dy + at, 2 * ahead);
      const Unit<T> y = load_or_zero(x.y + at, count), dy = load_or_zero(x.dy + at, count);
      for (int j = 0; j < Unit<T>::vecs; ++j) sum[k] = sum[k] + summand(Output{}, y.part[j], dy.part[j]);
    });
    return horizontal_sum(folded(sum, [](Vec a, Vec b) { return a + b; }));
  }

  [[gnu::noinline]] static void write(In x, T* dx, long n, Pair, Pair total, Room& room) {
    const auto made = gradient(Output{}, total.sum, x.scale);
    each_unit<T, Unroll>(n, [=, ahead = room.ahead](auto, long at, auto count) {
      Unit<T> y = load(x.y + at, count), dy = load(x.dy + at, count);
      for (int j = 0; j < Unit<T>::vecs; ++j) y.part[j] = made(y.part[j], dy.part[j]);
      put<Stream>(dx + at, y, count, ahead);
    });
  }
};
