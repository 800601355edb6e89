// y = softmax(x) over the last axis of x[rows, cols]. Compiled once per ISA, element type (-DELEMENT=float or bf16),
// degree of the polynomial (-DDEGREE) and algorithm (-DALGORITHM), with every value of the other tunables inside.
//
// An algorithm is two functions. `summarise` gives the sum of exponentials of a row, or of a thread's part of one, as a
// Pair; `write` makes the outputs of the same part from it and from the Pair of the whole row.
#include <omp.h>

#include <vector>

#include "passes.h"

namespace {

// Sums within lanes are rounded to float; they move into a double after so many elements.
constexpr long kLongestSum = 1 << 16;
// A thread is worth starting for so many elements.
constexpr long kElementsPerThread = 1 << 14;
// Up to this exponent the rounding of a pivot cannot overflow.
constexpr float kPivotLimit = 0x1p30f;

// What one thread keeps between summarise and write.
struct Room {
  struct alignas(64) Line {
    float values[16];
  };
  long block = 0;
  std::vector<Line> exponentials;
  std::vector<float> pivots;

  float* reserve(long floats) {
    const size_t lines = floats / 16 + 1;
    if (exponentials.size() < lines) exponentials.resize(lines);
    return exponentials[0].values;
  }
};

// sum 2^(xL - pivot) of any length; keep as in exp_pass.
template <class T, int Degree, int Unroll, bool Apart = false>
double long_sum(const T* x, long n, float pivot, auto keep) {
  double sum = 0.0;
  for (long at = 0; at < n; at += kLongestSum) {
    sum += exp_pass<T, Degree, Unroll, Apart>(
        x + at, std::min(kLongestSum, n - at), 0, pivot, 1.0f,
        [&](long i, long place, Unit<T> unit, auto count) { keep(at + i, at + place, unit, count); });
  }
  return sum;
}

inline float finite(float pivot) { return pivot == -kInfinity ? 0.0f : pivot; }

// Calls pass(at, length, pivot), which returns sum 2^(xL - pivot), for each block of a row. The pivot is a maximum of the
// blocks before; where 2^z overflows cleanly it is only raised when a sum shows that it is far too low, which spares
// looking for the maximum of every block.
template <class T, int Unroll>
inline Pair online(const T* x, long n, long first, long block, auto pass) {
  Pair total;
  float pivot = -kInfinity;
  for (long at = 0, length = std::min(first, n); at < n; at += length, length = std::min(block, n - at)) {
    float sum = NAN;
    if (Vec::overflows_cleanly && total.sum > 0.0) sum = pass(at, length, pivot);
    if (!(sum <= 256.0f * static_cast<float>(length))) {
      pivot = std::max(pivot, pivot_of(max_pass<T, Unroll>(x + at, length)));
      sum = pass(at, length, pivot);
    }
    total.add({sum, pivot});
  }
  return total;
}

template <class T, int Degree, int Unroll, int, bool Stream>
struct ThreePassRecompute {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = true, accumulates = false;
  [[gnu::noinline]] static Pair summarise(const T* x, T*, long n, Room&) {
    const float pivot = pivot_of(max_pass<T, Unroll>(x, n));
    return {long_sum<T, Degree, Unroll>(x, n, finite(pivot), [](auto...) {}), pivot};
  }
  [[gnu::noinline]] static void write(const T* x, T* y, long n, Pair, Pair total, Room&) {
    write_pass<T, Degree, Unroll, Stream>(x, y, n, total.exponent, static_cast<float>(1.0 / total.sum));
  }
};

template <class T, int Degree, int Unroll, int, bool>
struct ThreePassReload {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = false, accumulates = false;
  [[gnu::noinline]] static Pair summarise(const T* x, T* y, long n, Room&) {
    const float pivot = pivot_of(max_pass<T, Unroll>(x, n));
    const auto keep = [&](long at, long, Unit<T> unit, auto count) { store(y + at, unit, count); };
    return {long_sum<T, Degree, Unroll>(x, n, finite(pivot), keep), pivot};
  }
  [[gnu::noinline]] static void write(const T*, T* y, long n, Pair own, Pair total, Room&) {
    const Vec factor(static_cast<float>(Pair::ratio(own.exponent, total.exponent) / total.sum));
    each_unit<T, Unroll>(n, 0, [&](auto, long at, long, auto count) {
      store(y + at, load(static_cast<const T*>(y) + at, count) * factor, count);
    });
  }
};

template <class T, int Degree, int Unroll, int Accumulators, bool Stream>
struct TwoPassPairs {
  static constexpr float limit = kPairsLimit;
  static constexpr bool streams = true, accumulates = true;
  [[gnu::noinline]] static Pair summarise(const T* x, T*, long n, Room&) {
    Pair total;
    for (long at = 0; at < n; at += kLongestSum) {
      total.add(pairs_pass<T, Degree, Unroll, Accumulators>(x + at, std::min(kLongestSum, n - at)));
    }
    return total;
  }
  [[gnu::noinline]] static void write(const T* x, T* y, long n, Pair own, Pair total, Room& room) {
    ThreePassRecompute<T, Degree, Unroll, 1, Stream>::write(x, y, n, own, total, room);
  }
};

template <class T, int Degree, int Unroll, int, bool Stream>
struct TwoPassOnline {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = true, accumulates = false;
  [[gnu::noinline]] static Pair summarise(const T* x, T*, long n, Room& room) {
    return online<T, Unroll>(x, n, room.block, room.block, [&](long at, long length, float pivot) {
      return exp_pass<T, Degree, Unroll>(x + at, length, 0, finite(pivot), 1.0f, [](auto...) {});
    });
  }
  [[gnu::noinline]] static void write(const T* x, T* y, long n, Pair own, Pair total, Room& room) {
    ThreePassRecompute<T, Degree, Unroll, 1, Stream>::write(x, y, n, own, total, room);
  }
};

// Online, with the exponentials kept as floats in a buffer that stays in the cache: one exponential per element, and
// each element of x and y crosses the memory bus once.
template <class T, int Degree, int Unroll, int, bool Stream>
struct Resident {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = true, accumulates = false;
  static long head(const T* y) { return Stream ? before_aligned(y) : 0; }
  static long padded(long head) { return head > 0 ? Unit<T>::size : 0; }

  [[gnu::noinline]] static Pair summarise(const T* x, T* y, long n, Room& room) {
    const long first = head(y);
    float* kept = room.reserve(padded(first) + n + Unit<T>::size);
    room.pivots.clear();
    return online<T, Unroll>(x, n, first + room.block, room.block, [&](long at, long length, float pivot) {
      const long from = at == 0 ? 0 : at - first + padded(first);
      room.pivots.resize(at == 0 ? 0 : (at - first) / room.block);
      room.pivots.push_back(pivot);
      return exp_pass<T, Degree, Unroll>(x + at, length, at == 0 ? first : 0, finite(pivot), 1.0f,
                                         [&](long, long place, Unit<T> unit, auto) {
                                           float* to = kept + (from + place);
                                           for (Vec v : unit.part) store(to, {v}, Whole{}), to += Vec::lanes;
                                         });
    });
  }
  [[gnu::noinline]] static void write(const T*, T* y, long n, Pair, Pair total, Room& room) {
    const long first = head(y);
    const float* kept = room.exponentials[0].values;
    for (long at = 0, b = 0; at < n; at += at == 0 ? first + room.block : room.block, ++b) {
      const Vec factor(static_cast<float>(Pair::ratio(room.pivots[b], total.exponent) / total.sum));
      const long length = std::min(at == 0 ? first + room.block : room.block, n - at);
      const float* from = kept + (at == 0 ? 0 : at - first + padded(first));
      each_unit<T, Unroll>(length, at == 0 ? first : 0, [&](auto, long i, long place, auto count) {
        Unit<T> unit;
        for (int k = 0; k < Unit<T>::vecs; ++k) {
          unit.part[k] = load(from + place + k * Vec::lanes, Whole{}).part[0] * factor;
        }
        put<Stream>(y + at + i, unit, count);
      });
    }
  }
};

// A row that no pivot serves: one with NaN or +inf, or nothing but -inf (then every output is NaN, as PyTorch has it), or
// with a huge maximum.
template <class T, int Degree>
[[gnu::noinline]] void careful(const T* x, T* y, long n) {
  const float maximum = max_pass<T, 1>(x, n);
  const double sum = long_sum<T, Degree, 1, true>(x, n, maximum, [](auto...) {});
  const auto keep = [&](long at, long, Unit<T> unit, auto count) { store(y + at, unit, count); };
  if (sum > 0.0) {
    exp_pass<T, Degree, 1, true>(x, n, 0, maximum, static_cast<float>(1.0 / sum), keep);
  } else {
    Unit<T> unit;
    unit.part.fill(Vec(NAN));
    each_unit<T, 1>(n, 0, [&](auto, long at, long place, auto count) { keep(at, place, unit, count); });
  }
}

struct Plan {
  int64_t rows, cols, unroll, accumulators, stream, block;
};

template <class T, template <class, int, int, int, bool> class A, int Degree, int Unroll, int Accumulators, bool Stream>
struct Softmax {
  using Algorithm = A<T, Degree, Unroll, Accumulators, Stream>;

  // Rows [begin, end), each by this thread alone.
  static void whole_rows(const T* x, T* y, const Plan& plan, long begin, long end, Room& room) {
    const FlushToZero guard;
    const long n = plan.cols;
    for (long row = begin; row < end; ++row) {
      const Pair total = Algorithm::summarise(x + row * n, y + row * n, n, room);
      if (total.sound(Algorithm::limit)) {
        Algorithm::write(x + row * n, y + row * n, n, total, total, room);
      } else {
        careful<T, Degree>(x + row * n, y + row * n, n);
      }
    }
    if (Stream) _mm_sfence();
  }

  // Every row in one part per thread of the team. The parts' sums of two successive rows live apart, so that one
  // barrier per row is enough.
  static void split_rows(const T* x, T* y, const Plan& plan, Pair* sums, Room& room) {
    const FlushToZero guard;
    const long team = omp_get_num_threads(), me = omp_get_thread_num(), n = plan.cols;
    const long share = (n + team * 64 - 1) / (team * 64) * 64;
    const long begin = std::min(n, me * share), length = std::min(n, begin + share) - begin;
    for (long row = 0; row < plan.rows; ++row) {
      const T* from = x + row * n;
      T* to = y + row * n;
      Pair* parts = sums + row % 2 * team;
      parts[me] = Algorithm::summarise(from + begin, to + begin, length, room);
#pragma omp barrier
      Pair total;
      for (long k = 0; k < team; ++k) total.add(parts[k]);
      if (total.sound(Algorithm::limit)) {
        Algorithm::write(from + begin, to + begin, length, parts[me], total, room);
      } else if (me == 0) {
        careful<T, Degree>(from, to, n);
      }
    }
    if (Stream) _mm_sfence();
  }

  static void run(const T* x, T* y, const Plan& plan) {
    static thread_local Room room;
    const long worth = std::max<long>(1, plan.rows * plan.cols / kElementsPerThread);
    const int threads = static_cast<int>(std::min<long>(omp_get_max_threads(), worth));
    if (threads == 1) {
      room.block = plan.block;
      whole_rows(x, y, plan, 0, plan.rows, room);
      return;
    }
    std::vector<Pair> sums(2 * threads);
#pragma omp parallel num_threads(threads)
    {
      room.block = plan.block;
      const long team = omp_get_num_threads(), me = omp_get_thread_num();
      if (plan.rows >= team) {
        whole_rows(x, y, plan, plan.rows * me / team, plan.rows * (me + 1) / team, room);
      } else {
        split_rows(x, y, plan, sums.data(), room);
      }
    }
  }
};

template <int... values>
void pick(int64_t value, auto&& call) {
  ((value == values ? call(std::integral_constant<int, values>{}) : void()), ...);
}

}  // namespace

// 0, or 1 if the plan asks for a value that was not compiled.
extern "C" int softmax(const void* x, void* y, const Plan* plan) {
  using T = ELEMENT;
  int missing = 1;
  const auto run = [&](auto unroll, auto accumulators, auto stream) {
    Softmax<T, ALGORITHM, DEGREE, unroll, accumulators, stream != 0>::run(static_cast<const T*>(x), static_cast<T*>(y),
                                                                         *plan);
    missing = 0;
  };
  const auto with_stream = [&](auto unroll, auto accumulators) {
    if constexpr (ALGORITHM<T, DEGREE, 1, 1, false>::streams) {
      pick<0, 1>(plan->stream, [&](auto stream) { run(unroll, accumulators, stream); });
    } else {
      pick<0>(plan->stream, [&](auto stream) { run(unroll, accumulators, stream); });
    }
  };
  pick<1, 2, 4, 8>(plan->unroll, [&](auto unroll) {
    if constexpr (ALGORITHM<T, DEGREE, 1, 1, false>::accumulates && unroll > 1) {
      pick<1, 2, 4>(plan->accumulators, [&](auto accumulators) {
        if constexpr (accumulators <= unroll) with_stream(unroll, accumulators);
      });
    } else {
      pick<1>(plan->accumulators, [&](auto accumulators) { with_stream(unroll, accumulators); });
    }
  });
  return missing;
}
