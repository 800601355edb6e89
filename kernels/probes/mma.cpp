// The peak of the matrix unit: products of tiles that never leave their registers, `steps` times for every 32x32 block.
#include "tiles.h"

namespace {

template <bool Int8>
void run(const char* x, const char* w, char* y, int64_t m, int64_t n, int64_t steps) {
#pragma omp parallel
  {
    const tiles::Configured configured;
#pragma omp for collapse(2)
    for (int64_t row = 0; row < m; row += tiles::kBlock)
      for (int64_t column = 0; column < n; column += tiles::kBlock) {
        const char* rows = x + row * tiles::kStepBytes;
        const char* columns = w + column * 2 * tiles::kTileBytes / tiles::kBlock;
        _tile_loadd(4, rows, tiles::kStepBytes);
        _tile_loadd(5, rows + tiles::kTileBytes, tiles::kStepBytes);
        _tile_loadd(6, columns, 64);
        _tile_loadd(7, columns + tiles::kTileBytes, 64);
        tiles::zero();
        for (int64_t step = 0; step < steps; ++step) tiles::multiply<Int8>();
        tiles::store(y + (row * n + column) * 4, n * 4);
      }
  }
}

}  // namespace

extern "C" int amx_mma(const char* x, const char* w, char* y, int64_t m, int64_t n, int64_t steps, int int8) {
  if (!tiles::granted()) return 1;
  (int8 ? run<true> : run<false>)(x, w, y, m, n, steps);
  return 0;
}
