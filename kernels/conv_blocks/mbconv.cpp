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
#include <utility>

#include "gemm.h"

namespace {

constexpr int64_t kLanes = 16;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace

// Weights are packed and padded with zeros (native_mbconv.py): `m` and `depth` are the padded hidden and input channels.
struct Problem {
  const Element* expand;   // blocks of `chunk` hidden channels
  const float* b1;         // [m]
  const float* depthwise;  // [m / 16][k * k][16]
  const float* b2;         // [m]
  const Element* project;  // blocks of `block` output channels
  const float* b3;         // [c rounded up to `block`]
  int64_t n, c, h, w, m, k, depth, rows, chunk, block;
};

namespace {

inline __m512 load(const Element* from, __mmask16 mask) {
#ifdef BF16
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
#else
  return _mm512_maskz_loadu_ps(mask, from);
#endif
}

inline void store(Element* to, __m512 value, __mmask16 mask) {
#ifdef BF16
#ifdef __AVX512BF16__
  const __m256i narrow = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
#else
  // Round to nearest even; a NaN becomes the quiet NaN.
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_set1_epi32(rounded, nan, 0x7fc00000), 16);
  const __m256i narrow = _mm512_cvtepi32_epi16(high);
#endif
  _mm256_mask_storeu_epi16(to, mask, narrow);
#else
  _mm512_mask_storeu_ps(to, mask, value);
#endif
}

// max(x, 0) that keeps a NaN: maxps returns its second operand when one is NaN.
inline __m512 relu(__m512 value) { return _mm512_max_ps(_mm512_setzero_ps(), value); }

// 16 channels of `Rows` output rows, from Rows + K - 1 rows of the expanded image before its ReLU.
//
// Every input is loaded once: column x adds to the K output columns around it, whose sums rotate through K registers.
template <int K, int Rows>
void depthwise(const float* const* in, int64_t width, int64_t pixel, const float* weights, const float* bias,
               Element* out) {
  constexpr int kPad = K / 2;
  __m512 tap[K * K], sum[Rows][K];
#pragma GCC unroll 64
  for (int i = 0; i < K * K; ++i) tap[i] = _mm512_loadu_ps(weights + i * kLanes);
  const __m512 start = _mm512_loadu_ps(bias);
#pragma GCC unroll 64
  for (int i = 0; i < Rows * K; ++i) sum[i / K][i % K] = start;

  const auto column = [&]<int Phase, bool Input, bool Output>(int64_t x) __attribute__((always_inline)) {
    if constexpr (Input) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows + K - 1; ++r) {
        const __m512 value = relu(_mm512_loadu_ps(in[r] + x * pixel));
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          if (row > r || r - row >= K) continue;
#pragma GCC unroll 16
          for (int kx = 0; kx < K; ++kx) {
            __m512& to = sum[row][(Phase + K + kPad - kx) % K];
            to = _mm512_fmadd_ps(value, tap[(r - row) * K + kx], to);
          }
        }
      }
    }
    constexpr int kDone = (Phase + K - kPad) % K;
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      if constexpr (Output) store(out + (row * width + x - kPad) * pixel, relu(sum[row][kDone]), 0xffff);
      sum[row][kDone] = start;
    }
  };
  // Columns from x on, without a branch: the first `Inputs` of them exist, all but the first `Skip` complete an output.
  const auto span = [&]<int Inputs, int Skip, int... I>(int64_t x, std::integer_sequence<int, I...>)
                        __attribute__((always_inline)) {
    (column.template operator()<I % K, I < Inputs, I >= Skip>(x + I), ...);
  };
  constexpr auto kWhole = std::make_integer_sequence<int, K>();
  int64_t x = 0;
  if (width >= K) {
    span.template operator()<K, kPad>(0, kWhole);
    for (x = K; x + K <= width; x += K) span.template operator()<K, 0>(x, kWhole);
  }
  const auto last = [&]<int Left>() __attribute__((always_inline)) {
    if (width - x != Left) return;
    constexpr auto kLast = std::make_integer_sequence<int, Left + kPad>();
    if (x > 0) span.template operator()<Left, 0>(x, kLast);
    if (x == 0) span.template operator()<Left, kPad>(0, kLast);
  };
  [&]<int... Left>(std::integer_sequence<int, Left...>) { (last.template operator()<Left>(), ...); }(kWhole);
}

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
    const int64_t sums = pixels_ * p.block, elements = pixels_ * p.m + room * p.depth;
    memory.reserve((expanded + halo + zeros + sums) * sizeof(float) + elements * sizeof(Element) + 6 * 64);
    expanded_ = memory.take<float>(expanded);
    zeros_ = memory.take<float>(zeros);
    std::memset(zeros_, 0, zeros * sizeof(float));
    sums_ = memory.take<float>(sums);
    hidden_ = memory.take<Element>(pixels_ * p.m);
    staged_ = memory.take<Element>(room * p.depth);
    halo_ = memory.take<float>(halo);
  }

  void run() {
    int64_t from = std::max(first_ - kPad, int64_t{0});
    for (int64_t row = first_; row < last_; row += p_.rows) {
      const int64_t bottom = std::min(row + p_.rows, last_), to = std::min(bottom + kPad, p_.h);
      const Matrix a = input(from, to);
      for (int64_t at = 0; at < p_.m; at += p_.chunk) {
        if (from < to)
          Engine::multiply(a, (to - from) * p_.w, p_.expand + at * p_.depth, p_.chunk, p_.b1 + at, expanded_, p_.chunk);
        convolve(at, row, bottom, from);
        if (bottom < last_) save(at, from, to);
      }
      project(row, bottom);
      from = to;
    }
  }

 private:
  static constexpr int64_t kPad = K / 2;

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
    if (p_.c == p_.depth && data + round_up(pixels, Engine::kRows) * p_.c <= end_)
      return {data, p_.depth, 1, 0, p_.c};
    for (int64_t i = 0; i < pixels; ++i) {
      Element* pixel = staged_ + i * p_.depth;
      std::memcpy(pixel, data + i * p_.c, p_.c * sizeof(Element));
      std::memset(static_cast<void*>(pixel + p_.c), 0, (p_.depth - p_.c) * sizeof(Element));
    }
    return {staged_, p_.depth, 1, 0, p_.depth};
  }

  // Depthwise convolution of the rows from `row` to `bottom`; the rows from `from` on have just been expanded.
  void convolve(int64_t at, int64_t row, int64_t bottom, int64_t from) const {
    Element* out = hidden_ + pixels_ * at;
    while (row < bottom) {
      const int64_t left = bottom - row, taken = left >= 4 && K == 3 ? 4 : left >= 2 ? 2 : 1;
      const float* in[4 + K - 1];
      for (int64_t r = 0; r < taken + K - 1; ++r) {
        const int64_t source = row - kPad + r;
        in[r] = source < 0 || source >= p_.h ? zeros_
                : source < from              ? halo(source, at)
                                             : expanded_ + (source - from) * p_.w * p_.chunk;
      }
      for (int64_t lane = 0; lane < p_.chunk; lane += kLanes) {
        const float* weights = p_.depthwise + (at + lane) * K * K;
        const auto call = taken == 4 ? depthwise<K, K == 3 ? 4 : 2> : taken == 2 ? depthwise<K, 2> : depthwise<K, 1>;
        call(in, p_.w, p_.chunk, weights, p_.b2 + at + lane, out + lane);
        for (int64_t r = 0; r < taken + K - 1; ++r) in[r] += kLanes;
      }
      out += taken * p_.w * p_.chunk;
      row += taken;
    }
  }

  void project(int64_t row, int64_t bottom) const {
    const int64_t pixels = (bottom - row) * p_.w;
    const Matrix a{hidden_, p_.chunk, p_.m / p_.chunk, pixels_ * p_.chunk, p_.chunk};
    for (int64_t at = 0; at < p_.c; at += p_.block) {
      Engine::multiply(a, pixels, p_.project + at * p_.m, p_.block, p_.b3 + at, sums_, p_.block);
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
  switch (p->k) {
    case 3: return block<3>(*p, x, y);
    case 5: return block<5>(*p, x, y);
  }
}
