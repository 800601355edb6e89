// Normalises images whose channels are planes of contiguous pixels (NCHW). A set, which is what has one mean (a channel of
// all images, or a group of channels of one), is read for its statistics and again, from cache if it fits there, for y:
// so batch norm, too, reads once from memory whatever a thread's L2 can hold of a channel.
//
// A set is one thread's: its statistics are the same for any number of them.

#include "planes.h"

// The mean of a set's first elements, or 0 if it is not finite.
inline float lead(const T* x, int64_t length) {
    const int64_t count = length < 64 ? length : 64;
    Vector sum[VECTORS] = {};
    sweep(count, [&](auto v, int64_t j, auto n) { sum[v] = sum[v] + load(x + j, n); });
    const float mean = sum_of(sum) / static_cast<float>(count);
    return finite(mean) ? mean : 0.0f;
}

// Sums around a shift: of few elements around the mean of the set's lead, then around the mean of all so far. Were the
// lead all outliers, one shift for 16384 elements would cost the variance 1e-5 of its size.
[[gnu::noinline]] Moments moments_of(const Planes& planes, const T* x) {
    Moments all;
    Vector first[VECTORS] = {}, second[VECTORS] = {};
    float shift = lead(x, planes.length);
    in_chunks(
        2048, planes.runs, planes.stride, planes.length,
        [&](int64_t from, int64_t count) {
            const Floats centre = broadcast(shift);
            sweep(count, [&](auto v, int64_t j, auto n) {
                const Vector d = keep(load(x + from + j, n) - centre, n);
                first[v] = first[v] + d;
                second[v] = fma(d, d, second[v]);
            });
        },
        [&](int64_t count) {
            const double sum = drain(first);
            all.add(static_cast<double>(count), shift, sum, drain(second));
            shift = static_cast<float>(all.mean);
            if (!finite(shift)) shift = 0.0f;
        });
    return all;
}

// One plane to y, while the elements `ahead` of it are fetched.
template <bool STREAM, int PREFETCH>
inline void apply(const Affine& map, const T* x, T* y, int64_t pixels, int64_t ahead) {
    const Floats shift = broadcast(map.shift), scale = broadcast(map.scale), offset = broadcast(map.offset);
    sweep(pixels, [&](auto, int64_t j, auto n) {
        fetch<PREFETCH>(x + ahead + j);
        put<STREAM>(y + j, fma(load(x + j, n) - shift, scale, offset), n);
    });
}

// Channels of all images, `count` of them. What they are multiplied with is kept, so that y is written image by image:
// planes of 7x7 pixels took 1.2 times as long one channel at a time.
template <bool STREAM, int PREFETCH>
void batch_panel(const Plan& plan, const Planes& planes, const Forward& at, Affine* maps, int64_t channel, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
        const int64_t c = channel + k;
        const Moments moments = moments_of(planes, at.x + c * planes.pitch);
        maps[k] = Affine(moments.mean, settle(plan, at, c, moments), at.weight[c], at.bias[c]);
    }
    for (int64_t p = 0; p < planes.count; ++p)
        for (int64_t k = 0; k < count; ++k) {
            const int64_t place = (channel + k) * planes.pitch + p * planes.stride;
            apply<STREAM, PREFETCH>(maps[k], at.x + place, at.y + place, plan.pixels, count * planes.pitch);
        }
}

template <bool STREAM, int PREFETCH>
void group(const Plan& plan, const Planes& planes, const Forward& at, int64_t set) {
    const int64_t begin = set * planes.pitch, channel = first_channel(plan, set);
    const Moments moments = moments_of(planes, at.x + begin);
    const double rstd = settle(plan, at, set, moments);
    for (int64_t p = 0; p < planes.count; ++p) {
        const int64_t place = begin + p * planes.stride;
        const Affine map(moments.mean, rstd, at.weight[channel + p], at.bias[channel + p]);
        apply<STREAM, PREFETCH>(map, at.x + place, at.y + place, plan.pixels, planes.pitch);
    }
}

// With frozen statistics the planes go in the order of memory.
template <bool STREAM, int PREFETCH>
void frozen_planes(const Plan& plan, const Forward& at, const Affine* maps, int64_t plane, int64_t end) {
    for (; plane < end; ++plane) {
        const int64_t place = plane * plan.pixels;
        apply<STREAM, PREFETCH>(maps[plane % plan.channels], at.x + place, at.y + place, plan.pixels, plan.pixels);
    }
}

template <bool STREAM, int PREFETCH>
void all(const Plan* plan, const T* x, const float* weight, const float* bias, const float* running_mean,
         const float* running_var, T* y, float* mean, float* rstd, float* next_mean, float* next_var) {
    if constexpr (STREAM)
        if (!starts_lines(y, plan->pixels))
            return all<false, PREFETCH>(plan, x, weight, bias, running_mean, running_var, y, mean, rstd, next_mean,
                                        next_var);
    const Forward at{x, weight, bias, running_mean, running_var, y, mean, rstd, next_mean, next_var};
    const Planes planes(*plan);
    const int64_t parts = plan->frozen ? plan->images * plan->channels : planes.panels;
    const int threads = threads_for(plan->elements(), parts);
    static thread_local Workspace workspace;
    Affine* const maps = reinterpret_cast<Affine*>(workspace.of((plan->frozen ? plan->channels : threads * plan->panel) * 3));
    for (int64_t c = 0; plan->frozen && c < plan->channels; ++c) maps[c] = frozen(*plan, at, c);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        const int64_t begin = parts * me / team, end = parts * (me + 1) / team;
        if (plan->frozen) frozen_planes<STREAM, PREFETCH>(*plan, at, maps, begin, end);
        for (int64_t i = begin; !plan->frozen && i < end; ++i)
            if (plan->batch())
                batch_panel<STREAM, PREFETCH>(*plan, planes, at, maps + me * plan->panel, i * plan->panel,
                                              planes.panel_size(*plan, i));
            else group<STREAM, PREFETCH>(*plan, planes, at, i);
        if constexpr (STREAM) _mm_sfence();
    }
}

extern "C" Normalise choose(bool stream, int prefetch) {
    return chosen<Normalise>(stream, prefetch, [](auto streams, auto level) -> Normalise { return all<streams, level>; });
}
