// Gradients of a norm of images whose pixels are rows of channels (NHWC), the statistics being those of the forward pass:
// sums of columns, which make what the chain rule needs of each set, and the same rows again for dx (columns.h). An
// image's sums are added to the others' in the order of the images.
//
// With frozen statistics dx needs no sums: it is written while they are taken.

#include "columns.h"

struct Gradients {
    const Plan& plan;
    const Slabs& slabs;
    const Backward& at;
    float* partial;

    // Arrays of columns in a slab's memory: what makes dx, then the sums of each part.
    enum { MEAN, SCALE, BEND, LEVEL, PARTS };
    enum { PLAIN, PRODUCT, KINDS };

    float* array(float* memory, int64_t index) const { return memory + index * slabs.pitch; }
    int64_t floats() const { return (PARTS + slabs.parts * KINDS) * slabs.pitch; }
    bool sums() const { return true; }

    void prepare(const Slab& slab, float* memory) const {
        const int64_t members = plan.members(), set = slab.set(plan);
        for (int64_t s = 0; s < slab.sets(plan); ++s)
            for (int64_t j = s * members; j < (s + 1) * members; ++j) array(memory, MEAN)[lane(j)] = at.mean[set + s];
        for (int64_t j = 0; plan.frozen && j < slab.width; ++j)
            array(memory, SCALE)[lane(j)] = at.frozen_scale(plan, slab.channel + j);
    }

    // The next rows are fetched to L2 in any case: at 8x512x28x28 f32 that takes a tenth off the whole. `also` is called
    // with every column, place and vector of dy.
    template <typename F>
    [[gnu::always_inline]] void add_rows(const Slab& slab, float* memory, int64_t part, int64_t row, int64_t end,
                                         F&& also) const {
        float* const sums = array(memory, PARTS + part * KINDS);
        std::memset(sums, 0, KINDS * slabs.pitch * sizeof(float));
        by_rows(row, end, [&](auto count, int64_t r) {
            const int64_t place = slab.begin + r * plan.channels;
            sweep(slab.width, [&](auto, int64_t j, auto n) {
                Vector mean, plain, product;
                get(array(memory, MEAN) + j, mean);
                get(array(sums, PLAIN) + j, plain);
                get(array(sums, PRODUCT) + j, product);
                times<count>([&](auto i) {
                    const int64_t here = place + i * plan.channels + j;
                    fetch<2>(at.x + here + count * plan.channels);
                    fetch<2>(at.dy + here + count * plan.channels);
                    const Vector dy = load(at.dy + here, n);
                    also(j, here, dy, n);
                    plain = plain + dy;
                    product = fma(dy, load(at.x + here, n) - mean, product);
                });
                set(array(sums, PLAIN) + j, plain);
                set(array(sums, PRODUCT) + j, product);
            });
        });
    }

    [[gnu::noinline]] void add(const Slab& slab, float* memory, int64_t part, int64_t row, int64_t end) const {
        add_rows(slab, memory, part, row, end, [](int64_t, int64_t, Vector, auto) {});
    }

    // A column's sum over all parts.
    double total(float* memory, int64_t kind, int64_t column) const {
        double sum = 0.0;
        for (int64_t part = 0; part < slabs.parts; ++part)
            sum += array(memory, PARTS + part * KINDS + kind)[lane(column)];
        return sum;
    }

    [[gnu::noinline]] void merge(const Slab& slab, float* memory) const {
        const int64_t members = plan.members(), first_set = slab.set(plan);
        float* const dweight = partial + first_set * members;
        float* const dbias = dweight + partials(plan) / 2;
        for (int64_t s = 0; s < slab.sets(plan); ++s) {
            const int64_t set = first_set + s;
            Slopes slopes;
            for (int64_t j = s * members; j < (s + 1) * members; ++j) {
                const double dy = total(memory, PLAIN, j), dy_x = total(memory, PRODUCT, j);
                slopes.add(at.weight[slab.channel + j], dy, dy_x);
                dweight[j] = static_cast<float>(dy_x * at.rstd(plan, set));
                dbias[j] = static_cast<float>(dy);
            }
            const Chain chain(plan, at, set, slopes);
            for (int64_t j = s * members; j < (s + 1) * members; ++j) {
                array(memory, SCALE)[lane(j)] = chain.rstd * at.weight[slab.channel + j];
                array(memory, BEND)[lane(j)] = chain.bend;
                array(memory, LEVEL)[lane(j)] = chain.level;
            }
        }
    }

};

template <bool STREAM>
struct Frozen : Gradients {
    [[gnu::noinline]] void add(const Slab& slab, float* memory, int64_t part, int64_t row, int64_t end) const {
        const float* const scales = array(memory, SCALE);
        add_rows(slab, memory, part, row, end, [&](int64_t j, int64_t here, Vector dy, auto n) {
            Vector scale;
            get(scales + j, scale);
            put<STREAM>(at.dx + here, dy * scale, n);
        });
    }
    void apply(const Slab&, float*, int64_t, int64_t) const {}
};

template <bool STREAM, int PREFETCH>
struct Pass : Gradients {
    void apply(const Slab& slab, float* memory, int64_t row, int64_t end) const {
        by_rows(row, end, [&](auto count, int64_t r) {
            const int64_t place = slab.begin + r * plan.channels;
            sweep(slab.width, [&](auto, int64_t j, auto n) {
                Vector mean, scale, bend, level;
                get(array(memory, MEAN) + j, mean);
                get(array(memory, SCALE) + j, scale);
                get(array(memory, BEND) + j, bend);
                get(array(memory, LEVEL) + j, level);
                times<count>([&](auto i) {
                    const int64_t here = place + i * plan.channels + j;
                    fetch<PREFETCH>(at.x + here + count * plan.channels);
                    fetch<PREFETCH>(at.dy + here + count * plan.channels);
                    const Vector rest = fma(load(at.x + here, n) - mean, bend, level);
                    put<STREAM>(at.dx + here, fma(load(at.dy + here, n), scale, rest), n);
                });
            });
        });
    }
};

template <bool STREAM, int PREFETCH>
void all(const Plan* plan, const T* dy, const T* x, const float* mean, const float* spread, const float* weight, T* dx,
         float* dweight, float* dbias) {
    if constexpr (STREAM)
        if (!starts_lines(dx, plan->channels) || plan->panel * sizeof(T) % 64)
            return all<false, PREFETCH>(plan, dy, x, mean, spread, weight, dx, dweight, dbias);
    const Backward at{dy, x, mean, spread, weight, dx, dweight, dbias};
    const Slabs slabs(*plan);
    const int threads = threads_for(*plan, slabs);
    static thread_local Workspace workspace;
    const int64_t shared = (partials(*plan) + 31) / 32 * 32;
    Gradients pass{*plan, slabs, at, nullptr};
    pass.partial = workspace.of(shared + threads * pass.floats());
#pragma omp parallel num_threads(threads)
    {
        if (plan->frozen) my_slabs(*plan, slabs, Frozen<STREAM>{pass}, pass.partial + shared);
        else my_slabs(*plan, slabs, Pass<STREAM, PREFETCH>{pass}, pass.partial + shared);
        if constexpr (STREAM) _mm_sfence();
#pragma omp barrier
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        add_partials(*plan, at, pass.partial, plan->channels * me / team, plan->channels * (me + 1) / team);
    }
}

extern "C" Differentiate choose(bool stream, int prefetch) {
    return chosen<Differentiate>(stream, prefetch,
                                 [](auto streams, auto level) -> Differentiate { return all<streams, level>; });
}
