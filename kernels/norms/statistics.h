// The statistics of rows, and what they make of their elements. STATISTIC is fixed when a kernel is compiled.
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
    float eps;
    float kappa;  // the factor of the mean distance

    int64_t group() const { return rows / groups; }
    // The vector, one of as many as there are groups, that belongs to a row.
    const T* vector(const T* first, int64_t row) const {
        return group() == rows ? first : first + row / group() * cols;  // of no rows, too
    }
};

// What a layer's norm is scaled by, from its number.
inline Floats gain_of(const void* layer) {
    return broadcast(1.0f / __builtin_sqrtf(static_cast<float>(*static_cast<const int64_t*>(layer))));
}

// A number of each of up to four rows.
using Quad = float __attribute__((vector_size(16)));

inline Floats joined(Floats v) { return v; }
inline Floats joined(Pair v) { return v.even + v.odd; }
template <typename V>
inline Floats folded(const V (&vectors)[VECTORS]) {
    V sum = vectors[0];
    for (int i = 1; i < VECTORS; ++i) sum = sum + vectors[i];
    return joined(sum);
}
// The sum of each row's elements, which does not depend on how many rows go together.
template <typename V, int COUNT>
inline Quad sums(const V (&rows)[COUNT][VECTORS]) {
    return totals(folded(rows[0]), folded(rows[1 % COUNT]), folded(rows[2 % COUNT]), folded(rows[3 % COUNT]));
}

// Takes an element of a row to the normalised one.
struct Map {
    Quad scale, offset;
};

// From the sums of the rows' elements and of their squares (or magnitudes).
inline Map map_of(Quad first, Quad second, const Plan& plan) {
    const float share = 1.0f / static_cast<float>(plan.cols);
    if constexpr (STATISTIC == MEAN_DISTANCE) {
        const Quad inverse = 1.0f / (plan.kappa * second * share + plan.eps);
        return {inverse, -first * share * inverse};
    }
    Quad square = second * share, mean{};
    if constexpr (STATISTIC == COMPRESSED) square = (second + first * first) / static_cast<float>(plan.cols + 1);
    if constexpr (STATISTIC == VARIANCE) {
        mean = first * share;
        square -= mean * mean;
        square = square < 0.0f ? Quad{} : square;
    }
    const Quad inverse = 1.0f / static_cast<Quad>(_mm_sqrt_ps(static_cast<__m128>(square + plan.eps)));
    return {inverse, -mean * inverse};
}

// Bits of those of COUNT rows whose statistics must be taken around their mean. A variance from sums of x and x^2 loses
// as many digits as mean^2 is larger: it serves while that is up to 8 variances. NaN is hard, too; and a distance from
// the mean always is.
template <int COUNT>
inline int hard_rows(const Map& map, float eps) {
    constexpr int all = (1 << COUNT) - 1;
    if constexpr (STATISTIC == MEAN_DISTANCE) return all;
    if constexpr (STATISTIC != VARIANCE) return 0;
    const Quad ratio = map.offset * map.offset, most = 8.0f * (1.0f + 1e-6f - eps * map.scale * map.scale);
    return ~_mm_movemask_ps(static_cast<__m128>(ratio <= most)) & all;
}

// Adds to the sums that map_of takes of elements less their mean (corrected for what that is off by: Chan, Golub and
// LeVeque 1983).
[[gnu::always_inline]] inline void gather(Vector& first, Vector& second, Vector d) {
    first = first + d;
    if constexpr (STATISTIC == MEAN_DISTANCE) second = second + absolute(d);
    else second = fma(d, d, second);
}
