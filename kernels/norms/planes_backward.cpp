// Gradients of a norm of images whose channels are planes of contiguous pixels (NCHW), the statistics being those of the
// forward pass: of a set (what has one mean) the sums that the chain rule needs, then the same elements again, from cache
// if they fit there, to dx. With an image a thread leaves the sums of its channels; they are added in the order of the
// images: the same bits for any number of threads.

#include "planes.h"

// The sums of dy and of dy (x - mean) over `runs` runs.
struct Sums {
    double dy = 0.0, dy_x = 0.0;

    [[gnu::noinline]] Sums(const T* dy_from, const T* x, float mean, int64_t runs, int64_t stride, int64_t length) {
        const Floats centre = broadcast(mean);
        Vector plain[VECTORS] = {}, product[VECTORS] = {};
        in_chunks(
            CHUNK, runs, stride, length,
            [&](int64_t from, int64_t count) {
                sweep(count, [&](auto v, int64_t j, auto n) {
                    const Vector gradient = load(dy_from + from + j, n);
                    plain[v] = plain[v] + gradient;
                    product[v] = fma(gradient, keep(load(x + from + j, n) - centre, n), product[v]);
                });
            },
            [&](int64_t) {
                dy += drain(plain);
                dy_x += drain(product);
            });
    }
};

template <bool STREAM, int PREFETCH>
inline void apply(const Chain& chain, float weight, const Backward& at, int64_t place, int64_t pixels, int64_t ahead) {
    const Floats mean = broadcast(chain.mean), scale = broadcast(chain.rstd * weight);
    const Floats bend = broadcast(chain.bend), level = broadcast(chain.level);
    sweep(pixels, [&](auto, int64_t j, auto n) {
        const T *const dy = at.dy + place + j, *const x = at.x + place + j;
        fetch<PREFETCH>(dy + ahead);
        fetch<PREFETCH>(x + ahead);
        put<STREAM>(at.dx + place + j, fma(load(dy, n), scale, fma(load(x, n) - mean, bend, level)), n);
    });
}

template <bool STREAM, int PREFETCH>
void one_set(const Plan& plan, const Planes& planes, const Backward& at, float* partial, int64_t set) {
    const int64_t begin = set * planes.pitch, channel = first_channel(plan, set), members = plan.members();
    float* const dweight = partial + set * members;
    float* const dbias = dweight + partials(plan) / 2;
    Slopes slopes;
    for (int64_t k = 0; k < members; ++k) {
        const int64_t place = begin + k * planes.stride;
        const int64_t runs = plan.batch() ? plan.images : 1;
        const Sums sums(at.dy + place, at.x + place, at.mean[set], runs, planes.stride, plan.pixels);
        slopes.add(at.weight[channel + k], sums.dy, sums.dy_x);
        dweight[k] = static_cast<float>(sums.dy_x * at.rstd[set]);
        dbias[k] = static_cast<float>(sums.dy);
    }
    const Chain chain(plan, at, set, slopes);
    for (int64_t p = 0; p < planes.count; ++p) {
        const float weight = at.weight[plan.batch() ? channel : channel + p];
        apply<STREAM, PREFETCH>(chain, weight, at, begin + p * planes.stride, plan.pixels, planes.pitch);
    }
}

template <bool STREAM, int PREFETCH>
void all(const Plan* plan, const T* dy, const T* x, const float* mean, const float* rstd, const float* weight, T* dx,
         float* dweight, float* dbias) {
    if constexpr (STREAM)
        if (!starts_lines(dx, plan->pixels))
            return all<false, PREFETCH>(plan, dy, x, mean, rstd, weight, dx, dweight, dbias);
    const Backward at{dy, x, mean, rstd, weight, dx, dweight, dbias};
    const Planes planes(*plan);
    static thread_local Workspace workspace;
    float* const partial = workspace.of(partials(*plan));
#pragma omp parallel num_threads(threads_for(plan->elements(), planes.sets))
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t set = planes.sets * me / team; set < planes.sets * (me + 1) / team; ++set)
            one_set<STREAM, PREFETCH>(*plan, planes, at, partial, set);
        if constexpr (STREAM) _mm_sfence();
#pragma omp barrier
        add_partials(*plan, at, partial, plan->channels * me / team, plan->channels * (me + 1) / team);
    }
}

extern "C" Differentiate choose(bool stream, int prefetch) {
    return chosen<Differentiate>(stream, prefetch,
                                 [](auto streams, auto level) -> Differentiate { return all<streams, level>; });
}
