// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to
// y, while the statistics of the next are gathered.
//
// What is computed is fixed when this file is compiled: T is the type in memory, STATISTIC what a row is divided by,
// RESIDUAL adds a matrix first and stores the sum, WEIGHT multiplies by a vector, BIAS adds one, SCALED divides all that
// by the root of the layer's number, QUANTISED stores BYTEs (int8_t or fp8) and a scale for each row. So are the ROWS, and
// the VECTORS of each, that go together, and COLS, the length of rows that go in stacks. Whether to stream and where to
// prefetch is chosen by `choose`.

#include <cstdlib>

#include "blocks.h"

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

// bf16 is summed by instructions that take it as it is.
#ifdef __AVX512BF16__
constexpr bool DOT = std::is_same_v<T, bf16> && STATISTIC != MEAN_DISTANCE && !RESIDUAL && !QUANTISED;
#else
constexpr bool DOT = false;
#endif
using Sum = decltype([] {
    if constexpr (DOT) return Floats{};
    else return Vector{};
}());

// The operands of rows of one group, which share a weight and a bias.
struct Rows {
    Plan plan;
    T* at[OPERANDS];
    const T *weights, *biases;
    Floats gain{};

    Rows(const Plan& plan, Operands operands, int64_t row)
        : plan(plan), weights(plan.vector(operands[WEIGHT_AT], row)), biases(plan.vector(operands[BIAS_AT], row)) {
        for (int i = 0; i < OPERANDS; ++i) at[i] = operands[i];
        if constexpr (SCALED) gain = gain_of(at[LAYER_AT]);
    }
    template <typename N>
    [[gnu::always_inline]] Vector value(int64_t place, N n) const {
        Vector x = load(at[0] + place, n);
        if constexpr (RESIDUAL) x = x + load(at[RESIDUAL_AT] + place, n);
        return x;
    }
    template <int LEVEL>
    [[gnu::always_inline]] void prefetch(int64_t row, int64_t j) const {
        fetch<LEVEL>(at[0] + row * plan.cols + j);
        if constexpr (RESIDUAL) fetch<LEVEL>(at[RESIDUAL_AT] + row * plan.cols + j);
    }
    // The elements from this place on before one that starts a line of y, and of h.
    [[gnu::always_inline]] int64_t before_line(int64_t place) const { return ::before_line(at[Y_AT] + place); }
    [[gnu::always_inline]] void fetch_written(int64_t place) const {
        fetch<1>(at[Y_AT] + place);
        if constexpr (RESIDUAL) fetch<1>(at[H_AT] + place);
    }
};

// Sums over some columns of COUNT rows, each in as many parts as a sweep has VECTORS.
template <int COUNT>
struct RowMoments {
    Sum first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    Vector peak[COUNT][VECTORS] = {};

    template <typename V, typename N>
    [[gnu::always_inline]] void gather(const Rows& rows, int64_t row, V v, int64_t j, N n) {
        Vector weight{};
        if constexpr (QUANTISED) weight = load(rows.weights + j, n);
        times<COUNT>([&](auto r) INLINED {
            const int64_t place = (row + r) * rows.plan.cols + j;
            if constexpr (DOT) {
                add_moments(rows.at[0] + place, n, first[r][v], second[r][v]);
            } else {
                Vector x = rows.value(place, n);
                if constexpr (std::is_same_v<Vector, Floats>) hold(x);
                if constexpr (STATISTIC != MEAN_SQUARE) first[r][v] = first[r][v] + x;
                if constexpr (STATISTIC != MEAN_DISTANCE) second[r][v] = fma(x, x, second[r][v]);
                if constexpr (QUANTISED) peak[r][v] = larger(absolute(x * weight), peak[r][v]);
            }
        });
    }
};

// The same of up to four rows, each in as many parts as a register has floats.
struct RowSums {
    Floats first[4], second[4];
    float peak[4];

    template <typename At, int COUNT, typename R>
    [[gnu::always_inline]] void take(At at, const RowMoments<COUNT>& moments, R r) {
        first[at] = folded(moments.first[r]);
        second[at] = folded(moments.second[r]);
        if constexpr (QUANTISED) {
            Vector most = moments.peak[r][0];
            for (int v = 1; v < VECTORS; ++v) most = larger(moments.peak[r][v], most);
            peak[at] = largest(most);
        }
    }
};

// The sums of a number of rows.
template <typename V>
struct RowTotals {
    V first{}, second{}, peak{};

    template <int COUNT>
    [[gnu::always_inline]] void add(const RowSums& sums) {
        RowTotals more{total<COUNT>(sums.first), total<COUNT>(sums.second)};
        if constexpr (QUANTISED)
            for (int r = 0; r < COUNT; ++r) more.peak[r] = sums.peak[r];
        add(more);
    }
    void add(const RowTotals& more) {
        first += more.first;
        second += more.second;
        peak = more.peak > peak ? more.peak : peak;
    }
    [[gnu::always_inline]] void append(const RowTotals<Quad>& last) {
        ::append(first, last.first);
        ::append(second, last.second);
        if constexpr (QUANTISED) ::append(peak, last.peak);
    }
};

// The map of a row from sums around its mean.
[[gnu::noinline]] Map<Quad> careful(const Rows& rows, int64_t row, float mean) {
    Quad first{}, second{};
    for (int64_t begin = 0, cols = rows.plan.cols; begin < cols; begin += SPAN) {
        Vector near[VECTORS] = {}, far[VECTORS] = {};
        sweep(begin, span_end(begin, cols), [&](auto v, int64_t j, auto n) {
            gather(near[v], far[v], keep(rows.value(row * cols + j, n) - broadcast(mean), n));
        });
        first += total<1>({folded(near)});
        second += total<1>({folded(far)});
    }
    return map_of(first, second, rows.plan);
}

// y = (x - shift) scale + offset, before the weights; shifted are only rows that are hard.
template <int COUNT>
struct RowMaps {
    using V = Numbers<COUNT>;
    using Totals = RowTotals<V>;
    V shift{}, scale, offset;
    int hard;

    [[gnu::always_inline]] void find(const Rows& rows, const Totals& totals, int64_t row) {
        const Map<V> map = map_of(totals.first, totals.second, rows.plan);
        scale = map.scale;
        offset = map.offset;
        if constexpr (CENTRED) shift = V{};
        hard = hard_rows<COUNT>(map, rows.plan.eps);
        if (hard) [[unlikely]] {
            // In a copy, or all these would live in memory.
            RowMaps again = *this;
            again.find_hard(rows, totals, row);
            *this = again;
        }
        if constexpr (QUANTISED)
            for (int r = 0; r < COUNT; ++r) {
                const float unit = scale_of(totals.peak[r] * scale[r]);
                reinterpret_cast<float*>(rows.at[SCALE_AT])[row + r] = unit;
                scale[r] /= unit;
            }
    }
    [[gnu::noinline]] void find_hard(const Rows& rows, const Totals& totals, int64_t row) {
        for (int r = 0; r < COUNT; ++r) {
            if (!(hard >> r & 1)) continue;
            shift[r] = totals.first[r] / static_cast<float>(rows.plan.cols);
            const Map<Quad> map = careful(rows, row + r, shift[r]);
            scale[r] = map.scale[0];
            offset[r] = map.offset[0];
        }
    }
};

// COUNT rows' maps; SHIFTED where a row may be.
template <int COUNT, bool SHIFTED>
struct RowLines {
    static constexpr bool ANYWHERE = COUNT == 1 && !QUANTISED;
    Floats shift[COUNT], scale[COUNT], offset[COUNT];

    template <typename All>
    [[gnu::always_inline]] RowLines(const All& maps, int64_t first) {
        times<COUNT>([&](auto r) INLINED {
            if constexpr (CENTRED) shift[r] = broadcast(maps.shift[first + r]);
            scale[r] = broadcast(maps.scale[first + r]);
            offset[r] = broadcast(maps.offset[first + r]);
        });
    }

    template <bool STREAM, typename N>
    [[gnu::always_inline]] void write(const Rows& rows, int64_t row, int64_t j, N n) const {
        Vector weight{}, bias{};
        if constexpr (WEIGHT) weight = load(rows.weights + j, n);
        if constexpr (BIAS) bias = load(rows.biases + j, n);
        if constexpr (SCALED) weight = weight * rows.gain;
        if constexpr (SCALED) bias = bias * rows.gain;
        times<COUNT>([&](auto r) INLINED {
            const int64_t place = (row + r) * rows.plan.cols + j;
            const Vector x = rows.value(place, n);
            if constexpr (RESIDUAL) put<STREAM>(rows.at[H_AT] + place, x, n);
            Vector y;
            if constexpr (CENTRED && SHIFTED) y = fma(x - shift[r], scale[r], offset[r]);
            else if constexpr (CENTRED) y = fma(x, scale[r], offset[r]);
            else y = x * scale[r];
            if constexpr (BIAS) y = fma(y, weight, bias);
            else if constexpr (WEIGHT) y = y * weight;
            if constexpr (QUANTISED) store_bytes(reinterpret_cast<BYTE*>(rows.at[Y_AT]) + place, y, n);
            else put<STREAM>(rows.at[Y_AT] + place, y, n);
        });
    }

    void end(const Rows& rows, int64_t row, int64_t begin, int64_t end) const {
        if constexpr (QUANTISED && INTEGERS)
            for (int r = 0; r < COUNT; ++r)
                // A row with NaN or infinity, which has the scale NaN.
                if (const float unit = reinterpret_cast<float*>(rows.at[SCALE_AT])[row + r]; unit != unit)
                    std::memset(reinterpret_cast<int8_t*>(rows.at[Y_AT]) + (row + r) * rows.plan.cols + begin, 0, end - begin);
    }
};

struct Flow {
    using Sums = RowSums;
    template <int COUNT>
    using Moments = RowMoments<COUNT>;
    template <typename V>
    using Totals = RowTotals<V>;
    template <int COUNT>
    using Maps = RowMaps<COUNT>;
    template <int COUNT, bool SHIFTED>
    using Lines = RowLines<COUNT, SHIFTED>;
    static constexpr int BESIDE = 4;
};

template <bool STREAM, int PREFETCH>
void range(const Plan& plan, Operands at, int64_t row, int64_t end) {
    while (row < end) {
        const int64_t next = (row / plan.group() + 1) * plan.group(), stop = next < end ? next : end;
        all_blocks<STREAM, PREFETCH, Flow>(Rows(plan, at, row), row, stop);
        row = stop;
    }
    if constexpr (STREAM) _mm_sfence();
}

using Shares = RowTotals<Quad>;

// Every row, thread `me` of `team` having some of its spans. The shares of two successive rows live apart, so that none
// is overwritten that another thread still reads.
template <bool STREAM>
[[gnu::noinline]] void split(const Plan& plan, Operands at, Shares* shares, int64_t me, int64_t team) {
    const int64_t cols = plan.cols, count = (cols + SPAN - 1) / SPAN;
    const int64_t from = count * me / team, to = count * (me + 1) / team, end = to * SPAN < cols ? to * SPAN : cols;
    for (int64_t row = 0; row < plan.rows; ++row) {
        const Rows rows(plan, at, row);
        Shares* const of_row = shares + row % 2 * count;
        for (int64_t k = from; k < to; ++k) {
            of_row[k] = {};
            of_row[k].add<1>(sums_of<Flow, 1>(rows, row, k * SPAN, span_end(k * SPAN, cols)));
        }
#pragma omp barrier
        Shares totals;
        for (int64_t k = 0; k < count; ++k) totals.add(of_row[k]);
        RowMaps<1> maps;
        maps.find(rows, totals, row);
        if (from < to) write_lines<STREAM>(rows, RowLines<1, true>(maps, 0), row, from * SPAN, end);
    }
    if constexpr (STREAM) _mm_sfence();
}

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM) {
        const bool whole = starts_lines(at[Y_AT], plan->cols) || RowLines<ROWS, true>::ANYWHERE;
        if (!whole || (RESIDUAL && before_line(at[H_AT]) != before_line(at[Y_AT])))
            return all<false, PREFETCH>(plan, operands...);
    }
    const int64_t rows = plan->rows, count = (plan->cols + SPAN - 1) / SPAN;
    const int most = threads_for(rows * plan->cols, rows * count);
    if (most == 1) return range<STREAM, PREFETCH>(*plan, at, 0, rows);
    // Where rows are fewer than threads, all share each, if that takes less time than a row does.
    const bool shared = rows < most && rows * ((count + most - 1) / most) < count;
    const int threads = shared || most < rows ? most : static_cast<int>(rows);
    Shares* const shares = shared ? static_cast<Shares*>(std::aligned_alloc(64, 2 * count * 64)) : nullptr;
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
