// The softmax family over the rows of matrices: softmax(x), softmax(scale x + mask), log_softmax(x), and the gradients.
// Compiled once per ISA, element type (-DELEMENT=float, bf16 or f16), degree of the polynomial (-DDEGREE), input
// (-DINPUT=Plain, Scaled or Gradient), algorithm (-DALGORITHM) and output (-DOUTPUT=Probability or LogProbability),
// with every value of the other tunables inside.
#include <omp.h>

#include "backward.h"
#include "masked.h"
#include "stacks.h"

namespace {

// A thread is worth starting for so many elements.
constexpr long kElementsPerThread = 1 << 14;

template <class In, class Algorithm, class Output>
struct Rows {
  using T = Element<In>;

  // Rows [begin, end), each by this thread alone.
  [[gnu::noipa]] static void whole(In x, T* y, long n, long begin, long end, Room& room) {
    for (long row = begin; row < end; ++row) {
      const In from = row_of(x, row, n);
      T* to = y + row * n;
      const Pair total = Algorithm::summarise(from, to, n, room);
      if (!Algorithm::guards || total.sound()) {
        Algorithm::write(from, to, n, total, total, room);
      } else if constexpr (Algorithm::guards) {
        careful<Output>(from, to, n);
      }
    }
    if constexpr (Algorithm::keeps) Algorithm::flush(n, room);
  }

  // Every row in one part per thread of the team. The sums of two successive rows live apart, so that one barrier per
  // row is enough.
  [[gnu::noipa]] static void split(In x, T* y, const Plan& plan, Pair* sums, Room& room) {
    const long team = omp_get_num_threads(), me = omp_get_thread_num(), n = plan.cols;
    const long share = (n + team * 64 - 1) / (team * 64) * 64;
    const long begin = std::min(n, me * share), length = std::min(n, begin + share) - begin;
    for (long row = 0; row < plan.rows; ++row) {
      const In from = row_of(x, row, n);
      T* to = y + row * n;
      Pair* parts = sums + row % 2 * team;
      parts[me] = Algorithm::summarise(from + begin, to + begin, length, room);
#pragma omp barrier
      Pair total;
      for (long k = 0; k < team; ++k) total.add(parts[k]);
      if (!Algorithm::guards || total.sound()) {
        Algorithm::write(from + begin, to + begin, length, parts[me], total, room);
        if constexpr (Algorithm::keeps) Algorithm::flush(length, room);
      } else if constexpr (Algorithm::guards) {
        if (me == 0) careful<Output>(from, to, n);
      }
    }
  }
};

template <class Algorithm, class Output, class In>
void run(In x, Element<In>* y, const Plan& plan) {
  using Work = Rows<In, Algorithm, Output>;
  static thread_local Room own_room;
  const auto work = [&](Pair* sums, long team, long me) {
    const FlushToZero guard;
    Room& room = own_room;
    room.block = plan.block;
    room.ahead = plan.ahead;
    room.stream = plan.stream;
    const long begin = plan.rows * me / team, end = plan.rows * (me + 1) / team;
    if constexpr (requires { &Algorithm::stacks; }) {
      if (begin < end) Algorithm::stacks(x, y, plan.cols, begin, end, room);
    } else {
      if (Algorithm::keeps) room.reserve(plan.cols, plan.block);
      if (plan.rows >= team) {
        Work::whole(x, y, plan.cols, begin, end, room);
      } else {
        Work::split(x, y, plan, sums, room);
      }
    }
    if (plan.stream) _mm_sfence();
  };
  const long worth = std::max<long>(1, plan.rows * plan.cols / kElementsPerThread);
  const int threads = static_cast<int>(std::min<long>(omp_get_max_threads(), worth));
  if (threads == 1 || plan.rows == 0) {
    if (plan.rows > 0) work(nullptr, 1, 0);
    return;
  }
  std::vector<Pair> sums(2 * threads);
#pragma omp parallel num_threads(threads)
  work(sums.data(), omp_get_num_threads(), omp_get_thread_num());
}

// What the ops read.
template <class T>
const T* Plain(const void* x, const void*, const Plan&) {
  return static_cast<const T*>(x);
}
template <class T>
Both<T> Gradient(const void* y, const void* dy, const Plan& plan) {
  return {static_cast<const T*>(y), static_cast<const T*>(dy), static_cast<float>(plan.scale)};
}
template <class T>
Masked<T> Scaled(const void* x, const void* mask, const Plan& plan) {
  return {static_cast<const T*>(x), static_cast<const T*>(mask), static_cast<float>(plan.scale), plan.mask_rows};
}

template <int... values>
void pick(int64_t value, auto&& call) {
  ((value == values ? call(std::integral_constant<int, values>{}) : void()), ...);
}

}  // namespace

// `second` is null for ops of one input. 0, or 1 if the plan asks for a value that was not compiled.
extern "C" int softmax(const void* first, const void* second, void* y, const Plan* plan) {
  using T = ELEMENT;
  using Output = OUTPUT<DEGREE>;
  const auto x = INPUT<T>(first, second, *plan);
  using In = std::remove_const_t<decltype(x)>;
  using Example = ALGORITHM<In, Output, 1, 1, false>;
  // Some need every row to be aligned, the others begin to stream where a row is.
  const bool aligned = (reinterpret_cast<uintptr_t>(y) | plan->cols * sizeof(T)) % Unit<T>::bytes == 0;
  const int64_t streams = Example::streams && (aligned || !Example::aligned_rows) ? plan->stream : 0;
  int missing = 1;
  pick<1, 2, 4, 8>(plan->unroll, [&](auto unroll) {
    pick<1, 2, 4>(plan->accumulators, [&](auto accumulators) {
      pick<0, 1>(streams, [&](auto stream) {
        if constexpr (accumulators == 1 || (Example::accumulates && accumulators <= unroll)) {
          if constexpr (!stream || Example::streams) {
            using Algorithm = ALGORITHM<In, Output, unroll, accumulators, stream != 0>;
            run<Algorithm, Output>(x, static_cast<T*>(y), *plan);
            missing = 0;
          }
        }
      });
    });
  });
  return missing;
}
