// y = dequantise(quantise(x) weight^T): rows of x become int8 in cache, oneDNN's micro-kernels multiply them with packed
// weights, and each block of int32 sums is dequantised while it is still in cache.

#include <ATen/native/CPUBlas.h>
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace blas = at::native::cpublas;

constexpr int64_t STEP = 64;  // bytes of k that one tile instruction takes; k is padded to it with zeros

struct Plan {
    int64_t m, n, k;
    int64_t block_m, block_n, block_k;
    bool offset;  // activations are stored as q + 128, unsigned: what VNNI can multiply with signed weights
};

struct bf16 {
    uint16_t bits;
};

static int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

static __m512 load(const float* from, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
static __m512 load(const bf16* from, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16));
}
static void store(float* to, __m512 v, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, v); }
static void store(bf16* to, __m512 v, __mmask16 lanes) {
    // Round half to even; the values are finite.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}
static __mmask16 lanes(int64_t left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u); }

// One row of x to q, of which `padded` bytes are written; returns its scale.
template <typename T>
static float quantise(const T* x, int64_t k, int64_t padded, bool offset, int8_t* q) {
    __m512 largest[4] = {};
    int64_t j = 0;
    for (; j + 64 <= k; j += 64)
        for (int v = 0; v < 4; ++v)
            largest[v] = _mm512_max_ps(largest[v], _mm512_abs_ps(load(x + j + 16 * v, 0xffff)));
    for (; j < k; j += 16) largest[0] = _mm512_max_ps(largest[0], _mm512_abs_ps(load(x + j, lanes(k - j))));
    const float absmax = _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));

    const __m512 inverse = _mm512_set1_ps(absmax > 0.0f ? 127.0f / absmax : 0.0f);
    const __m128i sign = _mm_set1_epi8(offset ? -128 : 0);
    for (j = 0; j < padded; j += 16) {
        const __mmask16 some = j < k ? lanes(k - j) : __mmask16{0};
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + j, some), inverse));
        _mm_storeu_si128((__m128i*)(q + j), _mm_xor_si128(_mm512_cvtepi32_epi8(rounded), sign));
    }
    return absmax / 127.0f;
}

// y[j] = (sums[j] - correction[j]) scale w_scale[j] for the n columns of a block.
template <typename T>
static void dequantise(const int32_t* sums, const int32_t* correction, float scale, const float* w_scale, int64_t n, T* y) {
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 some = lanes(n - j);
        __m512i sum = _mm512_loadu_si512(sums + j);
        if (correction) sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(correction + j));
        const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale), load(w_scale + j, some));
        store(y + j, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), factor), some);
    }
}

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
    const int64_t padded = up(p.k, STEP), pitch = padded + STEP;  // rows 4 KiB apart would meet in the same cache sets
    scratch.q.resize(p.block_m * pitch);
    scratch.sums.resize(p.block_m * p.block_n);
    scratch.scales.resize(p.block_m);
    for (; row < end; row += p.block_m) {
        const int64_t m = std::min(p.block_m, end - row);
        for (int64_t i = 0; i < m; ++i)
            scratch.scales[i] = quantise(x + (row + i) * p.k, p.k, padded, p.offset, &scratch.q[i * pitch]);
        for (int64_t b = block; b < last; ++b) {
            const int8_t* weight = packed + b * padded * p.block_n;
            for (int64_t k = 0; k < padded; k += p.block_k)
                multiply(p, m, std::min(p.block_k, padded - k), pitch, k > 0, &scratch.q[k], weight + k * p.block_n,
                         scratch.sums.data());
            const int64_t column = b * p.block_n, n = std::min(p.block_n, p.n - column);
            for (int64_t i = 0; i < m; ++i)
                dequantise(&scratch.sums[i * p.block_n], p.offset ? correction + column : nullptr, scratch.scales[i],
                           w_scale + column, n, y + (row + i) * p.n + column);
        }
    }
    blas::brgemm_release();
}

// Threads form a grid: rows are divided first, down to one block each, then columns.
template <typename T>
static void all(const Plan& p, const T* x, const int8_t* packed, const int32_t* correction, const float* w_scale, T* y) {
    const int64_t blocks = up(p.n, p.block_n) / p.block_n;
    const int64_t threads = omp_get_max_threads();
    const int64_t down = std::clamp<int64_t>(up(p.m, p.block_m) / p.block_m, 1, threads);
    const int64_t across = std::clamp<int64_t>(threads / down, 1, blocks);
    if (down * across == 1) return part(p, x, packed, correction, w_scale, y, 0, p.m, 0, blocks);
#pragma omp parallel for num_threads(down * across) schedule(static)
    for (int64_t t = 0; t < down * across; ++t) {
        const int64_t i = t / across, j = t % across;
        part(p, x, packed, correction, w_scale, y, p.m * i / down, p.m * (i + 1) / down, blocks * j / across,
             blocks * (j + 1) / across);
    }
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
    const int64_t padded = up(plan->k, STEP), width = plan->block_n;
    std::memset(packed, 0, up(plan->n, width) * padded);
    std::memset(correction, 0, up(plan->n, width) * sizeof(int32_t));
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
    const std::vector<int8_t> q(STEP), weight(STEP * plan->block_n);
    std::vector<int32_t> sums(plan->block_n);
    try {
        multiply(*plan, 1, STEP, STEP, false, q.data(), weight.data(), sums.data());
        blas::brgemm_release();
        return nullptr;
    } catch (const std::exception& failure) {
        reason = failure.what();
        return reason.c_str();
    }
}
}
