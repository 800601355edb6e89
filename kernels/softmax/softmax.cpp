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

// What one thread keeps. Only Resident uses more than the length of a block: it has a slot for each of the last `lag`
// rows, with the row's exponentials, the pivot of each block and what makes outputs of the block.
struct Room {
  struct alignas(64) Line {
    float values[16];
  };
  long block = 0, lag = 1, floats = 0, blocks = 0, slot = 0;
  std::vector<Line> lines;
  std::vector<float> pivots, factors;
  // Outputs of the row whose exponentials wait in a slot, or null.
  std::vector<void*> waiting;

  void reserve(long floats_of_row, long blocks_of_row) {
    floats = (floats_of_row + 15) / 16 * 16;
    blocks = blocks_of_row;
    lines.resize(std::max<size_t>(lines.size(), lag * floats / 16));
    pivots.resize(lag * blocks);
    factors.resize(lag * blocks);
    waiting.assign(lag, nullptr);
    slot = 0;
  }
  float* kept() { return lines[0].values + slot * floats; }
};

// sum 2^(xL - pivot) of any length; keep as in exp_pass.
template <class T, int Degree, int Unroll, bool Apart = false>
double long_sum(const T* x, long n, float pivot, auto keep) {
  double sum = 0.0;
  for (long at = 0; at < n; at += kLongestSum) {
    sum += exp_pass<T, Degree, Unroll, Apart>(x + at, std::min(kLongestSum, n - at), 0, pivot, 1.0f,
                                              [&](long i, Unit<T> unit, auto count) { keep(at + i, unit, count); });
  }
  return sum;
}

inline float finite(float pivot) { return pivot == -kInfinity ? 0.0f : pivot; }

// Calls pass(at, b, length, pivot, again), which returns sum 2^(xL - pivot), for each block b of a row.
//
// Where 2^z overflows cleanly the first pivot is the maximum of the first few elements, and a block whose sum shows that
// its pivot is far too low is done again with its own maximum: finding the maximum of every block first would cost a
// tenth of the time. Elsewhere, and for what looks like a mask, each block has its maximum found first.
template <class T, int Unroll>
inline Pair online(const T* x, long n, long block, auto pass) {
  constexpr float lowest_guess = -128.0f, largest_mean = 256.0f;
  Pair total;
  float pivot = Vec::overflows_cleanly ? pivot_of(first_max(x, n)) : -kInfinity;
  for (long at = 0, b = 0; at < n; at += block, ++b) {
    const long length = std::min(block, n - at);
    const bool guess = Vec::overflows_cleanly && pivot > lowest_guess;
    float sum = guess ? pass(at, b, length, pivot, false) : NAN;
    if (!(sum <= largest_mean * static_cast<float>(length))) {
      pivot = std::max(pivot, pivot_of(max_pass<T, Unroll>(x + at, length)));
      sum = pass(at, b, length, pivot, guess);
    }
    total.add({sum, pivot});
  }
  return total;
}

template <class T, int Degree, int Unroll, int, bool Stream>
struct ThreePassRecompute {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = true, accumulates = false, keeps = false;
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
  static constexpr bool streams = false, accumulates = false, keeps = false;
  [[gnu::noinline]] static Pair summarise(const T* x, T* y, long n, Room&) {
    const float pivot = pivot_of(max_pass<T, Unroll>(x, n));
    const auto keep = [&](long at, Unit<T> unit, auto count) { store(y + at, unit, count); };
    return {long_sum<T, Degree, Unroll>(x, n, finite(pivot), keep), pivot};
  }
  [[gnu::noinline]] static void write(const T*, T* y, long n, Pair own, Pair total, Room&) {
    const Vec factor(static_cast<float>(Pair::ratio(own.exponent, total.exponent) / total.sum));
    each_unit<T, Unroll>(n, 0, [&](auto, long at, auto count) {
      store(y + at, load(static_cast<const T*>(y) + at, count) * factor, count);
    });
  }
};

template <class T, int Degree, int Unroll, int Accumulators, bool Stream>
struct TwoPassPairs {
  static constexpr float limit = kPairsLimit;
  static constexpr bool streams = true, accumulates = true, keeps = false;
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
  static constexpr bool streams = true, accumulates = false, keeps = false;
  [[gnu::noinline]] static Pair summarise(const T* x, T*, long n, Room& room) {
    return online<T, Unroll>(x, n, room.block, [&](long at, long, long length, float pivot, bool) {
      return exp_pass<T, Degree, Unroll>(x + at, length, 0, finite(pivot), 1.0f, [](auto...) {});
    });
  }
  [[gnu::noinline]] static void write(const T* x, T* y, long n, Pair own, Pair total, Room& room) {
    ThreePassRecompute<T, Degree, Unroll, 1, Stream>::write(x, y, n, own, total, room);
  }
};

// Online, with the exponentials kept as floats in a buffer that stays in the cache: one exponential per element, and
// each element of x and y crosses the memory bus once. A row is written while the next one is read: the loop that makes
// exponentials takes those of the row before out of their place, so that arithmetic and memory work at the same time.
template <class T, int Degree, int Unroll, int, bool Stream>
struct Resident {
  static constexpr float limit = kPivotLimit;
  static constexpr bool streams = true, accumulates = false, keeps = true;

  static bool streamable(const T* y, long n) {
    return Stream && (reinterpret_cast<uintptr_t>(y) | n * sizeof(T)) % Unit<T>::bytes == 0;
  }
  [[gnu::noinline]] static Pair summarise(const T* x, T*, long n, Room& room) {
    room.slot = room.slot + 1 < room.lag ? room.slot + 1 : 0;
    T* waiting = static_cast<T*>(std::exchange(room.waiting[room.slot], nullptr));
    if (waiting == nullptr) return summarise<false, false>(x, waiting, n, room);
    if (streamable(waiting, n)) return summarise<true, true>(x, waiting, n, room);
    return summarise<true, false>(x, waiting, n, room);
  }
  template <bool Waiting, bool Streaming>
  static Pair summarise(const T* x, T* y, long n, Room& room) {
    float* kept = room.kept();
    float* pivots = room.pivots.data() + room.slot * room.blocks;
    const float* factors = room.factors.data() + room.slot * room.blocks;
    return online<T, Unroll>(x, n, room.block, [=](long at, long b, long length, float pivot, bool again) {
      float* place = kept + at;
      pivots[b] = pivot;
      if (!Waiting || again) {
        return exp_pass<T, Degree, Unroll>(x + at, length, 0, finite(pivot), 1.0f,
                                           [=](long i, Unit<T> unit, auto) { keep_unit<T>(place + i, unit); });
      }
      T* to = y + at;
      const Vec factor(factors[b]);
      return exp_pass<T, Degree, Unroll>(x + at, length, 0, finite(pivot), 1.0f, [=](long i, Unit<T> unit, auto count) {
        put<Streaming>(to + i, kept_unit<T>(place + i) * factor, count);
        keep_unit<T>(place + i, unit);
      });
    });
  }
  static void write(const T*, T* y, long n, Pair, Pair total, Room& room) {
    const double scale = 1.0 / total.sum;
    const long at = room.slot * room.blocks;
    for (long b = 0; b * room.block < n; ++b) {
      room.factors[at + b] = static_cast<float>(Pair::ratio(room.pivots[at + b], total.exponent) * scale);
    }
    room.waiting[room.slot] = y;
  }
  [[gnu::noinline]] static void flush(long n, Room& room) {
    for (room.slot = 0; room.slot < room.lag; ++room.slot) {
      T* y = static_cast<T*>(std::exchange(room.waiting[room.slot], nullptr));
      if (y == nullptr) continue;
      for (long at = 0, b = room.slot * room.blocks; at < n; at += room.block, ++b) {
        const long length = std::min(room.block, n - at);
        if (streamable(y, n)) {
          unload_pass<T, Unroll, Stream>(room.kept() + at, y + at, length, room.factors[b]);
        } else {
          unload_pass<T, Unroll, false>(room.kept() + at, y + at, length, room.factors[b]);
        }
      }
    }
  }
};

// A row that no pivot serves: one with NaN or +inf, or nothing but -inf (then every output is NaN, as PyTorch has it), or
// with a huge maximum.
template <class T, int Degree>
[[gnu::noinline]] void careful(const T* x, T* y, long n) {
  const float maximum = max_pass<T, 1>(x, n);
  const double sum = long_sum<T, Degree, 1, true>(x, n, maximum, [](auto...) {});
  const auto keep = [&](long at, Unit<T> unit, auto count) { store(y + at, unit, count); };
  if (sum > 0.0) {
    exp_pass<T, Degree, 1, true>(x, n, 0, maximum, static_cast<float>(1.0 / sum), keep);
  } else {
    Unit<T> unit;
    unit.part.fill(Vec(NAN));
    each_unit<T, 1>(n, 0, [&](auto, long at, auto count) { keep(at, unit, count); });
  }
}

struct Plan {
  int64_t rows, cols, unroll, accumulators, stream, block, lag;
};

template <class T, template <class, int, int, int, bool> class A, int Degree, int Unroll, int Accumulators, bool Stream>
struct Softmax {
  using Algorithm = A<T, Degree, Unroll, Accumulators, Stream>;

  // Rows [begin, end), each by this thread alone.
  [[gnu::noipa]] static void whole_rows(const T* x, T* y, const Plan& plan, long begin, long end, Room& room) {
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
    if constexpr (Algorithm::keeps) Algorithm::flush(n, room);
    if (Stream) _mm_sfence();
  }

  // Every row in one part per thread of the team. The parts' sums of two successive rows live apart, so that one
  // barrier per row is enough.
  [[gnu::noipa]] static void split_rows(const T* x, T* y, const Plan& plan, Pair* sums, Room& room) {
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
        if constexpr (Algorithm::keeps) Algorithm::flush(length, room);
      } else if (me == 0) {
        careful<T, Degree>(from, to, n);
      }
    }
    if (Stream) _mm_sfence();
  }

  static void prepare(const Plan& plan, Room& room) {
    room.block = plan.block;
    room.lag = plan.lag;
    if (Algorithm::keeps) room.reserve(floats_kept<T>(plan.cols), plan.cols / plan.block + 1);
  }

  static void run(const T* x, T* y, const Plan& plan) {
    static thread_local Room room;
    const long worth = std::max<long>(1, plan.rows * plan.cols / kElementsPerThread);
    const int threads = static_cast<int>(std::min<long>(omp_get_max_threads(), worth));
    if (threads == 1) {
      prepare(plan, room);
      whole_rows(x, y, plan, 0, plan.rows, room);
      return;
    }
    std::vector<Pair> sums(2 * threads);
#pragma omp parallel num_threads(threads)
    {
      prepare(plan, room);
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
