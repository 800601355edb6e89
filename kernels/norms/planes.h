// Images whose channels are planes of contiguous pixels (NCHW): the elements of a set of them, and who has which set.
#pragma once

#include "channels.h"

// Sets begin `pitch` elements apart, each set's planes `stride`. A group's planes are one run of elements, those of a
// channel in all images are `runs`. Such channels go in panels; a group is a panel of its own.
struct Planes {
    int64_t pitch, count, stride, runs, length, panels;

    explicit Planes(const Plan& plan) {
        panels = plan.batch() ? (plan.channels + plan.panel - 1) / plan.panel : plan.sets();
        count = plan.batch() ? plan.images : plan.members();
        stride = plan.batch() ? plan.channels * plan.pixels : plan.pixels;
        runs = plan.batch() ? plan.images : 1;
        length = plan.batch() ? plan.pixels : plan.set_size();
        pitch = length;
    }
    int64_t panel_size(const Plan& plan, int64_t index) const {
        const int64_t left = plan.channels - index * plan.panel;
        return left < plan.panel ? left : plan.panel;
    }
};

// The first of a set's channels; a group has `members` of them, one a plane.
inline int64_t first_channel(const Plan& plan, int64_t set) {
    return plan.batch() ? set : set % plan.groups * plan.members();
}

// Calls f(offset, elements) for chunks of `runs` runs, and flush(elements) whenever there were half a chunk or more since
// the last time, and in the end. The first chunk has at most `most` elements, others CHUNK.
template <typename F, typename G>
[[gnu::always_inline]] inline void in_chunks(int64_t most, int64_t runs, int64_t stride, int64_t length, F&& f,
                                             G&& flush) {
    int64_t pending = 0;
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t begin = 0, count; begin < length; begin += count) {
            count = length - begin < most ? length - begin : most;
            f(run * stride + begin, count);
            pending += count;
            if (pending >= most / 2) {
                flush(pending);
                pending = 0;
                most = CHUNK;
            }
        }
    if (pending) flush(pending);
}

inline double drain(Vector (&sums)[VECTORS]) {
    const float sum = sum_of(sums);
    for (Vector& v : sums) v = Vector{};
    return sum;
}
