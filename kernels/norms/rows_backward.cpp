// Gradients of a row norm y = weight (x - mean) r [+ bias], the statistics computed anew: of ROWS rows at a time the
// statistics and what the chain rule needs, in one sweep, then the same rows again, from cache, to dx.
//
// dx = g scale + u bend + level, with g = dy weight and what chain_of gives of a row; RESIDUAL adds dh, the gradient of
// the sum that was normalised. dweight and dbias are the sums of dy n and of dy over the rows, n being the normalised
// row. The rows of a group, which have a weight of their own, are cut into parts that depend on their number alone; each
// part has sums of its own, added in the order of the parts: the same bits for any number of threads. What is fixed when
// this file is compiled is as in rows.cpp; BIAS here means that dbias is wanted.

#include <cstdlib>

#include "statistics.h"

// Where the operands are in the op's order: dy, [dh,] x, [weight,] [layer,] dx, [dweight,] [dbias].
constexpr int DY_AT = 0, DH_AT = 1, X_AT = 1 + RESIDUAL, WEIGHT_AT = X_AT + 1, LAYER_AT = WEIGHT_AT + WEIGHT;
constexpr int DX_AT = LAYER_AT + SCALED, SUMS_AT = DX_AT + 1, KINDS = WEIGHT + BIAS, OPERANDS = SUMS_AT + KINDS;
using Operands = T* const (&)[OPERANDS];

// A part's sums are loaded and stored once for ROWS rows, and written to memory once for a part. Of 64 parts, 32 threads
// and fewer get even shares; those of 32 rows and more cost 4 % of the traffic.
struct Parts {
    int64_t rows, of_group, count, pitch;  // rows of a part, parts of a group and in all, floats of sums of one kind

    explicit Parts(const Plan& plan) {
        rows = (plan.rows + 63) / 64;
        rows = rows < 32 ? 32 : (rows + 3) / 4 * 4;
        of_group = plan.rows ? (plan.group() + rows - 1) / rows : 1;
        count = of_group * plan.groups;
        pitch = (plan.cols + 31) / 32 * 32;
    }
    int64_t floats() const { return pitch * KINDS; }
};

// Sums are kept in the order of the lanes, which only the last store undoes.
inline void get(const float* from, Floats& v) { v = load(from, All{}); }
inline void get(const float* from, Pair& v) { v = {load(from, All{}), load(from + WIDTH / 2, All{})}; }
inline void set(float* to, Floats v) { store(to, v, All{}); }
inline void set(float* to, Pair v) {
    store(to, v.even, All{});
    store(to + WIDTH / 2, v.odd, All{});
}

// 1, -1, and 0 of zero and NaN.
inline Floats sign(Floats v) {
    const Floats zero{}, one = broadcast(1.0f);
    return (v > zero ? one : zero) - (v < zero ? one : zero);
}
inline Pair sign(Pair v) { return {sign(v.even), sign(v.odd)}; }

// What makes dx = g scale + u bend + level; u is x - shift, or its sign where a row is divided by its mean distance.
struct Chain {
    float bend, level;
};

// From the sums over a row of x - shift, of g, of g (x - shift), and of the signs.
inline Chain chain_of(Map map, float first, float slope, float product, float signs, const Plan& plan) {
    const float share = 1.0f / static_cast<float>(plan.cols), scale = map.scale;
    if constexpr (STATISTIC == COMPRESSED) {
        const float bend = -scale * scale * scale * product / static_cast<float>(plan.cols + 1);
        return {bend, bend * first};
    }
    const float along = (product * scale + slope * map.offset) * share;  // mean(g n)
    if constexpr (STATISTIC == MEAN_DISTANCE) {
        const float bend = -plan.kappa * scale * along;
        return {bend, -(scale * slope + bend * signs) * share};
    }
    return {-scale * scale * along, -scale * (slope * share + map.offset * along)};
}

// COUNT rows from `row` on, of one group; what they add to dweight goes to `sums`, to dbias to `sums + pitch`.
template <bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row, float* sums, int64_t pitch) {
    const int64_t cols = plan.cols;
    const T* const weights = plan.vector(at[WEIGHT_AT], row);
    Floats gain{};
    if constexpr (SCALED) gain = gain_of(at[LAYER_AT]);
    const auto place = [&](int r, int64_t j) { return (row + r) * cols + j; };
    const auto value = [&](int r, int64_t j, auto n) { return load(at[X_AT] + place(r, j), n); };
    const auto gradient = [&](int r, int64_t j, auto n) {
        Vector dy = load(at[DY_AT] + place(r, j), n);
        if constexpr (SCALED) dy = dy * gain;
        return dy;
    };
    Floats shift[COUNT] = {};
    find_shifts(shift, plan.lead, value, Whole{});

    Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    Vector slope[COUNT][VECTORS] = {}, product[COUNT][VECTORS] = {};  // of g, of g (x - shift)
    Vector signs[COUNT][VECTORS] = {};
    sweep(0, cols, [&](auto v, int64_t j, auto n) {
        Vector weight{};
        if constexpr (WEIGHT) weight = load(weights + j, n);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[X_AT] + place(r + COUNT, j));
            Vector d = value(r, j, n), g = gradient(r, j, n);
            if constexpr (WEIGHT) g = g * weight;
            if constexpr (CENTRED) {
                d = keep(d - shift[r], n);
                slope[r][v] = slope[r][v] + g;
            }
            gather(first[r][v], second[r][v], d);
            if constexpr (STATISTIC == MEAN_DISTANCE) signs[r][v] = signs[r][v] + sign(d);
            product[r][v] = fma(g, d, product[r][v]);
        });
    });

    Floats scale[COUNT], offset[COUNT], bend[COUNT], level[COUNT];
    times<COUNT>([&](auto r) {
        const float sum = sum_of(first[r]);
        const Map map = map_of(sum, sum_of(second[r]), plan);
        const Chain chain = chain_of(map, sum, sum_of(slope[r]), sum_of(product[r]), sum_of(signs[r]), plan);
        scale[r] = broadcast(map.scale);
        offset[r] = broadcast(map.offset);
        bend[r] = broadcast(chain.bend);
        level[r] = broadcast(chain.level);
    });

    sweep(0, cols, [&](auto, int64_t j, auto n) {
        Vector weight{}, dweight, dbias;
        if constexpr (WEIGHT) weight = load(weights + j, n);
        if constexpr (WEIGHT) get(sums + j, dweight);
        if constexpr (BIAS) get(sums + pitch + j, dbias);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[DY_AT] + place(r + COUNT, j));
            const Vector dy = gradient(r, j, n);
            Vector g = dy, d = value(r, j, n), rest;
            if constexpr (WEIGHT) g = g * weight;
            if constexpr (CENTRED) d = d - shift[r];
            if constexpr (STATISTIC == MEAN_DISTANCE) rest = fma(sign(d), bend[r], level[r]);
            else if constexpr (STATISTIC == MEAN_SQUARE) rest = d * bend[r];
            else rest = fma(d, bend[r], level[r]);
            if constexpr (RESIDUAL) rest = rest + load(at[DH_AT] + place(r, j), n);
            put<STREAM>(at[DX_AT] + place(r, j), fma(g, scale[r], rest), n);
            if constexpr (WEIGHT && CENTRED) dweight = fma(dy, fma(d, scale[r], offset[r]), dweight);
            else if constexpr (WEIGHT) dweight = fma(dy, d * scale[r], dweight);
            if constexpr (BIAS) dbias = dbias + dy;
        });
        if constexpr (WEIGHT) set(sums + j, dweight);
        if constexpr (BIAS) set(sums + pitch + j, dbias);
    });
}

[[gnu::noinline]] void single(const Plan& plan, Operands at, int64_t row, int64_t end, float* sums, int64_t pitch) {
    for (; row < end; ++row) block<false, 0, 1>(plan, at, row, sums, pitch);
}

template <bool STREAM, int PREFETCH>
void one_part(const Plan& plan, Operands at, const Parts& parts, int64_t part, float* sums) {
    if constexpr (KINDS > 0) std::memset(sums, 0, parts.floats() * sizeof(float));
    const int64_t last = (part / parts.of_group + 1) * plan.group();  // of the group
    int64_t row = part / parts.of_group * plan.group() + part % parts.of_group * parts.rows;
    const int64_t end = row + parts.rows < last ? row + parts.rows : last;
    for (; row + ROWS <= end; row += ROWS) block<STREAM, PREFETCH, ROWS>(plan, at, row, sums, parts.pitch);
    if (row < end) single(plan, at, row, end, sums, parts.pitch);
}

// Adds the sums of a group's parts to those of its first, and stores these; floats from `begin` to `end` of each kind.
void add_group(const Plan& plan, Operands at, const Parts& parts, int64_t group, float* sums, int64_t begin,
               int64_t end) {
    sums += group * parts.of_group * parts.floats();
    for (int kind = 0; kind < KINDS; ++kind) {
        float* const total = sums + kind * parts.pitch;
        for (int64_t part = 1; part < parts.of_group; ++part)
            for (int64_t j = begin; j < end; ++j) total[j] += total[part * parts.floats() + j];
        for (int64_t j = begin; j < end && j < plan.cols; j += WIDTH) {
            Vector v;
            get(total + j, v);
            T* const to = at[SUMS_AT + kind] + group * plan.cols + j;
            if (j + WIDTH <= plan.cols) store(to, v, All{});
            else store(to, v, First{static_cast<int>(plan.cols - j)});
        }
    }
}
// Memory that a thread keeps from call to call: fresh pages would cost as much as the sums that are written there.
struct Workspace {
    float* data = nullptr;
    int64_t size = 0;

    ~Workspace() { std::free(data); }
    float* of(int64_t floats) {
        if (floats > size) {
            std::free(data);
            data = static_cast<float*>(std::aligned_alloc(128, floats * sizeof(float)));
            size = data ? floats : 0;
        }
        return data;
    }
};

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(at[DX_AT], plan->cols)) return all<false, PREFETCH>(plan, operands...);
    const Parts parts(*plan);
    static thread_local Workspace workspace;
    float* const sums = workspace.of(parts.count * parts.floats());
#pragma omp parallel num_threads(threads_for(plan->rows * plan->cols, parts.count))
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t part = parts.count * me / team; part < parts.count * (me + 1) / team; ++part)
            one_part<STREAM, PREFETCH>(*plan, at, parts, part, sums + part * parts.floats());
        if constexpr (STREAM) _mm_sfence();
#pragma omp barrier
        const int64_t blocks = parts.pitch / 32, begin = blocks * me / team * 32, end = blocks * (me + 1) / team * 32;
        for (int64_t group = 0; group < plan->groups; ++group) add_group(*plan, at, parts, group, sums, begin, end);
    }
}

using Differentiate = Entry<Plan, OPERANDS>;
extern "C" Differentiate choose(bool stream, int prefetch) {
    return chosen<Differentiate>(stream, prefetch,
                                 [](auto streams, auto level) -> Differentiate { return all<streams, level>; });
}
