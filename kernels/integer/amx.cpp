// y = dequantise(quantise(x) weight^T) on AMX tiles. While the products of a 32x32 block run, the block before it is
// dequantised and what comes next is fetched: tile, vector and memory units work at the same time.

#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "int8.h"

constexpr int64_t TILE = 16 * CHUNK;  // bytes of a tile: 16 rows of one chunk
constexpr int64_t BLOCK = 32;         // rows and columns of a block: two tiles each way

struct Plan {
    int64_t m, n, k;
    int64_t block_m;  // rows that are quantised together and meet each block of weights while it is in L1
    int64_t block_k;  // as much of k at a time as leaves that block room there
    bool prefetch;    // of the next rows and weights, and of the lines of y unless they are streamed
    bool stream;      // y past the caches
};

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {CHUNK, CHUNK, CHUNK, CHUNK, CHUNK, CHUNK, CHUNK, CHUNK};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A block of sums on its way to y.
template <bool STREAM, typename T>
struct Pending {
    const int32_t* sums;
    const float *scales, *w_scale;
    T* y;
    int64_t rows = 0, columns, pitch, next = 0;

    void until(int64_t row) {
        for (row = std::min(row, rows); next < row; ++next)
            dequantise<STREAM>(sums + next * BLOCK, nullptr, scales[next], w_scale, columns, y + next * pitch);
    }
};

// Lines to be fetched, so many at a time.
struct Lines {
    const char* next;
    int64_t left;

    void fetch(int64_t count) {
        for (count = std::min(count, left), left -= count; count > 0; --count, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
    }
};

// sums[32, 32] = a b, or += if `add`, over `steps` chunks of k: HIGH tiles of a, two of b. beside(s) runs between the
// products. The rows pass by with the streaming hint, so that the weights, which many rows meet, stay in L1: 4.8 to 5.2
// TOP/s where ordinary loads gave 3.0 to 3.4 of a peak of 5.5.
template <int HIGH, typename F>
[[gnu::always_inline]] inline void products(const int8_t* a, int64_t lower, const int8_t* b, int64_t steps, bool add,
                                            int32_t* sums, F&& beside) {
    constexpr int64_t pitch = BLOCK * sizeof(int32_t);
    if (add) {
        _tile_loadd(0, sums, pitch);
        _tile_loadd(1, sums + 16, pitch);
        if constexpr (HIGH == 2) {
            _tile_loadd(2, sums + 16 * BLOCK, pitch);
            _tile_loadd(3, sums + 16 * BLOCK + 16, pitch);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(6, b + 2 * s * TILE, CHUNK);
        _tile_loadd(7, b + (2 * s + 1) * TILE, CHUNK);
        _tile_stream_loadd(4, a + s * TILE, CHUNK);
        if constexpr (HIGH == 2) _tile_stream_loadd(5, a + lower + s * TILE, CHUNK);
        _tile_dpbssd(0, 4, 6);
        if constexpr (HIGH == 2) _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(1, 4, 7);
        if constexpr (HIGH == 2) _tile_dpbssd(3, 5, 7);
        beside(s);
    }
    _tile_stored(0, sums, pitch);
    _tile_stored(1, sums + 16, pitch);
    if constexpr (HIGH == 2) {
        _tile_stored(2, sums + 16 * BLOCK, pitch);
        _tile_stored(3, sums + 16 * BLOCK + 16, pitch);
    }
}

// Buffers of one thread, kept from call to call: fresh ones would cost page faults.
struct Scratch {
    std::vector<int8_t> q;
    std::vector<int32_t> sums;
    std::vector<float> scales;

    template <typename E>
    static E* aligned(std::vector<E>& buffer, int64_t count) {
        buffer.resize(count + CHUNK / sizeof(E));
        const uintptr_t over = -reinterpret_cast<uintptr_t>(buffer.data()) & (CHUNK - 1);
        return buffer.data() + over / sizeof(E);
    }
};

// Rows [row, end) times the columns of the blocks [block, last).
template <bool STREAM, typename T>
static void part(const Plan& p, const T* x, const int8_t* packed, const float* w_scale, T* y, int64_t row, int64_t end,
                 int64_t block, int64_t last) {
    thread_local Scratch scratch;
    const int64_t steps = pieces(p.k, CHUNK), block_steps = std::min(steps, p.block_k / CHUNK);
    const int64_t most = pieces(std::min(p.block_m, end - row), BLOCK) * BLOCK;
    int8_t* const q = Scratch::aligned(scratch.q, most * steps * CHUNK);
    int32_t* const all_sums = Scratch::aligned(scratch.sums, most * BLOCK);
    float* const scales = Scratch::aligned(scratch.scales, most);
    const TileConfig config;
    _tile_loadconfig(&config);
    Pending<STREAM, T> pending;
    for (; row < end; row += p.block_m) {
        const int64_t m = std::min(p.block_m, end - row), high = pieces(m, BLOCK);
        pending.until(BLOCK);
        for (int64_t i = 0; i < m; ++i)
            scales[i] = quantise(x + (row + i) * p.k, p.k, false, q + i / 16 * steps * TILE + i % 16 * CHUNK, TILE);
        const int64_t slots = high * steps;
        const int64_t ahead = std::min(p.block_m, end - row - m) * p.k * sizeof(T) / 64;
        Lines rows{reinterpret_cast<const char*>(x + (row + m) * p.k), ahead};
        for (int64_t b = block; b < last; ++b) {
            const int8_t* weight = packed + b * steps * 2 * TILE;
            Lines weights{reinterpret_cast<const char*>(weight + steps * 2 * TILE), b + 1 < last ? steps * 32 : 0};
            for (int64_t k = 0; k < steps; k += block_steps) {
                const int64_t depth = std::min(block_steps, steps - k);
                const bool done = k + depth == steps;
                for (int64_t i = 0; i < m; i += BLOCK) {
                    const int64_t left = std::min(BLOCK, m - i);
                    T* to = y + (row + i) * p.n + b * BLOCK;
                    const auto beside = [&](int64_t s) {
                        pending.until(BLOCK * (s + 1) / depth);
                        if (p.prefetch) {
                            weights.fetch(pieces(32, high));
                            rows.fetch(pieces(ahead, slots * (last - block)));
                            if (done && !STREAM)
                                for (int64_t r = left * s / depth; r < left * (s + 1) / depth; ++r)
                                    for (uint64_t c = 0; c < BLOCK * sizeof(T); c += 64)
                                        __builtin_prefetch(reinterpret_cast<const char*>(to + r * p.n) + c, 1);
                        }
                    };
                    const int8_t *a = q + (i * steps + k * 16) * CHUNK, *w = weight + k * 2 * TILE;
                    int32_t* sums = all_sums + i * BLOCK;
                    if (left > 16) products<2>(a, steps * TILE, w, depth, k > 0, sums, beside);
                    else products<1>(a, steps * TILE, w, depth, k > 0, sums, beside);
                    if (done)
                        pending = {sums, scales + i, w_scale + b * BLOCK, to, left, std::min(BLOCK, p.n - b * BLOCK), p.n};
                }
            }
        }
    }
    pending.until(BLOCK);
    if constexpr (STREAM) _mm_sfence();
    _tile_release();
}

template <typename T>
static void all(const Plan& p, const T* x, const int8_t* packed, const float* w_scale, T* y) {
    const bool starts_lines = ((reinterpret_cast<uintptr_t>(y) | p.n * sizeof(T)) & 63) == 0;
    const auto compute = p.stream && starts_lines ? part<true, T> : part<false, T>;
    share(p.m, p.block_m, pieces(p.n, BLOCK), [&](int64_t row, int64_t end, int64_t block, int64_t last) {
        compute(p, x, packed, w_scale, y, row, end, block, last);
    });
}

extern "C" {

void linear_f32(const Plan* plan, const float* x, const int8_t* packed, const float* w_scale, float* y) {
    all(*plan, x, packed, w_scale, y);
}

void linear_bf16(const Plan* plan, const bf16* x, const int8_t* packed, const float* w_scale, bf16* y) {
    all(*plan, x, packed, w_scale, y);
}

// weight[n, k] to tiles, zeros around: [n/32][k/64][2], each of 16 rows of four k, [16][16 columns][4 of k].
void pack(const Plan* plan, const int8_t* weight, int8_t* packed) {
    const int64_t steps = pieces(plan->k, CHUNK);
    std::memset(packed, 0, pieces(plan->n, BLOCK) * steps * 2 * TILE);
    for (int64_t j = 0; j < plan->n; ++j)
        for (int64_t i = 0; i < plan->k; ++i) {
            const int64_t tile = (j / BLOCK * steps + i / CHUNK) * 2 + j % BLOCK / 16;
            packed[tile * TILE + i % CHUNK / 4 * 64 + j % 16 * 4 + i % 4] = weight[j * plan->k + i];
        }
}

// Asks the kernel for the tile registers, which Linux gives on request only; false if it refuses.
bool allowed() {
    constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
}
