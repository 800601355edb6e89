// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to y.
//
// What is computed is fixed when this file is compiled: T is the type in memory, STATISTIC what a row is divided by,
// RESIDUAL adds a matrix first and stores the sum, WEIGHT multiplies by a vector, BIAS adds one, SCALED divides all that
// by the root of the layer's number, QUANTISED stores BYTEs (int8_t or fp8) and a scale for each row. So are the ROWS, and
// the VECTORS of each, that go together. Whether to stream and where to prefetch is chosen by `choose`.

#include <cstdlib>

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
template <int COUNT>
struct Block {
    const Plan& plan;
    Operands at;
    const int64_t row;
    const T *const weights = plan.vector(at[WEIGHT_AT], row), *const biases = plan.vector(at[BIAS_AT], row);
    Floats shift[COUNT] = {}, scale[COUNT], offset[COUNT];
    float unit[COUNT];  // of the bytes
    double first[COUNT] = {}, second[COUNT] = {};
    float peak[COUNT] = {};

    int64_t place(int r, int64_t j) const { return (row + r) * plan.cols + j; }
    template <typename N>
    [[gnu::always_inline]] Vector value(int r, int64_t j, N n) const {
        Vector x = load(at[0] + place(r, j), n);
        if constexpr (RESIDUAL) x = x + load(at[RESIDUAL_AT] + place(r, j), n);
        return x;
    }

    // Adds some columns to the sums.
    [[gnu::always_inline]] void add(int64_t begin, int64_t end) {
        Vector sum[COUNT][VECTORS] = {}, square[COUNT][VECTORS] = {}, most[COUNT][VECTORS] = {};
        sweep(begin, end, [&](auto v, int64_t j, auto n) {
            Vector weight{};
            if constexpr (QUANTISED) weight = load(weights + j, n);
            times<COUNT>([&](auto r) {
                Vector d = value(r, j, n);
                if constexpr (CENTRED) d = keep(d - shift[r], n);
                gather(sum[r][v], square[r][v], d);
                if constexpr (QUANTISED) most[r][v] = larger(absolute(d * weight), most[r][v]);
            });
        });
        times<COUNT>([&](auto r) {
            first[r] += sum_of(sum[r]);
            second[r] += sum_of(square[r]);
            if constexpr (QUANTISED) {
                for (int v = 1; v < VECTORS; ++v) most[r][0] = larger(most[r][v], most[r][0]);
                if (const float span = largest(most[r][0]); span > peak[r]) peak[r] = span;
            }
        });
    }

    // From the sums of all columns.
    [[gnu::always_inline]] void find_maps() {
        times<COUNT>([&](auto r) {
            Map map = map_of(static_cast<float>(first[r]), static_cast<float>(second[r]), plan);
            if constexpr (QUANTISED) {
                unit[r] = scale_of(peak[r] * map.scale);
                map.scale /= unit[r];
            }
            scale[r] = broadcast(map.scale);
            offset[r] = broadcast(map.offset);
        });
    }

    template <bool STREAM, int PREFETCH>
    [[gnu::always_inline]] void write(int64_t begin, int64_t end) const {
        Floats gain{};
        if constexpr (SCALED) gain = gain_of(at[LAYER_AT]);
        sweep(begin, end, [&](auto, int64_t j, auto n) {
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
        if constexpr (QUANTISED)
            times<COUNT>([&](auto r) {
                if (begin == 0 && end > 0) reinterpret_cast<float*>(at[SCALE_AT])[row + r] = unit[r];
                // A row with NaN or infinity, which has the scale NaN.
                if (INTEGERS && unit[r] != unit[r])
                    std::memset(reinterpret_cast<int8_t*>(at[Y_AT]) + place(r, begin), 0, end - begin);
            });
    }
};

template <bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row) {
    Block<COUNT> rows{plan, at, row};
    find_shifts(rows.shift, plan.lead, [&](int r, int64_t j, auto n) { return rows.value(r, j, n); });
    spans(plan.cols, [&](int64_t begin, int64_t end) { rows.add(begin, end); });
    rows.find_maps();
    rows.template write<STREAM, PREFETCH>(0, plan.cols);
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

// What a span adds to the sums of its row.
struct Share {
    double lead, first, second;
    float peak;
};

// Every row, thread `me` of `team` having some of its spans. The shares of two successive rows live apart, so that none
// is overwritten that another thread still reads.
template <bool STREAM>
[[gnu::noinline]] void split(const Plan& plan, Operands at, Share* shares, int64_t me, int64_t team) {
    const int64_t cols = plan.cols, count = (cols + SPAN - 1) / SPAN;
    const int64_t from = count * me / team, to = count * (me + 1) / team, end = to * SPAN < cols ? to * SPAN : cols;
    const auto stop = [&](int64_t k) { return (k + 1) * SPAN < cols ? (k + 1) * SPAN : cols; };
    for (int64_t row = 0; row < plan.rows; ++row) {
        Share* const of_row = shares + row % 2 * count;
        Block<1> rows{plan, at, row};
        const auto value = [&](int r, int64_t j, auto n) { return rows.value(r, j, n); };
        if (CENTRED && plan.lead == cols) {
            for (int64_t k = from; k < to; ++k) {
                double sum[1] = {};
                add_span(sum, k * SPAN, stop(k), value);
                of_row[k].lead = sum[0];
            }
#pragma omp barrier
            double sum = 0.0;
            for (int64_t k = 0; k < count; ++k) sum += of_row[k].lead;
            rows.shift[0] = mean_of(sum, cols);
        } else {
            find_shifts(rows.shift, plan.lead, value);
        }
        for (int64_t k = from; k < to; ++k) {
            Block<1> span = rows;
            span.add(k * SPAN, stop(k));
            of_row[k].first = span.first[0];
            of_row[k].second = span.second[0];
            of_row[k].peak = span.peak[0];
        }
#pragma omp barrier
        for (int64_t k = 0; k < count; ++k) {
            rows.first[0] += of_row[k].first;
            rows.second[0] += of_row[k].second;
            if (of_row[k].peak > rows.peak[0]) rows.peak[0] = of_row[k].peak;
        }
        rows.find_maps();
        rows.template write<STREAM, 0>(from * SPAN, end);
    }
    if constexpr (STREAM) _mm_sfence();
}

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(at[Y_AT], plan->cols) || (RESIDUAL && !starts_lines(at[OPERANDS - 1], plan->cols)))
            return all<false, PREFETCH>(plan, operands...);
    const int64_t rows = plan->rows, count = (plan->cols + SPAN - 1) / SPAN;
    const int most = threads_for(rows * plan->cols, rows * count);
    // Where rows are fewer than threads, all share each, if that takes less time than a row does.
    const bool shared = rows < most && rows * ((count + most - 1) / most) < count;
    const int threads = shared || most < rows ? most : static_cast<int>(rows);
    if (threads <= 1) return range<STREAM, PREFETCH>(*plan, at, 0, rows);
    Share* const shares = shared ? static_cast<Share*>(std::malloc(2 * count * sizeof(Share))) : nullptr;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        if (shares) split<STREAM>(*plan, at, shares, me, team);
        else range<STREAM, PREFETCH>(*plan, at, rows * me / team, rows * (me + 1) / team);
    }
    std::free(shares);
}

using Normalise = Entry<Plan, OPERANDS>;
extern "C" Normalise choose(bool stream, int prefetch) {
    return chosen<Normalise>(stream, prefetch, [](auto streams, auto level) -> Normalise { return all<streams, level>; });
}
