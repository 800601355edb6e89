// Normalises the rows of a matrix: statistics of ROWS rows at a time, then the same rows again, from cache, to y.
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

// Where the operands are in the op's order: x, [residual,] weight, [bias,] y [, h].
constexpr int RESIDUAL_AT = 1, WEIGHT_AT = 1 + RESIDUAL, BIAS_AT = WEIGHT_AT + 1;
constexpr int Y_AT = WEIGHT_AT + 1 + BIAS, H_AT = Y_AT + 1, OPERANDS = Y_AT + 1 + RESIDUAL;
using Operands = T* const (&)[OPERANDS];

using Vector = decltype(load(static_cast<const T*>(nullptr), All{}));
constexpr int WIDTH = sizeof(Floats) / sizeof(T);

// Calls f(0), ..., f(N-1) with constants, so that arrays indexed by them live in registers.
template <int N, typename F>
[[gnu::always_inline]] inline void times(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
    (std::make_integer_sequence<int, N>{});
}

// Calls f(accumulator, offset, elements) for all vectors of a row, VECTORS of them per iteration.
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
[[gnu::always_inline]] inline float sum_of(const Vector (&vectors)[N]) {
    Vector sum = vectors[0];
    for (int i = 1; i < N; ++i) sum = sum + vectors[i];
    return total(sum);
}

// PREFETCH names the cache that the next rows are fetched to while these are written: 0 none, 1 L1, 2 L2.
template <int PREFETCH>
[[gnu::always_inline]] inline void fetch(const T* from) {
    if constexpr (PREFETCH == 1) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    if constexpr (PREFETCH == 2) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

// ROWS rows from `row` on: they share the loads of weight and bias.
template <int VECTORS, bool STREAM, int PREFETCH, int COUNT>
[[gnu::always_inline]] inline void block(const Plan& plan, Operands at, int64_t row) {
    const int64_t cols = plan.cols;
    const auto place = [&](int r, int64_t j) { return (row + r) * cols + j; };
    const auto value = [&](int r, int64_t j, auto n) {
        Vector x = load(at[0] + place(r, j), n);
        if constexpr (RESIDUAL) x = x + load(at[RESIDUAL_AT] + place(r, j), n);
        return x;
    };

    // Any shift near the mean will do, since the statistics of x - shift are corrected for its own mean (Chan, Golub and
    // LeVeque 1983): that of the whole row costs a sweep, that of its first `lead` elements almost nothing.
    Floats shift[COUNT] = {};
    if constexpr (CENTRED) {
        Vector sum[COUNT][VECTORS] = {};
        sweep<VECTORS>(plan.lead, [&](auto v, int64_t j, auto n) {
            times<COUNT>([&](auto r) { sum[r][v] = sum[r][v] + value(r, j, n); });
        });
        const float share = 1.0f / static_cast<float>(plan.lead);
        times<COUNT>([&](auto r) { shift[r] = broadcast(sum_of(sum[r]) * share); });
    }

    Vector first[COUNT][VECTORS] = {}, second[COUNT][VECTORS] = {};
    sweep<VECTORS>(cols, [&](auto v, int64_t j, auto n) {
        times<COUNT>([&](auto r) {
            Vector d = value(r, j, n);
            if constexpr (CENTRED) {
                d = keep(d - shift[r], n);
                first[r][v] = first[r][v] + d;
            }
            second[r][v] = fma(d, d, second[r][v]);
        });
    });

    Floats scale[COUNT], offset[COUNT];
    const float share = 1.0f / static_cast<float>(cols);
    times<COUNT>([&](auto r) {
        const float mean = CENTRED ? sum_of(first[r]) * share : 0.0f;
        const float spread = sum_of(second[r]) * share - mean * mean;
        const float inverse = 1.0f / std::sqrt((spread < 0.0f ? 0.0f : spread) + plan.eps);
        scale[r] = broadcast(inverse);
        offset[r] = broadcast(-mean * inverse);
    });

    const auto put = [&](T* to, Vector v, auto n) {
        if constexpr (STREAM && std::is_same_v<decltype(n), All>) stream(to, v);
        else store(to, v, n);
    };
    sweep<VECTORS>(cols, [&](auto, int64_t j, auto n) {
        const Vector weight = load(at[WEIGHT_AT] + j, n);
        Vector bias{};
        if constexpr (BIAS) bias = load(at[BIAS_AT] + j, n);
        times<COUNT>([&](auto r) {
            fetch<PREFETCH>(at[0] + place(r + COUNT, j));
            if constexpr (RESIDUAL) fetch<PREFETCH>(at[RESIDUAL_AT] + place(r + COUNT, j));
            const Vector x = value(r, j, n);
            if constexpr (RESIDUAL) put(at[H_AT] + place(r, j), x, n);
            Vector y;
            if constexpr (CENTRED) y = fma(x - shift[r], scale[r], offset[r]);
            else y = x * scale[r];
            if constexpr (BIAS) y = fma(y, weight, bias);
            else y = y * weight;
            put(at[Y_AT] + place(r, j), y, n);
        });
    });
}

// The rows that are left; compiled once for all ways to store and to prefetch.
template <int VECTORS>
[[gnu::noinline]] void single(const Plan& plan, Operands at, int64_t row, int64_t end) {
    for (; row < end; ++row) block<VECTORS, false, 0, 1>(plan, at, row);
}

template <int VECTORS, bool STREAM, int PREFETCH>
void range(const Plan& plan, Operands at, int64_t row, int64_t end) {
    for (; row + ROWS <= end; row += ROWS) block<VECTORS, STREAM, PREFETCH, ROWS>(plan, at, row);
    if (row < end) single<VECTORS>(plan, at, row, end);
    if constexpr (STREAM) _mm_sfence();
}

// Streaming stores need whole lines: every row must start at one.
static bool starts_lines(const Plan& plan, Operands at) {
    uintptr_t bits = plan.cols * sizeof(T) | reinterpret_cast<uintptr_t>(at[Y_AT]);
    if constexpr (RESIDUAL) bits |= reinterpret_cast<uintptr_t>(at[H_AT]);
    return bits % 64 == 0;
}

// A thread gets no fewer elements than this: waking another costs some microseconds.
constexpr int64_t GRAIN = 32768;

template <int VECTORS, bool STREAM, int PREFETCH, typename... Pointers>
void all(const Plan* plan, Pointers... operands) {
    T* const at[OPERANDS] = {operands...};
    if constexpr (STREAM)
        if (!starts_lines(*plan, at)) return all<VECTORS, false, PREFETCH>(plan, operands...);
    const int64_t rows = plan->rows;
    const int threads = static_cast<int>(
        std::clamp<int64_t>(rows * plan->cols / GRAIN, 1, std::min<int64_t>(omp_get_max_threads(), rows + 1)));
    if (threads == 1) return range<VECTORS, STREAM, PREFETCH>(*plan, at, 0, rows);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        range<VECTORS, STREAM, PREFETCH>(*plan, at, rows * me / team, rows * (me + 1) / team);
    }
}

// The entry takes as many pointers as the op has operands: ctypes spends 70 ns on each.
template <std::size_t>
using Pointer = T*;
template <std::size_t... I>
auto entry(std::index_sequence<I...>) -> void (*)(const Plan*, Pointer<I>...);
using Normalise = decltype(entry(std::make_index_sequence<OPERANDS>{}));

template <int VECTORS, bool STREAM>
Normalise with(int prefetch) {
    if (prefetch == 1) return all<VECTORS, STREAM, 1>;
    if (prefetch == 2) return all<VECTORS, STREAM, 2>;
    return all<VECTORS, STREAM, 0>;
}

// The function for so many vectors per iteration; null if it was not compiled.
extern "C" Normalise choose(int vectors, bool stream, int prefetch) {
    switch (vectors) {
        case 1: return stream ? with<1, true>(prefetch) : with<1, false>(prefetch);
        case 2: return stream ? with<2, true>(prefetch) : with<2, false>(prefetch);
#if ROWS < 4
        case 4: return stream ? with<4, true>(prefetch) : with<4, false>(prefetch);
#endif
    }
    return nullptr;
}
