// Gradients of a norm of images whose channels are planes of contiguous pixels (NCHW), the statistics being those of the
// forward pass: of a set (what has one mean) the sums that the chain rule needs, then the same elements again, from cache
// if they fit there, to dx. With an image a thread leaves the sums of its channels; they are added in the order of the
// images: the same bits for any number of threads.
//
// With frozen statistics dx needs no sums: it is written while they are taken.

#include "planes.h"

// The sums of dy and of dy (x - mean) over `runs` runs; `also` is called with every place and its vector of dy.
struct Sums {
    double dy = 0.0, dy_x = 0.0;

    template <typename F>
    [[gnu::noinline]] Sums(const T* dy_from, const T* x, float mean, int64_t runs, int64_t stride, int64_t length,
                           F&& also) {
        const Floats centre = broadcast(mean);
        Vector plain[VECTORS] = {}, product[VECTORS] = {};
        in_chunks(
            CHUNK, runs, stride, length,
            [&](int64_t from, int64_t count) {
                sweep(count, [&](auto v, int64_t j, auto n) {
                    const Vector gradient = load(dy_from + from + j, n);
                    also(from + j, gradient, n);
                    plain[v] = plain[v] + gradient;
                    product[v] = fma(gradient, keep(load(x + from + j, n) - centre, n), product[v]);
                });
            },
            [&](int64_t) {
                dy += drain(plain);
                dy_x += drain(product);
            });
    }
    // As the gradients of a set's k-th channel.
    void leave(const Plan& plan, const Backward& at, float* partial, int64_t set, int64_t k) const {
        float* const dweight = partial + set * plan.members() + k;
        *dweight = static_cast<float>(dy_x * at.rstd(plan, set));
        dweight[partials(plan) / 2] = static_cast<float>(dy);
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

// A set's chain rule, and what it adds to the parameters' gradients.
inline Chain chain_of(const Plan& plan, const Planes& planes, const Backward& at, float* partial, int64_t set) {
    const int64_t channel = first_channel(plan, set);
    Slopes slopes;
    for (int64_t k = 0; k < plan.members(); ++k) {
        const int64_t place = set * planes.pitch + k * planes.stride;
        const Sums sums(at.dy + place, at.x + place, at.mean[set], planes.runs, planes.stride, plan.pixels,
                        [](int64_t, Vector, auto) {});
        slopes.add(at.weight[channel + k], sums.dy, sums.dy_x);
        sums.leave(plan, at, partial, set, k);
    }
    return {plan, at, set, slopes};
}

template <bool STREAM, int PREFETCH>
void frozen_channel(const Plan& plan, const Planes& planes, const Backward& at, float* partial, int64_t channel) {
    const int64_t place = channel * planes.pitch;
    const T *const dy = at.dy + place, *const x = at.x + place;
    T* const dx = at.dx + place;
    const Floats scale = broadcast(at.frozen_scale(plan, channel));
    const int64_t stride = planes.stride;
    const Sums sums(dy, x, at.mean[channel], planes.runs, stride, plan.pixels, [=](int64_t j, Vector gradient, auto n) {
        fetch<PREFETCH>(dy + j + stride);
        fetch<PREFETCH>(x + j + stride);
        put<STREAM>(dx + j, gradient * scale, n);
    });
    sums.leave(plan, at, partial, channel, 0);
}

// As in planes.cpp: the channels of a panel are written image by image.
template <bool STREAM, int PREFETCH>
void batch_panel(const Plan& plan, const Planes& planes, const Backward& at, Chain* chains, int64_t channel,
                 int64_t count) {
    for (int64_t p = 0; p < planes.count; ++p)
        for (int64_t k = 0; k < count; ++k) {
            const int64_t place = (channel + k) * planes.pitch + p * planes.stride;
            apply<STREAM, PREFETCH>(chains[k], at.weight[channel + k], at, place, plan.pixels, count * planes.pitch);
        }
}

template <bool STREAM, int PREFETCH>
void group(const Plan& plan, const Planes& planes, const Backward& at, const Chain& chain, int64_t set) {
    for (int64_t p = 0; p < planes.count; ++p)
        apply<STREAM, PREFETCH>(chain, at.weight[first_channel(plan, set) + p], at,
                                set * planes.pitch + p * planes.stride, plan.pixels, planes.pitch);
}

template <bool STREAM, int PREFETCH>
void all(const Plan* plan, const T* dy, const T* x, const float* mean, const float* spread, const float* weight, T* dx,
         float* dweight, float* dbias) {
    if constexpr (STREAM)
        if (!starts_lines(dx, plan->pixels))
            return all<false, PREFETCH>(plan, dy, x, mean, spread, weight, dx, dweight, dbias);
    const Backward at{dy, x, mean, spread, weight, dx, dweight, dbias};
    const Planes planes(*plan);
    static thread_local Workspace workspace;
    const int threads = threads_for(plan->elements(), planes.panels);
    const int64_t panel = plan->batch() ? plan->panel : 1;
    float* const partial = workspace.of(partials(*plan) + threads * panel * 4);
    Chain* const chains = reinterpret_cast<Chain*>(partial + partials(*plan));
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        Chain* const mine = chains + me * panel;
        for (int64_t i = planes.panels * me / team; i < planes.panels * (me + 1) / team; ++i) {
            const int64_t count = plan->batch() ? planes.panel_size(*plan, i) : 1;
            if (plan->frozen) {
                for (int64_t k = 0; k < count; ++k)
                    frozen_channel<STREAM, PREFETCH>(*plan, planes, at, partial, i * panel + k);
                continue;
            }
            for (int64_t k = 0; k < count; ++k) mine[k] = chain_of(*plan, planes, at, partial, i * panel + k);
            if (plan->batch()) batch_panel<STREAM, PREFETCH>(*plan, planes, at, mine, i * panel, count);
            else group<STREAM, PREFETCH>(*plan, planes, at, *mine, i);
        }
        if constexpr (STREAM) _mm_sfence();
#pragma omp barrier
        add_partials(*plan, at, partial, plan->channels * me / team, plan->channels * (me + 1) / team);
    }
}

extern "C" Differentiate choose(bool stream, int prefetch) {
    return chosen<Differentiate>(stream, prefetch,
                                 [](auto streams, auto level) -> Differentiate { return all<streams, level>; });
}
