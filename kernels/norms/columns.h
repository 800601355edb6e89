// Images whose pixels are rows of channels (NHWC): slabs, which are the rows of an image, or of all where a channel has
// one mean over all, in a panel of columns. A slab is read for sums of its columns, which then make what each column is
// multiplied with, and read again, backwards, since its end is what a cache still has.
//
// A slab is one thread's, without any barrier, where there are enough of them; else all share its rows. The rows are cut
// into parts that depend on their number alone; each part has sums of its own, added in the order of the parts: the same
// bits for any number of threads.
#pragma once

#include "channels.h"

struct Slabs {
    int64_t count, rows, panel, panels, parts, part_rows, pitch;

    // `pitch` is what arrays of a slab's columns are long; of 64 parts, 32 threads and fewer get even shares.
    explicit Slabs(const Plan& plan) {
        rows = plan.batch() ? plan.images * plan.pixels : plan.pixels;
        panel = plan.panel;
        panels = (plan.channels + panel - 1) / panel;
        count = plan.batch() ? panels : plan.images * panels;
        part_rows = (rows + 63) / 64;
        part_rows = part_rows < 256 ? 256 : part_rows > 1024 ? 1024 : (part_rows + ROWS - 1) / ROWS * ROWS;
        parts = (rows + part_rows - 1) / part_rows;
        pitch = (panel + 31) / 32 * 32;
    }
};

// Columns `channel` to `channel + width` of an image's rows, from the element `begin` on.
struct Slab {
    int64_t image, channel, width, begin;

    Slab(const Plan& plan, const Slabs& slabs, int64_t index) {
        image = index / slabs.panels;
        channel = index % slabs.panels * slabs.panel;
        width = plan.channels - channel < slabs.panel ? plan.channels - channel : slabs.panel;
        begin = image * slabs.rows * plan.channels + channel;
    }
    // The first of its sets, and how many there are.
    int64_t set(const Plan& plan) const { return plan.batch() ? channel : image * plan.groups + channel / plan.members(); }
    int64_t sets(const Plan& plan) const { return width / plan.members(); }
};

inline Pair operator-(Pair a, Pair b) { return {a.even - b.even, a.odd - b.odd}; }

// Where the value of a column is in an array in the order of the lanes.
inline int64_t lane(int64_t column) {
    if constexpr (sizeof(Vector) == sizeof(Floats)) return column;
    return column / WIDTH * WIDTH + column % 2 * (WIDTH / 2) + column % WIDTH / 2;
}

// Calls f(rows as a constant, row) for all rows, ROWS at a time while there are so many. Eight rather than four share
// loads of what belongs to columns: the same forward, up to 1.2 times as fast backward.
template <typename F>
[[gnu::always_inline]] inline void by_rows(int64_t row, int64_t end, F&& f) {
    for (; row + ROWS <= end; row += ROWS) f(std::integral_constant<int, ROWS>{}, row);
    for (; row < end; ++row) f(std::integral_constant<int, 1>{}, row);
}

template <typename Pass>
void one_slab(const Plan& plan, const Slabs& slabs, const Pass& pass, int64_t index, float* memory, int64_t me,
              int64_t team) {
    const auto wait = [&] {
        if (team > 1) {
#pragma omp barrier
        }
    };
    const Slab slab(plan, slabs, index);
    const int64_t begin = slabs.parts * me / team, end = slabs.parts * (me + 1) / team;
    const auto last = [&](int64_t part) { return part + 1 < slabs.parts ? (part + 1) * slabs.part_rows : slabs.rows; };
    if (me == 0) pass.prepare(slab, memory);
    if (pass.sums()) {
        wait();
        for (int64_t part = begin; part < end; ++part)
            pass.add(slab, memory, part, part * slabs.part_rows, last(part));
        wait();
        if (me == 0) pass.merge(slab, memory);
    }
    wait();
    for (int64_t part = end - 1; part >= begin; --part) pass.apply(slab, memory, part * slabs.part_rows, last(part));
}

// All slabs, by the threads of the team that calls this; each slab that is under way has `pass.floats()` of memory.
template <typename Pass>
void my_slabs(const Plan& plan, const Slabs& slabs, const Pass& pass, float* memory) {
    const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
    if (slabs.count >= team)
        for (int64_t i = slabs.count * me / team; i < slabs.count * (me + 1) / team; ++i)
            one_slab(plan, slabs, pass, i, memory + me * pass.floats(), 0, 1);
    else
        for (int64_t i = 0; i < slabs.count; ++i)
            one_slab(plan, slabs, pass, i, memory + i * pass.floats(), me, team);
}

inline int threads_for(const Plan& plan, const Slabs& slabs) {
    return threads_for(plan.elements(), slabs.count * slabs.parts);
}
