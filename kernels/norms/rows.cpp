// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to y.
//
// What is computed is fixed when this file is compiled: T is the type in memory, STATISTIC what a row is divided by,
// RESIDUAL adds a matrix first and stores the sum, WEIGHT multiplies by a vector, BIAS adds one, SCALED divides all that
// by the root of the layer's number, QUANTISED stores BYTEs (int8_t or fp8) and a scale for each row. So are the ROWS, and
// the VECTORS of each, that go together, and whether threads may share a row (SPLIT, half a second more of compilation).
// Whether to stream and where to prefetch is chosen by `choose`.

#include <cstdlib>

#include "statistics.h"

#ifndef QUANTISED
#define QUANTISED 0
#define BYTE int8_t
#endif
#ifndef SPLIT
#define SPLIT 0
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

// COUNT rows from `row` on, of one group: they share the loads of weight and bias. `columns` are those of this thread.
template <bool STREAM, int PREFETCH, int COUNT, typename Columns = Whole>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row, const Columns& columns = {}) {
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
    find_shifts(shift, plan.lead, value, columns);

    Sums<COUNT> sums;
    columns.total(cols, sums, [&](int64_t begin, int64_t end) {
        Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
        Vector peak[COUNT][VECTORS] = {};
        sweep(begin, end, [&](auto v, int64_t j, auto n) {
            Vector weight{};
            if constexpr (QUANTISED) weight = load(weights + j, n);
            times<COUNT>([&](auto r) {
                Vector d = value(r, j, n);
                if constexpr (CENTRED) d = keep(d - shift[r], n);
                gather(first[r][v], second[r][v], d);
                if constexpr (QUANTISED) peak[r][v] = larger(absolute(d * weight), peak[r][v]);
            });
        });
        Sums<COUNT> span;
        times<COUNT>([&](auto r) {
            span.first[r] = sum_of(first[r]);
            span.second[r] = sum_of(second[r]);
            if constexpr (QUANTISED) {
                for (int v = 1; v < VECTORS; ++v) peak[r][0] = larger(peak[r][v], peak[r][0]);
                span.peak[r] = largest(peak[r][0]);
            }
        });
        return span;
    });

    Floats scale[COUNT], offset[COUNT];
    float unit[COUNT] = {};
    const int64_t begin = columns.begin(cols), end = columns.end(cols);
    times<COUNT>([&](auto r) {
        Map map = map_of(sums.first[r], sums.second[r], plan);
        if constexpr (QUANTISED) {
            unit[r] = scale_of(sums.peak[r] * map.scale);
            if (begin == 0) reinterpret_cast<float*>(at[SCALE_AT])[row + r] = unit[r];
            map.scale /= unit[r];
        }
        scale[r] = broadcast(map.scale);
        offset[r] = broadcast(map.offset);
    });

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
    if constexpr (QUANTISED && INTEGERS)
        times<COUNT>([&](auto r) {
            // A row with NaN or infinity, which has the scale NaN.
            if (unit[r] != unit[r])
                std::memset(reinterpret_cast<int8_t*>(at[Y_AT]) + place(r, begin), 0, end - begin);
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

// The spans of a row that thread `me` of `team` has, which all give what theirs add up to.
struct Shared {
    Sums<1>* shares;
    int64_t me, team;

    static int64_t count(int64_t cols) { return (cols + SPAN - 1) / SPAN; }
    static int64_t start(int64_t span, int64_t cols) { return span * SPAN < cols ? span * SPAN : cols; }
    int64_t begin(int64_t cols) const { return start(count(cols) * me / team, cols); }
    int64_t end(int64_t cols) const { return start(count(cols) * (me + 1) / team, cols); }

    template <typename F>
    [[gnu::always_inline]] void total(int64_t cols, Sums<1>& sums, F&& span) const {
        const int64_t all = count(cols);
        for (int64_t k = all * me / team; k < all * (me + 1) / team; ++k)
            shares[k] = span(start(k, cols), start(k + 1, cols));
#pragma omp barrier
        for (int64_t k = 0; k < all; ++k) sums.add(shares[k]);
#pragma omp barrier
    }
};

// Every row, of which this thread has some spans.
template <bool STREAM>
[[gnu::noinline]] void split(const Plan& plan, Operands at, const Shared& columns) {
    for (int64_t row = 0; row < plan.rows; ++row) block<STREAM, 0, 1>(plan, at, row, columns);
    if constexpr (STREAM) _mm_sfence();
}

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(at[Y_AT], plan->cols) || (RESIDUAL && !starts_lines(at[OPERANDS - 1], plan->cols)))
            return all<false, PREFETCH>(plan, operands...);
    const int64_t rows = plan->rows, count = Shared::count(plan->cols);
    const int most = threads_for(rows * plan->cols, rows * count);
    // Where rows are fewer than threads, all share each, if that takes less time than a row does.
    const bool shared = SPLIT && rows < most && rows * ((count + most - 1) / most) < count;
    const int threads = shared || most < rows ? most : static_cast<int>(rows);
    if (threads <= 1) return range<STREAM, PREFETCH>(*plan, at, 0, rows);
    auto* const shares = shared ? static_cast<Sums<1>*>(std::malloc(count * sizeof(Sums<1>))) : nullptr;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        if constexpr (SPLIT)
            if (shares) split<STREAM>(*plan, at, {shares, me, team});
        if (!shares) range<STREAM, PREFETCH>(*plan, at, rows * me / team, rows * (me + 1) / team);
    }
    std::free(shares);
}

using Normalise = Entry<Plan, OPERANDS>;
extern "C" Normalise choose(bool stream, int prefetch) {
    return chosen<Normalise>(stream, prefetch, [](auto streams, auto level) -> Normalise { return all<streams, level>; });
}
