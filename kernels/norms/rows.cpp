// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to y.
//
// What is computed is fixed when this file is compiled: T is the type in memory, STATISTIC what a row is divided by,
// RESIDUAL adds a matrix first and stores the sum, WEIGHT multiplies by a vector, BIAS adds one, QUANTISED stores 8-bit
// integers and a scale for each row. So are the ROWS, and the VECTORS of each, that go together. Whether to stream and
// where to prefetch is chosen by `choose`.

#include "statistics.h"

#ifndef QUANTISED
#define QUANTISED 0
#endif

// Where the operands are in the op's order: x, [residual,] [weight,] [bias,] y [, scale] [, h].
constexpr int RESIDUAL_AT = 1, WEIGHT_AT = 1 + RESIDUAL, BIAS_AT = WEIGHT_AT + WEIGHT;
constexpr int Y_AT = BIAS_AT + BIAS, SCALE_AT = Y_AT + 1, H_AT = SCALE_AT + QUANTISED, OPERANDS = H_AT + RESIDUAL;
using Operands = T* const (&)[OPERANDS];

// The largest magnitude of a row as the scale of its integers, the smallest being one f32 rounding of 1; NaN stays.
inline float scale_of(float peak) {
    const float scale = peak / 127.0f;
    return scale < 0x1p-23f ? 0x1p-23f : scale;
}

// COUNT rows from `row` on: they share the loads of weight and bias.
template <bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row) {
    const int64_t cols = plan.cols;
    const auto place = [&](int r, int64_t j) { return (row + r) * cols + j; };
    const auto value = [&](int r, int64_t j, auto n) {
        Vector x = load(at[0] + place(r, j), n);
        if constexpr (RESIDUAL) x = x + load(at[RESIDUAL_AT] + place(r, j), n);
        return x;
    };
    Floats shift[COUNT] = {};
    find_shifts(shift, plan.lead, value);

    Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    Vector peak[COUNT][VECTORS] = {};
    sweep(cols, [&](auto v, int64_t j, auto n) {
        Vector weight{};
        if constexpr (QUANTISED) weight = load(at[WEIGHT_AT] + j, n);
        times<COUNT>([&](auto r) {
            Vector d = value(r, j, n);
            if constexpr (CENTRED) d = keep(d - shift[r], n);
            if constexpr (STATISTIC != MEAN_SQUARE) first[r][v] = first[r][v] + d;
            if constexpr (STATISTIC == MEAN_DISTANCE) second[r][v] = second[r][v] + absolute(d);
            else second[r][v] = fma(d, d, second[r][v]);
            if constexpr (QUANTISED) peak[r][v] = larger(absolute(d * weight), peak[r][v]);
        });
    });

    Floats scale[COUNT], offset[COUNT];
    times<COUNT>([&](auto r) {
        Map map = map_of(sum_of(first[r]), sum_of(second[r]), plan);
        if constexpr (QUANTISED) {
            for (int v = 1; v < VECTORS; ++v) peak[r][0] = larger(peak[r][v], peak[r][0]);
            const float unit = scale_of(largest(peak[r][0]) * map.scale);
            reinterpret_cast<float*>(at[SCALE_AT])[row + r] = unit;
            map.scale /= unit;
        }
        scale[r] = broadcast(map.scale);
        offset[r] = broadcast(map.offset);
    });

    sweep(cols, [&](auto, int64_t j, auto n) {
        Vector weight{}, bias{};
        if constexpr (WEIGHT) weight = load(at[WEIGHT_AT] + j, n);
        if constexpr (BIAS) bias = load(at[BIAS_AT] + j, n);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[0] + place(r + COUNT, j));
            if constexpr (RESIDUAL) fetch<PREFETCH>(at[RESIDUAL_AT] + place(r + COUNT, j));
            const Vector x = value(r, j, n);
            if constexpr (RESIDUAL) put<STREAM>(at[H_AT] + place(r, j), x, n);
            Vector y;
            if constexpr (CENTRED) y = fma(x - shift[r], scale[r], offset[r]);
            else y = x * scale[r];
            if constexpr (BIAS) y = fma(y, weight, bias);
            else if constexpr (WEIGHT) y = y * weight;
            if constexpr (QUANTISED) store(reinterpret_cast<int8_t*>(at[Y_AT]) + place(r, j), y, n);
            else put<STREAM>(at[Y_AT] + place(r, j), y, n);
        });
    });
    if constexpr (QUANTISED)
        times<COUNT>([&](auto r) {
            // A row with NaN or infinity, which has the scale NaN.
            if (const float unit = reinterpret_cast<float*>(at[SCALE_AT])[row + r]; unit != unit)
                std::memset(reinterpret_cast<int8_t*>(at[Y_AT]) + place(r, 0), 0, cols);
        });
}

// The rows that are left; compiled once for all ways to store and to prefetch.
[[gnu::noinline]] void single(const Plan& plan, Operands at, int64_t row, int64_t end) {
    for (; row < end; ++row) block<false, 0, 1>(plan, at, row);
}

template <bool STREAM, int PREFETCH>
void range(const Plan& plan, Operands at, int64_t row, int64_t end) {
    for (; row + ROWS <= end; row += ROWS) block<STREAM, PREFETCH, ROWS>(plan, at, row);
    if (row < end) single(plan, at, row, end);
    if constexpr (STREAM) _mm_sfence();
}

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(at[Y_AT], plan->cols) || (RESIDUAL && !starts_lines(at[OPERANDS - 1], plan->cols)))
            return all<false, PREFETCH>(plan, operands...);
    const int64_t rows = plan->rows;
    const int threads = threads_for(rows * plan->cols, rows);
    if (threads == 1) return range<STREAM, PREFETCH>(*plan, at, 0, rows);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        range<STREAM, PREFETCH>(*plan, at, rows * me / team, rows * (me + 1) / team);
    }
}

using Normalise = Entry<Plan, OPERANDS>;
extern "C" Normalise choose(bool stream, int prefetch) {
    return chosen<Normalise>(stream, prefetch, [](auto streams, auto level) -> Normalise { return all<streams, level>; });
}
