// Normalises images whose pixels are rows of channels (NHWC): sums of columns around a shift, merged to statistics of
// columns and of groups of them, and the same rows again for y (columns.h).

#include "columns.h"

struct Statistics {
    const Plan& plan;
    const Slabs& slabs;
    const Forward& at;

    // Arrays of columns in a slab's memory: what makes y, the moments (of f64), then the sums of each part.
    enum { SHIFT, SCALE, OFFSET, MEAN, SQUARES = MEAN + 2, PARTS = SQUARES + 2 };
    enum { CENTRE, FIRST, SECOND, KINDS };

    float* array(float* memory, int64_t index) const { return memory + index * slabs.pitch; }
    double* moments(float* memory, int64_t index) const { return reinterpret_cast<double*>(array(memory, index)); }
    int64_t floats() const { return (PARTS + (sums() ? slabs.parts : 0) * KINDS) * slabs.pitch; }
    bool sums() const { return !plan.frozen; }

    void put_map(const Affine& map, float* memory, int64_t column) const {
        array(memory, SHIFT)[lane(column)] = map.shift;
        array(memory, SCALE)[lane(column)] = map.scale;
        array(memory, OFFSET)[lane(column)] = map.offset;
    }

    void prepare(const Slab& slab, float* memory) const {
        if (!sums())
            for (int64_t j = 0; j < slab.width; ++j) put_map(frozen(plan, at, slab.channel + j), memory, j);
    }

    [[gnu::noinline]] void add_rows(const Slab& slab, float* sums, int64_t row, int64_t end) const {
        by_rows(row, end, [&](auto count, int64_t r) {
            const T* const x = at.x + slab.begin + r * plan.channels;
            sweep(slab.width, [&](auto, int64_t j, auto n) {
                Vector shift, first, second;
                get(array(sums, CENTRE) + j, shift);
                get(array(sums, FIRST) + j, first);
                get(array(sums, SECOND) + j, second);
                times<count>([&](auto i) {
                    const Vector d = load(x + i * plan.channels + j, n) - shift;
                    first = first + d;
                    second = fma(d, d, second);
                });
                set(array(sums, FIRST) + j, first);
                set(array(sums, SECOND) + j, second);
            });
        });
    }

    // Around the means of the part's first 16 rows.
    void add(const Slab& slab, float* memory, int64_t part, int64_t row, int64_t end) const {
        float* const sums = array(memory, PARTS + part * KINDS);
        float *const centre = array(sums, CENTRE), *const first = array(sums, FIRST);
        const int64_t lead = end - row < 16 ? end - row : 16;
        std::memset(sums, 0, KINDS * slabs.pitch * sizeof(float));
        add_rows(slab, sums, row, row + lead);
        for (int64_t j = 0; j < slabs.pitch; ++j) {
            const float mean = first[j] / static_cast<float>(lead);
            centre[j] = finite(mean) ? mean : 0.0f;
        }
        std::memset(first, 0, 2 * slabs.pitch * sizeof(float));
        add_rows(slab, sums, row, end);
    }

    // The moments of all rows of each column, by those of the parts (Moments::add, a vector of columns at a time).
    void merge_parts(float* memory) const {
        double *const mean = moments(memory, MEAN), *const squares = moments(memory, SQUARES);
        for (int64_t part = 0; part < slabs.parts; ++part) {
            const float* const sums = array(memory, PARTS + part * KINDS);
            const int64_t before = part * slabs.part_rows;
            const int64_t rows = slabs.rows - before < slabs.part_rows ? slabs.rows - before : slabs.part_rows;
            const double share = 1.0 / static_cast<double>(rows);
            const double weight = static_cast<double>(rows) / static_cast<double>(before + rows);
            for (int64_t j = 0; j < slabs.pitch; ++j) {
                const double first = sums[FIRST * slabs.pitch + j];
                const double here = sums[j] + first * share;
                const double within = sums[SECOND * slabs.pitch + j] - first * first * share;
                const double far = here - mean[j];
                mean[j] = part ? mean[j] * (1.0 - weight) + here * weight : here;
                squares[j] = part ? squares[j] + within + far * far * (static_cast<double>(before) * weight) : within;
            }
        }
    }

    [[gnu::noinline]] void merge(const Slab& slab, float* memory) const {
        merge_parts(memory);
        const double *const mean = moments(memory, MEAN), *const squares = moments(memory, SQUARES);
        const int64_t members = plan.members(), first_set = slab.set(plan);
        for (int64_t s = 0; s < slab.sets(plan); ++s) {
            Moments all;
            for (int64_t j = s * members; j < (s + 1) * members; ++j)
                all.add(static_cast<double>(slabs.rows), mean[lane(j)], squares[lane(j)]);
            const double rstd = settle(plan, at, first_set + s, all);
            for (int64_t j = s * members; j < (s + 1) * members; ++j) {
                const int64_t c = slab.channel + j;
                put_map(Affine(all.mean, rstd, at.weight[c], at.bias[c]), memory, j);
            }
        }
    }

};

template <bool STREAM, int PREFETCH>
struct Pass : Statistics {
    void apply(const Slab& slab, float* memory, int64_t row, int64_t end) const {
        by_rows(row, end, [&](auto count, int64_t r) {
            const int64_t place = slab.begin + r * plan.channels;
            sweep(slab.width, [&](auto, int64_t j, auto n) {
                Vector shift, scale, offset;
                get(array(memory, SHIFT) + j, shift);
                get(array(memory, SCALE) + j, scale);
                get(array(memory, OFFSET) + j, offset);
                times<count>([&](auto i) {
                    const int64_t here = place + i * plan.channels + j;
                    fetch<PREFETCH>(at.x + here + count * plan.channels);
                    put<STREAM>(at.y + here, fma(load(at.x + here, n) - shift, scale, offset), n);
                });
            });
        });
    }
};

template <bool STREAM, int PREFETCH>
void all(const Plan* plan, const T* x, const float* weight, const float* bias, const float* running_mean,
         const float* running_var, T* y, float* mean, float* rstd, float* next_mean, float* next_var) {
    if constexpr (STREAM)
        if (!starts_lines(y, plan->channels) || plan->panel * sizeof(T) % 64)
            return all<false, PREFETCH>(plan, x, weight, bias, running_mean, running_var, y, mean, rstd, next_mean,
                                        next_var);
    const Forward at{x, weight, bias, running_mean, running_var, y, mean, rstd, next_mean, next_var};
    const Slabs slabs(*plan);
    const Pass<STREAM, PREFETCH> pass{{*plan, slabs, at}};
    const int threads = threads_for(*plan, slabs);
    static thread_local Workspace workspace;
    float* const memory = workspace.of(threads * pass.floats());
#pragma omp parallel num_threads(threads)
    {
        my_slabs(*plan, slabs, pass, memory);
        if constexpr (STREAM) _mm_sfence();
    }
}

extern "C" Normalise choose(bool stream, int prefetch) {
    return chosen<Normalise>(stream, prefetch, [](auto streams, auto level) -> Normalise { return all<streams, level>; });
}
