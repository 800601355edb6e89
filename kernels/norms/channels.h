// What kernels over the channels of images share: what they are called with, statistics, and sums of lanes.
#pragma once

#include "sums.h"

struct Plan {
    int64_t images, channels, pixels;
    int64_t groups;  // of channels of an image that are normalised together; 0: each channel, over all images
    int64_t panel;   // channels that go together where that is free to choose
    int64_t frozen;  // the statistics of the channels are given: constants, through which no gradient goes
    float eps, momentum;

    bool batch() const { return groups == 0; }
    int64_t sets() const { return batch() ? channels : images * groups; }            // of elements with one mean
    int64_t members() const { return batch() ? 1 : groups ? channels / groups : 0; }  // channels of a set
    int64_t set_size() const { return (batch() ? images : members()) * pixels; }
    int64_t elements() const { return images * channels * pixels; }
};

// Elements that f32 accumulators add before they are added to others in f64.
constexpr int64_t CHUNK = 32768;

inline bool finite(float v) { return v - v == 0.0f; }

// Count, mean and sum of squared distances from the mean, which those of other elements are added to (Chan, Golub and
// LeVeque 1983). An infinite mean stays: it is a weighted one, not a difference.
struct Moments {
    double count = 0.0, mean = 0.0, squares = 0.0;

    // `first` and `second` are the sums of x - shift and of its square.
    void add(double more, double shift, double first, double second) {
        add(more, shift + first / more, second - first * first / more);
    }
    void add(double more, double other, double other_squares) {
        const double all = count + more, far = other - mean;
        squares += other_squares + (count > 0.0 ? far * far * (count * more / all) : 0.0);
        mean = (count * mean + more * other) / all;
        count = all;
    }
};

// The operands of the forward ops. Without `next_mean` no statistics are running.
struct Forward {
    const T* x;
    const float *weight, *bias, *running_mean, *running_var;
    T* y;
    float *mean, *rstd, *next_mean, *next_var;
};

// Stores the statistics of a set and what they make of the running ones; returns rstd.
inline double settle(const Plan& plan, const Forward& at, int64_t set, const Moments& moments) {
    double var = moments.squares / moments.count;
    if (var < 0.0) var = 0.0;
    const double rstd = 1.0 / __builtin_sqrt(var + plan.eps);
    at.mean[set] = static_cast<float>(moments.mean);
    at.rstd[set] = static_cast<float>(rstd);
    if (at.next_mean) {
        const double share = plan.momentum, unbiased = moments.squares / (moments.count - 1.0);
        at.next_mean[set] = static_cast<float>((1.0 - share) * at.running_mean[set] + share * moments.mean);
        at.next_var[set] = static_cast<float>((1.0 - share) * at.running_var[set] + share * unbiased);
    }
    return rstd;
}

// y = (x - shift) scale + offset. The difference comes first: of a mean near 1e4 the product with scale has errors of
// 1e-3. What the shift lacks to the mean in f32 goes to the offset.
struct Affine {
    float shift, scale, offset;

    Affine(double mean, double rstd, float weight, float bias) {
        shift = static_cast<float>(mean);
        scale = static_cast<float>(rstd * weight);
        offset = static_cast<float>(bias + (shift - mean) * rstd * weight);
    }
};

inline Affine frozen(const Plan& plan, const Forward& at, int64_t channel) {
    const double rstd = 1.0 / __builtin_sqrt(static_cast<double>(at.running_var[channel]) + plan.eps);
    return {at.running_mean[channel], rstd, at.weight[channel], at.bias[channel]};
}

// The operands of the backward ops: `spread` is the forward pass's rstd, the variance where that is frozen.
struct Backward {
    const T *dy, *x;
    const float *mean, *spread, *weight;
    T* dx;
    float *dweight, *dbias;

    double rstd(const Plan& plan, int64_t set) const {
        const double given = spread[set];
        return plan.frozen ? 1.0 / __builtin_sqrt(given + plan.eps) : given;
    }
    // What dy is multiplied with where the statistics are frozen: then that is dx.
    float frozen_scale(const Plan& plan, int64_t channel) const {
        return static_cast<float>(rstd(plan, channel) * weight[channel]);
    }
};

// What the chain rule needs of a set with g = dy weight: sum(g) and sum(g (x - mean)).
struct Slopes {
    double sum = 0.0, along = 0.0;

    void add(float weight, double dy, double dy_x) {
        sum += weight * dy;
        along += weight * dy_x;
    }
};

// dx = dy scale + (x - mean) bend + level, which is rstd (g - mean(g) - n mean(g n)) with n = (x - mean) rstd. But for
// the weight in `scale` it is the same for all channels of a set.
struct Chain {
    float mean, rstd, bend, level;

    Chain(const Plan& plan, const Backward& at, int64_t set, const Slopes& slopes) {
        const double r = at.rstd(plan, set), share = r / static_cast<double>(plan.set_size());
        mean = at.mean[set];
        rstd = static_cast<float>(r);
        bend = static_cast<float>(-share * r * r * slopes.along);
        level = static_cast<float>(-share * slopes.sum);
    }
};

// The parameters' gradients from `rows` partial ones of each channel, added in their order whoever does it: channels
// from `begin` to `end`. The partial sums of dy n lie `rows * channels` before those of dy.
inline void add_partials(const Plan& plan, const Backward& at, const float* partial, int64_t begin, int64_t end) {
    const int64_t rows = plan.batch() ? 1 : plan.images, channels = plan.channels;
    for (int64_t c = begin; c < end; ++c) {
        double dweight = 0.0, dbias = 0.0;
        for (int64_t row = 0; row < rows; ++row) {
            dweight += partial[row * channels + c];
            dbias += partial[(rows + row) * channels + c];
        }
        at.dweight[c] = static_cast<float>(dweight);
        at.dbias[c] = static_cast<float>(dbias);
    }
}
inline int64_t partials(const Plan& plan) { return plan.sets() * plan.members() * 2; }

using Normalise = void (*)(const Plan*, const T*, const float*, const float*, const float*, const float*, T*, float*,
                           float*, float*, float*);
using Differentiate = void (*)(const Plan*, const T*, const T*, const float*, const float*, const float*, T*, float*,
                               float*);
