// Cross-entropy of logits[rows, cols] with labels[rows], and its gradient (see losses.py). The forward reads the logits
// once, by blocks with a running maximum; the gradient reads them once more and may take their place. Compiled once per
// ISA and element type (-DELEMENT=float, bf16 or f16).
#include <omp.h>

#include <algorithm>
#include <vector>

#include "algorithms.h"

// The sizes of the problem, its attributes, and the tunables that are chosen at run time.
struct Problem {
  int64_t rows, cols, ignore_index;
  double label_smoothing, z_loss;
  int64_t unroll, stream, block, ahead;

  bool ignored(int64_t label) const { return label == ignore_index; }
};

namespace {

constexpr int kDegree = 5;
constexpr long kElementsPerThread = 1 << 14;

// A block of a row, which has just been read; shorter than kLongestSum.
template <int Unroll, class T>
float plain_sum(const T* x, long n) {
  std::array<Vec, Unroll> sum;
  sum.fill(Vec(0.0f));
  each_unit<T, Unroll>(n, [&](auto k, long at, auto count) {
    for (Vec v : load_or_zero(x + at, count).part) sum[k] = sum[k] + v;
  });
  return horizontal_sum(folded(sum, [](Vec a, Vec b) { return a + b; }));
}

// ln sum e^x of a row that no pivot serves; NaN with NaN or +inf, or nothing but -inf.
template <class T>
[[gnu::noinline]] double careful_log(const T* x, long n) {
  const double maximum = max_pass<1>(x, n, 0);
  double sum = 0.0;
  for (long i = 0; i < n; ++i) sum += std::exp(value(x[i]) - maximum);
  return maximum + std::log(sum);
}

// A row's ln sum e^x, and its mean where Smooth asks for it.
struct Sums {
  double lse, mean;
};
template <int Unroll, bool Smooth, class T>
Sums sums_of(const T* x, long n, const Room& room) {
  double plain = 0.0;
  const Pair total = online<Unroll>(x, n, room, [&](long at, long, long length, float pivot, bool again) {
    if (Smooth && !again) plain += plain_sum<Unroll>(x + at, length);
    return exp_pass<Unroll>(x + at, length, room.ahead, Exponential<kDegree>(finite(pivot), 1.0f), [](auto...) {});
  });
  return {total.sound() ? total.log() : careful_log(x, n), plain / n};
}

// Calls row(r, room) for every row, in as many threads as there is work for.
void each_row(const Problem& p, auto row) {
  const long worth = std::max<long>(1, p.rows * p.cols / kElementsPerThread);
  const int threads = static_cast<int>(std::min<long>({omp_get_max_threads(), worth, std::max<long>(1, p.rows)}));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const FlushToZero guard;
    Room room;
    room.block = p.block;
    room.ahead = p.ahead;
#pragma omp for schedule(static)
    for (long r = 0; r < p.rows; ++r) row(r, room);
    if (p.stream) _mm_sfence();
  }
}

template <int Unroll, bool Smooth, class T>
void forward(const T* x, const int64_t* labels, float* loss, float* lse, const Problem& p) {
  // Summed in the order of the rows afterwards: the same loss for any number of threads.
  std::vector<double> losses(p.rows);
  each_row(p, [&](long r, const Room& room) {
    if (p.ignored(labels[r])) {
      lse[r] = 0.0f;
      return;
    }
    const T* row = x + r * p.cols;
    const Sums sums = sums_of<Unroll, Smooth>(row, p.cols, room);
    lse[r] = static_cast<float>(sums.lse);
    losses[r] = sums.lse - (1.0 - p.label_smoothing) * value(row[labels[r]]);
    if (Smooth) losses[r] -= p.label_smoothing * sums.mean;
    if (p.z_loss != 0.0) losses[r] += p.z_loss * sums.lse * sums.lse;
  });
  double sum = 0.0;
  for (double row : losses) sum += row;
  *loss = static_cast<float>(sum / (p.rows - std::count(labels, labels + p.rows, p.ignore_index)));
}

template <int Unroll, bool Stream, class T>
void backward(const T* x, const int64_t* labels, const float* lse, double dloss, T* dx, const Problem& p) {
  const double weight = dloss / (p.rows - std::count(labels, labels + p.rows, p.ignore_index));
  const double smooth = weight * p.label_smoothing / p.cols, target = weight * (1.0 - p.label_smoothing);
  each_row(p, [&](long r, const Room& room) {
    const T* row = x + r * p.cols;
    T* out = dx + r * p.cols;
    if (p.ignored(labels[r])) {
      std::fill(out, out + p.cols, T{});
      return;
    }
    const double scale = weight * (1.0 + 2.0 * p.z_loss * lse[r]);
    // Before the row is written, which may be where it is read.
    const double there = scale * std::exp(static_cast<double>(value(row[labels[r]])) - lse[r]) - smooth - target;
    const Exponential<kDegree, true> exponential(lse[r], static_cast<float>(scale));
    const Vec less(static_cast<float>(smooth));
    write_pass<Unroll, Stream>(row, out, p.cols, room.ahead, [=](Vec v) { return exponential(v) - less; });
    Unit<T> unit;
    unit.part.fill(Vec(static_cast<float>(there)));
    store(out + labels[r], unit, 1);
  });
}

bool in_range(const int64_t* labels, const Problem& p) {
  return std::all_of(labels, labels + p.rows, [&](int64_t c) { return p.ignored(c) || (c >= 0 && c < p.cols); });
}

template <int... values>
bool pick(int64_t value, auto&& call) {
  return ((value == values && (call(std::integral_constant<int, values>{}), true)) || ...);
}

}  // namespace

// 0, or 1 for a label that is no column, or 2 if the problem asks for a value that was not compiled.
extern "C" int cross_entropy(const void* x, const int64_t* labels, float* loss, float* lse, const Problem* p) {
  if (!in_range(labels, *p)) return 1;
  return pick<1, 2, 4, 8>(p->unroll, [&](auto unroll) {
    pick<0, 1>(p->label_smoothing != 0.0, [&](auto smooth) {
      forward<unroll, smooth != 0>(static_cast<const ELEMENT*>(x), labels, loss, lse, *p);
    });
  }) ? 0 : 2;
}

extern "C" int cross_entropy_backward(const void* x, const int64_t* labels, const float* lse, const float* dloss,
                                      void* dx, const Problem* p) {
  if (!in_range(labels, *p)) return 1;
  return pick<1, 2, 4, 8>(p->unroll, [&](auto unroll) {
    pick<0, 1>(p->stream, [&](auto stream) {
      backward<unroll, stream != 0>(static_cast<const ELEMENT*>(x), labels, lse, *dloss, static_cast<ELEMENT*>(dx), *p);
    });
  }) ? 0 : 2;
}
