// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to y.
//
// What is computed is fixed when this file is compiled: T is the type in memory, STATISTIC what a row is divided by,
// RESIDUAL adds a matrix first and stores the sum, WEIGHT multiplies by a vector, BIAS adds one, SCALED divides all that
// by the root of the layer's number, QUANTISED stores BYTEs (int8_t or fp8) and a scale for each row. So are the ROWS, and
// the VECTORS of each, that go together. Whether to stream and where to prefetch is chosen by `choose`.

#include "statistics.h"

#ifndef QUANTISED
#define QUANTISED 0
#define BYTE int8_t
#endif

// Where the operands are in the op's order: x, [residual,] [weight,] [bias,] [layer,] y [, scale] [, h].
constexpr int RESIDUAL_AT = 1, WEIGHT_AT = 1 + RESIDUAL, BIAS_AT = WEIGHT_AT + WEIGHT, LAYER_AT = BIAS_AT + BIAS;
constexpr int Y_AT = LAYER_AT + SCALED, SCALE_AT = Y_AT + 1, H_AT = SCALE_AT + QUANTISED, OPERANDS = H_AT + RESIDUAL;
using Operands = T* const (&)[OPERANDS];

// The largest number that a BYTE holds, and the smallest scale of a row: one f32 rounding of 1 for integers, for fp8 what
// makes a row's peak the least number.
constexpr bool INTEGERS = std::is_same_v<BYTE, int8_t>;
constexpr float LARGEST = INTEGERS ? 127.0f : 448.0f, LEAST_SCALE = INTEGERS ? 0x1p-23f : 0x1p-9f / 448.0f;

// From the largest magnitude of a row; NaN stays.
inline float scale_of(float peak) {
    const float scale = peak / LARGEST;
    return scale < LEAST_SCALE ? LEAST_SCALE : scale;
}

// COUNT rows from `row` on, of one group: they share the loads of weight and bias.
template <bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row) {
    const int64_t cols = plan.cols;
    const T *const weights = plan.vector(at[WEIGHT_AT], row), *const biases = plan.vector(at[BIAS_AT], row);
    Floats gain{};
    if constexpr (SCALED) gain = gain_of(at[LAYER_AT]);
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
        if constexpr (QUANTISED) weight = load(weights + j, n);
        times<COUNT>([&](auto r) {
            Vector d = value(r, j, n);
            if constexpr (CENTRED) d = keep(d - shift[r], n);
            gather(first[r][v], second[r][v], d);
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
        if constexpr (WEIGHT) weight = load(weights + j, n);
        if constexpr (BIAS) bias = load(biases + j, n);
        if constexpr (SCALED) weight = weight * gain;
        if constexpr (SCALED) bias = bias * gain;
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
            if constexpr (QUANTISED) store_bytes(reinterpret_cast<BYTE*>(at[Y_AT]) + place(r, j), y, n);
            else put<STREAM>(at[Y_AT] + place(r, j), y, n);
        });
    });
    if constexpr (QUANTISED && INTEGERS)
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
    while (row < end) {
        const int64_t next = (row / plan.group() + 1) * plan.group(), stop = next < end ? next : end;
        for (; row + ROWS <= stop; row += ROWS) block<STREAM, PREFETCH, ROWS>(plan, at, row);
        if (row < stop) single(plan, at, row, stop);
        row = stop;
    }
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
