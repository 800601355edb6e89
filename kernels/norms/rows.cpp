// Normalises the rows of a matrix: statistics of a few rows at a time, then the same rows again, from cache, to y.
//
// What is computed is fixed when this file is compiled: T is the type in memory, CENTRED subtracts the mean, BIAS adds
// a vector, RESIDUAL adds a matrix first and stores the sum. How it is computed is chosen by `choose`.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "lanes.h"

struct Plan {
    int64_t rows, cols;
    int64_t lead;  // the leading elements of a row whose mean is the shift of its statistics
    float eps;
};

struct Pointers {
    const T *x, *residual, *weight, *bias;
    T *y, *h;
};

// Calls f(0), ..., f(N-1) with constants, so that arrays indexed by them live in registers.
template <int N, typename F>
[[gnu::always_inline]] inline void times(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
    (std::make_integer_sequence<int, N>{});
}

// Calls f(accumulator, offset, lanes) for all vectors of a row, VECTORS of them per iteration.
template <int VECTORS, typename F>
[[gnu::always_inline]] inline void sweep(int64_t cols, F&& f) {
    int64_t j = 0;
    for (; j + VECTORS * WIDTH <= cols; j += VECTORS * WIDTH)
        times<VECTORS>([&](auto v) { f(v, j + v * WIDTH, All{}); });
    constexpr std::integral_constant<int, 0> first;
    for (; j + WIDTH <= cols; j += WIDTH) f(first, j, All{});
    if (j < cols) f(first, j, First{static_cast<int>(cols - j)});
}

template <int N>
[[gnu::always_inline]] inline float total(const Lanes (&lanes)[N]) {
    Lanes sum = lanes[0];
    for (int i = 1; i < N; ++i) sum += lanes[i];
    return total(sum);
}

// ROWS rows from `row` on: they share the loads of weight and bias.
template <int ROWS, int VECTORS, bool STREAM, bool PREFETCH>
[[gnu::always_inline]] inline void block(const Plan& plan, const Pointers& at, int64_t row) {
    const int64_t cols = plan.cols;
    const auto place = [&](int r, int64_t j) { return (row + r) * cols + j; };
    const auto value = [&](int r, int64_t j, auto n) {
        Lanes x = load(at.x + place(r, j), n);
        if constexpr (RESIDUAL) x += load(at.residual + place(r, j), n);
        return x;
    };

    // Any shift near the mean will do, since the statistics of x - shift are corrected for its own mean (Chan, Golub and
    // LeVeque 1983): that of the whole row costs a sweep, that of its first `lead` elements almost nothing.
    Lanes shift[ROWS] = {};
    if constexpr (CENTRED) {
        Lanes sum[ROWS][VECTORS] = {};
        sweep<VECTORS>(plan.lead, [&](auto v, int64_t j, auto n) {
            times<ROWS>([&](auto r) { sum[r][v] += value(r, j, n); });
        });
        times<ROWS>([&](auto r) { shift[r] = broadcast(total(sum[r]) / static_cast<float>(plan.lead)); });
    }

    Lanes first[ROWS][VECTORS] = {}, second[ROWS][VECTORS] = {};
    sweep<VECTORS>(cols, [&](auto v, int64_t j, auto n) {
        times<ROWS>([&](auto r) {
            Lanes d = value(r, j, n);
            if constexpr (CENTRED) first[r][v] += d = keep(d - shift[r], n);
            second[r][v] = fma(d, d, second[r][v]);
        });
    });

    Lanes scale[ROWS], offset[ROWS];
    times<ROWS>([&](auto r) {
        const float count = static_cast<float>(cols);
        const float mean = CENTRED ? total(first[r]) / count : 0.0f;
        const float spread = total(second[r]) / count - mean * mean;
        const float inverse = 1.0f / std::sqrt((spread < 0.0f ? 0.0f : spread) + plan.eps);
        scale[r] = broadcast(inverse);
        offset[r] = broadcast(-mean * inverse);
    });

    const auto put = [&](T* to, Lanes v, auto n) {
        if constexpr (STREAM && std::is_same_v<decltype(n), All>) stream(to, v);
        else store(to, v, n);
    };
    sweep<VECTORS>(cols, [&](auto, int64_t j, auto n) {
        const Lanes weight = load(at.weight + j, n);
        Lanes bias{};
        if constexpr (BIAS) bias = load(at.bias + j, n);
        times<ROWS>([&](auto r) {
            if constexpr (PREFETCH) {
                _mm_prefetch(reinterpret_cast<const char*>(at.x + place(r + ROWS, j)), _MM_HINT_T0);
                if constexpr (RESIDUAL)
                    _mm_prefetch(reinterpret_cast<const char*>(at.residual + place(r + ROWS, j)), _MM_HINT_T0);
            }
            const Lanes x = value(r, j, n);
            if constexpr (RESIDUAL) put(at.h + place(r, j), x, n);
            const Lanes y = CENTRED ? fma(x - shift[r], scale[r], offset[r]) : x * scale[r];
            put(at.y + place(r, j), BIAS ? fma(y, weight, bias) : y * weight, n);
        });
    });
}

template <int ROWS, int VECTORS, bool STREAM, bool PREFETCH>
void range(const Plan& plan, const Pointers& at, int64_t row, int64_t end) {
    for (; row + ROWS <= end; row += ROWS) block<ROWS, VECTORS, STREAM, PREFETCH>(plan, at, row);
    if constexpr (ROWS > 1) range<1, VECTORS, STREAM, PREFETCH>(plan, at, row, end);
    else if constexpr (STREAM) _mm_sfence();
}

// Streaming stores need whole lines: every row must start at one.
constexpr uintptr_t LINE = 64;

static bool starts_lines(const Plan& plan, const Pointers& at) {
    const uintptr_t bits = plan.cols * sizeof(T) | reinterpret_cast<uintptr_t>(at.y) | reinterpret_cast<uintptr_t>(at.h);
    return bits % LINE == 0;
}

// A thread gets no fewer elements than this: waking another costs some microseconds.
constexpr int64_t GRAIN = 32768;

template <int ROWS, int VECTORS, bool STREAM, bool PREFETCH>
void all(const Plan* plan, const T* x, const T* residual, const T* weight, const T* bias, T* y, T* h) {
    const Pointers at{x, residual, weight, bias, y, h};
    if constexpr (STREAM)
        if (!starts_lines(*plan, at))
            return all<ROWS, VECTORS, false, PREFETCH>(plan, x, residual, weight, bias, y, h);
    const int64_t rows = plan->rows;
    const int threads = static_cast<int>(
        std::clamp<int64_t>(rows * plan->cols / GRAIN, 1, std::min<int64_t>(omp_get_max_threads(), rows + 1)));
    if (threads == 1) return range<ROWS, VECTORS, STREAM, PREFETCH>(*plan, at, 0, rows);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        range<ROWS, VECTORS, STREAM, PREFETCH>(*plan, at, rows * me / team, rows * (me + 1) / team);
    }
}

using Normalise = void (*)(const Plan*, const T*, const T*, const T*, const T*, T*, T*);

template <int ROWS, int VECTORS>
Normalise with(bool stream, bool prefetch) {
    if (stream) return prefetch ? all<ROWS, VECTORS, true, true> : all<ROWS, VECTORS, true, false>;
    return prefetch ? all<ROWS, VECTORS, false, true> : all<ROWS, VECTORS, false, false>;
}

// The function for these numbers of rows at a time and vectors per iteration; null if it was not instantiated.
extern "C" Normalise choose(int rows, int vectors, bool stream, bool prefetch) {
    switch (10 * rows + vectors) {
        case 11: return with<1, 1>(stream, prefetch);
        case 12: return with<1, 2>(stream, prefetch);
        case 14: return with<1, 4>(stream, prefetch);
        case 18: return with<1, 8>(stream, prefetch);
        case 21: return with<2, 1>(stream, prefetch);
        case 22: return with<2, 2>(stream, prefetch);
        case 24: return with<2, 4>(stream, prefetch);
        case 41: return with<4, 1>(stream, prefetch);
        case 42: return with<4, 2>(stream, prefetch);
    }
    return nullptr;
}
