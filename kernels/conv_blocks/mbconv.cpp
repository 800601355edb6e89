// A whole MBConv block in one pass over the image: expand (1x1), depthwise (k x k), project (1x1), residual.
//
// The image is worked through from top to bottom, `rows` output rows at a time (depth-first block fusion, Lavin 2024,
// arXiv 2404.03617), in chunks of `chunk` hidden channels. Of the expanded image only the chunk at hand exists, in L1; its
// last rows are kept for the next step. It is f32, so that the depthwise convolution reads it without conversion.

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "depthwise.h"
#include "gemm.h"

// Weights are packed and padded with zeros (native_mbconv.py): `m` hidden channels, `outer` input and output channels.
struct Problem {
  const Element* expand;   // in blocks of `chunk` hidden channels
  const float* b1;         // [m]
  const float* depthwise;  // [m / 16][k * k][16]
  const float* b2;         // [m]
  const Element* project;  // in blocks of `block` output channels
  const float* b3;         // [outer]
  int64_t n, c, h, w, m, k, outer, rows, chunk, block;
  int64_t depth;  // hidden channels that lie together when they are projected
  int64_t tall;   // rows that the depthwise convolution keeps in registers
};

namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

struct Release {
  void operator()(void* memory) const { std::free(memory); }
};

// One thread's buffers, kept between calls.
class Workspace {
 public:
  template <typename T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += round_up(count * sizeof(T), 64);
    return at;
  }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    size_ = round_up(bytes, 4096);
    memory_.reset(static_cast<char*>(std::aligned_alloc(4096, size_)));
    std::memset(memory_.get(), 0, size_);
  }

 private:
  std::unique_ptr<char, Release> memory_;
  int64_t size_ = 0, used_ = 0;
};

// A strip of rows of one image, `first` to `last`.
template <int K>
class Strip {
 public:
  Strip(const Problem& p, const Element* x, Element* y, int64_t image, int64_t first, int64_t last)
      : p_(p),
        x_(x + image * p.h * p.w * p.c),
        end_(x + p.n * p.h * p.w * p.c),
        y_(y + image * p.h * p.w * p.c),
        first_(first),
        last_(last),
        pixels_(round_up(p.rows * p.w, Engine::kRows)) {
    static thread_local Workspace memory;
    const int64_t room = round_up((p.rows + 2 * kPad) * p.w, Engine::kRows);
    const int64_t expanded = room * p.chunk, halo = 2 * kPad * p.w * p.m, zeros = p.w * p.chunk;
    const int64_t sums = pixels_ * p.block, elements = pixels_ * p.m + room * p.outer;
    memory.reserve((expanded + halo + zeros + sums) * sizeof(float) + elements * sizeof(Element) + 6 * 64);
    expanded_ = memory.take<float>(expanded);
    zeros_ = memory.take<float>(zeros);
    std::memset(zeros_, 0, zeros * sizeof(float));
    sums_ = memory.take<float>(sums);
    hidden_ = memory.take<Element>(pixels_ * p.m);
    staged_ = memory.take<Element>(room * p.outer);
    halo_ = memory.take<float>(halo);
  }

  void run() {
    int64_t from = std::max(first_ - kPad, int64_t{0});
    for (int64_t row = first_; row < last_; row += p_.rows) {
      const int64_t bottom = std::min(row + p_.rows, last_), to = std::min(bottom + kPad, p_.h);
      const Matrix a = input(from, to);
      for (int64_t at = 0; at < p_.m; at += p_.chunk) {
        if (from < to)
          Engine::multiply(a, (to - from) * p_.w, p_.expand + at * p_.outer, p_.chunk, p_.b1 + at, expanded_);
        convolve(at, row, bottom, from);
        if (bottom < last_) save(at, from, to);
      }
      project(row, bottom);
      from = to;
    }
  }

 private:
  static constexpr int64_t kPad = K / 2;
  static constexpr int64_t kTall = K == 3 ? 4 : 2;  // the most rows at a time that the registers have room for

  // One of the last rows of the step before, for the hidden channels from `at`.
  float* halo(int64_t row, int64_t at) const {
    return halo_ + 2 * kPad * p_.w * at + row % (2 * kPad) * p_.w * p_.chunk;
  }

  void save(int64_t at, int64_t from, int64_t to) const {
    for (int64_t row = std::max(from, to - 2 * kPad); row < to; ++row)
      std::memcpy(halo(row, at), expanded_ + (row - from) * p_.w * p_.chunk, p_.w * p_.chunk * sizeof(float));
  }

  // The input rows as they are, or copied where channels need padding or whole tiles would read beyond the tensor.
  Matrix input(int64_t from, int64_t to) const {
    const int64_t pixels = (to - from) * p_.w;
    const Element* data = x_ + from * p_.w * p_.c;
    if (p_.c == p_.outer && data + round_up(pixels, Engine::kRows) * p_.c <= end_)
      return {data, p_.outer, 1, 0, p_.c};
    for (int64_t i = 0; i < pixels; ++i) {
      Element* pixel = staged_ + i * p_.outer;
      std::memcpy(pixel, data + i * p_.c, p_.c * sizeof(Element));
      std::memset(static_cast<void*>(pixel + p_.c), 0, (p_.outer - p_.c) * sizeof(Element));
    }
    return {staged_, p_.outer, 1, 0, p_.outer};
  }

  // Depthwise convolution of the rows from `row` to `bottom`; the rows from `from` on have just been expanded.
  void convolve(int64_t at, int64_t row, int64_t bottom, int64_t from) const {
    const int64_t first = row;
    while (row < bottom) {
      const int64_t left = std::min(bottom - row, p_.tall), taken = left >= kTall ? kTall : left >= 2 ? 2 : 1;
      const float* in[kTall + K - 1];
      for (int64_t r = 0; r < taken + K - 1; ++r) {
        const int64_t source = row - kPad + r;
        in[r] = source < 0 || source >= p_.h ? zeros_
                : source < from              ? halo(source, at)
                                             : expanded_ + (source - from) * p_.w * p_.chunk;
      }
      const auto call = taken == kTall ? Depthwise<K, kTall>::run
                        : taken == 2   ? Depthwise<K, 2>::run
                                       : Depthwise<K, 1>::run;
      for (int64_t channel = at; channel < at + p_.chunk; channel += kLanes) {
        const int64_t within = channel % p_.depth;
        Element* out = hidden_ + pixels_ * (channel - within) + (row - first) * p_.w * p_.depth + within;
        call(in, p_.w, p_.chunk, p_.depthwise + channel * K * K, p_.b2 + channel, out, p_.depth);
        for (int64_t r = 0; r < taken + K - 1; ++r) in[r] += kLanes;
      }
      row += taken;
    }
  }

  void project(int64_t row, int64_t bottom) const {
    const int64_t pixels = (bottom - row) * p_.w;
    const Matrix a{hidden_, p_.depth, p_.m / p_.depth, pixels_ * p_.depth, p_.depth};
    for (int64_t at = 0; at < p_.c; at += p_.block) {
      Engine::multiply(a, pixels, p_.project + at * p_.m, p_.block, p_.b3 + at, sums_);
      finish(row * p_.w * p_.c + at, pixels, std::min(p_.block, p_.c - at));
    }
  }

  // y = sums + x, for `channels` channels of `pixels` pixels.
  void finish(int64_t at, int64_t pixels, int64_t channels) const {
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        const int64_t left = channels - channel, place = at + i * p_.c + channel;
        const __mmask16 mask = left >= kLanes ? 0xffff : (1u << left) - 1;
        const __m512 sum = _mm512_loadu_ps(sums_ + i * p_.block + channel);
        store(y_ + place, _mm512_add_ps(sum, load(x_ + place, mask)), mask);
      }
    }
  }

  const Problem& p_;
  const Element *x_, *end_;
  Element* y_;
  int64_t first_, last_;
  int64_t pixels_;  // room for those of one step, in whole tiles
  float *expanded_, *halo_, *zeros_, *sums_;
  Element *hidden_, *staged_;
};

template <int K>
void block(const Problem& p, const Element* x, Element* y) {
  // As many strips per image as give every thread the same number of them.
  const int64_t threads = omp_get_max_threads();
  const int64_t strips = std::clamp<int64_t>(threads / std::gcd(p.n, threads), 1, (p.h + p.rows - 1) / p.rows);
  const int64_t height = (p.h + strips - 1) / strips;
#pragma omp parallel if (threads > 1 && p.n * strips > 1)
  {
    const Engine engine;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p.n * strips; ++task) {
      const int64_t first = task % strips * height, last = std::min(first + height, p.h);
      if (first < last) Strip<K>(p, x, y, task / strips, first, last).run();
    }
  }
}

}  // namespace

extern "C" void mbconv(const Problem* p, const Element* x, Element* y) {
  if (p->n * p->h * p->w * p->c == 0) return;
  if (p->k == 3) block<3>(*p, x, y);
  if (p->k == 5) block<5>(*p, x, y);
}
