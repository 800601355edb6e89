// The two matrix products of a fused block: A, rows of 16 bits or 32, times packed weights plus bias, to f32.
//
// Weights are packed in blocks of `block` columns, each of them [K / pair][block][pair] with pair = 2 for bf16 and 1
// for f32. A is split along K into blocks of `depth` columns, `stride` elements apart (one block where A is one matrix).
#pragma once

#include <cstdint>
#include <immintrin.h>

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

// Tiles of 16 rows, 64 bytes each: 0 to 3 accumulate, 4 and 5 hold rows of A, 6 and 7 columns of the weights.
class Engine {
 public:
  // Products are computed for whole tiles: the rows of A and of the result up to a multiple of this must exist.
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kColumns = 32;

  // Other code in this thread may rely on the tiles it has configured: they are put back at the end.
  Engine() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    (void)allowed;
    _tile_storeconfig(&before_);
    Config config{};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
  }
  ~Engine() { _tile_loadconfig(&before_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // out[rows][block] (rows `ld` apart) = a * weights + bias, for one block of columns.
  static void multiply(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias,
                       float* out, int64_t ld) {
    for (int64_t column = 0; column < block; column += kColumns) {
      const Element* b = weights + column * kPair;
      int64_t row = 0;
      for (; row + 16 < rows; row += 32) tiles<2>(a, row, b, block, bias + column, out + row * ld + column, ld);
      if (row < rows) tiles<1>(a, row, b, block, bias + column, out + row * ld + column, ld);
    }
  }

 private:
  struct alignas(64) Config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_{};

  template <int Tall>
  static inline void tiles(const Matrix& a, int64_t row, const Element* b, int64_t block, const float* bias, float* out,
                           int64_t ld) {
    // A stride of 0 loads the same 16 biases into every row.
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    if constexpr (Tall == 2) {
      _tile_loadd(2, bias, 0);
      _tile_loadd(3, bias + 16, 0);
    }
    for (int64_t at = 0; at < a.blocks; ++at) {
      const Element* data = a.data + at * a.stride + row * a.row;
      for (int64_t k = 0; k < a.depth; k += 32, b += 32 * block) {
        _tile_loadd(6, b, block * 4);
        _tile_loadd(7, b + 32, block * 4);
        _tile_loadd(4, data + k, a.row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Tall == 2) {
          _tile_loadd(5, data + 16 * a.row + k, a.row * 2);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, out, ld * 4);
    _tile_stored(1, out + 16, ld * 4);
    if constexpr (Tall == 2) {
      _tile_stored(2, out + 16 * ld, ld * 4);
      _tile_stored(3, out + 16 * ld + 16, ld * 4);
    }
  }
};

#else

#include <ATen/native/CPUBlas.h>

// oneDNN's micro-kernels, through PyTorch.
class Engine {
 public:
  static constexpr int64_t kRows = 1;
  static constexpr int64_t kColumns = 16;

  Engine() = default;
  ~Engine() { at::native::cpublas::brgemm_release(kPair == 2); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  static void multiply(const Matrix& a, int64_t rows, const Element* weights, int64_t block, const float* bias,
                       float* out, int64_t ld) {
    for (int64_t at = 0; at < a.blocks; ++at) {
      at::native::cpublas::brgemm(rows, block, a.depth, a.row, block, ld, at > 0, a.data + at * a.stride,
                                  weights + at * a.depth * block, out, kPair == 2);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < block; column += 16) {
        float* place = out + row * ld + column;
        _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), _mm512_loadu_ps(bias + column)));
      }
    }
  }
};

#endif
