// y[m,n] = x[m,k] w[k,n] on AMX tiles: bf16 with f32 sums, rounded once to bf16, or int8 with int32 sums.
//
// 32 rows of x stay in the first-level cache while w, packed in the order of its tiles, streams by: a tile load with the
// streaming hint leaves those rows alone (2.3 to 3.0 TFLOP/s in the inner loop). Sums are rounded to bf16 while the next
// block's products run.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tiles.h"

namespace {

struct Product {
  const char *x, *w;  // w: [n / 32][steps][2 tiles], zero-padded
  char* y;
  int64_t m, n, row_bytes;
  int64_t column_block, step_block;  // columns of w taken together, and steps of 64 bytes of k
  int64_t steps() const { return (row_bytes + tiles::kStepBytes - 1) / tiles::kStepBytes; }
};

// 32 rows of x as tile loads want them: where they are, or a zero-padded copy if rows or bytes are missing.
struct Rows {
  const char* base;
  int64_t stride, step, lower;  // bytes between rows, between steps, and from row 0 to row 16
};

Rows rows_of(const Product& p, int64_t row, char* copy) {
  const char* from = p.x + row * p.row_bytes;
  const int64_t present = std::min(tiles::kBlock, p.m - row);
  if (present == tiles::kBlock && p.row_bytes % tiles::kStepBytes == 0)
    return {from, p.row_bytes, tiles::kStepBytes, 16 * p.row_bytes};
  const int64_t padded = p.steps() * tiles::kStepBytes;
  std::memset(copy, 0, tiles::kBlock * padded);
  for (int64_t r = 0; r < present; ++r) std::memcpy(copy + r * padded, from + r * p.row_bytes, p.row_bytes);
  return {copy, padded, tiles::kStepBytes, 16 * padded};
}

// A finished block of 32x32 sums on its way to y, row by row: bf16 is rounded from f32, int32 is only moved.
template <bool Int8>
struct Block {
  const char* sums = nullptr;
  char* to = nullptr;
  int64_t stride = 0;
  int64_t rows = 0, columns = 0, next = 0;

  bool pending() const { return next < rows; }

  void move_row() {
    const char* from = sums + next * 128;
    char* row = to + next++ * stride;
    const uint32_t mask = columns == 32 ? ~0u : (1u << columns) - 1;
    if constexpr (Int8) {
      _mm512_mask_storeu_epi32(row, static_cast<__mmask16>(mask), _mm512_load_si512(from));
      _mm512_mask_storeu_epi32(row + 64, static_cast<__mmask16>(mask >> 16), _mm512_load_si512(from + 64));
    } else {
      const __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + 64);
      _mm512_mask_storeu_epi16(row, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }

  void move_all() {
    while (pending()) move_row();
  }
};

template <bool Stream>
inline __attribute__((always_inline)) void load_operands(const Rows& rows, const char* a, const char* b) {
  if constexpr (Stream) {
    _tile_stream_loadd(6, b, 64);
    _tile_loadd(4, a, rows.stride);
    _tile_stream_loadd(7, b + tiles::kTileBytes, 64);
  } else {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, rows.stride);
    _tile_loadd(7, b + tiles::kTileBytes, 64);
  }
  _tile_loadd(5, a + rows.lower, rows.stride);
}

using Buffer = std::unique_ptr<char, decltype(&std::free)>;

Buffer buffer(size_t bytes) { return {static_cast<char*>(std::aligned_alloc(64, bytes)), std::free}; }

// What one thread needs: two blocks of sums in turn, sums between blocks of k, and rows of x that had to be padded.
struct Scratch {
  explicit Scratch(const Product& p)
      : blocks(buffer(2 * kBlockBytes)),
        between(buffer(p.column_block / tiles::kBlock * kBlockBytes)),
        rows(buffer(tiles::kBlock * p.steps() * tiles::kStepBytes)) {}
  static constexpr int64_t kBlockBytes = 4 * tiles::kTileBytes;
  Buffer blocks, between, rows;
};

// 32 rows of y, in the columns from `first` on that are taken together.
template <bool Int8, bool Stream>
void panel(const Product& p, int64_t row, int64_t first, const Scratch& scratch) {
  constexpr int64_t kSize = Int8 ? 4 : 2, kRow = 128;  // bytes of an element of y, of a row of sums
  const Rows rows = rows_of(p, row, scratch.rows.get());
  const int64_t steps = p.steps(), last = std::min(p.n, first + p.column_block);
  const int64_t moves = (tiles::kBlock + p.step_block - 1) / p.step_block;
  Block<Int8> done;
  int turn = 0;
  for (int64_t start = 0; start < steps; start += p.step_block) {
    const int64_t stop = std::min(steps, start + p.step_block);
    for (int64_t column = first; column < last; column += tiles::kBlock) {
      char* between = scratch.between.get() + (column - first) * kRow;
      const char* a = rows.base + start * tiles::kStepBytes;
      const char* b = p.w + (column / tiles::kBlock * steps + start) * 2 * tiles::kTileBytes;
      if (start == 0)
        tiles::zero();
      else
        tiles::load(between, kRow);
      for (int64_t step = start; step < stop; ++step) {
        load_operands<Stream>(rows, a, b);
        tiles::multiply<Int8>();
        a += tiles::kStepBytes;
        b += 2 * tiles::kTileBytes;
        for (int64_t move = 0; move < moves && done.pending(); ++move) done.move_row();
      }
      if (stop < steps) {
        tiles::store(between, kRow);
        continue;
      }
      done.move_all();
      char* to = p.y + (row * p.n + column) * kSize;
      const int64_t height = std::min(tiles::kBlock, p.m - row), width = std::min(tiles::kBlock, p.n - column);
      if (Int8 && height == tiles::kBlock && width == tiles::kBlock) {
        tiles::store(to, p.n * kSize);
        continue;
      }
      char* sums = scratch.blocks.get() + turn * Scratch::kBlockBytes;
      tiles::store(sums, kRow);
      done = {sums, to, p.n * kSize, height, width};
      turn ^= 1;
    }
  }
  done.move_all();
}

template <bool Int8, bool Stream>
void multiply(const Product& p) {
#pragma omp parallel if (omp_get_max_threads() > 1)
  {
    const tiles::Configured configured;
    const Scratch scratch(p);
#pragma omp for collapse(2)
    for (int64_t first = 0; first < p.n; first += p.column_block)
      for (int64_t row = 0; row < p.m; row += tiles::kBlock) panel<Int8, Stream>(p, row, first, scratch);
  }
}

}  // namespace

extern "C" int amx_matmul(const char* x, const char* w, char* y, int64_t m, int64_t n, int64_t row_bytes,
                          int64_t column_block, int64_t k_bytes, int int8, int stream) {
  if (!tiles::granted()) return 1;
  const Product p{x, w, y, m, n, row_bytes, column_block, k_bytes / tiles::kStepBytes};
  if (int8)
    (stream ? multiply<true, true> : multiply<true, false>)(p);
  else
    (stream ? multiply<false, true> : multiply<false, false>)(p);
  return 0;
}
