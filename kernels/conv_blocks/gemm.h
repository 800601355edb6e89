// The two matrix products of a fused block: A, rows of 16 bits or 32, times packed weights plus bias, to f32.
//
// Weights are packed in blocks of `block` columns, each of them [K / pair][block][pair] with pair = 2 for bf16 and 1
// for f32. A is split along K into blocks of `depth` columns, `stride` elements apart (one block where A is one matrix).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef BF16
#include <c10/util/BFloat16.h>
using Element = at::BFloat16;
constexpr int64_t kPair = 2;
#else
using Element = float;
constexpr int64_t kPair = 1;
#endif

struct Matrix {
  const Element* data;
  int64_t depth;   // columns of one block
  int64_t blocks;  // number of blocks
  int64_t stride;  // elements from one block to the next
  int64_t row;     // elements from one row to the next
};

#ifdef AMX

#include <sys/syscall.h>
#include <unistd.h>

// Sums of 64 rows by 16 columns or 32 by 32 in tiles 0 to 3, A in 4 and 5, weights in 6 and 7; tiles are 16 by 64 bytes.
class Engine {
 public:
  // Products are computed for whole tiles: the rows of A and of the result up to a multiple of this must exist.
  static constexpr int64_t kRows = 16;

  // Other code in this thread may rely on the tiles it has configured: they are put back at the end.
  Engine() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    (void)allowed;
    asm volatile("sttilecfg %0" : "=m"(before_));
    Config config{};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Engine() { asm volatile("ldtilecfg %0" ::"m"(before_)); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // out[rows][block] = a * weights + bias, for one block of 16 or 32 columns.
  //
  // The sums of one part are stored between the first multiplications of the next: on their own, four stores take as
  // long as four multiplications.
  static void multiply(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias,
                       float* out) {
    asm volatile("" ::: "memory");  // tile loads do not say which memory they read
    if (block == 16) product<4, 1>(a, rows, weights, bias, out);
    else product<2, 2>(a, rows, weights, bias, out);
  }

 private:
  struct alignas(64) Config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_;

  template <int Tile>
  [[gnu::always_inline]] static inline void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile));
  }
  template <int Tile>
  [[gnu::always_inline]] static inline void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Sum, int A, int B>
  [[gnu::always_inline]] static inline void accumulate() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
  }

  // A block of Wide * 16 columns, Tall * 16 rows at a time.
  template <int Tall, int Wide>
  static void product(const Matrix& a, int64_t rows, const Element* weights, const float* bias, float* out) {
    float* before = nullptr;
    int stored = 0;
    for (int64_t row = 0; row < rows; row += 16 * Tall) {
      const int tiles = std::min<int64_t>(Tall, (rows - row + 15) / 16);
      part<Tall, Wide>(a, row, tiles, weights, bias, before, stored);
      before = out + row * 16 * Wide;
      stored = tiles;
    }
    flush<Tall, Wide>(before, stored, std::make_integer_sequence<int, Tall * Wide>());
  }

  template <int Tall, int Wide, int... Tile>
  [[gnu::always_inline]] static inline void flush(float* out, int tiles, std::integer_sequence<int, Tile...>) {
    ((Tile / Wide < tiles ? store<Tile>(out + Tile / Wide * 256 * Wide + Tile % Wide * 16, 64 * Wide) : void()), ...);
  }

  template <int Tall, int Wide>
  [[gnu::always_inline]] static inline void part(const Matrix& a, int64_t row, int tiles, const Element* b,
                                                 const float* bias, float* before, int stored) {
    const Element* data = a.data + row * a.row;
    const auto step = [&]<bool First, int... Tile>(const Element* from, std::integer_sequence<int, Tile...>)
                          __attribute__((always_inline)) {
      load<6>(b, 64 * Wide);
      if constexpr (Wide == 2) load<7>(b + 32, 64 * Wide);
      const auto tile = [&]<int Row, int Column>() __attribute__((always_inline)) {
        constexpr int kTile = Row * Wide + Column, kA = 4 + Row % 2;
        if (First && Row < stored) store<kTile>(before + Row * 256 * Wide + Column * 16, 64 * Wide);
        if (Row >= tiles) return;
        if (Column == 0) load<kA>(from + Row * 16 * a.row, a.row * 2);
        // A stride of 0 loads the same 16 biases into every row.
        if (First) load<kTile>(bias + Column * 16, 0);
        accumulate<kTile, kA, 6 + Column>();
      };
      (tile.template operator()<Tile / Wide, Tile % Wide>(), ...);
      b += 32 * 16 * Wide;
    };
    constexpr auto kTiles = std::make_integer_sequence<int, Tall * Wide>();
    step.template operator()<true>(data, kTiles);
    for (int64_t at = 0; at < a.blocks; ++at) {
      for (int64_t k = at == 0 ? 32 : 0; k < a.depth; k += 32)
        step.template operator()<false>(data + at * a.stride + k, kTiles);
    }
  }
};

#elif defined(COLUMNS)

// Sums in registers: COLUMNS columns of 6 to 28 rows, one value of A broadcast to each of them at a time.
class Engine {
 public:
  static constexpr int64_t kRows = 1;

  static void multiply(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias,
                       float* out) {
    part<COLUMNS / 16>(a, rows, weights, block, bias, out, block);
  }

 private:
  template <int Wide>
  static constexpr int kTall = Wide == 4 ? 6 : 28 / Wide;  // a few registers of 32 hold weights and A

  // The columns that are left, `Wide` vectors at a time, then half as many.
  template <int Wide>
  static void part(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias, float* out,
                   int64_t left) {
    for (; left >= 16 * Wide; left -= 16 * Wide) {
      strip<Wide, kTall<Wide>>(a, 0, rows, weights, block, bias, out);
      weights += 16 * Wide * kPair, bias += 16 * Wide, out += 16 * Wide;
    }
    if constexpr (Wide > 1) part<Wide / 2>(a, rows, weights, block, bias, out, left);
  }

  // The rows from `row` on, `Tall` at a time, then half as many.
  template <int Wide, int Tall>
  static void strip(const Matrix& a, int64_t row, int64_t rows, const Element* weights, int64_t block,
                    const float* bias, float* out) {
    for (; row + Tall <= rows; row += Tall)
      tile<Wide, Tall>(a, a.data + row * a.row, weights, block, bias, out + row * block);
    if constexpr (Tall > 1) strip<Wide, Tall / 2>(a, row, rows, weights, block, bias, out);
  }

  template <int Wide, int Tall>
  static void tile(const Matrix& a, const Element* data, const Element* weights, int64_t block, const float* bias,
                   float* out) {
    __m512 sum[Tall][Wide];
#pragma GCC unroll 32
    for (int i = 0; i < Tall * Wide; ++i) sum[i / Wide][i % Wide] = _mm512_loadu_ps(bias + i % Wide * 16);
    for (int64_t at = 0; at < a.blocks; ++at, data += a.stride) {
      for (int64_t k = 0; k < a.depth; k += kPair, weights += block * kPair) {
        __m512 weight[Wide];
#pragma GCC unroll 8
        for (int i = 0; i < Wide; ++i) weight[i] = _mm512_loadu_ps(weights + i * 16 * kPair);
#pragma GCC unroll 32
        for (int row = 0; row < Tall; ++row) {
          const Element* from = data + row * a.row + k;
#pragma GCC unroll 8
          for (int i = 0; i < Wide; ++i) sum[row][i] = accumulate(sum[row][i], from, weight[i]);
        }
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < Tall * Wide; ++i)
      _mm512_storeu_ps(out + i / Wide * block + i % Wide * 16, sum[i / Wide][i % Wide]);
  }

  // sum + a * weight, `a` being one value of f32 or two of bf16 and their products with `weight` added up.
  [[gnu::always_inline]] static inline __m512 accumulate(__m512 sum, const Element* a, __m512 weight) {
#ifdef BF16
    int32_t both;
    std::memcpy(&both, a, sizeof both);
    const auto broadcast = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
    return _mm512_dpbf16_ps(sum, broadcast, reinterpret_cast<__m512bh>(weight));
#else
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), weight, sum);
#endif
  }
};

#else

#include <ATen/native/CPUBlas.h>

// oneDNN's micro-kernels, through PyTorch.
class Engine {
 public:
  static constexpr int64_t kRows = 1;

  Engine() = default;
  ~Engine() { at::native::cpublas::brgemm_release(kPair == 2); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  static void multiply(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias,
                       float* out) {
    for (int64_t at = 0; at < a.blocks; ++at) {
      at::native::cpublas::brgemm(rows, block, a.depth, a.row, block, block, at > 0, a.data + at * a.stride,
                                  weights + at * a.depth * block, out, kPair == 2);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < block; column += 16) {
        float* place = out + row * block + column;
        _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), _mm512_loadu_ps(bias + column)));
      }
    }
  }
};

#endif
