// y = dequantise(quantise(x) weight^T): rows of x become int8 in cache, oneDNN's micro-kernels multiply them with packed
// weights, and each block of int32 sums is dequantised while it is still in cache.

#include <ATen/native/CPUBlas.h>

#include <exception>
#include <string>
#include <vector>

#include "int8.h"

namespace blas = at::native::cpublas;

struct Plan {
    int64_t m, n, k;
    int64_t block_m, block_n, block_k;
    bool offset;  // activations are stored as q + 128, unsigned: what VNNI can multiply with signed weights
};

static void multiply(const Plan& p, int64_t m, int64_t k, int64_t pitch, bool add, const int8_t* q, const int8_t* w,
                     int32_t* sums) {
    const auto* b = reinterpret_cast<const signed char*>(w);
    if (p.offset)
        blas::brgemm(m, p.block_n, k, pitch, p.block_n, p.block_n, add, reinterpret_cast<const unsigned char*>(q), b, sums);
    else
        blas::brgemm(m, p.block_n, k, pitch, p.block_n, p.block_n, add, reinterpret_cast<const signed char*>(q), b, sums);
}

// Buffers of one thread, kept from call to call: fresh ones would cost page faults.
struct Scratch {
    std::vector<int8_t> q;
    std::vector<int32_t> sums;
    std::vector<float> scales;
};

// Rows [row, end) times the columns of the blocks [block, last).
template <typename T>
static void part(const Plan& p, const T* x, const int8_t* packed, const int32_t* correction, const float* w_scale, T* y,
                 int64_t row, int64_t end, int64_t block, int64_t last) {
    thread_local Scratch scratch;
    const int64_t padded = pieces(p.k, CHUNK) * CHUNK, pitch = padded + CHUNK;  // rows 4 KiB apart would meet in the same cache sets
    scratch.q.resize(p.block_m * pitch);
    scratch.sums.resize(p.block_m * p.block_n);
    scratch.scales.resize(p.block_m);
    for (; row < end; row += p.block_m) {
        const int64_t m = std::min(p.block_m, end - row);
        for (int64_t i = 0; i < m; ++i)
            scratch.scales[i] = quantise(x + (row + i) * p.k, p.k, p.offset, &scratch.q[i * pitch], CHUNK);
        for (int64_t b = block; b < last; ++b) {
            const int8_t* weight = packed + b * padded * p.block_n;
            for (int64_t k = 0; k < padded; k += p.block_k)
                multiply(p, m, std::min(p.block_k, padded - k), pitch, k > 0, &scratch.q[k], weight + k * p.block_n,
                         scratch.sums.data());
            const int64_t column = b * p.block_n, n = std::min(p.block_n, p.n - column);
            for (int64_t i = 0; i < m; ++i)
                dequantise<false>(&scratch.sums[i * p.block_n], p.offset ? correction + column : nullptr, scratch.scales[i],
                           w_scale + column, n, y + (row + i) * p.n + column);
        }
    }
    blas::brgemm_release();
}

template <typename T>
static void all(const Plan& p, const T* x, const int8_t* packed, const int32_t* correction, const float* w_scale, T* y) {
    share(p.m, p.block_m, pieces(p.n, p.block_n), [&](int64_t row, int64_t end, int64_t block, int64_t last) {
        part(p, x, packed, correction, w_scale, y, row, end, block, last);
    });
}

extern "C" {

void linear_f32(const Plan* plan, const float* x, const int8_t* packed, const int32_t* correction, const float* w_scale,
                float* y) {
    all(*plan, x, packed, correction, w_scale, y);
}

void linear_bf16(const Plan* plan, const bf16* x, const int8_t* packed, const int32_t* correction, const float* w_scale,
                 bf16* y) {
    all(*plan, x, packed, correction, w_scale, y);
}

// weight[n, k] to blocks of block_n columns, each [k/4][block_n][4] as VNNI and AMX read it, zeros around; and 128 times
// the sum of each column, which is what the offset of the activations adds to a product.
void pack(const Plan* plan, const int8_t* weight, int8_t* packed, int32_t* correction) {
    const int64_t padded = pieces(plan->k, CHUNK) * CHUNK, width = plan->block_n;
    const int64_t columns = pieces(plan->n, width) * width;
    std::memset(packed, 0, columns * padded);
    std::memset(correction, 0, columns * sizeof(int32_t));
    for (int64_t j = 0; j < plan->n; ++j) {
        int8_t* column = packed + j / width * width * padded + j % width * 4;
        for (int64_t i = 0; i < plan->k; ++i) {
            column[i / 4 * width * 4 + i % 4] = weight[j * plan->k + i];
            correction[j] += 128 * weight[j * plan->k + i];
        }
    }
}

// Why oneDNN does not multiply int8 here, or null: a brgemm that it refuses throws, which ends a parallel region.
const char* refusal(const Plan* plan) {
    static std::string reason;
    const std::vector<int8_t> q(CHUNK), weight(CHUNK * plan->block_n);
    std::vector<int32_t> sums(plan->block_n);
    try {
        multiply(*plan, 1, CHUNK, CHUNK, false, q.data(), weight.data(), sums.data());
        blas::brgemm_release();
        return nullptr;
    } catch (const std::exception& failure) {
        reason = failure.what();
        return reason.c_str();
    }
}
}
