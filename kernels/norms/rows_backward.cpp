// Gradients of a row norm y = weight (x - mean) r [+ bias], the statistics computed anew: of ROWS rows at a time the
// statistics and what the chain rule needs, in one sweep, then the same rows again, from cache, to dx.
//
// dx = g scale + u bend + level, with g = dy weight and the Chain of a row; RESIDUAL adds dh, the gradient of
// the sum that was normalised. dweight and dbias are the sums of dy n and of dy over the rows, n being the normalised
// row. The rows of a group, which have a weight of their own, are cut into parts that depend on their number alone; each
// part has sums of its own, added in the order of the parts: the same bits for any number of threads. What is fixed when
// this file is compiled is as in rows.cpp; BIAS here means that dbias is wanted.

#include "blocks.h"
#include "sums.h"

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
        pitch = (plan.cols + 31) / 32 * 32 + 32;  // a vector may begin at the last column
    }
    int64_t floats() const { return pitch * KINDS; }
};

// 1, -1, and 0 of zero and NaN.
inline Floats sign(Floats v) {
    const Floats zero{}, one = broadcast(1.0f);
    return (v > zero ? one : zero) - (v < zero ? one : zero);
}
inline Pair sign(Pair v) { return {sign(v.even), sign(v.odd)}; }

// The operands of rows of one group; what they add to dweight goes to `sums`, to dbias to `sums + pitch`.
struct Rows {
    Plan plan;
    T* at[OPERANDS];
    const T* weights;
    float* sums;
    int64_t pitch;
    Floats gain{};

    Rows(const Plan& plan, Operands operands, int64_t row, float* sums, int64_t pitch)
        : plan(plan), weights(plan.vector(operands[WEIGHT_AT], row)), sums(sums), pitch(pitch) {
        for (int i = 0; i < OPERANDS; ++i) at[i] = operands[i];
        if constexpr (SCALED) gain = gain_of(at[LAYER_AT]);
    }
    template <typename N>
    [[gnu::always_inline]] Vector gradient(int64_t place, N n) const {
        Vector dy = load(at[DY_AT] + place, n);
        if constexpr (SCALED) dy = dy * gain;
        return dy;
    }
    template <int LEVEL>
    [[gnu::always_inline]] void prefetch(int64_t row, int64_t j) const {
        fetch<LEVEL>(at[X_AT] + row * plan.cols + j);
        fetch<LEVEL>(at[DY_AT] + row * plan.cols + j);
    }
    // The elements from this place on before one that starts a line of dx.
    [[gnu::always_inline]] int64_t before_line(int64_t place) const { return ::before_line(at[DX_AT] + place); }
    [[gnu::always_inline]] void fetch_written(int64_t place) const { fetch<1>(at[DX_AT] + place); }
};

// Sums over some columns of COUNT rows of x, x^2, g and g x; or all of x - mean, and of its signs.
template <int COUNT>
struct GradientMoments {
    Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    Vector slope[COUNT][VECTORS] = {}, product[COUNT][VECTORS] = {}, signs[COUNT][VECTORS] = {};

    template <typename V, typename N>
    [[gnu::always_inline]] void gather(const Rows& rows, int64_t row, V v, int64_t j, N n) {
        Vector weight{};
        if constexpr (WEIGHT) weight = load(rows.weights + j, n);
        times<COUNT>([&](auto r) INLINED {
            const int64_t place = (row + r) * rows.plan.cols + j;
            const Vector x = load(rows.at[X_AT] + place, n);
            if constexpr (STATISTIC != MEAN_SQUARE) first[r][v] = first[r][v] + x;
            if constexpr (STATISTIC == MEAN_DISTANCE) return;
            Vector g = rows.gradient(place, n);
            if constexpr (WEIGHT) g = g * weight;
            if constexpr (CENTRED) slope[r][v] = slope[r][v] + g;
            second[r][v] = fma(x, x, second[r][v]);
            product[r][v] = fma(g, x, product[r][v]);
        });
    }
    template <typename V, typename N>
    [[gnu::always_inline]] void gather_around(Floats mean, const Rows& rows, int64_t row, V v, int64_t j, N n) {
        const int64_t place = row * rows.plan.cols + j;
        const Vector d = keep(load(rows.at[X_AT] + place, n) - mean, n);
        Vector g = rows.gradient(place, n);
        if constexpr (WEIGHT) g = g * load(rows.weights + j, n);
        ::gather(first[0][v], second[0][v], d);
        slope[0][v] = slope[0][v] + g;
        product[0][v] = fma(g, d, product[0][v]);
        if constexpr (STATISTIC == MEAN_DISTANCE) signs[0][v] = signs[0][v] + sign(d);
    }
};

// The same of up to four rows, each in as many parts as a register has floats.
struct GradientSums {
    Floats first[4], second[4], slope[4], product[4], signs[4];

    template <typename At, int COUNT, typename R>
    [[gnu::always_inline]] void take(At at, const GradientMoments<COUNT>& moments, R r) {
        first[at] = folded(moments.first[r]);
        second[at] = folded(moments.second[r]);
        slope[at] = folded(moments.slope[r]);
        product[at] = folded(moments.product[r]);
        if constexpr (STATISTIC == MEAN_DISTANCE) signs[at] = folded(moments.signs[r]);
    }
};

// The sums of a number of rows.
template <typename V>
struct GradientTotals {
    V first{}, second{}, slope{}, product{}, signs{};

    template <int COUNT>
    [[gnu::always_inline]] void add(const GradientSums& sums) {
        first += total<COUNT>(sums.first);
        second += total<COUNT>(sums.second);
        slope += total<COUNT>(sums.slope);
        product += total<COUNT>(sums.product);
        if constexpr (STATISTIC == MEAN_DISTANCE) signs += total<COUNT>(sums.signs);
    }
    [[gnu::always_inline]] void append(const GradientTotals<Quad>& last) {
        ::append(first, last.first);
        ::append(second, last.second);
        ::append(slope, last.slope);
        ::append(product, last.product);
    }
};

// Rows are normalised to u scale + offset, and dx = g scale + u bend + level, with the u = x - shift that the sums are of;
// in u bend, its sign where a row is divided by its mean distance.
template <typename V>
struct Chain {
    V scale, offset, bend, level;

    Chain(const GradientTotals<V>& totals, const Plan& plan) {
        const Map<V> map = map_of(totals.first, totals.second, plan);
        const float share = 1.0f / static_cast<float>(plan.cols);
        scale = map.scale;
        offset = map.offset;
        if constexpr (STATISTIC == COMPRESSED) {
            bend = -scale * scale * scale * totals.product / static_cast<float>(plan.cols + 1);
            level = bend * totals.first;
            return;
        }
        const V along = (totals.product * scale + totals.slope * offset) * share;  // mean(g n)
        if constexpr (STATISTIC == MEAN_DISTANCE) {
            bend = -plan.kappa * scale * along;
            level = -(scale * totals.slope + bend * totals.signs) * share;
        } else {
            bend = -scale * scale * along;
            level = -scale * (totals.slope * share + offset * along);
        }
    }
};

// The chain of a row from sums around its mean.
[[gnu::noinline]] Chain<Quad> careful(const Rows& rows, int64_t row, float mean) {
    GradientTotals<Quad> totals;
    for (int64_t begin = 0, cols = rows.plan.cols; begin < cols; begin += SPAN) {
        GradientMoments<1> moments;
        sweep(begin, span_end(begin, cols), [&](auto v, int64_t j, auto n) INLINED {
            moments.gather_around(broadcast(mean), rows, row, v, j, n);
        });
        GradientSums sums;
        sums.take(ZERO, moments, ZERO);
        totals.add<1>(sums);
    }
    return {totals, rows.plan};
}

template <int COUNT>
struct GradientMaps {
    using V = Numbers<COUNT>;
    using Totals = GradientTotals<V>;
    V shift{}, scale, offset, bend, level;
    int hard;

    [[gnu::always_inline]] void find(const Rows& rows, const Totals& totals, int64_t row) {
        const Chain<V> chain(totals, rows.plan);
        if constexpr (CENTRED) shift = V{};
        scale = chain.scale;
        offset = chain.offset;
        bend = chain.bend;
        level = chain.level;
        hard = hard_rows<COUNT>(Map<V>{scale, offset}, rows.plan.eps);
        if (hard) [[unlikely]] {
            // In a copy, or all these would live in memory.
            GradientMaps again = *this;
            again.find_hard(rows, totals, row);
            *this = again;
        }
    }
    [[gnu::noinline]] void find_hard(const Rows& rows, const Totals& totals, int64_t row) {
        for (int r = 0; r < COUNT; ++r) {
            if (!(hard >> r & 1)) continue;
            shift[r] = totals.first[r] / static_cast<float>(rows.plan.cols);
            const Chain<Quad> chain = careful(rows, row + r, shift[r]);
            scale[r] = chain.scale[0];
            offset[r] = chain.offset[0];
            bend[r] = chain.bend[0];
            level[r] = chain.level[0];
        }
    }
};

// COUNT rows' maps; SHIFTED where a row may be.
template <int COUNT, bool SHIFTED>
struct GradientLines {
    // The sums of a bf16 vector lie in the order of its halves, so that they cannot be added to from anywhere.
    static constexpr bool ANYWHERE = COUNT == 1 && !std::is_same_v<T, bf16>;
    Floats shift[COUNT], scale[COUNT], offset[COUNT], bend[COUNT], level[COUNT];

    template <typename All>
    [[gnu::always_inline]] GradientLines(const All& maps, int64_t from) {
        times<COUNT>([&](auto r) INLINED {
            if constexpr (CENTRED) shift[r] = broadcast(maps.shift[from + r]);
            scale[r] = broadcast(maps.scale[from + r]);
            offset[r] = broadcast(maps.offset[from + r]);
            bend[r] = broadcast(maps.bend[from + r]);
            level[r] = broadcast(maps.level[from + r]);
        });
    }

    template <bool STREAM, typename N>
    [[gnu::always_inline]] void write(const Rows& rows, int64_t row, int64_t j, N n) const {
        Vector weight{}, dweight, dbias;
        if constexpr (WEIGHT) weight = load(rows.weights + j, n);
        if constexpr (WEIGHT) get(rows.sums + j, dweight);
        if constexpr (BIAS) get(rows.sums + rows.pitch + j, dbias);
        times<COUNT>([&](auto r) INLINED {
            const int64_t place = (row + r) * rows.plan.cols + j;
            const Vector dy = rows.gradient(place, n);
            Vector g = dy, u = load(rows.at[X_AT] + place, n), rest;
            if constexpr (CENTRED && SHIFTED) u = u - shift[r];
            if constexpr (WEIGHT) g = g * weight;
            if constexpr (STATISTIC == MEAN_DISTANCE) rest = fma(sign(u), bend[r], level[r]);
            else if constexpr (STATISTIC == MEAN_SQUARE) rest = u * bend[r];
            else rest = fma(u, bend[r], level[r]);
            if constexpr (RESIDUAL) rest = rest + load(rows.at[DH_AT] + place, n);
            put<STREAM>(rows.at[DX_AT] + place, fma(g, scale[r], rest), n);
            if constexpr (WEIGHT && CENTRED) dweight = fma(dy, fma(u, scale[r], offset[r]), dweight);
            else if constexpr (WEIGHT) dweight = fma(dy, u * scale[r], dweight);
            if constexpr (BIAS) dbias = dbias + dy;
        });
        if constexpr (WEIGHT) ::set(rows.sums + j, dweight);
        if constexpr (BIAS) ::set(rows.sums + rows.pitch + j, dbias);
    }
    void end(const Rows&, int64_t, int64_t, int64_t) const {}
};

struct Flow {
    using Sums = GradientSums;
    template <int COUNT>
    using Moments = GradientMoments<COUNT>;
    template <typename V>
    using Totals = GradientTotals<V>;
    template <int COUNT>
    using Maps = GradientMaps<COUNT>;
    template <int COUNT, bool SHIFTED>
    using Lines = GradientLines<COUNT, SHIFTED>;
    static constexpr int BESIDE = 4;
};

template <bool STREAM, int PREFETCH>
void one_part(const Plan& plan, Operands at, const Parts& parts, int64_t part, float* sums) {
    if constexpr (KINDS > 0) std::memset(sums, 0, parts.floats() * sizeof(float));
    const int64_t last = (part / parts.of_group + 1) * plan.group();  // of the group
    const int64_t row = part / parts.of_group * plan.group() + part % parts.of_group * parts.rows;
    const int64_t end = row + parts.rows < last ? row + parts.rows : last;
    all_blocks<STREAM, PREFETCH, Flow>(Rows(plan, at, row, sums, parts.pitch), row, end);
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

template <bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(at[DX_AT], plan->cols) && !GradientLines<ROWS, true>::ANYWHERE)
            return all<false, PREFETCH>(plan, operands...);
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
