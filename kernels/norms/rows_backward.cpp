// Gradients of a row norm y = weight (x - mean) r [+ bias], the statistics computed anew: of ROWS rows at a time the
// statistics and what the chain rule needs, in one sweep, then the same rows again, from cache, to dx.
//
// With g = dy weight and n = (x - mean) r: dx = r (g - mean(g) - n mean(g n)), without mean(g) where no mean is
// subtracted; dweight and dbias are the sums of dy n and of dy over the rows. The rows are cut into parts that depend on
// their number alone; each part has sums of its own, added in the order of the parts: the same bits for any number of
// threads. What is fixed when this file is compiled is as in rows.cpp; BIAS here means that dbias is wanted.

#include "statistics.h"
#include "sums.h"

constexpr int DY_AT = 0, X_AT = 1, WEIGHT_AT = 2, DX_AT = 3, DWEIGHT_AT = 4, DBIAS_AT = 5, OPERANDS = 5 + BIAS;
using Operands = T* const (&)[OPERANDS];

// A part's sums are loaded and stored once for ROWS rows, and written to memory once for a part. Of 64 parts, 32 threads
// and fewer get even shares; those of 32 rows and more cost 4 % of the traffic.
struct Parts {
    int64_t rows, count, pitch;  // rows of a part, parts, floats of a part's sums of one kind

    explicit Parts(const Plan& plan) {
        rows = (plan.rows + 63) / 64;
        rows = rows < 32 ? 32 : (rows + 3) / 4 * 4;
        count = plan.rows ? (plan.rows + rows - 1) / rows : 1;
        pitch = (plan.cols + 31) / 32 * 32;
    }
    int64_t floats() const { return pitch * (1 + BIAS); }
};

// COUNT rows from `row` on; what they add to dweight goes to `sums`, to dbias to `sums + pitch`.
template <bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row, float* sums, int64_t pitch) {
    const int64_t cols = plan.cols;
    const auto place = [&](int r, int64_t j) { return (row + r) * cols + j; };
    const auto value = [&](int r, int64_t j, auto n) { return load(at[X_AT] + place(r, j), n); };
    Floats shift[COUNT] = {};
    find_shifts(shift, plan.lead, value);

    Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    Vector slope[COUNT][VECTORS] = {}, product[COUNT][VECTORS] = {};  // of g, of g (x - shift)
    sweep(cols, [&](auto v, int64_t j, auto n) {
        const Vector weight = load(at[WEIGHT_AT] + j, n);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[X_AT] + place(r + COUNT, j));
            Vector d = value(r, j, n);
            const Vector g = load(at[DY_AT] + place(r, j), n) * weight;
            if constexpr (CENTRED) {
                d = keep(d - shift[r], n);
                first[r][v] = first[r][v] + d;
                slope[r][v] = slope[r][v] + g;
            }
            second[r][v] = fma(d, d, second[r][v]);
            product[r][v] = fma(g, d, product[r][v]);
        });
    });

    // n = (x - shift) scale + offset, dx = g scale + (x - shift) bend + level.
    Floats scale[COUNT], offset[COUNT], bend[COUNT], level[COUNT];
    const float share = 1.0f / static_cast<float>(cols);
    times<COUNT>([&](auto r) {
        const Map map = map_of(sum_of(first[r]), sum_of(second[r]), plan);
        const float sum = CENTRED ? sum_of(slope[r]) : 0.0f;
        const float along = (sum_of(product[r]) * map.scale + sum * map.offset) * share;
        scale[r] = broadcast(map.scale);
        offset[r] = broadcast(map.offset);
        bend[r] = broadcast(-map.scale * map.scale * along);
        level[r] = broadcast(-map.scale * (sum * share + map.offset * along));
    });

    sweep(cols, [&](auto, int64_t j, auto n) {
        const Vector weight = load(at[WEIGHT_AT] + j, n);
        Vector dweight, dbias;
        get(sums + j, dweight);
        if constexpr (BIAS) get(sums + pitch + j, dbias);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[DY_AT] + place(r + COUNT, j));
            const Vector dy = load(at[DY_AT] + place(r, j), n);
            Vector d = value(r, j, n), normal, rest;
            if constexpr (CENTRED) {
                d = d - shift[r];
                normal = fma(d, scale[r], offset[r]);
                rest = fma(d, bend[r], level[r]);
            } else {
                normal = d * scale[r];
                rest = d * bend[r];
            }
            put<STREAM>(at[DX_AT] + place(r, j), fma(dy * weight, scale[r], rest), n);
            dweight = fma(dy, normal, dweight);
            if constexpr (BIAS) dbias = dbias + dy;
        });
        set(sums + j, dweight);
        if constexpr (BIAS) set(sums + pitch + j, dbias);
    });
}

[[gnu::noinline]] void single(const Plan& plan, Operands at, int64_t row, int64_t end, float* sums, int64_t pitch) {
    for (; row < end; ++row) block<false, 0, 1>(plan, at, row, sums, pitch);
}

template <bool STREAM, int PREFETCH>
void one_part(const Plan& plan, Operands at, const Parts& parts, int64_t part, float* sums) {
    std::memset(sums, 0, parts.floats() * sizeof(float));
    int64_t row = part * parts.rows;
    const int64_t end = row + parts.rows < plan.rows ? row + parts.rows : plan.rows;
    for (; row + ROWS <= end; row += ROWS) block<STREAM, PREFETCH, ROWS>(plan, at, row, sums, parts.pitch);
    if (row < end) single(plan, at, row, end, sums, parts.pitch);
}

// Adds the sums of all parts to those of the first, and stores these; floats from `begin` to `end` of each kind.
[[gnu::noinline]] void add_parts(const Plan& plan, Operands at, const Parts& parts, float* sums, int64_t begin,
                                 int64_t end) {
    for (int kind = 0; kind <= BIAS; ++kind) {
        float* const total = sums + kind * parts.pitch;
        for (int64_t part = 1; part < parts.count; ++part)
            for (int64_t j = begin; j < end; ++j) total[j] += total[part * parts.floats() + j];
        for (int64_t j = begin; j < end && j < plan.cols; j += WIDTH) {
            Vector v;
            get(total + j, v);
            T* const to = at[kind ? OPERANDS - 1 : DWEIGHT_AT] + j;
            if (j + WIDTH <= plan.cols) store(to, v, All{});
            else store(to, v, First{static_cast<int>(plan.cols - j)});
        }
    }
}

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
        const int64_t blocks = parts.pitch / 32;
        add_parts(*plan, at, parts, sums, blocks * me / team * 32, blocks * (me + 1) / team * 32);
    }
}

using Differentiate = Entry<Plan, OPERANDS>;
extern "C" Differentiate choose(bool stream, int prefetch) {
    return chosen<Differentiate>(stream, prefetch,
                                 [](auto streams, auto level) -> Differentiate { return all<streams, level>; });
}
