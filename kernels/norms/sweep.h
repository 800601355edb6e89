// What kernels that go over the rows of a matrix share: sweeps, a vector of T (defined when they are compiled) at a time,
// and the choice of a function. (<algorithm> and <cmath> would take a third of the time that it takes to compile one.)
#pragma once

#include <omp.h>

#include <type_traits>
#include <utility>

#include "lanes.h"

using Vector = decltype(load(static_cast<const T*>(nullptr), All{}));
constexpr int WIDTH = sizeof(Vector) / sizeof(float);

// Of a lambda: what it captures by reference stays in registers.
#define INLINED __attribute__((always_inline))

// Calls f(0), ..., f(N-1) with constants, so that arrays indexed by them live in registers.
template <int N, typename F>
[[gnu::always_inline]] inline void times(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) INLINED { (f(std::integral_constant<int, I>{}), ...); }
    (std::make_integer_sequence<int, N>{});
}

constexpr std::integral_constant<int, 0> ZERO;

// Calls f(accumulator, offset, elements) for all vectors of columns [j, end) of a row, VECTORS of them per iteration.
template <typename F>
[[gnu::always_inline]] inline void sweep(int64_t j, int64_t end, F&& f) {
    for (; j + VECTORS * WIDTH <= end; j += VECTORS * WIDTH)
        times<VECTORS>([&](auto v) INLINED { f(v, j + v * WIDTH, All{}); });
    for (; j + WIDTH <= end; j += WIDTH) f(ZERO, j, All{});
    if (j < end) f(ZERO, j, First{static_cast<int>(end - j)});
}
template <typename F>
[[gnu::always_inline]] inline void sweep(int64_t cols, F&& f) {
    sweep(0, cols, f);
}

inline float sum_of(const Vector (&vectors)[VECTORS]) {
    Vector sum = vectors[0];
    for (int i = 1; i < VECTORS; ++i) sum = sum + vectors[i];
    return total(sum);
}

// LEVEL names the cache that data is fetched to: 0 none, 1 L1, 2 L2.
template <int LEVEL>
[[gnu::always_inline]] inline void fetch(const T* from) {
    if constexpr (LEVEL == 1) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    if constexpr (LEVEL == 2) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

template <bool STREAM, typename N>
[[gnu::always_inline]] inline void put(T* to, Vector v, N n) {
    if constexpr (STREAM && std::is_same_v<N, All>) stream(to, v);
    else store(to, v, n);
}

// Streaming stores need whole lines: every row starts at one, or its first elements are stored in another way.
inline bool starts_lines(const T* matrix, int64_t cols) {
    return (cols * sizeof(T) | reinterpret_cast<uintptr_t>(matrix)) % 64 == 0;
}
inline int64_t before_line(const T* to) {
    return static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % (WIDTH * sizeof(T)) / sizeof(T));
}

// How many threads share so many elements in so many parts: each gets 32768 at least, since waking another costs some
// microseconds.
inline int threads_for(int64_t elements, int64_t parts) {
    int64_t threads = elements / 32768;
    if (threads > omp_get_max_threads()) threads = omp_get_max_threads();
    if (threads > parts) threads = parts;
    return threads < 1 ? 1 : static_cast<int>(threads);
}

// The entry takes as many pointers as the op has operands: ctypes spends 70 ns on each.
template <std::size_t>
using Pointer = T*;
template <typename Plan, std::size_t... I>
auto entry(std::index_sequence<I...>) -> void (*)(const Plan*, Pointer<I>...);
template <typename Plan, int OPERANDS>
using Entry = decltype(entry<Plan>(std::make_index_sequence<OPERANDS>{}));

// What `function`, called with constants, has compiled for a way to store and a cache to prefetch to.
template <typename Function, typename F>
Function chosen(bool stream, int prefetch, F&& function) {
    const auto with = [&](auto streams) -> Function {
        if (prefetch == 1) return function(streams, std::integral_constant<int, 1>{});
        if (prefetch == 2) return function(streams, std::integral_constant<int, 2>{});
        return function(streams, std::integral_constant<int, 0>{});
    };
    return stream ? with(std::true_type{}) : with(std::false_type{});
}
