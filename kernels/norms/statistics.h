// The statistics of a row, and what they make of its elements. STATISTIC is fixed when a kernel is compiled.
#pragma once

#include "sweep.h"

#ifndef SCALED
#define SCALED 0
#endif

// By what a row is divided: the root of its mean square; of its variance; of the mean square of the row and one more
// element, which makes the sum zero (Jiang et al. 2023); or its mean distance from its mean.
enum Statistic { MEAN_SQUARE, VARIANCE, COMPRESSED, MEAN_DISTANCE };
constexpr bool CENTRED = STATISTIC == VARIANCE || STATISTIC == MEAN_DISTANCE;

struct Plan {
    int64_t rows, cols;
    int64_t groups;  // of successive rows, each with a weight and a bias of its own
    int64_t lead;  // the leading elements of a row whose mean is the shift of its statistics
    float eps;
    float kappa;  // the factor of the mean distance

    int64_t group() const { return rows / groups; }
    // The vector, one of as many as there are groups, that belongs to a row.
    const T* vector(const T* first, int64_t row) const { return groups == 1 ? first : first + row / group() * cols; }
};

// What a layer's norm is scaled by, from its number.
inline Floats gain_of(const void* layer) {
    return broadcast(1.0f / __builtin_sqrtf(static_cast<float>(*static_cast<const int64_t*>(layer))));
}

// A row is summed span by span, and these sums in the order of the spans: threads that share a row get the same bits.
constexpr int64_t SPAN = 16384;

// What a span, or more, of COUNT rows adds up to.
template <int COUNT>
struct Sums {
    float first[COUNT] = {}, second[COUNT] = {}, peak[COUNT] = {};

    void add(const Sums& other) {
        times<COUNT>([&](auto r) {
            first[r] += other.first[r];
            second[r] += other.second[r];
            if (other.peak[r] > peak[r]) peak[r] = other.peak[r];
        });
    }
};

// All columns of a row, which one thread has. total(cols, sums, span) adds what span(begin, end) gives of every span;
// it calls it from one place, or the compiler would not put it there.
struct Whole {
    template <int COUNT, typename F>
    [[gnu::always_inline]] void total(int64_t cols, Sums<COUNT>& sums, F&& span) const {
        int64_t begin = 0;
        do {
            sums.add(span(begin, begin + SPAN < cols ? begin + SPAN : cols));
            begin += SPAN;
        } while (begin < cols);
    }
    int64_t begin(int64_t) const { return 0; }
    int64_t end(int64_t cols) const { return cols; }
};

// The means of the first `lead` elements of COUNT rows, where the rows are centred; value(r, j, n) are some elements.
//
// Any shift near the mean will do, since the statistics of x - shift are corrected for its own mean (Chan, Golub and
// LeVeque 1983): that of the whole row costs a sweep, that of its first elements almost nothing.
template <int COUNT, typename F, typename Columns>
[[gnu::always_inline]] inline void find_shifts(Floats (&shift)[COUNT], int64_t lead, F&& value,
                                               const Columns& columns) {
    if constexpr (CENTRED) {
        Sums<COUNT> sums;
        columns.total(lead, sums, [&](int64_t begin, int64_t end) {
            Vector sum[COUNT][VECTORS] = {};
            sweep(begin, end, [&](auto v, int64_t j, auto n) {
                times<COUNT>([&](auto r) { sum[r][v] = sum[r][v] + value(r, j, n); });
            });
            Sums<COUNT> span;
            times<COUNT>([&](auto r) { span.first[r] = sum_of(sum[r]); });
            return span;
        });
        const float share = 1.0f / static_cast<float>(lead);
        times<COUNT>([&](auto r) { shift[r] = broadcast(sums.first[r] * share); });
    }
}

// Adds elements less the shift, their squares or their magnitudes to the sums that map_of takes.
[[gnu::always_inline]] inline void gather(Vector& first, Vector& second, Vector d) {
    if constexpr (STATISTIC != MEAN_SQUARE) first = first + d;
    if constexpr (STATISTIC == MEAN_DISTANCE) second = second + absolute(d);
    else second = fma(d, d, second);
}

// Takes an element less the shift to the normalised one.
struct Map {
    float scale, offset;
};

// From the sums of a row's elements and of their squares (or magnitudes), all less the shift.
inline Map map_of(float first, float second, const Plan& plan) {
    const float share = 1.0f / static_cast<float>(plan.cols);
    if constexpr (STATISTIC == MEAN_DISTANCE) {
        const float inverse = 1.0f / (plan.kappa * second * share + plan.eps);
        return {inverse, -first * share * inverse};
    }
    float square = second * share, mean = 0.0f;
    if constexpr (STATISTIC == COMPRESSED) square = (second + first * first) / static_cast<float>(plan.cols + 1);
    if constexpr (STATISTIC == VARIANCE) {
        mean = first * share;
        square -= mean * mean;
        if (square < 0.0f) square = 0.0f;
    }
    const float inverse = 1.0f / __builtin_sqrtf(square + plan.eps);
    return {inverse, -mean * inverse};
}
