// The five algorithms of softmax for rows of any length (stacks.h has that for short ones). Each is two functions over a
// part of a row (all of it, unless threads share a row): `summarise`
// gives the sum of exponentials as a Pair, `write` makes the outputs from it (`own`) and from that of the whole row.
// In is what gives the elements of x, Output what is made of them. Only Resident keeps more in its Room than the plan,
// and writes a row later than it is asked to. `aligned_rows`: streams only where all rows of y are aligned. `guards`: some
// rows have no sum that serves, and are left to `careful`. What does not depend on Output and Stream is compiled once for all.
#pragma once

#include <vector>

#include "passes.h"

// softmax.cpp's argument: the sizes of the problem and the tunables that are chosen at run time. `block` is a multiple of
// 64 elements, `ahead` bytes. A mask has `mask_rows` rows, which are those of x again and again.
struct Plan {
  int64_t rows, cols, mask_rows, unroll, accumulators, stream, block, ahead;
  double scale;
};

// Sums within lanes are rounded to float; they move into a double after so many elements.
constexpr long kLongestSum = 1 << 16;

// What one thread keeps: the exponentials of a row, and for each of its blocks the pivot and what makes outputs of it.
struct Room {
  struct alignas(64) Line {
    float values[16];
  };
  long block = 0, ahead = 0;
  bool stream = false;
  std::vector<Line> lines;
  std::vector<float> pivots, factors;
  // Outputs of the row whose exponentials wait to be written, or null.
  void* waiting = nullptr;

  float* kept() { return lines[0].values; }
  // For rows of n; a unit may be read from any of its elements.
  void reserve(long n, long block) {
    const long blocks = n / block + 1;
    lines.resize(std::max<size_t>(lines.size(), blocks * block / 16 + 1));
    pivots.resize(blocks);
    factors.resize(blocks + 1);
  }
};

// The sum of exponential(x) over any length; keep as in exp_pass.
template <int Unroll, class In, class E>
inline double long_sum(In x, long n, long ahead, const E& exponential, auto keep) {
  double sum = 0.0;
  for (long from = 0; from < n; from += kLongestSum) {
    sum += exp_pass<Unroll>(x + from, std::min(kLongestSum, n - from), ahead, exponential,
                            [=](long at, auto unit, auto count) { keep(from + at, unit, count); });
  }
  return sum;
}

inline float finite(float pivot) { return pivot == -kInfinity ? 0.0f : pivot; }

// The maximum of the first elements of a row of at least one: as a guess four are enough.
template <class In>
inline float first_max(In x, long n) {
  if (n < 4) return value(x[0]);
  return std::max(std::max(value(x[0]), value(x[1])), std::max(value(x[2]), value(x[3])));
}

// Calls pass(at, b, length, pivot, again), which returns sum 2^(xL - pivot), for each block b of a row.
//
// Where 2^z overflows cleanly the first pivot is the maximum of the first few elements, and a block whose sum shows that
// its pivot is far too low is done again with its own maximum: finding the maximum of every block first would cost a
// tenth of the time. Elsewhere, and for what looks like a mask, each block has its maximum found first. A pivot that
// is too low by z costs accuracy, z * 4e-8, so the mean that is let pass is not too large either.
template <int Unroll, class In>
inline Pair online(In x, long n, const Room& room, auto pass) {
  constexpr float lowest_guess = -128.0f, largest_mean = 4096.0f;
  Pair total;
  float pivot = Vec::overflows_cleanly && n > 0 ? pivot_of(first_max(x, n)) : -kInfinity;
  for (long at = 0, b = 0; at < n; at += room.block, ++b) {
    const long length = std::min(room.block, n - at);
    bool guess = Vec::overflows_cleanly && pivot > lowest_guess;
    float sum;
    for (bool again = false;; again = true) {
      if (!guess) pivot = std::max(pivot, pivot_of(max_pass<Unroll>(x + at, length, room.ahead)));
      sum = pass(at, b, length, pivot, again);
      if (!guess || sum <= largest_mean * static_cast<float>(length)) break;
      guess = false;
    }
    total.add({sum, pivot});
  }
  return total;
}

// The sums, each in its way.
template <class In, int Degree, int Unroll, int>
struct MaximumFirst {
  [[gnu::noinline]] static Pair summarise(In x, Element<In>*, long n, Room& room) {
    const float pivot = pivot_of(max_pass<Unroll>(x, n, room.ahead));
    return {long_sum<Unroll>(x, n, room.ahead, Exponential<Degree>(finite(pivot), 1.0f), [](auto...) {}), pivot};
  }
};

template <class In, int Degree, int Unroll, int>
struct Online {
  [[gnu::noinline]] static Pair summarise(In x, Element<In>*, long n, Room& room) {
    return online<Unroll>(x, n, room, [=, ahead = room.ahead](long at, long, long length, float pivot, bool) {
      return exp_pass<Unroll>(x + at, length, ahead, Exponential<Degree>(finite(pivot), 1.0f), [](auto...) {});
    });
  }
};

template <class In, int Degree, int Unroll, int Accumulators>
struct Pairs {
  [[gnu::noinline]] static Pair summarise(In x, Element<In>*, long n, Room& room) {
    Pair total;
    for (long at = 0; at < n; at += kLongestSum) {
      total.add(pairs_pass<Degree, Unroll, Accumulators>(x + at, std::min(kLongestSum, n - at), room.ahead));
    }
    return total;
  }
};

// A sum, then the outputs from x, which is read again.
template <template <class, int, int, int> class Sum, class In, class Output, int Unroll, int Accumulators, bool Stream>
struct ReadAgain : Sum<In, Output::degree, Unroll, Accumulators> {
  static constexpr bool streams = true, accumulates = false, keeps = false, aligned_rows = false, guards = true;

  [[gnu::noinline]] static void write(In x, Element<In>* y, long n, Pair, Pair total, Room& room) {
    write_pass<Unroll, Stream>(x, y, n, room.ahead, Output::of(total));
  }
};

template <class In, class Output, int Unroll, int, bool Stream>
struct ThreePassRecompute : ReadAgain<MaximumFirst, In, Output, Unroll, 1, Stream> {};

template <class In, class Output, int Unroll, int, bool Stream>
struct TwoPassOnline : ReadAgain<Online, In, Output, Unroll, 1, Stream> {};

template <class In, class Output, int Unroll, int Accumulators, bool Stream>
struct TwoPassPairs : ReadAgain<Pairs, In, Output, Unroll, Accumulators, Stream> {
  static constexpr bool accumulates = true;
};

template <class In, class Output, int Unroll, int, bool>
struct ThreePassReload {
  static constexpr bool streams = false, accumulates = false, keeps = false, aligned_rows = false, guards = true;
  using T = Element<In>;

  [[gnu::noinline]] static Pair summarise(In x, T* y, long n, Room& room) {
    const long ahead = room.ahead;
    const float pivot = pivot_of(max_pass<Unroll>(x, n, ahead));
    const auto keep = [=](long at, Unit<T> unit, auto count) { put<false>(y + at, unit, count, ahead); };
    return {long_sum<Unroll>(x, n, ahead, Exponential<Output::degree>(finite(pivot), 1.0f), keep), pivot};
  }
  [[gnu::noinline]] static void write(In, T* y, long n, Pair own, Pair total, Room& room) {
    const Vec factor(static_cast<float>(Pair::ratio(own.exponent, total.exponent) / total.sum));
    each_unit<T, Unroll>(n, [=, ahead = room.ahead](auto, long at, auto count) {
      const T* from = y + at;
      store(y + at, load_ahead(from, count, ahead) * factor, count);
    });
  }
};

// sum 2^(xL - pivot), the exponentials going to `place`.
template <int Degree, int Unroll, class In>
[[gnu::noinline]] float kept_sum(In x, float* place, long n, long ahead, float pivot) {
  return exp_pass<Unroll>(x, n, ahead, Exponential<Degree>(finite(pivot), 1.0f),
                          [=](long i, auto unit, auto) { keep_unit(place + i, unit); });
}

// Online, with the exponentials kept as floats in a buffer that stays in the cache: one exponential per element, and
// each element of x and y crosses the memory bus once. A row is written while the next one is read: the loop that makes
// exponentials takes those of the row before out of their place, so that arithmetic and memory work at the same time.
template <class In, class Output, int Unroll, int, bool Stream>
struct Resident {
  static constexpr bool streams = true, accumulates = false, keeps = true, guards = true;
  using T = Element<In>;
  // Floats of a 16-bit unit are kept in the order of its parts, so that they come back as that unit alone.
  static constexpr bool aligned_rows = Unit<T>::vecs > 1;

  static Pair summarise(In x, T*, long n, Room& room) {
    T* waiting = static_cast<T*>(std::exchange(room.waiting, nullptr));
    return waiting == nullptr ? exchange<false>(x, waiting, n, room) : exchange<true>(x, waiting, n, room);
  }

  // Writes the row that waits, and keeps the exponentials of x.
  //
  // Where rows begin anywhere, what is written runs ahead of what is kept by what its first line lacks, so that all lines
  // but the first and the last are streamed. An ordinary store waits for its line, and what is streamed after it waits,
  // too: with such a store at each block's end 1024 x 50257 floats took 1.5 of the time that they take without streaming.
  template <bool Waiting>
  static Pair exchange(In x, T* y, long n, Room& room) {
    float* kept = room.kept();
    float* pivots = room.pivots.data();
    const float* factors = room.factors.data();
    const long ahead = room.ahead;
    const long head = Waiting && Stream && !aligned_rows ? unaligned(y, n) : 0;
    if (head > 0) {
      store(y, kept_unit<T>(kept) * Vec(factors[0]), head);
      prefetch(y + n - 1, 0);
    }
    return online<Unroll>(x, n, room, [=](long at, long b, long length, float pivot, bool again) {
      float* place = kept + at;
      pivots[b] = pivot;
      if (!Waiting || again) return kept_sum<Output::degree, Unroll>(x + at, place, length, ahead, pivot);
      T* to = y + at;
      const Vec factor(factors[b]);
      const Exponential<Output::degree> exponential(finite(pivot), 1.0f);
      return exp_pass<Unroll>(x + at, length, ahead, exponential, [=](long i, Unit<T> unit, auto count) {
        if (head == 0) {
          put<Stream>(to + i, kept_unit<T>(place + i) * factor, count, ahead);
        } else if (head + i + Unit<T>::size <= length) {
          put<Stream>(to + head + i, kept_unit<T>(place + head + i) * factor, Whole{}, ahead);
        } else if constexpr (Stream && !aligned_rows) {
          write_end(to + head + i, place + head + i, length - head - i, n - at - head - i, factors + b);
        }
        keep_unit(place + i, unit);
      });
    });
  }

  // A unit at the end of a block, or as much of it as the row has: `left` of its elements have the block's factor, the
  // others the next one's.
  [[gnu::noinline]] static void write_end(T* y, const float* kept, long left, long of_row, const float* factors) {
    if (of_row <= 0) return;
    alignas(64) float each[Unit<T>::size];
    for (long i = 0; i < Unit<T>::size; ++i) each[i] = factors[i < left ? 0 : 1];
    Unit<T> unit = kept_unit<T>(kept), factor = kept_unit<T>(each);
    for (int k = 0; k < Unit<T>::vecs; ++k) unit.part[k] = unit.part[k] * factor.part[k];
    if (of_row < Unit<T>::size) {
      store(y, unit, of_row);
    } else {
      stream(y, unit);
    }
  }

  static void write(In, T* y, long n, Pair, Pair total, Room& room) {
    const double scale = 1.0 / total.sum;
    for (long b = 0; b * room.block < n; ++b) {
      const float pivot = room.pivots[b];
      double factor = pivot == total.exponent ? scale : scale * Pair::ratio(pivot, total.exponent);
      if (factor < std::numeric_limits<float>::min()) factor *= lowered(room.kept() + b * room.block, room.block);
      room.factors[b] = static_cast<float>(factor);
    }
    room.waiting = y;
  }

  // Divides a block's exponentials by 2^64 and returns that. A block whose pivot was far too low, in a row whose maximum
  // comes later, has exponentials so large that its outputs are normal numbers although their factor would not be.
  [[gnu::noinline]] static double lowered(float* kept, long block) {
    for (long i = 0; i < block; ++i) kept[i] *= 0x1p-64f;
    return 0x1p64;
  }

  [[gnu::noinline]] static void flush(long n, Room& room) {
    T* y = static_cast<T*>(std::exchange(room.waiting, nullptr));
    if (y == nullptr) return;
    for (long at = 0, b = 0; at < n; at += room.block, ++b) {
      const long length = std::min(room.block, n - at);
      unload_pass<Unroll, Stream>(room.kept() + at, y + at, length, room.ahead, room.factors[b]);
    }
  }
};

// A row that no pivot serves: one with NaN or +inf, or nothing but -inf (then every output is NaN, as PyTorch has it), or
// with a huge maximum.
template <class Output, class In>
[[gnu::noinline]] void careful(In x, Element<In>* y, long n) {
  const float maximum = max_pass<1>(x, n, 0);
  const double sum = long_sum<1>(x, n, 0, Exponential<Output::degree, true>(maximum, 1.0f), [](auto...) {});
  if (sum > 0.0) {
    write_pass<1, false>(x, y, n, 0, Output::beyond(maximum, sum));
  } else {
    write_pass<1, false>(x, y, n, 0, [](Vec) { return Vec(NAN); });
  }
}
