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

// A number of each of up to four rows, or, in Floats, of a stack of rows: as many as a register has room for.
using Quad = float __attribute__((vector_size(16)));
constexpr int STACK = sizeof(Floats) / sizeof(float);
template <int COUNT>
using Numbers = std::conditional_t<(COUNT > 4), Floats, Quad>;

// Bits of the numbers that are at most `most`; not of NaN.
inline int at_most(Quad v, Quad most) { return _mm_movemask_ps(static_cast<__m128>(v <= most)); }
inline Quad root(Quad v) { return static_cast<Quad>(_mm_sqrt_ps(static_cast<__m128>(v))); }

// The numbers of rows, the last four being new: of a stack, those before them move down.
inline void append(Quad& all, Quad last) { all = last; }
inline void append(Floats& all, Quad last) { all = appended(all, static_cast<__m128>(last)); }

inline Floats joined(Floats v) { return v; }
inline Floats joined(Pair v) { return v.even + v.odd; }
template <typename V>
[[gnu::always_inline]] inline Floats folded(const V (&vectors)[VECTORS]) {
    V sum = vectors[0];
    times<VECTORS - 1>([&](auto i) INLINED { sum = sum + vectors[i + 1]; });
    return joined(sum);
}
// The sum of each row's parts, which does not depend on how many rows go together.
template <int COUNT>
inline Quad total(const Floats (&rows)[4]) {
    return totals(rows[0], rows[1 % COUNT], rows[2 % COUNT], rows[3 % COUNT]);
}

// Takes an element of a row to the normalised one.
template <typename V>
struct Map {
    V scale, offset;
};

// From the sums of the rows' elements and of their squares (or magnitudes).
template <typename V>
inline Map<V> map_of(V first, V second, const Plan& plan) {
    const float share = 1.0f / static_cast<float>(plan.cols);
    if constexpr (STATISTIC == MEAN_DISTANCE) {
        const V inverse = 1.0f / (plan.kappa * second * share + plan.eps);
        return {inverse, -first * share * inverse};
    }
    V square = second * share, mean{};
    if constexpr (STATISTIC == COMPRESSED) square = (second + first * first) / static_cast<float>(plan.cols + 1);
    if constexpr (STATISTIC == VARIANCE) {
        mean = first * share;
        square -= mean * mean;
        square = square < 0.0f ? V{} : square;
    }
    const V inverse = 1.0f / root(square + plan.eps);
    return {inverse, -mean * inverse};
}

// Bits of those of COUNT rows whose statistics must be taken around their mean. A variance from sums of x and x^2 loses
// as many digits as mean^2 is larger: it serves while that is up to 8 variances. NaN is hard, too; and a distance from
// the mean always is.
template <int COUNT, typename V>
inline int hard_rows(const Map<V>& map, float eps) {
    constexpr int all = (1 << COUNT) - 1;
    if constexpr (STATISTIC == MEAN_DISTANCE) return all;
    if constexpr (STATISTIC != VARIANCE) return 0;
    const V ratio = map.offset * map.offset, most = 8.0f * (1.0f + 1e-6f - eps * map.scale * map.scale);
    return ~at_most(ratio, most) & all;
}

// Adds to the sums that map_of takes of elements less their mean (corrected for what that is off by: Chan, Golub and
// LeVeque 1983).
[[gnu::always_inline]] inline void gather(Vector& first, Vector& second, Vector d) {
    first = first + d;
    if constexpr (STATISTIC == MEAN_DISTANCE) second = second + absolute(d);
    else second = fma(d, d, second);
}
