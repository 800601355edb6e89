// AMX tiles: permission, configuration, and the 2x2 block of products that every kernel here is made of.
// Tiles 0-3 hold 32x32 sums, 4 and 5 two times 16 rows of x, 6 and 7 two times 16 columns of w (16 rows of 64 bytes,
// each with 2 bf16 or 4 int8 values of k per column).
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace tiles {

constexpr int64_t kBlock = 32;        // rows and columns of a block of sums
constexpr int64_t kTileBytes = 1024;  // 16 rows of 64 bytes
constexpr int64_t kStepBytes = 64;    // what one step takes of each row of x

struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Whether Linux lets this process use the tiles (ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA): asked for once.
inline bool granted() {
  static const bool yes = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return yes;
}

// Configures the tiles of this thread, and gives them back as they were: oneDNN remembers what it configured.
class Configured {
 public:
  Configured() {
    _tile_storeconfig(&before_);
    const Config ours;
    _tile_loadconfig(&ours);
  }
  ~Configured() { _tile_loadconfig(&before_); }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;

 private:
  Config before_;
};

inline __attribute__((always_inline)) void zero() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <bool Int8>
inline __attribute__((always_inline)) void multiply() {
  if constexpr (Int8) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The sums of a block, row by row of 32, to rows that are `stride` bytes apart.
inline __attribute__((always_inline)) void store(char* to, int64_t stride) {
  _tile_stored(0, to, stride);
  _tile_stored(1, to + 64, stride);
  _tile_stored(2, to + 16 * stride, stride);
  _tile_stored(3, to + 16 * stride + 64, stride);
}

inline __attribute__((always_inline)) void load(const char* from, int64_t stride) {
  _tile_loadd(0, from, stride);
  _tile_loadd(1, from + 64, stride);
  _tile_loadd(2, from + 16 * stride, stride);
  _tile_loadd(3, from + 16 * stride + 64, stride);
}

}  // namespace tiles
